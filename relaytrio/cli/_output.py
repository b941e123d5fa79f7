"""What goes to a person's terminal: text on stdout, remarks on stderr, each in colour where a terminal is.

The text of a chat was written by somebody else: control characters in it could move the cursor, rename the window or
worse, so that all but tabs and line feeds are shown, not sent. Must not know: chats, events. Who calls: commands.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import Literal, TextIO, TypeAlias

Colour: TypeAlias = Literal["dim", "bold", "red", "green", "blue", "yellow"]
_CODES: dict[Colour, str] = {"dim": "2", "bold": "1", "red": "31", "green": "32", "blue": "34", "yellow": "33"}

_COMMANDS = (*range(0x20), *range(0x7F, 0xA0))
_TURNS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SURROGATES = range(0xD800, 0xE000)
_SHOWN = {code: "\N{REPLACEMENT CHARACTER}" for code in (*_COMMANDS, *_TURNS, *_SURROGATES) if chr(code) not in "\t\n"}
"""Control characters, those that turn the direction of writing, and lone surrogates, which no output can take."""


def harmless(text: str) -> str:
    """The text without what a terminal would obey."""
    return text.translate(_SHOWN)


def wants_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the stream is a terminal that shows colours, and nobody said that they are unwelcome."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Output:
    """Both streams, and whether the text on stdout stands in the middle of a line."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._colour_out = wants_colour(self._out)
        self._colour_err = wants_colour(self._err)
        self._same_screen = self._out.isatty() and self._err.isatty()
        self._in_line = False
        for stream in (self._out, self._err):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # not every terminal has every character

    def write(self, text: str, *colours: Colour) -> None:
        """Text of a chat, as it is but for what a terminal would obey; seen at once."""
        if text:
            self._put(harmless(text), colours)
            self._in_line = not text.endswith("\n")

    def line(self, text: str, *colours: Colour) -> None:
        """A line of its own on stdout."""
        self.end_line()
        self.write(f"{text}\n", *colours)

    def end_line(self) -> None:
        """Begin a new line on stdout unless one is begun."""
        if self._in_line:
            self._put("\n", ())
            self._in_line = False

    def remark(self, text: str, *colours: Colour) -> None:
        """A line on stderr, dim unless told otherwise."""
        if self._same_screen:
            self.end_line()
        self._err.write(_painted(harmless(text), colours or ("dim",), self._colour_err) + "\n")
        self._err.flush()

    def _put(self, text: str, colours: tuple[Colour, ...]) -> None:
        self._out.write(_painted(text, colours, self._colour_out))
        self._out.flush()


def _painted(text: str, colours: tuple[Colour, ...], wanted: bool) -> str:
    if not (wanted and colours):
        return text
    return f"\x1b[{';'.join(_CODES[colour] for colour in colours)}m{text}\x1b[0m"


def fault(text: str) -> None:
    """One line on stderr that says what is wrong."""
    print(f"relaytrio: {harmless(text)}", file=sys.stderr)
