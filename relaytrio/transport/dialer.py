"""The default dialer: a WebSocket to the parts endpoint of the worker's replica.

Decides how a leg comes about and how that can fail; whatever fails leaves as one plain `DialError` that names the
worker and holds no token, cookie or header. A connection carries one leg: it is made with one viewer's headers.

Must not know: when to dial and when to give up (the relay), what an endpoint does with a select.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import trio

from .._dialer import DialRequest, Leg
from .._errors import (
    BadReplicaAddress,
    ConfigurationError,
    DialError,
    DialRefused,
    DialTimeout,
    ReplicaNotFound,
)
from .._settings import Settings
from ._address import Address, BadAddress
from ._connection import FrameConnection
from ._leg import WebSocketLeg
from ._stream_frames import HandshakeRefused, StreamFrames, open_as_client
from ._tasks import TaskFailed, background, first_of
from ._websocket import HandshakeFailed
from .grants import GRANT_HEADER, SOURCE_HEADER, make_connection_grant, make_select_grant

Resolve: TypeAlias = Callable[[str], Awaitable[str | None]]
"""From a replica id to the address that the replica advertises; None if there is no such replica."""
OpenStream: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""A stream to that host and port, or an `OSError`."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS = {SOURCE_HEADER.lower(), GRANT_HEADER.lower()}
_OF_THE_CONNECTION = {"host", "connection", "upgrade", "content-length", "transfer-encoding", "te", "trailer"}


class WebSocketDialer:
    """Opens legs over WebSockets.

    `resolve` is asked for a replica's address, and `replica_id` for this replica's own id, only when dialing. `secret`
    is the cluster's. Of a viewer's headers only those named in `forward_headers` (in any case) leave this replica.
    `ssl_context` is for `https` addresses; by default the system's authorities are trusted. `clock` gives the
    wall-clock seconds for grants, and `open_stream` the connection below all this.

    Raises `ConfigurationError` for an empty secret, and for a header that cannot be forwarded.
    """

    def __init__(
        self,
        *,
        resolve: Resolve,
        replica_id: Callable[[], str],
        secret: bytes,
        settings: Settings,
        forward_headers: Collection[str] = (),
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
        open_stream: OpenStream | None = None,
    ) -> None:
        if not secret:
            raise ConfigurationError("secret must not be empty: replicas trust each other by it")
        self._resolve = resolve
        self._replica_id = replica_id
        self._source = ""
        """This replica's id, as it was asked for when a connection was last made."""
        self._secret = secret
        self._settings = settings
        self._forwarded = _checked_names(forward_headers)
        self._ssl_context = ssl_context
        self._clock = clock
        self._open_stream = open_stream or partial(open_tcp_stream, stalled_seconds=settings.stalled_send_seconds)

    @asynccontextmanager
    async def dial(self, request: DialRequest) -> AsyncIterator[Leg]:
        """See `Dialer`."""
        leg = WebSocketLeg(request, partial(self.select_grant, request.worker_id, request.chat_id), self._settings)
        try:
            async with background() as nursery:
                await nursery.start(self._hold, leg, request)
                yield leg
        finally:
            leg.close()

    @asynccontextmanager
    async def connect(self, worker_id: str, headers: Mapping[str, str] = NO_HEADERS) -> AsyncIterator[FrameConnection]:
        """An open connection to that replica's parts endpoint, with these headers of a viewer.

        Entering raises a `DialError`.
        """
        headers_sent = self._headers(worker_id, headers)
        address, stream = await self._connect(worker_id)
        try:
            yield await self._shake_hands(worker_id, stream, address, headers_sent)
        finally:
            await trio.aclose_forcefully(stream)

    def select_grant(self, worker_id: str, chat_id: str) -> str:
        """For one select on a connection to that replica."""
        return make_select_grant(
            self._secret, chat_id=chat_id, source=self._source, target=worker_id, now=self._clock()
        )

    def _headers(self, worker_id: str, of_viewer: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        """Our two, and of the viewer's those that were named."""
        self._source = source = self._replica_id()
        grant = make_connection_grant(self._secret, source=source, target=worker_id, now=self._clock())
        headers = {SOURCE_HEADER: source, GRANT_HEADER: grant}
        headers |= {name: value for name, value in of_viewer.items() if name.lower() in self._forwarded}
        for name, value in headers.items():
            if not _HEADER_VALUE.fullmatch(value):
                raise DialError(worker_id, f"the header {name} has a value that no header can have")
        return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]

    async def _connect(self, worker_id: str) -> tuple[Address, trio.abc.Stream]:
        """Find the replica's address and connect to it, in `connect_seconds`."""
        try:
            with trio.fail_after(self._settings.connect_seconds):
                address = await self._find(worker_id)
                return address, await self._open(worker_id, address)
        except trio.TooSlowError:
            raise DialTimeout(worker_id, f"no connection within {self._settings.connect_seconds:g} s") from None

    async def _find(self, worker_id: str) -> Address:
        try:
            url = await self._resolve(worker_id)
        except Exception as error:
            # The resolver is not ours. That it fails is one failed dial, to be told and tried again like any other.
            name = type(error).__name__
            raise DialError(worker_id, f"looking up its address failed: {name}") from error
        if url is None:
            raise ReplicaNotFound(worker_id, "no address is known for it")
        try:
            return Address.parse(url)
        except BadAddress as error:
            raise BadReplicaAddress(worker_id, str(error)) from None

    async def _open(self, worker_id: str, address: Address) -> trio.abc.Stream:
        try:
            return await self._open_stream(address.host, address.port)
        except OSError as error:
            raise DialError(worker_id, f"cannot connect to {address.authority}: {_reason(error)}") from error
        except UnicodeError:
            raise BadReplicaAddress(worker_id, "its address names no host that can be looked up") from None

    async def _hold(self, leg: WebSocketLeg, request: DialRequest, *, task_status: trio.TaskStatus[None]) -> None:
        """The connection's whole life. Until it is open, a failure is the dial's; from then on it is the leg's end."""
        try:
            async with self.connect(request.worker_id, request.headers) as frames:
                task_status.started()
                reason = await leg.run(frames)
        except TaskFailed as failed:
            reason = f"its connection failed: {type(failed.__cause__).__name__}"
        leg.lose(reason)

    async def _shake_hands(
        self,
        worker_id: str,
        stream: trio.abc.Stream,
        address: Address,
        headers: list[tuple[bytes, bytes]],
    ) -> StreamFrames:
        """TLS and the upgrade, in `handshake_seconds`."""
        try:
            with trio.fail_after(self._settings.handshake_seconds):
                if address.tls:
                    stream = await self._start_tls(worker_id, stream, address.host)
                return await open_as_client(
                    stream,
                    host=address.authority,
                    resource=address.resource,
                    headers=headers,
                    settings=self._settings,
                )
        except HandshakeFailed as failed:
            raise _refusal(worker_id, failed) from None
        except trio.TooSlowError:
            raise DialTimeout(worker_id, f"no answer within {self._settings.handshake_seconds:g} s") from None

    async def _start_tls(self, worker_id: str, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        if self._ssl_context is None:
            # Once, and only where it is needed: loading the authorities takes a while.
            self._ssl_context = ssl.create_default_context()
        try:
            tls = trio.SSLStream(stream, self._ssl_context, server_hostname=host, https_compatible=True)
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            raise DialError(worker_id, f"no TLS with it: {_reason(error)}") from error
        except ValueError:
            raise BadReplicaAddress(worker_id, "its address names no host that a certificate could be for") from None
        return tls


async def open_tcp_stream(host: str, port: int, *, stalled_seconds: float) -> trio.SocketStream:
    """A TCP connection that the system itself gives up when the peer has acknowledged nothing for so long.

    Raises `OSError`.
    """
    stream = await trio.open_tcp_stream(host, port)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
    if option is not None:
        with suppress(OSError):  # refused only for a connection that is lost already: its first use will say so
            stream.setsockopt(socket.IPPROTO_TCP, option, int(stalled_seconds * 1000))
    return stream


def _checked_names(forward_headers: Collection[str]) -> frozenset[str]:
    if isinstance(forward_headers, str):
        raise ConfigurationError("forward_headers is a collection of names, not one string")
    names = frozenset(name.lower() for name in forward_headers)
    for name in names:
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(f"forward_headers: {name!r} is no name of a header")
        if name in _OURS | _OF_THE_CONNECTION or name.startswith("sec-websocket-"):
            raise ConfigurationError(f"forward_headers: {name} belongs to the connection itself")
    return names


def _refusal(worker_id: str, failed: HandshakeFailed) -> DialError:
    """What a failed handshake means."""
    if isinstance(failed, HandshakeRefused) and failed.status in (401, 403):
        return DialRefused(worker_id, f"it refused the handshake with HTTP {failed.status}")
    return DialError(worker_id, str(failed))


def _reason(error: BaseException) -> str:
    """What the system or the TLS library says, without the layers around it."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = first_of(cause)
    return str(cause or error)
