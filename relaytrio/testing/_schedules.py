"""The order in which Trio runs tasks that could run at the same time, in the hands of a test.

Trio shuffles the tasks that are runnable at one instant. A `Schedule` takes that choice over, so that the same schedule
gives the same run, event by event, and a failing order can be shrunk to "first in, first out, except here". First in is
the task that was started first, not the one that was woken first: tasks that are cancelled together are woken in the
order of their addresses in memory, which no seed repeats.

The same seat allows to stop a part of the program, as the operating system stops a process: its tasks are not run,
while time goes on for all others.

This is the one place that touches Trio's private parts. Where a release of Trio has moved them, `UnsupportedTrio` says
so. Must not know: replicas, Hypothesis. Who calls: simulated clusters, race tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from types import ModuleType
from typing import Any, cast

import attrs
import trio
from trio.testing import MockClock

LONGEST_CODED = 12
"""Of more tasks at one instant, only the first so many places are shuffled: 12! is the last factorial in 32 bits."""
_FACTORIALS = [math.factorial(count) for count in range(LONGEST_CODED + 1)]


class UnsupportedTrio(RuntimeError):
    """This release of Trio does not let its order of tasks be chosen; nothing was changed."""


@attrs.frozen
class Schedule:
    """An order of tasks. `Schedule()` is first in, first out.

    An entry stands for one order of the tasks that are runnable at one instant: 0 is first in, first out, 1 lets the
    second task go first, and so on; every order of up to twelve tasks has its number.
    """

    deviations: tuple[tuple[int, int], ...] = ()
    """Pairs (skipped, entry): after so many choices first in, first out, one with that entry. After the last pair it is
    first in, first out again. Only instants with at least two tasks are choices."""
    seed: int | None = None
    """If given, the entries are drawn from it instead, for ever."""

    @classmethod
    def random(cls, seed: int) -> Schedule:
        """One that draws every order from this seed."""
        return cls(seed=seed)


class Scheduler(Random):
    """What Trio takes for its source of randomness while a schedule is in force."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(0)
        self.entries: list[int] = []
        """What was chosen so far."""
        self.steps = 0
        """How often Trio has run all tasks that were runnable at one instant."""
        self._to_come = _entries(schedule)
        self._frozen: dict[trio.lowlevel.Task, list[trio.lowlevel.Task]] = {}

    def shuffle(self, x: Any) -> None:
        """Trio asks for an order: `x` holds the runnable tasks, those that were started first at the beginning. It
        takes them from the end."""
        self.steps += 1
        if self._frozen:
            self._hold_back(x)
        if len(x) > 1:
            entry = next(self._to_come) % _FACTORIALS[min(len(x), LONGEST_CODED)]
            self.entries.append(entry)
            if entry:
                x[:] = _ordered(x, entry)
            x.reverse()

    def as_played(self) -> Schedule:
        """What was chosen so far, as a schedule that can be shrunk."""
        deviations, skipped = [], 0
        for entry in self.entries:
            if entry:
                deviations.append((skipped, entry))
                skipped = 0
            else:
                skipped += 1
        return Schedule(tuple(deviations))

    def freeze(self, root: trio.lowlevel.Task) -> None:
        """Do not run this task and what it has started, until it is thawed. Time goes on, and is found gone later."""
        self._frozen.setdefault(root, [])

    def thaw(self, root: trio.lowlevel.Task) -> None:
        """Run them again."""
        _run_module().GLOBAL_RUN_CONTEXT.runner.runq.extend(self._frozen.pop(root, ()))

    def _hold_back(self, batch: list[trio.lowlevel.Task]) -> None:
        running = []
        for task in batch:
            root = self._frozen_root(task)
            if root is None:
                running.append(task)
            else:
                self._frozen[root].append(task)
        batch[:] = running

    def _frozen_root(self, task: trio.lowlevel.Task) -> trio.lowlevel.Task | None:
        ancestor: trio.lowlevel.Task | None = task
        while ancestor is not None and ancestor not in self._frozen:
            ancestor = None if ancestor.parent_nursery is None else ancestor.parent_nursery.parent_task
        return ancestor


@contextmanager
def scheduled(schedule: Schedule) -> Iterator[Scheduler]:
    """Run tasks in this order for as long as the context lasts: around `trio.run`, or within it.

    Contexts may be nested; the innermost rules. Raises `UnsupportedTrio`.
    """
    module = _run_module()
    before = module._r, module._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler = Scheduler(schedule)
    module._r, module._ALLOW_DETERMINISTIC_SCHEDULING = scheduler, True
    try:
        yield scheduler
    finally:
        for root in tuple(scheduler._frozen):
            scheduler.thaw(root)
        module._r, module._ALLOW_DETERMINISTIC_SCHEDULING = before


def virtual_clock() -> MockClock:
    """A clock that jumps as soon as all tasks wait, as `MockClock(autojump_threshold=0)` does, but is cheap
    to read and to jump: a twentieth of what a simulation takes. Raises `UnsupportedTrio`."""
    module, clock = _run_module(), MockClock(autojump_threshold=0)
    if not hasattr(clock, "_virtual_base") or not hasattr(clock, "_autojump"):
        raise UnsupportedTrio(f"the clock for tests of trio {trio.__version__} is another one")

    def current_time() -> float:
        return float(clock._virtual_base)

    def autojump() -> None:
        deadline = module.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        if deadline < math.inf:
            clock._virtual_base = max(clock._virtual_base, deadline)

    shortcuts: Any = clock
    shortcuts.current_time, shortcuts._autojump = current_time, autojump
    return clock


def _entries(schedule: Schedule) -> Iterator[int]:
    if schedule.seed is not None:
        draw = Random(schedule.seed)
        while True:
            yield draw.getrandbits(32)
    for skipped, entry in schedule.deviations:
        for _ in range(skipped):
            yield 0
        yield entry
    while True:
        yield 0


def _ordered(batch: Sequence[trio.lowlevel.Task], entry: int) -> list[trio.lowlevel.Task]:
    """The order of that number: its digits, in the base of what is left to choose from, say who goes next."""
    left, order = list(batch), []
    while entry:
        entry, index = divmod(entry, len(left))
        order.append(left.pop(index))
    return order + left


def _run_module() -> Any:
    """Trio's scheduler. Raises `UnsupportedTrio` unless all is there that is used here."""
    core = getattr(trio, "_core", None)
    module = getattr(core, "_run", None)
    source = getattr(module, "_r", None)
    used = ("_ALLOW_DETERMINISTIC_SCHEDULING", "GLOBAL_RUN_CONTEXT")
    if isinstance(module, ModuleType) and isinstance(source, Random) and all(hasattr(module, name) for name in used):
        return cast("Any", module)
    raise UnsupportedTrio(
        f"trio {trio.__version__} keeps the order of its tasks elsewhere than the releases that this was written for"
    )
