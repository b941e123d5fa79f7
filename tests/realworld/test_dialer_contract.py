"""The default dialer and the parts endpoint keep the contract over real sockets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import pytest
import trio
from trio_websocket import WebSocketRequest, serve_websocket

from relaytrio.testing.contracts import DialerAndPeer, DialerContract, ServedWorker
from relaytrio.transport._websocket import WebSocketFrames
from relaytrio.transport.dialer import WebSocketDialer
from relaytrio.transport.parts_endpoint import authorize_peer, serve_parts

SECRET = b"secret"


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
                await serve_parts(
                    WebSocketFrames(connection, stream),
                    parts=worker.parts,
                    store=worker.store,
                    replica_id=worker.replica_id,
                    secret=SECRET,
                    source=source,
                    settings=worker.settings,
                )
            finally:
                streams.remove(stream)

        def cut() -> None:
            for stream in streams:
                stream.socket.close()

        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, None))

            async def resolve(replica_id: str) -> str | None:
                return f"http://127.0.0.1:{server.port}" if replica_id == worker.replica_id else None

            yield DialerAndPeer(
                dialer=WebSocketDialer(
                    resolve=resolve, replica_id=lambda: "viewer", secret=SECRET, settings=worker.settings
                ),
                cut=cut,
                open_connections=lambda: len(streams),
            )
            nursery.cancel_scope.cancel()
