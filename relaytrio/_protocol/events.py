"""What a viewer receives, and how it says what it has: `Event`, `Episode`, `Cursor`, `Message`.

Must not know: how events travel (wire.py), when they are sent (resume.py), what a transition is (chat.py).
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from .._errors import InvalidCursor

ChatStatus: TypeAlias = Literal["waiting", "running", "interrupting", "error"]
Part: TypeAlias = dict[str, Any]
"""One JSON object with a string `type`; `{"type": "text", "text": ...}` for a token."""
Content: TypeAlias = list[Part]

LARGEST_NUMBER = 2**63 - 1
"""What a database integer holds; a larger number in a cursor was never made here."""


@attrs.frozen(cache_hash=True)  # it names the log in every look at one
class Episode:
    """What one generation attempt of one run produces. Ordered by its numbers, equal only with its run."""

    history_version: int
    generation_attempt: int
    run_id: str

    @property
    def numbers(self) -> tuple[int, int]:
        """What orders episodes of a chat."""
        return (self.history_version, self.generation_attempt)

    def __lt__(self, other: Episode) -> bool:
        return self.numbers < other.numbers

    def __gt__(self, other: Episode) -> bool:
        return self.numbers > other.numbers

    def __str__(self) -> str:
        return f"{self.history_version}.{self.generation_attempt}.{self.run_id}"


@attrs.frozen
class MessageRef:
    """A message's identity: its id, and the stamp that tells it from one of the same id in another life of the chat."""

    id: int
    stamp: str | None
    """None: a viewer that knows the id only (`after_message_id`); it fits any stamp."""


NO_MESSAGE = MessageRef(0, "")
"""The base of a viewer that has nothing."""

_CURSOR = re.compile(
    r"(?P<id>0|[1-9][0-9]{0,18})-(?P<stamp>[a-z0-9]{0,16})"
    r"(?:-(?P<history>0|[1-9][0-9]{0,18})\.(?P<attempt>0|[1-9][0-9]{0,18})\.(?P<run>[a-z0-9]{1,32})"
    r"-(?P<seq>0|[1-9][0-9]{0,18}))?"
)


@attrs.frozen
class Cursor:
    """What a viewer has: its last message, and of the episode in progress all parts up to `seq`.

    `str(cursor)` is the opaque text that any replica of the cluster can resume from, such as
    `41-k3x9q-57.1.p8r2dq7w3e-118`; with no message `0-`, and without an episode the last two fields are left out.
    """

    message: MessageRef = NO_MESSAGE
    episode: Episode | None = None
    seq: int = 0

    def __str__(self) -> str:
        text = f"{self.message.id}-{self.message.stamp or ''}"
        return text if self.episode is None else f"{text}-{self.episode}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor that `str` gave. Raises `InvalidCursor` for anything else."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise InvalidCursor("not a cursor: expected the text of an event's `cursor`")
        numbers = [int(found[name]) for name in ("id", "history", "attempt", "seq") if found[name] is not None]
        if max(numbers) > LARGEST_NUMBER or (numbers[0] == 0) != (found["stamp"] == ""):
            raise InvalidCursor("not a cursor: its numbers or its stamp were never given out")
        message = MessageRef(numbers[0], found["stamp"])
        if found["history"] is None:
            return cls(message)
        return cls(message, Episode(numbers[1], numbers[2], found["run"]), numbers[3])


@attrs.frozen(kw_only=True)
class Message:
    """A finished, stored message."""

    id: int
    """Grows per chat."""
    stamp: str
    """Five random characters: tells a message from one of the same id after the store was set back."""
    role: str
    """`user`, `assistant`, `system` or `tool`."""
    content: Content
    version: int
    """The snapshot version of the chat that made it."""
    deleted: bool = False
    interrupted: bool = False
    """What had been generated when the person, or a failure, stopped it."""
    truncated: bool = False
    """The answer outgrew the limit; this is what there is."""
    queued_id: int | None = None
    """The queue entry that it was promoted from."""
    created_at: str
    """RFC 3339, UTC, by the clock of the replica that wrote it."""

    @property
    def ref(self) -> MessageRef:
        return MessageRef(self.id, self.stamp)


@attrs.frozen(kw_only=True)
class QueueEntry:
    """A message of the user that waits for a busy chat. The queue's order is the order of promotion."""

    id: int
    """Grows per chat."""
    content: Content
    urgent: bool = False
    """Sent to interrupt: goes before ordinary entries."""


@attrs.frozen(kw_only=True)
class ChatError:
    """Why a chat is parked in `error`."""

    kind: str
    """A short name: `responder_failed`, `worker_lost`, ..."""
    message: str
    """For a person; never holds a token, a cookie or the text of a chat."""


@attrs.frozen(kw_only=True)
class RetryState:
    """A failed attempt that will be followed by another."""

    attempt: int
    """The attempt that failed, counted from 1 in its run."""
    delay_seconds: float
    error: str
    """For a person; never holds a token, a cookie or the text of a chat."""


# ---------------------------------------------------------------------------------------------- events


@attrs.frozen(kw_only=True)
class MessageEvent:
    """A message of the history, once each and by id."""

    type: ClassVar[str] = "message"
    message: Message
    cursor: str


@attrs.frozen(kw_only=True, weakref_slot=False)  # see `wire.decode_rows`
class MessagePart:
    """A piece of the answer that is being generated."""

    type: ClassVar[str] = "message_part"
    episode: Episode
    seq: int
    """1, 2, 3... within the episode."""
    part: Part
    cursor: str


@attrs.frozen(kw_only=True)
class Status:
    """The chat's status, once at the start and again with every version of the chat that the viewer gets to see."""

    type: ClassVar[str] = "status"
    status: ChatStatus
    worker_id: str | None
    version: int
    """The chat's snapshot version: what a request's answer names to wait for."""
    cursor: str


@attrs.frozen(kw_only=True)
class QueueUpdate:
    """The whole queue, once at the start and again when it changes."""

    type: ClassVar[str] = "queue_update"
    queue: tuple[QueueEntry, ...]
    cursor: str


@attrs.frozen(kw_only=True)
class ErrorEvent:
    """The chat is parked in `error`: this is why."""

    type: ClassVar[str] = "error"
    error: ChatError
    cursor: str


@attrs.frozen(kw_only=True)
class Retry:
    """An attempt failed, and another one follows after a delay."""

    type: ClassVar[str] = "retry"
    attempt: int
    delay_seconds: float
    error: str
    cursor: str


ResetReason: TypeAlias = Literal["new_attempt", "truncated", "gap", "worker_lost", "nothing_kept"]


@attrs.frozen(kw_only=True)
class PreviewReset:
    """The parts seen so far are void. `truncated` and `gap` go on at `first_seq`; the others end the preview."""

    type: ClassVar[str] = "preview_reset"
    reason: ResetReason
    first_seq: int
    cursor: str


@attrs.frozen(kw_only=True)
class HistoryReset:
    """Messages after `after_id` are void (0: all); the ones that stand now follow. It ends the preview too."""

    type: ClassVar[str] = "history_reset"
    after_id: int
    cursor: str


@attrs.frozen(kw_only=True)
class CaughtUp:
    """All that was stored when the subscription began has been sent. Waits for no part."""

    type: ClassVar[str] = "caught_up"
    cursor: str


@attrs.frozen(kw_only=True)
class Degraded:
    """Something that serves this stream (not the chat) does not work, or works again (`ok`)."""

    type: ClassVar[str] = "degraded"
    what: Literal["pubsub", "relay", "store"]
    ok: bool
    message: str
    retrying: bool
    cursor: str


Event: TypeAlias = (
    MessageEvent
    | MessagePart
    | Status
    | QueueUpdate
    | ErrorEvent
    | Retry
    | PreviewReset
    | HistoryReset
    | CaughtUp
    | Degraded
)
