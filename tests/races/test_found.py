"""What histories have found in the engine: the smallest one that shows it, once for each."""

from __future__ import annotations

import attrs

from relaytrio._protocol.chat import Chat
from relaytrio._protocol.events import NO_MESSAGE, Cursor, Event, Message, MessageRef, RetryState, Status
from relaytrio._protocol.resume import Progress
from relaytrio.stores._base import View
from relaytrio.testing import EXPLORING, AnswerPlan, Edit, HintFaults, History, Mend, Schedule, Send, SetBack, Step
from relaytrio.testing import run_history as run

RUNNING = Chat(
    id="c",
    status="running",
    worker_id="w",
    run_id="former",
    snapshot_version=3,
    history_version=2,
    generation_attempt=1,
)
RETRY = RetryState(attempt=1, delay_seconds=1.0, error="busy")


def view(chat: Chat, base: MessageRef, *messages: Message, live: bool = True) -> View:
    anchor = base if live else NO_MESSAGE
    return View(chat=chat, queue=(), base=base, base_live=live, anchor=anchor, messages=messages, more=False)


def question(stamp: str) -> Message:
    return Message(id=1, stamp=stamp, role="user", content=[{"type": "text", "text": "q"}], version=2, created_at="")


def statuses(events: list[Event]) -> list[int]:
    return [event.version for event in events if isinstance(event, Status)]


def test_a_run_does_not_answer_a_history_that_is_not_its_own() -> None:
    """CATCH_UP: an edit between the acquire and the read of the history. The rows of the run that lost its chat would
    name the new question as known, and whoever resumed from one of them would never be sent it."""
    history = History(
        steps=(Step(do=Send(replica=1)), Step(after_seconds=0.15, do=Edit())),
        viewers=(1,),
        hints=HintFaults(delivered=0.0),
        store_latency_seconds=0.04,
    )
    for seed in range(30):
        run(attrs.evolve(history, seed=seed), Schedule.random(seed))


def test_a_run_whose_chat_was_set_back_does_not_take_the_replica_with_it() -> None:
    """The attempt that it begins then is one that it has had already: it gives the chat back, and nothing else ends."""
    history = History(
        steps=(
            Step(after_seconds=0.5, do=Send(plan=AnswerPlan(parts=3, pause_seconds=0.5, failures=3))),
            Step(after_seconds=0.1, do=Mend()),  # in its first attempt
            Step(after_seconds=1.4, do=SetBack(operations=1)),  # in its second one
        )
    )
    run(history, settings=attrs.evolve(EXPLORING, retry_seconds=0.001))


def test_a_version_that_comes_again_after_a_restore_is_told_again() -> None:
    """SUPERSEDED: another chat's life can have the same status at the same version; its parts need it told."""
    progress = Progress.start(Cursor())
    first = question("aaaaa")
    assert [3] == statuses(progress.take(view(RUNNING, NO_MESSAGE, first)))
    again = attrs.evolve(RUNNING, run_id="latter")
    assert [3] == statuses(progress.take(view(again, first.ref, question("bbbbb"), live=False)))


def test_a_version_that_stands_for_another_episode_is_told_again() -> None:
    """The same after a restore to the middle of a turn: a retry was told of that version, now an episode is live."""
    progress = Progress.start(Cursor())
    first = question("aaaaa")
    failed = attrs.evolve(RUNNING, retry_state=RETRY, attempt_failed=True)
    assert [3] == statuses(progress.take(view(failed, NO_MESSAGE, first)))
    assert [3] == statuses(progress.take(view(attrs.evolve(RUNNING, generation_attempt=2), first.ref)))
    assert [] == statuses(progress.take(view(attrs.evolve(RUNNING, generation_attempt=2), first.ref)))
