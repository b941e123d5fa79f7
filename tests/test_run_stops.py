"""How a run ends before its responder does: a person's Stop, and a replica that stops."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from relaytrio._errors import RetryableError, TurnOver
from relaytrio._protocol.chat import (
    FinishInterruption,
    PromoteQueued,
)
from relaytrio._turn import Turn
from tests.workshop import (
    Scripted,
    Workshop,
    logged,
    no_responder,
    open_workshop,
    says,
    sleeps_a_second,
    stays,
    text,
    until_idle,
)


def _of(command: Any) -> str | None:
    return getattr(command, "run_id", None)


def _token(shop: Workshop) -> str:
    return str(getattr(shop.store.asked[-1], "token", None))


# ---------------------------------------------------------------------------------------------------- Stop


async def test_a_stop_keeps_what_was_generated(autojump_clock: MockClock) -> None:
    """The responder is cancelled and knows why, and its parts become a message marked interrupted."""
    reasons = []

    async def script(turn: Turn) -> None:
        try:
            await stays("half")(turn)
        except trio.Cancelled:
            reasons.append(turn.cancelled_by)
            raise

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle()
        assert ["interrupt"] == reasons
        assert ("waiting", [("half", True)]) == ((await shop.chat()).status, await shop.answers())
        assert ["Acquire", "FinishInterruption"] == shop.store.names()
        assert 0.0 == trio.current_time()
        shop.check_announced()


async def test_what_is_sent_while_a_responder_ends_is_kept(autojump_clock: MockClock) -> None:
    """A cancelled responder may still flush, commit and finish in its time: the log is sealed after that."""

    async def script(turn: Turn) -> None:
        try:
            await stays("a")(turn)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 4):
                await turn.send(text("b"))
                await turn.commit()
                await trio.sleep(3)
                await turn.send(text("c"))

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle(10)
        assert [("ab", False), ("c", True)] == await shop.answers()
        shop.check_announced()


async def test_a_stopped_responder_may_say_that_its_answer_is_complete(autojump_clock: MockClock) -> None:
    """`finish` is allowed while the chat is interrupting, and its answer counts as complete."""

    async def script(turn: Turn) -> None:
        try:
            await stays("a")(turn)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await turn.finish([{"content": "all"}])

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle()
        assert ["Acquire", "FinishTurn"] == shop.store.names()
        assert [("all", False)] == await shop.answers()


@pytest.mark.parametrize("ending", [None, RetryableError("x"), ValueError("x"), TurnOver("x")])
async def test_a_stop_outranks_how_the_responder_ended_after_it(
    autojump_clock: MockClock, ending: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it was cancelled, returning or raising makes no difference: what there is, is kept as interrupted."""

    async def script(turn: Turn) -> None:
        with suppress(trio.Cancelled):  # what a responder must not do
            await stays("half")(turn)
        if ending is not None:
            raise ending

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle()
        assert ["Acquire", "FinishInterruption"] == shop.store.names()
        assert [("half", True)] == await shop.answers()
    assert isinstance(ending, ValueError) == bool(logged(caplog, logging.WARNING))


async def test_a_responder_that_does_not_end_is_named_and_left_behind(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for it longer than its time: the chat goes on, its sends raise, and its end is told."""
    refused = []
    release = trio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(text("half"))
        with trio.CancelScope(shield=True):  # what a responder must not do
            await trio.sleep(6)
            with pytest.raises(TurnOver):
                await turn.send(text("late"))
            refused.append(trio.current_time())
            await release.wait()

    responder = Scripted(script, says("next"))
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle()
        await shop.send("next", when_busy="interrupt")
        await until_idle(4.9)
        assert [] == await shop.answers()
        await until_idle(0.2)
        assert [("half", True), ("next", False)] == await shop.answers()
        assert ("waiting", 0) == ((await shop.chat()).status, len(shop.worker.runs))
        assert ["the responder of chat c has not ended 5 s after it was cancelled"] == [
            line.partition(":")[0] for line in logged(caplog, logging.ERROR)
        ]
        await until_idle(5)
        assert [6.0] == refused
        release.set()
        await until_idle()
        assert ["the responder of chat c has ended at last"] == logged(caplog, logging.WARNING)
        shop.check_announced()


async def test_a_responder_that_swallows_cancelled_and_waits_on_is_cancelled_again(autojump_clock: MockClock) -> None:
    """Trio delivers the cancellation at every checkpoint: a loop that ignores it once still ends at the next."""
    rounds = []

    async def script(turn: Turn) -> None:
        for _ in range(3):
            with suppress(trio.Cancelled):  # what a responder must not do
                await trio.sleep_forever()
            rounds.append(turn.cancelled_by)

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle()
        assert ["interrupt"] * 3 == rounds
        assert "waiting" == (await shop.chat()).status


async def test_a_stop_during_the_delay_keeps_nothing(autojump_clock: MockClock) -> None:
    """The parts of an attempt that was recorded as failed are never a message; the delay ends at once."""
    async with open_workshop(Scripted(says("bad", then=RetryableError("x", 60)))) as shop:
        await shop.create()
        await until_idle(1)
        await shop.interrupt()
        await until_idle()
        assert ["Acquire", "RecordRetry", "FinishInterruption"] == shop.store.names()
        assert FinishInterruption(run_id=_of(shop.store.asked[0]) or "", token=_token(shop)) == shop.store.asked[-1]
        assert ("waiting", []) == ((await shop.chat()).status, await shop.answers())
        assert 1.0 == trio.current_time()
        shop.check_announced()


async def test_a_stop_while_the_history_is_read_runs_no_responder(autojump_clock: MockClock) -> None:
    """A Stop that comes before the responder has begun is obeyed before it begins."""
    async with open_workshop(no_responder) as shop:
        shop.store.plan("list_messages", "hang")
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle()
        assert ["Acquire", "FinishInterruption"] == shop.store.names()
        shop.check_announced()


@pytest.mark.parametrize(
    ("script", "refused", "kept"),
    [
        (says("half", then=ValueError("x")), "Fail", [("half", True)]),
        (says("half", then=RetryableError("x")), "RecordRetry", [("half", True)]),
        (says("half"), None, [("half", False)]),
    ],
)
async def test_a_stop_that_comes_as_the_responder_ends(
    autojump_clock: MockClock, script: Any, refused: str | None, kept: list[tuple[str, bool]]
) -> None:
    """A transition that is refused because of a Stop is followed by the end of the interruption, with what there is."""

    async def waits(turn: Turn) -> None:
        await trio.sleep(1)
        await script(turn)

    async with open_workshop(Scripted(waits)) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt(hint=False)
        await until_idle(2)
        assert refused is None or refused in [type(command).__name__ for command in shop.store.asked]
        assert ["Acquire", "FinishTurn" if refused is None else "FinishInterruption"] == shop.store.names()
        assert kept == await shop.answers()
        shop.check_announced()


async def test_a_stop_that_comes_as_the_next_attempt_begins(autojump_clock: MockClock) -> None:
    """begin_attempt is refused too, and no responder runs."""
    responder = Scripted(says("bad", then=RetryableError("x", 5)), no_responder)
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle(1)
        await shop.interrupt(hint=False)
        await until_idle(10)
        assert ["Acquire", "RecordRetry", "FinishInterruption"] == shop.store.names()
        assert [] == await shop.answers()
        shop.check_announced()


async def test_a_stop_after_finish_is_for_the_next_turn(autojump_clock: MockClock) -> None:
    """While a finished responder still winds up, the chat is at its next turn already: that one is stopped."""

    async def winds_up(turn: Turn) -> None:
        await trio.sleep(1)
        await turn.finish([{"content": "first"}])
        await trio.sleep(3)

    async with open_workshop(Scripted(winds_up, no_responder)) as shop:
        await shop.create()
        await until_idle()
        await shop.send("second")
        await until_idle(1.5)
        await shop.interrupt()
        await until_idle(10)
        assert ["Acquire", "FinishTurn", "FinishInterruption"] == shop.store.names()
        assert ("waiting", [("first", False)]) == ((await shop.chat()).status, await shop.answers())
        shop.check_announced()


async def test_promoting_a_queued_message_stops_the_answer_for_it(autojump_clock: MockClock) -> None:
    """promote_queued is a Stop with a successor."""
    responder = Scripted(stays("half"), says("now"))
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle()
        queued = await shop.send("urgent")
        assert queued.queued_id is not None
        await shop.apply(PromoteQueued(queued_id=queued.queued_id))
        await until_idle()
        assert [("half", True), ("now", False)] == await shop.answers()
        shop.check_announced()


async def test_a_stop_is_obeyed_once_however_its_hints_fall(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A Stop that was read again while its end was under way is not taken for another one, of the next turn."""
    async with open_workshop(Scripted(stays("x"))) as shop:
        await shop.create()
        for _ in range(60):
            await until_idle()
            await shop.send("next")
            await shop.interrupt()
        await until_idle()
        assert ["Acquire"] + ["FinishInterruption"] * 60 == shop.store.names()
        assert [("x", True)] * 60 == await shop.answers()
        assert [] == caplog.records


async def test_a_hint_without_a_stop_interrupts_nothing(autojump_clock: MockClock) -> None:
    """A hint only says look: a queued message is seen and the responder goes on."""
    responder = Scripted(stays("a"))
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle()
        for _ in range(3):
            await shop.send("later")
            await until_idle()
        assert responder.turns[0].cancelled_by is None
        assert ["Acquire"] == shop.store.names()


# ------------------------------------------------------------------------------------------------- stopping


async def test_a_run_told_to_leave_lets_its_responder_finish(autojump_clock: MockClock) -> None:
    """A finish that promotes while the replica stops is followed by the hand-over."""
    responder = Scripted(sleeps_a_second, no_responder)
    async with open_workshop(responder, acquire_seconds=1e6) as shop:
        await shop.create()
        await until_idle()
        await shop.send("next")
        shop.worker.runs["c"].leave()
        shop.worker._acquisition.cancel()
        await until_idle(2)
        assert ["Acquire", "FinishTurn", "Abandon"] == shop.store.names()
        assert ("running", None) == ((await shop.chat()).status, (await shop.chat()).worker_id)
        assert 1 == len(responder.turns)
        shop.check_announced()


async def test_a_run_told_to_leave_does_not_wait_for_another_attempt(autojump_clock: MockClock) -> None:
    """No responder is at work during the delay: nothing is lost by handing over at once."""
    async with open_workshop(Scripted(says(then=RetryableError("x", 60)), no_responder), acquire_seconds=1e6) as shop:
        await shop.create()
        await until_idle(1)
        shop.worker._acquisition.cancel()
        shop.worker.runs["c"].leave()
        await until_idle()
        assert ["Acquire", "RecordRetry", "Abandon"] == shop.store.names()
        assert 1.0 == trio.current_time()
        shop.check_announced()


async def test_a_run_told_to_stop_cancels_its_responder_and_hands_over(autojump_clock: MockClock) -> None:
    """The turn begins again elsewhere: nothing of it is kept, and it is not counted as a death."""
    responder = Scripted(stays("half"))
    async with open_workshop(responder, acquire_seconds=1e6) as shop:
        await shop.create()
        await until_idle()
        shop.worker._acquisition.cancel()
        shop.worker.runs["c"].stop()
        await until_idle()
        chat = await shop.chat()
        assert ("shutdown", "running", None, 0) == (
            responder.turns[0].cancelled_by,
            chat.status,
            chat.worker_id,
            chat.takeovers,
        )
        assert [] == await shop.answers()
        shop.check_announced()


async def test_a_stop_of_the_person_and_of_the_replica(autojump_clock: MockClock) -> None:
    """Abandon is refused while interrupting: the interruption ends with what there is, and what it promotes is handed
    over."""
    async with open_workshop(Scripted(stays("half"), no_responder), acquire_seconds=1e6) as shop:
        await shop.create()
        await until_idle()
        await shop.send("next")
        await shop.interrupt(hint=False)
        shop.worker._acquisition.cancel()
        shop.worker.runs["c"].stop()
        await until_idle()
        assert ["Acquire", "FinishInterruption", "Abandon"] == shop.store.names()
        assert [("half", True)] == await shop.answers()
        assert ("running", None) == ((await shop.chat()).status, (await shop.chat()).worker_id)
        shop.check_announced()


async def test_a_stopping_run_waits_for_no_store_for_ever(autojump_clock: MockClock) -> None:
    """Twice the time to unwind, and the run ends whatever the store does; others will find its chat."""
    async with open_workshop(Scripted(stays("half"))) as shop:
        await shop.create()
        await until_idle()
        shop.store.plan("Abandon", "hang")
        shop.worker.runs["c"].stop()
        await until_idle(9.9)
        assert 1 == len(shop.worker.runs)
        await until_idle(0.2)
        assert 0 == len(shop.worker.runs)
        assert 1 == len(shop.announced)
