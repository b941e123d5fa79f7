"""Serve an ASGI app over HTTP with Hypercorn's Trio worker, and stop it in the right order.

Hypercorn serves a connection, but connections are accepted here. Its own loop has them all in one nursery: whatever
makes its parsers raise (a wrong header of an upgrade to HTTP/2 is enough) ends the whole server, and it raises such
things with the peer's headers in them. Here it ends that connection. And where Hypercorn would wait for ever, for a
peer that has left, to take the rest of an answer, the connection is ended here.

Hypercorn sends under a shield: a peer that does not read can hold a send, and with it the end of the whole server, for
as long as it likes. Two things prevent that: the system gives up a peer that acknowledges nothing (`_listening.py`),
and at the end, also when cancelled, the connections are shut down underneath.

Hypercorn itself tells viewers nothing when it stops. So the engine is drained first: not ready, viewers are sent
elsewhere, responders have their grace, chats are handed over; only then the server stops.

Must not know: routes, what is served. Who calls: the command `serve`, tests.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from .._settings import Settings
from .._wakeup import Flag
from ._listening import listen, url_of
from ._tasks import first_of

if TYPE_CHECKING:
    from hypercorn.typing import Framework
    from starlette.types import ASGIApp

    from .._engine import Engine

STOP_SECONDS: Final = 1.0
"""What requests that are under way when the server stops have left: the engine was drained before."""
IDLE_SECONDS: Final = 60.0
"""How long a connection is kept open for a next request: longer than clients keep theirs, so that they close first."""
LEFT_SECONDS: Final = 10.0
"""What is done for a peer that has left, a request that is under way or the end of a stream, may take so long."""

_logger = logging.getLogger("relaytrio.server")


async def serve(
    engine: Engine,
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    shutdown: trio.Event,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `host` and `port` (0: any that is free) until `shutdown` is set; then drain the engine and stop.

    `started()` gives the URL, when the app can be reached there. Raises `OSError` if the address cannot be had.
    Cancelled, it stops at once.
    """
    connections = _Connections(app, engine.settings)
    async with await listen(host, port, engine.settings) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(connections.cut_in_the_end)
        async with trio.open_nursery() as accepting:
            accept = partial(trio.serve_listeners, connections.serve, [listener], handler_nursery=nursery)
            accepting.start_soon(accept)
            task_status.started(url_of("http", host, listener.socket.getsockname()[1]))
            await shutdown.wait()
            await _drain(engine)
            accepting.cancel_scope.cancel()
        await connections.stop()
        nursery.cancel_scope.cancel()


class _Connections:
    """The connections that are open, each in Hypercorn's hands."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._config = _config(settings)
        # Their type of an app is narrower than ASGI's own.
        self._app = wrap_app(cast("Framework", app), self._config.wsgi_max_body_size, "asgi")
        self._context = WorkerContext(max_requests=None)
        self._open: set[_Connection] = set()
        self._ended = Flag()
        """Set whenever one has ended."""

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, to its end. Its failure is its own."""
        connection = _Connection(stream)
        theirs = cast("trio.SSLStream[trio.SocketStream]", connection)  # any stream with a socket will do
        self._open.add(connection)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.end_when_left, nursery.cancel_scope)
                await TCPServer(self._app, self._config, self._context, ConnectionState({}), theirs).run()
                nursery.cancel_scope.cancel()
        except* Exception as failures:
            # No more of it: what Hypercorn raises may hold the peer's headers.
            _logger.warning("a connection was given up: %s", type(first_of(failures)).__name__)
        finally:
            self._open.discard(connection)
            self._ended.set()

    async def stop(self) -> None:
        """Close those that are idle, and give the requests that are under way their time."""
        await self._context.terminated.set()
        with trio.move_on_after(STOP_SECONDS):
            while self._open:
                self._ended.clear()
                await self._ended.wait()

    async def cut_in_the_end(self) -> NoReturn:
        """When this is cancelled, end the sends that Hypercorn shields."""
        try:
            await trio.sleep_forever()
        finally:
            for connection in self._open:
                with suppress(OSError):  # the peer was faster
                    connection.socket.shutdown(socket.SHUT_RDWR)


class _Connection(trio.abc.HalfCloseableStream):
    """A connection's stream, as Hypercorn sees it. Knows when there is nobody to talk to any more."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self._stream = stream
        self._left = trio.Event()

    async def end_when_left(self, everything: trio.CancelScope) -> None:
        """Give what is still done for a peer that has left its time, then cancel it."""
        await self._left.wait()
        await trio.sleep(LEFT_SECONDS)
        everything.cancel()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self._left.set()
            raise
        except trio.BusyResourceError:
            # Hypercorn sends under a lock, but closes beside it.
            raise trio.BrokenResourceError("the connection is being closed") from None

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            self._left.set()
            raise
        if not data:
            self._left.set()
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._left.set()
        await self._stream.aclose()


def _config(settings: Settings) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = _logger
    config.keep_alive_timeout = IDLE_SECONDS
    config.include_server_header = False
    config.websocket_max_message_size = settings.client_frame_bytes
    return config


async def _drain(engine: Engine) -> None:
    """Drain the engine, and let those who watch through this replica go: they leave within the jitter."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.drain)
        if engine.stats().subscriptions:
            nursery.start_soon(trio.sleep, engine.settings.drain_jitter_seconds)
