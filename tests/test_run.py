"""One ownership of a chat: what its supervisor does with turns, attempts, Stops, losses and a store that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._errors import AnswerTooLarge, RetryableError, TurnOver
from relaytrio._protocol.chat import Acquire, Chat, Commit, Create, EditMessage, PromoteQueued, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import Episode, RetryState
from relaytrio._turn import Turn
from relaytrio.stores._base import Replica
from relaytrio.stores.memory import MemoryStore
from tests.workshop import THERE, Fault, Workshop, no_responder, open_workshop, rows, text, until_idle


class Responder:
    """A responder that a test leads: each call takes the next script, the last one again and again."""

    def __init__(self, *scripts: Any) -> None:
        self._scripts = list(scripts)
        self.turns: list[Turn] = []

    async def __call__(self, turn: Turn) -> None:
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        self.turns.append(turn)
        await script(turn)


def says(*parts: str, then: BaseException | None = None) -> Any:
    """Sends these texts, then raises or returns."""

    async def script(turn: Turn) -> None:
        for part in parts:
            await turn.send(text(part))
        if then is not None:
            raise then

    return script


def stays(*parts: str) -> Any:
    """Sends these texts and goes on for ever."""

    async def script(turn: Turn) -> None:
        await says(*parts)(turn)
        await trio.sleep_forever()

    return script


def edit_of_first() -> EditMessage:
    return EditMessage(message_id=1, content=user_message("rather").content)


# ------------------------------------------------------------------------------------------------- one turn


async def test_a_turn_from_the_question_to_the_answer(autojump_clock: MockClock) -> None:
    """The responder sees the history, its parts go to the episode's log, and what they said becomes the message."""
    responder = Responder(says("Hel", "lo"))
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
    responder = Responder(says("a"))
    async with open_workshop(responder, page_bytes=30) as shop:
        await shop.create()
        for number in range(5):
            await until_idle()
            await shop.send(f"more {number}")
        await until_idle()
        assert list(range(1, 12)) == [message.id for message in responder.turns[-1].messages]


async def test_a_run_id_is_ten_characters(autojump_clock: MockClock) -> None:
    """The fence is random, and short enough for a cursor."""
    async with open_workshop(Responder(says("a"))) as shop:
        await shop.create()
        await until_idle()
        run_id = shop.announced[0].run_id
        assert run_id is not None
        assert (10, True) == (len(run_id), run_id.isalnum())


async def test_a_responder_that_sends_nothing_leaves_no_message(autojump_clock: MockClock) -> None:
    """No parts, no message; the turn ends all the same."""
    async with open_workshop(Responder(says())) as shop:
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

    async with open_workshop(Responder(script)) as shop:
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

    async with open_workshop(Responder(script)) as shop:
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

    async with open_workshop(Responder(script)) as shop:
        await shop.create()
        await until_idle()
        assert ("waiting", [("a", False)]) == ((await shop.chat()).status, await shop.answers())
    assert ["the responder failed while it ended, on chat c"] == _logged(caplog, logging.WARNING)


async def test_a_queued_message_is_answered_by_the_same_run(autojump_clock: MockClock) -> None:
    """The end of a turn promotes the head of the queue, and the run goes on: new history, attempt 1, a new log."""
    responder = Responder(stays("one"), says("two"))
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

    async with open_workshop(Responder(script)) as shop:
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
    responder = Responder(_commit_then_stay)
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

    async with open_workshop(Responder(script)) as shop:
        shop.store.plan("Commit", "fail", "fail", "fail", "fail", "fail", "fail", "fail")
        await shop.create()
        await until_idle(30)
        assert ["Acquire", "Commit", "FinishTurn"] == shop.store.names()
        assert [("a", False)] == await shop.answers()
        shop.check_announced()


# ------------------------------------------------------------------------------------------------- attempts


async def test_a_retryable_error_gives_a_new_attempt_after_a_delay(autojump_clock: MockClock) -> None:
    """The failed attempt is recorded, its parts are nobody's message, and the responder starts again."""
    responder = Responder(says("bad", then=RetryableError("overloaded", 7.0)), says("good"))
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
    responder = Responder(*[says(then=error) for error in errors])
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
    async with open_workshop(Responder(says(then=RetryableError("x", told)), says("a"))) as shop:
        await shop.create()
        await until_idle()
        retries = [chat.retry_state for chat in shop.announced if chat.retry_state is not None]
        assert [expected] == [retry.delay_seconds for retry in retries]


@pytest.mark.parametrize("told", [float("nan"), "soon", None])
async def test_no_delay_at_all_is_the_engines_own(autojump_clock: MockClock, told: Any) -> None:
    """What is no number says nothing."""
    async with open_workshop(Responder(says(then=RetryableError("x", told)), says("a"))) as shop:
        await shop.create()
        await until_idle(1.0)
        assert [("a", False)] == await shop.answers()


async def test_viewers_are_told_one_short_line_of_the_error(autojump_clock: MockClock) -> None:
    """Whatever a responder puts into its error, the chat's row can hold it."""
    nasty = "too\x00 many\n\n\ud800 requests " + "x" * 1000
    async with open_workshop(Responder(says(then=RetryableError(nasty, 1)), says("a"))) as shop:
        await shop.create()
        await until_idle()
        (retry,) = [chat.retry_state for chat in shop.announced if chat.retry_state is not None]
        assert retry.error.startswith("too many ? requests xxx")
        assert 200 == len(retry.error)


async def test_after_the_last_attempt_the_chat_is_parked(autojump_clock: MockClock) -> None:
    """A run makes so many attempts; what the last one had generated is kept, of the others nothing."""
    responder = Responder(*[says(f"try {n}", then=RetryableError("overloaded", 1)) for n in (1, 2, 3)])
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

    responder = Responder(says(then=RetryableError("x", 1)), fails_late, says(then=RetryableError("x", 1)), says("end"))
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
    async with open_workshop(Responder(says("half", then=ValueError("secret")))) as shop:
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

    async with open_workshop(Responder(script if wrapped else says("a" * 50, "b" * 50)), answer_bytes=90) as shop:
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

    async with open_workshop(Responder(script), answer_bytes=90) as shop:
        await shop.create()
        await until_idle()
        assert [("a" * 50, False), ("b" * 50, False)] == await shop.answers()
        assert [False, True, False] == [message.truncated for message in await shop.messages()]


async def test_errors_are_found_in_the_groups_of_the_responders_nurseries(autojump_clock: MockClock) -> None:
    """A group of retryable errors is one; a group with anything else in it is a failure."""

    async def raises(*errors: Exception) -> None:
        raise ExceptionGroup("nursery", [ExceptionGroup("inner", list(errors))])

    responder = Responder(
        lambda turn: raises(RetryableError("a", 1), RetryableError("b", 2)),
        lambda turn: raises(RetryableError("a", 1), ValueError("b")),
    )
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle(10)
        assert ["Acquire", "RecordRetry", "BeginAttempt", "Fail"] == shop.store.names()


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

    async with open_workshop(Responder(script)) as shop:
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

    async with open_workshop(Responder(script)) as shop:
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

    async with open_workshop(Responder(script)) as shop:
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
        try:
            await stays("half")(turn)
        except trio.Cancelled:
            if ending is not None:
                raise ending from None

    async with open_workshop(Responder(script)) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle()
        assert ["Acquire", "FinishInterruption"] == shop.store.names()
        assert [("half", True)] == await shop.answers()
    assert isinstance(ending, ValueError) == bool(_logged(caplog, logging.WARNING))


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

    responder = Responder(script, says("next"))
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
            line.partition(":")[0] for line in _logged(caplog, logging.ERROR)
        ]
        await until_idle(5)
        assert [6.0] == refused
        release.set()
        await until_idle()
        assert ["the responder of chat c has ended at last"] == _logged(caplog, logging.WARNING)
        shop.check_announced()


async def test_a_responder_that_swallows_cancelled_and_waits_on_is_cancelled_again(autojump_clock: MockClock) -> None:
    """Trio delivers the cancellation at every checkpoint: a loop that ignores it once still ends at the next."""
    rounds = []

    async def script(turn: Turn) -> None:
        for _ in range(3):
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                rounds.append(turn.cancelled_by)

    async with open_workshop(Responder(script)) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle()
        assert ["interrupt"] * 3 == rounds
        assert "waiting" == (await shop.chat()).status


async def test_a_stop_during_the_delay_keeps_nothing(autojump_clock: MockClock) -> None:
    """The parts of an attempt that was recorded as failed are never a message; the delay ends at once."""
    async with open_workshop(Responder(says("bad", then=RetryableError("x", 60)))) as shop:
        await shop.create()
        await until_idle(1)
        await shop.interrupt()
        await until_idle()
        assert ["Acquire", "RecordRetry", "FinishInterruption"] == shop.store.names()
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

    async with open_workshop(Responder(waits)) as shop:
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
    responder = Responder(says("bad", then=RetryableError("x", 5)), no_responder)
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

    async with open_workshop(Responder(winds_up, no_responder)) as shop:
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
    responder = Responder(stays("half"), says("now"))
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle()
        queued = await shop.send("urgent")
        assert queued.queued_id is not None
        await shop.apply(PromoteQueued(queued_id=queued.queued_id))
        await until_idle()
        assert [("half", True), ("now", False)] == await shop.answers()
        shop.check_announced()


async def test_a_hint_without_a_stop_interrupts_nothing(autojump_clock: MockClock) -> None:
    """A hint only says look: a queued message is seen and the responder goes on."""
    responder = Responder(stays("a"))
    async with open_workshop(responder) as shop:
        await shop.create()
        await until_idle()
        for _ in range(3):
            await shop.send("later")
            await until_idle()
        assert responder.turns[0].cancelled_by is None
        assert ["Acquire"] == shop.store.names()


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

    responder = Responder(script, stays())
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


async def test_a_deleted_chat_is_a_lost_one(autojump_clock: MockClock) -> None:
    """The responder of a chat that was deleted is cancelled, and nothing else happens."""
    responder = Responder(stays("a"))
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
    async with open_workshop(Responder(_sleeps_a_second)) as shop:
        await shop.create()
        await until_idle()
        await shop.store.delete_chat("c")
        await until_idle(2)
        assert {} == dict(shop.worker.runs)
        assert 1 == len(shop.announced)


async def _sleeps_a_second(turn: Turn) -> None:
    await trio.sleep(1)


async def test_an_edit_is_answered_at_once_by_a_new_run(autojump_clock: MockClock) -> None:
    """The old run's responder may take its time to end: the chat does not wait for it."""

    async def slow_to_end(turn: Turn) -> None:
        try:
            await stays("old")(turn)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 4):
                await trio.sleep(3)

    async with open_workshop(Responder(slow_to_end, says("new"))) as shop:
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

    async with open_workshop(Responder(script)) as shop:
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


# -------------------------------------------------------------------------------- a store that does not answer


_TURNS: dict[str, tuple[Callable[[], Responder], list[tuple[str, bool]]]] = {
    "Commit": (lambda: Responder(lambda turn: _commit_and_end(turn)), [("a", False), ("b", False)]),
    "FinishTurn": (lambda: Responder(says("a")), [("a", False)]),
    "RecordRetry": (lambda: Responder(says("x", then=RetryableError("x", 1)), says("a")), [("a", False)]),
    "BeginAttempt": (lambda: Responder(says("x", then=RetryableError("x", 1)), says("a")), [("a", False)]),
    "Fail": (lambda: Responder(says("a", then=ValueError("x"))), [("a", True)]),
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
    async with open_workshop(Responder(stays("a"))) as shop:
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
    async with open_workshop(Responder(_commit_and_end), acquire_seconds=1e6) as shop:

        def edit_once(command: Any) -> None:
            if isinstance(command, Commit):
                shop.store.after_apply = lambda command: None
                shop.store._apply("c", edit_of_first(), None)

        shop.store.after_apply = edit_once
        shop.store.plan("Commit", "lose")
        await shop.create()
        await until_idle(5)
        first, *others = shop.announced
        assert first.run_id not in [chat.run_id for chat in others]
        assert [("a", False), ("b", False)] == await shop.answers()
        assert ["Acquire", "Commit", "Acquire", "Commit", "FinishTurn"] == shop.store.names()


async def test_generation_goes_on_while_the_store_does_not_answer(autojump_clock: MockClock) -> None:
    """An outage shorter than a run's patience costs nothing: not a part, not the answer."""

    async def script(turn: Turn) -> None:
        for number in range(40):
            await turn.send(text(f"{number} "))
            await trio.sleep(1)

    async with open_workshop(Responder(script)) as shop:
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
    async with open_workshop(Responder(_sleeps_a_second)) as shop:
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
        assert 1 == len(_logged(caplog, logging.ERROR))


async def test_a_history_that_cannot_be_read_is_read_when_it_can(autojump_clock: MockClock) -> None:
    """The first read of a run is as patient as its transitions."""
    async with open_workshop(Responder(says("a"))) as shop:
        shop.store.plan("list_messages", "fail", "fail")
        await shop.create()
        await until_idle(10)
        assert [("a", False)] == await shop.answers()


async def test_a_stop_is_found_when_the_chat_can_be_read_again(autojump_clock: MockClock) -> None:
    """A look that failed is tried again until it succeeds: the Stop is late, not lost."""
    async with open_workshop(Responder(stays("a"))) as shop:
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
    async with open_workshop(Responder(stays("a"))) as shop:
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
        assert 1 == len(_logged(caplog, logging.WARNING))
        shop.store.before_apply = shop.expect_sealed


# ----------------------------------------------------------------------------------------------- take-overs


async def _died(shop: Workshop, times: int) -> None:
    """So many owners of the chat died, the last one owns it."""
    await MemoryStore.register(shop.store, Replica(id=THERE, address=None, version="1"))
    await MemoryStore.create_chat(shop.store, "c", Create(messages=(user_message("hello"),)))
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
    async with open_workshop(Responder(says("a")), takeovers=3) as shop:
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
    responder = Responder(says("next"))
    async with open_workshop(responder, takeovers=1) as shop:
        await _died(shop, 0)
        await shop.apply(SendMessage(content=user_message("waits").content), hint=False)
        await shop.interrupt(hint=False)
        shop.worker.found_dead(frozenset([THERE]))
        await until_idle()
        assert ["Acquire", "FinishInterruption", "FinishTurn"] == shop.store.names()
        assert [("next", False)] == await shop.answers()


# ------------------------------------------------------------------------------------------------- stopping


async def test_a_run_told_to_leave_lets_its_responder_finish(autojump_clock: MockClock) -> None:
    """A finish that promotes while the replica stops is followed by the hand-over."""
    responder = Responder(_sleeps_a_second, no_responder)
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
    async with open_workshop(Responder(says(then=RetryableError("x", 60)), no_responder), acquire_seconds=1e6) as shop:
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
    responder = Responder(stays("half"))
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
    async with open_workshop(Responder(stays("half"), no_responder), acquire_seconds=1e6) as shop:
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
    async with open_workshop(Responder(stays("half"))) as shop:
        await shop.create()
        await until_idle()
        shop.store.plan("Abandon", "hang")
        shop.worker.runs["c"].stop()
        await until_idle(9.9)
        assert 1 == len(shop.worker.runs)
        await until_idle(0.2)
        assert 0 == len(shop.worker.runs)
        assert 1 == len(shop.announced)


def _logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]
