"""A viewer's WebSocket over any stream of Trio's, TLS say: an `Outlet`, which sends a frame and waits until it is out.

Its frames are sent by one task and its pongs by another, so each send is made under a lock; one that was cancelled
has left half a frame, and nothing is sent after it.

Must not know: what the events are, when a stream ends. Who calls: the viewer listener.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from .._frames import Frame
from .._settings import Settings
from ._server_frames import HEARTBEAT_FRAME, close_frame, text_frame
from ._viewer import CLOSE_SECONDS, Ending
from ._viewer_says import Left, Pinged, ViewerSays

RECEIVE_BYTES = 4096


class StreamOutlet:
    """An `Outlet` over a stream on which the upgrade was asked for: `accept` grants it.

    It gives the bytes that do, and what the viewer said before.
    """

    def __init__(self, stream: trio.abc.Stream, accept: Callable[[], tuple[bytes, bytes]], settings: Settings) -> None:
        self._stream = stream
        self._accept = accept
        self._trailing = b""
        self._settings = settings
        self._says = ViewerSays(settings)
        self._sending = trio.Lock()
        self._half = False
        """A frame is on its way, or went out by half."""

    async def open(self) -> None:
        """See `Outlet`."""
        data, self._trailing = self._accept()
        await self._send(data)

    async def send(self, frame: Frame) -> None:
        """See `Outlet`."""
        await self._send(text_frame(frame.data))

    async def send_heartbeat(self) -> None:
        """See `Outlet`."""
        await self._send(HEARTBEAT_FRAME)

    async def finish(self, ending: Ending) -> None:
        """See `Outlet`. Waits for the viewer's answer, for a bounded time."""
        await self._send(close_frame(ending))
        with trio.move_on_after(CLOSE_SECONDS):
            left = self._half
            while not left:
                data = await self._receive()
                left = not data or any(isinstance(said, Left) for said in self._says.take(data))

    async def receive(self) -> Ending | None:
        """See `Outlet`. Pings are answered here."""
        data = self._trailing
        with trio.CancelScope() as silence:
            silence.deadline = trio.current_time() + self._settings.silence_seconds
            while True:
                for said in self._says.take(data) if data else ():
                    if isinstance(said, Ending):
                        return said
                    if isinstance(said, Left | Pinged):
                        await self._send(said.answer)
                    if isinstance(said, Left):
                        return None
                    silence.deadline = trio.current_time() + self._settings.silence_seconds
                data = await self._receive()
                if not data:
                    return None
        return Ending.silent(self._settings)

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            if self._half:
                return
            self._half = True
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the viewer is gone, as `receive` says
            self._half = False

    async def _receive(self) -> bytes:
        """What came; nothing when the viewer is gone."""
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""
