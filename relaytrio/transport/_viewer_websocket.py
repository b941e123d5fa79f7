"""A viewer over a WebSocket: text frames out, each a JSON array of events; in comes nothing but the heartbeat.

Must not know: what the events are, when a stream ends. Who calls: the stream route.
"""

from __future__ import annotations

import trio
from starlette.websockets import WebSocket

from .._frames import Frame
from .._protocol.wire import HEARTBEAT
from .._settings import Settings
from ._viewer import CLOSE_SECONDS, Ending
from ._viewer_says import judge

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
                return Ending.silent(self._settings)
            if message["type"] == "websocket.disconnect":
                return None
            ending = judge(message.get("text") or message.get("bytes") or "", self._settings)
            if ending is not None:
                return ending
