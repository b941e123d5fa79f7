"""A flag that one task waits on: set many times, noticed once; and one for several. What they announce lives elsewhere.

This is how tasks here hand over "look again" without a queue: whoever wakes looks at the whole state, synchronously,
so nothing can be missed between the look and the next wait.
"""

from __future__ import annotations

from collections.abc import Callable

import trio


class Wakeup:
    """One waiter at a time; `set` is synchronous and costs nothing when it is set already."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._waiter: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Wake the waiter, now or when it comes."""
        if self._set:
            return
        self._set = True
        if self._waiter is not None:
            trio.lowlevel.reschedule(self._waiter)
            self._waiter = None

    def clear(self) -> None:
        """Forget what was announced before now."""
        self._set = False

    async def wait(self) -> None:
        """Return when it was set since the last return. Always a checkpoint."""
        if self._set:
            await trio.lowlevel.checkpoint()
        elif self._waiter is not None:
            raise trio.BusyResourceError("another task is waiting for this wakeup")
        else:
            # No coroutine and no closure between: idle viewers are many, and each waits here twice.
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._set = False

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


class Announced(Wakeup):
    """Nobody waits for it: whoever is to look is told by a call, every time that it is set."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def set(self) -> None:
        """Tell."""
        self._tell()


class Flag:
    """Stays set until it is cleared; any number of tasks may wait. `set` and `clear` are synchronous."""

    def __init__(self) -> None:
        self._set = False
        self._waiters = trio.lowlevel.ParkingLot()

    def set(self) -> None:
        """Wake all who wait now, and let pass whoever comes before the next `clear`."""
        self._set = True
        self._waiters.unpark_all()

    def clear(self) -> None:
        """From now on who comes waits for the next `set`."""
        self._set = False

    async def wait(self) -> None:
        """Return when it is set. Always a checkpoint."""
        if self._set:
            await trio.lowlevel.checkpoint()
        else:
            await self._waiters.park()
