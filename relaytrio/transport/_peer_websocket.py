"""The WebSocket of another replica, as the connection of frames that the parts endpoint serves.

Must not know: what the frames say. Who calls: the route of the parts endpoint.
"""

from __future__ import annotations

import trio
from starlette.websockets import WebSocket

LAST_WORD_SECONDS = 1.0


class PeerConnection:
    """A `FrameConnection` over an accepted ASGI WebSocket."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._over = False
        self._sending = False

    async def receive(self) -> str | bytes:
        """See `FrameConnection`."""
        if self._over:
            raise trio.EndOfChannel
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            self._over = True
            raise trio.EndOfChannel
        frame: str | bytes | None = message.get("text")
        return message["bytes"] if frame is None else frame

    async def send(self, frame: str | bytes) -> None:
        """See `FrameConnection`."""
        if self._over:
            raise trio.BrokenResourceError("the WebSocket is closed")
        # A server may take what is sent after the peer has left, at once and for ever.
        await trio.lowlevel.checkpoint()
        kind = "text" if isinstance(frame, str) else "bytes"
        self._sending = True
        await self._websocket.send({"type": "websocket.send", kind: frame})
        self._sending = False

    async def aclose_forcefully(self) -> None:
        """See `FrameConnection`. The server closes the socket when the route's handler returns, which follows."""
        self._over = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def say_going_away(self) -> None:
        """After the end: one last word, if the last frame went out whole."""
        if not self._sending:
            with trio.move_on_after(LAST_WORD_SECONDS):
                await self._websocket.close(1001)
