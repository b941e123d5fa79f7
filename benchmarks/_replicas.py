"""Replicas for benchmarks: one that has logs and a parts endpoint, one that shows what the other makes, and whole ones.

A bare worker is real part logs behind a real endpoint, with no store: what is measured is the way of a part. The front
replica is a whole engine whose store, in memory, says that the chats run at the worker. Two whole engines share an
SQLite file.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeAlias

import attrs
import trio
from trio_websocket import wrap_client_stream, wrap_server_stream
from wsproto.connection import ConnectionType

import relaytrio
from relaytrio import Engine, Settings, open_engine
from relaytrio._engine import VERSION
from relaytrio._parts import PartLogs
from relaytrio._protocol.chat import Acquire, Create
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import Episode, MessageRef
from relaytrio._protocol.wire import cursor_prefix, encode_part_row
from relaytrio._relay import MultiReplicaRelay, RelayConfig
from relaytrio._turn import Responder
from relaytrio.stores import MemoryStore, Replica, Store
from relaytrio.transport._connection import FrameConnection
from relaytrio.transport._serve import serve
from relaytrio.transport._stream_frames import StreamFrames
from relaytrio.transport._tasks import background
from relaytrio.transport._upgrade import Opening
from relaytrio.transport._websocket import WebSocketFrames
from relaytrio.transport.dialer import NO_HEADERS, WebSocketDialer
from relaytrio.transport.parts_endpoint import authorize_peer, serve_parts

from ._processes import Stage

Legs: TypeAlias = Literal["shared", "own", "stock"]
"""All over one connection, as by default; each over one of its own; and that by trio-websocket at both ends."""
SECRET = "a secret of a cluster that is measured"
WORKER = "00000000-0000-4000-8000-00000000000b"
OTHER_WORKER = "00000000-0000-4000-8000-00000000000c"
BASE = MessageRef(1, "k3x9q")
SETTINGS = Settings(dead_after_seconds=3600.0)
"""A bare worker has no heart that beats."""


def chat_name(number: int) -> str:
    """The id of a chat of the front replica's store."""
    return f"00000000-0000-4000-8000-{number:012}"


def episode_of(number: int) -> Episode:
    """What that chat's worker generates."""
    return Episode(1, 1, f"run{number:07}")


def token_rows(episode: Episode, first_seq: int, count: int, text: str = " token") -> list[bytes]:
    """Rows as a responder's parts become."""
    prefix = cursor_prefix(BASE, episode)
    part = {"type": "text", "text": text}
    return [
        encode_part_row(episode, seq, prefix, part, limit_bytes=1 << 20) for seq in range(first_seq, first_seq + count)
    ]


@attrs.define
class PartsServer:
    """A parts endpoint on a port of its own."""

    parts: PartLogs
    store: Store
    replica_id: str
    settings: Settings
    port: int = 0
    accepted: int = 0

    async def handle_stock(self, stream: trio.SocketStream) -> None:
        async with background() as nursery:
            request = await wrap_server_stream(nursery, stream, max_message_size=self.settings.leg_frame_bytes)
            source = self._authorize({name.decode(): value.decode() for name, value in request.headers})
            await self._serve(WebSocketFrames(await request.accept(), stream), source)

    async def handle(self, stream: trio.SocketStream) -> None:
        opening = Opening(tls=False, client=None, server=None)
        while (request := opening.take(await stream.receive_some())) is None:
            pass
        source = self._authorize(request.headers)
        answer, came = opening.accept()
        await stream.send_all(answer)
        self.accepted += 1
        await self._serve(StreamFrames(stream, ConnectionType.SERVER, self.settings, came), source)

    def _authorize(self, headers: Mapping[str, str]) -> str:
        return authorize_peer(headers, secret=SECRET.encode(), replica_id=self.replica_id, now=time.time())

    async def _serve(self, connection: FrameConnection, source: str) -> None:
        await serve_parts(
            connection,
            parts=self.parts,
            store=self.store,
            replica_id=self.replica_id,
            secret=SECRET.encode(),
            source=source,
            settings=self.settings,
        )


@asynccontextmanager
async def serving_parts(
    parts: PartLogs, *, store: Store | None = None, replica_id: str = WORKER, port: int = 0, legs: Legs = "shared"
) -> AsyncIterator[PartsServer]:
    """Serve these logs for as long as the context lasts."""
    server = PartsServer(parts, store or MemoryStore(), replica_id, SETTINGS)
    async with trio.open_nursery() as nursery:
        handle = server.handle_stock if legs == "stock" else server.handle
        listening = partial(trio.serve_tcp, handle, port, host="127.0.0.1", handler_nursery=nursery)
        (listener,) = await nursery.start(listening)
        server.port = listener.socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


async def store_of(port: int, chats: int, *, idle: bool = False) -> MemoryStore:
    """A store in which the worker, on that port, runs so many chats; or nobody, for they are idle."""
    store = MemoryStore(settings=SETTINGS)
    await register(store, WORKER, port)
    for number in range(chats):
        chat_id, episode = chat_name(number), episode_of(number)
        await store.create_chat(chat_id, Create(messages=() if idle else (user_message("Say something."),)))
        if not idle:
            outcome = await store.apply(chat_id, Acquire(worker_id=WORKER, run_id=episode.run_id))
            assert outcome.chat.live_episode == episode
    return store


async def register(store: Store, worker_id: str, port: int) -> None:
    """A worker that can be dialed there."""
    await store.register(Replica(id=worker_id, address=f"http://127.0.0.1:{port}", version=VERSION))


@asynccontextmanager
async def front(store: Store, *, legs: Legs = "shared", settings: Settings = SETTINGS) -> AsyncIterator[Engine]:
    """The replica that viewers are connected to."""
    async with open_engine(store, secret=SECRET, settings=settings) as engine:
        if legs != "shared":
            kind = StockDialer if legs == "stock" else WebSocketDialer
            engine.relay = MultiReplicaRelay(RelayConfig(dialer=_plain_dialer(kind, engine, store), settings=settings))
        yield engine


class StockDialer(WebSocketDialer):
    """Connections by trio-websocket."""

    @asynccontextmanager
    async def connect(self, worker_id: str, headers: Mapping[str, str] = NO_HEADERS) -> AsyncIterator[FrameConnection]:
        sent = self._headers(worker_id, headers)
        address, stream = await self._connect(worker_id)
        async with background() as nursery:
            connection = await wrap_client_stream(
                nursery,
                stream,  # type: ignore[arg-type]  # any stream will do
                address.authority,
                address.resource,
                extra_headers=sent,
                max_message_size=self._settings.leg_frame_bytes,
                receive_buffer_size=self._settings.leg_receive_buffer_bytes,
            )
            try:
                yield WebSocketFrames(connection, stream)
            finally:
                await trio.aclose_forcefully(stream)


def _plain_dialer(kind: type[WebSocketDialer], engine: Engine, store: Store) -> WebSocketDialer:
    async def resolve(replica_id: str) -> str | None:
        addresses = {replica.id: replica.address for replica in await store.replicas()}
        return addresses.get(replica_id)

    return kind(resolve=resolve, replica_id=lambda: engine.replica_id, secret=SECRET.encode(), settings=engine.settings)


@asynccontextmanager
async def serving_engine(engine: Engine, port: int, *, asgi: bool) -> AsyncIterator[None]:
    """Serve a whole engine's parts: by its ASGI app, or by the listener beside it."""
    async with trio.open_nursery() as nursery:
        if asgi:
            await nursery.start(partial(serve, engine, engine.asgi_app(), port=port, shutdown=trio.Event()))
        else:
            await nursery.start(partial(relaytrio.serve_viewers, engine, port=port))
        yield
        nursery.cancel_scope.cancel()


async def run_worker(stage: Stage, store: str, responder: Responder, asgi: bool) -> None:
    """A whole replica that generates; says when it can be dialed. Ends with its process."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    async with open_engine(store, responder=responder, address=address, secret=SECRET, settings=SETTINGS) as engine:
        async with serving_engine(engine, port, asgi=asgi):
            stage.say("ready")
            await trio.sleep_forever()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


def seq_of(cursor: str) -> int:
    """The seq of a cursor that has one; else 0."""
    return int(cursor.rpartition("-")[2]) if cursor.count("-") == 3 else 0


def percentile(figures: Sequence[float], share: float) -> float:
    """The figure below which that share of them lies."""
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
