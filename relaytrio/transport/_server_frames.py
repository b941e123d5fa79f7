"""WebSocket frames from a server to a viewer. They are unmasked: the same bytes for every viewer, made once.

Text frames are a header and the events, made here; what is rare (close, pong) is made by wsproto. There are no
extensions: permessage-deflate would make the bytes each viewer's own.

Pure. Must not know: when something is sent. Who calls: the outlets of the viewer listener.
"""

from __future__ import annotations

from typing import Final

from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Pong

from .._frames import Taken, framed
from .._protocol import wire
from .._protocol.burst import Burst
from ._stream_frames import TEXT, message_header
from ._viewer import Ending

_SHARED: Final = 32
"""Bursts whose frames are kept. Those who read a log together ask for the same one, one after the other."""


def text_frame(payload: bytes) -> bytes:
    """One whole text message."""
    return message_header(TEXT, len(payload)) + payload


def rows_frame(burst: Burst) -> bytes:
    """The text message of a burst: its rows, as they are in the log, in brackets."""
    return b"%b[%b]" % (message_header(TEXT, len(burst.rows) + 2), burst.rows)


def close_frame(ending: Ending) -> bytes:
    """The close that says why."""
    return Connection(ConnectionType.SERVER).send(CloseConnection(code=ending.code, reason=ending.reason or None))


def close_answer(code: int) -> bytes:
    """The close that answers a viewer's."""
    return Connection(ConnectionType.SERVER).send(CloseConnection(code=code))


def pong_frame(payload: bytes) -> bytes:
    """What answers a ping."""
    return Connection(ConnectionType.SERVER).send(Pong(payload=payload))


HEARTBEAT_FRAME: Final = text_frame(wire.HEARTBEAT)


class SharedFrames:
    """The frames of bursts, each made once for all viewers who take that burst."""

    def __init__(self, burst_bytes: int) -> None:
        self._burst_bytes = burst_bytes
        self._last: Burst | None = None
        self._last_frame = b""
        self._known: dict[int, tuple[Burst, bytes]] = {}
        """By identity; the burst is held, so that no other one can have its id."""

    def of(self, taken: Taken) -> bytes:
        """What to send: one frame, or several that are not shared, one behind the other."""
        if taken is self._last:
            return self._last_frame
        if not isinstance(taken, Burst):
            return b"".join(text_frame(frame.data) for frame in framed(taken, self._burst_bytes))
        self._last, self._last_frame = taken, self._made(taken)
        return self._last_frame

    def _made(self, burst: Burst) -> bytes:
        known = self._known.get(id(burst))
        if known is not None:
            return known[1]
        frame = rows_frame(burst)
        if len(self._known) >= _SHARED:
            del self._known[next(iter(self._known))]
        self._known[id(burst)] = (burst, frame)
        return frame
