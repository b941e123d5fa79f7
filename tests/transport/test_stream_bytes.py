"""The bytes of a leg, over real sockets that a test has both ends of."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator
from typing import TypeAlias

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from relaytrio.transport._stream_bytes import StreamBytes

MUCH = b"0123456789abcdef" * (1 << 18)
"""More than two sockets hold between them."""


Pair: TypeAlias = tuple[trio.abc.Stream, trio.abc.Stream]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two ends of a socket."""
    ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
    async with ours, theirs:
        yield ours, theirs


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return ours, await listener.accept()


async def receive(stream: StreamBytes, limit_bytes: int = 100) -> bytes:
    space = bytearray(limit_bytes)
    count = await stream.receive_into(memoryview(space))
    return bytes(space[:count])


async def read(stream: StreamBytes, size: int) -> bytes:
    came = b""
    while len(came) < size:
        data = await receive(stream, 1 << 16)
        assert data
        came += data
    return came


async def refuses(stream: StreamBytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await receive(stream)
    with pytest.raises(error):
        await stream.send(b"x")
    with pytest.raises(error):
        stream.send_now(b"x")


async def go_and_come(ours: trio.abc.Stream, theirs: trio.abc.Stream) -> None:
    here, there = StreamBytes(ours), StreamBytes(theirs)
    await here.send(b"over there")
    await there.send(b"and back")
    assert b"over" == await receive(there, 4)
    assert b" there" == await receive(there)
    assert b"and back" == await receive(here)
    await ours.aclose()
    assert b"" == await receive(there)


async def test_bytes_go_and_come(pair: Pair) -> None:
    """In both directions, at most so many at once, and then the end."""
    assert StreamBytes(pair[0]).is_prompt
    await go_and_come(*pair)


async def test_any_other_stream_is_used_as_it_is() -> None:
    """It has no socket of its own, or one that holds something else than its bytes."""
    pair = memory_stream_pair()
    assert not StreamBytes(pair[0]).is_prompt
    await go_and_come(*pair)


async def test_a_large_send_waits_for_its_reader(pair: Pair) -> None:
    """It is all there in the end, in one piece and in order, and what is sent next comes behind it."""
    ours, theirs = pair
    here, there = StreamBytes(ours), StreamBytes(theirs)
    sent: list[int] = []

    async def send() -> None:
        await here.send(MUCH)
        sent.append(len(MUCH))
        await here.send(b"next")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert [] == sent
        assert MUCH + b"next" == await read(there, len(MUCH) + 4)


async def test_what_is_sent_now_is_what_the_system_takes(pair: Pair) -> None:
    """And nothing, when it takes nothing."""
    ours, theirs = pair
    here, there = StreamBytes(ours), StreamBytes(theirs)
    sent = here.send_now(MUCH)
    assert 0 < sent < len(MUCH)
    assert 0 == here.send_now(b"x")
    assert MUCH[:sent] == await read(there, sent)
    assert 4 == here.send_now(b"next")
    assert b"next" == await receive(there)


async def test_a_closed_stream_is_closed_for_all(pair: Pair) -> None:
    """Whoever waits for it learns that at once, and whoever comes later."""
    ours, theirs = pair
    here, _ = StreamBytes(ours), theirs
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await receive(here)

        await wait_all_tasks_blocked()
        await trio.aclose_forcefully(ours)
    await refuses(here, trio.ClosedResourceError)


async def test_a_socket_of_the_same_number_is_another_one() -> None:
    """It came to be readable and was closed before its reader ran, and the system has given its number away."""
    outcomes: set[bytes] = set()
    another, its_peer = socket.socketpair()
    its_peer.send(b"another's" * 1000)

    async def read(here: StreamBytes) -> None:
        try:
            outcomes.add(await receive(here))
        except trio.ClosedResourceError:
            outcomes.add(b"closed")

    async def close_when_rung(ours: trio.SocketStream, ring: trio.SocketStream) -> None:
        await trio.lowlevel.wait_readable(ring.socket)
        number = ours.socket.fileno()
        ours.socket.close()
        numbers.append(os.dup2(another.fileno(), number))

    with another, its_peer:
        for _ in range(40):
            numbers: list[int] = []
            ours, theirs, ring, bell = (trio.SocketStream(end) for _ in range(2) for end in trio.socket.socketpair())
            async with ours, theirs, ring, bell:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read, StreamBytes(ours))
                    nursery.start_soon(close_when_rung, ours, ring)
                    await wait_all_tasks_blocked()
                    for stream in (theirs, bell):
                        StreamBytes(stream).send_now(b"own")
                os.close(*numbers)
    # Trio takes either of two tasks that became ready together first.
    assert {b"own", b"closed"} == outcomes


async def test_a_lost_connection_is_told() -> None:
    """Reset by the peer: neither end, nor an error of the system."""
    ours, theirs = await tcp_pair()
    here = StreamBytes(ours)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(theirs)
    await refuses(here, trio.BrokenResourceError)
    await ours.aclose()


async def test_a_cancelled_wait_loses_nothing(pair: Pair) -> None:
    """Neither what has not been read, nor what had not begun to be sent."""
    ours, theirs = pair
    here, there = StreamBytes(ours), StreamBytes(theirs)
    with trio.CancelScope() as scope:
        scope.cancel()
        await here.send(b"never")
    await there.send(b"kept")
    with trio.CancelScope() as scope:
        scope.cancel()
        await receive(here)
    assert scope.cancelled_caught
    assert b"kept" == await receive(here)
    await here.send(b"sent")
    assert b"sent" == await receive(there)


async def test_reading_and_writing_let_others_run(pair: Pair) -> None:
    """Also where neither has to wait."""
    ours, theirs = pair
    here, there = StreamBytes(ours), StreamBytes(theirs)
    for go in (lambda: here.send(b"x"), lambda: receive(there, 1)):
        with trio.testing.assert_checkpoints():
            await go()
