"""A connection between two replicas: frames both ways, and the rules by which it is given up.

Both ends keep the same rules. One task writes and one reads, side by side. A send that takes too long, or is cancelled,
has corrupted the stream: the connection is closed and never written to again. An idle connection carries a heartbeat;
one that was silent for too long is dead, and so is one that brings what is no frame.

Must not know: legs, logs, WebSockets. Who calls: the dialer's legs, the parts endpoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from .._errors import WireError
from .._protocol.peer_wire import Control, Heartbeat, decode_control, encode_control
from .._settings import Settings
from ._tasks import ConnectionLost

_T = TypeVar("_T")


class FrameConnection(Protocol):
    """What carries the frames: a WebSocket, seen from either end. One task receives, one sends."""

    async def receive(self) -> str | bytes:
        """The next whole frame. A checkpoint when it waits; of frames that came together, at least every 64.

        Raises `trio.EndOfChannel` when the peer has closed the connection, `trio.BrokenResourceError` when it was lost.
        """

    async def send(self, frame: str | bytes) -> None:
        """Send one frame: text for `str`, binary for `bytes`. Waits while the peer does not read. A checkpoint.

        Raises `trio.BrokenResourceError` when the connection is lost. If it is cancelled, half a frame may have gone
        out: all that may follow is `aclose_forcefully`.
        """

    async def aclose_forcefully(self) -> None:
        """Close at once: no closing handshake, no waiting for the peer, not even when cancelled. Twice is fine."""


async def receive_control(connection: FrameConnection, settings: Settings) -> Control | None:
    """The next frame; None if it is of a type unknown here. Raises `ConnectionLost`."""
    try:
        # Not `fail_after`: a scope by itself costs half as much, and this is done for every frame.
        with trio.move_on_after(settings.silence_seconds):
            return decode_control(await connection.receive(), limit_bytes=settings.leg_frame_bytes)
    except WireError as error:
        reason = f"it sent what is no frame: {error}"
    except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
        reason = "the connection was closed"
    else:
        reason = f"nothing was heard from it for {settings.silence_seconds:g} s"
    raise ConnectionLost(reason)


async def send_control(connection: FrameConnection, frame: Control, settings: Settings) -> None:
    """Send one frame. Raises `ConnectionLost`; after that, or when it was cancelled, nothing may be sent any more."""
    try:
        with trio.move_on_after(settings.stalled_send_seconds):
            return await connection.send(encode_control(frame))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        reason = "the connection was closed"
    else:
        reason = f"it has taken nothing for {settings.stalled_send_seconds:g} s"
    raise ConnectionLost(reason)


async def unless_idle(wait: Callable[[], Awaitable[_T]], settings: Settings) -> _T | Heartbeat:
    """What `wait` gives, or a heartbeat to send if that takes too long. Cancelling `wait` must lose nothing."""
    with trio.move_on_after(settings.application_heartbeat_seconds):
        return await wait()
    return Heartbeat()
