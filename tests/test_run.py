"""One ownership of a chat: what its supervisor does with turns, commits and attempts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from relaytrio._errors import AnswerTooLarge, RetryableError
from relaytrio._protocol.events import RetryState
from relaytrio._turn import Turn
from tests.workshop import (
    Scripted,
    logged,
    open_workshop,
    rows,
    says,
    stays,
    text,
    until_idle,
)

# ------------------------------------------------------------------------------------------------- one turn


async def test_a_turn_from_the_question_to_the_answer(autojump_clock: MockClock) -> None:
    """The responder sees the history, its parts go to the episode's log, and what they said becomes the message."""
    responder = Scripted(says("Hel", "lo"))
    async with open_workshop(responder) as shop:
        chat = await shop.create()
        await until_idle()
        assert ["Acquire", "FinishTurn"] == shop.store.names()
        assert ["waiting", None] == [(await shop.chat()).status, (await shop.chat()).worker_id]
        answer = (await shop.messages())[1]
        assert ("assistant", [text("Hello")], False, False) == (
            answer.role,
            answer.content,
            answer.interrupted,
            answer.truncated,
        )
        (turn,) = responder.turns
        assert ("c", 1, None) == (turn.chat_id, turn.attempt, turn.cancelled_by)
        assert ["hello"] == [message.content[0]["text"] for message in turn.messages]
        log = shop.log(shop.announced[0])
        stamp = turn.messages[0].stamp
        assert chat.history_version == log.episode.history_version
        assert [f"1-{stamp}-{log.episode}-{seq}" for seq in (1, 2)] == [row["cursor"] for row in rows(log)]
        assert log.sealed
        assert [] == list(shop.worker.runs)
        shop.check_announced()


async def test_the_responder_sees_all_messages(autojump_clock: MockClock) -> None:
    """A history that is longer than a page is read to its end."""
    responder = Scripted(says("a"))
    async with open_workshop(responder, page_bytes=30) as shop:
        await shop.create()
        for number in range(5):
            await until_idle()
            await shop.send(f"more {number}")
        await until_idle()
        assert list(range(1, 12)) == [message.id for message in responder.turns[-1].messages]


async def test_a_run_id_is_ten_characters(autojump_clock: MockClock) -> None:
    """The fence is random, and short enough for a cursor."""
    async with open_workshop(Scripted(says("a"))) as shop:
        await shop.create()
        await until_idle()
        run_id = shop.announced[0].run_id
        assert run_id is not None
        assert (10, True) == (len(run_id), run_id.isalnum())


async def test_a_responder_that_sends_nothing_leaves_no_message(autojump_clock: MockClock) -> None:
    """No parts, no message; the turn ends all the same."""
    async with open_workshop(Scripted(says())) as shop:
        await shop.create()
        await until_idle()
        assert ("waiting", []) == ((await shop.chat()).status, await shop.answers())
        shop.check_announced()


async def test_finish_says_what_is_kept(autojump_clock: MockClock) -> None:
    """What `finish` is given replaces what was sent, and is stored when it returns."""
    seen = []

    async def script(turn: Turn) -> None:
        await turn.send(text("draft"))
        await turn.finish([{"content": "final"}])
        seen.append((await shop.chat()).status)

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        assert ["waiting"] == seen
        assert [("final", False)] == await shop.answers()
        shop.check_announced()


async def test_a_finished_responder_that_does_not_return_is_cancelled(autojump_clock: MockClock) -> None:
    """After `finish` there is time for an orderly end, not for ever; and the chat does not wait for it."""
    ends = []

    async def script(turn: Turn) -> None:
        await turn.finish([{"content": "a"}])
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time())

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        assert ("waiting", 0) == ((await shop.chat()).status, len(shop.worker.runs))
        await until_idle(20)
        assert [5.0] == ends


async def test_an_error_after_finish_changes_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The turn is over: the fault is logged, the chat is not parked."""

    async def script(turn: Turn) -> None:
        await turn.finish([{"content": "a"}])
        raise ValueError("late")

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        assert ("waiting", [("a", False)]) == ((await shop.chat()).status, await shop.answers())
    assert ["the responder failed while it ended, on chat c"] == logged(caplog, logging.WARNING)


async def test_a_queued_message_is_answered_by_the_same_run(autojump_clock: MockClock) -> None:
    """The end of a turn promotes the head of the queue, and the run goes on: new history, attempt 1, a new log."""
    responder = Scripted(stays("one"), says("two"))
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle()
        await shop.send("and then?")
        await shop.interrupt()
        await until_idle()
        assert ["Acquire", "FinishInterruption", "FinishTurn"] == shop.store.names()
        second = responder.turns[1]
        assert ["hello", "one", "and then?"] == [message.content[0]["text"] for message in second.messages]
        assert (1, None) == (second.attempt, second.cancelled_by)
        assert [("one", True), ("two", False)] == await shop.answers()
        assert shop.announced[0].run_id == shop.announced[1].run_id
        assert 1 == shop.announced[1].generation_attempt
        assert ["two"] == [row["part"]["text"] for row in rows(shop.log(shop.announced[1]))]
        shop.check_announced()


# --------------------------------------------------------------------------------------------------- commit


async def test_a_commit_stores_and_the_run_goes_on(autojump_clock: MockClock) -> None:
    """A tool's step is in the history at once; what follows is another episode, and another message."""

    async def script(turn: Turn) -> None:
        await turn.send(text("let me look"))
        await turn.commit()
        assert [("let me look", False)] == await shop.answers()
        await turn.commit([{"role": "tool", "content": "42"}])
        await turn.send(text("it is 42"))

    async with open_workshop(Scripted(script)) as shop:
        await shop.create()
        await until_idle()
        assert ["Acquire", "Commit", "Commit", "FinishTurn"] == shop.store.names()
        assert ["user", "assistant", "tool", "assistant"] == [message.role for message in await shop.messages()]
        episodes = [chat.live_episode for chat in shop.announced[:3]]
        assert [1, 1, 1] == [episode.generation_attempt for episode in episodes if episode is not None]
        log = shop.log(shop.announced[2])
        stamp = (await shop.messages())[2].stamp
        assert [f"3-{stamp}-{log.episode}-1"] == [row["cursor"] for row in rows(log)]
        shop.check_announced()


async def test_a_commit_while_interrupting_is_kept_and_then_the_run_stops(autojump_clock: MockClock) -> None:
    """A Stop that nobody told the run of is noticed with the answer to the commit."""
    responder = Scripted(_commit_then_stay)
    async with open_workshop(responder, acquire_seconds=1e6) as shop:
        await shop.create()
        await until_idle(1)
        await shop.interrupt(hint=False)
        await until_idle(1)
        assert ["Acquire", "Commit", "FinishInterruption"] == shop.store.names()
        assert "interrupt" == responder.turns[0].cancelled_by
        assert [("step", False), ("more", True)] == await shop.answers()
        shop.check_announced()


async def _commit_then_stay(turn: Turn) -> None:
    await turn.send(text("step"))
    await trio.sleep(1.5)
    try:
        await turn.commit()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await turn.send(text("more"))
    await trio.sleep_forever()


async def test_a_commit_whose_caller_gave_up_is_stored_before_the_turn_ends(autojump_clock: MockClock) -> None:
    """A responder that waits no longer for its commit and returns ends the turn behind it."""

    async def script(turn: Turn) -> None:
        await turn.send(text("a"))
        with trio.move_on_after(1):
            await turn.commit()

    async with open_workshop(Scripted(script)) as shop:
        shop.store.plan("Commit", "fail", "fail", "fail", "fail", "fail", "fail", "fail")
        await shop.create()
        await until_idle(30)
        assert ["Acquire", "Commit", "FinishTurn"] == shop.store.names()
        assert [("a", False)] == await shop.answers()
        shop.check_announced()


# ------------------------------------------------------------------------------------------------- attempts


async def test_a_retryable_error_gives_a_new_attempt_after_a_delay(autojump_clock: MockClock) -> None:
    """The failed attempt is recorded, its parts are nobody's message, and the responder starts again."""
    responder = Scripted(says("bad", then=RetryableError("overloaded", 7.0)), says("good"))
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle()
        chat = await shop.chat()
        assert RetryState(attempt=1, delay_seconds=7.0, error="overloaded") == chat.retry_state
        assert (None, "running") == (chat.live_episode, chat.status)
        await until_idle(6.9)
        assert 1 == len(responder.turns)
        await until_idle(0.2)
        assert ["Acquire", "RecordRetry", "BeginAttempt", "FinishTurn"] == shop.store.names()
        assert [1, 2] == [turn.attempt for turn in responder.turns]
        assert 1 == len(responder.turns[1].messages)
        assert [("good", False)] == await shop.answers()
        logs = [shop.log(shop.announced[0]), shop.log(shop.announced[2])]
        assert [["bad"], ["good"]] == [[row["part"]["text"] for row in rows(log)] for log in logs]
        shop.check_announced()


async def test_delays_double_with_full_jitter(autojump_clock: MockClock) -> None:
    """Without a time of the responder's own the delay is drawn from a range that doubles."""
    errors = [RetryableError("x") for _ in range(30)]
    responder = Scripted(*[says(then=error) for error in errors])
    delays = []
    async with open_workshop(responder, attempts=30, retry_seconds=1.0, retry_max_seconds=8.0) as shop:
        await shop.create()
        await until_idle(1000)
        delays = [chat.retry_state.delay_seconds for chat in shop.announced if chat.retry_state is not None]
    bounds = [1.0, 2.0, 4.0] + [8.0] * 26
    assert 29 == len(delays)
    assert all(0 <= delay < bound for delay, bound in zip(delays, bounds, strict=True))
    assert max(delays) > 4.0
    assert len(set(delays)) == 29


@pytest.mark.parametrize(("told", "expected"), [(-1.0, 0.0), (0, 0.0), (float("inf"), 86400.0), (1e9, 86400.0)])
async def test_a_senseless_delay_is_brought_to_reason(autojump_clock: MockClock, told: Any, expected: float) -> None:
    """What a responder says of the time to wait cannot break the run."""
    async with open_workshop(Scripted(says(then=RetryableError("x", told)), says("a"))) as shop:
        await shop.create()
        await until_idle()
        retries = [chat.retry_state for chat in shop.announced if chat.retry_state is not None]
        assert [expected] == [retry.delay_seconds for retry in retries]


@pytest.mark.parametrize("told", [float("nan"), "soon", None])
async def test_no_delay_at_all_is_the_engines_own(autojump_clock: MockClock, told: Any) -> None:
    """What is no number says nothing."""
    async with open_workshop(Scripted(says(then=RetryableError("x", told)), says("a"))) as shop:
        await shop.create()
        await until_idle(1.0)
        assert [("a", False)] == await shop.answers()


async def test_viewers_are_told_one_short_line_of_the_error(autojump_clock: MockClock) -> None:
    """Whatever a responder puts into its error, the chat's row can hold it."""
    nasty = "too\x00 many\n\n\ud800 requests " + "x" * 1000
    async with open_workshop(Scripted(says(then=RetryableError(nasty, 1)), says("a"))) as shop:
        await shop.create()
        await until_idle()
        (retry,) = [chat.retry_state for chat in shop.announced if chat.retry_state is not None]
        assert retry.error.startswith("too many ? requests xxx")
        assert 200 == len(retry.error)


async def test_after_the_last_attempt_the_chat_is_parked(autojump_clock: MockClock) -> None:
    """A run makes so many attempts; what the last one had generated is kept, of the others nothing."""
    responder = Scripted(*[says(f"try {n}", then=RetryableError("overloaded", 1)) for n in (1, 2, 3)])
    async with open_workshop(responder, attempts=3) as shop:
        await shop.create()
        await until_idle(10)
        chat = await shop.chat()
        assert ("error", None) == (chat.status, chat.worker_id)
        assert chat.last_error is not None
        assert ("responder_failed", "3 attempts failed, the last one: overloaded") == (
            chat.last_error.kind,
            chat.last_error.message,
        )
        assert [1, 2, 3] == [turn.attempt for turn in responder.turns]
        assert [("try 3", True)] == await shop.answers()
        shop.check_announced()


async def test_attempts_are_counted_since_the_history_changed(autojump_clock: MockClock) -> None:
    """A turn that has come further has all its attempts again, and the next one sees what was committed."""
    attempts = []

    async def fails_late(turn: Turn) -> None:
        attempts.append(turn.attempt)
        await turn.commit([{"content": "step"}])
        attempts.append(turn.attempt)
        raise RetryableError("x", 1)

    responder = Scripted(says(then=RetryableError("x", 1)), fails_late, says(then=RetryableError("x", 1)), says("end"))
    async with open_workshop(responder, attempts=3) as shop:
        await shop.create()
        await until_idle(10)
        assert [2, 1] == attempts
        assert [1, 1, 2, 3] == [turn.attempt for turn in responder.turns]
        assert [1, 1, 2, 2] == [len(turn.messages) for turn in responder.turns]
        assert [("step", False), ("end", False)] == await shop.answers()
        shop.check_announced()


async def test_any_other_error_fails_at_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """The chat is parked, what was generated is kept, the log has the traceback, and the person no details."""
    async with open_workshop(Scripted(says("half", then=ValueError("secret")))) as shop:
        await shop.create()
        await until_idle()
        chat = await shop.chat()
        assert chat.last_error is not None
        assert ("error", "responder_failed", "the responder failed (ValueError)") == (
            chat.status,
            chat.last_error.kind,
            chat.last_error.message,
        )
        assert [("half", True)] == await shop.answers()
        assert ["Acquire", "Fail"] == shop.store.names()
        shop.check_announced()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert ValueError is record.exc_info[0]


async def test_a_responder_that_is_no_coroutine_function_fails(autojump_clock: MockClock) -> None:
    """The embedding program's mistake parks the chat; it does not bring the replica down."""
    async with open_workshop(lambda turn: 42) as shop:  # type: ignore[arg-type,return-value]
        await shop.create()
        await until_idle()
        assert "error" == (await shop.chat()).status


@pytest.mark.parametrize("wrapped", [False, True])
async def test_an_answer_too_large_that_nobody_catches_is_kept_and_truncated(
    autojump_clock: MockClock, wrapped: bool
) -> None:
    """What there is becomes the message, marked truncated; also when the responder's own nursery wrapped the error."""

    async def script(turn: Turn) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(says("a" * 50, "b" * 50), turn)
            nursery.start_soon(trio.sleep_forever)

    async with open_workshop(Scripted(script if wrapped else says("a" * 50, "b" * 50)), answer_bytes=90) as shop:
        await shop.create()
        await until_idle()
        message = (await shop.messages())[1]
        assert ([text("a" * 50)], True, False) == (message.content, message.truncated, message.interrupted)
        assert ["Acquire", "FinishTurn"] == shop.store.names()


async def test_an_answer_too_large_can_be_caught(autojump_clock: MockClock) -> None:
    """A responder may commit what it has and go on."""

    async def script(turn: Turn) -> None:
        await turn.send(text("a" * 50))
        with pytest.raises(AnswerTooLarge):
            await turn.send(text("b" * 50))
        await turn.commit()
        await turn.send(text("b" * 50))

    async with open_workshop(Scripted(script), answer_bytes=90) as shop:
        await shop.create()
        await until_idle()
        assert [("a" * 50, False), ("b" * 50, False)] == await shop.answers()
        assert [False, True, False] == [message.truncated for message in await shop.messages()]


async def test_errors_are_found_in_the_groups_of_the_responders_nurseries(autojump_clock: MockClock) -> None:
    """A group of retryable errors is one; a group with anything else in it is a failure."""

    async def raises(*errors: Exception) -> None:
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("nursery", [ExceptionGroup("inner", list(errors))])

    responder = Scripted(
        lambda turn: raises(RetryableError("a", 1), RetryableError("b", 2)),
        lambda turn: raises(RetryableError("a", 1), ValueError("b")),
    )
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle(10)
        assert ["Acquire", "RecordRetry", "BeginAttempt", "Fail"] == shop.store.names()
