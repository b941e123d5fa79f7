"""A channel with one place."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._latest import Latest


async def test_the_newest_replaces_the_older(autojump_clock: MockClock) -> None:
    """A slow reader costs nothing."""
    channel = Latest[int]()
    for value in range(1000):
        channel.put(value)
    assert 999 == await channel.get()


async def test_a_waiting_reader_gets_the_next(autojump_clock: MockClock) -> None:
    """Put wakes the reader, from a synchronous function."""
    channel, got = Latest[int](), list[int]()

    async def read() -> None:
        got.append(await channel.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        channel.put(1)
    assert [1] == got


async def test_a_closed_channel_gives_what_it_has_and_ends(autojump_clock: MockClock) -> None:
    """Nothing can be put any more; the end is said again and again, at a checkpoint."""
    channel = Latest[int]()
    channel.put(1)
    channel.close()
    channel.put(2)
    assert 1 == await channel.get()
    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await channel.get()


async def test_a_cancelled_wait_loses_nothing(autojump_clock: MockClock) -> None:
    """What comes after is there for the next reader."""
    channel = Latest[int]()
    with trio.move_on_after(1):
        await channel.get()
    channel.put(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.get()
    assert 1 == await channel.get()


async def test_what_there_is_can_be_taken_without_waiting(autojump_clock: MockClock) -> None:
    """`get_nowait` gives it once, before the reader that was woken for it; who then waits on."""
    channel, got = Latest[int](), list[int]()

    async def read() -> None:
        got.append(await channel.get())

    with pytest.raises(trio.WouldBlock):
        channel.get_nowait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        channel.put(1)
        assert 1 == channel.get_nowait()
        await wait_all_tasks_blocked()
        assert [] == got
        channel.put(2)
    assert [2] == got
