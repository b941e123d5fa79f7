"""A worker's replica in memory, and a dialer that reaches it: one that behaves well, badly, or not at all."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from relaytrio._dialer import Dialer, DialRequest, Leg
from relaytrio._errors import DialError
from relaytrio._protocol.burst import Burst, join
from relaytrio._protocol.events import Episode
from relaytrio._protocol.peer_wire import Control, LegBurst, decode_control, encode_control
from relaytrio._settings import Settings
from relaytrio.transport._leg import LEG
from relaytrio.transport.dialer import WebSocketDialer
from tests.protocol.wires import text_rows

SECRET = b"secret"
HERE, WORKER = "replica-a", "replica-b"
NOW = 1_700_000_000.0
EPISODE = Episode(5, 2, "run0")
NEXT = Episode(5, 3, "run0")
MUCH = 8 << 20
OF_THE_UPGRADE = {b"host", b"upgrade", b"connection"}
TAKEN_UNREAD = 4
"""Frames that a peer's library takes though the peer itself reads none, and one more that is being sent."""
Behaviour = Callable[[trio.abc.Stream], Awaitable[None]]


def burst(*seqs: int, episode: Episode = EPISODE, size: int = 0) -> Burst:
    return join(episode, seqs[0], text_rows(*seqs, episode=episode, size=size))


@attrs.define
class Remote:
    """The worker's replica: what it does with a stream, and what it saw."""

    nursery: trio.Nursery
    behave: Behaviour
    lockstep: bool = False
    dialed: list[tuple[str, int]] = attrs.Factory(list)
    streams: list[trio.abc.Stream] = attrs.Factory(list)
    """Our ends, as the dialer got them."""
    closed: list[trio.abc.Stream] = attrs.Factory(list)

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = lockstep_stream_pair() if self.lockstep else memory_stream_pair()
        stream = Watched(ours, self.closed)
        self.dialed.append((host, port))
        self.streams.append(stream)
        self.nursery.start_soon(self.behave, theirs)
        return stream

    @property
    def all_closed(self) -> bool:
        return all(stream in self.closed for stream in self.streams)


class Watched(trio.abc.Stream):
    """A stream that notes its closing."""

    def __init__(self, stream: trio.abc.Stream, closed: list[trio.abc.Stream]) -> None:
        self._stream, self._closed = stream, closed

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        self._closed.append(self)
        await self._stream.aclose()


class Peer:
    """An open WebSocket on the worker's side, in the hands of the test."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection

    async def say(self, frame: Control | str | bytes) -> None:
        await self.connection.send_message(frame if isinstance(frame, str | bytes) else encode_control(frame))

    async def burst(self, *seqs: int, leg: int = LEG, size: int = 0) -> None:
        await self.say(LegBurst(leg, burst(*seqs, size=size)))

    async def heard(self) -> Control | None:
        return decode_control(await self.connection.get_message(), limit_bytes=MUCH)


@attrs.define
class Cluster:
    """A worker's replica that accepts, and a dialer that reaches it."""

    remote: Remote
    dialer: WebSocketDialer
    requests: list[WebSocketRequest]
    peers: trio.MemoryReceiveChannel[Peer]

    @asynccontextmanager
    async def dial(self, headers: dict[str, str] | None = None) -> AsyncIterator[tuple[Leg, Peer]]:
        async with self.dialer.dial(DialRequest("chat", WORKER, headers or {})) as leg:
            yield leg, await self.peers.receive()


@asynccontextmanager
async def cluster(
    *,
    lockstep: bool = False,
    forward_headers: Collection[str] = (),
    address: str = "http://10.0.0.5:8001",
    settings: Settings | None = None,
) -> AsyncIterator[Cluster]:
    requests: list[WebSocketRequest] = []
    to_test, peers = trio.open_memory_channel[Peer](10)

    async def accept(stream: trio.abc.Stream) -> None:
        async with stream, trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream, max_message_size=MUCH)
            requests.append(request)
            with suppress(ConnectionClosed):  # who dialed may have left meanwhile
                await to_test.send(Peer(await request.accept()))

    async with trio.open_nursery() as nursery:
        with to_test, peers:
            remote = Remote(nursery, accept, lockstep)
            dialer = make_dialer(remote, forward_headers=forward_headers, address=address, settings=settings)
            try:
                yield Cluster(remote, dialer, requests, peers)
            except BaseException as error:  # noqa: ASYNC103 - told as a failure of the test
                # It would be taken for ours below, and the test for one that passed.
                if isinstance(error, trio.Cancelled):
                    raise AssertionError("cancelled, and nobody did it") from error  # noqa: ASYNC104
                raise
            await wait_all_tasks_blocked()
            assert remote.all_closed
        nursery.cancel_scope.cancel()


async def resolved(_: str) -> str:
    return "http://10.0.0.5:8001"


def make_dialer(
    remote: Remote | None,
    *,
    forward_headers: Collection[str] = (),
    address: str | None = "http://10.0.0.5:8001",
    settings: Settings | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> WebSocketDialer:
    async def resolve(replica_id: str) -> str | None:
        assert replica_id == WORKER
        await trio.lowlevel.checkpoint()
        return address

    return WebSocketDialer(
        resolve=resolve,
        replica_id=lambda: HERE,
        secret=SECRET,
        settings=settings or Settings(),
        forward_headers=forward_headers,
        ssl_context=ssl_context,
        clock=lambda: NOW,
        open_stream=None if remote is None else remote.open_stream,
    )


async def fails(dialer: Dialer, headers: dict[str, str] | None = None) -> DialError:
    """The error with which dialing fails: a plain one that names the worker."""
    with pytest.raises(DialError) as failed:
        async with dialer.dial(DialRequest("chat", WORKER, headers or {})):
            raise AssertionError("a leg, where there can be none")
    assert failed.value.worker_id == WORKER
    assert WORKER in str(failed.value)
    return failed.value


async def fails_against(behave: Behaviour, **options: Any) -> DialError:
    async with trio.open_nursery() as nursery:
        remote = Remote(nursery, behave)
        error = await fails(make_dialer(remote, **options))
        assert remote.all_closed
        nursery.cancel_scope.cancel()
    return error


def answering(answer: bytes) -> Behaviour:
    async def behave(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)
            await trio.sleep_forever()

    return behave


async def hang(stream: trio.abc.Stream) -> None:
    async with stream:
        await trio.sleep_forever()
