"""Group commit: transactions that wait for their turn share one commit, and each still succeeds or fails alone.

Whoever comes while nothing is under way leads: it takes all that wait into one batch, has that run in a thread, and
hands the lead on. So a lone transaction costs what it did, and under load the cost of a commit (with
`synchronous=FULL` a flush to the disk) is shared by all that came during the last one.

A caller that is cancelled while it waits takes its work back, without an effect; one whose batch has begun waits for
its end and gets its result, and the cancellation comes with its next checkpoint.

Must not know: SQLite, what a transaction does. Who calls: `SqliteStore`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

MOST_WORKS = 128
"""In one batch: the first of them waits for the last."""
LONGEST_BATCH_SECONDS = 60.0
"""A thread cannot be cancelled: this only has to outlast the entry into it."""


class Work(Generic[T]):
    """One transaction, and what came of it."""

    def __init__(self, do: Callable[[], T]) -> None:
        self._do = do
        self._result: list[T] = []
        self._error: Exception | None = None
        self.leads = False
        """Its task is to lead the next batch."""
        self.woken = trio.Event()
        """It leads, or it has ended."""

    @property
    def failed(self) -> bool:
        """Whether it raised, or was failed."""
        return self._error is not None

    def attempt(self) -> None:
        """Do it; what it raises is kept for its caller. In the thread."""
        try:
            self._result = [self._do()]
        except Exception as error:
            self._error = error

    def fail(self, error: Exception) -> None:
        """It was taken back with all others, unless it had failed by itself: its caller gets an error of its own."""
        if self._error is None:
            self._error = type(error)(*error.args)
            self._error.__cause__ = error.__cause__

    def result(self) -> T:
        """What it gave. Raises what it raised."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # no cycle with the traceback
        return self._result[0]


class GroupCommit:
    """Runs works in batches, one batch at a time. `commit` gets a batch in a thread and attempts each of its works; it
    raises nothing: what concerns all of them is failed in each."""

    def __init__(self, commit: Callable[[Sequence[Work[object]]], None], limiter: trio.CapacityLimiter) -> None:
        self._commit = commit
        self._limiter = limiter
        self._waiting: deque[Work[object]] = deque()
        self._is_led = False

    async def run(self, do: Callable[[], T]) -> T:
        """Do it in the next batch, and give its result. Raises what it raises. A checkpoint."""
        work: Work[object] = Work(do)
        self._waiting.append(work)
        if not self._is_led:
            self._is_led = work.leads = True
        else:
            await self._until_woken(work)
        if work.leads:
            await self._lead(work)
        return work.result()  # type: ignore[return-value]

    async def _until_woken(self, work: Work[object]) -> None:
        try:
            await work.woken.wait()
        except trio.Cancelled:  # noqa: ASYNC103 - what has begun ends, and its caller gets what it gave
            if work in self._waiting:
                self._withdraw(work)
                raise
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LONGEST_BATCH_SECONDS):
                await work.woken.wait()

    async def _lead(self, work: Work[object]) -> None:
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            self._withdraw(work)
            raise
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_WORKS))]
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LONGEST_BATCH_SECONDS):
                await trio.to_thread.run_sync(self._commit, batch, limiter=self._limiter)
        finally:
            for done in batch:
                done.woken.set()
            self._hand_on()

    def _withdraw(self, work: Work[object]) -> None:
        """Its caller has gone before it was begun."""
        self._waiting.remove(work)
        if work.leads:
            self._hand_on()

    def _hand_on(self) -> None:
        """The lead goes to who has waited longest."""
        self._is_led = bool(self._waiting)
        if self._waiting:
            self._waiting[0].leads = True
            self._waiting[0].woken.set()
