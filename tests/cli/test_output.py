"""What reaches a person's terminal."""

from __future__ import annotations

import io

import pytest

from relaytrio.cli._output import Output, harmless, wants_colour


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("evil", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\x7f", "\u202e", "\u2066", "\ud800"])
def test_control_characters_are_not_sent(evil: str) -> None:
    """Text of somebody else cannot command the terminal, and can always be encoded."""
    shown = harmless(f"a{evil}b")
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in shown)
    assert shown.encode()
    assert evil[0] not in shown


def test_ordinary_text_is_untouched() -> None:
    """Line feeds, tabs, letters of all languages and emoji stay as they are."""
    text = "a\tb\nÄ 漢字 العربية 👩‍💻"
    assert text == harmless(text)


@pytest.mark.parametrize(
    ("stream", "environ", "wanted"),
    [
        (io.StringIO(), {}, False),
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
    ],
)
def test_colour(stream: io.StringIO, environ: dict[str, str], wanted: bool) -> None:
    """Colour is for terminals whose owner does not refuse it."""
    assert wanted == wants_colour(stream, environ)


def test_plain_where_no_terminal_is() -> None:
    """Into a file goes the text alone; remarks leave it in peace."""
    out, err = io.StringIO(), io.StringIO()
    output = Output(out, err)
    output.write("to", "red")
    output.remark("running")
    output.write("ken")
    output.line("next", "bold")
    assert out.getvalue() == "token\nnext\n"
    assert err.getvalue() == "running\n"


def test_remarks_stand_on_their_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both streams are one screen, a remark does not stand in the middle of the live text."""
    monkeypatch.setenv("NO_COLOR", "1")
    out, err = Terminal(), Terminal()
    output = Output(out, err)
    output.write("tok")
    output.remark("interrupting")
    output.remark("waiting")
    assert out.getvalue() == "tok\n"
    assert err.getvalue() == "interrupting\nwaiting\n"


def test_remarks_are_dim(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal remarks are dim unless told otherwise, and the colour always ends."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal()
    output = Output(io.StringIO(), err)
    output.remark("a")
    output.remark("b", "red")
    assert err.getvalue() == "\x1b[2ma\x1b[0m\n\x1b[31mb\x1b[0m\n"
