"""Whoever waits for a file looks when it was written, and hardly ever otherwise."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio.pubsub import _file_watch as module
from relaytrio.pubsub._file_watch import LOOKS_AFTER_SECONDS, SLOW_POLL_SECONDS, FileWatch, Polling, watch_file


async def looks(watch: FileWatch, seconds: float) -> list[float]:
    """When it let its waiter look, within so long."""
    at: list[float] = []
    began = trio.current_time()
    with trio.move_on_after(seconds):
        while True:
            await watch.wait()
            at.append(round(trio.current_time() - began, 6))
    return at


def write(path: Path) -> None:
    path.write_bytes(b"page")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


async def test_a_write_is_looked_at_at_once_and_for_a_moment_more(path: Path, autojump_clock: MockClock) -> None:
    """Its commit can be read a moment after it was written; then nobody looks but for the slow look."""
    watch = watch_file(path)
    write(path.with_name("chat.db-wal"))
    expected = [0.0, *(sum(LOOKS_AFTER_SECONDS[: number + 1]) for number in range(len(LOOKS_AFTER_SECONDS)))]
    found = await looks(watch, 1.0)
    assert [round(at, 6) for at in expected] == found
    watch.close()


async def test_what_was_read_is_not_looked_at_again(path: Path, autojump_clock: MockClock) -> None:
    """A burst of writes costs a look a write, not nine."""
    watch = watch_file(path)
    for _ in range(3):
        write(path)
        await watch.wait()
        watch.saw_news()
    assert [] == await looks(watch, SLOW_POLL_SECONDS / 2)
    watch.close()


async def test_a_write_wakes_who_waits(path: Path, autojump_clock: MockClock) -> None:
    """Without any time passing."""
    watch = watch_file(path)
    woken = trio.Event()

    async def wait() -> None:
        await watch.wait()
        woken.set()

    async with trio.open_nursery() as nursery:
        autojump_clock.autojump_threshold = float("inf")  # the write comes from outside of Trio
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        write(path)
        await woken.wait()
    assert 0 == trio.current_time()
    watch.close()


async def test_other_files_wake_nobody(path: Path, autojump_clock: MockClock) -> None:
    """Not the shared memory beside it, nor another database in the folder."""
    watch = watch_file(path)
    for name in ("chat.db-shm", "other.db", "other.db-wal"):
        write(path.with_name(name))
    assert [] == await looks(watch, SLOW_POLL_SECONDS / 2)
    watch.close()


async def test_what_the_system_does_not_tell_is_seen_late(path: Path, autojump_clock: MockClock) -> None:
    """Once a second."""
    watch = watch_file(path)
    assert [1.0, 2.0, 3.0] == await looks(watch, 3.5)
    watch.close()


async def test_a_queue_that_overflowed_is_a_reason_to_look(
    path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_LOSS: what was lost there may have been ours."""
    watch = watch_file(path)
    overflow = module._EVENT.pack(-1, 0x4000, 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", lambda fd, size: overflow)
        await watch.wait()
    assert 0 == trio.current_time()
    watch.close()


async def test_where_the_system_has_no_watch_left_it_polls(
    path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 20 ms."""

    def refuse(result: int) -> int:
        raise OSError(errno.ENOSPC, "no watch left")

    monkeypatch.setattr(module, "_checked", refuse)
    watch = watch_file(path)
    assert isinstance(watch, Polling)
    assert [0.02, 0.04] == await looks(watch, 0.05)


async def test_a_folder_that_is_not_there_leaves_nothing_open(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The descriptor of a watch that failed is closed; so is that of one that is closed twice."""
    before = len(os.listdir("/proc/self/fd"))
    assert isinstance(watch_file(tmp_path / "nowhere" / "chat.db"), Polling)
    watch = watch_file(tmp_path / "chat.db")
    watch.close()
    watch.close()
    assert before == len(os.listdir("/proc/self/fd"))
