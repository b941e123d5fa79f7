"""The dialer and the parts endpoint over real TCP: what streams in memory cannot show."""

from __future__ import annotations

import gc
import socket
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import attrs
import pytest
import trio
from trio_websocket import WebSocketRequest, serve_websocket

from relaytrio._dialer import DialRequest, LegEnd
from relaytrio._errors import DialError, DialRefused, DialTimeout, LegLost
from relaytrio._parts import PartLogs
from relaytrio._protocol.burst import join
from relaytrio._protocol.events import Episode
from relaytrio._settings import Settings
from relaytrio.stores._base import Store
from relaytrio.transport._websocket import WebSocketFrames
from relaytrio.transport.dialer import WebSocketDialer, open_tcp_stream
from relaytrio.transport.grants import InvalidGrant
from relaytrio.transport.parts_endpoint import authorize_peer, serve_parts
from tests.protocol.wires import text_rows

pytestmark = pytest.mark.realworld

SECRET = b"secret"
HERE, WORKER = "replica-a", "replica-b"
EPISODE = Episode(5, 2, "run0")
REQUEST = DialRequest("chat", WORKER)


def rows(first_seq: int, count: int, size: int = 40) -> list[bytes]:
    return text_rows(*range(first_seq, first_seq + count), episode=EPISODE, size=size)


@attrs.define(slots=False)
class Worker:
    """A replica that serves its parts on a real port."""

    parts: PartLogs
    settings: Settings
    port: int = 0
    accepted: int = 0

    def __attrs_post_init__(self) -> None:
        self._end, self._ended = trio.open_memory_channel[str](1000)

    async def next_end(self) -> str:
        """Why the next of its connections ended."""
        return await self._ended.receive()

    async def handle(self, request: WebSocketRequest) -> None:
        headers = {name.decode(): value.decode() for name, value in request.headers}
        try:
            source = authorize_peer(headers, secret=SECRET, replica_id=WORKER, now=time.time())
        except InvalidGrant:
            await request.reject(401, body=b"no")
            return
        connection = await request.accept()
        self.accepted += 1
        reason = await serve_parts(
            WebSocketFrames(connection, connection._stream),
            parts=self.parts,
            store=cast("Store", None),
            replica_id=WORKER,
            secret=SECRET,
            source=source,
            settings=self.settings,
        )
        await self._end.send(reason)


@asynccontextmanager
async def running_worker(**settings: float) -> AsyncIterator[Worker]:
    made = Settings(**settings)  # type: ignore[arg-type]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            worker = Worker(PartLogs(made), made)
            server = await nursery.start(partial(serve_websocket, worker.handle, "127.0.0.1", 0, None))
            worker.port = server.port
            yield worker
            nursery.cancel_scope.cancel()


def dialer(port: int, *, secret: bytes = SECRET, scheme: str = "http", **settings: float) -> WebSocketDialer:
    async def resolve(_: str) -> str:
        return f"{scheme}://127.0.0.1:{port}"

    made = Settings(**settings)  # type: ignore[arg-type]
    return WebSocketDialer(resolve=resolve, replica_id=lambda: HERE, secret=secret, settings=made)


def unused_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


async def test_an_answer_travels_over_tcp() -> None:
    """50,000 rows, made while they are read, arrive once each and in order, in far fewer frames."""
    async with running_worker() as worker, trio.open_nursery() as nursery:
        log = worker.parts.make("chat", EPISODE)

        async def generate() -> None:
            for first in range(1, 50_001, 10):
                log.append(rows(first, 10))
                await trio.lowlevel.checkpoint()
            log.seal()

        async with dialer(worker.port).dial(REQUEST) as leg:
            nursery.start_soon(generate)
            await leg.select(EPISODE, 0)
            got: list[bytes] = []
            frames = 0
            async for brought in leg:
                if isinstance(brought, LegEnd):
                    assert brought == LegEnd(EPISODE, "sealed", 50_000)
                    break
                assert brought.first_seq == len(got) + 1
                got += brought.split()
                frames += 1
        assert got == rows(1, 50_000)
        assert frames < 5_000


async def test_many_legs_come_and_go_without_a_leak() -> None:
    """Dials that are cancelled at any moment leave no socket open: the collector finds none to complain of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with running_worker() as worker:
            worker.parts.make("chat", EPISODE).append(rows(1, 10))
            for attempt in range(60):
                with trio.move_on_after(attempt * 0.0002):
                    async with dialer(worker.port).dial(REQUEST) as leg:
                        await leg.select(EPISODE, 0)
                        await anext(aiter(leg))
            gc.collect()
            async with dialer(worker.port).dial(REQUEST) as leg:
                await leg.select(EPISODE, 0)
                assert await anext(aiter(leg)) == join(EPISODE, 1, rows(1, 10))
            for _ in range(worker.accepted):
                await worker.next_end()
            assert not worker.parts.watched
        gc.collect()


async def test_a_port_that_nobody_listens_on_is_a_plain_error() -> None:
    """With the system's reason, at once."""
    with pytest.raises(DialError, match="refused"):
        async with dialer(unused_port()).dial(REQUEST):
            raise AssertionError


async def test_a_name_that_does_not_exist_is_a_plain_error() -> None:
    """What the name service says is a failed dial."""

    async def resolve(_: str) -> str:
        return "http://no-such-host.invalid:8001"

    made = WebSocketDialer(resolve=resolve, replica_id=lambda: HERE, secret=SECRET, settings=Settings())
    with pytest.raises(DialError, match=WORKER):
        async with made.dial(REQUEST):
            raise AssertionError


async def test_another_secret_is_refused() -> None:
    """The endpoint answers 401."""
    async with running_worker() as worker:
        with pytest.raises(DialRefused, match="401"):
            async with dialer(worker.port, secret=b"another").dial(REQUEST):
                raise AssertionError


async def test_tls_to_a_plain_port_is_a_plain_error() -> None:
    """A wrong scheme is told as what it is."""
    async with running_worker() as worker:
        with pytest.raises(DialError, match="TLS"):
            async with dialer(worker.port, scheme="https").dial(REQUEST):
                raise AssertionError


async def test_a_peer_that_accepts_and_says_nothing_times_out() -> None:
    """A listening socket that nobody serves completes the connection, and nothing else."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        start = time.monotonic()
        with pytest.raises(DialTimeout):
            async with dialer(listening.getsockname()[1], handshake_seconds=0.2).dial(REQUEST):
                raise AssertionError
        assert time.monotonic() - start < 5


async def test_a_reader_that_stops_is_cut_and_hangs_nothing() -> None:
    """With full TCP windows the endpoint gives up after its time, and leaving the leg takes none."""
    async with running_worker(stalled_send_seconds=0.5, part_log_bytes=64 << 20) as worker:
        log = worker.parts.make("chat", EPISODE)
        log.append(rows(1, 200, size=100_000))
        async with dialer(worker.port).dial(REQUEST) as leg:
            await leg.select(EPISODE, 0)
            assert "taken nothing" in await worker.next_end()
            with pytest.raises(LegLost):
                while True:
                    await anext(aiter(leg))
        async with dialer(worker.port).dial(REQUEST) as leg:
            await leg.select(EPISODE, 0)
            await trio.sleep(0.1)
            start = time.monotonic()
        assert time.monotonic() - start < 0.3


async def test_a_worker_that_goes_away_is_a_lost_leg() -> None:
    """The viewer's replica learns of it at once, not after the silence."""
    async with trio.open_nursery() as nursery:
        stop = trio.Event()

        async def work(task_status: trio.TaskStatus[Worker]) -> None:
            async with running_worker() as worker:
                task_status.started(worker)
                await stop.wait()

        worker: Worker = await nursery.start(work)
        worker.parts.make("chat", EPISODE).append(rows(1, 1))
        async with dialer(worker.port).dial(REQUEST) as leg:
            await leg.select(EPISODE, 0)
            await anext(aiter(leg))
            stop.set()
            with trio.fail_after(5), pytest.raises(LegLost):
                await anext(aiter(leg))


@pytest.mark.parametrize("option", ["TCP_NODELAY", "TCP_USER_TIMEOUT"])
async def test_our_sockets_have_the_options_that_the_platform_offers(option: str) -> None:
    """A lone token is not held back, and the system itself gives up on a peer that acknowledges nothing."""
    async with running_worker() as worker:
        stream = await open_tcp_stream("127.0.0.1", worker.port, stalled_seconds=15)
        async with stream:
            expected = {"TCP_NODELAY": 1, "TCP_USER_TIMEOUT": 15_000 if hasattr(socket, "TCP_USER_TIMEOUT") else None}
            number = getattr(socket, option, None)
            actual = None if number is None else stream.getsockopt(socket.IPPROTO_TCP, number)
            assert actual == expected[option]
