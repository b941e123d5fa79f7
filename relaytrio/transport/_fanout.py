"""The fan-out: one task that gives every viewer of a listener what there is for it, without waiting for any of them.

A viewer, or a company of them, that has news says so (`add`); the task goes round. Each step takes what is next and
hands it to a socket, which takes it at once or does not; who does not take it is waited for elsewhere, by a task of
its own, so that it costs the others nothing. Between the responder and a socket there is no queue, no other task, and
nothing that is made for one viewer alone.

Must not know: sockets, what is sent. Who calls: the viewer listener, which owns `run`.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import Final, NoReturn, Protocol

import trio

from .._wakeup import Wakeup

STEPS_PER_CHECKPOINT: Final = 64
SECONDS_PER_CHECKPOINT: Final = 0.0005
"""Whichever comes first: so long the other tasks of the process wait at most."""
STEPS_PER_LOOK: Final = 32
"""Between two looks at the clock."""


class Fed(Protocol):
    """What the fan-out knows of those whom it serves."""

    def step(self, now: float, room: int) -> int:
        """Send what is next, if there is anything, in at most `room` steps; gives how many. Raises nothing."""


class FanOut:
    """The viewers that have news, and the task that goes round."""

    def __init__(self) -> None:
        self._due: deque[Fed] = deque()
        self._wakeup = Wakeup()

    def add(self, fed: Fed) -> None:
        """There is news for it. Whoever is in already is not to be added again."""
        self._due.append(fed)
        self._wakeup.set()

    async def run(self) -> NoReturn:
        """Go round whenever there is news."""
        while True:
            await self._wakeup.wait()
            while self._due:
                self._go_round()
                await trio.lowlevel.checkpoint()

    def _go_round(self) -> None:
        due, now, room = self._due, trio.current_time(), STEPS_PER_CHECKPOINT
        until = perf_counter() + SECONDS_PER_CHECKPOINT
        while due and room > 0 and perf_counter() < until:
            room -= due.popleft().step(now, min(room, STEPS_PER_LOOK))
