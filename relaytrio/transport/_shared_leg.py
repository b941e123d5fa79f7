"""The rows of one episode that several subscriptions follow, and the leg that each of them has.

Whoever waits takes the next burst, and lays it down before it lets others run: all of them extend the same copy. An end
goes to all, after the bursts before it. Synchronous, but for what the relay awaits. Must not know: connections, grants.
Who calls: the pool (`put`, `lose`), relays (`select`, and iterating).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

import trio

from .._dialer import DialRequest, LegEnd
from .._errors import LegLost
from .._protocol.burst import SEPARATOR, Burst
from .._protocol.events import Episode
from .._wakeup import Wakeup

WAITING_BYTES = 4 * 1024 * 1024
"""Of one episode, received and not taken. Whoever takes waits for nobody, so there is a fault where so much waits: that
episode is given up and selected anew, and no other chat is held up by it."""
JOINED_BYTES = 64 * 1024
"""Bursts that wait together are taken as one of at most so many bytes."""
FORMER_EPISODES = 4
"""That one leg still takes what is on its way of, after it has selected others."""


class Peer(Protocol):
    """What this file knows of the connection. All methods are synchronous."""

    worker_id: str
    lost: str | None
    """Why it is of no more use."""

    def stream(self, chat_id: str, episode: Episode, after_seq: int) -> Stream:
        """What brings the rows of that episode after `after_seq`: selected now, unless it brings them already."""

    def drop(self, stream: Stream, *, release: bool) -> None:
        """Nothing more comes of it, or of what comes nothing is wanted."""


class Stream:
    """The rows of one episode, on their way to all legs that want them."""

    def __init__(self, peer: Peer, number: int, chat_id: str, episode: Episode) -> None:
        self.number = number
        self.chat_id = chat_id
        self.episode = episode
        self.taken_seq = 0
        """The last row that was taken, or the one after which it was selected."""
        self._peer = peer
        self._legs: dict[SharedLeg, None] = {}
        self._not_told: set[SharedLeg] = set()
        """Legs that have not seen yet that rows come."""
        self._items: deque[Burst | LegEnd] = deque()
        self._size_bytes = 0

    def begin(self, after_seq: int) -> None:
        """It was selected after that row: what waits to be taken is of an earlier select."""
        self.taken_seq = after_seq
        self._items.clear()
        self._size_bytes = 0

    def join(self, leg: SharedLeg) -> None:
        """That leg takes of it too."""
        self._legs[leg] = None
        self._not_told.add(leg)

    def leave(self, leg: SharedLeg) -> None:
        """That leg takes nothing more; what it was woken for, another one takes."""
        self._not_told.discard(leg)
        if self._legs.pop(leg, "none") == "none":
            return
        if not self._legs:
            self._peer.drop(self, release=True)
        elif self._items:
            self._wake_one()

    def put(self, burst: Burst) -> None:
        """It came."""
        if not self._items and self._lay_down(burst):
            return
        self._items.append(burst)
        self._size_bytes += len(burst.rows)
        if self._size_bytes > WAITING_BYTES:
            self._peer.drop(self, release=True)
            self.lose("more of an episode has come than is taken")
        else:
            self._wake_one()

    def end(self, end: LegEnd) -> None:
        """It came, and nothing more will."""
        self._items.append(end)
        self._wake_one()

    def take(self, taker: SharedLeg) -> Burst | LegEnd | None:
        """What came first of what nobody has taken. Whoever takes it lays it down before it lets others run."""
        if not self._items:
            return None
        item = self._items.popleft()
        if isinstance(item, Burst):
            item = self._with_what_follows(item)
            self._size_bytes -= len(item.rows)
            self.taken_seq = max(self.taken_seq, item.last_seq)
            self._tell_others(item, taker)
        else:
            self._peer.drop(self, release=False)
            for leg in self._legs:
                leg.forget(self)
                if leg is not taker:
                    leg.tell(item)
        if self._items:
            self._wake_one()
        return item

    def _lay_down(self, burst: Burst) -> bool:
        """Whether a leg has taken it at once."""
        for leg in self._legs:
            if not leg.told and leg.lay_down is not None and leg.lay_down(burst):
                self.taken_seq = max(self.taken_seq, burst.last_seq)
                if self._not_told:
                    self._not_told.discard(leg)
                    self._tell_others(burst)
                return True
        return False

    def _tell_others(self, burst: Burst, taker: SharedLeg | None = None) -> None:
        """Each leg sees one, and so that it is healthy; its copy has the rows already when it comes to it."""
        told, self._not_told = self._not_told, set()
        for leg in self._legs:
            if leg in told and leg is not taker:
                leg.tell(burst)

    def _with_what_follows(self, first: Burst) -> Burst:
        """This burst, and those that waited behind it: many small ones cost as much as many large ones."""
        pieces, last_seq, left_bytes = [first.rows], first.last_seq, JOINED_BYTES - len(first.rows)
        while self._items:
            burst = self._items[0]
            if not isinstance(burst, Burst) or burst.first_seq != last_seq + 1 or len(burst.rows) >= left_bytes:
                break
            self._items.popleft()
            pieces.append(burst.rows)
            last_seq = burst.last_seq
            left_bytes -= len(burst.rows) + len(SEPARATOR)
            self._size_bytes += len(SEPARATOR)
        if len(pieces) == 1:
            return first
        count = last_seq + 1 - first.first_seq
        return Burst(first.episode, first.first_seq, count, SEPARATOR.join(pieces), first.truncated)

    def lose(self, reason: str) -> None:
        """There will be nothing more, and nobody knows what was missed."""
        for leg in self._legs:
            leg.lose(reason)

    def _wake_one(self) -> None:
        """One that waits; if none does, the next that comes sees it."""
        for leg in self._legs:
            if leg.waits:
                leg.wake()
                return


class SharedLeg:
    """A `Leg` of one subscription."""

    def __init__(self, peer: Peer, request: DialRequest) -> None:
        self.waits = False
        self.told: deque[Burst | LegEnd] = deque()
        """What others have taken, and comes to this one first."""
        self.lay_down = request.lay_down
        self._peer = peer
        self._request = request
        self._streams: dict[Stream, None] = {}
        self._lost: str | None = None
        self._news = Wakeup()

    # What the streams say; all synchronous.

    def wake(self) -> None:
        """There is something to take."""
        self._news.set()

    def tell(self, item: Burst | LegEnd) -> None:
        """Another leg has taken this."""
        self.told.append(item)
        self._news.set()

    def forget(self, stream: Stream) -> None:
        """It has ended."""
        self._streams.pop(stream, None)

    def lose(self, reason: str) -> None:
        """What has come can still be taken, and is the last."""
        self._lost = self._lost or reason
        self._news.set()

    def close(self) -> None:
        """The dial's context is left."""
        for stream in self._streams:
            stream.leave(self)
        self._streams.clear()
        self.told.clear()
        self.lose("it was closed")

    # What the relay does.

    async def select(self, episode: Episode, after_seq: int) -> None:
        """See `Leg`. What is on its way of the former episodes still comes, until each has ended."""
        await trio.lowlevel.checkpoint()
        self._check()
        stream = self._peer.stream(self._request.chat_id, episode, after_seq)
        if stream not in self._streams:
            self._leave_all_but(FORMER_EPISODES)
            self._streams[stream] = None
            stream.join(self)

    def __aiter__(self) -> AsyncIterator[Burst | LegEnd]:
        return self

    async def __anext__(self) -> Burst | LegEnd:
        """Raises `LegLost` when all that had come has been taken."""
        # First, not last: between taking and laying down nobody else may run.
        await trio.lowlevel.checkpoint()
        while (item := self._take()) is None:
            self._check()
            self.waits = True
            try:
                await self._news.wait()
            finally:
                self.waits = False
        return item

    def _take(self) -> Burst | LegEnd | None:
        if self.told:
            return self.told.popleft()
        for stream in self._streams:
            item = stream.take(self)
            if item is not None:
                return item
        return None

    def _leave_all_but(self, count: int) -> None:
        for stream in list(self._streams)[: max(0, len(self._streams) - count)]:
            del self._streams[stream]
            stream.leave(self)

    def _check(self) -> None:
        reason = self._lost or self._peer.lost
        if reason is not None:
            raise LegLost(self._peer.worker_id, f"the leg was lost: {reason}")
