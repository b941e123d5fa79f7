"""The WebSocket between two replicas, over a stream of bytes: its handshake as a client, and its frames at either end.

What nearly every frame is, one whole message that is not masked, is cut out of what came and made by putting a header
before it: at a thousand tokens a second that is half of what a leg costs. All else (closes, pings, messages in pieces,
what a client masks) goes through wsproto, one frame at a time. There is no task here: who receives reads the stream.

Must not know: what the frames say. Who calls: the dialer, and the listener that serves peers.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final

import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.handshake import H11Handshake
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .._settings import Settings
from ._connection import PromptConnection
from ._receive_buffer import ReceiveBuffer
from ._stream_bytes import StreamBytes
from ._websocket import CLOSED_TOO_SOON, HandshakeFailed

FRAMES_PER_CHECKPOINT: Final = 64
"""Of frames that came together: a turn of the loop for each of them would be most of what a small one costs."""
HEAD_BYTES: Final = 16 * 1024
"""The most that the status and the headers of a peer's answer may have."""
PIECE_BYTES: Final = 64
"""What each piece of a message counts beside its content, but for one: an empty one takes memory too."""
VIEW_BYTES: Final = 4096
"""A larger binary frame is not copied before it is looked at: what it holds is copied then."""
TEXT: Final = 0x81
"""FIN, and the opcode of text."""
BINARY: Final = 0x82
_INTERIM: Final = re.compile(rb"HTTP/1\.[0-9] 1(?!01)[0-9]{2}\b")
"""An answer before the answer: a proxy may say 100 or 103 unasked (RFC 9110, section 15.2)."""
_MASKED: Final = 0x80
_ORDERLY: Final = (1000, 1001)
_LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class HandshakeRefused(HandshakeFailed):
    """The peer answered with an HTTP status that is no upgrade."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answered the handshake with HTTP {status}")
        self.status = status


async def open_as_client(
    stream: trio.abc.Stream, *, host: str, resource: str, headers: list[tuple[bytes, bytes]], settings: Settings
) -> StreamFrames:
    """Shake hands over a connected stream. Raises `HandshakeFailed`."""
    handshake = H11Handshake(ConnectionType.CLIENT)
    try:
        await stream.send_all(handshake.send(Request(host=host, target=resource, extra_headers=headers)))
        head, came = await _head(stream)
        while _INTERIM.match(head):
            head, came = await _head(stream, came)
    except _LOST:
        raise HandshakeFailed(CLOSED_TOO_SOON) from None
    _check_answer(handshake, head)
    return StreamFrames(stream, ConnectionType.CLIENT, settings, came)


async def _head(stream: trio.abc.Stream, already: bytes = b"") -> tuple[bytes, bytes]:
    """The next answer's status and headers, and what came behind them; `already` is what came before."""
    came = bytearray(already)
    while (end := came.find(b"\r\n\r\n")) < 0:
        if len(came) > HEAD_BYTES:
            raise HandshakeFailed(f"the head of its answer to the handshake is longer than {HEAD_BYTES} bytes")
        data = await stream.receive_some(HEAD_BYTES)
        if not data:
            raise HandshakeFailed(CLOSED_TOO_SOON)
        came += data
    return bytes(came[: end + 4]), bytes(came[end + 4 :])


def _check_answer(handshake: H11Handshake, head: bytes) -> None:
    try:
        handshake.receive_data(head)
        answer = next(handshake.events(), None)
    except (RemoteProtocolError, UnicodeError):
        answer = None
    if isinstance(answer, RejectConnection):
        raise HandshakeRefused(answer.status_code)
    if not isinstance(answer, AcceptConnection):
        raise HandshakeFailed("its answer is none to the handshake of a WebSocket")


class StreamFrames(PromptConnection):
    """A `FrameConnection` over a stream on which both ends have agreed to a WebSocket without extensions.

    `role` is this end's; `came` is what came behind the handshake.
    """

    def __init__(self, stream: trio.abc.Stream, role: ConnectionType, settings: Settings, came: bytes = b"") -> None:
        self._stream = stream
        self._bytes = StreamBytes(stream)
        self._is_client = role is ConnectionType.CLIENT
        self._protocol = Connection(role)
        self._limit_bytes = settings.leg_frame_bytes
        self._came = ReceiveBuffer(settings.leg_receive_buffer_bytes, came)
        self._head_size = self._size = 0
        """Of the frame that comes next: of what stands before its payload, and of all of it."""
        self._pieces: list[str | bytes] = []
        """Of a message that has not come to its end."""
        self._pieces_size = 0
        self._since_checkpoint = 0
        self._sending = trio.Lock()
        self._spoilt = False
        """Half a frame may have gone out."""
        self._rest = b""
        """Of a frame that did not go out at once: it goes before all others."""

    async def receive(self) -> str | bytes | memoryview:
        """See `FrameConnection`."""
        while True:
            # Counted here: pongs and pieces of messages come together too, and give nothing.
            self._since_checkpoint += 1
            if self._since_checkpoint >= FRAMES_PER_CHECKPOINT and self._has_frame():
                self._since_checkpoint = 0
                await trio.lowlevel.checkpoint()
            while not self._has_frame():
                self._since_checkpoint = 0
                count = await self._bytes.receive_into(self._came.space())
                if not count:
                    raise trio.BrokenResourceError("the WebSocket was lost")
                self._came.put(count)
            if self._is_plain():
                return self._cut_payload()
            message = await self._unusual(bytes(self._came.take(self._size)))
            if message is not None:
                return message

    async def send(self, frame: str | bytes) -> None:
        """See `FrameConnection`."""
        await self._send(self._framed(frame))

    @property
    def is_free(self) -> bool:
        """See `PromptConnection`."""
        return self._bytes.is_prompt and not self._rest and not self._spoilt and not self._sending.locked()

    def send_now(self, frame: str | bytes) -> bool:
        """See `PromptConnection`."""
        data = self._framed(frame)
        self._spoilt = True
        sent = self._bytes.send_now(data)
        self._spoilt = False
        self._rest = data[sent:]
        return not self._rest

    async def flush(self) -> None:
        """See `PromptConnection`."""
        await self._send(b"")

    async def aclose_forcefully(self) -> None:
        """See `FrameConnection`."""
        await trio.aclose_forcefully(self._stream)

    # ---------------------------------------------------------------------------------------- what comes

    def _has_frame(self) -> bool:
        """Whether the next frame is here to its end. Raises `trio.BrokenResourceError` if it is too large."""
        came = self._came
        data, begin, waiting = came.data, came.begin, came.end - came.begin
        if waiting < 2:
            return False
        size, head_size = data[begin + 1] & ~_MASKED, 2
        if size == 126:
            size, head_size = int.from_bytes(data[begin + 2 : begin + 4]), 4
        elif size == 127:
            size, head_size = int.from_bytes(data[begin + 2 : begin + 10]), 10
        head_size += 4 if data[begin + 1] & _MASKED else 0
        if size > self._limit_bytes and waiting >= head_size:
            raise trio.BrokenResourceError(f"the peer sent a frame of more than {self._limit_bytes} bytes")
        self._head_size, self._size = head_size, head_size + size
        return waiting >= self._size

    def _is_plain(self) -> bool:
        """A whole message as a server sends it. In the middle of another one it would be a fault."""
        data, begin = self._came.data, self._came.begin
        return self._is_client and not self._pieces and data[begin] in (TEXT, BINARY) and data[begin + 1] < _MASKED

    def _cut_payload(self) -> str | bytes | memoryview:
        came = self._came
        is_text = came.data[came.begin] == TEXT
        payload = came.take(self._size - self._head_size, self._head_size)
        if is_text:
            try:
                return str(payload, "utf-8")
            except UnicodeDecodeError:
                raise trio.BrokenResourceError("the peer sent a text that is no UTF-8") from None
        return payload if len(payload) > VIEW_BYTES else bytes(payload)

    async def _unusual(self, frame: bytes) -> str | bytes | None:
        """What any other frame brings: a message, if it is the end of one."""
        message = None
        for event in self._events(frame):
            if isinstance(event, Ping):
                await self._send(self._encoded(event.response()))
            elif isinstance(event, CloseConnection):
                await self._send(self._encoded(event.response()))
                if event.code in _ORDERLY:
                    raise trio.EndOfChannel
                raise trio.BrokenResourceError("the WebSocket was closed")
            elif isinstance(event, Message):
                message = self._joined(event)
        return message

    def _events(self, frame: bytes) -> list[Event]:
        try:
            self._protocol.receive_data(frame)
            return list(self._protocol.events())
        except RemoteProtocolError:
            raise trio.BrokenResourceError("the peer sent what is no WebSocket") from None

    def _joined(self, event: Message[Any]) -> str | bytes | None:
        self._pieces.append(event.data if isinstance(event.data, str) else bytes(event.data))
        self._pieces_size += len(event.data) + PIECE_BYTES
        if self._pieces_size - PIECE_BYTES > self._limit_bytes:
            raise trio.BrokenResourceError(f"the peer sent a message of more than {self._limit_bytes} bytes")
        if not event.message_finished:
            return None
        pieces, self._pieces, self._pieces_size = self._pieces, [], 0
        return type(pieces[0])().join(pieces)  # type: ignore[arg-type]  # all are of one kind

    # ------------------------------------------------------------------------------------------ what goes

    def _framed(self, frame: str | bytes) -> bytes:
        if self._is_client:
            return self._encoded(TextMessage(data=frame) if isinstance(frame, str) else BytesMessage(data=frame))
        opcode, payload = (TEXT, frame.encode()) if isinstance(frame, str) else (BINARY, frame)
        return message_header(opcode, len(payload)) + payload

    def _encoded(self, event: Event) -> bytes:
        try:
            return self._protocol.send(event)
        except LocalProtocolError:
            raise trio.BrokenResourceError("the WebSocket is closed") from None

    async def _send(self, data: bytes) -> None:
        # Nearly always free: an answer to a ping may be under way. To wait for it costs a turn of the loop, so it is
        # not waited for where nothing is.
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            if self._spoilt:
                raise trio.BrokenResourceError("the WebSocket is closed")
            rest, self._rest = self._rest, b""
            self._spoilt = True
            await self._bytes.send(rest + data)
            self._spoilt = False
        finally:
            self._sending.release()


def message_header(opcode: int, size: int) -> bytes:
    """What stands before so many bytes of a whole message in one frame that is not masked."""
    if size < 126:
        return struct.pack("!BB", opcode, size)
    if size < 1 << 16:
        return struct.pack("!BBH", opcode, 126, size)
    return struct.pack("!BBQ", opcode, 127, size)
