"""Random histories by seed, many a second, and what is left of one that fails when all that it does not need is gone.

Hypothesis draws better histories (`strategies.py`) and shrinks them better; this explores faster, and for as long as
one likes. Must not know: what a cluster does with a history. Who calls: race tests, `pytest --thorough`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TypeAlias

import attrs

from .._protocol.chat import WhenBusy
from ._check_cluster import ClusterViolation
from ._history import (
    Break,
    Edit,
    History,
    HowBroken,
    HowOut,
    Mend,
    Operation,
    Outage,
    Promote,
    Send,
    SetBack,
    Silence,
    Slow,
    Step,
    Stop,
    Unplug,
    Unqueue,
    Watch,
)
from ._schedules import Schedule
from ._scripted_answers import AnswerPlan
from ._seams import SEAMS
from ._simulated_pubsub import HintFaults

Failure: TypeAlias = BaseException
_GAPS = (0.0, 0.0, 0.0, 0.0, 0.02, 0.02, 0.05, 0.05, 0.1, 0.1, 0.3, 0.3, 1.0, 3.0)
"""Between two operations, in seconds: most of them meet the same answer, some come after its end."""
_LONG_GAPS = (*_GAPS, 6.0, 15.0)
"""With faults: some last until a replica is found dead."""


_BREAKS: tuple[HowBroken, ...] = (
    "crash",
    "crash silently",
    "stop",
    "restart",
    "restart",
    "pause",
    "resume",
    "resume",
)
_OUTAGES: tuple[HowOut, ...] = ("fails", "hangs", "works", "works", "lose answer", "lose answer")


def random_history(
    seed: int, *, steps: int = 10, faults: bool = True, replicas: int = 2, viewers: int = 2, at_seams: float = 0.0
) -> History:
    """The history of that seed. Without `faults` nothing happens but what people do.

    `at_seams` is the share of operations that wait for a task of the engine to stand at a seam, and overtake it there.
    """
    draw = _Draw(seed, replicas, viewers, at_seams)
    return History(
        steps=tuple(draw.step(faults and draw.chance(0.5)) for _ in range(steps)),
        replicas=replicas,
        viewers=tuple(draw.below(replicas) for _ in range(viewers)),
        hints=draw.hints(),
        latency_seconds=draw.one_of((0.0, 0.0, 0.01, 0.04)),
        store_latency_seconds=draw.one_of((0.0, 0.0, 0.01, 0.04)),
        seed=seed,
    )


class _Draw:
    """What a history is made of."""

    def __init__(self, seed: int, replicas: int, viewers: int, at_seams: float) -> None:
        self._random = Random(seed)
        self._at_seams = at_seams
        self._replicas = replicas
        self._viewers = viewers

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def below(self, number: int) -> int:
        return self._random.randrange(number)

    def one_of(self, choices: tuple[float, ...]) -> float:
        return self._random.choice(choices)

    def hints(self) -> HintFaults | None:
        kind = self.below(8)
        if kind == 0:
            return None
        delivered = (0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0)[kind - 1]
        doubled = 1.0 if kind == 5 else 0.0
        return HintFaults(delivered=delivered, doubled=doubled, delay_seconds=(0.0, 0.3 if kind in (2, 6) else 0.0))

    def step(self, fault: bool) -> Step:
        return Step(
            after_seconds=self.one_of(_LONG_GAPS if fault else _GAPS),
            at=self._random.choice(SEAMS) if self._at_seams and self.chance(self._at_seams) else None,
            do=self._fault() if fault else self._command(),
        )

    def _command(self) -> Operation:
        replica, kind = self.below(self._replicas), self.below(10)
        if kind < 4:
            when_busy: WhenBusy = self._random.choice(("queue", "queue", "interrupt", "reject"))
            return Send(replica=replica, when_busy=when_busy, plan=self._plan())
        if kind < 6:
            return Stop(replica=replica, of_viewer=self._random.choice((None, 0, 1)))
        if kind == 6:
            return Edit(replica=replica, from_last=self.below(3), plan=self._plan())
        if kind == 7:
            return Promote(replica=replica, place=self.below(3))
        if kind == 8:
            return Unqueue(replica=replica, place=self.below(3))
        return Watch(viewer=self.below(self._viewers), replica=replica, events_back=self._random.choice((0, 0, 1, 5)))

    def _plan(self) -> AnswerPlan:
        return AnswerPlan(
            parts=self._random.choice((0, 1, 3, 3, 6)),
            pause_seconds=self.one_of((0.0, 0.02, 0.05, 0.05, 0.5)),
            failures=self._random.choice((0, 0, 0, 0, 1, 3)),
            breaks=self.chance(0.05),
            commits_after=self._random.choice((0, 0, 0, 1, 2)),
            unwind_seconds=self.one_of((0.0, 0.0, 0.0, 0.1, 7.0)),
        )

    def _fault(self) -> Operation:
        replica, other, kind = self.below(self._replicas), self.below(self._replicas), self.below(16)
        if kind < 5:
            return Break(replica=replica, how=self._random.choice(_BREAKS))
        if kind < 8:
            return Unplug(one=replica, other=other, how=self._random.choice(("partition", "drop", "half-open")))
        if kind == 8:
            return Mend()
        if kind < 13:
            return Outage(replica=replica, how=self._random.choice(_OUTAGES))
        if kind == 13:
            return Slow(viewer=self.below(self._viewers), seconds=self.one_of((0.01, 0.3, 2.0)))
        if kind == 14:
            return SetBack(operations=self.below(4))
        return Silence(down=self.chance(0.5))


# ------------------------------------------------------------------------------------------- shrinking


def shrink(
    history: History, schedule: Schedule, run: Callable[[History, Schedule], object], *, most_runs: int = 2000
) -> tuple[History, Schedule, ClusterViolation]:
    """What is left of a history and a schedule with which `run` raises `ClusterViolation`, when nothing more can go.

    Tries the simpler of the two first, and keeps what breaks the same invariant. Raises `ValueError` if they do not
    fail at all.
    """
    failed = _failure(run, history, schedule)
    if failed is None:
        raise ValueError("this history does not fail with this schedule")
    best = history, schedule, failed
    found = True
    while found and most_runs > 0:
        found = False
        for candidate in _simpler(best[0], best[1]):
            most_runs -= 1
            failed = _failure(run, *candidate)
            if failed is not None and failed.invariant == best[2].invariant:
                best, found = (*candidate, failed), True
                break
            if most_runs <= 0:
                break
    return best


def _failure(
    run: Callable[[History, Schedule], object], history: History, schedule: Schedule
) -> ClusterViolation | None:
    try:
        run(history, schedule)
    except ClusterViolation as violation:
        return violation
    return None


def _simpler(history: History, schedule: Schedule) -> Iterator[tuple[History, Schedule]]:
    """Histories and schedules that are a little simpler, the much simpler ones first."""
    if schedule != Schedule():
        yield history, Schedule()
    steps = history.steps
    for size in (len(steps) // 2, len(steps) // 4, 1):
        for start in range(0, len(steps), size) if size else ():
            yield attrs.evolve(history, steps=steps[:start] + steps[start + size :]), schedule
    if len(history.viewers) > 1:
        yield attrs.evolve(history, viewers=history.viewers[:-1]), schedule
        yield attrs.evolve(history, viewers=history.viewers[1:]), schedule
    for simpler in ({"hints": HintFaults()}, {"latency_seconds": 0.0}, {"replicas": history.replicas - 1}):
        if any((getattr(history, name) != value and value != 0) or value == 0.0 for name, value in simpler.items()):
            candidate = attrs.evolve(history, **simpler)
            if candidate != history and candidate.replicas > 0:
                yield candidate, schedule
    for index, step in enumerate(steps):
        for other in _plainer(step):
            yield attrs.evolve(history, steps=(*steps[:index], other, *steps[index + 1 :])), schedule
    yield from ((history, fewer) for fewer in _fewer(schedule))


def _plainer(step: Step) -> Iterator[Step]:
    if step.after_seconds:
        yield attrs.evolve(step, after_seconds=0.0)
    if step.at is not None:
        yield attrs.evolve(step, at=None)
    for field in attrs.fields(type(step.do)):
        value = getattr(step.do, field.name)
        if field.default is not attrs.NOTHING and value != field.default:
            yield attrs.evolve(step, do=attrs.evolve(step.do, **{field.name: field.default}))


def _fewer(schedule: Schedule) -> Iterator[Schedule]:
    deviations = schedule.deviations
    for size in (len(deviations) // 2, len(deviations) // 4, len(deviations) // 8, 1):
        for start in range(0, len(deviations), size) if size else ():
            gone = deviations[start : start + size]
            rest = deviations[start + size :]
            if rest:
                # What follows stays where it was.
                skipped = sum(skip + 1 for skip, _ in gone)
                rest = ((rest[0][0] + skipped, rest[0][1]), *rest[1:])
            yield Schedule(deviations[:start] + rest)
