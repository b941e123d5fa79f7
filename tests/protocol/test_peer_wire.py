"""Bytes <-> control frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relaytrio._errors import WireError
from relaytrio._protocol import peer_wire, wire
from relaytrio._protocol.burst import join
from relaytrio._protocol.events import (
    LARGEST_NUMBER,
    Episode,
    MessageRef,
)
from tests.protocol.wires import (
    EPISODE,
    EPISODES,
    JSON,
    LIMIT,
    NUMBERS,
    TEXTS,
    rows_from,
)

LEG_BURSTS = st.builds(
    lambda leg, first_seq, count, truncated: peer_wire.LegBurst(
        leg, join(EPISODE, first_seq, rows_from(first_seq, count), truncated=truncated)
    ),
    NUMBERS,
    st.integers(1, LARGEST_NUMBER - 5),
    st.integers(1, 4),
    st.booleans(),
)
CONTROLS: st.SearchStrategy[peer_wire.Control] = st.one_of(
    st.builds(peer_wire.Select, NUMBERS, TEXTS, EPISODES, NUMBERS, TEXTS, st.booleans()),
    st.builds(peer_wire.Release, NUMBERS),
    st.builds(
        peer_wire.Ended,
        NUMBERS,
        EPISODES,
        st.sampled_from(["sealed", "not_owner", "over", "refused", "beyond"]),
        NUMBERS,
        st.none() | TEXTS,
    ),
    LEG_BURSTS,
    st.builds(peer_wire.Bundle, st.lists(LEG_BURSTS, min_size=1, max_size=4).map(tuple)),
    st.just(peer_wire.Heartbeat()),
)
SELECT = peer_wire.Select(1, "c1", EPISODE, 118, "grant")
ENDED = peer_wire.Ended(1, EPISODE, "sealed", 118)
BURST = peer_wire.LegBurst(3, join(EPISODE, 1, rows_from(1, 2)))
BUNDLE = peer_wire.Bundle((BURST, peer_wire.LegBurst(4, join(EPISODE, 7, rows_from(7, 1), truncated=True))))


def decode(data: str | bytes) -> peer_wire.Control | None:
    """What it is; and the same, if it is binary, of memory that is used for something else behind it."""
    try:
        decoded = peer_wire.decode_control(data, limit_bytes=LIMIT)
    except WireError:
        if isinstance(data, bytes):
            with pytest.raises(WireError):
                peer_wire.decode_control(memoryview(data), limit_bytes=LIMIT)
        raise
    if isinstance(data, bytes):
        memory = bytearray(data)
        viewed = peer_wire.decode_control(memoryview(memory), limit_bytes=LIMIT)
        memory[:] = bytes(len(memory))
        assert decoded == viewed
    return decoded


@given(frame=CONTROLS)
def test_a_control_frame_survives_the_wire(frame: peer_wire.Control) -> None:
    """Written and read again, a control frame is equal."""
    assert decode(peer_wire.encode_control(frame)) == frame


def test_control_frames_look_as_documented() -> None:
    """Text frames are JSON objects with a version and a type; a burst is binary and leaves its rows as they are."""
    named = [57, 1, "p8r2dq7w3e"]
    expected = {"v": 1, "type": "select", "leg": 1, "chat": "c1", "episode": named, "after_seq": 118, "grant": "grant"}
    expected["bundles"] = False
    assert json.loads(peer_wire.encode_control(SELECT)) == expected
    assert json.loads(peer_wire.encode_control(peer_wire.Release(1))) == {"v": 1, "type": "release", "leg": 1}
    expected = {
        "v": 1,
        "type": "ended",
        "leg": 1,
        "episode": named,
        "reason": "sealed",
        "last_seq": 118,
        "owner_id": None,
    }
    assert json.loads(peer_wire.encode_control(ENDED)) == expected
    assert peer_wire.encode_control(peer_wire.Heartbeat()) == "[]"
    written = peer_wire.encode_control(BURST)
    assert isinstance(written, bytes)
    header, _, rows = written.partition(b"\n")
    expected = {"v": 1, "type": "burst", "leg": 3, "episode": named, "first_seq": 1, "count": 2, "truncated": False}
    assert json.loads(header) == expected
    assert rows == BURST.burst.rows


def test_a_bundle_looks_as_documented() -> None:
    """A header that says whose bytes follow, and the rows of all as they are."""
    written = peer_wire.encode_control(BUNDLE)
    assert isinstance(written, bytes)
    header, _, rows = written.partition(b"\n")
    each = [of_leg.burst.rows for of_leg in BUNDLE.bursts]
    named = [57, 1, "p8r2dq7w3e"]
    bursts = [
        {"leg": 3, "episode": named, "first_seq": 1, "count": 2, "size": len(each[0]), "truncated": False},
        {"leg": 4, "episode": named, "first_seq": 7, "count": 1, "size": len(each[1]), "truncated": True},
    ]
    assert {"v": 1, "type": "bundle", "bursts": bursts} == json.loads(header)
    assert b"".join(each) == rows


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"{}", lambda data: data + data[-9:]])
def test_a_bundle_whose_sizes_do_not_fit_is_refused(change: Callable[[bytes], bytes]) -> None:
    """No byte of it belongs to two bursts, or to none."""
    written = peer_wire.encode_control(BUNDLE)
    assert isinstance(written, bytes)
    with pytest.raises(WireError):
        decode(change(written))


def test_a_bundle_of_many_bursts_survives_the_wire() -> None:
    """Its header is longer than where the end of one is looked for first."""
    bundle = peer_wire.Bundle(tuple(peer_wire.LegBurst(leg, BURST.burst) for leg in range(30)))
    data = peer_wire.encode_control(bundle)
    assert isinstance(data, bytes)
    assert data.index(b"\n") > peer_wire.BEGINNING_BYTES
    assert bundle == decode(data)


def test_a_peer_that_knows_no_bundles_asks_for_none() -> None:
    """A select of an older version says nothing of them."""
    written = json.loads(peer_wire.encode_control(attrs.evolve(SELECT, bundles=True)))
    del written["bundles"]
    assert SELECT == decode(json.dumps(written))


def test_a_grant_is_not_shown() -> None:
    """The grant of a select gets into no log."""
    assert "grant" not in repr(SELECT)


@pytest.mark.parametrize(
    "frame", [SELECT, peer_wire.Release(4), ENDED, BURST, BUNDLE], ids=lambda frame: type(frame).__name__
)
def test_a_newer_peer_is_understood(frame: peer_wire.Control) -> None:
    """A greater version and unknown fields change nothing as long as the frame can be read."""
    written = peer_wire.encode_control(frame)
    newer: str | bytes
    if isinstance(written, bytes):
        newer = written.replace(b'{"v":1,', b'{"v":2,"new":{"v":"x"},', 1)
    else:
        newer = written.replace('{"v":1,', '{"v":2,"new":{"v":"x"},', 1)
    assert newer != written
    assert decode(newer) == frame


def test_unknown_control_frames_are_passed_over() -> None:
    """A newer peer's frame of another type, text or binary, is no fault."""
    assert decode('{"v":2,"type":"weather"}') is None
    assert decode('{"v":1,"type":"burst","leg":1}') is None
    assert decode(b'{"v":1,"type":"weather"}\n\x00\xff') is None
    assert decode(b'{"v":1,"type":"release","leg":1}') is None


def test_an_unknown_reason_makes_its_reader_look_again() -> None:
    """A reason that this version does not know is read as the one that can only lead to another look and retry."""
    text = str(peer_wire.encode_control(ENDED)).replace("sealed", "eclipsed")
    assert decode(text) == attrs.evolve(ENDED, reason="not_owner")


@pytest.mark.parametrize("name", ["v", "type", "leg", "chat", "episode", "after_seq", "grant", "reason", "last_seq"])
@pytest.mark.parametrize("wrong", [None, -1, 2**63, 1.5, [], {}, [1, 1, 1], [-1, 1, "a"], [1, 1, "a" * 33], True])
def test_a_spoiled_control_field_is_a_wire_error(name: str, wrong: object) -> None:
    """A control frame with a field missing or of another type or range is refused."""
    for frame in (SELECT, ENDED):
        fields = json.loads(peer_wire.encode_control(frame))
        if name not in fields:
            continue
        with pytest.raises(WireError):
            decode(json.dumps({**fields, name: wrong}))
        with pytest.raises(WireError):
            decode(json.dumps({key: value for key, value in fields.items() if key != name}))


@pytest.mark.parametrize(
    "data",
    [
        "",
        "[",
        "[ ]",
        "[1]",
        "null",
        "{}",
        "\ud800",
        '{"v":0,"type":"release","leg":1}',
        '{"v":"1","type":"release","leg":1}',
        '{"v":1,"type":"select","leg":1,"chat":"\ud800","episode":[1,1,"a"],"after_seq":0,"grant":""}',
        '{"v":1,"type":"weather","x":' + "[" * 100_000,
        b"",
        b"[]",
        b"\n",
        b"\xff\n{}",
        b'{"v":1,"type":"burst"}\n{}',
        b'{"v":1,"type":"burst","x":' + b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:70]),
)
def test_a_malformed_control_frame_is_a_wire_error(data: str | bytes) -> None:
    """Whatever a peer sends, nothing but `WireError` comes out."""
    with pytest.raises(WireError):
        decode(data)


def burst_frame(rows: bytes, *, first_seq: object = 1, count: object = 1) -> bytes:
    header = {"v": 1, "type": "burst", "leg": 1, "episode": [1, 1, "a"], "first_seq": first_seq, "count": count}
    return json.dumps(header).encode() + b"\n" + rows


ONE, TWO = rows_from(1, 2, Episode(1, 1, "a"))
WIDE = ONE.replace(b"token", "t\u00f6ken".encode())


@pytest.mark.parametrize(
    "data",
    [
        burst_frame(b""),
        burst_frame(b"", count=0),
        burst_frame(ONE, count=0),
        burst_frame(ONE, count=2),
        burst_frame(ONE, count=-1),
        burst_frame(ONE, first_seq=0),
        burst_frame(ONE, first_seq=None),
        burst_frame(ONE, first_seq=2),
        burst_frame(ONE + b",\n" + TWO, count=1),
        burst_frame(ONE + b"\n" + TWO, count=2),
        burst_frame(ONE + b"," + TWO + b"\n", count=2),
        burst_frame(ONE + b",\n", count=2),
        burst_frame(b",\n" + TWO, count=2),
        burst_frame(ONE + b",\n{", count=2),
        burst_frame(ONE + b",\n{}", count=2),
        burst_frame(ONE + b",\n[]", count=2),
        burst_frame(ONE[:-1]),
        burst_frame(ONE[:-1] + b",\n" + TWO, count=2),
        burst_frame(ONE + b",\n" + TWO[:-1], count=2),
        burst_frame(ONE + b",\n" + ONE, count=2),
        burst_frame(ONE + b",\n" + TWO.replace(b'"a"', b'"b"'), count=2),
        burst_frame(WIDE.replace(b"\xc3\xb6", b"\xff")),
        burst_frame(WIDE.replace(b"\xc3\xb6", b"\xed\xa0\x80")),
        burst_frame(b'{"type":"status"}'),
    ],
    ids=repr,
)
def test_a_burst_that_cannot_be_cut_or_shown_is_refused(data: bytes) -> None:
    """Rows go to browsers unread: they must be the parts that are announced, a line each, and UTF-8."""
    with pytest.raises(WireError):
        decode(data)


@pytest.mark.parametrize("rows", [[ONE], [ONE, TWO], [WIDE], [WIDE, TWO]], ids=repr)
def test_a_burst_without_the_truncated_mark_is_whole(rows: list[bytes]) -> None:
    """What an older peer does not say has its default."""
    expected = peer_wire.LegBurst(1, join(Episode(1, 1, "a"), 1, rows, truncated=False))
    assert decode(burst_frame(expected.burst.rows, count=len(rows))) == expected


@pytest.mark.parametrize(
    "frame", [SELECT, BURST, peer_wire.Select(1, "ü" * 50, EPISODE, 1, "")], ids=["text", "binary", "wide"]
)
def test_a_frame_over_the_limit_is_refused(frame: peer_wire.Control) -> None:
    """The limit counts bytes, in text too; a frame of exactly the limit is taken."""
    written = peer_wire.encode_control(frame)
    size = len(written if isinstance(written, bytes) else written.encode())
    assert peer_wire.decode_control(written, limit_bytes=size) == frame
    with pytest.raises(WireError, match=f"more than {size - 1} bytes"):
        peer_wire.decode_control(written, limit_bytes=size - 1)


@given(frame=CONTROLS, data=st.data())
def test_a_damaged_control_frame_is_a_frame_or_a_wire_error(frame: peer_wire.Control, data: st.DataObject) -> None:
    """A control frame with one byte changed reads as something else at worst."""
    written = peer_wire.encode_control(frame)
    damaged = bytearray(written if isinstance(written, bytes) else written.encode())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for sent in (bytes(damaged), damaged.decode(errors="replace")):
        try:
            decode(sent)
        except WireError:
            continue


def test_a_burst_of_parts_is_known_by_how_its_rows_begin() -> None:
    """Each row has to be the part of its episode and seq; no other event passes for one."""
    episode, other = Episode(5, 2, "run0"), Episode(5, 2, "run1")
    good = [wire.encode_part_row(episode, seq, "1-a-5.2.run0-", {"type": "text"}, limit_bytes=100) for seq in (7, 8)]
    assert wire.are_parts(join(episode, 7, good))
    assert not wire.are_parts(join(episode, 8, good))
    assert not wire.are_parts(join(other, 7, good))
    assert not wire.are_parts(join(episode, 7, [good[0], b'{"type":"status","seq":8}']))
    assert not wire.are_parts(join(episode, 7, [good[0].replace(b"message_part", b"message")]))


@given(
    run_id=st.sampled_from(["run0", "p8r2dq7w3e", 'a]"b', "r\\", "x%d", "\u00e9"]),
    first_seq=st.sampled_from([1, 8, 98, LARGEST_NUMBER - 200]),
    count=st.integers(1, 4) | st.integers(126, 140),
    data=st.data(),
)
def test_no_row_of_a_burst_is_passed_over(run_id: str, first_seq: int, count: int, data: st.DataObject) -> None:
    """Whatever its run is called, wherever in it another row stands, and whatever that one begins with."""
    episode = Episode(5, 2, run_id)
    prefix = wire.cursor_prefix(MessageRef(1, "a"), episode)

    def made(of: Episode, seq: int) -> bytes:
        return wire.encode_part_row(of, seq, prefix, {"type": "text", "text": ',"part":'}, limit_bytes=LIMIT)

    good = [made(episode, first_seq + number) for number in range(count)]
    assert wire.are_parts(join(episode, first_seq, good))
    place = data.draw(st.integers(0, count - 1))
    seq = str(first_seq + place).encode()
    cut = data.draw(st.integers(0, len(good[place])))
    bad = data.draw(
        st.sampled_from(
            [
                good[place][:cut] + b"\n" + good[place][cut:],
                good[place][:cut] + b",\n" + good[place][cut:],
                good[place][:cut] + b"\n" + good[place],
                made(episode, max(1, first_seq + place - 1) if first_seq + place > 1 else 2),
                made(attrs.evolve(episode, run_id="other"), first_seq + place),
                made(attrs.evolve(episode, history_version=6), first_seq + place),
                good[place].replace(b'"seq":' + seq, b'"seq":0' + seq, 1),
                good[place].replace(b'"seq":' + seq, b'"seq":' + seq + b".0", 1),
                good[place].replace(b"message_part", b"status", 1),
                b'{"type":"status"}',
            ]
        )
    )
    assert not wire.are_parts(join(episode, first_seq, [*good[:place], bad, *good[place + 1 :]]))
    more = join(episode, first_seq, [*good, b'{"type":"status"}'])
    assert not wire.are_parts(replace(more, count=count))


@given(data=st.binary() | st.text(st.characters()) | JSON.map(json.dumps))
def test_any_bytes_are_a_control_frame_or_a_wire_error(data: bytes | str) -> None:
    """No input makes reading fail in any other way."""
    with suppress(WireError):
        decode(data)
