"""Random lives of a chat: what must hold after every command, whoever sends it and in whatever order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from relaytrio._errors import RelaytrioError
from relaytrio._protocol.chat import (
    Abandon,
    Acquire,
    BeginAttempt,
    Chat,
    ChatState,
    Command,
    Commit,
    Create,
    DeleteQueued,
    EditMessage,
    Fail,
    FinishInterruption,
    FinishTurn,
    Fresh,
    Interrupt,
    NewMessage,
    PromoteQueued,
    RecordRetry,
    RunCommand,
    SendMessage,
    Transition,
    create,
    decide,
)
from relaytrio._protocol.events import ChatError, Content, Episode, Message, RetryState

QUEUE_LIMIT = 3
RETRY = RetryState(attempt=1, delay_seconds=0.5, error="the model is busy")
ERROR = ChatError(kind="responder_failed", message="it broke")
FIRST_TURN = Create(messages=(NewMessage(role="user", content=[{"type": "text", "text": "hi"}]),))


class Model:
    """A store of one chat: it carries out what `decide` returns, and checks it against what it knew before."""

    def __init__(self, command: Create) -> None:
        self.count = itertools.count(1)
        self.state = ChatState(Chat(id="c", status="waiting"))
        self.messages: list[Message] = []
        self.runs: list[str] = []
        self.episodes: list[Episode] = []
        self.last_run_command: RunCommand | None = None
        self._carry_out(command, create("c", command, self.fresh(command)))

    # what commands are made of

    def fresh(self, command: Create | Command) -> Fresh:
        """As many stamps as a store gives, and not one more: one a message, and one for a promoted entry."""
        self.stamps = [f"s{next(self.count)}" for _ in range(brought(command) + 1)]
        self.at = f"instant {next(self.count)}"
        return Fresh(self.at, tuple(self.stamps))

    def content(self) -> Content:
        return [{"type": "text", "text": f"text {next(self.count)}"}]

    def new_messages(self, how_many: int) -> tuple[NewMessage, ...]:
        return tuple(NewMessage(role="assistant", content=self.content()) for _ in range(how_many))

    def queued_id(self, number: int) -> int:
        """Mostly an entry that is there."""
        ids = [entry.id for entry in self.state.queue]
        return int(pick([*ids, *ids, *ids, 99], number))

    def run(self, number: int) -> str:
        """Mostly the chat's run, else one that it may have had before."""
        current = self.state.chat.run_id
        if current is not None and number % 5 != 4:
            return current
        return str(pick([*self.runs[-3:], "never"], number))

    def token(self) -> str:
        return f"token {next(self.count)}"

    # carrying out

    def do(self, command: Command) -> None:
        """Ask for a transition. A refusal changes nothing; else the model becomes what the transition says."""
        before = repr(self.state)
        targets = [m for m in self.messages if isinstance(command, EditMessage) and m.id == command.message_id]
        target = targets[0] if targets else None
        try:
            transition = decide(self.state, command, self.fresh(command), target=target, queue_limit=QUEUE_LIMIT)
        except RelaytrioError:
            assert repr(self.state) == before
            return
        assert repr(self.state) == before
        if not transition.changed:
            assert ChatState(transition.chat, transition.queue) == self.state
            assert (transition.inserted, transition.deleted_from) == ((), None)
            return
        self._carry_out(command, transition)
        if isinstance(command, RunCommand):
            self.last_run_command = command

    def _carry_out(self, command: Create | Command, transition: Transition) -> None:
        old, self.state = self.state, ChatState(transition.chat, transition.queue)
        check_state(self.state)
        check_versions(old, transition)
        check_inserted(old.chat, transition, self.stamps, self.at)
        check_kept(old.chat, command, transition)
        check_queue(old, command, transition)
        self._check_episode(old.chat)
        if transition.deleted_from is not None:
            first = transition.deleted_from
            self.messages = [attrs.evolve(m, deleted=m.deleted or m.id >= first) for m in self.messages]
        self.messages += transition.inserted
        ids = [message.id for message in self.messages]
        assert ids == sorted(set(ids))

    def _check_episode(self, old: Chat) -> None:
        """An episode is begun once, and its numbers are beyond those of all before it."""
        chat = self.state.chat
        if chat.run_id is None:
            return
        episode = Episode(chat.history_version, chat.generation_attempt, chat.run_id)
        if episode == Episode(old.history_version, old.generation_attempt, old.run_id or ""):
            return
        assert chat.generation_attempt > 0
        assert all(episode > other for other in self.episodes[-1:])
        self.episodes.append(episode)


def pick(choices: list[Any], number: int) -> Any:
    return choices[number % len(choices)]


def brought(command: Create | Command) -> int:
    if isinstance(command, SendMessage | EditMessage):
        return 1
    return len(getattr(command, "messages", ()))


# ------------------------------------------------------------------------------------------------- what holds


def check_state(state: ChatState) -> None:
    """What the docstring of chat.py promises of every state, and the bounds of the queue."""
    chat = state.chat
    assert (chat.worker_id is None) == (chat.run_id is None)
    assert chat.worker_id is None or chat.status in ("running", "interrupting")
    assert chat.worker_id is not None or chat.status != "interrupting"
    assert not state.queue or chat.status != "waiting"
    assert chat.retry_state is None or chat.status == "running"
    assert (chat.last_error is not None) == (chat.status == "error")
    assert not chat.attempt_failed or chat.worker_id is not None
    assert chat.retry_state is None or chat.attempt_failed
    urgent = [entry.urgent for entry in state.queue]
    assert urgent == sorted(urgent, reverse=True)
    assert len({entry.id for entry in state.queue}) == len(state.queue) <= QUEUE_LIMIT
    assert all(entry.id < chat.next_queued_id for entry in state.queue)


def check_versions(old: ChatState, transition: Transition) -> None:
    """Versions grow by one, and say exactly whether messages and queue changed."""
    chat, version = transition.chat, old.chat.snapshot_version + 1
    history = bool(transition.inserted) or transition.deleted_from is not None
    asked = any(message.role == "user" for message in transition.inserted)
    assert (chat.snapshot_version, transition.answer.snapshot_version) == (version, version)
    assert chat.history_version == (version if history else old.chat.history_version)
    assert chat.queue_version == (version if transition.queue != old.queue else old.chat.queue_version)
    assert chat.turn_version == (version if asked else old.chat.turn_version)
    assert chat.generation_attempt - old.chat.generation_attempt in (0, 1) or history
    assert not history or (chat.generation_attempt, chat.takeovers) == (int(chat.run_id is not None), 0)


def check_inserted(old: Chat, transition: Transition, stamps: list[str], at: str) -> None:
    """New messages take the next ids, the stamps and the instant that came in, and this version."""
    inserted = transition.inserted
    ids = range(old.next_message_id, old.next_message_id + len(inserted))
    assert [message.id for message in inserted] == list(ids)
    assert [message.stamp for message in inserted] == stamps[: len(inserted)]
    assert {(message.created_at, message.version) for message in inserted} <= {(at, transition.chat.snapshot_version)}
    assert transition.chat.next_message_id == ids.stop
    assert transition.chat.updated_at == at


def check_kept(old: Chat, command: Create | Command, transition: Transition) -> None:
    """A run's messages enter the history whole, marked if they were cut short, but never from a failed attempt."""
    if not isinstance(command, RunCommand):
        return
    asked: tuple[NewMessage, ...] = getattr(command, "messages", ())
    expected = [] if old.attempt_failed else [message.content for message in asked]
    kept = [message for message in transition.inserted if message.queued_id is None]
    assert [message.content for message in kept] == expected
    assert {message.interrupted for message in kept} <= {isinstance(command, FinishInterruption | Fail)}


def check_queue(old: ChatState, command: Create | Command, transition: Transition) -> None:
    """NEVER_STRANDED: an entry leaves by promotion with its content, by deletion, or by an edit; no other way."""
    left = {entry.id: entry.content for entry in old.queue if entry.id not in {e.id for e in transition.queue}}
    promoted = {m.queued_id: m.content for m in transition.inserted if m.queued_id is not None}
    if isinstance(command, DeleteQueued):
        assert (set(left), promoted) == ({command.queued_id}, {})
    elif isinstance(command, EditMessage):
        assert (len(left), promoted) == (len(old.queue), {})
    elif isinstance(command, SendMessage) and not left:
        assert set(promoted) <= {old.chat.next_queued_id}
    else:
        assert promoted == left
    assert len(promoted) <= 1
    entered = {entry.id for entry in transition.queue} - {entry.id for entry in old.queue}
    assert entered <= ({old.chat.next_queued_id} if isinstance(command, SendMessage) else set())
    check_order(old, command, transition)


def check_order(old: ChatState, command: Create | Command, transition: Transition) -> None:
    """Entries never overtake one another, but for one that a person puts first."""
    named = command.queued_id if isinstance(command, PromoteQueued) else None
    stayed = [entry.id for entry in transition.queue if entry.id != named and entry.id < old.chat.next_queued_id]
    assert stayed == [entry.id for entry in old.queue if entry.id in stayed]
    if isinstance(command, FinishTurn | FinishInterruption | Interrupt) and stayed != [e.id for e in old.queue]:
        assert stayed == [entry.id for entry in old.queue[1:]]


# -------------------------------------------------------------------------------------------------- commands

Maker: TypeAlias = Callable[[Model, int], Command]


def acquire(model: Model, number: int) -> Acquire:
    """A new run; its worker has mostly found the present owner dead, or there is none."""
    owner = model.state.chat.worker_id
    model.runs.append(f"run{next(model.count)}")
    dead = pick([owner, owner, None, "another"], number)
    return Acquire(worker_id=f"worker of {model.runs[-1]}", run_id=model.runs[-1], dead_worker_id=dead)


def interrupt(model: Model, number: int) -> Interrupt:
    return Interrupt(of=pick([None, None, *model.episodes[-3:]], number))


def edit(model: Model, number: int) -> EditMessage:
    return EditMessage(message_id=pick([99, *(m.id for m in model.messages)], number), content=model.content())


MAKERS: dict[str, Maker] = {
    "queue": lambda m, n: SendMessage(content=m.content(), when_busy="queue"),
    "interrupting": lambda m, n: SendMessage(content=m.content(), when_busy="interrupt"),
    "reject": lambda m, n: SendMessage(content=m.content(), when_busy="reject"),
    "edit": edit,
    "delete": lambda m, n: DeleteQueued(queued_id=m.queued_id(n)),
    "promote": lambda m, n: PromoteQueued(queued_id=m.queued_id(n)),
    "interrupt": interrupt,
    "acquire": acquire,
    "begin": lambda m, n: BeginAttempt(run_id=m.run(n), token=m.token()),
    "retry": lambda m, n: RecordRetry(run_id=m.run(n), token=m.token(), retry=RETRY),
    "commit": lambda m, n: Commit(run_id=m.run(n), token=m.token(), messages=m.new_messages(n % 3)),
    "finish": lambda m, n: FinishTurn(run_id=m.run(n), token=m.token(), messages=m.new_messages(n % 3)),
    "stop": lambda m, n: FinishInterruption(run_id=m.run(n), token=m.token(), messages=m.new_messages(n % 2)),
    "fail": lambda m, n: Fail(run_id=m.run(n), token=m.token(), error=ERROR, messages=m.new_messages(n % 2)),
    "abandon": lambda m, n: Abandon(run_id=m.run(n), token=m.token()),
}
# Owned chats with a queue are where most rules meet; and a short life hardly gets beyond its first turn.
NAMES = [
    *MAKERS,
    *["acquire"] * 6,
    *["queue", "interrupting"] * 2,
    *["retry", "begin", "commit", "finish", "stop"] * 2,
]
LIVES = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 11)), min_size=12, max_size=40)
BEGINNINGS = st.lists(st.sampled_from(["user", "assistant", "system"]), max_size=3)


def live(model: Model, life: list[tuple[str, int]]) -> Model:
    for name, number in life:
        model.do(MAKERS[name](model, number))
    return model


def begin(roles: list[str]) -> Model:
    return Model(Create(messages=tuple(NewMessage(role=role, content=[{"type": "text"}]) for role in roles)))


# ------------------------------------------------------------------------------------------------- properties


@settings(max_examples=100, deadline=None)
@given(BEGINNINGS, LIVES)
def test_every_life_keeps_the_invariants(roles: list[str], life: list[tuple[str, int]]) -> None:
    """After every command the state, the versions, the messages, the queue and the episodes are as promised."""
    model = live(begin(roles), life)
    assert model.state.chat.next_message_id == len(model.messages) + 1
    assert [m.queued_id for m in model.messages if m.queued_id is not None and m.role != "user"] == []


@settings(max_examples=40, deadline=None)
@given(LIVES)
def test_queue_is_drained_in_the_end(life: list[tuple[str, int]]) -> None:
    """NEVER_STRANDED: from wherever a chat has got to, workers that live and finish promote all that is queued."""
    model = live(Model(FIRST_TURN), life)
    waiting = [entry.id for entry in model.state.queue]
    if model.state.chat.status == "error":
        model.do(SendMessage(content=model.content()))
        waiting = [*waiting, *(entry.id for entry in model.state.queue if entry.id not in waiting)]
    for _ in range(len(waiting) + 1):
        if model.state.chat.status == "waiting":
            break
        model.do(acquire(model, 0))
        finish = FinishInterruption if model.state.chat.status == "interrupting" else FinishTurn
        model.do(finish(run_id=model.runs[-1], token=model.token()))
    assert (model.state.chat.status, model.state.queue) == ("waiting", ())
    promoted = [message.queued_id for message in model.messages if message.queued_id in waiting]
    assert promoted == waiting


@settings(max_examples=40, deadline=None)
@given(LIVES)
def test_last_transition_of_a_run_can_be_asked_for_again(life: list[tuple[str, int]]) -> None:
    """However the chat went on, the last token gives the first answer, whole, and changes nothing."""
    model = live(Model(FIRST_TURN), life)
    command = model.last_run_command
    if command is None:
        assert (model.state.chat.last_token, model.state.chat.last_answer) == (None, None)
        return
    again = decide(model.state, command, Fresh("later", ()))  # type: ignore[arg-type]
    assert (again.changed, again.answer) == (False, model.state.chat.last_answer)
    assert ChatState(again.chat, again.queue) == model.state


@settings(max_examples=40, deadline=None)
@given(LIVES, st.sampled_from(["begin", "retry", "commit", "finish", "stop", "fail", "abandon"]))
def test_only_the_owner_writes(life: list[tuple[str, int]], name: str) -> None:
    """FENCED: no former run changes anything, however the chat went on."""
    model = live(Model(FIRST_TURN), life)
    before = model.state
    for run in [run for run in model.runs if run != before.chat.run_id]:
        command = MAKERS[name](model, 0)
        assert isinstance(command, RunCommand)
        model.do(attrs.evolve(command, run_id=run))
    assert model.state == before
