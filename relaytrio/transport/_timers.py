"""Things to be done at some time, for many connections, by one task: a heap, not a scope and a task for each.

Must not know: what is done. Who calls: the viewer listener, which owns `run`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import NoReturn

import trio

from .._wakeup import Wakeup


class Timer:
    """One thing that is to be done."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], None]) -> None:
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        """It is not to be done any more; what it would have been done for is let go. Twice is fine."""
        self.act = None


class Timers:
    """All of them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        """What was asked for first is done first."""
        self._earlier = Wakeup()

    def at(self, moment: float, act: Callable[[], None]) -> Timer:
        """Call `act`, which is synchronous and raises nothing, at that moment of Trio's time."""
        timer = Timer(act)
        heapq.heappush(self._heap, (moment, next(self._numbers), timer))
        if self._heap[0][2] is timer:
            self._earlier.set()
        return timer

    async def run(self) -> NoReturn:
        """Do them. A checkpoint before each look at the time."""
        while True:
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._earlier.wait()
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                act = heapq.heappop(self._heap)[2].act
                if act is not None:
                    act()
