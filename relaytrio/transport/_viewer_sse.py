"""A viewer over server-sent events: one event per frame, its id the cursor; a comment as heartbeat.

Must not know: what the events are, when a stream ends. Who calls: the stream route.
"""

from __future__ import annotations

from starlette.types import Receive, Send

from .._frames import Frame
from ._viewer import DRAINING, Ending

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the stream until its buffer is full
]
_HEARTBEAT = b":\n\n"


class EventStreamOutlet:
    """An `Outlet` over an HTTP answer."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def open(self) -> None:
        """See `Outlet`."""
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await self._write(_HEARTBEAT)

    async def send(self, frame: Frame) -> None:
        """See `Outlet`."""
        await self._write(encode_event(frame))

    async def send_heartbeat(self) -> None:
        """See `Outlet`."""
        await self._write(_HEARTBEAT)

    async def finish(self, ending: Ending) -> None:
        """See `Outlet`. A browser comes back by itself; of all endings it can be told only when."""
        last = b"retry: %b\n\n" % ending.reason.encode() if ending.code == DRAINING else b""
        await self._write(last, more=False)

    async def receive(self) -> Ending | None:
        """See `Outlet`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass  # the rest of a body that nobody asked for
        return None

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def encode_event(frame: Frame) -> bytes:
    """One event: the frame as it is, a line of `data` for each of its lines, which the browser joins again."""
    return b"id: %b\ndata: %b\n\n" % (frame.cursor.encode(), frame.data.replace(b"\n", b"\ndata: "))
