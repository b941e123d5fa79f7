"""The transitions of a chat: the whole table, cell by cell, and each sentence that goes with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, get_args

import attrs
import pytest

from relaytrio._errors import (
    ChatBusy,
    ChatTaken,
    Interrupted,
    InvalidTransition,
    MessageNotFound,
    NotEditable,
    QueuedMessageNotFound,
    QueueFull,
    RelaytrioError,
)
from relaytrio._protocol.chat import (
    TRANSITIONS,
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
    Situation,
    Transition,
    WhenBusy,
    create,
    decide,
)
from relaytrio._protocol.events import (
    ChatError,
    ChatStatus,
    Content,
    Episode,
    Message,
    MessageRef,
    QueueEntry,
    RetryState,
)

FRESH = Fresh("2026-01-01T00:00:00Z", ("aaaaa", "bbbbb", "ccccc"))
RETRY = RetryState(attempt=1, delay_seconds=0.5, error="the model is busy")
ERROR = ChatError(kind="responder_failed", message="it broke")


def text(words: str) -> Content:
    return [{"type": "text", "text": words}]


ONE = (NewMessage(role="assistant", content=text("answer")),)

# ------------------------------------------------------------------------------------- states to start from


def entries(*ids: int, urgent: tuple[int, ...] = ()) -> tuple[QueueEntry, ...]:
    return tuple(QueueEntry(id=id, content=text(f"queued {id}"), urgent=id in urgent) for id in ids)


def state(status: ChatStatus, run: str | None = None, queue: tuple[QueueEntry, ...] = (), **fields: Any) -> ChatState:
    """A chat in the middle of its life: its last user message came with version 5, a tool step with 7."""
    base = Chat(
        id="c",
        status=status,
        worker_id=None if run is None else f"worker-{run}",
        run_id=run,
        snapshot_version=10,
        history_version=7,
        queue_version=6,
        turn_version=5,
        generation_attempt=2,
        takeovers=1,
        last_error=ERROR if status == "error" else None,
        next_message_id=5,
        next_queued_id=3,
        created_at="2025-01-01T00:00:00Z",
        updated_at="2025-01-02T00:00:00Z",
    )
    return ChatState(attrs.evolve(base, **fields), queue)


def stored(id: int, role: str = "user", *, deleted: bool = False) -> Message:
    return Message(id=id, stamp="zzzzz", role=role, content=text("old"), version=1, deleted=deleted, created_at="")


MESSAGES = {2: stored(2), 3: stored(3, "assistant"), 4: stored(4, deleted=True)}


def act(before: ChatState, command: Command, *, fresh: Fresh = FRESH, queue_limit: int = 20) -> Transition:
    target = MESSAGES.get(command.message_id) if isinstance(command, EditMessage) else None
    return decide(before, command, fresh, target=target, queue_limit=queue_limit)


def after(transition: Transition) -> ChatState:
    return ChatState(transition.chat, transition.queue)


def broken_invariants(given: ChatState) -> Iterator[str]:
    """What the docstring of chat.py promises of every state, and this one does not keep."""
    chat = given.chat
    if (chat.worker_id is None) != (chat.run_id is None):
        yield "an owner is a worker with a run"
    if chat.status in ("waiting", "error") and chat.worker_id is not None:
        yield "waiting and error have no owner"
    if chat.status == "interrupting" and chat.worker_id is None:
        yield "interrupting names an owner"
    if chat.status == "waiting" and given.queue:
        yield "waiting has an empty queue"
    if chat.status != "running" and chat.retry_state is not None:
        yield "retry_state exists only in running"
    if (chat.status == "error") != (chat.last_error is not None):
        yield "last_error exists in error and only there"
    if chat.attempt_failed and chat.worker_id is None:
        yield "only an owner's attempt is known as failed"


# ------------------------------------------------------------------------------------------------ the table

QUEUED = entries(1, 2)
SITUATIONS: dict[str, ChatState] = {
    "waiting": state("waiting"),
    "running": state("running"),
    "running, queue": state("running", queue=QUEUED),
    "running, owned": state("running", "a"),
    "running, owned, queue": state("running", "a", QUEUED),
    "interrupting, owned": state("interrupting", "a"),
    "interrupting, owned, queue": state("interrupting", "a", QUEUED),
    "error": state("error"),
    "error, queue": state("error", queue=QUEUED),
}
IMPOSSIBLE: dict[str, ChatState] = {
    "waiting, queue": state("waiting", queue=QUEUED),
    "waiting, owned": state("waiting", "a"),
    "waiting, owned, queue": state("waiting", "a", QUEUED),
    "interrupting": state("interrupting"),
    "interrupting, queue": state("interrupting", queue=QUEUED),
    "error, owned": state("error", "a"),
    "error, owned, queue": state("error", "a", QUEUED),
}

EPISODE = Episode(7, 2, "a")
STEP_BEFORE = Episode(5, 1, "a")
TURN_BEFORE = Episode(4, 1, "a")

# Whether an owner is alive is no part of the state: `acquire` says whom its sender has found dead.
COMMANDS: dict[str, Command] = {
    "send, queue": SendMessage(content=text("new"), when_busy="queue"),
    "send, interrupt": SendMessage(content=text("new"), when_busy="interrupt"),
    "send, reject": SendMessage(content=text("new"), when_busy="reject"),
    "edit user's": EditMessage(message_id=2, content=text("better")),
    "edit assistant's": EditMessage(message_id=3, content=text("better")),
    "edit deleted": EditMessage(message_id=4, content=text("better")),
    "edit unknown": EditMessage(message_id=99, content=text("better")),
    "delete_queued 2": DeleteQueued(queued_id=2),
    "delete unknown": DeleteQueued(queued_id=99),
    "promote head": PromoteQueued(queued_id=1),
    "promote last": PromoteQueued(queued_id=2),
    "promote unknown": PromoteQueued(queued_id=99),
    "interrupt": Interrupt(),
    "interrupt live": Interrupt(of=EPISODE),
    "interrupt step": Interrupt(of=STEP_BEFORE),
    "interrupt old": Interrupt(of=TURN_BEFORE),
    "acquire": Acquire(worker_id="worker-b", run_id="b"),
    "acquire, a dead": Acquire(worker_id="worker-b", run_id="b", dead_worker_id="worker-a"),
    "acquire, x dead": Acquire(worker_id="worker-b", run_id="b", dead_worker_id="worker-x"),
    "begin_attempt": BeginAttempt(run_id="a", token="t"),
    "record_retry": RecordRetry(run_id="a", token="t", retry=RETRY),
    "commit": Commit(run_id="a", token="t", messages=ONE),
    "commit nothing": Commit(run_id="a", token="t", messages=()),
    "finish_turn": FinishTurn(run_id="a", token="t", messages=ONE),
    "finish nothing": FinishTurn(run_id="a", token="t"),
    "finish_interr": FinishInterruption(run_id="a", token="t", messages=ONE),
    "finish_i noth.": FinishInterruption(run_id="a", token="t"),
    "fail": Fail(run_id="a", token="t", error=ERROR, messages=ONE),
    "fail nothing": Fail(run_id="a", token="t", error=ERROR),
    "abandon": Abandon(run_id="a", token="t"),
    "x begin_attempt": BeginAttempt(run_id="x", token="t"),
    "x record_retry": RecordRetry(run_id="x", token="t", retry=RETRY),
    "x commit": Commit(run_id="x", token="t", messages=ONE),
    "x commit noth.": Commit(run_id="x", token="t", messages=()),
    "x finish_turn": FinishTurn(run_id="x", token="t", messages=ONE),
    "x finish noth.": FinishTurn(run_id="x", token="t"),
    "x finish_interr": FinishInterruption(run_id="x", token="t", messages=ONE),
    "x finish_i noth.": FinishInterruption(run_id="x", token="t"),
    "x fail": Fail(run_id="x", token="t", error=ERROR, messages=ONE),
    "x fail nothing": Fail(run_id="x", token="t", error=ERROR),
    "x abandon": Abandon(run_id="x", token="t"),
}

# A cell is an exception, `=` for a no-op, or `status/owner after/what changed/generation_attempt after`:
# W waiting, R running, I interrupting, E error; run a, run b or nobody (-); d messages deleted, m inserted, q queue,
# r retry_state, e last_error, or nothing of these (.). Before, the attempt is 2 and the owner, if there is one, run a.
#
# taken ChatTaken, intr Interrupted, inval InvalidTransition, busy ChatBusy, noent QueuedMessageNotFound,
# nomsg MessageNotFound, noted NotEditable
REFUSALS: dict[str, type[RelaytrioError]] = {
    "taken": ChatTaken,
    "intr": Interrupted,
    "inval": InvalidTransition,
    "busy": ChatBusy,
    "noent": QueuedMessageNotFound,
    "nomsg": MessageNotFound,
    "noted": NotEditable,
}
TABLE = """
                 |waiting |running   running  |running   running  |interr.   interr.  |error     error
                 |        |          queue    |owned     owned,q  |owned     owned,q  |          queue
send, queue      |R/-/m/0 |R/-/q/2   R/-/q/2  |R/a/q/2   R/a/q/2  |I/a/q/2   I/a/q/2  |R/-/me/0  R/-/mqe/0
send, interrupt  |R/-/m/0 |R/-/m/0   R/-/m/0  |I/a/q/2   I/a/q/2  |I/a/q/2   I/a/q/2  |R/-/me/0  R/-/mqe/0
send, reject     |R/-/m/0 |busy      busy     |busy      busy     |busy      busy     |R/-/me/0  R/-/mqe/0
edit user's      |R/-/dm/0|R/-/dm/0  R/-/dmq/0|R/-/dm/0  R/-/dmq/0|R/-/dm/0  R/-/dmq/0|R/-/dme/0 R/-/dmqe/0
edit assistant's |noted   |noted     noted    |noted     noted    |noted     noted    |noted     noted
edit deleted     |nomsg   |nomsg     nomsg    |nomsg     nomsg    |nomsg     nomsg    |nomsg     nomsg
edit unknown     |nomsg   |nomsg     nomsg    |nomsg     nomsg    |nomsg     nomsg    |nomsg     nomsg
delete_queued 2  |noent   |noent     R/-/q/2  |noent     R/a/q/2  |noent     I/a/q/2  |noent     E/-/q/2
delete unknown   |noent   |noent     noent    |noent     noent    |noent     noent    |noent     noent
promote head     |noent   |noent     R/-/mq/0 |noent     I/a/q/2  |noent     I/a/q/2  |noent     R/-/mqe/0
promote last     |noent   |noent     R/-/mq/0 |noent     I/a/q/2  |noent     I/a/q/2  |noent     R/-/mqe/0
promote unknown  |noent   |noent     noent    |noent     noent    |noent     noent    |noent     noent
interrupt        |=       |W/-/./2   R/-/mq/0 |I/a/./2   I/a/./2  |=         =        |=         =
interrupt live   |=       |W/-/./2   R/-/mq/0 |I/a/./2   I/a/./2  |=         =        |=         =
interrupt step   |=       |W/-/./2   R/-/mq/0 |I/a/./2   I/a/./2  |=         =        |=         =
interrupt old    |=       |=         =        |=         =        |=         =        |=         =
acquire          |inval   |R/b/./3   R/b/./3  |inval     inval    |inval     inval    |inval     inval
acquire, a dead  |inval   |R/b/./3   R/b/./3  |R/b/./3   R/b/./3  |I/b/./3   I/b/./3  |inval     inval
acquire, x dead  |inval   |R/b/./3   R/b/./3  |inval     inval    |inval     inval    |inval     inval
begin_attempt    |taken   |taken     taken    |R/a/./3   R/a/./3  |intr      intr     |taken     taken
record_retry     |taken   |taken     taken    |R/a/r/2   R/a/r/2  |intr      intr     |taken     taken
commit           |taken   |taken     taken    |R/a/m/1   R/a/m/1  |I/a/m/1   I/a/m/1  |taken     taken
commit nothing   |taken   |taken     taken    |=         =        |=         =        |taken     taken
finish_turn      |taken   |taken     taken    |W/-/m/0   R/a/mq/1 |W/-/m/0   R/a/mq/1 |taken     taken
finish nothing   |taken   |taken     taken    |W/-/./2   R/a/mq/1 |W/-/./2   R/a/mq/1 |taken     taken
finish_interr    |taken   |taken     taken    |inval     inval    |W/-/m/0   R/a/mq/1 |taken     taken
finish_i noth.   |taken   |taken     taken    |inval     inval    |W/-/./2   R/a/mq/1 |taken     taken
fail             |taken   |taken     taken    |E/-/me/0  E/-/me/0 |intr      intr     |taken     taken
fail nothing     |taken   |taken     taken    |E/-/e/2   E/-/e/2  |intr      intr     |taken     taken
abandon          |taken   |taken     taken    |R/-/./2   R/-/./2  |intr      intr     |taken     taken
x begin_attempt  |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x record_retry   |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x commit         |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x commit noth.   |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x finish_turn    |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x finish noth.   |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x finish_interr  |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x finish_i noth. |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x fail           |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x fail nothing   |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
x abandon        |taken   |taken     taken    |taken     taken    |taken     taken    |taken     taken
"""
ROWS = {
    name.strip(): cells.replace("|", " ").split()
    for name, cells in (line.split("|", 1) for line in TABLE.strip("\n").splitlines()[2:])
}


def test_table_has_no_blank_cell() -> None:
    """The table has a row for every command and a cell for every situation."""
    assert list(ROWS) == list(COMMANDS)
    assert {name: len(cells) for name, cells in ROWS.items()} == dict.fromkeys(COMMANDS, len(SITUATIONS))


def test_situations_are_the_full_product() -> None:
    """Each status x owned x queue empty has a column, or breaks an invariant of the state."""
    seen = SITUATIONS | IMPOSSIBLE
    product = itertools.product(("waiting", "running", "interrupting", "error"), (False, True), (False, True))
    facts = {(s.chat.status, s.chat.run_id is not None, bool(s.queue)) for s in seen.values()}
    assert (facts, len(seen)) == (set(product), 16)
    assert {name for name, given in SITUATIONS.items() if any(broken_invariants(given))} == set()
    assert {name for name, given in IMPOSSIBLE.items() if any(broken_invariants(given))} == set(IMPOSSIBLE)
    assert {s.chat.situation for s in SITUATIONS.values()} == set(get_args(Situation))


def test_commands_are_all_commands() -> None:
    """Each class of commands has rows, and its rule in `TRANSITIONS` names only real situations."""
    classes = set(get_args(Command))
    assert {type(command) for command in COMMANDS.values()} == classes
    assert set(TRANSITIONS) == classes
    assert set().union(*TRANSITIONS.values()) == set(get_args(Situation))


def cells() -> Iterator[Any]:
    for name, row in ROWS.items():
        for situation, cell in zip(SITUATIONS, row, strict=False):
            yield pytest.param(name, situation, cell, id=f"{name} | {situation}")


@pytest.mark.parametrize(("name", "situation", "cell"), list(cells()))
def test_cell(name: str, situation: str, cell: str) -> None:
    """A command in a situation does what the table says, or is refused, and the versions tell what changed."""
    before, command = SITUATIONS[situation], COMMANDS[name]
    if cell in REFUSALS:
        with pytest.raises(RelaytrioError) as caught:
            act(before, command)
        assert type(caught.value) is REFUSALS[cell]
        return
    transition = act(before, command)
    assert summary(before, transition) == cell
    assert list(broken_invariants(after(transition))) == []
    assert transition.answer.snapshot_version == transition.chat.snapshot_version
    assert transition.answer.status == transition.chat.status
    if cell == "=":
        assert after(transition) == before
        return
    check_bookkeeping(before, command, transition)


def summary(before: ChatState, transition: Transition) -> str:
    """A transition in the words of the table."""
    chat = transition.chat
    if not transition.changed:
        return "="
    assert chat.worker_id == (None if chat.run_id is None else f"worker-{chat.run_id}")
    changed = {
        "d": transition.deleted_from is not None,
        "m": bool(transition.inserted),
        "q": transition.queue != before.queue,
        "r": chat.retry_state != before.chat.retry_state,
        "e": chat.last_error != before.chat.last_error,
    }
    letters = "".join(letter for letter, is_so in changed.items() if is_so)
    return f"{chat.status[0].upper()}/{chat.run_id or '-'}/{letters or '.'}/{chat.generation_attempt}"


def check_bookkeeping(before: ChatState, command: Command, transition: Transition) -> None:
    """What every transition that changes something does to the versions, the times, the counters and the token."""
    old, chat, answer = before.chat, transition.chat, transition.answer
    history = bool(transition.inserted) or transition.deleted_from is not None
    own = isinstance(command, RunCommand)
    assert chat.snapshot_version == 11
    assert chat.history_version == (11 if history else old.history_version)
    assert chat.queue_version == (11 if transition.queue != before.queue else old.queue_version)
    assert chat.turn_version == (11 if any(m.role == "user" for m in transition.inserted) else old.turn_version)
    assert {message.version for message in transition.inserted} <= {11}
    assert chat.next_message_id == old.next_message_id + len(transition.inserted)
    assert (chat.created_at, chat.updated_at, answer.at) == (old.created_at, FRESH.at, FRESH.at)
    assert answer.messages == tuple(message.ref for message in transition.inserted)
    assert (answer.history_version, answer.generation_attempt) == (chat.history_version, chat.generation_attempt)
    assert answer.takeovers == chat.takeovers
    assert answer.run_goes_on == (isinstance(command, RunCommand | Acquire) and chat.run_id == command.run_id)
    assert (chat.last_token, chat.last_answer) == (("t", answer) if own else (None, None))


DONE: dict[type[Any], set[str]] = {
    DeleteQueued: {"deleted"},
    EditMessage: {"edited"},
    PromoteQueued: {"promoted", "interrupting"},
    Interrupt: {"interrupting", "ok"},
    SendMessage: {"sent", "queued"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_answer_says_what_was_done(name: str) -> None:
    """Whoever asks is told whether it happened, is waiting in the queue, or was asked of the worker."""
    command = COMMANDS[name]
    for situation, cell in zip(SITUATIONS, ROWS[name], strict=True):
        if cell in REFUSALS:
            continue
        transition = act(SITUATIONS[situation], command)
        done = transition.answer.done
        if cell == "=":
            assert done == "nothing"
            continue
        assert done in DONE.get(type(command), {"ok"})
        if isinstance(command, SendMessage):
            assert (done == "sent") == (command.content in [message.content for message in transition.inserted])
        if isinstance(command, PromoteQueued | Interrupt):
            assert (done == "interrupting") == (transition.chat.status == "interrupting")


@pytest.mark.parametrize(
    ("situation", "name", "fault"),
    [
        ("running, owned", "send, reject", "chat c is running"),
        ("running, owned", "edit unknown", "chat c has no live message 99"),
        ("running, owned", "edit assistant's", "message 3 of chat c is of role assistant, not user"),
        ("running, owned", "promote unknown", "chat c has no queued message 99"),
        ("waiting", "acquire", "chat c: Acquire is not possible while it is waiting"),
        ("running, owned", "acquire", "chat c is owned by replica worker-a"),
        ("running, owned", "x commit", "chat c is not run x's any more"),
        ("interrupting, owned", "fail", "chat c is being interrupted: finish that first"),
    ],
)
def test_a_refusal_says_what_stands_in_the_way(situation: str, name: str, fault: str) -> None:
    """Whoever is refused learns of which chat, message or owner it is because."""
    with pytest.raises(RelaytrioError) as caught:
        act(SITUATIONS[situation], COMMANDS[name])
    assert fault == str(caught.value)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("when_busy", ["queue", "interrupt"])
def test_what_a_person_sends_is_kept_once_as_it_came(situation: str, when_busy: WhenBusy) -> None:
    """In the history as a message of the user, or in the queue: whichever it is, the content is the one sent."""
    transition = act(SITUATIONS[situation], SendMessage(content=text("new"), when_busy=when_busy))
    waiting = [entry.content for entry in transition.queue]
    assert [*(message.content for message in transition.inserted), *waiting].count(text("new")) == 1
    assert {message.role for message in transition.inserted} <= {"user"}


# ---------------------------------------------------------------------------------------------------- create


def user(words: str) -> NewMessage:
    return NewMessage(role="user", content=text(words))


def assistant(words: str) -> NewMessage:
    return NewMessage(role="assistant", content=text(words))


@pytest.mark.parametrize(
    ("messages", "status", "history_version", "turn_version"),
    [
        ((), "waiting", 0, 0),
        ((user("a"),), "running", 1, 1),
        ((assistant("a"),), "waiting", 1, 0),
        ((user("a"), assistant("b")), "waiting", 1, 1),
        ((NewMessage(role="system", content=text("s")), user("a")), "running", 1, 1),
    ],
)
def test_create(messages: tuple[NewMessage, ...], status: str, history_version: int, turn_version: int) -> None:
    """A new chat runs, owned by nobody, if it ends with a message of the user, and waits otherwise."""
    transition = create("c", Create(messages=messages), FRESH)
    chat = transition.chat
    assert (chat.id, chat.status, chat.worker_id, chat.run_id) == ("c", status, None, None)
    assert transition.queue == ()
    assert (chat.snapshot_version, chat.history_version, chat.queue_version) == (1, history_version, 0)
    assert (chat.turn_version, chat.generation_attempt, chat.created_at) == (turn_version, 0, FRESH.at)
    assert [(m.id, m.stamp, m.role, m.version, m.created_at) for m in transition.inserted] == [
        (number, FRESH.stamps[number - 1], message.role, 1, FRESH.at) for number, message in enumerate(messages, 1)
    ]
    assert (transition.changed, transition.answer.done, transition.answer.status) == (True, "created", status)
    assert list(broken_invariants(after(transition))) == []


# ------------------------------------------------------------------------------------- versions and attempts


def test_no_op_raises_nothing() -> None:
    """A no-op leaves the versions, the times, and the token of the last transition as they are."""
    before = after(act(state("running", "a"), BeginAttempt(run_id="a", token="t1")))
    for command in (Interrupt(of=TURN_BEFORE), Commit(run_id="a", token="t2", messages=())):
        transition = act(before, command)
        assert (transition.changed, transition.answer.done) == (False, "nothing")
        assert transition.answer.run_goes_on == isinstance(command, Commit)
        assert (transition.inserted, transition.deleted_from) == ((), None)
        assert after(transition) == before
        assert transition.answer.snapshot_version == before.chat.snapshot_version


def test_promote_in_interrupting_of_the_first_in_line_is_a_no_op() -> None:
    """What is first in line already, and urgent, cannot be put further ahead."""
    before = state("interrupting", "a", entries(1, 2, urgent=(1,)))
    transition = act(before, PromoteQueued(queued_id=1))
    assert (transition.changed, transition.answer.done, after(transition)) == (False, "nothing", before)
    assert transition.answer.queued_id == 1


def test_interrupting_send_without_an_owner_leaves_the_queue_version() -> None:
    """An entry that is made and promoted in one transition is no change of the queue."""
    before = state("running", queue=entries(1, 2))
    transition = act(before, SendMessage(content=text("now"), when_busy="interrupt"))
    assert transition.queue == before.queue
    assert transition.chat.queue_version == before.chat.queue_version
    assert [(m.content, m.queued_id) for m in transition.inserted] == [(text("now"), 3)]
    assert (transition.chat.next_queued_id, transition.answer.done, transition.answer.queued_id) == (4, "sent", 3)


def test_attempts_are_counted_until_the_history_changes() -> None:
    """Acquiring and beginning an attempt count up; a change of history sets 0, or 1 where the run goes on."""
    given = after(create("c", Create(messages=(user("hi"),)), FRESH))
    steps: list[tuple[Command, int]] = [
        (Acquire(worker_id="worker-a", run_id="a"), 1),
        (RecordRetry(run_id="a", token="1", retry=RETRY), 1),
        (BeginAttempt(run_id="a", token="2"), 2),
        (Abandon(run_id="a", token="3"), 2),
        (Acquire(worker_id="worker-b", run_id="b"), 3),
        (Commit(run_id="b", token="4", messages=ONE), 1),
        (BeginAttempt(run_id="b", token="5"), 2),
        (SendMessage(content=text("more")), 2),
        (FinishTurn(run_id="b", token="6", messages=ONE), 1),
        (Acquire(worker_id="worker-c", run_id="c", dead_worker_id="worker-b"), 2),
        (Interrupt(), 2),
        (FinishInterruption(run_id="c", token="7", messages=ONE), 0),
        (SendMessage(content=text("again")), 0),
        (Acquire(worker_id="worker-d", run_id="d"), 1),
        (FinishTurn(run_id="d", token="8"), 1),
    ]
    seen = []
    for command, _ in steps:
        given = after(act(given, command))
        seen.append((command, given.chat.generation_attempt))
    assert seen == steps
    assert (given.chat.status, given.chat.history_version) == ("waiting", 14)


def test_live_episode() -> None:
    """The live episode is the owner's present attempt, unless that attempt was recorded as failed."""
    owned = state("running", "a")
    failed = after(act(owned, RecordRetry(run_id="a", token="1", retry=RETRY)))
    stopped = after(act(failed, Interrupt()))
    again = after(act(failed, BeginAttempt(run_id="a", token="2")))
    assert owned.chat.live_episode == EPISODE
    assert state("interrupting", "a").chat.live_episode == EPISODE
    assert again.chat.live_episode == Episode(7, 3, "a")
    none = (failed, stopped, state("running"), state("waiting"), state("error"))
    assert [given.chat.live_episode for given in none] == [None] * 5
    assert state("running", "a", generation_attempt=0).chat.live_episode is None
    assert state("running", "a", retry_state=RETRY).chat.live_episode is None


# --------------------------------------------------------------------------------------------- retry and error

RETRYING = state("running", "a", entries(1), retry_state=RETRY, attempt_failed=True)


@pytest.mark.parametrize(
    "command",
    [
        SendMessage(content=text("x"), when_busy="interrupt"),
        EditMessage(message_id=2, content=text("x")),
        PromoteQueued(queued_id=1),
        Interrupt(),
        Acquire(worker_id="worker-b", run_id="b", dead_worker_id="worker-a"),
        BeginAttempt(run_id="a", token="t"),
        FinishTurn(run_id="a", token="t"),
        Fail(run_id="a", token="t", error=ERROR),
        Abandon(run_id="a", token="t"),
    ],
    ids=lambda command: type(command).__name__,
)
def test_retry_state_is_cleared(command: Command) -> None:
    """The retry is over with the run, its status, the history or the delay."""
    transition = act(RETRYING, command)
    assert transition.chat.retry_state is None
    assert list(broken_invariants(after(transition))) == []


@pytest.mark.parametrize("command", [SendMessage(content=text("x")), DeleteQueued(queued_id=1)])
def test_retry_state_is_kept(command: Command) -> None:
    """What only concerns the queue leaves the retry as it is."""
    transition = act(RETRYING, command)
    assert (transition.chat.retry_state, transition.chat.attempt_failed) == (RETRY, True)


def test_record_retry_keeps_the_retry() -> None:
    """The retry is durable: a viewer who comes during the delay sees it too."""
    chat = act(state("running", "a"), RecordRetry(run_id="a", token="t", retry=RETRY)).chat
    assert (chat.retry_state, chat.status, chat.run_id, chat.generation_attempt) == (RETRY, "running", "a", 2)


@pytest.mark.parametrize(
    ("situation", "command", "status"),
    [
        ("running, owned", Commit(run_id="a", token="t", messages=ONE), None),
        ("running, owned", FinishTurn(run_id="a", token="t", messages=ONE), "waiting"),
        ("running, owned", Fail(run_id="a", token="t", error=ERROR, messages=ONE), "error"),
        ("interrupting, owned", Commit(run_id="a", token="t", messages=ONE), None),
        ("interrupting, owned", FinishTurn(run_id="a", token="t", messages=ONE), "waiting"),
        ("interrupting, owned", FinishInterruption(run_id="a", token="t", messages=ONE), "waiting"),
    ],
)
def test_failed_attempt_is_never_kept(situation: str, command: Command, status: str | None) -> None:
    """Once an attempt was recorded as failed, no end of it makes a message of its parts."""
    before = SITUATIONS[situation]
    failed = ChatState(attrs.evolve(before.chat, attempt_failed=True), before.queue)
    transition = act(failed, command)
    assert (transition.inserted, transition.chat.history_version) == ((), 7)
    assert transition.chat.status == (status or before.chat.status)
    assert transition.changed == (status is not None)


def test_stop_during_the_delay_keeps_the_attempt_failed() -> None:
    """A Stop that comes between two attempts does not bring the failed one's parts back."""
    given = after(act(state("running", "a"), RecordRetry(run_id="a", token="1", retry=RETRY)))
    given = after(act(given, Interrupt()))
    transition = act(given, FinishInterruption(run_id="a", token="2", messages=ONE))
    assert (transition.inserted, transition.chat.status) == ((), "waiting")


def test_failed_attempt_does_not_taint_the_promoted_turn() -> None:
    """A run whose failed attempt was stopped goes on with the queue, and what it makes then is live and kept."""
    failed = after(act(state("running", "a", entries(1)), RecordRetry(run_id="a", token="1", retry=RETRY)))
    stopped = after(act(failed, Interrupt()))
    given = after(act(stopped, FinishInterruption(run_id="a", token="2", messages=ONE)))
    assert given.chat.live_episode == Episode(11 + 2, 1, "a")
    assert len(act(given, FinishTurn(run_id="a", token="3", messages=ONE)).inserted) == 1


def test_the_attempt_after_a_failed_one_is_kept() -> None:
    """A new attempt, or a new owner's, has a clean record."""
    failed = after(act(state("running", "a"), RecordRetry(run_id="a", token="1", retry=RETRY)))
    again = after(act(failed, BeginAttempt(run_id="a", token="2")))
    taken = after(act(failed, Acquire(worker_id="worker-b", run_id="b", dead_worker_id="worker-a")))
    kept = [
        act(again, FinishTurn(run_id="a", token="3", messages=ONE)).inserted,
        act(taken, FinishTurn(run_id="b", token="3", messages=ONE)).inserted,
    ]
    assert [len(messages) for messages in kept] == [1, 1]


def test_what_was_generated_is_marked() -> None:
    """Messages of an interruption and of a failure are marked interrupted; complete answers stay as they came."""
    cut = (NewMessage(role="assistant", content=text("long"), truncated=True),)
    stopping, running = state("interrupting", "a"), state("running", "a")
    marks = [
        [(m.interrupted, m.truncated, m.content) for m in transition.inserted]
        for transition in (
            act(stopping, FinishInterruption(run_id="a", token="t", messages=cut)),
            act(running, Fail(run_id="a", token="t", error=ERROR, messages=cut)),
            act(running, FinishTurn(run_id="a", token="t", messages=cut)),
            act(running, Commit(run_id="a", token="t", messages=cut)),
        )
    ]
    long = text("long")
    assert marks == [[(True, True, long)], [(True, True, long)], [(False, True, long)], [(False, True, long)]]


def test_fail_keeps_the_error_and_the_queue() -> None:
    """A failed turn parks the chat with its error; the queue waits for a person."""
    transition = act(state("running", "a", entries(1)), Fail(run_id="a", token="t", error=ERROR))
    assert (transition.chat.status, transition.chat.last_error, transition.queue) == ("error", ERROR, entries(1))


@pytest.mark.parametrize(
    "command",
    [SendMessage(content=text("x")), EditMessage(message_id=2, content=text("x")), PromoteQueued(queued_id=1)],
)
def test_leaving_error_clears_it(command: Command) -> None:
    """Whatever a person does to go on clears the last error."""
    chat = act(state("error", queue=entries(1)), command).chat
    assert (chat.status, chat.last_error) == ("running", None)


def test_delete_queued_stays_in_error() -> None:
    """Deleting from the queue is not going on: the error stays, with the last entry too."""
    chat = act(state("error", queue=entries(1)), DeleteQueued(queued_id=1)).chat
    assert (chat.status, chat.last_error) == ("error", ERROR)


# ----------------------------------------------------------------------------------------------------- queue


def contents(transition: Transition) -> list[tuple[Content, int | None]]:
    return [(message.content, message.queued_id) for message in transition.inserted]


def ids(transition: Transition) -> list[int]:
    return [entry.id for entry in transition.queue]


def test_error_with_a_queue_promotes_the_head_first() -> None:
    """What waited longer goes first; the new message goes behind, whatever its `when_busy`."""
    for when_busy in ("queue", "interrupt", "reject"):
        transition = act(state("error", queue=entries(1, 2)), SendMessage(content=text("new"), when_busy=when_busy))
        assert contents(transition) == [(text("queued 1"), 1)]
        assert transition.queue == (*entries(2), QueueEntry(id=3, content=text("new")))
        assert (transition.answer.done, transition.answer.queued_id) == ("queued", 3)


def test_urgent_goes_before_ordinary_and_behind_urgent() -> None:
    """Messages sent to interrupt go before ordinary ones, each kind in the order in which it came."""
    given = state("running", "a", next_queued_id=1)
    for when_busy in ("queue", "interrupt", "queue", "interrupt"):
        given = after(act(given, SendMessage(content=text("x"), when_busy=when_busy)))
    assert [(entry.id, entry.urgent) for entry in given.queue] == [(2, True), (4, True), (1, False), (3, False)]
    promoted = []
    for number in range(4):
        transition = act(given, FinishTurn(run_id="a", token=str(number)))
        promoted.append(contents(transition)[0][1])
        given = after(transition)
    assert (promoted, given.chat.status, given.chat.run_id) == ([2, 4, 1, 3], "running", "a")
    assert act(given, FinishTurn(run_id="a", token="last")).chat.status == "waiting"


@pytest.mark.parametrize("situation", [name for name, given in SITUATIONS.items() if given.queue])
def test_delete_queued_removes_the_entry_named(situation: str) -> None:
    """The entry named leaves the queue and nothing else changes."""
    before = SITUATIONS[situation]
    transition = act(before, DeleteQueued(queued_id=1))
    assert (transition.queue, transition.inserted) == (entries(2), ())
    assert transition.chat == attrs.evolve(before.chat, queue_version=11, snapshot_version=11, updated_at=FRESH.at)
    assert (transition.answer.done, transition.answer.queued_id) == ("deleted", 1)


@pytest.mark.parametrize("situation", ["running, owned, queue", "interrupting, owned, queue"])
def test_promote_asks_the_owner_to_stop(situation: str) -> None:
    """While a worker generates, the promoted entry waits first in line until the interruption is finished."""
    transition = act(SITUATIONS[situation], PromoteQueued(queued_id=2))
    assert (ids(transition), transition.chat.status, transition.inserted) == ([2, 1], "interrupting", ())
    assert (transition.answer.done, transition.answer.queued_id) == ("interrupting", 2)


def test_promoted_entry_stays_first() -> None:
    """A promoted entry is urgent from then on: one sent to interrupt later goes behind it."""
    given = after(act(state("running", "a", entries(1, 2)), PromoteQueued(queued_id=2)))
    transition = act(given, SendMessage(content=text("x"), when_busy="interrupt"))
    assert ids(transition) == [2, 3, 1]


def test_last_promotion_is_first_in_line() -> None:
    """Promoting while the chat is interrupting puts that entry before the ones that were promoted earlier."""
    given = after(act(state("running", "a", entries(1, 2)), PromoteQueued(queued_id=1)))
    transition = act(given, PromoteQueued(queued_id=2))
    assert (ids(transition), transition.chat.status) == ([2, 1], "interrupting")


def test_unowned_interrupt_puts_the_message_first() -> None:
    """Nobody generates: a message sent to interrupt enters the history before all that is queued."""
    before = state("running", queue=entries(1, 2, urgent=(1,)))
    transition = act(before, SendMessage(content=text("now"), when_busy="interrupt"))
    assert contents(transition) == [(text("now"), 3)]
    assert (ids(transition), transition.chat.status, transition.chat.run_id) == ([1, 2], "running", None)


@pytest.mark.parametrize("situation", ["running, queue", "error, queue"])
def test_promote_without_an_owner_enters_the_history(situation: str) -> None:
    """Nobody generates: the promoted entry enters the history at once, and nothing else does."""
    transition = act(SITUATIONS[situation], PromoteQueued(queued_id=2))
    assert (contents(transition), transition.queue) == ([(text("queued 2"), 2)], entries(1))
    assert (transition.answer.done, transition.answer.queued_id) == ("promoted", 2)


def test_unowned_interrupt_promotes_the_head() -> None:
    """An interrupt while nobody generates ends the turn at once; the queue goes on."""
    transition = act(state("running", queue=entries(1, 2)), Interrupt())
    assert (contents(transition), ids(transition)) == ([(text("queued 1"), 1)], [2])
    assert (transition.answer.done, transition.answer.run_goes_on) == ("ok", False)


def test_finish_promotes_behind_the_answer() -> None:
    """The complete answer comes before the promoted entry, and the run goes on with a turn of its own."""
    transition = act(state("running", "a", entries(1)), FinishTurn(run_id="a", token="t", messages=ONE))
    assert [(m.id, m.stamp, m.role) for m in transition.inserted] == [
        (5, "aaaaa", "assistant"),
        (6, "bbbbb", "user"),
    ]
    assert transition.answer.messages == (MessageRef(5, "aaaaa"), MessageRef(6, "bbbbb"))
    assert (transition.chat.turn_version, transition.chat.live_episode) == (11, Episode(11, 1, "a"))


@pytest.mark.parametrize(
    ("given", "when_busy"),
    [
        (state("running", "a", QUEUED), "queue"),
        (state("running", "a", QUEUED), "interrupt"),
        (state("running", queue=QUEUED), "queue"),
        (state("running", queue=QUEUED), "interrupt"),
        (state("interrupting", "a", QUEUED), "queue"),
        (state("interrupting", "a", QUEUED), "interrupt"),
    ],
)
def test_queue_is_limited(given: ChatState, when_busy: Any) -> None:
    """A full queue refuses; one place less, and it takes the message."""
    command = SendMessage(content=text("x"), when_busy=when_busy)
    with pytest.raises(QueueFull, match=r"^chat c has 2 messages waiting"):
        act(given, command, queue_limit=2)
    assert act(given, command, queue_limit=3).answer.queued_id == 3


def test_error_makes_room_before_it_queues() -> None:
    """A full queue of a chat in error takes a message: its head was promoted first."""
    transition = act(state("error", queue=QUEUED), SendMessage(content=text("x")), queue_limit=2)
    assert ids(transition) == [2, 3]


def test_queue_holds_twenty_by_default() -> None:
    """At most 20 messages wait for a chat."""
    given = state("running", "a", next_queued_id=1)
    for _ in range(20):
        given = after(decide(given, SendMessage(content=text("x")), FRESH))
    with pytest.raises(QueueFull):
        decide(given, SendMessage(content=text("x")), FRESH)


# ------------------------------------------------------------------------------------------------------ edit


@pytest.mark.parametrize("situation", SITUATIONS)
def test_edit_starts_anew(situation: str) -> None:
    """An edit deletes from the message on, inserts the replacement under a new id, and clears queue and owner."""
    transition = act(SITUATIONS[situation], EditMessage(message_id=2, content=text("better")))
    chat = transition.chat
    assert (transition.deleted_from, transition.queue) == (2, ())
    assert [(m.id, m.stamp, m.role, m.content) for m in transition.inserted] == [(5, "aaaaa", "user", text("better"))]
    assert (chat.status, chat.worker_id, chat.run_id, chat.last_error) == ("running", None, None, None)
    assert (chat.generation_attempt, chat.history_version, chat.turn_version, chat.takeovers) == (0, 11, 11, 0)
    assert transition.answer.done == "edited"


def test_edit_checks_that_the_target_is_the_one_named() -> None:
    """A target that is not the message named is refused, not edited."""
    with pytest.raises(MessageNotFound):
        decide(state("waiting"), EditMessage(message_id=1, content=text("x")), FRESH, target=stored(2))


def test_edit_takes_the_chat_from_its_run() -> None:
    """The run that generated when the message was edited has lost the chat."""
    given = after(act(state("running", "a"), EditMessage(message_id=2, content=text("x"))))
    with pytest.raises(ChatTaken):
        act(given, FinishTurn(run_id="a", token="t", messages=ONE))


# ------------------------------------------------------------------------------------------------- interrupt


def test_stop_hits_a_later_step_of_its_turn() -> None:
    """A tool step, a retry or a take-over of the same turn does not save it from a Stop."""
    given = after(create("c", Create(messages=(user("hi"),)), FRESH))
    given = after(act(given, Acquire(worker_id="worker-a", run_id="a")))
    aimed_at = given.chat.live_episode
    steps: list[Command] = [
        Commit(run_id="a", token="1", messages=ONE),
        RecordRetry(run_id="a", token="2", retry=RETRY),
        BeginAttempt(run_id="a", token="3"),
        Acquire(worker_id="worker-b", run_id="b", dead_worker_id="worker-a"),
    ]
    for command in steps:
        given = after(act(given, command))
        assert act(given, Interrupt(of=aimed_at)).chat.status == "interrupting"


@pytest.mark.parametrize("run", ["a", None])
def test_stop_that_comes_too_late_hits_nothing(run: str | None) -> None:
    """A Stop aimed at a turn that has ended does not stop the one that was promoted after it."""
    before = state("running", "a", entries(1))
    given = after(act(before, FinishTurn(run_id="a", token="1", messages=ONE)))
    if run is None:
        given = after(act(given, Abandon(run_id="a", token="2")))
    transition = act(given, Interrupt(of=before.chat.live_episode))
    assert (transition.changed, transition.answer.done, after(transition)) == (False, "nothing", given)


def test_stop_of_the_turn_at_hand() -> None:
    """`of` may name the live episode itself, down to the version at which its turn began."""
    given = after(act(state("running", "a", entries(1)), FinishTurn(run_id="a", token="1", messages=ONE)))
    assert given.chat.live_episode == Episode(11, 1, "a")
    assert act(given, Interrupt(of=given.chat.live_episode)).chat.status == "interrupting"


# --------------------------------------------------------------------------------------- take-overs, fence, tokens


def test_takeovers_count_dead_owners_only() -> None:
    """A take-over after a death is counted; an abandoned chat's next owner is not."""
    given = state("running", takeovers=0)
    counts = []
    steps: list[Command] = [
        Acquire(worker_id="worker-a", run_id="a"),
        Abandon(run_id="a", token="1"),
        Acquire(worker_id="worker-b", run_id="b", dead_worker_id="worker-a"),
        Acquire(worker_id="worker-c", run_id="c", dead_worker_id="worker-b"),
        Acquire(worker_id="worker-d", run_id="d", dead_worker_id="worker-c"),
        Abandon(run_id="d", token="2"),
    ]
    for command in steps:
        transition = act(given, command)
        given = after(transition)
        counts.append((given.chat.takeovers, transition.answer.takeovers))
    assert counts == [(0, 0), (0, 0), (0, 0), (1, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize(
    ("command", "takeovers"),
    [
        (Commit(run_id="a", token="t", messages=ONE), 0),
        (FinishTurn(run_id="a", token="t", messages=ONE), 0),
        (Fail(run_id="a", token="t", error=ERROR, messages=ONE), 0),
        (EditMessage(message_id=2, content=text("x")), 0),
        (Fail(run_id="a", token="t", error=ERROR), 1),
        (BeginAttempt(run_id="a", token="t"), 1),
        (Interrupt(), 1),
        (SendMessage(content=text("x")), 1),
    ],
)
def test_takeovers_last_until_the_history_changes(command: Command, takeovers: int) -> None:
    """Progress clears the count of deaths; what is no change of history keeps it."""
    assert act(state("running", "a"), command).chat.takeovers == takeovers


def test_acquire_replaces_only_the_owner_found_dead() -> None:
    """Whoever found the former owner dead does not take the chat from its living successor."""
    acquire = Acquire(worker_id="worker-b", run_id="b", dead_worker_id="worker-a")
    given = after(act(state("running", "a"), acquire))
    with pytest.raises(InvalidTransition):
        act(given, Acquire(worker_id="worker-c", run_id="c", dead_worker_id="worker-a"))


def test_taken_over_interruption_ends_with_nothing() -> None:
    """The interruption of a dead owner is finished by its successor, and the queue goes on."""
    acquire = Acquire(worker_id="worker-b", run_id="b", dead_worker_id="worker-a")
    given = after(act(state("interrupting", "a", entries(1)), acquire))
    assert (given.chat.status, given.chat.live_episode) == ("interrupting", Episode(7, 3, "b"))
    transition = act(given, FinishInterruption(run_id="b", token="t"))
    assert contents(transition) == [(text("queued 1"), 1)]
    assert (transition.chat.status, transition.chat.run_id) == ("running", "b")


OWN: dict[str, Callable[[str], Command]] = {
    "begin_attempt": lambda run: BeginAttempt(run_id=run, token="late"),
    "record_retry": lambda run: RecordRetry(run_id=run, token="late", retry=RETRY),
    "commit": lambda run: Commit(run_id=run, token="late", messages=ONE),
    "finish_turn": lambda run: FinishTurn(run_id=run, token="late", messages=ONE),
    "finish_interruption": lambda run: FinishInterruption(run_id=run, token="late", messages=ONE),
    "fail": lambda run: Fail(run_id=run, token="late", error=ERROR),
    "abandon": lambda run: Abandon(run_id=run, token="late"),
}


@pytest.mark.parametrize("name", OWN)
def test_run_that_lost_its_chat_is_told_so(name: str) -> None:
    """The fence comes before the table: a former run hears `ChatTaken` in every situation."""
    for given in SITUATIONS.values():
        with pytest.raises(ChatTaken):
            act(given, OWN[name]("former"))


@pytest.mark.parametrize("name", ["begin_attempt", "record_retry", "fail", "abandon"])
def test_interrupting_refuses_what_would_lose_the_stop(name: str) -> None:
    """A run whose chat is being interrupted can only finish the turn or the interruption."""
    with pytest.raises(Interrupted):
        act(state("interrupting", "a"), OWN[name]("a"))


@pytest.mark.parametrize("name", OWN)
def test_repeated_token_gives_the_first_answer(name: str) -> None:
    """A transition whose answer was lost is asked for again: the first answer, and nothing changes."""
    situation = "interrupting, owned, queue" if name == "finish_interruption" else "running, owned, queue"
    first = act(SITUATIONS[situation], OWN[name]("a"))
    assert first.changed
    others: list[Command] = [
        SendMessage(content=text("x")),
        EditMessage(message_id=2, content=text("x")),
        Acquire(worker_id="worker-b", run_id="b"),
        Acquire(worker_id="worker-c", run_id="c", dead_worker_id="worker-b"),
    ]
    given = after(first)
    for command in (None, *others):
        given = given if command is None else after(act(given, command))
        again = act(given, OWN[name]("a"), fresh=Fresh("later", ()))
        assert (again.answer, again.changed, after(again)) == (first.answer, False, given)
        assert (again.inserted, again.deleted_from) == ((), None)


def test_repeated_token_after_the_run_has_ended() -> None:
    """The answer to a finish is found although the chat is nobody's any more."""
    first = act(state("running", "a"), FinishTurn(run_id="a", token="t", messages=ONE))
    assert (first.chat.status, first.chat.run_id) == ("waiting", None)
    again = act(after(first), FinishTurn(run_id="a", token="t", messages=ONE))
    assert (again.answer, again.changed) == (first.answer, False)


def test_only_the_last_token_is_kept() -> None:
    """A later transition of another run takes the token's place: the former run has lost its chat."""
    given = after(act(state("running", "a"), Abandon(run_id="a", token="t1")))
    given = after(act(given, Acquire(worker_id="worker-b", run_id="b")))
    given = after(act(given, BeginAttempt(run_id="b", token="t2")))
    with pytest.raises(ChatTaken):
        act(given, Abandon(run_id="a", token="t1"))


def test_refused_transition_does_not_use_up_its_token() -> None:
    """A refusal is no answer: the same token may be asked with again once the transition is possible."""
    command = FinishInterruption(run_id="a", token="t", messages=ONE)
    given = state("running", "a")
    with pytest.raises(InvalidTransition):
        act(given, command)
    given = after(act(given, Interrupt()))
    assert act(given, command).changed


def test_abandon_may_follow_a_finish_that_promotes() -> None:
    """A stopping replica finishes the interruption and hands over what was promoted; the next attempt is a new one."""
    given = after(act(state("interrupting", "a", entries(1)), FinishInterruption(run_id="a", token="1")))
    given = after(act(given, Abandon(run_id="a", token="2")))
    assert (given.chat.status, given.chat.run_id, given.chat.generation_attempt) == ("running", None, 1)
    given = after(act(given, Acquire(worker_id="worker-b", run_id="b")))
    assert (given.chat.live_episode, given.chat.takeovers) == (Episode(11, 2, "b"), 0)


def test_an_acquire_whose_answer_was_lost_is_answered_again() -> None:
    """Its own run finds that the chat is its own already, and nothing changes a second time."""
    acquire = Acquire(worker_id="worker-b", run_id="b")
    given = after(act(state("running"), acquire))
    again = act(given, acquire)
    assert not again.changed
    assert given.chat == again.chat
    assert again.answer.run_goes_on
