"""A chat's durable state and its transitions: state + command -> state + changes.

`TRANSITIONS` below is the whole theory: for each command, what it does in each situation that allows it; a command in
any other situation is refused with `InvalidTransition` and nothing changes. A store runs `decide` inside one
transaction on the locked chat and writes what it returns, all or nothing.

Always true of a state: `waiting` and `error` have no owner; `interrupting` names one, living or dead; `waiting` has an
empty queue; `retry_state` exists only in `running`; `last_error` only in `error`.

Must not know: what a store is, who is alive (an `Acquire` says whom its sender found dead), what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import attrs

from .._errors import (
    ChatBusy,
    ChatTaken,
    Interrupted,
    InvalidTransition,
    MessageNotFound,
    NotEditable,
    QueuedMessageNotFound,
    QueueFull,
)
from .commands import ROLES as ROLES
from .commands import Abandon as Abandon
from .commands import Acquire as Acquire
from .commands import BeginAttempt as BeginAttempt
from .commands import Command as Command
from .commands import Commit as Commit
from .commands import Create as Create
from .commands import DeleteQueued as DeleteQueued
from .commands import EditMessage as EditMessage
from .commands import Fail as Fail
from .commands import FinishInterruption as FinishInterruption
from .commands import FinishTurn as FinishTurn
from .commands import Interrupt as Interrupt
from .commands import NewMessage as NewMessage
from .commands import PromoteQueued as PromoteQueued
from .commands import RecordRetry as RecordRetry
from .commands import RunCommand as RunCommand
from .commands import SendMessage as SendMessage
from .commands import UserCommand as UserCommand
from .commands import WhenBusy as WhenBusy
from .events import ChatError, ChatStatus, Content, Episode, Message, MessageRef, QueueEntry, RetryState

Situation: TypeAlias = Literal["waiting", "running, no owner", "running, owned", "interrupting", "error"]


# ------------------------------------------------------------------------------------------------ state


@attrs.frozen(kw_only=True)
class Answer:
    """What a transition tells the one who asked for it. Small: it is kept beside its token or idempotency key."""

    done: Literal["created", "sent", "queued", "edited", "deleted", "promoted", "interrupting", "nothing", "ok"]
    """`nothing`: a no-op. `interrupting`: the worker was asked to stop."""
    snapshot_version: int
    """The version that shows it: wait for a status of this version."""
    status: ChatStatus
    history_version: int
    generation_attempt: int
    takeovers: int = 0
    run_goes_on: bool = False
    """For a run's transition: the chat is still this run's."""
    messages: tuple[MessageRef, ...] = ()
    """What entered the history, in order."""
    queued_id: int | None = None
    """The queue entry that was made or named."""
    at: str = ""
    """When, RFC 3339, UTC."""


@attrs.frozen(kw_only=True)
class Chat:
    """The durable unit, but for its messages and its queue."""

    id: str
    status: ChatStatus
    worker_id: str | None = None
    """The replica that generates (or did, until it died)."""
    run_id: str | None = None
    """The fence: a run's transition that names another one is refused."""
    snapshot_version: int = 0
    history_version: int = 0
    queue_version: int = 0
    turn_version: int = 0
    """The version at which the last user message entered the history."""
    generation_attempt: int = 0
    retry_state: RetryState | None = None
    attempt_failed: bool = False
    """The current attempt was recorded as failed. It outlives `retry_state` when a Stop comes during the delay: the
    failed attempt's parts must become neither a preview nor a message again."""
    last_error: ChatError | None = None
    takeovers: int = 0
    """Owners that died since the history changed."""
    last_token: str | None = None
    """Of the last transition of a run; with it, its answer."""
    last_answer: Answer | None = None
    next_message_id: int = 1
    next_queued_id: int = 1
    created_at: str = ""
    updated_at: str = ""

    @property
    def live_episode(self) -> Episode | None:
        """The episode that is being generated, if a viewer may see parts of one."""
        if self.status not in ("running", "interrupting") or self.run_id is None or self.worker_id is None:
            return None
        if self.generation_attempt == 0 or self.retry_state is not None or self.attempt_failed:
            return None
        return Episode(self.history_version, self.generation_attempt, self.run_id)

    @property
    def situation(self) -> Situation:
        if self.status == "running":
            return "running, no owner" if self.worker_id is None else "running, owned"
        return self.status


@attrs.frozen
class ChatState:
    """What a decision needs: the chat and its queue in order."""

    chat: Chat
    queue: tuple[QueueEntry, ...] = ()


@attrs.frozen
class Fresh:
    """What the pure layer cannot make: the instant, and random stamps for new messages."""

    at: str
    """RFC 3339, UTC."""
    stamps: tuple[str, ...]
    """One for each message that the command brings, and one more for a promoted entry."""


@attrs.frozen(kw_only=True)
class Transition:
    """What a store has to write. Nothing at all if not `changed`."""

    chat: Chat
    queue: tuple[QueueEntry, ...]
    """The whole queue; rewrite it if `chat.queue_version` is the new version."""
    inserted: tuple[Message, ...] = ()
    deleted_from: int | None = None
    """Soft-delete the messages from this id on (before inserting)."""
    answer: Answer
    changed: bool = True


# -------------------------------------------------------------------------------------------- decisions


def create(chat_id: str, command: Create, fresh: Fresh) -> Transition:
    """A new chat: running if its messages end with one of the user, else waiting."""
    draft = _Draft(ChatState(Chat(id=chat_id, status="waiting", created_at=fresh.at)), fresh, queue_limit=0)
    for message in command.messages:
        draft.insert(message)
    if command.messages and command.messages[-1].role == "user":
        draft.set(status="running")
    return draft.transition(draft.answer("created"))


def decide(
    state: ChatState,
    command: Command,
    fresh: Fresh,
    *,
    target: Message | None = None,
    queue_limit: int = 20,
) -> Transition:
    """What the command does to the chat.

    `target` is the message that an `EditMessage` names, if the chat has it, deleted or not.

    Raises `ChatTaken` and `Interrupted` to runs; `ChatBusy`, `QueueFull`, `MessageNotFound`, `NotEditable`,
    `QueuedMessageNotFound` and `InvalidTransition` to the others.
    """
    if isinstance(command, RunCommand):
        repeated = _first_answer(state, command)
        if repeated is not None:
            return repeated
        if state.chat.run_id != command.run_id:
            raise ChatTaken(f"chat {state.chat.id} is not run {command.run_id}'s any more")
    rule = TRANSITIONS[type(command)].get(state.chat.situation)
    if rule is None:
        raise InvalidTransition(
            f"chat {state.chat.id}: {type(command).__name__} is not possible while it is {state.chat.situation}"
        )
    draft = _Draft(state, fresh, queue_limit=queue_limit, target=target)
    answer = rule(draft, command)
    return draft.transition(answer, token=command.token if isinstance(command, RunCommand) else None)


def _first_answer(state: ChatState, command: RunCommand) -> Transition | None:
    """The answer given before, if this very transition was carried out already and its answer was lost."""
    if state.chat.last_answer is None or state.chat.last_token != command.token:
        return None
    return Transition(chat=state.chat, queue=state.queue, answer=state.chat.last_answer, changed=False)


class _Draft:
    """The state while one transition changes it."""

    def __init__(self, state: ChatState, fresh: Fresh, *, queue_limit: int, target: Message | None = None) -> None:
        self.before = state
        self.chat = state.chat
        self.queue = state.queue
        self.target = target
        self.version = state.chat.snapshot_version + 1
        self._at = fresh.at
        self._stamps = iter(fresh.stamps)
        self._queue_limit = queue_limit
        self._inserted: list[Message] = []
        self._deleted_from: int | None = None

    def set(self, **changes: Any) -> None:
        self.chat = attrs.evolve(self.chat, **changes)

    def history_changed(self) -> None:
        """What every change of history brings with it."""
        self.set(
            history_version=self.version,
            generation_attempt=0,
            takeovers=0,
            retry_state=None,
            attempt_failed=False,
        )

    def insert(self, message: NewMessage, *, queued_id: int | None = None) -> None:
        self._inserted.append(
            Message(
                id=self.chat.next_message_id,
                stamp=next(self._stamps),
                role=message.role,
                content=message.content,
                version=self.version,
                interrupted=message.interrupted,
                truncated=message.truncated,
                queued_id=queued_id,
                created_at=self._at,
            )
        )
        self.set(next_message_id=self.chat.next_message_id + 1)
        self.history_changed()
        if message.role == "user":
            self.set(turn_version=self.version)

    def delete_from(self, message_id: int) -> None:
        self._deleted_from = message_id
        self.history_changed()

    def set_queue(self, queue: Iterable[QueueEntry]) -> None:
        self.queue = tuple(queue)
        # An entry made and promoted in one transition leaves the queue as it was: that is no change.
        changed = self.queue != self.before.queue
        self.set(queue_version=self.version if changed else self.before.chat.queue_version)

    def enqueue(self, content: Content, place: Callable[[QueueEntry], None], *, urgent: bool) -> int:
        if len(self.queue) >= self._queue_limit:
            raise QueueFull(f"chat {self.chat.id} has {len(self.queue)} messages waiting, the most it may have")
        entry = QueueEntry(id=self.chat.next_queued_id, content=content, urgent=urgent)
        self.set(next_queued_id=entry.id + 1)
        place(entry)
        return entry.id

    def last_in_line(self, entry: QueueEntry) -> None:
        self.set_queue((*self.queue, entry))

    def before_ordinary(self, entry: QueueEntry) -> None:
        urgent = [other for other in self.queue if other.urgent]
        ordinary = [other for other in self.queue if not other.urgent]
        self.set_queue((*urgent, entry, *ordinary))

    def first_in_line(self, entry: QueueEntry) -> None:
        self.set_queue((attrs.evolve(entry, urgent=True), *(o for o in self.queue if o.id != entry.id)))

    def queued(self, queued_id: int) -> QueueEntry:
        for entry in self.queue:
            if entry.id == queued_id:
                return entry
        raise QueuedMessageNotFound(f"chat {self.chat.id} has no queued message {queued_id}")

    def promote(self, entry: QueueEntry) -> None:
        self.set_queue(other for other in self.queue if other.id != entry.id)
        self.insert(NewMessage(role="user", content=entry.content), queued_id=entry.id)

    def lose_owner(self) -> None:
        self.set(worker_id=None, run_id=None, retry_state=None, attempt_failed=False)

    def end_of_turn(self) -> bool:
        """The head of the queue is promoted, and the run (if there is one) goes on; else the chat waits."""
        if self.queue:
            self.promote(self.queue[0])
            self.set(status="running", generation_attempt=0 if self.chat.run_id is None else 1)
            return self.chat.run_id is not None
        self.lose_owner()
        self.set(status="waiting")
        return False

    def answer(self, done: Any, *, queued_id: int | None = None, run_goes_on: bool = False) -> Answer:
        return Answer(
            done=done,
            snapshot_version=self.version,
            status=self.chat.status,
            history_version=self.chat.history_version,
            generation_attempt=self.chat.generation_attempt,
            takeovers=self.chat.takeovers,
            run_goes_on=run_goes_on,
            messages=tuple(message.ref for message in self._inserted),
            queued_id=queued_id,
            at=self._at,
        )

    def transition(self, answer: Answer, *, token: str | None = None) -> Transition:
        if answer.done == "nothing":
            answer = attrs.evolve(answer, snapshot_version=self.before.chat.snapshot_version)
            return Transition(chat=self.before.chat, queue=self.before.queue, answer=answer, changed=False)
        self.set(snapshot_version=self.version, updated_at=self._at)
        if token is not None:
            self.set(last_token=token, last_answer=answer)
        return Transition(
            chat=self.chat,
            queue=self.queue,
            inserted=tuple(self._inserted),
            deleted_from=self._deleted_from,
            answer=answer,
        )


# ------------------------------------------------------------------------------- the rules, command by command


def _send_to_waiting(draft: _Draft, command: SendMessage) -> Answer:
    draft.insert(NewMessage(role="user", content=command.content))
    draft.set(status="running")
    return draft.answer("sent")


def _send_to_error(draft: _Draft, command: SendMessage) -> Answer:
    """A person acts: the chat goes on. What waited longer goes first."""
    draft.set(last_error=None, status="running")
    if not draft.queue:
        draft.insert(NewMessage(role="user", content=command.content))
        return draft.answer("sent")
    draft.promote(draft.queue[0])
    queued_id = draft.enqueue(command.content, draft.last_in_line, urgent=False)
    return draft.answer("queued", queued_id=queued_id)


def _send_to_owned(draft: _Draft, command: SendMessage) -> Answer:
    if command.when_busy == "interrupt":
        queued_id = draft.enqueue(command.content, draft.before_ordinary, urgent=True)
        # The failed attempt stays known as failed (attempt_failed) when the delay after it ends here.
        draft.set(status="interrupting", retry_state=None)
        return draft.answer("queued", queued_id=queued_id)
    return _send_behind(draft, command)


def _send_to_unowned(draft: _Draft, command: SendMessage) -> Answer:
    """Nobody generates, so nobody need be asked to stop: the interruption ends in the same transaction."""
    if command.when_busy != "interrupt":
        return _send_behind(draft, command)
    queued_id = draft.enqueue(command.content, draft.first_in_line, urgent=True)
    draft.end_of_turn()
    return draft.answer("sent", queued_id=queued_id)


def _send_to_interrupting(draft: _Draft, command: SendMessage) -> Answer:
    if command.when_busy == "interrupt":
        queued_id = draft.enqueue(command.content, draft.before_ordinary, urgent=True)
        return draft.answer("queued", queued_id=queued_id)
    return _send_behind(draft, command)


def _send_behind(draft: _Draft, command: SendMessage) -> Answer:
    if command.when_busy == "reject":
        raise ChatBusy(f"chat {draft.chat.id} is {draft.chat.status}")
    queued_id = draft.enqueue(command.content, draft.last_in_line, urgent=False)
    return draft.answer("queued", queued_id=queued_id)


def _edit(draft: _Draft, command: EditMessage) -> Answer:
    target = draft.target
    if target is None or target.deleted or target.id != command.message_id:
        raise MessageNotFound(f"chat {draft.chat.id} has no live message {command.message_id}")
    if target.role != "user":
        raise NotEditable(f"message {target.id} of chat {draft.chat.id} is of role {target.role}, not user")
    draft.delete_from(target.id)
    draft.set_queue(())
    draft.insert(NewMessage(role="user", content=command.content))
    draft.lose_owner()
    draft.set(status="running", last_error=None)
    return draft.answer("edited")


def _delete_queued(draft: _Draft, command: DeleteQueued) -> Answer:
    entry = draft.queued(command.queued_id)
    draft.set_queue(other for other in draft.queue if other.id != entry.id)
    return draft.answer("deleted", queued_id=entry.id)


def _promote_in_owned(draft: _Draft, command: PromoteQueued) -> Answer:
    draft.first_in_line(draft.queued(command.queued_id))
    draft.set(status="interrupting", retry_state=None)
    return draft.answer("interrupting", queued_id=command.queued_id)


def _promote_in_interrupting(draft: _Draft, command: PromoteQueued) -> Answer:
    draft.first_in_line(draft.queued(command.queued_id))
    if draft.queue == draft.before.queue:
        return draft.answer("nothing", queued_id=command.queued_id)
    return draft.answer("interrupting", queued_id=command.queued_id)


def _promote_in_unowned(draft: _Draft, command: PromoteQueued) -> Answer:
    draft.first_in_line(draft.queued(command.queued_id))
    draft.end_of_turn()
    return draft.answer("promoted", queued_id=command.queued_id)


def _promote_in_error(draft: _Draft, command: PromoteQueued) -> Answer:
    draft.promote(draft.queued(command.queued_id))
    draft.set(status="running", last_error=None)
    return draft.answer("promoted", queued_id=command.queued_id)


def _is_of_earlier_turn(draft: _Draft, command: Interrupt) -> bool:
    return command.of is not None and command.of.history_version < draft.chat.turn_version


def _interrupt_owned(draft: _Draft, command: Interrupt) -> Answer:
    if _is_of_earlier_turn(draft, command):
        return draft.answer("nothing")
    draft.set(status="interrupting", retry_state=None)
    return draft.answer("interrupting")


def _interrupt_unowned(draft: _Draft, command: Interrupt) -> Answer:
    if _is_of_earlier_turn(draft, command):
        return draft.answer("nothing")
    draft.end_of_turn()
    return draft.answer("ok")


def _interrupt_idle(draft: _Draft, command: Interrupt) -> Answer:
    return draft.answer("nothing")


def _acquire(draft: _Draft, command: Acquire) -> Answer:
    """A dead owner is replaced only by one who found that very owner dead. Asked again by its own run: no-op."""
    if draft.chat.run_id == command.run_id:
        return draft.answer("nothing", run_goes_on=True)
    owner = draft.chat.worker_id
    if owner is not None and owner != command.dead_worker_id:
        raise InvalidTransition(f"chat {draft.chat.id} is owned by replica {owner}")
    draft.set(
        worker_id=command.worker_id,
        run_id=command.run_id,
        generation_attempt=draft.chat.generation_attempt + 1,
        retry_state=None,
        attempt_failed=False,
        takeovers=draft.chat.takeovers + (owner is not None),
    )
    return draft.answer("ok", run_goes_on=True)


def _begin_attempt(draft: _Draft, command: BeginAttempt) -> Answer:
    draft.set(
        generation_attempt=draft.chat.generation_attempt + 1,
        retry_state=None,
        attempt_failed=False,
    )
    return draft.answer("ok", run_goes_on=True)


def _record_retry(draft: _Draft, command: RecordRetry) -> Answer:
    draft.set(retry_state=command.retry, attempt_failed=True)
    return draft.answer("ok", run_goes_on=True)


def _commit(draft: _Draft, command: Commit) -> Answer:
    messages = _kept(draft, command.messages)
    if not messages:
        return draft.answer("nothing", run_goes_on=True)
    for message in messages:
        draft.insert(message)
    draft.set(generation_attempt=1)
    return draft.answer("ok", run_goes_on=True)


def _finish_turn(draft: _Draft, command: FinishTurn) -> Answer:
    for message in _kept(draft, command.messages):
        draft.insert(message)
    return draft.answer("ok", run_goes_on=draft.end_of_turn())


def _finish_interruption(draft: _Draft, command: FinishInterruption) -> Answer:
    _keep_partial(draft, command.messages)
    return draft.answer("ok", run_goes_on=draft.end_of_turn())


def _fail(draft: _Draft, command: Fail) -> Answer:
    _keep_partial(draft, command.messages)
    draft.lose_owner()
    draft.set(status="error", last_error=command.error)
    return draft.answer("ok")


def _keep_partial(draft: _Draft, messages: tuple[NewMessage, ...]) -> None:
    for message in _kept(draft, messages):
        draft.insert(attrs.evolve(message, interrupted=True))


def _kept(draft: _Draft, messages: tuple[NewMessage, ...]) -> tuple[NewMessage, ...]:
    """Parts of an attempt that was recorded as failed are never kept: its viewers were told so."""
    return () if draft.chat.attempt_failed else messages


def _abandon(draft: _Draft, command: Abandon) -> Answer:
    draft.lose_owner()
    return draft.answer("ok")


def _refuse_interrupted(draft: _Draft, command: RunCommand) -> Answer:
    raise Interrupted(f"chat {draft.chat.id} is being interrupted: finish that first")


_Rule: TypeAlias = Callable[[_Draft, Any], Answer]

TRANSITIONS: dict[type[Any], dict[Situation, _Rule]] = {
    SendMessage: {
        "waiting": _send_to_waiting,
        "error": _send_to_error,
        "running, owned": _send_to_owned,
        "running, no owner": _send_to_unowned,
        "interrupting": _send_to_interrupting,
    },
    EditMessage: {
        "waiting": _edit,
        "error": _edit,
        "running, owned": _edit,
        "running, no owner": _edit,
        "interrupting": _edit,
    },
    DeleteQueued: {
        "waiting": _delete_queued,
        "error": _delete_queued,
        "running, owned": _delete_queued,
        "running, no owner": _delete_queued,
        "interrupting": _delete_queued,
    },
    PromoteQueued: {
        "waiting": _promote_in_error,
        "error": _promote_in_error,
        "running, owned": _promote_in_owned,
        "running, no owner": _promote_in_unowned,
        "interrupting": _promote_in_interrupting,
    },
    Interrupt: {
        "waiting": _interrupt_idle,
        "error": _interrupt_idle,
        "running, owned": _interrupt_owned,
        "running, no owner": _interrupt_unowned,
        "interrupting": _interrupt_idle,
    },
    Acquire: {
        "running, no owner": _acquire,
        "running, owned": _acquire,
        "interrupting": _acquire,
    },
    BeginAttempt: {"running, owned": _begin_attempt, "interrupting": _refuse_interrupted},
    RecordRetry: {"running, owned": _record_retry, "interrupting": _refuse_interrupted},
    Commit: {"running, owned": _commit, "interrupting": _commit},
    FinishTurn: {"running, owned": _finish_turn, "interrupting": _finish_turn},
    FinishInterruption: {"interrupting": _finish_interruption},
    Fail: {"running, owned": _fail, "interrupting": _refuse_interrupted},
    Abandon: {"running, owned": _abandon, "interrupting": _refuse_interrupted},
}
"""Every command in every situation; what is missing here is refused."""
