"""Part logs in time: when they are forgotten, and who is woken by what."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._parts import PartLog, PartLogs
from relaytrio._protocol.events import Episode
from tests.rows import CHAT, EPISODE, NEXT, SETTINGS, burst, has, rows


@pytest.fixture
def logs() -> PartLogs:
    return PartLogs(SETTINGS, clock=lambda: 0.0)


@pytest.fixture
def log(logs: PartLogs) -> PartLog:
    return logs.make(CHAT, EPISODE)


# -------------------------------------------------------------------------------------------------- forgetting


@pytest.fixture
async def kept(nursery: trio.Nursery) -> PartLogs:
    """Logs that are forgotten in virtual time."""
    logs = PartLogs(SETTINGS)
    nursery.start_soon(logs.run)
    return logs


async def test_a_sealed_log_is_kept_for_its_time(kept: PartLogs, autojump_clock: MockClock) -> None:
    """15 seconds after the seal the log goes, with all it weighs, and not before."""
    log = kept.make(CHAT, EPISODE)
    log.append(rows(1, 3))
    await trio.sleep(100)
    log.seal()
    await trio.sleep(14.9)
    assert kept.find(CHAT, EPISODE) is log
    await trio.sleep(0.2)
    assert kept.find(CHAT, EPISODE) is None
    assert (len(kept), kept.size_bytes, kept._watchers) == (0, 0, {})


async def test_who_watches_a_forgotten_log_sees_the_next_one(kept: PartLogs, autojump_clock: MockClock) -> None:
    """The same episode may have a log again; when the last one who watched has left, nothing is kept for it."""
    woken = []
    with kept.watching(CHAT, EPISODE, lambda: woken.append(len(kept))):
        kept.make(CHAT, EPISODE).seal()
        await trio.sleep(15.1)
        assert woken == [1, 1, 0]
        kept.make(CHAT, EPISODE).append(rows(1, 3))
        assert woken == [1, 1, 0, 1, 1]
    kept.make("another", EPISODE).seal()
    with kept.watching("another", EPISODE, lambda: woken.append(len(kept))):
        pass
    await trio.sleep(15.1)
    assert [(CHAT, EPISODE)] == list(kept._watchers)


@pytest.mark.parametrize("another_comes", [False, True])
async def test_who_watches_may_leave_when_a_log_is_forgotten(
    kept: PartLogs, another_comes: bool, autojump_clock: MockClock
) -> None:
    """Within that very call; and whoever has come to watch since goes on to."""
    stack, others = ExitStack(), ExitStack()
    woken: list[str] = []

    def leave() -> None:
        if kept.find(CHAT, EPISODE) is None:
            stack.close()
            if another_comes and not woken:
                woken.append("left")
                others.enter_context(kept.watching(CHAT, EPISODE, lambda: woken.append("another")))

    kept.make(CHAT, EPISODE).seal()
    stack.enter_context(kept.watching(CHAT, EPISODE, leave))
    await trio.sleep(15.1)
    assert (len(kept), len(kept._watchers)) == (0, another_comes)
    kept.make(CHAT, EPISODE)
    assert ("another" in woken) == another_comes
    others.close()


async def test_a_log_that_has_not_ended_is_never_forgotten(kept: PartLogs, autojump_clock: MockClock) -> None:
    """A generation may take hours; so may the filling of a copy, sealed or not."""
    log = kept.make(CHAT, EPISODE)
    with kept.filling("copy", EPISODE) as copy, kept.filling("sealed", EPISODE) as sealed:
        sealed.seal()
        await trio.sleep(10_000)
        assert kept.find(CHAT, EPISODE) is log
        assert kept.find("copy", EPISODE) is copy
        assert kept.find("sealed", EPISODE) is sealed


async def test_a_log_made_here_needs_no_filler(kept: PartLogs, autojump_clock: MockClock) -> None:
    """Whoever takes it for a copy and leaves it again does not end it."""
    log = kept.make(CHAT, EPISODE)
    with kept.filling(CHAT, EPISODE) as same:
        assert same is log
    await trio.sleep(100)
    assert kept.find(CHAT, EPISODE) is log
    log.append(rows(1, 1))


async def test_the_time_of_a_copy_begins_when_its_last_filler_leaves(kept: PartLogs, autojump_clock: MockClock) -> None:
    """An unattended copy is kept as long as a sealed log, and a new filler within that time finds all its rows."""
    with kept.filling(CHAT, EPISODE) as copy:
        copy.extend(burst(1, 3))
    await trio.sleep(14)
    with kept.filling(CHAT, EPISODE) as again:
        assert again is copy
        await trio.sleep(100)
        assert has(copy) == rows(1, 3)
    await trio.sleep(14.9)
    assert kept.find(CHAT, EPISODE) is copy
    await trio.sleep(0.2)
    assert kept.find(CHAT, EPISODE) is None


async def test_logs_go_one_after_the_other(kept: PartLogs, autojump_clock: MockClock) -> None:
    """Each log has its own time, whatever the fractions of seconds at which they ended."""
    for number in range(40):
        kept.make(str(number), EPISODE).seal()
        await trio.sleep(0.1)
    await trio.sleep(15 - 2.05)
    assert [number for number in range(40) if kept.find(str(number), EPISODE)] == list(range(20, 40))
    await trio.sleep(2.1)
    assert len(kept) == 0


async def test_a_log_that_ends_again_has_its_time_again(kept: PartLogs, autojump_clock: MockClock) -> None:
    """A copy that is sealed after it was left is kept from then on, and holds up no other log."""
    with kept.filling("again", EPISODE) as copy:
        pass
    await trio.sleep(5)
    kept.make("other", EPISODE).seal()
    await trio.sleep(5)
    copy.seal()
    await trio.sleep(10.1)
    assert kept.find("other", EPISODE) is None
    assert kept.find("again", EPISODE) is copy
    await trio.sleep(5)
    assert len(kept) == 0


async def test_forgetting_costs_nothing_while_there_is_nothing(kept: PartLogs, autojump_clock: MockClock) -> None:
    """With no ended log there is no timer, and a log that ends later still goes."""
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
    kept.make(CHAT, EPISODE).seal()
    await trio.sleep(15.1)
    assert len(kept) == 0
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")


async def test_what_is_forgotten_stays_forgotten(kept: PartLogs, autojump_clock: MockClock) -> None:
    """One that still holds a forgotten log reads it to the end, and whatever else it does changes nothing here."""
    with kept.filling(CHAT, EPISODE) as copy:
        copy.extend(burst(1, 3))
    await trio.sleep(15.1)
    assert has(copy) == rows(1, 3)
    copy.extend(burst(4, 4))
    copy.seal()
    assert (len(kept), kept.size_bytes) == (0, 0)
    await trio.sleep(100)
    with kept.filling(CHAT, EPISODE) as anew:
        assert anew is not copy
        assert anew.last_seq == 0


# -------------------------------------------------------------------------------------------------- who is woken


async def test_readers_wake_when_a_log_appears_grows_ends_and_is_forgotten(
    kept: PartLogs, autojump_clock: MockClock
) -> None:
    """Nobody who watches has to ask again and again."""
    woken: list[str] = []
    with kept.watching(CHAT, EPISODE, lambda: woken.append("woken")):
        log = kept.make(CHAT, EPISODE)
        assert len(woken) == 1
        log.append(rows(1, 2))
        assert len(woken) == 2
        log.seal()
        assert len(woken) == 3
        await trio.sleep(15.1)
        assert len(woken) == 4
    kept.make(CHAT, EPISODE).append(rows(1, 1))
    assert len(woken) == 4


def test_readers_of_a_copy_wake_when_it_grows_and_is_left(logs: PartLogs) -> None:
    """A copy that its last filler leaves has ended for its readers; what adds nothing wakes nobody."""
    woken: list[bool] = []
    with logs.filling(CHAT, EPISODE) as copy, logs.watching(CHAT, EPISODE, lambda: woken.append(copy.ended)):
        with logs.filling(CHAT, EPISODE):
            copy.extend(burst(1, 2))
            assert woken == [False]
            copy.extend(burst(1, 2))
            copy.extend(burst(9, 9))
        assert woken == [False]
    with ExitStack() as stack, logs.watching(CHAT, EPISODE, lambda: woken.append(copy.ended)):
        stack.enter_context(logs.filling(CHAT, EPISODE))
        woken.clear()
        stack.close()
        assert woken == [True]


def test_all_readers_of_one_log_wake_together_and_of_no_other(logs: PartLogs, log: PartLog) -> None:
    """Watching is by episode; the same callback may watch twice, and each watching ends for itself."""
    woken: list[str] = []

    def wake() -> None:
        woken.append("same")

    with logs.watching(CHAT, NEXT, lambda: woken.append("another")), logs.watching(CHAT, EPISODE, wake):
        with logs.watching(CHAT, EPISODE, wake):
            log.append(rows(1, 1))
            assert woken == ["same", "same"]
        log.append(rows(2, 2))
        assert woken == ["same", "same", "same"]


def test_who_watches_a_chat_hears_of_each_new_log(logs: PartLogs) -> None:
    """A log of a newer episode is a reason to look, made here or a copy; its rows are none, nor are other chats."""
    appeared: list[Episode] = []
    with logs.watching_chat(CHAT, appeared.append):
        logs.make(CHAT, EPISODE).append(rows(1, 1))
        with logs.filling(CHAT, NEXT), logs.filling(CHAT, NEXT):
            pass
        logs.make("another", EPISODE)
        assert appeared == [EPISODE, NEXT]
    logs.make(CHAT, Episode(59, 1, "a"))
    assert appeared == [EPISODE, NEXT]


def test_watching_leaves_nothing(logs: PartLogs) -> None:
    """When nobody watches, nothing is kept for an episode or a chat, however the watching ended."""

    class Failure(Exception):
        pass

    with pytest.raises(Failure), logs.watching(CHAT, EPISODE, lambda: None), logs.watching_chat(CHAT, print):
        raise Failure
    assert not logs._watchers
    assert not logs._chat_wakes


def test_a_reader_may_stop_watching_when_it_is_woken(logs: PartLogs, log: PartLog) -> None:
    """What a woken reader does is no danger to the others."""
    stack = ExitStack()
    woken: list[str] = []
    stack.enter_context(logs.watching(CHAT, EPISODE, stack.close))
    with logs.watching(CHAT, EPISODE, lambda: woken.append("woken")):
        log.append(rows(1, 1))
        log.append(rows(2, 2))
    assert woken == ["woken", "woken"]


async def test_who_waits_to_dial_is_woken_when_the_last_leg_goes(logs: PartLogs) -> None:
    """When the last filler that was not resting leaves a copy unsealed, all that rest must dial, and at once."""
    woken: list[str] = []

    async def rest(name: str) -> None:
        with logs.filling(CHAT, EPISODE, lambda: True) as copy:
            await copy.left_alone.wait()
            woken.append(name)

    async with trio.open_nursery() as nursery:
        with logs.filling(CHAT, EPISODE):
            with logs.filling(CHAT, EPISODE):
                nursery.start_soon(rest, "one")
                nursery.start_soon(rest, "other")
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            assert woken == []
        await wait_all_tasks_blocked()
        assert sorted(woken) == ["one", "other"]


async def test_who_rested_leaves_nobody_alone(logs: PartLogs) -> None:
    """A filler that had no leg itself was nobody's support: when it goes, the others wait on."""
    with logs.filling(CHAT, EPISODE, lambda: True) as copy:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy.left_alone.wait)
            with logs.filling(CHAT, EPISODE, lambda: True):
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            nursery.cancel_scope.cancel()


async def test_a_sealed_copy_leaves_nobody_alone(logs: PartLogs) -> None:
    """There is nothing to dial for when all rows are there."""
    with logs.filling(CHAT, EPISODE) as copy:
        with logs.filling(CHAT, EPISODE):
            copy.seal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy.left_alone.wait)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            nursery.cancel_scope.cancel()
