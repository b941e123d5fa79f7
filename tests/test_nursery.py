"""A nursery of the engine's in the middle of which somebody else's code runs."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from relaytrio._errors import EngineFailed
from relaytrio._nursery import BodyNursery


def failed() -> EngineFailed:
    return EngineFailed("replica x failed")


async def fail() -> None:
    raise ZeroDivisionError


async def test_tasks_end_with_the_body(autojump_clock: MockClock) -> None:
    """Leaving is prompt."""
    async with BodyNursery(failed) as nursery:
        nursery.start_soon(trio.sleep_forever)


async def test_the_bodys_exception_leaves_as_it_is(autojump_clock: MockClock) -> None:
    """The very same, and with its own context."""
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with BodyNursery(failed) as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error
    assert error is caught.value
    assert error.__context__ is None


async def test_the_bodys_group_leaves_as_it_is(autojump_clock: MockClock) -> None:
    """A group of the body's own is not wrapped in another."""
    group = ExceptionGroup("mine", [ValueError(1), KeyError(2)])
    with pytest.RaisesGroup(ValueError, KeyError) as caught:
        async with BodyNursery(failed):
            raise group
    assert group is caught.value


async def test_a_failed_task_leaves_as_one_exception_with_its_cause(autojump_clock: MockClock) -> None:
    """The body is cancelled for it."""
    with pytest.raises(EngineFailed) as caught:
        async with BodyNursery(failed) as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_a_failure_below_nurseries_of_a_task_is_the_cause_itself(autojump_clock: MockClock) -> None:
    """What the engine's own tasks run in wraps their failure: who is told of one is told of that one."""

    async def fail_below() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    with pytest.raises(EngineFailed) as caught:
        async with BodyNursery(failed) as nursery:
            nursery.start_soon(fail_below)
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_the_bodys_own_exception_wins_over_a_failed_task(autojump_clock: MockClock) -> None:
    """What the body raised while it was being cancelled is the body's business."""
    with pytest.raises(ValueError, match="cleanup"):
        async with BodyNursery(failed) as nursery:
            nursery.start_soon(fail)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("cleanup")


async def test_what_is_the_bodys_is_told_apart_from_the_cancellation(autojump_clock: MockClock) -> None:
    """A body that ends in a group of its own error and our cancellation keeps its error only."""
    with pytest.RaisesGroup(ValueError):
        async with BodyNursery(failed) as nursery:
            nursery.start_soon(fail)
            async with trio.open_nursery() as own:
                own.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError("cleanup")


async def test_the_callers_cancellation_passes_through(autojump_clock: MockClock) -> None:
    """It is neither swallowed nor converted."""
    with trio.move_on_after(1) as scope:
        async with BodyNursery(failed) as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught
