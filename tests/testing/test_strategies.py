"""What the strategies draw, and what it shrinks to."""

from __future__ import annotations

from random import Random

import trio
from hypothesis import find, settings

from relaytrio.testing import Schedule, scheduled
from relaytrio.testing.strategies import schedules


def order_of_two(schedule: Schedule) -> list[str]:
    """In which order two tasks come to their third step."""
    order: list[str] = []

    async def come(name: str) -> None:
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        order.append(name)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come, "first")
            nursery.start_soon(come, "second")

    with scheduled(schedule):
        trio.run(main)
    return order


def test_a_schedule_shrinks_to_the_one_deviation_that_matters() -> None:
    """Those before it go, and what they stood for is passed over: "first in, first out except here"."""
    for seed in range(2):
        found = find(
            schedules(),
            lambda schedule: ["second", "first"] == order_of_two(schedule),
            settings=settings(database=None, max_examples=500),
            random=Random(seed),
        )
        assert 1 == len(found.deviations)
