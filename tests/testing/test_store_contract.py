"""A store that is broken on purpose is caught by the test of the contract that says what is wrong with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from relaytrio._protocol.chat import Chat, Command, Create
from relaytrio._protocol.events import Message, MessageRef
from relaytrio._settings import Settings
from relaytrio.stores import IdempotencyKey, MemoryStore, Outcome, Replica, Store, View
from relaytrio.stores.memory import _KeptAnswer
from relaytrio.testing.contracts import StoreContract


class KeyAfterCommit(MemoryStore):
    """Writes the idempotency key in a transaction of its own, behind the transition."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lock = trio.Lock()

    async def apply(self, chat_id: str, command: Command, key: IdempotencyKey | None = None) -> Outcome:
        async with self.lock:
            if key is None or self._kept(False, key):
                return await super().apply(chat_id, command, key)
            outcome = await super().apply(chat_id, command)
            await trio.lowlevel.checkpoint()
            self._answers[False, key.scope, key.key] = _KeptAnswer(key.request_hash, chat_id, outcome.answer, 1e12)
            return outcome


class KeepsItsLock(MemoryStore):
    """Does not unlock the chat when its caller is cancelled."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lock = trio.Semaphore(1)

    async def apply(self, chat_id: str, command: Command, key: IdempotencyKey | None = None) -> Outcome:
        await self.lock.acquire()
        outcome = await super().apply(chat_id, command, key)
        await trio.lowlevel.checkpoint()
        self.lock.release()
        return outcome


class QueueOfAnotherMoment(MemoryStore):
    """Reads the queue of a view in another transaction."""

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        queue = await self.read_queue(chat_id)
        return attrs.evolve(await super().read_view(chat_id, base), queue=queue)


class RacingCreates(MemoryStore):
    """Looks for the key in one transaction, and makes the chat in the next."""

    async def create_chat(self, chat_id: str, command: Create, key: IdempotencyKey | None = None) -> Outcome:
        await trio.lowlevel.checkpoint()
        if key is None or self._kept(True, key):
            return await super().create_chat(chat_id, command, key)
        await trio.lowlevel.checkpoint()
        outcome = await super().create_chat(chat_id, command)
        self._answers[True, key.scope, key.key] = _KeptAnswer(key.request_hash, chat_id, outcome.answer, 1e12)
        return outcome


class TwoRoles(MemoryStore):
    """Knows of messages of the user, and others."""

    def _list_messages(self, chat_id: str, after_id: int, limit: int) -> tuple[Message, ...]:
        messages = super()._list_messages(chat_id, after_id, limit)
        return tuple(attrs.evolve(m, role="user" if m.role == "user" else "assistant") for m in messages)


class HidesCancellation(MemoryStore):
    """Reads in a shield."""

    async def _atomic(self, stretch: Callable[[], Any]) -> Any:
        with trio.CancelScope(shield=True):
            return await super()._atomic(stretch)


class OldHeartbeat(MemoryStore):
    """Keeps the counter of a row that is written anew."""

    async def register(self, replica: Replica) -> None:
        old = self._replicas.get(replica.id, replica)
        await super().register(attrs.evolve(replica, heartbeat=old.heartbeat))


class Floats(MemoryStore):
    """Keeps every number as a float."""

    def _view(self, chat_id: str, base: MessageRef) -> View:
        view = super()._view(chat_id, base)
        return attrs.evolve(view, messages=tuple(attrs.evolve(m, content=_floats(m.content)) for m in view.messages))


class OldCopy:
    """Another connection, which reads a chat once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chats: dict[str, Chat] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read_chat(self, chat_id: str) -> Chat:
        if chat_id not in self._chats:
            self._chats[chat_id] = await self._store.read_chat(chat_id)
        await trio.lowlevel.checkpoint()
        return self._chats[chat_id]


def _floats(value: Any) -> Any:
    match value:
        case bool():
            return value
        case int():
            return float(value)
        case list():
            return [_floats(item) for item in value]
        case dict():
            return {name: _floats(item) for name, item in value.items()}
        case _:
            return value


def contract_of(kind: type[MemoryStore], other: Callable[[Store], Any] = lambda store: store) -> StoreContract:
    """The contract, for a store of that kind."""

    class Contract(StoreContract):
        @asynccontextmanager
        async def open(self, settings: Settings) -> AsyncIterator[Store]:
            yield kind(settings=settings)

        @asynccontextmanager
        async def open_again(self, store: Store, settings: Settings) -> AsyncIterator[Store]:
            yield other(store)

    return Contract()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (KeyAfterCommit, "test_a_caller_that_is_cancelled_at_any_step"),
        (KeepsItsLock, "test_a_caller_that_is_cancelled_at_any_step"),
        (QueueOfAnotherMoment, "test_a_view_is_of_one_moment"),
        (RacingCreates, "test_concurrent_creates_happen_once"),
        (TwoRoles, "test_a_message_keeps_its_role"),
        (HidesCancellation, "test_whoever_is_cancelled_does_not_wait_for_a_read"),
        (OldHeartbeat, "test_a_heartbeat_without_a_row_says_so"),
        (Floats, "test_contents_survive"),
    ],
)
async def test_a_broken_store_is_caught(kind: type[MemoryStore], name: str, autojump_clock: MockClock) -> None:
    """By that test; a store that is whole passes it."""
    assert await failure_of(getattr(contract_of(MemoryStore), name)) is None
    failure = await failure_of(getattr(contract_of(kind), name))
    assert isinstance(failure, AssertionError | ExceptionGroup | trio.TooSlowError)


async def failure_of(test: Callable[[], Awaitable[None]]) -> Exception | None:
    try:
        await test()
    except Exception as failure:
        return failure
    return None


async def test_an_old_copy_is_caught(autojump_clock: MockClock) -> None:
    """Of two connections to one database, one that does not look at it any more."""
    with pytest.raises(AssertionError):
        await contract_of(MemoryStore, OldCopy).test_another_connection_sees_what_was_written()


async def test_a_store_that_hides_cancellation_does_not_hang_the_suite(autojump_clock: MockClock) -> None:
    """A test that lets readers go on until all is written ends, whatever they do with their cancellation."""
    await contract_of(HidesCancellation).test_a_view_is_of_one_moment()
