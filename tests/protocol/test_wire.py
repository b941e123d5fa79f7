"""Bytes <-> events."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaytrio._errors import InvalidPart, WireError
from relaytrio._protocol import wire
from relaytrio._protocol.burst import SEPARATOR, Burst, join
from relaytrio._protocol.events import (
    CaughtUp,
    ChatError,
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
    Retry,
    Status,
)
from tests.protocol.wires import (
    EPISODE,
    EPISODES,
    JSON,
    LIMIT,
    NAMES,
    NUMBERS,
    PARTS,
    POSITIVE,
    PREFIX,
    TEXT_PART,
    TEXTS,
    rows_from,
)

CURSOR = "41-k3x9q-57.1.p8r2dq7w3e-118"
MESSAGE = Message(
    id=41,
    stamp="k3x9q",
    role="assistant",
    content=[TEXT_PART],
    version=58,
    interrupted=True,
    queued_id=7,
    created_at="2025-01-01T00:00:00Z",
)

CONTENTS = st.lists(PARTS, max_size=2)


def message_event(**fields: Any) -> MessageEvent:
    message = Message(**fields)
    return MessageEvent(message=message, cursor=str(Cursor(message.ref)))


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        message_event,
        id=POSITIVE,
        stamp=NAMES,
        role=st.sampled_from(["user", "assistant", "system", "tool"]),
        content=CONTENTS,
        version=NUMBERS,
        interrupted=st.booleans(),
        truncated=st.booleans(),
        queued_id=st.none() | NUMBERS,
        created_at=TEXTS,
    ),
    st.builds(MessagePart, episode=EPISODES, seq=POSITIVE, part=PARTS, cursor=TEXTS),
    st.builds(
        Status,
        status=st.sampled_from(["waiting", "running", "interrupting", "error"]),
        worker_id=st.none() | TEXTS,
        version=NUMBERS,
        cursor=TEXTS,
    ),
    st.builds(
        QueueUpdate,
        queue=st.lists(st.builds(QueueEntry, id=NUMBERS, content=CONTENTS, urgent=st.just(False))).map(tuple),
        cursor=TEXTS,
    ),
    st.builds(ErrorEvent, error=st.builds(ChatError, kind=TEXTS, message=TEXTS), cursor=TEXTS),
    st.builds(
        Retry,
        attempt=NUMBERS,
        delay_seconds=st.floats(0, allow_nan=False, allow_infinity=False),
        error=TEXTS,
        cursor=TEXTS,
    ),
    st.builds(
        PreviewReset,
        reason=st.sampled_from(["new_attempt", "truncated", "gap", "worker_lost", "nothing_kept"]),
        first_seq=NUMBERS,
        cursor=TEXTS,
    ),
    st.builds(HistoryReset, after_id=NUMBERS, cursor=TEXTS),
    st.builds(CaughtUp, cursor=TEXTS),
    st.builds(
        Degraded,
        what=st.sampled_from(["pubsub", "relay", "store"]),
        ok=st.booleans(),
        message=TEXTS,
        retrying=st.booleans(),
        cursor=TEXTS,
    ),
)

DOCUMENTED: list[tuple[Event, dict[str, Any]]] = [
    (
        MessageEvent(message=MESSAGE, cursor="41-k3x9q"),
        {
            "type": "message",
            "message": {
                "id": 41,
                "role": "assistant",
                "content": [TEXT_PART],
                "version": 58,
                "interrupted": True,
                "truncated": False,
                "queued_id": 7,
                "created_at": "2025-01-01T00:00:00Z",
            },
        },
    ),
    (
        MessagePart(episode=EPISODE, seq=118, part=TEXT_PART, cursor=CURSOR),
        {"type": "message_part", "episode": [57, 1, "p8r2dq7w3e"], "seq": 118, "part": TEXT_PART},
    ),
    (
        Status(status="running", worker_id=None, version=58, cursor="0-"),
        {"type": "status", "status": "running", "worker_id": None, "version": 58},
    ),
    (
        QueueUpdate(queue=(QueueEntry(id=3, content=[TEXT_PART]),), cursor="0-"),
        {"type": "queue_update", "queue": [{"id": 3, "content": [TEXT_PART]}]},
    ),
    (
        ErrorEvent(error=ChatError(kind="worker_lost", message="gone"), cursor="0-"),
        {"type": "error", "error": {"kind": "worker_lost", "message": "gone"}},
    ),
    (
        Retry(attempt=1, delay_seconds=0.5, error="busy", cursor="0-"),
        {"type": "retry", "attempt": 1, "delay_seconds": 0.5, "error": "busy"},
    ),
    (
        PreviewReset(reason="gap", first_seq=7, cursor="0-"),
        {"type": "preview_reset", "reason": "gap", "first_seq": 7},
    ),
    (HistoryReset(after_id=0, cursor="0-"), {"type": "history_reset", "after_id": 0}),
    (CaughtUp(cursor="0-"), {"type": "caught_up"}),
    (
        Degraded(what="relay", ok=False, message="refused", retrying=True, cursor="0-"),
        {"type": "degraded", "what": "relay", "ok": False, "message": "refused", "retrying": True},
    ),
]


# ------------------------------------------------------------------------------------- events, written


@pytest.mark.parametrize(("event", "fields"), DOCUMENTED, ids=lambda value: getattr(value, "type", ""))
def test_events_look_as_documented(event: Event, fields: dict[str, Any]) -> None:
    """Each event has exactly the documented keys, its type first and its cursor last."""
    written = json.loads(wire.encode_event(event))
    assert written == {**fields, "cursor": event.cursor}
    assert list(written) == [*fields, "cursor"]


def test_every_type_of_event_is_documented() -> None:
    """No event is left without a form on the wire."""
    assert {type(event) for event, _ in DOCUMENTED} == set(get_args(Event))


@given(event=EVENTS)
def test_an_event_survives_the_wire(event: Event) -> None:
    """Written and read again, an event is equal; and no row has a raw line feed."""
    row = wire.encode_event(event)
    assert wire.decode_event(row) == event
    assert b"\n" not in row


@given(events=st.lists(EVENTS, max_size=5))
def test_a_frame_carries_its_events_in_order(events: list[Event]) -> None:
    """A frame of rows reads back as the events, from bytes and from text."""
    frame = wire.encode_frame(map(wire.encode_event, events))
    assert wire.decode_frame(frame) == events
    assert wire.decode_frame(frame.decode()) == events
    assert len(json.loads(frame)) == len(events)


def test_the_heartbeat_is_a_frame_without_events() -> None:
    """An empty frame is the heartbeat, and reads as nothing."""
    assert wire.encode_frame([]) == wire.HEARTBEAT == b"[]"
    assert wire.decode_frame("[]") == []


# ---------------------------------------------------------------------------------------- events, read


@pytest.mark.parametrize(
    ("cursor", "stamp"),
    [
        ("41-k3x9q", "k3x9q"),
        (CURSOR, "k3x9q"),
        ("42-k3x9q", ""),
        ("0-", ""),
        ("of a later form", ""),
    ],
)
def test_a_message_has_the_stamp_of_its_cursor(cursor: str, stamp: str) -> None:
    """The stamp is read from the cursor of this very message; any other cursor is opaque, and no fault."""
    row = wire.encode_event(MessageEvent(message=MESSAGE, cursor=cursor))
    expected = MessageEvent(message=attrs.evolve(MESSAGE, stamp=stamp), cursor=cursor)
    assert wire.decode_event(row) == expected


def test_unknown_events_are_passed_over() -> None:
    """A newer replica's events do not disturb an older viewer."""
    known = wire.encode_event(CaughtUp(cursor="0-"))
    unknown = b'{"deep":[{"type":1}],"type":"weather","cursor":5}'
    assert wire.decode_event(unknown) is None
    assert wire.decode_frame(wire.encode_frame([unknown, known, unknown])) == [CaughtUp(cursor="0-")]


@pytest.mark.parametrize("event", [event for event, _ in DOCUMENTED], ids=lambda event: event.type)
def test_unknown_fields_are_ignored(event: Event) -> None:
    """A newer replica may add fields, wherever they stand."""
    row = wire.encode_event(event)
    more = b'{"new":{"type":"x"},' + row[1:-1] + b',"newer":[null]}'
    assert wire.decode_event(more) == wire.decode_event(row)


WRONG: tuple[object, ...] = (-1, 2**63, 1.5, [], {}, [[]], {"a": []})


def spoiled() -> list[bytes]:
    """Documented rows with each field, at the top and one below, left out or replaced by what it cannot be."""
    rows = []
    for _, fields in DOCUMENTED:
        whole = {**fields, "cursor": "0-"}
        for name in whole:
            rows.append({key: value for key, value in whole.items() if key != name})
            rows += [{**whole, name: wrong} for wrong in WRONG]
        for outer, inner in (("message", MESSAGE_FIELDS), ("error", ("kind", "message"))):
            for name in inner if isinstance(whole.get(outer), dict) else ():
                rows.append({**whole, outer: {key: value for key, value in whole[outer].items() if key != name}})
                rows.append({**whole, outer: {**whole[outer], name: {"a": -1}}})
    return [json.dumps(row).encode() for row in rows if not harmless(row)]


MESSAGE_FIELDS = ("id", "role", "content", "version", "interrupted", "truncated", "queued_id", "created_at")


def harmless(row: dict[str, Any]) -> bool:
    """Of the replacements, those that happen to be allowed."""
    return (row.get("queue") == [] and len(row) == 3) or row.get("delay_seconds") in (1.5, 2**63)


@pytest.mark.parametrize("row", spoiled())
def test_a_spoiled_field_is_a_wire_error(row: bytes) -> None:
    """A field that is missing, negative, too large or of another type is refused."""
    with pytest.raises(WireError):
        wire.decode_event(row)


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"{}",
        b'{"type":null}',
        b'{"type":[]}',
        b'{"type":{}}',
        b'{"type":"caught_up","cursor":"\xff"}',
        b'{"type":"caught_up","cursor":"\\ud800"}',
        b'{"type":"caught_up","cursor":"a\nb"}',
        b'{"type":"caught_up","cursor":"0-"} {}',
        b'{"type":"retry","attempt":1,"delay_seconds":1e999,"error":"","cursor":"0-"}',
        b'{"type":"retry","attempt":1,"delay_seconds":NaN,"error":"","cursor":"0-"}',
        b'{"type":"retry","attempt":1,"delay_seconds":-0.1,"error":"","cursor":"0-"}',
        b'{"type":"history_reset","after_id":' + b"9" * 5000 + b',"cursor":"0-"}',
        b'{"type":"history_reset","after_id":1.5,"cursor":"0-"}',
        b'{"type":"history_reset","after_id":true,"cursor":"0-"}',
        b'{"type":"message_part","episode":[57,1],"seq":1,"part":{"type":"a"},"cursor":"0-"}',
        b'{"type":"message_part","episode":[57,1,""],"seq":1,"part":{"type":"a"},"cursor":"0-"}',
        b'{"type":"message_part","episode":[57,1,"a"],"seq":0,"part":{"type":"a"},"cursor":"0-"}',
        b'{"type":"message_part","episode":[57,1,"a"],"seq":1,"part":{"type":1},"cursor":"0-"}',
        b'{"type":"message_part","episode":[57,1,"a"],"seq":1,"part":["type"],"cursor":"0-"}',
        b'{"type":"message_part","part":' + b"[" * 100_000,
        b'{"type":"weather","x":' + b'{"a":' * 100_000,
        b"[" * 100_000,
    ],
    ids=lambda row: repr(row[:60]),
)
def test_a_malformed_row_is_a_wire_error(row: bytes) -> None:
    """Whatever the bytes are, endless nesting included, nothing but `WireError` comes out."""
    with pytest.raises(WireError):
        wire.decode_event(row)
    with pytest.raises(WireError):
        wire.decode_frame(b"[" + row + b",0]")


@pytest.mark.parametrize("data", ["", "{}", "null", "[1]", "[[]]", '["\ud800"]', '[{"type":"caught_up"', "[" * 100_000])
def test_a_malformed_frame_is_a_wire_error(data: str) -> None:
    """A frame is an array of events, or it is refused."""
    with pytest.raises(WireError):
        wire.decode_frame(data)


@given(data=st.binary() | st.text(st.characters()) | JSON.map(json.dumps))
def test_any_bytes_are_events_or_a_wire_error(data: bytes | str) -> None:
    """No input makes reading fail in any other way."""
    for read in (wire.decode_event, wire.decode_frame):
        try:
            read(data)
        except WireError:
            continue


@given(event=EVENTS, data=st.data())
def test_a_damaged_row_is_an_event_or_a_wire_error(event: Event, data: st.DataObject) -> None:
    """A row with one byte changed or its end cut off reads as something else at worst."""
    row = bytearray(wire.encode_event(event))
    row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (bytes(row), bytes(row[: data.draw(st.integers(0, len(row)))])):
        try:
            wire.decode_event(damaged)
        except WireError:
            continue


def test_a_wire_error_quotes_nothing_that_was_sent() -> None:
    """What a peer sends may be anybody's text or token: it gets neither into the message nor beside it."""
    row = b'{"type":"status","status":"secret - at `$.x`","worker_id":null,"version":1,"cursor":"0-"}'
    with pytest.raises(WireError) as caught:
        wire.decode_event(row)
    assert str(caught.value) == "not of this protocol: no known value - at `$.status`"
    assert caught.value.__suppress_context__


# ------------------------------------------------------------------------------------------------ parts


def test_a_part_row_is_the_event() -> None:
    """What the worker writes once per part is, byte for byte, what any other way of writing the event gives."""
    prefix = wire.cursor_prefix(MessageRef(41, "k3x9q"), EPISODE)
    row = wire.encode_part_row(EPISODE, 118, prefix, TEXT_PART, limit_bytes=LIMIT)
    assert row == wire.encode_event(MessagePart(episode=EPISODE, seq=118, part=TEXT_PART, cursor=CURSOR))


@given(message=st.builds(MessageRef, POSITIVE, NAMES), episode=EPISODES, seq=NUMBERS)
def test_a_cursor_is_its_prefix_and_its_seq(message: MessageRef, episode: Episode, seq: int) -> None:
    """The cursor put together for each row is the one that `Cursor` would write."""
    assert f"{wire.cursor_prefix(message, episode)}{seq}" == str(Cursor(message, episode, seq))


@given(part=PARTS, seq=POSITIVE)
def test_any_json_part_is_carried(part: Part, seq: int) -> None:
    """Every JSON object with a type arrives unchanged, in a row without a raw line feed."""
    row = wire.encode_part_row(EPISODE, seq, PREFIX, part, limit_bytes=LIMIT)
    assert b"\n" not in row
    event = MessagePart(episode=EPISODE, seq=seq, part=part, cursor=f"{PREFIX}{seq}")
    assert wire.decode_rows(join(EPISODE, seq, [row])) == [event]
    assert json.loads(row)["part"] == part


def nested(depth: int) -> Part:
    """A part of that many levels, the innermost value included."""
    value: object = "x"
    for _ in range(depth - 2):
        value = [value]
    return {"type": "deep", "value": value}


def looped() -> Part:
    part: Part = {"type": "loop"}
    part["again"] = [part]
    return part


def repeating() -> Part:
    """Small in memory, without end on the wire."""
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    return {"type": "repeat", "value": value}


class Word(str):
    __slots__ = ()


INVALID: list[tuple[object, str]] = [
    (None, "a dict with"),
    ([], "a dict with"),
    ("text", "a dict with"),
    ({}, "a dict with"),
    ({"text": "x"}, "a dict with"),
    ({"type": None, "text": "x"}, "a dict with"),
    ({"type": 1}, "a dict with"),
    (OrderedDict(TEXT_PART), "a dict with"),
    ({"type": "text", "text": "\ud800"}, "surrogates"),
    ({"type": "\udfff", "text": ""}, "surrogates"),
    ({"type": "x", "\ud800": 1}, "surrogates"),
    ({"type": "x", "value": ["\ud83d"]}, "surrogates"),
    ({"type": "x", 1: 1}, "keys"),
    ({"type": "x", "value": {None: 1}}, "keys"),
    ({"type": "text", "text": math.nan}, "NaN"),
    ({"type": "x", "value": [0.0, [math.inf]]}, "NaN"),
    ({"type": "x", "value": {"a": -math.inf}}, "NaN"),
    ({"type": "x", "value": 2**64}, "64 bits"),
    ({"type": "x", "value": [-(2**63) - 1]}, "64 bits"),
    ({"type": "x", "value": b"x"}, "holds a bytes"),
    ({"type": "x", "value": [(1, 2)]}, "holds a tuple"),
    ({"type": "x", "value": {1}}, "holds a set"),
    ({"type": "x", "value": object()}, "holds a object"),
    ({"type": "x", "value": Word("x")}, "holds a Word"),
    (nested(wire.PART_DEPTH + 1), "nested"),
    (nested(5_000), "nested"),
    (looped(), "nested"),
    (repeating(), f"at most {LIMIT} bytes"),
    ({"type": "text", "text": "x" * LIMIT}, f"at most {LIMIT} bytes"),
    ({"type": "x", "value": [0] * LIMIT}, f"at most {LIMIT} bytes"),
    ({"type": "x", "value": [10**6] * (LIMIT // 4)}, f"at most {LIMIT} bytes"),
]


@pytest.mark.parametrize(("part", "fault"), INVALID, ids=range(len(INVALID)))
def test_what_is_no_part_is_refused(part: Any, fault: str) -> None:
    """What JSON cannot carry, or would carry as something else, is the responder's to hear of, at once."""
    with pytest.raises(InvalidPart, match=fault):
        wire.encode_part_row(EPISODE, 1, PREFIX, part, limit_bytes=LIMIT)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "x"},
        {"type": "x", "text": None},
        {"type": "text", "text": "\x00\n\r\u2028\U0001f600", "more": [True, False, None, -0.0]},
        {"type": "x", "value": [2**64 - 1, -(2**63)]},
        {"type": "text", Word("text"): "x"},
        {"type": "x", Word("a"): 1},
        nested(wire.PART_DEPTH),
    ],
    ids=repr,
)
def test_what_is_just_allowed_arrives(part: Part) -> None:
    """At the edge of what is refused, a part still arrives unchanged."""
    row = wire.encode_part_row(EPISODE, 1, PREFIX, part, limit_bytes=LIMIT)
    assert [event.part for event in wire.decode_rows(join(EPISODE, 1, [row]))] == [part]


def test_the_limit_counts_the_part() -> None:
    """A part of exactly the limit goes, one byte more does not; what the row adds is not counted."""
    size = len(wire.encode_part(TEXT_PART, limit_bytes=LIMIT))
    assert json.loads(wire.encode_part(TEXT_PART, limit_bytes=size)) == TEXT_PART
    with pytest.raises(InvalidPart):
        wire.encode_part(TEXT_PART, limit_bytes=size - 1)


def test_an_invalid_part_is_not_quoted() -> None:
    """The error does not show the text of the part, nor does its traceback."""
    with pytest.raises(InvalidPart) as caught:
        wire.encode_part({"type": "text", "text": "secret\ud800"}, limit_bytes=LIMIT)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


# ----------------------------------------------------------------------------------------------- bursts


@given(first_seq=st.integers(1, 1000), parts=st.lists(PARTS, max_size=5))
def test_a_burst_reads_as_its_events(first_seq: int, parts: list[Part]) -> None:
    """The rows of a burst read as the same events as each row alone."""
    rows = [
        wire.encode_part_row(EPISODE, seq, PREFIX, part, limit_bytes=LIMIT) for seq, part in enumerate(parts, first_seq)
    ]
    events = wire.decode_rows(join(EPISODE, first_seq, rows))
    assert events == [wire.decode_event(row) for row in rows]
    assert [event.part for event in events] == parts


@pytest.mark.parametrize(
    "burst",
    [
        Burst(EPISODE, 1, 3, SEPARATOR.join(rows_from(1, 2))),
        Burst(EPISODE, 2, 2, SEPARATOR.join(rows_from(1, 2))),
        Burst(EPISODE, 1, 2, SEPARATOR.join(rows_from(1, 1) * 2)),
        Burst(EPISODE, 1, 2, SEPARATOR.join([*rows_from(1, 1), wire.encode_event(CaughtUp(cursor="0-"))])),
        Burst(EPISODE, 1, 1, wire.encode_event(CaughtUp(cursor="0-"))),
        Burst(EPISODE, 1, 1, b'{"type":"message_part"'),
        Burst(EPISODE, 1, 1, b'{"type":"message_part","episode":[57,1,"p8r2dq7w3e"],"seq":1,"part":{},"cursor":""}'),
    ],
    ids=[
        "count",
        "first seq",
        "repeat",
        "one that is no part",
        "type",
        "malformed",
        "part",
    ],
)
def test_rows_that_are_not_what_the_burst_says_are_refused(burst: Burst) -> None:
    """A burst's first seq and count are those of its rows. That they are its episode's is found where they come in."""
    with pytest.raises(WireError):
        wire.decode_rows(burst)


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_rows_are_decoded_some_at_a_time(count: int) -> None:
    """The same events in the same order, and no more at once than asked for."""
    burst = join(EPISODE, 5, rows_from(5, 7))
    together = list(wire.decode_rows_by(count, burst))
    assert wire.decode_rows(burst) == [event for events in together for event in events]
    assert [min(count, 7)] * (7 // count) == [len(events) for events in together][: 7 // count]
    with pytest.raises(WireError):
        list(wire.decode_rows_by(count, Burst(EPISODE, 5, 8, burst.rows)))


def test_a_row_may_be_written_in_another_way() -> None:
    """Of a row only what it says counts, not how a peer of another version orders or spaces it."""
    [first, second] = rows_from(1, 2)
    reordered = json.dumps(dict(reversed(json.loads(second).items()))).encode()
    assert reordered != second
    expected = wire.decode_rows(join(EPISODE, 1, [first, second]))
    assert wire.decode_rows(join(EPISODE, 1, [first, reordered])) == expected


def test_a_decoded_part_is_as_one_that_was_made() -> None:
    """It is made without a call of its class, and yet cannot be told from one."""
    [decoded] = wire.decode_rows(join(EPISODE, 7, rows_from(7, 1)))
    made = MessagePart(episode=EPISODE, seq=7, part=TEXT_PART, cursor=f"{PREFIX}7")
    assert decoded == made
    assert repr(decoded) == repr(made)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        decoded.seq = 8  # type: ignore[misc]
