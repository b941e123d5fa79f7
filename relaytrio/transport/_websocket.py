"""A trio-websocket connection as a connection of frames, and the stream below its handshake.

Knows how that library fails. Its reader task raises what went wrong into the nursery it was given, and does not tell
whoever waits for the handshake that the stream has ended; a connection that it calls closed may still hold its socket.
So the stream is ours: `OpeningStream` raises when it ends too early, and closing is closing the stream.

Must not know: what the frames say. Who calls: the client, and whoever serves parts with trio-websocket.
"""

from __future__ import annotations

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.utilities import LocalProtocolError

ANSWER_BYTES = 64 * 1024
"""The most that a peer may send before the handshake is over: an answer that refuses may have a body."""
CLOSED_TOO_SOON = "the connection was closed during the handshake"


class WebSocketFrames:
    """A `FrameConnection` over a WebSocket of trio-websocket and the stream below it."""

    def __init__(self, connection: WebSocketConnection, stream: trio.abc.Stream) -> None:
        self._connection = connection
        self._stream = stream

    async def receive(self) -> str | bytes:
        """See `FrameConnection`."""
        try:
            return await self._connection.get_message()
        except ConnectionClosed as closed:
            if closed.reason is not None and closed.reason.code in (1000, 1001):
                raise trio.EndOfChannel from None
            raise trio.BrokenResourceError("the WebSocket was lost") from None

    async def send(self, frame: str | bytes) -> None:
        """See `FrameConnection`."""
        try:
            await self._connection.send_message(frame)
        except (ConnectionClosed, LocalProtocolError):
            raise trio.BrokenResourceError("the WebSocket is closed") from None

    async def aclose_forcefully(self) -> None:
        """See `FrameConnection`."""
        await trio.aclose_forcefully(self._stream)


class HandshakeFailed(Exception):
    """There will be no WebSocket; the text says why and holds nothing that the peer sent."""


class OpeningStream(trio.abc.Stream):
    """The stream below a handshake: until `open` is set, its end is an error, and it brings a limited number of bytes.

    The error is none that the library expects of a stream, so that it crashes its reader task and is noticed.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.open = False
        self._stream = stream
        self._received_bytes = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if self.open:
                raise
            raise HandshakeFailed(CLOSED_TOO_SOON) from None

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if self.open:
                raise
            raise HandshakeFailed(CLOSED_TOO_SOON) from None
        if not self.open:
            self._check_answer(data)
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _check_answer(self, data: bytes | bytearray) -> None:
        self._received_bytes += len(data)
        if not data:
            raise HandshakeFailed(CLOSED_TOO_SOON)
        if self._received_bytes > ANSWER_BYTES:
            raise HandshakeFailed(f"the answer to the handshake was longer than {ANSWER_BYTES} bytes")
