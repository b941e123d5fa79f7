"""Callers that ask a store for whatever may be asked of a few chats, at random and all at once, and write it all down.

A caller is a person and a worker in one. It sends, edits, promotes, deletes, interrupts, reads; it takes chats over and
does what a run does, also when its run has lost the chat. It repeats itself, as one does whose answer was lost: after
the answer or beside it, with the same key or token. Keys are shared: what is asked under a key follows from the key, so
that several processes ask the same at the same moment. Each run has one caller, as a run has one supervisor.

Must not know: which database it is. Who calls: `driver.py`, and `playing.py` to make and to settle the chats.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import attrs
import trio

from relaytrio._errors import RequestError, RunError, StoreUnavailable
from relaytrio._protocol.chat import (
    Abandon,
    Acquire,
    BeginAttempt,
    Command,
    Commit,
    Create,
    DeleteQueued,
    EditMessage,
    Fail,
    FinishInterruption,
    FinishTurn,
    Interrupt,
    NewMessage,
    PromoteQueued,
    RecordRetry,
    RunCommand,
    SendMessage,
    WhenBusy,
)
from relaytrio._protocol.events import ChatError, ChatStatus, Content, Episode, MessageRef, RetryState
from relaytrio.stores import IdempotencyKey, Store

from .records import After, Record, fields_of

REPEATED_AFTER, REPEATED_BESIDE, CANCELLED, OTHER_CONTENT = 0.12, 0.1, 0.05, 0.2
"""How often a request is asked again, is asked twice at once, is left, or uses a key for something else."""
WORKING, READING = 0.5, 0.12
"""How often a caller does what a run of its own does; how often it only reads."""
TAKEN_OVER = 0.3
"""How often a worker believes that the owner is dead: then the chat changes hands in the middle of its run."""
KEYS_A_SECOND = 40
KEYS_AT_A_TIME = 6
"""How many shared keys of a chat are in use at a moment."""
RECENT = 12
WAYS: tuple[WhenBusy, ...] = ("queue", "queue", "queue", "queue", "queue", "queue", "interrupt", "reject")


def text(content: str) -> Content:
    return [{"type": "text", "text": content}]


@attrs.define
class Known:
    """What the callers of one loop have heard of a chat: good enough to ask for what is mostly there."""

    status: ChatStatus = "waiting"
    worker_id: str | None = None
    episode: Episode | None = None
    messages: deque[int] = attrs.field(factory=lambda: deque([1], maxlen=RECENT))
    entries: deque[int] = attrs.field(factory=lambda: deque([1], maxlen=RECENT))


class Asker:
    """Asks, and writes down what came of it."""

    def __init__(self, who: str, store: Store, write: Callable[[Record], None]) -> None:
        self.who = who
        self._store = store
        self._write = write

    async def ask(self, chat_id: str, command: Create | Command, key: IdempotencyKey | None = None) -> Record:
        """One transition. A checkpoint; a cancelled one is written down too."""
        if isinstance(command, Create):
            asking = partial(self._store.create_chat, chat_id, command, key)
        else:
            asking = partial(self._store.apply, chat_id, command, key)

        async def answer() -> dict[str, Any]:
            outcome = await asking()
            after = After.of(outcome.chat)
            return {"came": "answer", "answer": outcome.answer, "changed": outcome.changed, "after": after}

        return await self._asked(
            answer,
            chat_id=chat_id,
            kind=type(command).__name__,
            fields=fields_of(command),
            key=None if key is None else key.key,
            request_hash=None if key is None else key.request_hash,
        )

    async def read(self, chat_id: str, base: MessageRef) -> Record:
        """One view."""

        async def view() -> dict[str, Any]:
            view = await self._store.read_view(chat_id, base)
            return {"came": "view", "view": view, "after": After.of(view.chat)}

        return await self._asked(view, chat_id=chat_id, kind="read")

    async def _asked(self, asking: Callable[[], Any], **what: Any) -> Record:
        asked = time.monotonic()
        came: dict[str, Any]
        try:
            came = await asking()
        except (RequestError, RunError) as refusal:
            came = {"came": "refusal", "said": type(refusal).__name__}
        except StoreUnavailable as error:
            came = {"came": "unavailable", "said": str(error)}
        except trio.Cancelled:
            self._write(Record(who=self.who, asked=asked, came_back=time.monotonic(), came="cancelled", **what))
            raise
        except Exception as error:  # whatever a store must not raise: that is what is looked for
            came = {"came": "broke", "said": f"{type(error).__name__}: {error}"}
        record = Record(who=self.who, asked=asked, came_back=time.monotonic(), **came, **what)
        self._write(record)
        return record


class Caller:
    """One of those who race."""

    def __init__(self, asker: Asker, random: Random, known: defaultdict[str, Known]) -> None:
        self._asker = asker
        self._random = random
        self._known = known
        self._runs: dict[str, str] = {}
        """By chat: the run that this caller supervises, or did until somebody took the chat."""
        self._count = 0

    async def step(self, chats: Sequence[str]) -> None:
        """Ask something of a chat, perhaps more than once: as the worker that it is, or as anybody."""
        if self._runs and self._random.random() < WORKING:
            chat_id = self._random.choice(list(self._runs))
            known = self._known[chat_id]
            command, key = self._of_run(self._runs[chat_id], known), None
        else:
            chat_id = self._random.choice(chats)
            known = self._known[chat_id]
            if self._random.random() < READING:
                await self._asker.read(chat_id, MessageRef(max(0, known.messages[-1] - 3), None))
                return
            command, key = self._what(chat_id, known)
        await self._ask(chat_id, command, key)

    async def _ask(self, chat_id: str, command: Command, key: IdempotencyKey | None) -> None:
        if self._random.random() < CANCELLED:
            with trio.move_on_after(self._random.random() * 0.003):
                await self._asker.ask(chat_id, command, key)
            return
        repeatable = key is not None or isinstance(command, RunCommand | Acquire)
        chance = self._random.random() if repeatable else 1.0
        async with trio.open_nursery() as nursery:
            if chance < REPEATED_BESIDE:
                nursery.start_soon(self._asker.ask, chat_id, command, key)
            record = await self._asker.ask(chat_id, command, key)
        self._hear(chat_id, command, record)
        if key is not None and isinstance(command, SendMessage) and self._random.random() < OTHER_CONTENT:
            other = attrs.evolve(command, content=text(self._new_name()))
            await self._asker.ask(chat_id, other, self._key(chat_id, key.key, other))
        if REPEATED_BESIDE <= chance < REPEATED_BESIDE + REPEATED_AFTER:
            await self._asker.ask(chat_id, command, key)

    def _what(self, chat_id: str, known: Known) -> tuple[Command, IdempotencyKey | None]:
        chance = self._random.random()
        if chance < 0.15:
            return self._shared(chat_id)
        if chance < 0.6:
            return self._of_person(chat_id, known), None
        if chance < 0.7:
            command = self._of_person(chat_id, known)
            return command, self._key(chat_id, self._new_name(), command)
        dead = known.worker_id if self._random.random() < TAKEN_OVER else None
        return Acquire(worker_id=self._asker.who, run_id=self._new_name(), dead_worker_id=dead), None

    def _shared(self, chat_id: str) -> tuple[Command, IdempotencyKey]:
        """What all processes ask under one of the keys of this moment."""
        number = int(time.monotonic() * KEYS_A_SECOND) // KEYS_AT_A_TIME * KEYS_AT_A_TIME
        name = f"{chat_id}.k{number + self._random.randrange(KEYS_AT_A_TIME)}"
        when_busy = Random(name).choice(WAYS)
        command = SendMessage(content=text(name), when_busy=when_busy)
        return command, self._key(chat_id, name, command)

    def _key(self, chat_id: str, name: str, command: Command) -> IdempotencyKey:
        return IdempotencyKey(scope=chat_id, key=name, request_hash=str(fields_of(command)))

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._asker.who}.{self._count}"

    def _of_person(self, chat_id: str, known: Known) -> Command:
        match self._random.choices(["send", "promote", "interrupt", "delete", "edit"], [20, 6, 4, 3, 2])[0]:
            case "send":
                when_busy = self._random.choice(WAYS)
                return SendMessage(content=text(self._new_name()), when_busy=when_busy)
            case "promote":
                return PromoteQueued(queued_id=self._random.choice(known.entries))
            case "delete":
                return DeleteQueued(queued_id=self._random.choice(known.entries))
            case "interrupt":
                return Interrupt(of=self._random.choice([None, known.episode]))
            case _:
                return EditMessage(message_id=self._random.choice(known.messages), content=text(self._new_name()))

    def _of_run(self, run_id: str, known: Known) -> Command:
        token = self._new_name()
        if known.status == "interrupting" and self._random.random() < 0.7:
            return FinishInterruption(run_id=run_id, token=token, messages=self._generated(token))
        match self._random.choices(["commit", "finish", "begin", "retry", "fail", "abandon"], [6, 12, 2, 2, 1, 3])[0]:
            case "commit":
                return Commit(run_id=run_id, token=token, messages=self._generated(token))
            case "finish":
                return FinishTurn(run_id=run_id, token=token, messages=self._generated(token))
            case "begin":
                return BeginAttempt(run_id=run_id, token=token)
            case "retry":
                retry = RetryState(attempt=1, delay_seconds=0.5, error="no answer")
                return RecordRetry(run_id=run_id, token=token, retry=retry)
            case "fail":
                error = ChatError(kind="responder_failed", message="no answer")
                return Fail(run_id=run_id, token=token, error=error, messages=self._generated(token))
            case _:
                return Abandon(run_id=run_id, token=token)

    def _generated(self, token: str) -> tuple[NewMessage, ...]:
        return tuple(
            NewMessage(role="assistant", content=text(f"{token}.{number}"))
            for number in range(self._random.choice([0, 1, 1, 2]))
        )

    def _hear(self, chat_id: str, command: Command, record: Record) -> None:
        known = self._known[chat_id]
        if isinstance(command, RunCommand) and record.said == "ChatTaken" and self._random.random() < 0.7:
            self._runs.pop(chat_id, None)
        if record.said == "Interrupted":
            known.status = "interrupting"
        if record.answer is None or record.after is None:
            return
        answer, after = record.answer, record.after
        known.status, known.worker_id = after.status, after.worker_id
        if after.run_id is not None:
            known.episode = Episode(answer.history_version, answer.generation_attempt, after.run_id)
        known.messages.extend(ref.id for ref in answer.messages)
        if answer.queued_id is not None:
            known.entries.append(answer.queued_id)
        if isinstance(command, Acquire) and after.run_id == command.run_id:
            self._runs[chat_id] = command.run_id
