"""Tasks in the background: what leaves when they, the body or the caller end."""

from __future__ import annotations

import pytest
import trio

from relaytrio.transport._tasks import ConnectionLost, TaskFailed, background, run_until_lost


async def fail() -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError


async def lose() -> None:
    await trio.lowlevel.checkpoint()
    raise ConnectionLost("it is gone")


async def test_tasks_end_with_the_body() -> None:
    """Leaving waits for nothing that they do."""
    async with background() as nursery:
        nursery.start_soon(trio.sleep_forever)


async def test_a_failed_task_cancels_the_body_and_nobody_else() -> None:
    """It leaves as one exception with its cause; no `Cancelled` gets out with it or in its place."""
    with pytest.raises(TaskFailed) as failed:
        async with background() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


async def test_a_failed_task_under_a_body_with_tasks_of_its_own() -> None:
    """The body is then cancelled inside a group, which is nothing that the body did."""
    with pytest.raises(TaskFailed):
        async with background() as outer:
            outer.start_soon(fail)
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever)
                inner.start_soon(trio.sleep_forever)


async def test_a_failed_task_while_connection_tasks_are_ending() -> None:
    """Both at once, in any order of the scheduler: a reason, or the failure; never a cancellation."""
    for _ in range(50):
        reached = ""
        try:
            async with background() as nursery:
                nursery.start_soon(fail)
                reached = await run_until_lost(lose, trio.sleep_forever)
        except TaskFailed:
            reached = reached or "failed"
        assert reached in ("it is gone", "failed")


async def test_what_the_body_raised_besides_a_failed_task_leaves_without_cancellations() -> None:
    """A group of the body keeps its own errors only."""

    async def clean_up_badly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    with pytest.raises(ExceptionGroup) as left:  # noqa: ASYNC401 - what is in it is looked at below
        async with background() as outer:
            outer.start_soon(fail)
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever)
                inner.start_soon(clean_up_badly)
    assert left.value.split(ValueError)[1] is None


async def test_the_bodys_error_leaves_as_it_was() -> None:
    """The same object, whatever the tasks do while they are cancelled."""
    error = KeyError()

    async def clean_up_badly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    with pytest.raises(KeyError) as left:
        async with background() as nursery:
            nursery.start_soon(clean_up_badly)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            raise error
    assert left.value is error


async def test_a_cancellation_from_outside_stays_one() -> None:
    """The scope that was cancelled catches it."""
    with trio.CancelScope() as scope:
        async with background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await run_until_lost(trio.sleep_forever, trio.sleep_forever)
    assert scope.cancelled_caught


async def test_a_cancellation_from_outside_and_a_failed_task() -> None:
    """Whichever comes first, no exception is lost in a group and nothing hangs."""
    with trio.CancelScope() as scope:
        with pytest.raises(TaskFailed):
            async with background() as nursery:
                nursery.start_soon(fail)
                try:
                    await trio.sleep_forever()
                finally:
                    scope.cancel()


async def test_the_first_to_lose_the_connection_ends_the_others() -> None:
    """And gives the reason."""
    assert await run_until_lost(trio.sleep_forever, lose) == "it is gone"


async def test_another_failure_of_a_connections_task_is_told_with_its_cause() -> None:
    """One exception of this package, not a group."""
    with pytest.raises(TaskFailed) as failed:
        await run_until_lost(trio.sleep_forever, fail)
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
