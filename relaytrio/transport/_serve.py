"""Serve an ASGI app over HTTP with Hypercorn's Trio worker, and stop it in the right order.

Hypercorn sends under a shield: a peer that does not read can hold a send, and with it the end of the whole server, for
as long as it likes. Two things prevent that. The listening socket, which is made here, has a `TCP_USER_TIMEOUT` where
the system knows it, and the accepted sockets inherit it: the system gives up a peer that acknowledges nothing. And at
the end, also when cancelled, the sockets that were accepted here are shut down underneath.

Hypercorn itself tells viewers nothing when it stops. So the engine is drained first: not ready, viewers are sent
elsewhere, responders have their grace, chats are handed over; only then the server stops.

Must not know: routes, what is served. Who calls: the command `serve`, tests.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve as serve_with_hypercorn

from .._settings import Settings

if TYPE_CHECKING:
    from hypercorn.typing import Framework
    from starlette.types import ASGIApp

    from .._engine import Engine

STOP_SECONDS: Final = 1.0
"""What requests that are under way when the server stops have left: the engine was drained before."""
IDLE_SECONDS: Final = 60.0
"""How long a connection is kept open for a next request: longer than clients keep theirs, so that they close first."""
BACKLOG: Final = 512
"""Connections that wait to be accepted: all viewers of a replica that stopped come at once."""
CUT_SECONDS: Final = 0.5
"""What it has then to unwind, before its connections are shut down."""
_OPEN_FILES: Final = "/dev/fd"
_ANYWHERE: Final = ("0.0.0.0", "::")


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
    with await _listen(host, port, engine.settings) as listening:
        address = listening.getsockname()
        stop = trio.Event()
        run = partial(
            serve_with_hypercorn,
            cast("Framework", app),  # their type of an app is narrower than ASGI's own
            _config(listening, engine.settings),
            shutdown_trigger=stop.wait,
            mode="asgi",
        )
        async with trio.open_nursery() as watching:
            watching.start_soon(_cut_in_the_end, address, stop)
            async with trio.open_nursery() as nursery:
                await nursery.start(run)
                task_status.started(_url(host, address[1]))
                await shutdown.wait()
                await _drain(engine)
                stop.set()
            watching.cancel_scope.cancel()


async def _listen(host: str, port: int, settings: Settings) -> socket.socket:
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
        if option is not None:
            listening.setsockopt(socket.IPPROTO_TCP, option, int(settings.stalled_send_seconds * 1000))
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


class _Config(Config):
    """Hypercorn's, with a socket that is open already."""

    listening: socket.socket

    def create_sockets(self) -> Sockets:
        return Sockets(secure_sockets=[], insecure_sockets=[self.listening], quic_sockets=[])


def _config(listening: socket.socket, settings: Settings) -> _Config:
    config = _Config()
    config.listening = listening
    config.accesslog = None
    config.errorlog = logging.getLogger("relaytrio.server")
    config.backlog = BACKLOG
    config.graceful_timeout = STOP_SECONDS
    config.keep_alive_timeout = IDLE_SECONDS
    config.include_server_header = False
    config.websocket_max_message_size = settings.client_frame_bytes
    return config


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _drain(engine: Engine) -> None:
    """Drain the engine, and let those who watch through this replica go: they leave within the jitter."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.drain)
        if engine.stats().subscriptions:
            nursery.start_soon(trio.sleep, engine.settings.drain_jitter_seconds)


async def _cut_in_the_end(address: tuple[Any, ...], stop: trio.Event) -> None:
    """When the server has had its time to stop, or is cancelled, end the sends that it shields."""
    try:
        await stop.wait()
        await trio.sleep(STOP_SECONDS + CUT_SECONDS)
    finally:
        _cut_accepted(address)


def _cut_accepted(address: tuple[Any, ...]) -> None:
    """Shut down every connection that was accepted at this address. Where open files cannot be listed, none.

    Hypercorn hands out no sockets; the system knows them all.
    """
    with suppress(OSError):
        for name in os.listdir(_OPEN_FILES):
            with suppress(OSError):  # the file that this list came from is closed already
                _cut_if_accepted(int(name), address)


def _cut_if_accepted(file: int, address: tuple[Any, ...]) -> None:
    if not stat.S_ISSOCK(os.fstat(file).st_mode):
        return
    connection = socket.socket(fileno=file)
    try:
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return
        here = connection.getsockname()
        if here[1] == address[1] and (here[0] == address[0] or address[0] in _ANYWHERE):
            connection.getpeername()  # the listening socket has none
            connection.shutdown(socket.SHUT_RDWR)
    finally:
        connection.detach()  # it is Hypercorn's
