"""Legs between simulated replicas, and what serves them: real grants, selects, bursts and ends on a simulated network.

Two kinds. `memory`: the frames of a leg go over a connection that carries frames; of the WebSocket only the handshake's
headers and its answer are left. `websocket`: the real `WebSocketDialer`, and trio-websocket on both sides, over a
connection that carries bytes.

Must not know: what crashes when. Who calls: replicas of a simulated cluster.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Literal, TypeAlias

import attrs
import trio
from trio_websocket import ConnectionClosed, HandshakeError, wrap_server_stream

from .._dialer import Dialer, DialRequest, Leg
from .._engine import Engine
from .._errors import DialError, DialRefused, DialTimeout, ReplicaNotFound
from .._settings import Settings
from ..stores._base import Store
from ..transport._leg import WebSocketLeg
from ..transport._tasks import background
from ..transport._websocket import WebSocketFrames
from ..transport.dialer import WebSocketDialer
from ..transport.grants import (
    GRANT_HEADER,
    SOURCE_HEADER,
    InvalidGrant,
    make_connection_grant,
    make_select_grant,
)
from ..transport.parts_endpoint import authorize_peer, serve_parts
from ..transport.pool import open_leg_pool
from ._simulated_network import End, FrameEnd, Network, StreamEnd

LegKind: TypeAlias = Literal["memory", "websocket"]
SECRET = b"of a simulated cluster"
_WELCOME, _REFUSED = "101", "401"
_HOST = "node-"
_NEVER_OPENED = (
    trio.BrokenResourceError,
    trio.EndOfChannel,
    trio.TooSlowError,
    HandshakeError,
    ConnectionClosed,
)
"""How a connection ends that was lost during its handshake. Afterwards its loss is the endpoint's matter."""


def address_of(node: int) -> str:
    """What the replica on that node advertises."""
    return f"http://{_HOST}{node}:80"


def _node_at(host: str) -> int:
    return int(host.removeprefix("http://").removeprefix(_HOST).removesuffix(":80"))


@attrs.frozen(kw_only=True)
class Place:
    """Where a life of a replica stands, and how it reaches the others."""

    node: int
    network: Network
    settings: Settings
    store: Store
    """Its own way to the database: a peer's address is looked up there."""
    engine: Callable[[], Engine]
    clock: Callable[[], float]
    """The wall clock's seconds, for grants."""

    async def resolve(self, replica_id: str) -> str | None:
        """The address of a replica, as it wrote it into the database."""
        return {replica.id: replica.address for replica in await self.store.replicas()}.get(replica_id)

    async def connect(self, host: str) -> End:
        """A connection to that host or address. Raises `OSError`."""
        return await self.network.connect(self.node, _node_at(host))

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        """The same, as bytes."""
        return StreamEnd(await self.connect(host))


@asynccontextmanager
async def open_dialer(kind: LegKind, place: Place, *, shared: bool) -> AsyncIterator[Dialer]:
    """A dialer of that kind for the replica at that place, as long as the context lasts: with connections that all legs
    to a peer share, or one for each."""
    opener = _make_opener(kind, place)
    if not shared:
        yield opener
        return
    async with open_leg_pool(opener, place.settings) as pool:
        yield pool


def _make_opener(kind: LegKind, place: Place) -> _FrameDialer | WebSocketDialer:
    if kind == "memory":
        return _FrameDialer(place)
    return WebSocketDialer(
        resolve=place.resolve,
        replica_id=lambda: place.engine().replica_id,
        secret=SECRET,
        settings=place.settings,
        clock=place.clock,
        open_stream=place.open_stream,
    )


async def serve_peer(kind: LegKind, place: Place, end: End) -> None:
    """Serve one connection of a peer until it is lost."""
    with suppress(*_NEVER_OPENED):
        try:
            await (_serve_frames if kind == "memory" else _serve_websocket)(place, end)
        finally:
            end.close()


# ------------------------------------------------------------------------------------- frames in memory


class _FrameDialer:
    """What `WebSocketDialer` does, with frames in place of a WebSocket."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @asynccontextmanager
    async def dial(self, request: DialRequest) -> AsyncIterator[Leg]:
        """See `Dialer`."""
        leg = WebSocketLeg(
            request, partial(self.select_grant, request.worker_id, request.chat_id), self._place.settings
        )
        try:
            async with self.connect(request.worker_id) as connection, background() as nursery:
                nursery.start_soon(self._carry, leg, connection)
                yield leg
        finally:
            leg.close()

    @asynccontextmanager
    async def connect(self, worker_id: str) -> AsyncIterator[FrameEnd]:
        """See `PeerOpener`."""
        end = await self._connect(worker_id)
        try:
            connection = FrameEnd(end)
            await self._shake_hands(worker_id, connection)
            yield connection
        finally:
            end.close()

    def select_grant(self, worker_id: str, chat_id: str) -> str:
        """See `PeerOpener`."""
        source, now = self._place.engine().replica_id, self._place.clock()
        return make_select_grant(SECRET, chat_id=chat_id, source=source, target=worker_id, now=now)

    async def _connect(self, worker_id: str) -> End:
        seconds = self._place.settings.connect_seconds
        try:
            with trio.fail_after(seconds):
                address = await self._find(worker_id)
                return await self._place.connect(address)
        except trio.TooSlowError:
            raise DialTimeout(worker_id, f"no connection within {seconds:g} s") from None
        except OSError as error:
            raise DialError(worker_id, f"cannot connect: {error}") from error

    async def _find(self, worker_id: str) -> str:
        try:
            address = await self._place.resolve(worker_id)
        except Exception as error:
            raise DialError(worker_id, "looking up its address failed") from error
        if address is None:
            raise ReplicaNotFound(worker_id, "no address is known for it")
        return address

    async def _shake_hands(self, worker_id: str, connection: FrameEnd) -> None:
        source = self._place.engine().replica_id
        grant = make_connection_grant(SECRET, source=source, target=worker_id, now=self._place.clock())
        try:
            with trio.fail_after(self._place.settings.handshake_seconds):
                await connection.send(json.dumps({SOURCE_HEADER: source, GRANT_HEADER: grant}))
                answer = await connection.receive()
        except trio.TooSlowError:
            raise DialTimeout(worker_id, "no answer to the handshake") from None
        except (trio.BrokenResourceError, trio.EndOfChannel):
            raise DialError(worker_id, "the connection was closed during the handshake") from None
        if answer != _WELCOME:
            raise DialRefused(worker_id, f"it refused the handshake with {answer!r}")

    async def _carry(self, leg: WebSocketLeg, connection: FrameEnd) -> None:
        leg.lose(await leg.run(connection))
        await connection.aclose_forcefully()


async def _serve_frames(place: Place, end: End) -> None:
    connection = FrameEnd(end)
    with trio.fail_after(place.settings.handshake_seconds):
        said = await connection.receive()
    assert isinstance(said, str)
    headers = json.loads(said)
    try:
        source = _authorized(place, headers)
    except InvalidGrant:
        await connection.send(_REFUSED)
        return
    await connection.send(_WELCOME)
    await _serve(place, connection, source)


# ----------------------------------------------------------------------------------------- trio-websocket


async def _serve_websocket(place: Place, end: End) -> None:
    stream = StreamEnd(end)
    async with background() as nursery:
        with trio.fail_after(place.settings.handshake_seconds):
            request = await wrap_server_stream(nursery, stream, max_message_size=place.settings.leg_frame_bytes)
        headers = {name.decode(): value.decode() for name, value in request.headers}
        try:
            source = _authorized(place, headers)
        except InvalidGrant:
            await request.reject(int(_REFUSED))
            return
        await _serve(place, WebSocketFrames(await request.accept(), stream), source)


# -------------------------------------------------------------------------------------------------- both


def _authorized(place: Place, headers: dict[str, str]) -> str:
    return authorize_peer(headers, secret=SECRET, replica_id=place.engine().replica_id, now=place.clock())


async def _serve(place: Place, connection: FrameEnd | WebSocketFrames, source: str) -> None:
    await serve_parts(
        connection,
        parts=place.engine().parts,
        store=place.store,
        replica_id=place.engine().replica_id,
        secret=SECRET,
        source=source,
        settings=place.settings,
        clock=place.clock,
    )
