"""Flags that tasks wait on: set many times, noticed once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from relaytrio._wakeup import Flag, Wakeup


async def passes(wait: Callable[[], Awaitable[None]]) -> bool:
    """Whether the wait returns although nothing else happens."""
    returned = False

    async def run() -> None:
        nonlocal returned
        await wait()
        returned = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return returned


async def test_a_wakeup_that_was_set_before_is_noticed() -> None:
    """Nothing is missed between a look at the state and the wait."""
    wakeup = Wakeup()
    wakeup.set()
    with assert_checkpoints():
        await wakeup.wait()


async def test_a_wakeup_that_was_set_many_times_is_noticed_once() -> None:
    """However often it was set, the next wait but one waits."""
    wakeup = Wakeup()
    for _ in range(3):
        wakeup.set()
    await wakeup.wait()
    assert not await passes(wakeup.wait)


async def test_a_wakeup_wakes_the_task_that_waits() -> None:
    """Whoever waits goes on once for each time, and the state is clean after it."""
    wakeup = Wakeup()
    woken: list[int] = []

    async def wait() -> None:
        for number in range(3):
            await wakeup.wait()
            woken.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for count in range(3):
            await wait_all_tasks_blocked()
            assert woken == list(range(count))
            wakeup.set()
            wakeup.set()
    assert woken == [0, 1, 2]


async def test_a_cleared_wakeup_waits_for_the_next() -> None:
    """What was announced before `clear` wakes nobody."""
    wakeup = Wakeup()
    wakeup.set()
    wakeup.clear()
    assert not await passes(wakeup.wait)
    wakeup.set()
    await wakeup.wait()


async def test_a_wakeup_has_one_waiter() -> None:
    """A second task that waits is told, and the first goes on waiting."""
    wakeup = Wakeup()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakeup.wait)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await wakeup.wait()
        wakeup.set()


async def test_a_cancelled_waiter_leaves_nothing() -> None:
    """After a cancelled wait another task may wait, and a `set` is not lost on the one that has gone."""
    wakeup = Wakeup()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakeup.wait)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    wakeup.set()
    await wakeup.wait()


async def test_a_wait_that_is_cancelled_already_takes_nothing() -> None:
    """What was announced is still there for the next wait."""
    wakeup = Wakeup()
    wakeup.set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await wakeup.wait()
    assert scope.cancelled_caught
    await wakeup.wait()


async def test_a_wakeup_that_is_set_and_cancelled_at_once_returns() -> None:
    """The task that was woken has noticed it: its cancellation comes at the next checkpoint."""
    wakeup = Wakeup()
    returned = False

    async def wait() -> None:
        nonlocal returned
        await wakeup.wait()
        returned = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        wakeup.set()
        nursery.cancel_scope.cancel()
    assert returned


async def test_a_flag_wakes_all_who_wait() -> None:
    """Any number of tasks may wait for a flag."""
    flag = Flag()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(flag.wait)
        await wait_all_tasks_blocked()
        flag.set()


async def test_a_flag_stays_set_until_it_is_cleared() -> None:
    """Whoever comes while it is set passes, through a checkpoint; after `clear` they wait again."""
    flag = Flag()
    flag.set()
    for _ in range(2):
        with assert_checkpoints():
            await flag.wait()
    flag.clear()
    assert not await passes(flag.wait)


async def test_a_flag_that_is_cleared_at_once_has_woken_those_who_waited() -> None:
    """One waiter that clears the flag for itself takes nothing from another."""
    flag = Flag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flag.wait)
        await wait_all_tasks_blocked()
        flag.set()
        flag.clear()
