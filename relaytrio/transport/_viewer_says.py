"""What a viewer says over its WebSocket: the bytes that come in, and what is to be done about them.

A viewer says nothing but heartbeats, pings and its close; all else ends its stream. Payloads are not kept: a message
is counted and dropped, and no more than its first characters are looked at.

Nearly all that ever comes is one heartbeat, alone; a parser is made for the first thing that is not, so that an idle
viewer has none.

Pure. Must not know: sockets, when something was heard last. Who calls: the outlets; `judge` also the ASGI app's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

import attrs
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

from .._protocol.wire import HEARTBEAT
from .._settings import Settings
from ._server_frames import close_answer, pong_frame
from ._viewer import PROTOCOL_ERROR, TOO_LARGE, Ending

_HEARTBEAT: Final = HEARTBEAT.decode()
_TOO_LARGE: Final = Ending(TOO_LARGE, "a viewer sends heartbeats only")
_NO_HEARTBEAT: Final = Ending(PROTOCOL_ERROR, "invalid-frame: a viewer sends heartbeats only")
_NO_FRAME: Final = Ending(PROTOCOL_ERROR, "invalid-frame: this is not the WebSocket protocol")


@attrs.frozen
class Pinged:
    """It asks whether somebody is there; this says so."""

    answer: bytes


@attrs.frozen
class Left:
    """It ends the connection; this, sent back, is the last that is said."""

    answer: bytes


Said: TypeAlias = Literal["alive"] | Pinged | Left | Ending
"""`Ending`: it has done something that ends the stream."""


def judge(frame: str | bytes, settings: Settings) -> Ending | None:
    """What follows from a whole message, or from as much of it as is too large already; None: it lives."""
    if len(frame) > settings.client_frame_bytes:
        return _TOO_LARGE
    return None if frame == _HEARTBEAT else _NO_HEARTBEAT


class ViewerSays:
    """What comes in on one connection, after the upgrade."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parser: Connection | None = None
        self._begun = ""
        """The first characters of the text message that is not whole yet."""
        self._size = 0
        self._lost = False

    def take(self, data: bytes | bytearray) -> Iterator[Said]:
        """What these bytes say. After what is no frame nothing is understood any more."""
        if self._lost:
            return
        if self._parser is None:
            if _is_heartbeat(data):
                yield "alive"
                return
            self._parser = Connection(ConnectionType.SERVER)
        self._parser.receive_data(bytes(data))
        for event in self._parser.events():
            said = self._said(event, self._parser)
            if said is not None:
                yield said

    def _said(self, event: Event, parser: Connection) -> Said | None:
        match event:
            case Ping():
                return Pinged(pong_frame(bytes(event.payload)))
            case CloseConnection():
                # What it cannot parse it reports as a close that nobody sent.
                self._lost = parser.state is not ConnectionState.REMOTE_CLOSING
                return _NO_FRAME if self._lost else Left(close_answer(event.code))
            case TextMessage() | BytesMessage():
                return self._of_message(event)
        return "alive"  # a pong

    def _of_message(self, event: TextMessage | BytesMessage) -> Said | None:
        self._size += len(event.data)
        if self._size > self._settings.client_frame_bytes:
            return _TOO_LARGE
        self._begun += event.data[:3] if isinstance(event, TextMessage) else "?"
        self._begun = self._begun[:3]
        if not event.message_finished:
            return None
        said = judge(self._begun, self._settings)
        self._begun, self._size = "", 0
        return said or "alive"


def _is_heartbeat(data: bytes | bytearray) -> bool:
    """Whether this is one whole heartbeat and nothing else: a text frame of two masked bytes."""
    return (
        len(data) == 8
        and data[0] == 0x81
        and data[1] == 0x82
        and data[6] ^ data[2] == HEARTBEAT[0]
        and data[7] ^ data[3] == HEARTBEAT[1]
    )
