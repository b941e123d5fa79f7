"""The default dialer and the parts endpoint keep the contract over real sockets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import cast

import pytest
import trio
from trio_websocket import WebSocketRequest, serve_websocket
from wsproto.connection import ConnectionType

from relaytrio._errors import RelaytrioError
from relaytrio.testing.contracts import DialerAndPeer, DialerContract, ServedWorker
from relaytrio.transport._connection import FrameConnection
from relaytrio.transport._stream_frames import StreamFrames
from relaytrio.transport._upgrade import Opening
from relaytrio.transport._websocket import WebSocketFrames
from relaytrio.transport.dialer import WebSocketDialer
from relaytrio.transport.parts_endpoint import authorize_peer, serve_parts

SECRET = b"secret"


async def serve_worker(worker: ServedWorker, connection: FrameConnection, source: str) -> None:
    await serve_parts(
        connection,
        parts=worker.parts,
        store=worker.store,
        replica_id=worker.replica_id,
        secret=SECRET,
        source=source,
        settings=worker.settings,
    )


def peer_at(port: int, worker: ServedWorker, streams: Sequence[trio.SocketStream]) -> DialerAndPeer:
    """The dialer, and the peer on that port with these connections."""

    async def resolve(replica_id: str) -> str | None:
        return f"http://127.0.0.1:{port}" if replica_id == worker.replica_id else None

    def cut() -> None:
        for stream in streams:
            stream.socket.close()

    dialer = WebSocketDialer(resolve=resolve, replica_id=lambda: "viewer", secret=SECRET, settings=worker.settings)
    return DialerAndPeer(dialer=dialer, cut=cut, open_connections=lambda: len(streams))


@pytest.mark.realworld
class TestSockets(DialerContract):
    """The contract, over TCP on this machine."""

    @asynccontextmanager
    async def open(self, worker: ServedWorker) -> AsyncIterator[DialerAndPeer]:
        streams: list[trio.SocketStream] = []

        async def serve(request: WebSocketRequest) -> None:
            headers = {name.decode(): value.decode() for name, value in request.headers}
            source = authorize_peer(headers, secret=SECRET, replica_id=worker.replica_id, now=time.time())
            connection = await request.accept()
            stream = cast("trio.SocketStream", connection._stream)
            streams.append(stream)
            try:
                await serve_worker(worker, WebSocketFrames(connection, stream), source)
            finally:
                streams.remove(stream)

        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, None))
            yield peer_at(server.port, worker, streams)
            nursery.cancel_scope.cancel()


@pytest.mark.realworld
class TestOwnListener(DialerContract):
    """The contract, where the peer is served by the listener beside the app."""

    @asynccontextmanager
    async def open(self, worker: ServedWorker) -> AsyncIterator[DialerAndPeer]:
        streams: list[trio.SocketStream] = []

        async def accept(stream: trio.SocketStream) -> None:
            with suppress(RelaytrioError, trio.BrokenResourceError):  # who dialed may leave before it is open
                await serve(stream)

        async def serve(stream: trio.SocketStream) -> None:
            opening = Opening(tls=False, client=None, server=None)
            while (request := opening.take(await stream.receive_some())) is None:
                pass
            source = authorize_peer(request.headers, secret=SECRET, replica_id=worker.replica_id, now=time.time())
            answer, came = opening.accept()
            await stream.send_all(answer)
            streams.append(stream)
            try:
                await serve_worker(worker, StreamFrames(stream, ConnectionType.SERVER, worker.settings, came), source)
            finally:
                streams.remove(stream)

        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, accept, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            yield peer_at(port, worker, streams)
            nursery.cancel_scope.cancel()
