"""The net holds: an engine that is broken on purpose, in one place at a time, is caught, and by the right name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
import trio

from relaytrio import Cursor
from relaytrio._hints import Hints
from relaytrio._merge import Merge
from relaytrio._ownership import Ownership
from relaytrio._protocol import chat as chat_rules
from relaytrio._protocol.chat import Command, EditMessage, FinishTurn, RunCommand
from relaytrio._protocol.events import Message
from relaytrio._relay import _Following, _Target
from relaytrio._subscription import Subscription
from relaytrio._watch import Watch as Watching
from relaytrio.stores._base import Candidate, IdempotencyKey, Outcome
from relaytrio.testing import (
    AnswerPlan,
    Break,
    ClusterInvariant,
    ClusterViolation,
    Edit,
    HintFaults,
    History,
    Ledger,
    Schedule,
    Send,
    SetBack,
    Step,
    Stop,
    Unplug,
    Watch,
    random_history,
    run_history,
    shrink,
)
from relaytrio.testing._simulated_store import SimulatedStore

LONG = AnswerPlan(parts=10, pause_seconds=0.1)


def steps(*what: Any) -> tuple[Step, ...]:
    """Operations, and before each the seconds that pass."""
    return tuple(Step(after_seconds=seconds, do=do) for seconds, do in zip(what[::2], what[1::2], strict=True))


def caught(history: History, **options: Any) -> ClusterInvariant:
    """Which invariant the history breaks, over several orders of tasks, latencies and ids."""
    for seed in range(40):
        try:
            run_history(attrs.evolve(history, seed=history.seed + seed), Schedule.random(seed), **options)
        except ClusterViolation as violation:
            return violation.invariant
    raise AssertionError("nothing was noticed")


# Remote work: the viewers are on the replica that does not own the chat.
WATCHED_FROM_AFAR = History(
    steps=steps(0.5, Send(plan=LONG), 2.0, Send(replica=1, plan=LONG), 3.0, Stop()), viewers=(0, 1)
)


@pytest.mark.parametrize(
    "history",
    [
        WATCHED_FROM_AFAR,
        History(steps=steps(0.5, Send(plan=LONG), 0.3, SetBack(), 3.0, Send())),
        History(
            steps=steps(0.5, Send(plan=LONG), 0.3, Edit(plan=LONG), 0.2, Break(replica=0, how="pause"), 30.0, Stop())
        ),
        History(steps=steps(0.5, Send(plan=LONG), 0.3, Unplug(one=0, other=1, how="half-open"), 3.0, Stop())),
        History(steps=steps(0.5, Send(), 1.0, Send()), hints=HintFaults(delivered=0.0)),
    ],
)
def test_a_whole_engine_is_not_blamed(history: History) -> None:
    """What the faults below are found with passes without them."""
    for seed in range(5):
        run_history(history, Schedule.random(seed))


async def stay(self: Subscription) -> None:
    """A relay that nobody closes when the chat has not run elsewhere for a while."""
    await trio.sleep_forever()


def test_a_relay_that_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """STOPS: its legs stay when the chat has ended."""
    monkeypatch.setattr(_Target, "leave", lambda self: None)
    monkeypatch.setattr(Subscription, "_until_unneeded", stay)
    assert "STOPS" == caught(WATCHED_FROM_AFAR)


def test_a_relay_that_does_not_cancel_the_old_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """STOPS: what was started for a worker outlives it."""
    turn_to = _Following._turn_to

    def turn_and_keep(self: _Following, notification: Any) -> None:
        target = self._target
        if target is not None and target.worker_id != self._remote_worker(notification):
            # Forgotten, not cancelled.
            self._target = None
        turn_to(self, notification)

    monkeypatch.setattr(_Following, "_turn_to", turn_and_keep)
    monkeypatch.setattr(Subscription, "_until_unneeded", stay)
    assert "STOPS" == caught(WATCHED_FROM_AFAR)


def test_a_hint_that_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONVERGES: whoever takes a hint for the truth, and reads nothing, shows what is not so."""

    def believe(self: Watching, snapshot_version: int) -> None:
        self._seen = max(self._seen, snapshot_version)

    async def no_poll(self: Hints) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Watching, "hinted", believe)
    monkeypatch.setattr(Hints, "_compare", no_poll)
    assert "CONVERGES" == caught(WATCHED_FROM_AFAR)


def test_a_poll_that_only_looks_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONVERGES: a database that was set back is never noticed by a comparison with `>`."""

    async def only_newer(self: Hints) -> None:
        stored = await self._store.fingerprints(tuple(self._watchers))
        for chat_id, watchers in self._watchers.items():
            for watcher in tuple(watchers):
                seen = watcher.fingerprint
                if seen is None or stored[chat_id].snapshot_version > seen.snapshot_version:
                    watcher.look()

    monkeypatch.setattr(Hints, "_compare", only_newer)
    history = History(steps=steps(0.5, Send(), 1.0, SetBack()), replicas=1)
    assert "CONVERGES" == caught(history)


class Unfenced(Ledger):
    """A store that takes every transition of a run for one of the chat's own run."""

    def _apply(self, chat_id: str, command: Command, key: IdempotencyKey | None) -> Outcome:
        decide = chat_rules.decide
        record = self.record(chat_id)
        assert record is not None
        run_id = record.chat.run_id

        def lenient(state: Any, command: Command, *arguments: Any, **options: Any) -> Any:
            if isinstance(command, RunCommand) and run_id is not None:
                command = attrs.evolve(command, run_id=run_id)
            return decide(state, command, *arguments, **options)

        with replaced("relaytrio.stores.memory.decide", lenient):
            return super()._apply(chat_id, command, key)


@contextmanager
def replaced(name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, value)
        yield


def test_a_store_without_a_fence() -> None:
    """FENCED: a run that was taken over while it stood still finishes a turn that is another's."""
    history = History(
        steps=steps(
            *(0.5, Break(replica=1, how="pause")),  # so that replica 0 acquires it
            *(0.1, Send(plan=AnswerPlan(parts=1, pause_seconds=10.0))),
            *(0.5, Break(replica=1, how="resume")),
            *(0.5, Break(replica=0, how="pause")),
            *(15.0, Break(replica=0, how="resume")),  # when the other one has taken over, and has not finished
        ),
        hints=HintFaults(delivered=0.0),
    )
    assert "FENCED" == caught(history, ledger=Unfenced)


def test_an_announcement_of_a_lost_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """FENCED: a run that has lost its chat tells nobody, least of all what is not so."""
    end = Ownership.end

    def end_and_tell(self: Ownership) -> None:
        end(self)
        self._place.announce(self.chat)

    monkeypatch.setattr(Ownership, "end", end_and_tell)
    history = History(steps=steps(0.5, Send(plan=LONG), 0.3, Edit(), 0.3, Edit()))
    assert "FENCED" == caught(history)


class Hasty(Ledger):
    """A store that offers chats of replicas that are alive."""

    def _candidates(self, dead: frozenset[str]) -> Iterator[Candidate]:
        return super()._candidates(frozenset(self._replicas))


def test_a_take_over_of_a_healthy_replica() -> None:
    """FENCED: nobody is found dead without a reason."""
    history = History(steps=steps(0.5, Send(plan=AnswerPlan(parts=50, pause_seconds=0.1))))
    assert "FENCED" == caught(history, ledger=Hasty)


class Forgetful(Ledger):
    """A store that forgets its queue at the end of a turn."""

    def _apply(self, chat_id: str, command: Command, key: IdempotencyKey | None) -> Outcome:
        record = self.record(chat_id)
        if isinstance(command, FinishTurn) and record is not None:
            record.queue = record.queue[:-1]
        return super()._apply(chat_id, command, key)


def test_a_queue_that_loses_a_message() -> None:
    """ONCE: what was taken is there in the end."""
    history = History(steps=steps(0.5, Send(plan=LONG), 0.1, Send(), 0.1, Send()))
    assert "ONCE" == caught(history, ledger=Forgetful)


def test_a_worker_that_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """NEVER_HANGS: a chat that nobody acquires."""

    async def nothing(self: SimulatedStore, dead: object, limit: int = 100) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return []

    monkeypatch.setattr(SimulatedStore, "candidates", nothing)
    assert "NEVER_HANGS" == caught(WATCHED_FROM_AFAR)


def test_a_listener_that_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_LEAK: a subscription that ends takes its place among the watchers with it."""

    @contextmanager
    def for_ever(self: Hints, chat_id: str, watcher: Any) -> Iterator[None]:
        self._watchers.setdefault(chat_id, {})[watcher] = None
        self._watched.set()
        yield

    monkeypatch.setattr(Hints, "watching", for_ever)
    assert "NO_LEAK" == caught(WATCHED_FROM_AFAR)


def test_an_end_that_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAST_PARTS: the message comes after its parts, not in their place."""
    monkeypatch.setattr(Merge, "_must_hold", lambda self, view: False)
    history = History(
        steps=steps(0.5, Send(plan=LONG), 2.0, Send(replica=1, plan=LONG)), viewers=(0, 1, 0, 1), latency_seconds=0.04
    )
    assert "LAST_PARTS" == caught(history)


def test_a_history_that_is_not_the_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """CATCH_UP: a run that was edited away reads the new history, and its rows name messages that nobody had."""

    async def unchecked(self: Ownership) -> tuple[Message, ...]:
        return tuple(await self._place.store.list_messages(self.chat.id))

    monkeypatch.setattr(Ownership, "history", unchecked)
    history = History(
        steps=steps(0.0, Send(replica=1), 0.15, Edit()),
        viewers=(1,),
        hints=HintFaults(delivered=0.0),
        store_latency_seconds=0.04,
        seed=415,
    )
    assert "CATCH_UP" == caught(history)


def test_a_cursor_that_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """ORDER: what a viewer has is not sent again when it comes back."""
    monkeypatch.setattr(Cursor, "parse", classmethod(lambda cls, text: Cursor()))
    history = History(steps=steps(0.5, Send(), 1.0, Watch(viewer=0, replica=1)))
    assert caught(history) in ("ORDER", "CATCH_UP", "GRAMMAR")


def test_random_histories_find_it_and_shrink_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that nobody thought of is found by seed, and what is left of it is what it needs."""

    def keep_queue(state: Any, command: Command, *arguments: Any, **options: Any) -> Any:
        transition = decide(state, command, *arguments, **options)
        if isinstance(command, EditMessage):
            # An edit is to clear the queue; here what was in it comes back twice.
            return attrs.evolve(transition, queue=state.queue * 2)
        return transition

    decide = chat_rules.decide
    monkeypatch.setattr("relaytrio.stores.memory.decide", keep_queue)
    for seed in range(200):
        try:
            run_history(random_history(seed, faults=False), Schedule.random(seed))
        except ClusterViolation:
            break
    else:
        raise AssertionError("nothing was found")
    history, schedule, violation = shrink(random_history(seed, faults=False), Schedule.random(seed), run_history)
    kinds = [type(step.do).__name__ for step in history.steps]
    assert "Edit" in kinds
    assert len(kinds) <= 5  # of ten
    assert Schedule() == schedule
    assert violation.invariant in ("ONCE", "NEVER_STRANDED", "CONVERGES", "ENGINE")


def test_a_chat_is_named_in_the_report() -> None:
    """A violation prints what concerns it: which chat, who did what when, in words."""

    class Parks(Ledger):
        def _candidates(self, dead: frozenset[str]) -> Any:
            return iter(())

    with pytest.raises(ClusterViolation) as failed:
        run_history(History(steps=steps(0.5, Send())), ledger=Parks)
    text = str(failed.value)
    assert text.startswith("NEVER_HANGS: chat 1 is still running and owned by nobody")
    assert "SendMessage -> running version 2" in text
    assert "viewer 1 status running" in text
