"""The viewer listener: one connection of a viewer's, or of a peer's, from its first byte to its last.

The opening is the same for all: TLS where there is a context, the request, within a time; then who may see what, and
the subscription; then the upgrade, or a refusal. A plain socket then leaves Trio's stream and is fed by the fan-out
(`_viewer_socket.py`); TLS takes the ordinary way (`_viewer_stream.py`, `_viewer.py`).

Must not know: listening, rules of a chat. Who calls: `serve_viewers`.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from wsproto.connection import ConnectionType

from .._errors import InvalidCursor, RelaytrioError
from .._subscription import Subscription
from ._address import PARTS_PATH
from ._admission import Admission
from ._answers import refusal
from ._authorize import Authorize
from ._peers import Peers
from ._stream_frames import StreamFrames
from ._tasks import first_of
from ._upgrade import Opening
from ._viewer import PROTOCOL_ERROR, Ending
from ._viewer_socket import Hall, SocketViewer
from ._viewer_stream import StreamOutlet

if TYPE_CHECKING:
    from .._engine import Engine

RECEIVE_BYTES: Final = 4096
REFUSED_SECONDS: Final = 1.0
"""How long one who was refused may take to read it and leave. A socket closed before may destroy what it was told."""
REFUSED_BYTES: Final = 64 * 1024
"""What is read of one who was refused, meanwhile."""

_logger = logging.getLogger("relaytrio.server")


class Viewers:
    """The viewers of one engine."""

    def __init__(
        self,
        engine: Engine,
        authorize: Authorize | None,
        *,
        recheck_seconds: float | None,
        ssl_context: ssl.SSLContext | None,
        random: Callable[[], float],
    ) -> None:
        self._settings = engine.settings
        self._admission = Admission(engine, authorize, recheck_seconds=recheck_seconds, random=random)
        self._hall = Hall(engine.parts, engine.settings, engine.drain_started, random)
        self._peers = Peers(engine)
        self._ssl_context = ssl_context

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:  # noqa: ASYNC128
        """What serves all of them, until cancelled. Must run while connections are served."""
        await self._hall.run(task_status=task_status)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, to its end. Its failure is its own."""
        try:
            async with _closing(stream):
                await self._serve(stream)
        except* Exception as failures:
            # No more of it: it may hold the peer's headers.
            _logger.error("a connection was given up: %s", type(first_of(failures)).__name__)

    async def _serve(self, plain: trio.SocketStream) -> None:
        stream: trio.abc.Stream = plain
        peer, own = _address(plain.socket.getpeername), _address(plain.socket.getsockname)
        opening = Opening(tls=self._ssl_context is not None, client=peer, server=own)
        try:
            with trio.fail_after(self._settings.handshake_seconds):
                if self._ssl_context is not None:
                    stream = trio.SSLStream(plain, self._ssl_context, server_side=True, https_compatible=True)
                request = await _request(stream, opening)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            return
        except RelaytrioError as error:
            await self._refuse(stream, opening, error)
            return
        try:
            if request.scope["path"] == PARTS_PATH:
                await self._serve_peer(request, stream, opening)
                return
            subscription = await self._admitted(request, stream, opening)
            if subscription is not None:
                await self._carry(subscription, request, stream, plain, opening)
        except (RelaytrioError, HTTPException) as error:
            await self._refuse(stream, opening, error)

    async def _serve_peer(self, request: HTTPConnection, stream: trio.abc.Stream, opening: Opening) -> None:
        """Another replica, to its end. Raises what refuses it before it has begun."""
        source = self._peers.authorize(request.headers)
        answer, came = opening.accept()
        try:
            with trio.fail_after(self._settings.stalled_send_seconds):
                await stream.send_all(answer)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await self._peers.serve(StreamFrames(stream, ConnectionType.SERVER, self._settings, came), source)

    async def _admitted(
        self, request: HTTPConnection, stream: trio.abc.Stream, opening: Opening
    ) -> Subscription | None:
        """The subscription of one who may have it; None: another answer was given."""
        failure: Exception
        try:
            return await self._admission.subscription(request)
        except (HTTPException, RelaytrioError) as refused:
            if not isinstance(refused, InvalidCursor):
                raise
            failure = refused
        except Exception as failed:  # `authorize` failed
            failure = failed
        if not isinstance(failure, InvalidCursor):
            await self._refuse(stream, opening, failure)
            raise failure
        # As by the ASGI app: a browser could not tell a refusal from a network that fails.
        with trio.move_on_after(self._settings.stalled_send_seconds):
            outlet = self._outlet(stream, opening)
            await outlet.open()
            await outlet.finish(Ending(PROTOCOL_ERROR, "invalid-cursor"))
        return None

    async def _carry(
        self,
        subscription: Subscription,
        request: HTTPConnection,
        stream: trio.abc.Stream,
        plain: trio.SocketStream,
        opening: Opening,
    ) -> None:
        """The stream, to its end. Raises what refuses it before it has begun."""
        if stream is not plain:
            await self._admission.viewer(request, self._outlet(stream, opening)).serve(subscription)
            return
        viewer = SocketViewer(self._hall)
        beside = partial(self._admission.recheck, request) if self._admission.rechecks else None
        try:
            await viewer.serve(subscription, lambda: (_taken_over(plain), *opening.accept()), beside=beside)
        finally:
            viewer.close()

    def _outlet(self, stream: trio.abc.Stream, opening: Opening) -> StreamOutlet:
        return StreamOutlet(stream, opening.accept, self._settings)

    async def _refuse(self, stream: trio.abc.Stream, opening: Opening, error: Exception) -> None:
        """Say no, and let the peer read it."""
        with (
            trio.move_on_after(self._settings.stalled_send_seconds),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await stream.send_all(opening.refuse(refusal(error)))
            if isinstance(stream, trio.SocketStream):
                await stream.send_eof()
            with trio.move_on_after(REFUSED_SECONDS):
                left = REFUSED_BYTES
                while left > 0 and (data := await stream.receive_some(RECEIVE_BYTES)):
                    left -= len(data)


async def _request(stream: trio.abc.Stream, opening: Opening) -> HTTPConnection:
    """Read until the request is there. Raises what refuses it."""
    while True:
        request = opening.take(await stream.receive_some(RECEIVE_BYTES))
        if request is not None:
            return request


def _taken_over(stream: trio.SocketStream) -> socket.socket:
    """The stream's socket, which is no more the stream's. Trio gives no other way to it, and makes it non-blocking."""
    raw = socket.socket(fileno=stream.socket.detach())
    raw.setblocking(False)
    return raw


def _address(name: Callable[[], Any]) -> tuple[str, int] | None:
    """Host and port, where the socket has those and knows them still."""
    with suppress(OSError):
        address = name()
        if isinstance(address, tuple):
            return address[0], address[1]
    return None


@asynccontextmanager
async def _closing(stream: trio.abc.AsyncResource) -> AsyncIterator[None]:
    """Close the stream at the end, at once."""
    try:
        yield
    finally:
        await trio.aclose_forcefully(stream)  # noqa: ASYNC102 - it does not wait
