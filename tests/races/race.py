"""The numbered races, and how one is run: in many orders of its tasks, and never without having really been raced.

A race is a test in the middle of which the engine stands at a seam, or somebody else (a dial, the store, a viewer) is
held by the test, while something else happens. Each runs under first in, first out and under nineteen other orders, and
counts, by the seams it names, that every one of these runs passed there.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import trio
from trio.testing import MockClock

from relaytrio.testing import (
    EXPLORING,
    Schedule,
    Scheduler,
    Seam,
    SimulatedCluster,
    open_simulated_cluster,
    scheduled,
    watch_seams,
)

ORDERS = 20
PATIENCE_SECONDS = 24 * 3600.0
"""Of virtual time: a race that has not ended by then hangs."""

RACES = {
    1: "a chat that runs elsewhere already when a viewer subscribes",
    2: "a first dial that fails or hangs",
    3: "a leg that is dropped, and dropped again",
    4: "something that hangs, and what must go on beside it",
    5: "interrupt and resend while the old worker is being dialed",
    6: "from worker to worker, and back",
    7: "the same worker again, with another episode",
    8: "the chat moves here",
    9: "leaving in the middle",
    10: "dials that fail in every way",
    11: "an answer that ends before its parts are there",
    12: "channels that close",
    13: "a peer that sends what it should not",
    14: "a commit between subscribe and read, and every cut of a stream",
    15: "a notifier that is not there, fails, drops, doubles, delays",
    16: "late joiners, slow viewers, identical parts",
    17: "parts before and after their time",
    18: "exceptions and cancellations at the boundary",
    19: "people against the run's transitions",
    20: "a run that lost its chat, and one that only lost an answer",
    21: "shutdown in the same instant as everything else",
    22: "deaths in the middle of an answer",
}

passes: Counter[int] = Counter()
"""How often each numbered race was passed in this process."""

Body: TypeAlias = Callable[..., Awaitable[None]]

_order: ContextVar[Scheduler] = ContextVar("_order")
"""The one that is in force."""


def race(number: int, *at: Seam) -> Callable[[Body], Callable[..., None]]:
    """Make a test of a numbered race: its body runs in `ORDERS` orders, each on a virtual clock of its own.

    The body gets the seams first, and then what pytest has for the other names of its parameters. Every run has to pass
    each seam in `at`, else the race was not run and the test fails.
    """
    assert number in RACES

    def decorate(body: Body) -> Callable[..., None]:
        @functools.wraps(body)
        def test(**arguments: Any) -> None:
            for seed in range(ORDERS):
                schedule = Schedule() if seed == 0 else Schedule.random(seed)
                _run(functools.partial(body, **arguments), schedule, at)
                passes[number] += 1

        del vars(test)["__wrapped__"]  # pytest would look for a fixture `seams`
        signature = inspect.signature(body)
        rest = list(signature.parameters.values())[1:]
        test.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
        return test

    return decorate


@asynccontextmanager
async def open_cluster(**options: Any) -> AsyncIterator[SimulatedCluster]:
    """A simulated cluster in the middle of a race: its tasks run in the order of that."""
    options = {"replicas": 2, "settings": EXPLORING, **options}
    async with open_simulated_cluster(schedule=_order.get(), **options) as cluster:
        yield cluster


def _run(body: Body, schedule: Schedule, at: tuple[Seam, ...]) -> None:
    async def main() -> None:
        with watch_seams() as seams, trio.fail_after(PATIENCE_SECONDS):
            await body(seams)
            for name in at:
                assert seams.passed[name] > 0, f"nobody passed {name!r}: this was no race"

    with scheduled(schedule) as order:
        _order.set(order)
        try:
            trio.run(main, clock=MockClock(autojump_threshold=0))
        except BaseException as error:
            error.add_note(f"with the tasks in the order of {schedule}")
            raise
