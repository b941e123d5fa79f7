"""What is to be sent on one connection of the parts endpoint: its legs, what each has selected, whose turn it is.

Synchronous: every method changes the whole state in one stretch; waiting, reading the store and sending are for
parts_endpoint.py. Rows come from logs made here only, never from copies: a relayed request is never relayed again.

A leg's selects form a short queue. Its first is served; a newer one replaces the last, unless the last one's log is
sealed here (then its rows and its end go out first) and is of another episode (the same one again is a step back to
rows that got lost). A leg without a select takes no room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

import trio

from .._parts import PartLog, PartLogs
from .._protocol.chat import Chat
from .._protocol.peer_wire import Bundle, Ended, EndReason, LegBurst, Select
from ._tasks import ConnectionLost

LEGS = 1024
"""On one connection, at least: selects of chats that are elsewhere take one too until the store has been read."""
LEGS_PER_RUN = 4
"""For each chat that a worker may run at once: a peer with one connection may follow all of them there, and of some the
episodes before, whose ends are on their way."""
SELECTS = 16
"""Of one leg, not yet served. They are made one after the other, as episodes come."""


class Selection:
    """One select, and how far it has been served."""

    def __init__(self, select: Select, parts: PartLogs) -> None:
        self.select = select
        self.lookup = trio.CancelScope()
        """Of the one read of the store for a log that is not here. Cancelled when the selection is over."""
        self.answer: Ended | None = None
        """What to say in place of rows."""
        self._parts = parts
        self._log: PartLog | None = None
        self._cursor = select.after_seq
        self._found = False
        self._watch = ExitStack()

    def watch(self, wake: Callable[[int], None]) -> None:
        """Call `wake`, with the leg, whenever there may be something to send, until the selection is closed."""
        leg = self.select.leg

        def look() -> None:
            self.log()
            wake(leg)

        self._watch.enter_context(self._parts.watching(self.select.chat_id, self.select.episode, look))

    def close(self) -> None:
        self._watch.close()
        self.lookup.cancel()

    def log(self) -> PartLog | None:
        """The selected log, if it is here and was made here."""
        log = self._log
        if log is None or log.forgotten:
            log = self._parts.find(self.select.chat_id, self.select.episode)
            self._log = log = log if log is not None and log.made_here else None
            self._found = self._found or log is not None
        return log

    def goes_out_first(self, newer: Select) -> bool:
        """Whether what was selected here is to be sent to its end before a newer select of the leg takes effect."""
        if self.answer is not None:
            return True
        log = self.log()
        return log is not None and log.sealed and newer.episode != self.select.episode

    def settle(self, reason: EndReason, owner_id: str | None = None) -> None:
        """There will be no rows, and this is why. Without effect once the log has been here."""
        if not self._found:
            self.answer = self._ended(reason, owner_id=owner_id)

    def next_frame(self, limit_bytes: int) -> LegBurst | Ended | None:
        """All that has come since the last frame, as far as it fits; or the end; None: there is nothing for now."""
        if self.answer is not None:
            return self.answer
        log = self.log()
        if log is None:
            # A log that was here and is gone had ended: it was forgotten before this leg had all of it.
            return self._ended("over") if self._found else None
        if self._cursor > log.last_seq:
            return self._ended("beyond", log.last_seq)
        burst = log.read(self._cursor, limit_bytes)
        if burst is not None:
            self._cursor = burst.last_seq
            return LegBurst(self.select.leg, burst)
        return self._ended("sealed", log.last_seq) if log.sealed else None

    @property
    def has_more(self) -> bool:
        """Whether `next_frame` would give something."""
        log = self.log()
        if self.answer is not None or log is None:
            return self.answer is not None or self._found
        return self._cursor != log.last_seq or log.sealed

    def _ended(self, reason: EndReason, last_seq: int | None = None, owner_id: str | None = None) -> Ended:
        last_seq = self._cursor if last_seq is None else last_seq
        return Ended(self.select.leg, self.select.episode, reason, last_seq, owner_id)


class Selections:
    """All selections of one connection. `wake` is called when there may be something to send; `wake_for_rows` when a
    selected log has changed, and everything here is in order: `next_frame` may be called at once.

    `runs` is how many chats may run here at once.
    """

    def __init__(
        self,
        parts: PartLogs,
        *,
        burst_bytes: int,
        runs: int,
        wake: Callable[[], None],
        wake_for_rows: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._limit = max(LEGS, LEGS_PER_RUN * runs)
        self._burst_bytes = burst_bytes
        self._wake = wake
        self._wake_for_rows = wake_for_rows
        self._legs: dict[int, deque[Selection]] = {}
        self._ready: dict[int, None] = {}
        """Legs that may have something to send, in the order of their turns."""
        self._bundles = False
        """The peer takes them."""
        self._end: Ended | None = None
        """Goes out next: it was found while bursts before it were put into a bundle."""

    def __len__(self) -> int:
        return len(self._legs)

    def add(self, select: Select) -> Selection:
        """Take a select whose grant is good. Raises `ConnectionLost` past the limits."""
        self._bundles = self._bundles or select.bundles
        queue = self._queue(select.leg)
        if queue and not queue[-1].goes_out_first(select):
            queue.pop().close()
        selection = self._new(select)
        queue.append(selection)
        selection.watch(self._mark_rows)
        self._check_length(queue)
        return selection

    def refuse(self, select: Select) -> None:
        """Answer a select whose grant is bad; nothing else changes. Raises `ConnectionLost` past the limits."""
        queue = self._queue(select.leg)
        selection = self._new(select)
        selection.settle("refused")
        queue.appendleft(selection)
        self._check_length(queue)

    def release(self, leg: int) -> None:
        """That leg wants nothing more."""
        for selection in self._legs.pop(leg, ()):
            selection.close()
        self._ready.pop(leg, None)

    def settle(self, selection: Selection, reason: EndReason, owner_id: str | None = None) -> None:
        """There will be no rows for that selection, unless its log has come meanwhile."""
        selection.settle(reason, owner_id)
        self._mark(selection.select.leg)

    def next_frame(self) -> LegBurst | Bundle | Ended | None:
        """The frame of the leg whose turn it is, with those of the next ones if they fit; None if there is nothing."""
        if self._end is not None:
            end, self._end = self._end, None
            return end
        first = self._next_of_a_leg(self._burst_bytes)
        if not self._bundles or not isinstance(first, LegBurst) or not self._ready:
            return first
        bursts = self._bundled_with(first)
        return Bundle(tuple(bursts)) if len(bursts) > 1 else first

    @property
    def has_more(self) -> bool:
        """Whether `next_frame` would give something."""
        while self._ready:
            queue = self._legs.get(next(iter(self._ready)))
            if queue and queue[0].has_more:
                return True
            del self._ready[next(iter(self._ready))]
        return self._end is not None

    def _bundled_with(self, first: LegBurst) -> list[LegBurst]:
        """This one and what follows it, up to the first end or as far as it fits."""
        bursts, left_bytes = [first], self._burst_bytes - len(first.burst.rows)
        # Where little room is left, a burst would be cut short for nothing: it is the next frame's first.
        while self._end is None and left_bytes > self._burst_bytes // 2:
            frame = self._next_of_a_leg(left_bytes)
            if isinstance(frame, LegBurst):
                bursts.append(frame)
                left_bytes -= len(frame.burst.rows)
            elif frame is None:
                break
            else:
                self._end = frame
        return bursts

    def _next_of_a_leg(self, limit_bytes: int) -> LegBurst | Ended | None:
        while self._ready:
            leg = next(iter(self._ready))
            del self._ready[leg]
            frame = self._take(leg, limit_bytes)
            if frame is not None:
                return frame
        return None

    def close(self) -> None:
        """Forget all legs."""
        for leg in list(self._legs):
            self.release(leg)

    def _take(self, leg: int, limit_bytes: int) -> LegBurst | Ended | None:
        queue = self._legs.get(leg)
        frame = queue[0].next_frame(limit_bytes) if queue else None
        if queue and isinstance(frame, Ended):
            queue.popleft().close()
        if not queue:
            self._legs.pop(leg, None)
        elif frame is not None and queue[0].has_more:
            self._ready[leg] = None
        return frame

    def _queue(self, leg: int) -> deque[Selection]:
        if leg not in self._legs and len(self._legs) >= self._limit:
            raise ConnectionLost(f"it has more than {self._limit} legs on one connection")
        return self._legs.setdefault(leg, deque())

    def _new(self, select: Select) -> Selection:
        self._mark(select.leg)
        return Selection(select, self._parts)

    def _check_length(self, queue: deque[Selection]) -> None:
        if len(queue) > SELECTS:
            raise ConnectionLost(f"it has selected more than {SELECTS} times without taking what it got")

    def _mark_rows(self, leg: int) -> None:
        self._ready.setdefault(leg)
        self._wake_for_rows()

    def _mark(self, leg: int) -> None:
        self._ready.setdefault(leg)
        self._wake()


def verdict(chat: Chat, select: Select, replica_id: str) -> tuple[EndReason, str | None] | None:
    """Why there will be no log of that episode here, with the chat's owner; None if it is worth waiting for."""
    if chat.worker_id != replica_id:
        return "not_owner", chat.worker_id
    current = (chat.history_version, chat.generation_attempt)
    if select.episode.run_id != chat.run_id or select.episode.numbers < current:
        return "over", None
    return None
