"""Bytes <-> events: what goes to viewers over a socket, and what is refused there.

A viewer gets frames that are JSON arrays of events, in text; `[]` is the heartbeat. A part is encoded once, as the row
that stands in the log and in every frame.

Compatible in both directions: unknown fields are ignored, unknown types of events are passed over. All else that is
malformed is a `WireError`, whatever the bytes; no text of it holds what the peer sent.

Must not know: sockets, when something is sent, what a log is. Who calls: part logs, transports, the client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, Raw, Struct

from .._errors import InvalidCursor, InvalidPart, WireError
from .burst import SEPARATOR, Burst
from .encoding import HEARTBEAT as HEARTBEAT
from .encoding import EpisodeFields, Number, Positive, decode, encode, written
from .events import (
    CaughtUp,
    ChatError,
    ChatStatus,
    Content,
    Cursor,
    Degraded,
    Episode,
    ErrorEvent,
    Event,
    HistoryReset,
    Message,
    MessageEvent,
    MessagePart,
    MessageRef,
    Part,
    PreviewReset,
    QueueEntry,
    QueueUpdate,
    ResetReason,
    Retry,
    Status,
)

PART_DEPTH = 64
"""How deep lists and objects of a part may be nested: far beyond use, far below what a decoder's stack bears."""

EPISODES_AT_ONCE = 4096
"""Of so many at once it is kept how their rows begin; of more it has to be found each time."""

# ----------------------------------------------------------------------------------------------- parts


def part_fault(part: object, *, limit_bytes: int) -> str | None:
    """Why a part cannot be sent, or None if it can: a JSON object with a string `type`, of plain Python values.

    Looks at one level of nesting after the other, so that a part that contains itself ends at the depth limit, and
    one that repeats a list at every level ends at the size limit (each value takes a byte at least). Lone surrogates
    and the exact size are for the encoder to find.
    """
    if type(part) is not dict or type(part.get("type")) is not str:
        return "a part is a dict with a string `type`"
    level: list[object] = [part]
    for _ in range(PART_DEPTH):
        below: list[object] = []
        for value in level:
            fault = _value_fault(value, below)
            if fault is not None:
                return fault
            if len(below) > limit_bytes:
                return _too_large(limit_bytes)
        if not below:
            return None
        level = below
    return f"a part is nested at most {PART_DEPTH} deep"


def _value_fault(value: Any, below: list[object]) -> str | None:
    """Why this value itself is not JSON; what it holds goes to `below`."""
    kind = type(value)
    if kind is dict:
        below.extend(value.values())
        return None if all(isinstance(key, str) for key in value) else "the keys of a part's objects are strings"
    if kind is list:
        below.extend(value)
        return None
    if kind is float:
        return None if math.isfinite(value) else "a part holds no NaN and no infinity"
    if kind is int:
        return None if -(2**63) <= value < 2**64 else "a part's integers have at most 64 bits"
    if kind is str or kind is bool or value is None:
        return None
    return f"a part holds a {kind.__name__}: JSON has dict, list, str, int, float, bool and None"


def _too_large(limit_bytes: int) -> str:
    return f"a part has at most {limit_bytes} bytes"


def _is_text(part: Part) -> bool:
    """Whether the part is what nearly all are: two strings, `type` and `text`."""
    return type(part) is dict and len(part) == 2 and type(part.get("text")) is str and type(part.get("type")) is str


def encode_part(part: Part, *, limit_bytes: int) -> bytes:
    """The part as JSON. Raises `InvalidPart` if it is none (see `part_fault`) or outgrows the limit."""
    fault = None if _is_text(part) else part_fault(part, limit_bytes=limit_bytes)
    if fault is None:
        try:
            encoded = encode(part)
        except UnicodeEncodeError:
            fault = "a part's strings hold no lone surrogates"
        else:
            if len(encoded) <= limit_bytes:
                return encoded
            fault = _too_large(limit_bytes)
    raise InvalidPart(fault)


def cursor_prefix(message: MessageRef, episode: Episode) -> str:
    """The cursor of a part but for its seq: the same for all of an episode, as no message comes in between."""
    return str(Cursor(message, episode)).removesuffix("0")


def encode_part_row(episode: Episode, seq: int, cursor_prefix: str, part: Part, *, limit_bytes: int) -> bytes:
    """The complete event of a part, as every viewer will get it: made once, never decoded on its way.

    Raises `InvalidPart` as `encode_part` does; `limit_bytes` counts the part alone. Holds no raw line feed.
    """
    return part_row_form(episode, cursor_prefix) % (seq, encode_part(part, limit_bytes=limit_bytes), seq)


def part_row_form(episode: Episode, cursor_prefix: str) -> bytes:
    """What all rows of an episode have in common: with `%` and (seq, encoded part, seq) it becomes one."""
    marks = encode(_PartRow(written(episode), 1, Raw(b"{}"), cursor_prefix)).replace(b"%", b"%%")
    head, _, tail = marks.partition(b'1,"part":{}')
    return b'%b%%d,"part":%%b%b%%d"}' % (head, tail.removesuffix(b'"}'))


# ---------------------------------------------------------------------------------------------- events


class _Row(Struct, tag_field="type"):
    """How one type of event looks on the wire; here for those whose fields have the same names on both sides."""

    @classmethod
    def of(cls, event: Any) -> Self:
        return cls(*[getattr(event, name) for name in cls.__struct_fields__])

    def event(self, kind: type[Any]) -> Any:
        return kind(**msgspec.structs.asdict(self))


class _MessageFields(Struct):
    id: Positive
    role: str
    content: Content
    version: Number
    interrupted: bool
    truncated: bool
    queued_id: Number | None
    created_at: str


class _MessageRow(_Row, tag="message"):
    message: _MessageFields
    cursor: str

    @classmethod
    def of(cls, event: MessageEvent) -> Self:
        fields = [getattr(event.message, name) for name in _MessageFields.__struct_fields__]
        return cls(_MessageFields(*fields), event.cursor)

    def event(self, kind: type[MessageEvent]) -> MessageEvent:
        fields = msgspec.structs.asdict(self.message)
        return kind(message=Message(stamp=self._stamp(), **fields), cursor=self.cursor)

    def _stamp(self) -> str:
        """The message's stamp, which only the cursor has. A cursor is opaque: one of a later form is no fault."""
        try:
            last = Cursor.parse(self.cursor).message
        except InvalidCursor:
            return ""
        return last.stamp or "" if last.id == self.message.id else ""


class _PartRow(_Row, tag="message_part"):
    episode: EpisodeFields
    seq: Positive
    part: Any
    cursor: str

    @classmethod
    def of(cls, event: MessagePart) -> Self:
        return cls(written(event.episode), event.seq, event.part, event.cursor)

    def event(self, kind: type[MessagePart]) -> MessagePart:
        if type(self.part) is not dict or type(self.part.get("type")) is not str:
            raise WireError(_NO_PART)
        return kind(episode=Episode(*self.episode), seq=self.seq, part=self.part, cursor=self.cursor)


_NO_PART = "not of this protocol: a part is an object with a string `type`"


class _PartOfBurst(_Row, tag="message_part", gc=False):
    """What is decoded of a row whose episode is known: a third less than all of it."""

    seq: Positive
    part: Any
    cursor: str


class _StatusRow(_Row, tag="status"):
    status: ChatStatus
    worker_id: str | None
    version: Number
    cursor: str


class _QueueFields(Struct):
    id: Number
    content: Content


class _QueueRow(_Row, tag="queue_update"):
    queue: list[_QueueFields]
    cursor: str

    @classmethod
    def of(cls, event: QueueUpdate) -> Self:
        return cls([_QueueFields(entry.id, entry.content) for entry in event.queue], event.cursor)

    def event(self, kind: type[QueueUpdate]) -> QueueUpdate:
        entries = tuple(QueueEntry(id=entry.id, content=entry.content) for entry in self.queue)
        return kind(queue=entries, cursor=self.cursor)


class _ErrorFields(Struct):
    kind: str
    message: str


class _ErrorRow(_Row, tag="error"):
    error: _ErrorFields
    cursor: str

    @classmethod
    def of(cls, event: ErrorEvent) -> Self:
        return cls(_ErrorFields(event.error.kind, event.error.message), event.cursor)

    def event(self, kind: type[ErrorEvent]) -> ErrorEvent:
        error = ChatError(kind=self.error.kind, message=self.error.message)
        return kind(error=error, cursor=self.cursor)


class _RetryRow(_Row, tag="retry"):
    attempt: Number
    delay_seconds: Annotated[float, Meta(ge=0)]
    error: str
    cursor: str


class _PreviewResetRow(_Row, tag="preview_reset"):
    reason: ResetReason
    first_seq: Number
    cursor: str


class _HistoryResetRow(_Row, tag="history_reset"):
    after_id: Number
    cursor: str


class _CaughtUpRow(_Row, tag="caught_up"):
    cursor: str


class _DegradedRow(_Row, tag="degraded"):
    what: Literal["pubsub", "relay", "store"]
    ok: bool
    message: str
    retrying: bool
    cursor: str


class _EventHead(Struct):
    type: str


_ROWS: dict[type[Any], type[_Row]] = {
    MessageEvent: _MessageRow,
    MessagePart: _PartRow,
    Status: _StatusRow,
    QueueUpdate: _QueueRow,
    ErrorEvent: _ErrorRow,
    Retry: _RetryRow,
    PreviewReset: _PreviewResetRow,
    HistoryReset: _HistoryResetRow,
    CaughtUp: _CaughtUpRow,
    Degraded: _DegradedRow,
}
# Two steps, for msgspec refuses a tagged union as soon as one tag is unknown: first the type, then the rest.
_EVENTS = {kind.type: (kind, msgspec.json.Decoder(row)) for kind, row in _ROWS.items()}
_EVENT_HEAD = msgspec.json.Decoder(_EventHead)
_RAW_ROWS = msgspec.json.Decoder(list[Raw])
_PARTS_OF_BURST = msgspec.json.Decoder(list[_PartOfBurst])


def encode_event(event: Event) -> bytes:
    """The event as one row: a JSON object that begins with its type. What it holds is valid already."""
    return encode(_ROWS[type(event)].of(event))


def decode_event(row: bytes | str | Raw) -> Event | None:
    """The event of a row; None if its type is unknown here. Raises `WireError`.

    What is not on the wire has its default: `urgent` of queue entries, `deleted` of messages. A message's stamp is
    taken from the event's cursor, if that is the cursor of this very message.
    """
    known = _EVENTS.get(decode(_EVENT_HEAD, row).type)
    if known is None:
        return None
    kind, decoder = known
    event: Event = decode(decoder, row).event(kind)
    return event


def decode_frame(data: bytes | str) -> list[Event]:
    """The events of a frame, without those of unknown types; none for the heartbeat. Raises `WireError`."""
    events = [decode_event(row) for row in decode(_RAW_ROWS, data)]
    return [event for event in events if event is not None]


def decode_rows(burst: Burst) -> list[MessagePart]:
    """The events of a burst whose rows are its episode's (see `are_parts`).

    Raises `WireError`, also if there are others than the burst says.
    """
    return _parts_of(burst.episode, burst.first_seq, _rows_of(burst))


def decode_rows_by(count: int, burst: Burst) -> Iterator[list[MessagePart]]:
    """Like `decode_rows`, so many events at a time, each made when it is asked for.

    Whoever works through them one by one has few at any time, of which the garbage collector takes no notice; to look
    through all of a burst's again and again would take an eighth of what an event costs.
    """
    rows = _rows_of(burst)
    for begin in range(0, len(rows), count):
        yield _parts_of(burst.episode, burst.first_seq + begin, rows[begin : begin + count])


def _rows_of(burst: Burst) -> list[_PartOfBurst]:
    rows = decode(_PARTS_OF_BURST, b"[%b]" % burst.rows)
    if len(rows) != burst.count:
        raise WireError(f"not of this protocol: {len(rows)} rows in a burst of {burst.count}")
    return rows


def _parts_of(episode: Episode, first_seq: int, rows: list[_PartOfBurst]) -> list[MessagePart]:
    events: list[MessagePart] = []
    for seq, row in enumerate(rows, first_seq):
        if row.seq != seq:
            raise WireError("not of this protocol: a row of another seq than its burst says")
        part = row.part
        if type(part) is not dict or type(part.get("type")) is not str:
            raise WireError(_NO_PART)
        event: Any = _new(_Unfrozen)
        event.episode = episode
        event.seq = seq
        event.part = part
        event.cursor = row.cursor
        event.__class__ = MessagePart
        events.append(event)
    return events


class _Unfrozen:
    """A `MessagePart` while it is made: that takes a third of what a call of its class does, and there are hundreds of
    thousands of them a second."""

    __slots__ = MessagePart.__slots__  # type: ignore[attr-defined]


_new = object.__new__


def are_parts(burst: Burst) -> bool:
    """Whether the rows are as many as the burst says, on a line each, and each begins as the part of that episode and
    seq does. Nothing is decoded.

    It is what keeps other events of a peer's making from this replica's viewers.
    """
    rows, first_seq, later = burst.rows, burst.first_seq, burst.count - 1
    beginning = part_beginning(burst.episode)
    if not rows.startswith(b'%b%d,"part":' % (beginning, first_seq)):
        return False
    if not later:
        return b"\n" not in rows
    # Two looks at all rows at once: none is cut out.
    if rows.count(b"}%b%b" % (SEPARATOR, beginning)) != later:
        return False
    # Every line has its seq at one place, and there is no other line: it would be found, without a seq. Numbers are
    # compared as they are written, without sign or leading 0.
    digits = len(str(burst.last_seq))
    found = _seqs_at(len(beginning), digits if digits == len(str(first_seq + 1)) else None).findall(rows)
    return b"[%b]" % b",".join(found) == encode(list(range(first_seq + 1, first_seq + 1 + later)))


@lru_cache(maxsize=64)
def _seqs_at(place: int, digits: int | None) -> re.Pattern[bytes]:
    """Finds the seqs of all rows but the first, at that place; nothing where a line has none there.

    With as many digits each, or what stands in their place: that is found a little sooner, and compared anyway.
    """
    seq = rb"[0-9]{1,20}" if digits is None else rb".{%d}" % digits
    return re.compile(rb'\n(?:.{%d}(%b),"part":|)' % (place, seq), re.DOTALL)


@lru_cache(maxsize=EPISODES_AT_ONCE)
def part_beginning(episode: Episode) -> bytes:
    """How each row of an episode begins, up to its seq."""
    example = encode(_PartRow(written(episode), 0, Raw(b"{}"), ""))
    return example[: example.index(b'0,"part":')]


def encode_frame(rows: Iterable[bytes]) -> bytes:
    """One frame of these rows (or of rows that are joined already, as in a burst); without any, the heartbeat."""
    return b"[" + SEPARATOR.join(rows) + b"]"
