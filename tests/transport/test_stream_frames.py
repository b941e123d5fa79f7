"""The WebSocket of a leg over a stream, against wsproto at its other end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from wsproto import WSConnection
from wsproto.connection import Connection, ConnectionType
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from relaytrio._settings import Settings
from relaytrio.transport._stream_frames import FRAMES_PER_CHECKPOINT, StreamFrames, open_as_client

CLIENT, SERVER = ConnectionType.CLIENT, ConnectionType.SERVER
LIMIT = 1000
SETTINGS = Settings(leg_frame_bytes=LIMIT, leg_receive_buffer_bytes=64)
TEXT, BINARY = 0x81, 0x82


class Peer:
    """The other end: what it sends is cut as the test likes, what it gets is read by wsproto."""

    def __init__(self, role: ConnectionType, settings: Settings = SETTINGS) -> None:
        ours, self.stream = memory_stream_pair()
        self.frames = StreamFrames(ours, role, settings)
        self.protocol = Connection(SERVER if role is CLIENT else CLIENT)

    def encoded(self, *events: Event) -> bytes:
        return b"".join(self.protocol.send(event) for event in events)

    async def say(self, *events: Event) -> None:
        await self.stream.send_all(self.encoded(*events))

    async def hear(self) -> list[Event]:
        """All that came."""
        with trio.move_on_after(1):
            while True:
                self.protocol.receive_data(bytes(await self.stream.receive_some()))
        return list(self.protocol.events())


def message(content: str | bytes, *, finished: bool = True) -> Message[Any]:
    if isinstance(content, str):
        return TextMessage(data=content, message_finished=finished)
    return BytesMessage(data=content, message_finished=finished)


@pytest.mark.parametrize("role", [CLIENT, SERVER])
@pytest.mark.parametrize(
    "content", ["", "[]", "ä漢😀" * 40, b"", b"x", b"\x00\xff" * 200, "x" * 125, "x" * 126, "x" * 127]
)
async def test_a_message_goes_and_comes(role: ConnectionType, content: str | bytes, autojump_clock: MockClock) -> None:
    """As it is, at either end and of any size; what went out is what wsproto makes of it."""
    peer = Peer(role)
    await peer.say(message(content))
    assert content == await peer.frames.receive()
    await peer.frames.send(content)
    (heard,) = await peer.hear()
    assert isinstance(heard, Message)
    assert (content, True) == (heard.data if isinstance(heard.data, str) else bytes(heard.data), heard.message_finished)


@pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16])
async def test_a_large_message_goes_and_comes(size: int, autojump_clock: MockClock) -> None:
    """Where the length of a frame takes two bytes more, and six more."""
    peer = Peer(CLIENT, Settings())
    await peer.say(message(b"x" * size))
    assert b"x" * size == await peer.frames.receive()
    server = Peer(SERVER, Settings())
    await server.frames.send(b"x" * size)
    assert size == sum(len(event.data) for event in await server.hear() if isinstance(event, Message))


CONTENT = st.one_of(st.text(max_size=200), st.binary(max_size=200))


@st.composite
def said(draw: st.DrawFn) -> tuple[list[str | bytes], list[Event]]:
    """Messages, and the frames in which they come: some in pieces, with pings between."""
    messages = draw(st.lists(CONTENT, min_size=1, max_size=6))
    events: list[Event] = []
    for content in messages:
        cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=2)))
        bounds = [0, *cuts, len(content)]
        pieces = [content[begin:end] for begin, end in pairwise(bounds)]
        for number, piece in enumerate(pieces, 1):
            events.append(message(piece, finished=number == len(pieces)))
            if draw(st.booleans()):
                events.append(draw(st.sampled_from([Ping(payload=b"p"), Pong(payload=b"")])))
    return messages, events


@given(said=said(), cuts=st.lists(st.integers(1, 40)), role=st.sampled_from([CLIENT, SERVER]))
async def test_messages_come_out_however_they_are_cut(
    said: tuple[list[str | bytes], list[Event]], cuts: Sequence[int], role: ConnectionType
) -> None:
    """Whole or in pieces, in any number of reads, with pings between them, each of which is answered."""
    messages, events = said
    peer = Peer(role)
    data = peer.encoded(*events)
    got: list[str | bytes] = []

    async def bring() -> None:
        left = data
        for cut in cuts:
            await peer.stream.send_all(left[:cut])
            left = left[cut:]
            await trio.lowlevel.checkpoint()
        await peer.stream.send_all(left)
        await peer.stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bring)
        with pytest.raises(trio.BrokenResourceError, match="lost"):
            while True:
                frame = await peer.frames.receive()
                got.append(bytes(frame) if isinstance(frame, memoryview) else frame)
    assert messages == got
    await peer.frames.aclose_forcefully()
    heard = bytearray()
    with suppress(trio.BrokenResourceError):
        while some := await peer.stream.receive_some():
            heard += some
    peer.protocol.receive_data(bytes(heard))
    answers = [event for event in peer.protocol.events() if isinstance(event, Pong)]
    assert sum(isinstance(event, Ping) for event in events) == len(answers)


@pytest.mark.parametrize(
    ("code", "kind"), [(1000, trio.EndOfChannel), (1001, trio.EndOfChannel), (1011, trio.BrokenResourceError)]
)
async def test_a_close_is_answered_and_told(code: int, kind: type[Exception], autojump_clock: MockClock) -> None:
    """One in order is the end, any other a loss; nothing can be sent after it."""
    peer = Peer(CLIENT)
    await peer.say(message("last"), CloseConnection(code=code))
    assert "last" == await peer.frames.receive()
    with pytest.raises(kind):
        await peer.frames.receive()
    assert [CloseConnection] == [type(event) for event in await peer.hear()]
    with pytest.raises(trio.BrokenResourceError):
        await peer.frames.send("[]")


@pytest.mark.parametrize(
    "data",
    [
        bytes([TEXT, 0x80, 1, 2, 3, 4]),  # a server masks nothing
        bytes([0x83, 0]),  # an opcode that there is not
        bytes([TEXT | 0x40, 0]),  # an extension that nobody has agreed to
        bytes([0x80, 0]),  # the rest of no message
        bytes([0x01, 1]) + b"a" + bytes([TEXT, 1]) + b"b",  # a message in the middle of another
        bytes([TEXT, 1]) + b"\xff",  # a text that is no UTF-8
        bytes([0x89, 126, 0, 126]) + b"x" * 126,  # a ping that is too long
        bytes([0x88, 1]) + b"x",  # a close with half a code
    ],
)
async def test_what_is_no_websocket_is_a_loss(data: bytes) -> None:
    """It ends the connection and crashes nothing."""
    peer = Peer(CLIENT)
    await peer.stream.send_all(data)
    with pytest.raises(trio.BrokenResourceError):
        await peer.frames.receive()


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 40])
async def test_a_frame_that_is_too_large_is_given_up_by_its_header(size: int) -> None:
    """BOUNDED: nothing of it is waited for."""
    peer = Peer(CLIENT)
    await peer.stream.send_all(bytes([BINARY, 127]) + size.to_bytes(8))
    with pytest.raises(trio.BrokenResourceError, match="more than 1000 bytes"):
        await peer.frames.receive()


async def test_a_message_that_never_ends_is_given_up() -> None:
    """BOUNDED: its pieces are counted together."""
    peer = Peer(CLIENT)
    await peer.say(*[message(b"x" * 300, finished=False)] * 4)
    with pytest.raises(trio.BrokenResourceError, match="more than 1000 bytes"):
        await peer.frames.receive()


@pytest.mark.parametrize("piece", ["", "x"])
async def test_a_message_of_pieces_without_end_is_given_up(piece: str) -> None:
    """BOUNDED: a piece takes memory, though hardly anything is in it."""
    peer = Peer(CLIENT)
    await peer.say(*[message(piece, finished=False)] * 100)
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError, match="more than 1000 bytes"):
        await peer.frames.receive()


@pytest.mark.parametrize(
    "interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3]
)
async def test_what_is_said_before_the_answer_is_passed_over(interim: bytes) -> None:
    """A proxy may send interim answers; what comes behind the answer itself is a frame, in the same read or not."""
    ours, theirs = memory_stream_pair()
    protocol = WSConnection(SERVER)
    opened: list[StreamFrames] = []

    async def open_it() -> None:
        opened.append(await open_as_client(ours, host="peer", resource="/", headers=[], settings=SETTINGS))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_it)
        protocol.receive_data(bytes(await theirs.receive_some()))
        await theirs.send_all(interim + protocol.send(AcceptConnection()) + protocol.send(TextMessage(data="first")))
    assert "first" == await opened[0].receive()


async def test_a_cancelled_wait_loses_nothing(autojump_clock: MockClock) -> None:
    """What had come by then is still there."""
    peer = Peer(CLIENT)
    data = peer.encoded(message("hello"))
    await peer.stream.send_all(data[:3])
    with trio.move_on_after(1):
        await peer.frames.receive()
    await peer.stream.send_all(data[3:])
    with trio.CancelScope() as scope:
        scope.cancel()
        await peer.frames.receive()
    assert scope.cancelled_caught
    assert "hello" == await peer.frames.receive()


@pytest.mark.parametrize("kind", [message("x"), Pong(), message("", finished=False)])
async def test_frames_at_hand_let_others_run(kind: Event, autojump_clock: MockClock) -> None:
    """However many have come, others get their turns; and those are few, for small frames come fast."""
    peer = Peer(CLIENT, Settings())
    await peer.say(*[kind] * 999, message("x"))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for _ in range(1000 if kind == message("x") else 1):
            await peer.frames.receive()
        nursery.cancel_scope.cancel()
    assert 1000 // FRAMES_PER_CHECKPOINT <= turns <= 1000 // FRAMES_PER_CHECKPOINT + 4


async def test_after_half_a_frame_nothing_is_sent() -> None:
    """A send that was cancelled has spoilt the stream, for the answer to a ping too."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    frames, protocol = StreamFrames(ours, CLIENT, SETTINGS), Connection(SERVER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.receive_some, 2)
        await wait_all_tasks_blocked()
        scope = trio.CancelScope()
        nursery.start_soon(_cancel_when_blocked, scope)
        with scope:
            await frames.send("hello")
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await frames.send("again")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, protocol.send(Ping()))
        with pytest.raises(trio.BrokenResourceError):
            await frames.receive()


async def test_the_answer_to_a_ping_waits_for_the_frame_that_is_under_way() -> None:
    """Two tasks send, but never in the middle of each other's frame."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    frames, protocol = StreamFrames(ours, CLIENT, SETTINGS), Connection(SERVER)
    got: list[str | bytes | memoryview] = []

    async def receive() -> None:
        got.append(await frames.receive())

    async def hear() -> None:
        while True:
            protocol.receive_data(bytes(await theirs.receive_some(3)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(frames.send, "a frame")
        await wait_all_tasks_blocked()
        nursery.start_soon(receive)
        await theirs.send_all(protocol.send(Ping(payload=b"p")) + protocol.send(TextMessage(data="hi")))
        await wait_all_tasks_blocked()
        nursery.start_soon(hear)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ["hi"] == got
    assert [TextMessage(data="a frame"), Pong(payload=b"p")] == list(protocol.events())


async def test_half_a_header_is_not_read_together_with_what_came_before() -> None:
    """It stands in memory that was used, and what is behind it there looks like a frame beyond the limit."""
    ours, theirs = trio.testing.memory_stream_pair()
    frames = StreamFrames(ours, CLIENT, SETTINGS)
    got: list[bytes] = []

    async def receive() -> None:
        while True:
            frame = await frames.receive()
            assert not isinstance(frame, str)
            got.append(bytes(frame))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        # In two reads, so that there is more memory than one read asks for.
        for piece in (b"\x82", b"\x32" + b"\xff" * 50, b"\x82", b"\x7e", b"\x00", b"\xc8", b"y" * 200):
            await theirs.send_all(piece)
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [b"\xff" * 50, b"y" * 200] == got


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_frame_that_did_not_go_out_whole_goes_before_all_others() -> None:
    """Sent without waiting, until the socket takes no more; then nothing else can go so, and a task's frame comes
    behind the rest."""
    ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
    settings = Settings()
    server, client = StreamFrames(ours, SERVER, settings), StreamFrames(theirs, CLIENT, settings)
    frames = 0
    async with ours, theirs, trio.open_nursery() as nursery:
        assert server.is_free
        while server.send_now(bytes([frames]) * 50_000):
            assert server.is_free
            frames += 1
        assert not server.is_free
        nursery.start_soon(server.send, "behind")
        await wait_all_tasks_blocked()
        assert not server.is_free
        for frame in range(frames + 1):
            assert bytes([frame]) * 50_000 == await client.receive()
        assert "behind" == await client.receive()
        await wait_all_tasks_blocked()
        assert server.is_free
        frames = 1
        while server.send_now(b"y" * 50_000):
            frames += 1
        nursery.start_soon(server.flush)
        assert [b"y" * 50_000] * frames == [bytes(await client.receive()) for _ in range(frames)]
        await wait_all_tasks_blocked()
        assert server.send_now("[]")
        assert "[]" == await client.receive()


async def test_a_stream_that_is_no_socket_is_never_free() -> None:
    """And a socket that was lost by a frame is not, either."""
    assert not Peer(SERVER).frames.is_free
    ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
    server = StreamFrames(ours, SERVER, SETTINGS)
    async with ours:
        await theirs.aclose()
        with pytest.raises(trio.BrokenResourceError):
            server.send_now(b"x")
        assert not server.is_free
        with pytest.raises(trio.BrokenResourceError):
            await server.flush()
