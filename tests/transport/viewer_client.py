"""A viewer that speaks the WebSocket protocol over a pair of sockets in this process, byte by byte where need be.

AF_UNIX sockets hand over what is sent at once, so that they go together with virtual time.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from relaytrio.transport._viewers import Viewers

CERTIFICATE = Path(__file__).with_name("certificate.pem")
"""Of the host `replica`, signed by itself, and its key; worth nothing outside of tests."""
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def server_context() -> ssl.SSLContext:
    """TLS for a server of the tests."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_context() -> ssl.SSLContext:
    """TLS for one who trusts it."""
    return ssl.create_default_context(cafile=CERTIFICATE)


def upgrade(target: str, headers: Mapping[str, str] | None = None, *, without: str = "") -> bytes:
    """The head of a request for a WebSocket; `without` leaves a header out, `headers` replace and add."""
    all_headers = {
        "Host": "replica",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        **(headers or {}),
    }
    all_headers.pop(without, None)
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Client:
    """A viewer. It answers nothing by itself but a close."""

    def __init__(self, stream: trio.abc.Stream, returned: trio.Event) -> None:
        self.stream = stream
        self.returned = returned
        """The server has let go of the connection."""
        self.answer: h11.Response | h11.InformationalResponse | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._frames = Connection(ConnectionType.CLIENT)
        self._events: list[Event] = []
        self._text = ""

    async def send(self, data: bytes) -> None:
        """Any bytes."""
        await self.stream.send_all(data)

    async def ask(self, target: str, headers: Mapping[str, str] | None = None) -> None:
        """Ask for a WebSocket."""
        self._http.send(
            h11.Request(
                method="GET",
                target=target,
                headers=[("Host", "x"), ("Connection", "Upgrade"), ("Upgrade", "websocket")],
            )
        )
        self._http.send(h11.EndOfMessage())
        await self.send(upgrade(target, headers))

    async def opened(self) -> bool:
        """Whether the upgrade was accepted."""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self.receive())
            elif isinstance(event, h11.InformationalResponse | h11.Response):
                self.answer = event
                if event.status_code == 101:
                    self._frames.receive_data(self._http.trailing_data[0])
                    self._events += self._frames.events()
                return event.status_code == 101

    async def denied(self) -> tuple[int, dict[str, Any]]:
        """The status and the problem with which the upgrade was refused."""
        assert not await self.opened()
        assert isinstance(self.answer, h11.Response)
        body = b""
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                self._http.receive_data(await self.receive())
            elif isinstance(event, h11.Data):
                body += event.data
        assert dict(self.answer.headers)[b"content-type"] == b"application/problem+json"
        return self.answer.status_code, json.loads(body)

    async def receive(self) -> bytes:
        """Some bytes; none at the end."""
        try:
            return bytes(await self.stream.receive_some(1 << 16))
        except trio.BrokenResourceError:
            return b""

    async def rest(self) -> bytes:
        """All that still comes."""
        data = b""
        while more := await self.receive():
            data += more
        return data

    async def event(self) -> Event:
        """The next event of the protocol."""
        while not self._events:
            data = await self.receive()
            if not data:
                raise EOFError
            self._frames.receive_data(data)
            self._events += self._frames.events()
        return self._events.pop(0)

    async def frame(self) -> list[dict[str, Any]]:
        """The next text message."""
        while True:
            event = await self.event()
            assert isinstance(event, TextMessage), event
            self._text += event.data
            if event.message_finished:
                events: list[dict[str, Any]] = json.loads(self._text)
                self._text = ""
                return events

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """All events up to the first of that type."""
        events: list[dict[str, Any]] = []
        while not any(event["type"] == kind for event in events):
            events += await self.frame()
        return events

    async def closed(self) -> tuple[int, str]:
        """The close code and its reason; it is answered, as a peer does."""
        while True:
            event = await self.event()
            if isinstance(event, CloseConnection):
                await self.send(self._frames.send(event.response()))
                assert await self.rest() == b""
                return int(event.code), event.reason or ""

    async def pong(self) -> bytes:
        """The payload of the next frame, which is a pong."""
        event = await self.event()
        assert isinstance(event, Pong), event
        return bytes(event.payload)

    async def say(self, text: str) -> None:
        """A text frame."""
        await self.send(self.frame_of(TextMessage(text)))

    def frame_of(self, event: Message[Any] | Ping | Pong | BytesMessage | CloseConnection) -> bytes:
        """The frame of an event, as a client has it."""
        return Connection(ConnectionType.CLIENT).send(event)

    async def leave(self) -> None:
        """The peer is gone."""
        await trio.aclose_forcefully(self.stream)


def pair(*, buffer_bytes: int | None = None) -> tuple[trio.SocketStream, trio.SocketStream]:
    """The server's end and the viewer's. The server's takes so much that is not read."""
    ours, theirs = socket.socketpair()
    if buffer_bytes is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return tuple(trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (ours, theirs))  # type: ignore[return-value]


@asynccontextmanager
async def connect(viewers: Viewers, *, tls: bool = False, buffer_bytes: int | None = None) -> AsyncIterator[Client]:
    """A connection to the listener, nothing said yet."""
    ours, theirs = pair(buffer_bytes=buffer_bytes)
    returned = trio.Event()

    async def serve() -> None:
        await viewers.serve(ours)
        returned.set()

    stream: trio.abc.Stream = theirs
    if tls:
        stream = trio.SSLStream(theirs, client_context(), server_hostname="replica", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            yield Client(stream, returned)
        finally:
            await trio.aclose_forcefully(theirs)
            nursery.cancel_scope.cancel()
