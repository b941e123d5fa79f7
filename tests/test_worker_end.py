"""How a worker lets go of its chats: drain, its own end, and the end of its replica."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from relaytrio._errors import RetryableError
from relaytrio._protocol.chat import Acquire, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._turn import Turn
from relaytrio.stores.memory import MemoryStore
from tests.workshop import HELLO, HERE, Workshop, no_responder, open_workshop, text, until_idle


async def stays(turn: Turn) -> None:
    await turn.send(text("half"))
    await trio.sleep_forever()


async def sleeps(turn: Turn) -> None:
    await turn.send(text("a"))
    await trio.sleep(10)


async def ignores(turn: Turn) -> None:
    with trio.CancelScope(shield=True):  # what a responder must not do
        await trio.sleep(1000)


# --------------------------------------------------------------------------------------------- drain and end


async def test_drain_lets_responders_finish(autojump_clock: MockClock) -> None:
    """Within their grace answers are completed, nothing is acquired, and drain returns when the last has ended."""
    async with open_workshop(sleeps, grace_seconds=20) as shop:
        await shop.create("c")
        await until_idle()
        shop.nursery.start_soon(shop.worker.drain)
        await until_idle(1)
        assert shop.worker.draining
        await shop.create("d")
        await shop.worker.drain()  # twice is fine
        assert 10.0 == trio.current_time()
        assert [("a", False)] == await shop.answers("c")
        assert (await shop.chat("d")).worker_id is None
        shop.check_announced()


async def test_drain_hands_over_what_is_not_finished(autojump_clock: MockClock) -> None:
    """After the grace: cancelled as `shutdown`, abandoned, and not counted as a death."""
    reasons = []

    async def tells(turn: Turn) -> None:
        try:
            await stays(turn)
        finally:
            reasons.append(turn.cancelled_by)

    async with open_workshop(tells, grace_seconds=20) as shop:
        await shop.create()
        await until_idle()
        await shop.worker.drain()
        assert 20.0 == trio.current_time()
        assert (["shutdown"], "running", None) == (reasons, (await shop.chat()).status, (await shop.chat()).worker_id)
        assert ["Acquire", "Abandon"] == shop.store.names()
        shop.check_announced()


async def test_drain_does_not_wait_for_a_responder_that_does_not_end(autojump_clock: MockClock) -> None:
    """It is named in the log, and its chat is handed over without it."""
    async with open_workshop(ignores, grace_seconds=20) as shop:
        await shop.create()
        await until_idle()
        await shop.worker.drain()
        assert 25.0 == trio.current_time()
        assert (await shop.chat()).worker_id is None


async def test_drain_ends_whatever_the_store_does(autojump_clock: MockClock) -> None:
    """NEVER_HANGS: grace, the time to unwind, and the time for the last transition; no more."""
    async with open_workshop(stays, grace_seconds=20) as shop:
        await shop.create()
        await until_idle()
        shop.store.plan("Abandon", "hang")
        await shop.worker.drain()
        assert 30.0 == trio.current_time()


async def test_a_cancelled_drain_leaves_the_worker_draining(autojump_clock: MockClock) -> None:
    """Whoever waits for it may give up; what has begun goes on, and can be waited for again."""
    async with open_workshop(sleeps) as shop:
        await shop.create()
        await until_idle()
        with trio.move_on_after(1):
            await shop.worker.drain()
        assert 1 == len(shop.worker.runs)
        await shop.worker.drain()
        assert [("a", False)] == await shop.answers()


async def test_drain_waits_for_an_acquire_and_undoes_it(autojump_clock: MockClock) -> None:
    """An acquire that was under way is not cut off: the chat gets no responder, and is handed over."""
    async with open_workshop(no_responder) as shop:
        go = _held_back(shop)
        await shop.create("c")
        await shop.create("d")
        await until_idle()
        shop.nursery.start_soon(shop.worker.drain)
        await until_idle(1)
        go.set()
        await until_idle()
        assert ["Acquire", "Abandon"] == shop.store.names()  # and the second candidate is not acquired any more
        shop.check_announced()


async def test_drain_undoes_the_acquire_of_an_interrupting_chat(autojump_clock: MockClock) -> None:
    """There it is finish_interruption with nothing, and the hand-over of what that promotes."""
    async with open_workshop(no_responder) as shop:
        await MemoryStore.create_chat(shop.store, "c", HELLO)
        await shop.apply(Acquire(worker_id="gone", run_id="theirs"), hint=False)
        await shop.apply(SendMessage(content=user_message("next").content), hint=False)
        await shop.interrupt(hint=False)
        go = _held_back(shop)
        shop.worker.look("c")
        await until_idle()
        shop.nursery.start_soon(shop.worker.drain)
        await until_idle()
        go.set()
        await until_idle()
        assert ["Acquire", "FinishInterruption", "Abandon"] == shop.store.names()
        shop.check_announced()


def _held_back(shop: Workshop) -> trio.Event:
    """The answers to acquires wait for this."""
    go = trio.Event()
    original = shop.store.apply

    async def apply(chat_id: str, command: Any, key: Any = None) -> Any:
        outcome = await original(chat_id, command, key)
        if isinstance(command, Acquire):
            await go.wait()
        return outcome

    shop.store.apply = apply  # type: ignore[method-assign]
    return go


async def test_drain_before_the_worker_runs(autojump_clock: MockClock) -> None:
    """Then it acquires nothing."""
    async with open_workshop(no_responder, start=False) as shop:
        await shop.worker.drain()
        shop.nursery.start_soon(shop.run_worker)
        await shop.create()
        await until_idle(5)
        assert [] == shop.store.names()


async def test_a_cancelled_worker_hands_its_chats_over(autojump_clock: MockClock) -> None:
    """Without a drain too: responders know why, logs are sealed, and the transitions are not cut off."""
    reasons = []

    async def tells(turn: Turn) -> None:
        try:
            await stays(turn)
        finally:
            reasons.append(turn.cancelled_by)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await trio.sleep(1)

    async with open_workshop(tells) as shop:
        await shop.create("c")
        await shop.create("d")
        await until_idle()
        await shop.interrupt("d", hint=False)
        log = shop.log(shop.announced[0])
        shop.scope.cancel()
        await shop.stopped.wait()
        assert 1.0 == trio.current_time()
        assert (["shutdown"] * 2, True) == (reasons, log.sealed)
        assert (await shop.chat("c")).worker_id is None
        assert [("half", True)] == await shop.answers("d")
        assert {"Acquire", "Abandon", "FinishInterruption"} == set(shop.store.names())
        assert 4 == len(shop.announced)


async def test_a_worker_cancelled_in_an_acquire_undoes_it(autojump_clock: MockClock) -> None:
    """The acquire is shielded, and its chat handed over before the worker ends."""
    async with open_workshop(no_responder) as shop:
        go = _held_back(shop)
        await shop.create()
        await until_idle()
        shop.scope.cancel()
        await until_idle(1)
        go.set()
        await shop.stopped.wait()
        assert ["Acquire", "Abandon"] == shop.store.names()
        shop.check_announced()


@pytest.mark.parametrize("fault", ["hang", "fail"])
async def test_a_cancelled_worker_ends_whatever_the_store_does(autojump_clock: MockClock, fault: Any) -> None:
    """NEVER_HANGS: the last transitions have twice the time to unwind."""
    async with open_workshop(stays) as shop:
        await shop.create()
        await until_idle()
        shop.store.plan("Abandon", *[fault] * 100)
        shop.scope.cancel()
        await shop.stopped.wait()
        assert 10.0 == trio.current_time()
        assert 1 == len(shop.announced)


async def test_a_cancelled_worker_waits_for_its_responders_alone(autojump_clock: MockClock) -> None:
    """Trio cannot end a task that does not listen: the chat is handed over in time, the worker's end waits for it."""
    async with open_workshop(ignores) as shop:
        await shop.create()
        await until_idle()
        shop.scope.cancel()
        await until_idle(6)
        assert (await shop.chat()).worker_id is None
        assert not shop.stopped.is_set()
        await shop.stopped.wait()
        assert 1000.0 == trio.current_time()


async def test_after_the_end_nothing_is_started(autojump_clock: MockClock) -> None:
    """A heartbeat or a hint that comes late finds nobody, and says so to nobody."""
    async with open_workshop(stays) as shop:
        await shop.create()
        await until_idle()
        owned = await shop.store.owned_by(HERE)
        shop.scope.cancel()
        await shop.stopped.wait()
        shop.worker.owned_looked((), owned)
        shop.worker.look("c")
        await until_idle(5)
        assert ["Acquire", "Abandon"] == shop.store.names()


async def test_cancelling_all_runs_tells_nobody(autojump_clock: MockClock) -> None:
    """The chats may be others' by now: responders are cancelled as `lost`, and nothing is asked of the store."""
    turns = []

    async def told(turn: Turn) -> None:
        turns.append(turn)
        await stays(turn)

    async with open_workshop(told, acquire_seconds=1000) as shop:
        await shop.create("c")
        await shop.create("d")
        await until_idle()
        shop.worker.cancel_all_runs()
        await until_idle(1)
        assert ["lost"] * 2 == [turn.cancelled_by for turn in turns]
        assert ["Acquire"] * 2 == shop.store.names()
        assert 2 == len(shop.announced)


async def test_a_run_that_is_lost_before_it_lives(autojump_clock: MockClock) -> None:
    """Between its acquire and its first step a run can be lost too."""
    async with open_workshop(no_responder, acquire_seconds=1000) as shop:
        begin = shop.worker._begin

        def begin_and_lose(chat: Any) -> None:
            begin(chat)
            shop.worker.cancel_all_runs()

        shop.worker._begin = begin_and_lose  # type: ignore[method-assign]
        await shop.create()
        await until_idle(1)
        assert ["Acquire"] == shop.store.names()
        assert {} == dict(shop.worker.runs)


async def test_when_the_engine_fails_in_a_run_the_others_are_handed_over(autojump_clock: MockClock) -> None:
    """What is no fault of the responder, the store's reach or the chat brings the worker down, but in order."""

    class Broken(Exception):
        pass

    def breaks(chat_id: str, command: Any) -> None:
        if chat_id == "d" and not isinstance(command, Acquire):
            raise Broken

    caught = []
    async with open_workshop(_by_chat, start=False) as shop:

        async def run() -> None:
            try:
                await shop.worker.run()
            except* Broken as group:
                caught.append(group)

        shop.store.before_apply = breaks
        shop.nursery.start_soon(run)
        await shop.create("c")
        await shop.create("d")
        await until_idle(20)
        assert 1 == len(caught)
        assert (await shop.chat("c")).worker_id is None
        assert (await shop.chat("c")).takeovers == 0


async def _by_chat(turn: Turn) -> None:
    if turn.chat_id == "d":
        raise RetryableError("x")
    await trio.sleep_forever()
