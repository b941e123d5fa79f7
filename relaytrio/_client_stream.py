"""`ChatStream`: a chat's events over one WebSocket after the other, as if there were only one.

One task holds the connection, and replaces it when it is lost, at the address that is next, from the cursor of the
last event that came; the viewer takes events from a channel with room for two frames. Whatever is not final is tried
again for as long as the context lasts: who wants to give up puts a deadline around the iteration.

Must not know: requests, what the events mean. Who calls: `ChatClient.stream`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Final, Self, cast
from urllib.parse import quote, urlencode

import attrs
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto.utilities import LocalProtocolError

from ._client_addresses import Addresses
from ._client_answers import refusal_of, retry_after_of
from ._errors import (
    ChatDeleted,
    ChatNotFound,
    InvalidCursor,
    NotAllowed,
    RelaytrioError,
    RequestFailed,
    SubscriptionFailed,
    WireError,
)
from ._nursery import BodyNursery
from ._protocol import wire
from ._protocol.events import Event
from ._protocol.retry import Backoff
from ._settings import MiB, Settings
from .transport._address import Address
from .transport._tasks import TaskFailed, background
from .transport._viewer import DELETED, DRAINING, LAGGED, NOT_ALLOWED, PROTOCOL_ERROR, TOO_LARGE
from .transport._websocket import HandshakeFailed, OpeningStream
from .transport.dialer import OpenStream, open_tcp_stream

FRAME_BYTES: Final = 64 * MiB
"""The largest frame accepted from a replica: the largest answer, were all of it escaped."""
ROOM_FRAMES: Final = 2
"""One that the viewer is taking, and one so that it need not wait for the next."""
LONGEST_WAIT_SECONDS: Final = 60.0
"""What a replica may ask for at most before one connects again."""
_PASSING_STATUSES: Final = frozenset({408, 425, 429})


@attrs.frozen(kw_only=True)
class StreamParams:
    """What a stream is of, and how it is got."""

    chat_id: str
    cursor: str | None
    after_message_id: int | None
    headers: Mapping[str, str] = attrs.field(repr=False)
    settings: Settings
    random: Callable[[], float]
    ssl_context: ssl.SSLContext | None
    open_stream: OpenStream | None

    def resource(self, prefix: str, cursor: str | None) -> str:
        """What to ask for. The viewer's position is the cursor, else the message that it came with."""
        position: dict[str, str | int] = {}
        if cursor is not None:
            position["cursor"] = cursor
        elif self.after_message_id is not None:
            position["after_message_id"] = self.after_message_id
        return f"{prefix}/v1/chats/{quote(self.chat_id, safe='')}/stream?{urlencode(position)}".rstrip("?")


@attrs.frozen
class _Pause:
    """A connection is over, and another one follows."""

    elsewhere: bool = True
    seconds: float | None = None
    """None: as the backoff says."""


class ChatStream:
    """A chat's events: an async context manager, and an async iterator for one task.

    It connects by itself, again and again. It ends with `ChatNotFound`, `ChatDeleted`, `NotAllowed`, `InvalidCursor`,
    or `WireError` and `RequestFailed` if what answers is no replica of this protocol. An exception of the body leaves
    as it is.
    """

    def __init__(self, params: StreamParams, addresses: Addresses) -> None:
        self.chat_id = params.chat_id
        self.cursor = params.cursor
        """Of the last event that was taken: any replica goes on from there. None: nothing was taken yet."""
        self.reconnects = 0
        """How often it had connected again when the last event that was taken came."""
        self.url: str | None = None
        """The address that it is connected to."""
        self._params = params
        self._settings = params.settings
        self._addresses = addresses
        self._backoff = Backoff(params.settings.dial_retry_seconds, params.settings.dial_retry_max_seconds)
        self._resume_from = params.cursor
        self._connections = 0
        self._socket: trio.abc.Stream | None = None
        self._ssl_context = params.ssl_context
        self._ending: RelaytrioError | None = None
        self._out, self._received = trio.open_memory_channel[tuple[int, list[Event]]](ROOM_FRAMES)
        self._events: Iterator[Event] = iter(())
        self._nursery = BodyNursery(lambda: SubscriptionFailed(f"the stream of chat {params.chat_id} failed"))

    async def __aenter__(self) -> Self:
        await self._nursery.__aenter__()
        self._nursery.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            return await self._nursery.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - it cancels its own tasks
        finally:
            self._out.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. A checkpoint with each frame."""
        while True:
            for event in self._events:
                self.cursor = event.cursor
                return event
            self.reconnects, events = await self._take()
            self._events = iter(events)

    async def cut(self) -> None:
        """Drop the connection as a network would that fails. The stream connects again. For tests and checks."""
        if self._socket is not None:
            await trio.aclose_forcefully(self._socket)

    def prefer(self, url: str) -> None:
        """The address to try at the next connect. Raises `ConfigurationError` if it is none of the client's."""
        self._addresses.prefer(url)

    async def _take(self) -> tuple[int, list[Event]]:
        self._nursery.check_entered()
        try:
            return await self._received.receive()
        except trio.EndOfChannel:
            if self._ending is None:
                raise trio.ClosedResourceError("the stream was left") from None
            raise self._ending from None

    # Its own task.

    async def _run(self) -> None:
        """One connection after the other, until there is a final answer."""
        try:
            while True:
                pause = await self._connect(self._addresses.current)
                if pause.elsewhere or self._addresses.has_preferred:
                    self._addresses.go_on()
                await trio.sleep(self._jitter() if pause.seconds is None else pause.seconds)
        except RelaytrioError as ending:
            self._ending = ending
            self._out.close()

    async def _connect(self, url: str) -> _Pause:
        """One connection, from the dial to its end. Raises what is final."""
        address, prefix = self._addresses.place(url)
        try:
            with trio.fail_after(self._settings.connect_seconds):
                stream = await self._open(address)
        except (OSError, UnicodeError, trio.TooSlowError):
            return _Pause()
        try:
            async with background() as nursery:
                connection = await self._shake_hands(nursery, stream, address, prefix)
                self._connected(url, stream)
                nursery.start_soon(self._send_heartbeats, connection, stream)
                return await self._read(connection)
        except (HandshakeFailed, trio.TooSlowError):
            return _Pause()
        except TaskFailed as failed:
            return self._refused(failed.__cause__)
        finally:
            self.url = self._socket = None
            await trio.aclose_forcefully(stream)

    async def _open(self, address: Address) -> trio.abc.Stream:
        default = partial(open_tcp_stream, stalled_seconds=self._settings.stalled_send_seconds)
        return await (self._params.open_stream or default)(address.host, address.port)

    async def _shake_hands(
        self, nursery: trio.Nursery, stream: trio.abc.Stream, address: Address, prefix: str
    ) -> WebSocketConnection:
        """TLS and the upgrade. A refusal is raised in the nursery, by the library; too late is `trio.TooSlowError`."""
        with trio.fail_after(self._settings.handshake_seconds):
            if address.tls:
                stream = await self._start_tls(stream, address.host)
            opening = OpeningStream(stream)
            connection = await wrap_client_stream(
                nursery,
                cast("trio.SocketStream", opening),  # any stream will do
                address.authority,
                self._params.resource(prefix, self._resume_from),
                extra_headers=[(name.encode(), value.encode()) for name, value in self._params.headers.items()],
                max_message_size=FRAME_BYTES,
                receive_buffer_size=self._settings.leg_receive_buffer_bytes,
            )
            opening.open = True
            return connection

    async def _start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        tls = trio.SSLStream(stream, self._ssl_context, server_hostname=host, https_compatible=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise RequestFailed(f"the replica's certificate: {error.__cause__.verify_message}") from None
            raise HandshakeFailed("no TLS") from None
        return tls

    def _connected(self, url: str, stream: trio.abc.Stream) -> None:
        self.url, self._socket = url, stream
        self._connections += 1

    async def _read(self, connection: WebSocketConnection) -> _Pause:
        """Take frames until the connection is over. Who does not hear the heartbeat is not connected any more."""
        while True:
            try:
                with trio.fail_after(self._settings.silence_seconds):
                    frame = await connection.get_message()
            except trio.TooSlowError:
                return _Pause()
            except ConnectionClosed as closed:
                reason = closed.reason
                return self._closed(reason.code, reason.reason or "") if reason is not None else _Pause()
            self._backoff.reset()
            events = wire.decode_frame(frame)
            if events:
                self._resume_from = events[-1].cursor
                await self._out.send((self._connections - 1, events))

    async def _send_heartbeats(self, connection: WebSocketConnection, stream: trio.abc.Stream) -> None:
        try:
            while True:
                await trio.sleep(self._settings.application_heartbeat_seconds)
                with trio.fail_after(self._settings.stalled_send_seconds):
                    await connection.send_message(wire.HEARTBEAT.decode())
        except (ConnectionClosed, LocalProtocolError):
            return  # the reader is told too, and why
        except trio.TooSlowError:
            await trio.aclose_forcefully(stream)

    def _closed(self, code: int, reason: str) -> _Pause:
        """What a close code means. Raises what is final."""
        if code == DRAINING:
            return _Pause(seconds=_milliseconds(reason))
        if code == LAGGED:
            return _Pause(elsewhere=False)
        if code == NOT_ALLOWED:
            raise NotAllowed("not allowed any more")
        if code == DELETED:
            raise ChatDeleted(f"chat {self.chat_id} was deleted")
        if code == PROTOCOL_ERROR and reason.startswith("invalid-cursor"):
            raise InvalidCursor("the replica says that this cursor was never given out")
        if code in (PROTOCOL_ERROR, TOO_LARGE):
            raise WireError("the replica and this client do not speak the same protocol")
        return _Pause()

    def _refused(self, fault: BaseException | None) -> _Pause:
        """What a failed handshake means. Raises what is final."""
        if not isinstance(fault, ConnectionRejected):
            return _Pause()  # no answer, or none that is HTTP
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in fault.headers}
        if fault.status_code >= 500 or fault.status_code in _PASSING_STATUSES:
            asked = retry_after_of(headers)
            return _Pause() if asked is None else _Pause(seconds=min(asked + self._jitter(), LONGEST_WAIT_SECONDS))
        refusal = refusal_of(fault.status_code, fault.body or b"", headers)
        if isinstance(refusal, ChatNotFound) and self._connections:
            raise ChatDeleted(f"chat {self.chat_id} was deleted")
        raise refusal

    def _jitter(self) -> float:
        return self._backoff.next_delay_seconds(self._params.random())


def _milliseconds(reason: str) -> float | None:
    """The seconds that a draining replica asks for."""
    if not reason.isascii() or not reason.isdecimal() or len(reason) > 9:
        return None
    return min(int(reason) / 1000, LONGEST_WAIT_SECONDS)
