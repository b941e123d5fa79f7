"""The order of tasks is the schedule's: repeatable, complete, and first in, first out where it says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from relaytrio.testing import Schedule, Scheduler, UnsupportedTrio, scheduled


def race(schedule: Schedule, *, tasks: int = 3, steps: int = 2) -> tuple[list[int], Scheduler]:
    """Who took a step when."""
    order: list[int] = []

    async def walk(number: int) -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(walk, number)

    with scheduled(schedule) as scheduler:
        trio.run(main)
    return order, scheduler


def test_without_a_deviation_it_is_first_in_first_out() -> None:
    """The simplest schedule is the one that a person expects."""
    order, scheduler = race(Schedule())
    assert [0, 1, 2, 0, 1, 2] == order
    assert Schedule() == scheduler.as_played()


def test_a_deviation_changes_one_instant_only() -> None:
    """First in, first out, except here."""
    choices = len(race(Schedule())[1].entries)
    orders = [race(Schedule(((skipped, 1),)))[0] for skipped in range(choices)]
    assert [1, 0, 2, 0, 1, 2] in orders
    assert [0, 1, 2, 1, 0, 2] in orders


def test_every_order_has_its_number() -> None:
    """Nothing that Trio could do is out of reach."""
    choices = len(race(Schedule(), steps=1)[1].entries)
    orders = {tuple(race(Schedule(((choices - 1, entry),)), steps=1)[0]) for entry in range(6)}
    assert 6 == len(orders)


def test_the_same_seed_gives_the_same_order() -> None:
    """A seed that was printed is enough to see it again; another seed is mostly another order."""
    orders = [tuple(race(Schedule.random(seed), tasks=5)[0]) for seed in range(50)]
    assert orders == [tuple(race(Schedule.random(seed), tasks=5)[0]) for seed in range(50)]
    assert len(set(orders)) > 40


def test_what_was_played_can_be_played_again() -> None:
    """A random order that fails becomes one that can be shrunk."""
    order, scheduler = race(Schedule.random(7), tasks=6, steps=5)
    assert order == race(scheduler.as_played(), tasks=6, steps=5)[0]
    assert scheduler.entries == race(scheduler.as_played(), tasks=6, steps=5)[1].entries


def test_trio_is_left_as_it_was() -> None:
    """A schedule reaches no further than its context, also when that fails."""
    module = trio._core._run
    before = module._r, module._ALLOW_DETERMINISTIC_SCHEDULING
    with pytest.raises(ZeroDivisionError), scheduled(Schedule()), scheduled(Schedule.random(1)):
        raise ZeroDivisionError
    assert before == (module._r, module._ALLOW_DETERMINISTIC_SCHEDULING)


@pytest.mark.parametrize("name", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING", "GLOBAL_RUN_CONTEXT"])
def test_a_trio_that_has_moved_its_parts_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a release of Trio that is built otherwise, nothing runs in a wrong order silently."""
    monkeypatch.delattr(trio._core._run, name)
    with pytest.raises(UnsupportedTrio, match=trio.__version__), scheduled(Schedule()):
        pass


async def test_a_frozen_task_stands_still_while_time_goes_on(autojump_clock: MockClock) -> None:
    """Like a stopped process: nothing below it runs, its timers pass meanwhile, and then it goes on with all of it."""
    seen: list[tuple[str, float]] = []
    roots: list[trio.lowlevel.Task] = []

    async def tick(name: str) -> None:
        for _ in range(3):
            await trio.sleep(1)
            seen.append((name, trio.current_time()))

    async def process() -> None:
        roots.append(trio.lowlevel.current_task())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick, "frozen")
            await trio.lowlevel.checkpoint()

    start = trio.current_time()
    with scheduled(Schedule()) as scheduler:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process)
            nursery.start_soon(tick, "free")
            await trio.sleep(1.5)
            scheduler.freeze(roots[0])
            await trio.sleep(10)
            scheduler.thaw(roots[0])
    assert [1.0, 2.0, 3.0] == times(seen, "free", start)
    assert [1.0, 11.5, 12.5] == times(seen, "frozen", start)


async def test_a_frozen_task_is_cancelled_when_it_thaws(autojump_clock: MockClock) -> None:
    """A context that ends thaws what it froze, so that nothing waits for ever."""
    ended: list[float] = []

    async def process() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    start = trio.current_time()
    with scheduled(Schedule()) as scheduler:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process)
            await trio.sleep(1)
            (task,) = nursery.child_tasks
            scheduler.freeze(task)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            assert [] == ended
            scheduler.thaw(task)
    assert [6.0] == [when - start for when in ended]


def times(seen: Sequence[tuple[str, float]], name: str, start: float) -> list[float]:
    return [when - start for who, when in seen if who == name]
