"""Ways to break a store on purpose, each in one place, and the rule of the checker that must find it.

Who calls: `driver.py`, which plants one in its process for the time of a job.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import attrs
import trio

from relaytrio._protocol import chat as rules
from relaytrio._protocol.chat import ChatState, RunCommand, Transition, decide
from relaytrio._protocol.events import MessageRef
from relaytrio.stores import _sql_chats as chats
from relaytrio.stores._base import IdempotencyKey, Outcome, View
from relaytrio.stores._sql_session import Session
from relaytrio.stores._sql_store import SqlStore

from .rules import Rule

SOMETIMES = 0.3


@attrs.frozen
class Fault:
    """One way."""

    planted: Callable[[], AbstractContextManager[Any]]
    found_by: Rule


def _no_row_lock() -> AbstractContextManager[Any]:
    """What a decision is made on is read in a transaction of its own, before the one that writes."""

    async def apply(self: Any, chat_id: str, command: Any, key: IdempotencyKey | None = None) -> Outcome:
        def read(session: Session) -> tuple[ChatState, Any]:
            with session.transaction("read"):
                state = ChatState(chats._chat(session, chat_id), chats._queue(session, chat_id))
                message_id = getattr(command, "message_id", 0)
                return state, chats._message(session, chat_id, message_id)

        state, target = await self._read(read)

        def decide_and_write(session: Session) -> Outcome:
            with session.transaction("write"):
                kept = chats._kept_answer(session, self._context, False, key)
                if kept is not None:
                    return Outcome(answer=kept[1], chat=chats._chat(session, chat_id), changed=False)
                transition = decide(state, command, self._context.fresher.fresh(command), target=target)
                if transition.changed:
                    chats._write(session, transition)
                chats._keep_answer(session, self._context, False, key, transition)
                return Outcome(answer=transition.answer, chat=transition.chat, changed=transition.changed)

        return await self._run(decide_and_write)  # type: ignore[no-any-return]

    return patch.object(SqlStore, "apply", apply)


def _key_not_kept() -> AbstractContextManager[Any]:
    """The answer is given, and the key forgotten."""
    return patch.object(chats, "_keep_answer", lambda *arguments: None)


def _last_in_line_first() -> AbstractContextManager[Any]:
    """The end of a turn promotes who came last."""
    promote = rules._Draft.promote

    def promote_last(self: Any, entry: Any) -> None:
        promote(self, self.queue[-1] if entry == self.queue[0] else entry)

    return patch.object(rules._Draft, "promote", promote_last)


def _any_run() -> AbstractContextManager[Any]:
    """A run's transition is carried out whoever owns the chat."""

    def decide_for_any(state: ChatState, command: Any, fresh: Any, **more: Any) -> Transition:
        if isinstance(command, RunCommand) and state.chat.run_id is not None:
            command = attrs.evolve(command, run_id=state.chat.run_id)
        return decide(state, command, fresh, **more)

    return patch.object(chats, "decide", decide_for_any)


def _version_twice() -> AbstractContextManager[Any]:
    """The chat's row does not get the new version, now and then: the next transition takes it once more."""
    write = chats._write

    def write_low(session: Session, transition: Transition) -> None:
        if random.random() < SOMETIMES:
            low = attrs.evolve(transition.chat, snapshot_version=transition.chat.snapshot_version - 1)
            transition = attrs.evolve(transition, chat=low)
        write(session, transition)

    return patch.object(chats, "_write", write_low)


def _promoted_and_kept() -> AbstractContextManager[Any]:
    """A promoted entry stays in the queue, now and then, and is promoted again."""
    promote = rules._Draft.promote

    def promote_and_keep(self: Any, entry: Any) -> None:
        before = self.queue
        promote(self, entry)
        if random.random() < SOMETIMES:
            self.set_queue(before)

    return patch.object(rules._Draft, "promote", promote_and_keep)


def _queue_left() -> AbstractContextManager[Any]:
    """A turn ends, now and then, as if nobody waited."""
    end_of_turn = rules._Draft.end_of_turn

    def end_and_leave(self: Any) -> bool:
        if random.random() < SOMETIMES:
            self.lose_owner()
            self.set(status="waiting")
            return False
        return end_of_turn(self)

    return patch.object(rules._Draft, "end_of_turn", end_and_leave)


def _torn_read() -> AbstractContextManager[Any]:
    """The queue is read a moment after the rest of a view."""
    read_view = SqlStore.read_view

    async def read_in_two(self: Any, chat_id: str, base: MessageRef) -> View:
        view = await read_view(self, chat_id, base)
        await trio.sleep(0.005)
        return attrs.evolve(view, queue=await self.read_queue(chat_id))

    return patch.object(SqlStore, "read_view", read_in_two)


FAULTS: dict[str, Fault] = {
    "no row lock": Fault(_no_row_lock, "VERSIONS"),
    "a version is written twice": Fault(_version_twice, "VERSIONS"),
    "a key is not kept": Fault(_key_not_kept, "KEY"),
    "the last in line is promoted first": Fault(_last_in_line_first, "QUEUE"),
    "a run is not asked who owns the chat": Fault(_any_run, "OWNER"),
    "a promoted entry stays in the queue": Fault(_promoted_and_kept, "MESSAGES"),
    "a turn ends and leaves the queue": Fault(_queue_left, "STRANDED"),
    "a read is two": Fault(_torn_read, "SERIAL"),
}
