"""One viewer's connection, whatever carries it: frames, heartbeats, and one way to end.

One task writes. It waits for the next frame, for the time of a heartbeat, or for an ending, and only that waiting is
ever cancelled, never a send: half a frame that went out would be the last thing that can be said. What ends the
connection (the chat was deleted, the replica is stopping, the viewer is silent) is laid down by `end`, and the writer
says it. When the viewer is gone there is nobody to say it to: everything is cancelled.

A send that takes longer than `stalled_send_seconds` ends it too. Some servers shield their sends: theirs ends when
the peer reads on, and then the viewer can be told, or when the system gives the connection up (`_serve.py`).

Must not know: WebSockets, SSE, HTTP. Who calls: the stream route, through an `Outlet`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import attrs
import trio

from .._errors import ChatDeleted, ReplicaDraining, SubscriptionFailed
from .._frames import Frame
from .._settings import Settings
from .._subscription import Subscription

DONE: Final = 1000
GOING_AWAY: Final = 1001
TOO_LARGE: Final = 1009
NOT_ALLOWED: Final = 4001
LAGGED: Final = 4003
DRAINING: Final = 4004
DELETED: Final = 4005
PROTOCOL_ERROR: Final = 4006

WAITING_SHARE: Final = 0.1
"""Of the time in which viewers of a draining replica leave: how long one is without any replica at most."""
CLOSE_SECONDS: Final = 2.0
"""How long a viewer may take to answer a close. A server that drops the connection before may destroy, with what is
still unread here, the code that it has just sent."""

_logger = logging.getLogger("relaytrio.http")


@attrs.frozen
class Ending:
    """Why the server ends a stream."""

    code: int
    """A WebSocket close code, one of the above."""
    reason: str = ""
    """Of `DRAINING`: the milliseconds to wait before connecting again. Otherwise for a person."""

    @classmethod
    def draining(cls, seconds: float) -> Ending:
        return cls(DRAINING, str(round(seconds * 1000)))

    @classmethod
    def silent(cls, settings: Settings) -> Ending:
        """Of one who is not heard: his socket only does not know that he is gone."""
        return cls(GOING_AWAY, f"no heartbeat for {settings.silence_seconds:g} s")

    @classmethod
    def of(cls, why: Exception) -> Ending:
        """What a viewer is told when its subscription ends."""
        match why:
            case ChatDeleted():
                return cls(DELETED, "the chat was deleted")
            case ReplicaDraining():
                return cls.draining(why.retry_after_seconds)
        return FAILED


FAILED: Final = Ending(GOING_AWAY, "the stream failed; connect again")


def leave(random: Callable[[], float], settings: Settings) -> tuple[float, Ending]:
    """How long a viewer of a draining replica stays, and what it is told then.

    Twice at random: neither do all leave at once, nor do those who left together come back together. It stays for most
    of that time, for meanwhile it still gets what is made, and waits for a little of it.
    """
    stays_seconds = random() * settings.drain_jitter_seconds
    return stays_seconds, Ending.draining(random() * settings.drain_jitter_seconds * WAITING_SHARE)


class Outlet(Protocol):
    """What carries a stream to its viewer. `send*` and `finish` are called by one task, `receive` by another."""

    async def open(self) -> None:
        """Say that the stream begins. What is to be refused was refused before."""

    async def send(self, frame: Frame) -> None:
        """Send a frame; waits while the viewer does not read."""

    async def send_heartbeat(self) -> None:
        """Send what says only that the connection lives."""

    async def finish(self, ending: Ending) -> None:
        """Say why the stream ends. Nothing is sent after it, and `receive` is not called any more."""

    async def receive(self) -> Ending | None:
        """Return when the viewer is gone (None), or has done something that ends the stream."""


class Viewer:
    """Serves one subscription to one outlet."""

    def __init__(
        self,
        outlet: Outlet,
        *,
        settings: Settings,
        drain_started: trio.Event,
        recheck: Callable[[], Awaitable[Ending]],
        random: Callable[[], float],
    ) -> None:
        self._outlet = outlet
        self._settings = settings
        self._drain_started = drain_started
        self._recheck = recheck
        self._random = random
        self._ending: Ending | None = None
        self._waiting = trio.CancelScope()
        self._sending = False
        """A frame is on its way, or went out by half: nothing can be said any more."""
        self._gone = False

    async def serve(self, subscription: Subscription) -> None:
        """Carry the stream until it ends or the viewer is gone.

        Enters the subscription, and lets out what it raises then: nothing was sent yet. After that raises nothing of
        this package's.
        """
        try:
            async with subscription:
                await self._outlet.open()
                await self._carry(subscription.frames())
        except SubscriptionFailed as failed:
            _logger.error("a stream failed", exc_info=failed)
            self.end(FAILED)
        ending = self._ending
        if ending is not None and not self._gone and not self._sending:
            await self._send(lambda: self._outlet.finish(ending))

    def end(self, ending: Ending) -> None:
        """The stream ends, for this reason or one that was given before. Synchronous."""
        self._ending = self._ending or ending
        self._waiting.cancel()

    async def _carry(self, frames: AsyncIterator[Frame]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, nursery.cancel_scope)
            nursery.start_soon(self._leave_when_draining)
            nursery.start_soon(self._leave_when_forbidden)
            await self._write(frames)
            nursery.cancel_scope.cancel()

    async def _receive(self, everything: trio.CancelScope) -> None:
        ending = await self._outlet.receive()
        if ending is None:
            self._gone = True
            everything.cancel()
        else:
            self.end(ending)

    async def _leave_when_draining(self) -> None:
        await self._drain_started.wait()
        stay_seconds, ending = leave(self._random, self._settings)
        await trio.sleep(stay_seconds)
        self.end(ending)

    async def _leave_when_forbidden(self) -> None:
        self.end(await self._recheck())

    async def _write(self, frames: AsyncIterator[Frame]) -> None:
        while self._ending is None:
            frame = await self._next(frames)
            if self._ending is not None:
                return
            whole = await self._send(self._outlet.send_heartbeat if frame is None else _sending(self._outlet, frame))
            if not whole:
                return
            # A server may take what is sent after the viewer has left, at once and for ever.
            await trio.lowlevel.checkpoint()

    async def _next(self, frames: AsyncIterator[Frame]) -> Frame | None:
        """The next frame; None when it is time for a heartbeat, or for an ending."""
        with trio.move_on_after(self._settings.application_heartbeat_seconds) as self._waiting:
            try:
                return await anext(frames)
            except (ChatDeleted, ReplicaDraining, SubscriptionFailed) as why:
                self.end(Ending.of(why))  # of a failure, leaving the subscription tells the cause
        return None

    async def _send(self, send: Callable[[], Awaitable[None]]) -> bool:
        """Whether it went out whole. What was late is told so; after half a frame nothing can be said."""
        self._sending = True
        with trio.move_on_after(self._settings.stalled_send_seconds) as patience:
            await send()
            self._sending = False
        if not self._sending and trio.current_time() >= patience.deadline:
            self.end(Ending(LAGGED, f"nothing was read for {self._settings.stalled_send_seconds:g} s"))
        return not self._sending


def _sending(outlet: Outlet, frame: Frame) -> Callable[[], Awaitable[None]]:
    return lambda: outlet.send(frame)
