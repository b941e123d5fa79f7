"""A leg over a connection of frames: selects out, bursts and ends in.

One task reads and one writes; what they hand over goes through bounded channels, so that a wait for the next burst, or
for room to select, can be cancelled without losing anything. A reader that has to wait for its taker stops reading:
the peer then waits, and cuts us if that takes too long.

Must not know: how the connection came about (dialer.py), what the rows are for (the relay).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import trio

from .._dialer import DialRequest, LegEnd
from .._errors import LegLost
from .._protocol.burst import Burst
from .._protocol.events import Episode
from .._protocol.peer_wire import Control, Ended, Heartbeat, LegBurst, Select
from .._seams import seam
from .._settings import Settings
from ._connection import FrameConnection, Incoming, send_control, unless_idle
from ._tasks import ConnectionLost, run_until_lost

LEG = 1
"""The number of our leg: a connection of this dialer carries one."""
BURSTS_WAITING = 2
"""Received and not yet taken: one to work on while the next one comes."""
SELECTS_WAITING = 2


class WebSocketLeg:
    """A `Leg` that lasts until its dial's context is left or its connection is lost."""

    def __init__(self, request: DialRequest, make_grant: Callable[[], str], settings: Settings) -> None:
        self._request = request
        self._make_grant = make_grant
        self._settings = settings
        self._lost = ""
        self._to_taker, self._received = trio.open_memory_channel[Burst | LegEnd](BURSTS_WAITING)
        self._to_writer, self._selects = trio.open_memory_channel[Select](SELECTS_WAITING)

    async def select(self, episode: Episode, after_seq: int) -> None:
        """See `Leg`. Waits while the peer does not read; cancelled then, nothing was selected."""
        select = Select(LEG, self._request.chat_id, episode, after_seq, self._make_grant())
        try:
            await self._to_writer.send(select)
        except trio.BrokenResourceError:
            raise self._loss() from None

    def __aiter__(self) -> AsyncIterator[Burst | LegEnd]:
        return self

    async def __anext__(self) -> Burst | LegEnd:
        """Raises `LegLost` when all that had come before the connection was lost has been taken."""
        try:
            return await self._received.receive()
        except trio.EndOfChannel:
            raise self._loss() from None

    async def run(self, connection: FrameConnection) -> str:
        """Carry frames until the connection is lost; gives the reason."""
        incoming = Incoming(connection, self._settings)
        return await run_until_lost(
            partial(self._read, incoming), incoming.until_silent, partial(self._write, connection)
        )

    def lose(self, reason: str) -> None:
        """The connection is gone. What had been received can still be taken."""
        self._lost = reason
        self._to_taker.close()
        self._selects.close()

    def close(self) -> None:
        """The dial's context was left: use after it raises `trio.ClosedResourceError`."""
        self.lose("it was closed")
        self._received.close()
        self._to_writer.close()

    def _loss(self) -> LegLost:
        return LegLost(self._request.worker_id, f"the leg was lost: {self._lost}")

    async def _read(self, incoming: Incoming) -> None:
        while True:
            frame = await incoming.next()
            taken = _for_taker(frame)
            if taken is not None:
                if isinstance(taken, Burst):
                    await seam(
                        "rows came, not laid down", chat_id=self._request.chat_id, worker_id=self._request.worker_id
                    )
                await self._to_taker.send(taken)

    async def _write(self, connection: FrameConnection) -> None:
        while True:
            frame = await unless_idle(self._selects.receive, self._settings)
            await send_control(connection, frame, self._settings)


def _for_taker(frame: Control | None) -> Burst | LegEnd | None:
    """What a frame brings for our leg, if anything. Raises `ConnectionLost` for one that is not a peer's to send."""
    match frame:
        case LegBurst(leg, burst):
            return burst if leg == LEG else None
        case Ended(leg, episode, reason, last_seq, owner_id):
            return LegEnd(episode, reason, last_seq, owner_id) if leg == LEG else None
        case Heartbeat() | None:
            return None
    raise ConnectionLost("it sent a frame that is not its to send")
