"""A connection between two replicas: frames both ways, and the rules by which it is given up.

Both ends keep the same rules. One task writes and one reads, side by side. A send that takes too long, or is cancelled,
has corrupted the stream: the connection is closed and never written to again. An idle connection carries a heartbeat;
one that was silent for too long is dead, and so is one that brings what is no frame.

Must not know: legs, logs, WebSockets. Who calls: the dialer's legs, the parts endpoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn, Protocol, TypeVar

import trio

from .._errors import WireError
from .._protocol.peer_wire import Control, Heartbeat, decode_control, encode_control
from .._settings import Settings
from ._tasks import ConnectionLost

_T = TypeVar("_T")
_LOST = (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError)
_CLOSED = "the connection was closed"


class FrameConnection(Protocol):
    """What carries the frames: a WebSocket, seen from either end. One task receives, one sends."""

    async def receive(self) -> str | bytes | memoryview:
        """The next whole frame. A checkpoint when it waits; of frames that came together, at least every 64.

        A view, of a binary frame, holds until this is called again.

        Raises `trio.EndOfChannel` when the peer has closed the connection, `trio.BrokenResourceError` when it was lost.
        """

    async def send(self, frame: str | bytes) -> None:
        """Send one frame: text for `str`, binary for `bytes`. Waits while the peer does not read. A checkpoint.

        Raises `trio.BrokenResourceError` when the connection is lost. If it is cancelled, half a frame may have gone
        out: all that may follow is `aclose_forcefully`.
        """

    async def aclose_forcefully(self) -> None:
        """Close at once: no closing handshake, no waiting for the peer, not even when cancelled. Twice is fine."""


class PromptConnection:
    """A `FrameConnection` that can also send without waiting, in whatever step something comes to be sent."""

    @property
    def is_free(self) -> bool:
        """Whether nothing is under way: neither a task's send, nor the rest of an earlier frame."""
        raise NotImplementedError

    def send_now(self, frame: str | bytes) -> bool:
        """Send a frame on a connection that is free: True, and it is out. False: only some of it; see `flush`.

        Raises `trio.BrokenResourceError` when the connection is lost, `trio.ClosedResourceError` when it was closed; so
        does `flush` then.
        """
        raise NotImplementedError

    async def flush(self) -> None:
        """Send what `send_now` has left. Waits while the peer does not read. A checkpoint."""
        raise NotImplementedError


class Incoming:
    """What a peer sends: read by one task, while another one sees to it that it does not stay silent."""

    def __init__(self, connection: FrameConnection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._waits_since: float | None = None
        """In Trio's time; None: nobody waits for a frame."""

    async def next(self) -> Control | None:
        """The next frame; None if it is of a type unknown here. Raises `ConnectionLost`."""
        self._waits_since = trio.current_time()
        try:
            frame = await self._connection.receive()
            self._waits_since = None
            return decode_control(frame, limit_bytes=self._settings.leg_frame_bytes)
        except WireError as error:
            reason = f"it sent what is no frame: {error}"
        except _LOST:
            reason = _CLOSED
        raise ConnectionLost(reason)

    async def until_silent(self) -> NoReturn:
        """Raises `ConnectionLost` when a frame has been waited for too long.

        A deadline around each wait would do the same, at the price of a scope for every frame.
        """
        patience = self._settings.silence_seconds
        while True:
            since, now = self._waits_since, trio.current_time()
            if since is not None and since + patience <= now:
                # After a pause of the whole process a frame may be here, and its reader about to run.
                await trio.lowlevel.checkpoint()
                if self._waits_since == since:
                    raise ConnectionLost(f"nothing was heard from it for {patience:g} s")
                continue
            with trio.move_on_at((now if since is None else since) + patience):
                await trio.sleep_forever()


async def send_control(connection: FrameConnection, frame: Control, settings: Settings) -> None:
    """Send one frame. Raises `ConnectionLost`; after that, or when it was cancelled, nothing may be sent any more."""
    encoded = encode_control(frame)
    if not isinstance(connection, PromptConnection) or not connection.is_free:
        await _in_time(partial(connection.send, encoded), settings)
        return
    try:
        is_out = connection.send_now(encoded)
    except _LOST:
        raise ConnectionLost(_CLOSED) from None
    if is_out:
        await trio.lowlevel.checkpoint()
    else:
        await flush_control(connection, settings)


async def flush_control(connection: PromptConnection, settings: Settings) -> None:
    """Send what is left of a frame. Raises `ConnectionLost`."""
    await _in_time(connection.flush, settings)


async def _in_time(send: Callable[[], Awaitable[None]], settings: Settings) -> None:
    try:
        with trio.move_on_after(settings.stalled_send_seconds):
            return await send()
    except _LOST:
        reason = _CLOSED
    else:
        reason = f"it has taken nothing for {settings.stalled_send_seconds:g} s"
    raise ConnectionLost(reason)


async def unless_idle(wait: Callable[[], Awaitable[_T]], settings: Settings) -> _T | Heartbeat:
    """What `wait` gives, or a heartbeat to send if that takes too long. Cancelling `wait` must lose nothing."""
    with trio.move_on_after(settings.application_heartbeat_seconds):
        return await wait()
    return Heartbeat()
