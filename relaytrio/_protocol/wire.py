"""Bytes <-> events and control frames: what goes over a socket, and what is refused there.

Two audiences. A *viewer* gets frames that are JSON arrays of events, in text; `[]` is the heartbeat. A *replica* gets
control frames (JSON objects in text, the same heartbeat) and bursts (binary: a JSON header, a line feed, and the rows
as they stand in the log, so that nobody between the worker and the browser decodes them).

Compatible in both directions: unknown fields are ignored, unknown types of events and frames are passed over. All
else that is malformed is a `WireError`, whatever the bytes; no text of it holds what the peer sent.

Must not know: sockets, when something is sent, what a log is. Who calls: part logs, transports, the client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, get_args

import attrs
import msgspec
from msgspec import Meta, Raw, Struct

from .._errors import InvalidCursor, InvalidPart, WireError
from .burst import SEPARATOR, Burst
from .events import (
    LARGEST_NUMBER,
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

PROTOCOL_VERSION = 1
"""Goes up when an older peer would misunderstand a frame; new fields and types do not raise it."""
HEARTBEAT = b"[]"
"""The frame that says only that the connection lives."""
PART_DEPTH = 64
"""How deep lists and objects of a part may be nested: far beyond use, far below what a decoder's stack bears."""

_Number: TypeAlias = Annotated[int, Meta(ge=0, le=LARGEST_NUMBER)]
_Positive: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST_NUMBER)]
_Episode: TypeAlias = tuple[_Number, _Number, Annotated[str, Meta(min_length=1, max_length=32)]]

_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes | str | Raw) -> _T:
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:  # malformed, of a wrong type, no UTF-8; nested too deep
        # `from None`: the caught error holds what the peer sent.
        raise WireError(f"not of this protocol: {_told(str(error))}") from None


def _told(fault: str) -> str:
    """The decoder's text, but for the one that quotes a value."""
    if fault.startswith("Invalid enum value"):
        return f"no known value{fault[fault.rindex(' - at ') :]}"
    return fault


def _named(episode: Episode) -> tuple[int, int, str]:
    """How an episode is written."""
    return (episode.history_version, episode.generation_attempt, episode.run_id)


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
            encoded = _encode(part)
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
    marks = _encode(_PartRow(_named(episode), 1, Raw(b"{}"), cursor_prefix)).replace(b"%", b"%%")
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
    id: _Positive
    role: str
    content: Content
    version: _Number
    interrupted: bool
    truncated: bool
    queued_id: _Number | None
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
    episode: _Episode
    seq: _Positive
    part: Any
    cursor: str

    @classmethod
    def of(cls, event: MessagePart) -> Self:
        return cls(_named(event.episode), event.seq, event.part, event.cursor)

    def event(self, kind: type[MessagePart]) -> MessagePart:
        if type(self.part) is not dict or type(self.part.get("type")) is not str:
            raise WireError(_NO_PART)
        return kind(episode=Episode(*self.episode), seq=self.seq, part=self.part, cursor=self.cursor)


_NO_PART = "not of this protocol: a part is an object with a string `type`"


class _PartOfBurst(_Row, tag="message_part", gc=False):
    """What is decoded of a row whose episode is known: a third less than all of it."""

    seq: _Positive
    part: Any
    cursor: str


class _StatusRow(_Row, tag="status"):
    status: ChatStatus
    worker_id: str | None
    version: _Number
    cursor: str


class _QueueFields(Struct):
    id: _Number
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
    attempt: _Number
    delay_seconds: Annotated[float, Meta(ge=0)]
    error: str
    cursor: str


class _PreviewResetRow(_Row, tag="preview_reset"):
    reason: ResetReason
    first_seq: _Number
    cursor: str


class _HistoryResetRow(_Row, tag="history_reset"):
    after_id: _Number
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
_PART_ROWS = msgspec.json.Decoder(list[_PartRow])
_PARTS_OF_BURST = msgspec.json.Decoder(list[_PartOfBurst])


def encode_event(event: Event) -> bytes:
    """The event as one row: a JSON object that begins with its type. What it holds is valid already."""
    return _encode(_ROWS[type(event)].of(event))


def decode_event(row: bytes | str | Raw) -> Event | None:
    """The event of a row; None if its type is unknown here. Raises `WireError`.

    What is not on the wire has its default: `urgent` of queue entries, `deleted` of messages. A message's stamp is
    taken from the event's cursor, if that is the cursor of this very message.
    """
    known = _EVENTS.get(_decode(_EVENT_HEAD, row).type)
    if known is None:
        return None
    kind, decoder = known
    event: Event = _decode(decoder, row).event(kind)
    return event


def decode_frame(data: bytes | str) -> list[Event]:
    """The events of a frame, without those of unknown types; none for the heartbeat. Raises `WireError`."""
    events = [decode_event(row) for row in _decode(_RAW_ROWS, data)]
    return [event for event in events if event is not None]


def decode_rows(burst: Burst) -> list[MessagePart]:
    """The events of a burst. Raises `WireError`, also if a row is not the one that the burst says it is."""
    rows, episode = _decoded_rows(burst), burst.episode
    if len(rows) != burst.count:
        raise WireError(f"not of this protocol: {len(rows)} rows in a burst of {burst.count}")
    events = []
    for seq, row in enumerate(rows, burst.first_seq):
        if row.seq != seq:
            raise WireError("not of this protocol: a row of another seq than its burst says")
        part = row.part
        if type(part) is not dict or type(part.get("type")) is not str:
            raise WireError(_NO_PART)
        # In half the time of a call of the class: there are hundreds of thousands of these a second.
        event = _new(MessagePart)
        _set_episode(event, episode)
        _set_seq(event, seq)
        _set_part(event, part)
        _set_cursor(event, row.cursor)
        events.append(event)
    return events


_new = object.__new__
_set_episode, _set_seq, _set_part, _set_cursor = (
    vars(MessagePart)[name].__set__ for name in ("episode", "seq", "part", "cursor")
)


def _begin_alike(burst: Burst) -> bool:
    """Whether each line begins as a part of the burst's episode does, up to the seq."""
    rows, later, beginning = burst.rows, burst.count - 1, _part_beginning(burst.episode)
    return rows.startswith(beginning) and rows.count(b"\n") == later == rows.count(SEPARATOR + beginning)


def _decoded_rows(burst: Burst) -> Sequence[_PartRow | _PartOfBurst]:
    """The rows of the burst's episode. One that was written by another version may not begin as ours do."""
    frame = encode_frame([burst.rows])
    if _begin_alike(burst):
        return _decode(_PARTS_OF_BURST, frame)
    rows, named = _decode(_PART_ROWS, frame), _named(burst.episode)
    if any(row.episode != named for row in rows):
        raise WireError("not of this protocol: a row of another episode than its burst says")
    return rows


def are_parts(burst: Burst) -> bool:
    """Whether each row begins as the part of that episode and seq does. Nothing is decoded.

    It is what keeps other events of a peer's making from this replica's viewers.
    """
    beginning = _part_beginning(burst.episode)
    if not _begin_alike(burst) or not burst.rows.startswith(b'%b%d,"part":' % (beginning, burst.first_seq)):
        return False
    # All in one go, and no row is cut out: in every line the seq is at one place. Numbers are compared as they are
    # written, without sign or leading 0.
    found = _seqs_at(len(beginning)).findall(burst.rows)
    return b"[%b]" % b",".join(found) == _encode(list(range(burst.first_seq + 1, burst.first_seq + burst.count)))


@lru_cache(maxsize=64)
def _seqs_at(place: int) -> re.Pattern[bytes]:
    """Finds the seqs of all rows but the first that have one at that place."""
    return re.compile(rb'\n.{%d}([0-9]{1,20}),"part":' % place, re.DOTALL)


@lru_cache(maxsize=64)
def _part_beginning(episode: Episode) -> bytes:
    """How each row of an episode begins, up to its seq."""
    example = _encode(_PartRow(_named(episode), 0, Raw(b"{}"), ""))
    return example[: example.index(b'0,"part":')]


def encode_frame(rows: Iterable[bytes]) -> bytes:
    """One frame of these rows (or of rows that are joined already, as in a burst); without any, the heartbeat."""
    return b"[" + SEPARATOR.join(rows) + b"]"


# -------------------------------------------------------------------------------------- control frames

EndReason: TypeAlias = Literal["sealed", "not_owner", "over", "refused", "beyond"]
"""Why an episode's rows end. A reason that a later version may add is read as `not_owner`, which makes its reader look
again and go on trying, and nothing else. Read as `sealed` or `over`, it could leave a viewer waiting."""


@attrs.frozen
class Select:
    """Send this leg the rows of an episode from `after_seq + 1` on."""

    leg: int
    """Numbers the legs of one connection."""
    chat_id: str
    episode: Episode
    after_seq: int
    grant: str = attrs.field(repr=False)
    bundles: bool = False
    """Whoever selects this takes bundles on this connection. An older peer does not say so, and gets none."""


@attrs.frozen
class Release:
    """This leg wants nothing more."""

    leg: int


@attrs.frozen
class Ended:
    """What was selected on this leg has ended."""

    leg: int
    episode: Episode
    reason: EndReason
    last_seq: int
    owner_id: str | None = None
    """The replica id of the chat's owner, where the reason is `not_owner` and there is one."""


@attrs.frozen
class LegBurst:
    """Rows for a leg."""

    leg: int
    burst: Burst


@attrs.frozen
class Bundle:
    """Rows for several legs, in the order in which they would have gone out: one frame costs less than many."""

    bursts: tuple[LegBurst, ...]


@attrs.frozen
class Heartbeat:
    """The connection lives."""


Control: TypeAlias = Select | Release | Ended | LegBurst | Bundle | Heartbeat


class _ControlHead(Struct):
    """What every control frame has. A greater version is no obstacle: the frame is what it decodes to."""

    v: _Positive
    type: str


class _Select(_ControlHead):
    leg: _Number
    chat: str
    episode: _Episode
    after_seq: _Number
    grant: str
    bundles: bool = False

    def frame(self) -> Select:
        return Select(self.leg, self.chat, Episode(*self.episode), self.after_seq, self.grant, self.bundles)


class _Release(_ControlHead):
    leg: _Number

    def frame(self) -> Release:
        return Release(self.leg)


class _Ended(_ControlHead):
    leg: _Number
    episode: _Episode
    reason: str
    last_seq: _Number
    owner_id: str | None = None

    def frame(self) -> Ended:
        reason: EndReason = self.reason if self.reason in get_args(EndReason) else "not_owner"  # type: ignore[assignment]
        return Ended(self.leg, Episode(*self.episode), reason, self.last_seq, self.owner_id)


class _BurstHeader(_ControlHead):
    leg: _Number
    episode: _Episode
    first_seq: _Positive
    count: _Positive
    truncated: bool = False

    def frame(self, rows: bytes) -> LegBurst:
        episode = Episode(*self.episode)
        _check_rows(rows, self.count, episode)
        return LegBurst(self.leg, Burst(episode, self.first_seq, self.count, rows, self.truncated))


class _Bundled(Struct):
    leg: _Number
    episode: _Episode
    first_seq: _Positive
    count: _Positive
    size: _Positive
    """Of its rows, in bytes."""
    truncated: bool = False


class _BundleHeader(_ControlHead):
    bursts: list[_Bundled]

    def frame(self, rows: bytes) -> Bundle:
        bursts, begin = [], 0
        for bundled in self.bursts:
            own_rows, episode = rows[begin : begin + bundled.size], Episode(*bundled.episode)
            begin += bundled.size
            _check_rows(own_rows, bundled.count, episode)
            burst = Burst(episode, bundled.first_seq, bundled.count, own_rows, bundled.truncated)
            bursts.append(LegBurst(bundled.leg, burst))
        if begin != len(rows):
            raise WireError("not of this protocol: a bundle of another size than its bursts")
        return Bundle(tuple(bursts))


_CONTROL_HEAD = msgspec.json.Decoder(_ControlHead)
_CONTROLS: dict[str, msgspec.json.Decoder[_Select | _Release | _Ended]] = {
    "select": msgspec.json.Decoder(_Select),
    "release": msgspec.json.Decoder(_Release),
    "ended": msgspec.json.Decoder(_Ended),
}
_BINARY_HEADERS: dict[str, msgspec.json.Decoder[_BurstHeader | _BundleHeader]] = {
    "burst": msgspec.json.Decoder(_BurstHeader),
    "bundle": msgspec.json.Decoder(_BundleHeader),
}


def encode_control(frame: Control) -> str | bytes:
    """The frame for a socket: bytes (a binary frame) for bursts, text for all others."""
    match frame:
        case LegBurst(leg, burst):
            header = _control(
                "burst",
                leg=leg,
                episode=_named(burst.episode),
                first_seq=burst.first_seq,
                count=burst.count,
                truncated=burst.truncated,
            )
            return b"%b\n%b" % (header, burst.rows)
        case Bundle(bursts):
            header = _control("bundle", bursts=[_bundled(of_leg.leg, of_leg.burst) for of_leg in bursts])
            return b"".join([header, b"\n", *(of_leg.burst.rows for of_leg in bursts)])
        case Select(leg, chat_id, episode, after_seq, grant, bundles):
            named = _named(episode)
            text = _control(
                "select", leg=leg, chat=chat_id, episode=named, after_seq=after_seq, grant=grant, bundles=bundles
            )
        case Release(leg):
            text = _control("release", leg=leg)
        case Ended(leg, episode, reason, last_seq, owner_id):
            named = _named(episode)
            text = _control("ended", leg=leg, episode=named, reason=reason, last_seq=last_seq, owner_id=owner_id)
        case _:
            text = HEARTBEAT
    return text.decode()


def _bundled(leg: int, burst: Burst) -> _Bundled:
    size = len(burst.rows)
    return _Bundled(leg, _named(burst.episode), burst.first_seq, burst.count, size, burst.truncated)


def _control(type: str, **fields: object) -> bytes:
    return _encode({"v": PROTOCOL_VERSION, "type": type, **fields})


def decode_control(data: str | bytes, *, limit_bytes: int) -> Control | None:
    """The control frame that came in; None if its type is unknown here.

    Raises `WireError`, also if it is larger than `limit_bytes`. The rows of a burst are not decoded, but it is sure
    that they are UTF-8, of the number that the burst says, and each on a line of its own.
    """
    encoded = data if isinstance(data, bytes) else data.encode(errors="surrogatepass")
    if len(encoded) > limit_bytes:
        raise WireError(f"a frame of more than {limit_bytes} bytes")
    if isinstance(data, bytes):
        return _decode_bursts(data)
    if encoded == HEARTBEAT:
        return Heartbeat()
    decoder = _CONTROLS.get(_decode(_CONTROL_HEAD, encoded).type)
    return None if decoder is None else _decode(decoder, encoded).frame()


def _decode_bursts(data: bytes) -> LegBurst | Bundle | None:
    header, _, rows = data.partition(b"\n")
    decoder = _BINARY_HEADERS.get(_decode(_CONTROL_HEAD, header).type)
    return None if decoder is None else _decode(decoder, header).frame(rows)


def _check_rows(rows: bytes, count: int, episode: Episode) -> None:
    """Whether this can be cut into `count` rows and sent to a browser; the least that is worth asking a peer."""
    lines = rows.count(b"\n") + 1
    if not rows.startswith(b"{") or not rows.endswith(b"}") or not _are_separate(rows, lines, episode):
        raise WireError("not of this protocol: a burst of something else than rows")
    if lines != count:
        raise WireError(f"not of this protocol: {lines} rows in a burst of {count}")
    if rows.isascii():
        return
    try:
        rows.decode()
    except UnicodeDecodeError:
        raise WireError("not of this protocol: a burst that is no UTF-8") from None


def _are_separate(rows: bytes, lines: int, episode: Episode) -> bool:
    """Whether between each two lines one JSON object ends and another begins."""
    if lines == 1:
        return True
    # What is nearly always there is looked for first: a long text is found in a third of the time of a short one.
    usual = b"}%b%b" % (SEPARATOR, _part_beginning(episode))
    return rows.count(usual) + 1 == lines or rows.count(b"},\n{") + 1 == lines
