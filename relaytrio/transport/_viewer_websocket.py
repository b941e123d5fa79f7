"""A viewer over a WebSocket: text frames out, each a JSON array of events; in comes nothing but the heartbeat.

Must not know: what the events are, when a stream ends. Who calls: the stream route.
"""

from __future__ import annotations

import trio
from starlette.websockets import WebSocket

from .._protocol.wire import HEARTBEAT
from .._settings import Settings
from .._subscription import Frame
from ._viewer import GOING_AWAY, PROTOCOL_ERROR, TOO_LARGE, Ending

CLOSE_SECONDS = 2.0
"""How long a viewer may take to answer a close. A server that drops the connection before may destroy, with what is
still unread here, the code that it has just sent."""
_HEARTBEAT = HEARTBEAT.decode()


class WebSocketOutlet:
    """An `Outlet` over a WebSocket that is not yet accepted."""

    def __init__(self, websocket: WebSocket, settings: Settings) -> None:
        self._websocket = websocket
        self._settings = settings

    async def open(self) -> None:
        """See `Outlet`."""
        await self._websocket.accept()

    async def send(self, frame: Frame) -> None:
        """See `Outlet`."""
        await self._websocket.send({"type": "websocket.send", "text": frame.data.decode()})

    async def send_heartbeat(self) -> None:
        """See `Outlet`."""
        await self._websocket.send({"type": "websocket.send", "text": _HEARTBEAT})

    async def finish(self, ending: Ending) -> None:
        """See `Outlet`. Waits for the viewer's answer, for a bounded time."""
        await self._websocket.close(ending.code, ending.reason)
        with trio.move_on_after(CLOSE_SECONDS):
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass

    async def receive(self) -> Ending | None:
        """See `Outlet`. A viewer that is silent for `silence_seconds` is dead, or does not keep the protocol."""
        while True:
            with trio.move_on_after(self._settings.silence_seconds) as silence:
                message = await self._websocket.receive()
            if silence.cancelled_caught:
                return Ending(GOING_AWAY, f"no heartbeat for {self._settings.silence_seconds:g} s")
            if message["type"] == "websocket.disconnect":
                return None
            frame = message.get("text") or message.get("bytes") or ""
            if len(frame) > self._settings.client_frame_bytes:
                return Ending(TOO_LARGE, "a viewer sends heartbeats only")
            if frame != _HEARTBEAT:
                return Ending(PROTOCOL_ERROR, "invalid-frame: a viewer sends heartbeats only")
