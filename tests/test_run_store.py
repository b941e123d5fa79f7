"""What a run does while the store does not answer: ask again with the token, go on generating, give up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from relaytrio._errors import RetryableError
from relaytrio._protocol.chat import (
    Commit,
)
from relaytrio._turn import Turn
from tests.workshop import (
    Fault,
    Scripted,
    edit_of_first,
    logged,
    open_workshop,
    says,
    sleeps_a_second,
    stays,
    text,
    until_idle,
)

# -------------------------------------------------------------------------------- a store that does not answer


_TURNS: dict[str, tuple[Callable[[], Scripted], list[tuple[str, bool]]]] = {
    "Commit": (lambda: Scripted(lambda turn: _commit_and_end(turn)), [("a", False), ("b", False)]),
    "FinishTurn": (lambda: Scripted(says("a")), [("a", False)]),
    "RecordRetry": (lambda: Scripted(says("x", then=RetryableError("x", 1)), says("a")), [("a", False)]),
    "BeginAttempt": (lambda: Scripted(says("x", then=RetryableError("x", 1)), says("a")), [("a", False)]),
    "Fail": (lambda: Scripted(says("a", then=ValueError("x"))), [("a", True)]),
}


async def _commit_and_end(turn: Turn) -> None:
    await turn.send(text("a"))
    await turn.commit()
    await turn.send(text("b"))


@pytest.mark.parametrize("faults", [["fail"], ["lose"], ["fail", "lose", "fail", "fail"], ["lose", "lose"]])
@pytest.mark.parametrize("operation", list(_TURNS))
async def test_a_transition_is_asked_for_again_with_its_token(
    autojump_clock: MockClock, operation: str, faults: list[Fault]
) -> None:
    """Whether the request or its answer was lost: it is carried out once, announced once, and the run goes on."""
    make, expected = _TURNS[operation]
    async with open_workshop(make()) as shop:
        shop.store.plan(operation, *faults)
        await shop.create()
        await until_idle(60)
        assert expected == await shop.answers()
        assert 1 == shop.store.names().count(operation)
        asked = [command for command in shop.store.asked if type(command).__name__ == operation]
        assert len(faults) + 1 == len(asked)
        assert [asked[0]] * len(asked) == asked
        shop.check_announced()


@pytest.mark.parametrize("operation", ["FinishInterruption", "Abandon"])
async def test_so_are_the_transitions_that_end_an_interruption_or_hand_over(
    autojump_clock: MockClock, operation: str
) -> None:
    """The same for a Stop and for a replica that stops."""
    async with open_workshop(Scripted(stays("a"))) as shop:
        shop.store.plan(operation, "fail", "lose")
        await shop.create()
        await until_idle()
        if operation == "Abandon":
            with trio.move_on_after(60):
                await shop.worker.drain()
        else:
            await shop.interrupt()
        await until_idle(60)
        assert ["Acquire", operation] == shop.store.names()
        shop.check_announced()


async def test_a_repeated_answer_for_a_chat_that_is_anothers_by_now(autojump_clock: MockClock) -> None:
    """The commit was stored and its answer lost; meanwhile the chat was edited: the run says nothing."""
    async with open_workshop(Scripted(_commit_and_end), acquire_seconds=1e6) as shop:

        def edit_once(command: Any) -> None:
            if isinstance(command, Commit):
                shop.store.after_apply = lambda command: None
                shop.store._apply("c", edit_of_first(), None)

        shop.store.after_apply = edit_once
        shop.store.plan("Commit", "lose")
        await shop.create()
        await until_idle(5)
        versions = [outcome.chat.snapshot_version for _, outcome in shop.store.committed]
        assert [versions[0], *versions[2:]] == [chat.snapshot_version for chat in shop.announced]
        assert [("a", False), ("b", False)] == await shop.answers()
        assert ["Acquire", "Commit", "Acquire", "Commit", "FinishTurn"] == shop.store.names()


async def test_generation_goes_on_while_the_store_does_not_answer(autojump_clock: MockClock) -> None:
    """An outage shorter than a run's patience costs nothing: not a part, not the answer."""

    async def script(turn: Turn) -> None:
        for number in range(40):
            await turn.send(text(f"{number} "))
            await trio.sleep(1)

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        shop.store.down = True
        await until_idle(50)
        assert 40 == shop.log(shop.announced[0]).last_seq
        shop.store.down = False
        await until_idle(20)
        assert "waiting" == (await shop.chat()).status
        assert 40 == len((await shop.answers())[0][0].split())
        shop.check_announced()


@pytest.mark.parametrize("fault", ["down", "hang", "lose and hang"])
async def test_a_run_gives_up_after_an_outage(
    autojump_clock: MockClock, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A transition is pending for so long and no longer; then the run ends, sealed, and tells nobody."""
    async with open_workshop(Scripted(sleeps_a_second)) as shop:
        await shop.create()
        await until_idle()
        if fault == "down":
            shop.store.down = True
        else:
            shop.store.plan("FinishTurn", fault)
        log = shop.log(shop.announced[0])
        await until_idle(60)
        assert 1 == len(shop.worker.runs)
        await until_idle(2)
        assert (0, True, 1) == (len(shop.worker.runs), log.sealed, len(shop.announced))
        assert 1 == len(logged(caplog, logging.ERROR))


async def test_a_history_that_cannot_be_read_is_read_when_it_can(autojump_clock: MockClock) -> None:
    """The first read of a run is as patient as its transitions."""
    async with open_workshop(Scripted(says("a"))) as shop:
        shop.store.plan("list_messages", "fail", "fail")
        await shop.create()
        await until_idle(10)
        assert [("a", False)] == await shop.answers()


async def test_a_stop_is_found_when_the_chat_can_be_read_again(autojump_clock: MockClock) -> None:
    """A look that failed is tried again until it succeeds: the Stop is late, not lost."""
    async with open_workshop(Scripted(stays("a"))) as shop:
        await shop.create()
        await until_idle()
        shop.store.plan("read_chat", "fail", "fail", "fail")
        await shop.interrupt()
        await until_idle(20)
        assert [("a", True)] == await shop.answers()


async def test_a_store_that_was_set_back_ends_the_run_and_nothing_else(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A restored store may know the run and not its Stop: the run gives up, the worker goes on."""
    async with open_workshop(Scripted(stays("a"))) as shop:
        await shop.create()
        await until_idle()
        before = shop.store._records["c"].chat
        await shop.interrupt()

        def set_back(chat_id: str, command: Any) -> None:
            shop.store._records["c"].chat = before

        shop.store.before_apply = set_back
        await until_idle()
        assert {} == dict(shop.worker.runs)
        assert 1 == len(shop.announced)
        assert 1 == len(logged(caplog, logging.WARNING))
        shop.store.before_apply = shop.expect_sealed
