"""How a run loses its chat, and how it takes over that of another: FENCED, and chats that kill their workers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._errors import TurnOver
from relaytrio._protocol.chat import (
    Acquire,
    Chat,
    SendMessage,
)
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import Episode
from relaytrio._turn import Turn
from relaytrio.stores._base import Replica
from relaytrio.stores.memory import MemoryStore
from tests.workshop import (
    HELLO,
    THERE,
    Scripted,
    Workshop,
    edit_of_first,
    logged,
    no_responder,
    open_workshop,
    says,
    sleeps_a_second,
    stays,
    text,
    until_idle,
)

# ---------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("hint", [True, False])
async def test_a_run_that_lost_its_chat_stops_and_tells_nobody(autojump_clock: MockClock, hint: bool) -> None:
    """FENCED: told by a hint or by its next transition, it changes nothing, announces nothing, and its sends raise."""
    refused = []

    async def script(turn: Turn) -> None:
        try:
            await turn.send(text("a"))
            await trio.sleep(1)
            await turn.commit()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                with pytest.raises(TurnOver):
                    await turn.send(text("b"))
                refused.append(turn.cancelled_by)

    responder = Scripted(script, stays())
    async with open_workshop(responder, acquire_seconds=1e6) as shop:
        await shop.create()
        await until_idle()
        run = shop.worker.runs["c"]
        await shop.apply(edit_of_first(), hint=hint)
        shop.announced.clear()
        await until_idle(2)
        assert ["lost"] == refused
        assert run._own.log.sealed
        assert ["Acquire"] == [
            type(command).__name__ for command, outcome in shop.store.committed if _of(command) == run.run_id
        ]
        assert run.run_id not in [chat.run_id for chat in shop.announced]
        assert [] == await shop.answers()


def _of(command: Any) -> str | None:
    return getattr(command, "run_id", None)


async def test_after_a_loss_too_a_responder_that_does_not_end_is_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its replica has lost the chat, but still has the task: somebody has to know."""

    async def clings(turn: Turn) -> None:
        with trio.CancelScope(shield=True):  # what a responder must not do
            await trio.sleep(100)

    async with open_workshop(Scripted(clings, stays())) as shop:
        await shop.create()
        await until_idle()
        await shop.apply(edit_of_first())
        await until_idle(6)
        assert 1 == len(logged(caplog, logging.ERROR))


async def test_a_responder_that_ends_in_the_last_moment_is_not_named_for_ever(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is named as not ending, and ends, is named again; whoever has ended just in time is not named at all."""

    async def to_the_last(turn: Turn) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 9):
                await trio.sleep(5)

    async with open_workshop(Scripted(to_the_last)) as shop:
        for number in range(40):
            await shop.create(str(number))
        await until_idle()
        for number in range(40):
            await shop.interrupt(str(number))
        await until_idle(20)
        assert len(logged(caplog, logging.ERROR)) == len(logged(caplog, logging.WARNING))


async def test_a_deleted_chat_is_a_lost_one(autojump_clock: MockClock) -> None:
    """The responder of a chat that was deleted is cancelled, and nothing else happens."""
    responder = Scripted(stays("a"))
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle()
        await shop.store.delete_chat("c")
        shop.worker.look("c")
        await until_idle()
        assert ("lost", 0) == (responder.turns[0].cancelled_by, len(shop.worker.runs))
        assert 1 == len(shop.announced)


async def test_a_chat_deleted_under_a_transition(autojump_clock: MockClock) -> None:
    """So does a transition that finds the chat deleted."""
    async with open_workshop(Scripted(sleeps_a_second)) as shop:
        await shop.create()
        await until_idle()
        await shop.store.delete_chat("c")
        await until_idle(2)
        assert {} == dict(shop.worker.runs)
        assert 1 == len(shop.announced)


async def test_an_edit_is_answered_at_once_by_a_new_run(autojump_clock: MockClock) -> None:
    """The old run's responder may take its time to end: the chat does not wait for it."""

    async def slow_to_end(turn: Turn) -> None:
        try:
            await stays("old")(turn)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 4):
                await trio.sleep(3)

    async with open_workshop(Scripted(slow_to_end, says("new"))) as shop:
        await shop.create()
        await until_idle()
        await shop.apply(edit_of_first())
        await until_idle()
        assert [("new", False)] == await shop.answers()
        assert 0.0 == trio.current_time()


async def test_an_old_look_at_the_chat_is_no_loss(autojump_clock: MockClock) -> None:
    """What was read while a transition of the run's own was under way says nothing: it is read again after it."""
    release = trio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(text("a"))
        await turn.commit()
        await release.wait()

    async with open_workshop(Scripted(script)) as shop:
        read = _Gate(shop, "c")
        commit = _CommitGate(shop)
        await shop.create()
        await until_idle()
        shop.worker.look("c")
        await until_idle()
        assert 0 == read.begun  # a transition is under way: nothing is read before it has ended
        commit.go.set()
        await until_idle()
        assert 1 == read.begun
        shop.store.plans["FinishTurn"].append("fail")
        release.set()
        await wait_all_tasks_blocked()
        read.go.set()
        await until_idle(5)
        assert ["Acquire", "Commit", "FinishTurn"] == shop.store.names()
        assert "waiting" == (await shop.chat()).status
        shop.check_announced()


class _Gate:
    """Holds back what was read of the chat until `go`."""

    def __init__(self, shop: Workshop, chat_id: str) -> None:
        self.go = trio.Event()
        self.begun = 0
        original = shop.store.read_chat

        async def read_chat(chat_id: str) -> Any:
            self.begun += 1
            chat = await original(chat_id)
            await self.go.wait()
            return chat

        shop.store.read_chat = read_chat  # type: ignore[method-assign]


class _CommitGate:
    """Holds back the answer to everything but the acquire until `go`."""

    def __init__(self, shop: Workshop) -> None:
        self.go = trio.Event()
        original = shop.store.apply

        async def apply(chat_id: str, command: Any, key: Any = None) -> Any:
            outcome = await original(chat_id, command, key)
            if not isinstance(command, Acquire):
                await self.go.wait()
            return outcome

        shop.store.apply = apply  # type: ignore[method-assign]


# ----------------------------------------------------------------------------------------------- take-overs


async def _died(shop: Workshop, times: int) -> None:
    """So many owners of the chat died, the last one owns it."""
    await MemoryStore.register(shop.store, Replica(id=THERE, address=None, version="1"))
    await MemoryStore.create_chat(shop.store, "c", HELLO)
    for number in range(times + 1):
        dead = None if number == 0 else THERE
        await shop.apply(Acquire(worker_id=THERE, run_id=f"r{number}", dead_worker_id=dead), hint=False)


async def test_a_chat_that_kills_its_workers_is_parked(autojump_clock: MockClock) -> None:
    """The third take-over after a death runs no responder: it fails the turn as `worker_lost`."""
    async with open_workshop(no_responder, takeovers=3) as shop:
        await _died(shop, 2)
        shop.worker.found_dead(frozenset([THERE]))
        await until_idle()
        chat = await shop.chat()
        assert chat.last_error is not None
        assert ("error", "worker_lost") == (chat.status, chat.last_error.kind)
        assert ["Acquire", "Fail"] == shop.store.names()
        shop.check_announced()


async def test_the_second_take_over_still_runs_the_responder(autojump_clock: MockClock) -> None:
    """Fewer deaths than that are bad luck."""
    async with open_workshop(Scripted(says("a")), takeovers=3) as shop:
        await _died(shop, 1)
        shop.worker.found_dead(frozenset([THERE]))
        await until_idle()
        assert [("a", False)] == await shop.answers()


async def test_the_take_over_of_an_interrupting_chat_runs_no_responder(autojump_clock: MockClock) -> None:
    """The former owner died before it obeyed a Stop: an empty, sealed log, and the interruption ends with nothing."""
    sealed = []
    async with open_workshop(no_responder) as shop:
        await _died(shop, 0)
        await shop.interrupt(hint=False)
        tell = shop.worker._announce

        def announce(chat: Chat) -> None:
            sealed.append(_is_sealed(shop, chat))
            tell(chat)

        shop.worker._announce = announce
        shop.worker.found_dead(frozenset([THERE]))
        await until_idle()
        assert ["Acquire", "FinishInterruption"] == shop.store.names()
        assert [True, None] == sealed
        assert ("waiting", []) == ((await shop.chat()).status, await shop.answers())
        shop.check_announced()


def _is_sealed(shop: Workshop, chat: Any) -> bool | None:
    episode: Episode | None = chat.live_episode
    if episode is None:
        return None
    log = shop.parts.find("c", episode)
    assert log is not None
    assert 0 == log.last_seq
    return log.sealed


async def test_after_the_take_over_of_an_interrupting_chat_its_queue_goes_on(autojump_clock: MockClock) -> None:
    """NEVER_STRANDED: what waited behind the Stop is answered by the run that took over."""
    responder = Scripted(says("next"))
    async with open_workshop(responder, takeovers=1) as shop:
        await _died(shop, 0)
        await shop.apply(SendMessage(content=user_message("waits").content), hint=False)
        await shop.interrupt(hint=False)
        shop.worker.found_dead(frozenset([THERE]))
        await until_idle()
        assert ["Acquire", "FinishInterruption", "FinishTurn"] == shop.store.names()
        assert [("next", False)] == await shop.answers()
