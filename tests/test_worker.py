"""Which chats a worker runs, and what it makes of hints and of the heartbeat's look at what it owns."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._protocol.chat import Acquire, EditMessage, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._turn import Turn
from relaytrio.stores._base import Replica
from relaytrio.stores.memory import MemoryStore
from tests.workshop import HELLO, HERE, THERE, Workshop, no_responder, open_workshop, text, until_idle


async def answers(turn: Turn) -> None:
    await turn.send(text("a"))


async def stays(turn: Turn) -> None:
    await turn.send(text("half"))
    await trio.sleep_forever()


async def sleeps(turn: Turn) -> None:
    await turn.send(text("a"))
    await trio.sleep(10)


async def look_at_owned(shop: Workshop) -> None:
    """What the presence does with every heartbeat."""
    known = tuple(shop.worker.runs.values())
    shop.worker.owned_looked(known, await shop.store.owned_by(HERE))
    await wait_all_tasks_blocked()


async def forever(turn: Turn) -> None:
    """Is cancelled in the end."""
    await trio.sleep_forever()


# ------------------------------------------------------------------------------------------------- acquire


async def test_a_hint_is_followed_at_once(autojump_clock: MockClock) -> None:
    """A chat that somebody needs answered is acquired without waiting for the next round."""
    async with open_workshop(answers, acquire_seconds=1000) as shop:
        await shop.create()
        await until_idle()
        assert [("a", False)] == await shop.answers()
        assert 0.0 == trio.current_time()


async def test_a_lost_hint_costs_a_second(autojump_clock: MockClock) -> None:
    """NO_LOSS: what nobody hinted at is found by looking every second."""
    async with open_workshop(answers) as shop:
        await until_idle(0.5)
        await MemoryStore.create_chat(shop.store, "c", HELLO)
        await until_idle(0.4)
        assert [] == await shop.answers()
        await until_idle(0.2)
        assert [("a", False)] == await shop.answers()


async def test_losing_the_race_for_a_chat_is_silent(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Another worker was faster: no run, no hint, no log, and the next look still works."""
    async with open_workshop(no_responder) as shop:

        def faster(chat_id: str, command: Any) -> None:
            shop.store._apply("c", Acquire(worker_id=THERE, run_id="theirs"), None)
            shop.store.before_apply = shop.expect_sealed

        await MemoryStore.register(shop.store, Replica(id=THERE, address=None, version="1"))
        shop.store.before_apply = faster
        await shop.create()
        await until_idle(5)
        assert ([], 0, []) == (shop.announced, len(shop.worker.runs), caplog.records)
        assert THERE == (await shop.chat()).worker_id


async def test_a_chat_that_was_deleted_before_it_was_acquired(autojump_clock: MockClock) -> None:
    """A candidate may be gone by the time it is acquired."""
    async with open_workshop(no_responder) as shop:

        def deleted(chat_id: str, command: Any) -> None:
            shop.store._delete("c")

        shop.store.before_apply = deleted
        await shop.create()
        await until_idle(5)
        assert [] == shop.announced


async def test_no_more_runs_than_allowed(autojump_clock: MockClock) -> None:
    """A worker that is full does not even ask; when a run ends, the next chat is acquired at once."""
    async with open_workshop(sleeps, max_runs=2) as shop:
        for chat_id in "abcde":
            await shop.create(chat_id)
        await until_idle(5)
        assert ["a", "b"] == sorted(shop.worker.runs)
        asked = shop.store.calls["candidates"]
        await until_idle(4)
        assert asked == shop.store.calls["candidates"]
        await until_idle(1)
        assert ["c", "d"] == sorted(shop.worker.runs)
        assert 10.0 == trio.current_time()
        await until_idle(20)
        assert ["FinishTurn"] * 5 == [name for name in shop.store.names() if name != "Acquire"]


async def test_a_loaded_worker_lets_others_be_first(autojump_clock: MockClock) -> None:
    """It waits a little for each of its runs before it tries, and then it does."""
    async with open_workshop(forever, acquire_seconds=1000, yield_seconds=0.01, yield_max_seconds=0.1) as shop:
        for chat_id in "abc":
            await shop.create(chat_id)
            await until_idle(0.5)
        began = trio.current_time()
        await shop.create("d")
        await until_idle(0.029)
        assert "d" not in shop.worker.runs
        await until_idle(0.002)
        assert "d" in shop.worker.runs
        assert trio.current_time() - began < 0.04


async def test_however_loaded_it_is_a_worker_tries_soon(autojump_clock: MockClock) -> None:
    """The wait is bounded, far below the second after which it would look anyway."""
    async with open_workshop(forever, acquire_seconds=1000, max_runs=350) as shop:
        for number in range(200):
            await MemoryStore.create_chat(shop.store, str(number), HELLO)
        shop.worker.look("0")
        await until_idle(1)
        assert 200 == len(shop.worker.runs)
        await shop.create("d")
        await until_idle(shop.settings.yield_max_seconds)
        assert "d" in shop.worker.runs


async def test_more_work_than_one_query_gives(autojump_clock: MockClock) -> None:
    """When a query was full and gave work, the next one follows at once."""
    async with open_workshop(sleeps, max_runs=350, acquire_seconds=1000) as shop:
        for number in range(350):
            await MemoryStore.create_chat(shop.store, str(number), HELLO)
        shop.worker.look("0")
        await until_idle()
        assert 350 == len(shop.worker.runs)


async def test_an_unreachable_store_is_tried_again(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """An outage is told once, and its end; nothing spins meanwhile."""
    caplog.set_level(logging.INFO, "relaytrio")
    async with open_workshop(answers) as shop:
        shop.store.down = True
        asked = shop.store.calls["candidates"]
        await until_idle(10)
        assert shop.store.calls["candidates"] - asked <= 11
        shop.store.down = False
        await shop.create()
        await until_idle(2)
        assert [("a", False)] == await shop.answers()
        assert [logging.WARNING, logging.INFO] == [record.levelno for record in caplog.records]


async def test_a_chat_of_a_dead_owner_is_taken_over(autojump_clock: MockClock) -> None:
    """Only of one that was found dead: what a living worker owns is left alone."""
    async with open_workshop(answers) as shop:
        await MemoryStore.register(shop.store, Replica(id=THERE, address=None, version="1"))
        await MemoryStore.create_chat(shop.store, "c", HELLO)
        await shop.apply(Acquire(worker_id=THERE, run_id="theirs"))
        await until_idle(5)
        assert THERE == (await shop.chat()).worker_id
        shop.worker.found_dead(frozenset([THERE]))
        await until_idle()
        assert [("a", False)] == await shop.answers()
        assert 5.0 == trio.current_time()
        assert 1 == shop.announced[0].takeovers


async def test_an_owner_without_a_row_is_dead(autojump_clock: MockClock) -> None:
    """Nobody need be found dead for that."""
    async with open_workshop(answers, start=False) as shop:
        await MemoryStore.create_chat(shop.store, "c", HELLO)
        await shop.apply(Acquire(worker_id="gone", run_id="theirs"))
        shop.nursery.start_soon(shop.run_worker)
        await until_idle()
        assert [("a", False)] == await shop.answers()


async def test_a_worker_does_not_take_its_own_chats_over(autojump_clock: MockClock) -> None:
    """While its own row is gone its chats look like a dead one's to itself: the heartbeat sees to that."""
    async with open_workshop(stays) as shop:
        await shop.create()
        await until_idle()
        await MemoryStore.unregister(shop.store, HERE)
        await until_idle(5)
        assert ["Acquire"] == shop.store.names()
        shop.worker.cancel_all_runs()
        await until_idle(5)
        assert ["Acquire"] == shop.store.names()


async def test_an_acquire_that_is_not_answered_stops_nothing_else(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A shield has a deadline: after it others are acquired, and the chat is handed over with the next heartbeat."""
    async with open_workshop(answers) as shop:
        shop.store.plan("Acquire", "lose and hang")
        await shop.create("c")
        await until_idle(1)
        await look_at_owned(shop)  # under way: that is no chat without a run
        assert ["Acquire"] == shop.store.names()
        await until_idle(5)
        await shop.create("d")
        await until_idle(1)
        assert [("a", False)] == await shop.answers("d")
        await look_at_owned(shop)
        await until_idle(2)
        assert [("a", False)] == await shop.answers("c")
        assert 1 == shop.store.names().count("Abandon")


async def test_an_edit_ends_the_run_and_begins_another(autojump_clock: MockClock) -> None:
    """Two runs of one chat on one worker: the old one is none of its runs any more when the new one begins."""
    async with open_workshop(stays) as shop:
        await shop.create()
        await until_idle()
        old = shop.worker.runs["c"]
        await shop.apply(EditMessage(message_id=1, content=user_message("x").content))
        await until_idle()
        new = shop.worker.runs["c"]
        assert old is not new
        old.lose()
        assert new is shop.worker.runs["c"]


async def test_own_transitions_are_not_read_again(autojump_clock: MockClock) -> None:
    """A run knows what its own transition made of the chat, though the hint comes back to the worker."""

    async def commits(turn: Turn) -> None:
        for _ in range(5):
            await turn.commit([{"content": "a"}])

    async with open_workshop(commits) as shop:
        await shop.create()
        await until_idle()
        assert 7 == len(shop.announced)
        assert 0 == shop.store.calls["read_chat"]


# ---------------------------------------------------------------------------------- what the heartbeat found


async def test_a_missed_stop_is_found(autojump_clock: MockClock) -> None:
    """NO_LOSS: the hint of a Stop was lost, and its row says so."""
    async with open_workshop(stays) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt(hint=False)
        await look_at_owned(shop)
        assert [("half", True)] == await shop.answers()


async def test_a_run_whose_chat_is_anothers_is_cancelled(autojump_clock: MockClock) -> None:
    """A run of ours that the store does not know any more ends, and tells nobody."""
    async with open_workshop(stays) as shop:
        await shop.create()
        await until_idle()
        await shop.apply(EditMessage(message_id=1, content=user_message("x").content), hint=False)
        await shop.apply(Acquire(worker_id=THERE, run_id="theirs"), hint=False)
        await MemoryStore.register(shop.store, Replica(id=THERE, address=None, version="1"))
        await look_at_owned(shop)
        assert {} == dict(shop.worker.runs)
        assert 1 == len(shop.announced)


async def test_a_run_that_began_after_the_question_is_left_alone(autojump_clock: MockClock) -> None:
    """Only runs that were there before the query are compared with its answer."""
    async with open_workshop(stays) as shop:
        known = tuple(shop.worker.runs.values())
        owned = await shop.store.owned_by(HERE)
        await shop.create()
        await until_idle()
        shop.worker.owned_looked(known, owned)
        await until_idle()
        assert 1 == len(shop.worker.runs)
        assert 0 == shop.store.calls["read_chat"]


async def test_a_run_that_has_ended_since_the_question_is_left_alone(autojump_clock: MockClock) -> None:
    """The answer is old: what it says of a run that has ended is neither news nor a chat without a run."""
    async with open_workshop(sleeps) as shop:
        await shop.create()
        await until_idle()
        known = tuple(shop.worker.runs.values())
        owned = await shop.store.owned_by(HERE)
        await until_idle(11)
        shop.worker.owned_looked(known, owned)
        await until_idle()
        assert ["Acquire", "FinishTurn"] == shop.store.names()
        shop.check_announced()


async def test_a_chat_without_a_run_is_handed_over(autojump_clock: MockClock) -> None:
    """A chat names this replica and nobody here generates: it is abandoned, and then anybody's."""
    async with open_workshop(answers, acquire_seconds=1000) as shop:
        await MemoryStore.create_chat(shop.store, "c", HELLO)
        await shop.apply(Acquire(worker_id=HERE, run_id="lost"), hint=False)
        await look_at_owned(shop)
        assert ["Abandon", "Acquire", "FinishTurn"] == shop.store.names()
        assert [("a", False)] == await shop.answers()
        shop.check_announced()


@pytest.mark.parametrize("queued", [False, True])
async def test_an_interrupted_chat_without_a_run_ends_with_nothing(autojump_clock: MockClock, queued: bool) -> None:
    """Its interruption is finished, and what that promotes is handed over."""
    async with open_workshop(answers, acquire_seconds=1000) as shop:
        await MemoryStore.create_chat(shop.store, "c", HELLO)
        await shop.apply(Acquire(worker_id=HERE, run_id="lost"), hint=False)
        if queued:
            await shop.apply(SendMessage(content=user_message("next").content), hint=False)
        await shop.interrupt(hint=False)
        await look_at_owned(shop)
        rest = ["Abandon", "Acquire", "FinishTurn"] if queued else []
        assert ["FinishInterruption", *rest] == shop.store.names()
        assert "waiting" == (await shop.chat()).status
        shop.check_announced()


@pytest.mark.parametrize("fault", ["fail", "hang"])
async def test_a_hand_over_that_fails_is_tried_with_the_next_heartbeat(autojump_clock: MockClock, fault: Any) -> None:
    """Not in a loop of its own: the next look finds the chat again."""
    async with open_workshop(answers) as shop:
        await MemoryStore.create_chat(shop.store, "c", HELLO)
        await shop.apply(Acquire(worker_id=HERE, run_id="lost"), hint=False)
        shop.store.plan("Abandon", fault)
        await look_at_owned(shop)
        await look_at_owned(shop)  # one that hangs is not doubled
        await until_idle(5)
        await look_at_owned(shop)
        await until_idle()
        assert [("a", False)] == await shop.answers()


async def test_a_chat_that_is_given_up_after_an_outage_goes_on(autojump_clock: MockClock) -> None:
    """NEVER_HANGS: a run that gave up leaves a chat without a run, and that is handed over when the store answers."""
    async with open_workshop(sleeps, outage_seconds=30) as shop:
        await shop.create()
        await until_idle()
        shop.store.down = True
        await until_idle(60)
        assert {} == dict(shop.worker.runs)
        shop.store.down = False
        await look_at_owned(shop)
        await until_idle(20)
        assert [("a", False)] == await shop.answers()
        shop.check_announced()
