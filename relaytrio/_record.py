"""One turn's record: where its parts go, what of them is to be kept, and what its responder asks for.

It stands between the two tasks of a turn: the responder's calls come in through `Turn`, the run's supervisor opens,
answers and closes. A part is encoded once, as the row that every viewer will get; what is committed comes from here,
never from a log. Must not know: the store, transitions, why a turn ends. Who calls: `Turn` and `Run`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from io import StringIO

import attrs
import trio

from ._errors import AnswerTooLarge, TurnOver
from ._parts import PartLog
from ._protocol.chat import NewMessage
from ._protocol.events import Content, MessageRef, Part
from ._protocol.wire import cursor_prefix, encode_part, part_row_form
from ._settings import Settings
from ._wakeup import Flag

_EMPTY_TEXT_BYTES = len(b'{"type":"text","text":""}')


@attrs.define(kw_only=True)
class Request:
    """A commit or a finish, from the responder to the run's supervisor."""

    messages: tuple[NewMessage, ...]
    finishes: bool
    done: trio.Event = attrs.field(factory=trio.Event, init=False)
    refused: bool = attrs.field(default=False, init=False)
    """The turn was over before it could be carried out."""


class Kept:
    """What was sent since the last commit, adjacent texts joined, other parts as they were. Synchronous."""

    def __init__(self, limit_bytes: int) -> None:
        self.size_bytes = 0
        """Of its JSON."""
        self.truncated = False
        """Something was refused because it would have outgrown the limit."""
        self._limit_bytes = limit_bytes
        self._before: Content = []
        # Not a list of strings: eight million tokens of one letter would weigh half a gigabyte.
        self._text: StringIO | None = None

    @property
    def content(self) -> Content:
        """All of it, as the content of a message. A new list with new parts each time."""
        content = copy.deepcopy(self._before)
        if self._text is not None:
            content.append({"type": "text", "text": self._text.getvalue()})
        return content

    def add_one(self, part: Part, size_bytes: int) -> None:
        """Like `add`: one token more, after another one."""
        grown_bytes = self.size_bytes + size_bytes - _EMPTY_TEXT_BYTES
        if self._text is None or not _is_plain_text(part) or grown_bytes > self._limit_bytes:
            self.add((part,), (size_bytes,))
        else:
            self.size_bytes = grown_bytes
            self._text.write(part["text"])

    def add(self, parts: Sequence[Part], sizes_bytes: Sequence[int]) -> None:
        """Keep all of these, or none: raises `AnswerTooLarge`."""
        texts = [part["text"] if _is_plain_text(part) else None for part in parts]
        grown_bytes = self.size_bytes + self._growth_bytes(texts, sizes_bytes)
        if grown_bytes > self._limit_bytes:
            self.truncated = True
            raise AnswerTooLarge(f"the answer would have outgrown {self._limit_bytes} bytes since its last commit")
        self.size_bytes = grown_bytes
        for part, text in zip(parts, texts, strict=True):
            if text is None:
                self._add_other(part)
            else:
                self._add_text(text)

    def _growth_bytes(self, texts: Sequence[str | None], sizes_bytes: Sequence[int]) -> int:
        """How much longer the JSON becomes: a text that is joined to another brings no framing."""
        growth_bytes, after_text = sum(sizes_bytes), self._text is not None
        for text in texts:
            is_text = text is not None
            growth_bytes += -_EMPTY_TEXT_BYTES if is_text and after_text else 1
            after_text = is_text
        return growth_bytes

    def _add_text(self, text: str) -> None:
        if self._text is None:
            self._text = StringIO()
        self._text.write(text)

    def _add_other(self, part: Part) -> None:
        if self._text is not None:
            self._before.append({"type": "text", "text": self._text.getvalue()})
            self._text = None
        # The responder may go on changing what it has sent.
        self._before.append(copy.deepcopy(part))


def _is_plain_text(part: Part) -> bool:
    """A text that says nothing else: what is joined to others loses nothing."""
    return len(part) == 2 and part["type"] == "text" and type(part.get("text")) is str


class Record:
    """What one turn's responder and its run's supervisor share."""

    def __init__(self, log: PartLog, base: MessageRef, settings: Settings, wake: Callable[[], None]) -> None:
        self.request: Request | None = None
        """What the responder waits for; one at a time."""
        self.over = False
        """Nothing more is taken."""
        self._settings = settings
        self._wake = wake
        self._settled = Flag()
        """Set while no request is under way."""
        self._settled.set()
        self._open(log, base)

    def _open(self, log: PartLog, base: MessageRef) -> None:
        self.kept = Kept(self._settings.answer_bytes)
        self._log = log
        self._form = part_row_form(log.episode, cursor_prefix(base, log.episode))

    # the responder's side

    async def ready(self) -> None:
        """Return when something can be sent or asked for; during a commit that is after it. A checkpoint.

        Raises `TurnOver`.
        """
        await trio.lowlevel.checkpoint()
        if not self.is_ready:
            await self.settled()

    @property
    def is_ready(self) -> bool:
        """Whether something can be sent or asked for now."""
        return self.request is None and not self.over

    async def settled(self) -> None:
        """Like `ready`, for who has found that it is not."""
        await trio.lowlevel.checkpoint()
        while self.request is not None and not self.request.finishes:
            await self._settled.wait()
        if not self.is_ready:
            raise TurnOver("the turn is over, nothing more can be sent")

    def append_one(self, part: Part) -> None:
        """Like `append`, of one: lists of one would be a fifth of what a token costs."""
        encoded = encode_part(part, limit_bytes=self._settings.part_bytes)
        self.kept.add_one(part, len(encoded))
        log = self._log
        seq = log.last_seq + 1
        log.append_row(self._form % (seq, encoded, seq))

    def append(self, parts: Sequence[Part]) -> None:
        """Send these, all or none. Raises `InvalidPart` and `AnswerTooLarge`. To be called right after `ready`."""
        form, limit_bytes = self._form, self._settings.part_bytes
        encoded = [encode_part(part, limit_bytes=limit_bytes) for part in parts]
        self.kept.add(parts, [len(part) for part in encoded])
        self._log.append([form % (seq, part, seq) for seq, part in enumerate(encoded, self._log.last_seq + 1)])

    async def ask(self, request: Request) -> None:
        """Have the supervisor carry it out; returns when it has. To be called right after `ready`.

        Raises `TurnOver`. A cancelled caller leaves the request behind: it is carried out all the same.
        """
        self.request = request
        self._settled.clear()
        self._wake()
        await request.done.wait()
        if request.refused:
            raise TurnOver("the turn ended before this was stored")

    # the supervisor's side

    def messages(self) -> tuple[NewMessage, ...]:
        """What is kept, as the assistant's message; nothing, if nothing was sent."""
        content = self.kept.content
        if not content:
            return ()
        return (NewMessage(role="assistant", content=content, truncated=self.kept.truncated),)

    def reopen(self, log: PartLog, base: MessageRef) -> None:
        """A commit is stored: the record begins anew, with the next episode, and whoever waits goes on."""
        self._open(log, base)
        self.answer()

    def answer(self) -> None:
        """The request is carried out."""
        self._settle(refused=False)

    def close(self) -> None:
        """Nothing more is taken; a request that is still open was not carried out. Twice is fine."""
        self.over = True
        self._log.seal()
        self._settle(refused=True)

    def _settle(self, *, refused: bool) -> None:
        if self.request is not None:
            self.request.refused = refused
            self.request.done.set()
        self.request = None
        self._settled.set()
