"""Real connections for a scene: the real dialer, over streams in memory, to peers that a test plays frame by frame.

Must not know: which race is run. Who calls: the races of what travels between replicas.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from relaytrio._protocol.peer_wire import Control, Select, decode_control, encode_control
from relaytrio._settings import Settings
from relaytrio.transport.dialer import WebSocketDialer
from tests.races.stage import dial_with
from tests.scene import HERE, Scene

SECRET = b"secret"
LIMIT_BYTES = Settings().leg_frame_bytes


class Peer:
    """A WebSocket that the scene's replica has opened, on the worker's side."""

    def __init__(self, connection: WebSocketConnection, headers: Mapping[str, str]) -> None:
        self.headers = headers
        """Of the handshake, all of them, with their names in small letters."""
        self._connection = connection

    async def say(self, frame: Control | str | bytes) -> None:
        """Send a frame, of whatever sense."""
        await self._connection.send_message(frame if isinstance(frame, str | bytes) else encode_control(frame))

    async def selected(self) -> Select:
        """The next select."""
        while True:
            frame = decode_control(await self._connection.get_message(), limit_bytes=LIMIT_BYTES)
            if isinstance(frame, Select):
                return frame

    async def gone(self) -> None:
        """Return when the scene's replica has ended the connection."""
        try:
            while True:
                await self._connection.get_message()
        except ConnectionClosed:
            pass


@attrs.define(slots=False)
class Peers:
    """The other replicas. Each accepts, or refuses with `refuse_with`, an HTTP status."""

    nursery: trio.Nursery
    refuse_with: int | None = None
    ids_asked_for: int = 0
    """How often the dialer has asked who this replica is."""
    grants: list[str] = attrs.Factory(list)
    """Of all handshakes."""

    def __attrs_post_init__(self) -> None:
        self._seconds = 1_700_000_000.0
        self._accepted, self._accepts = trio.open_memory_channel[Peer](100)

    async def next(self) -> Peer:
        """The next connection that was accepted."""
        return await self._accepts.receive()

    def replica_id(self) -> str:
        self.ids_asked_for += 1
        return HERE

    def clock(self) -> float:
        """A wall clock that is never read twice in one second, so that no two grants are the same."""
        self._seconds += 1
        return self._seconds

    async def resolve(self, replica_id: str) -> str:
        await trio.lowlevel.checkpoint()
        return f"http://{replica_id}:80"

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with stream, trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream, max_message_size=LIMIT_BYTES)
            headers = _headers(request)
            self.grants.append(headers["x-relaytrio-grant"])
            if self.refuse_with is not None:
                await request.reject(self.refuse_with)
            else:
                await self._accepted.send(Peer(await request.accept(), headers))


def _headers(request: WebSocketRequest) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in request.headers}


@asynccontextmanager
async def open_peers(scene: Scene, *, forward_headers: Collection[str] = (), **options: Any) -> AsyncIterator[Peers]:
    """Let the scene's viewers be served over real connections for as long as the context lasts."""
    async with trio.open_nursery() as nursery:
        peers = Peers(nursery, **options)
        dialer = WebSocketDialer(
            resolve=peers.resolve,
            replica_id=peers.replica_id,
            secret=SECRET,
            settings=scene.replica.settings,
            forward_headers=forward_headers,
            clock=peers.clock,
            open_stream=peers.open_stream,
        )
        dial_with(scene, dialer)
        yield peers
        nursery.cancel_scope.cancel()
