"""The memory store keeps the contract, and what its tests inject."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import attrs
import pytest

from relaytrio._errors import IdempotencyConflict
from relaytrio._protocol.chat import Create, SendMessage
from relaytrio._settings import DEFAULTS, Settings
from relaytrio.stores import IdempotencyKey, MemoryStore, Replica, Store, open_store
from relaytrio.testing.contracts import StoreContract
from relaytrio.testing.contracts._kit import Everything

TEXT = [{"type": "text", "text": "q"}]


class TestContract(StoreContract):
    """The store contract."""

    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Store]:
        async with open_store("memory://", settings=settings) as store:
            yield store


async def test_clock_and_stamps_are_injected() -> None:
    """Two stores with the same clock and the same random numbers are the same to the last character."""
    chats = []
    for _ in range(2):
        store = MemoryStore(clock=lambda: "2026-01-02T03:04:05.000006Z", random=Random(7))
        await store.create_chat("c", Create(messages=()))
        chats.append(await store.apply("c", SendMessage(content=TEXT)))
    assert chats[0] == chats[1]
    assert "2026-01-02T03:04:05.000006Z" == chats[0].chat.updated_at


async def test_a_lost_lock_is_free_until_it_is_taken_again() -> None:
    """`lose_lock` is a sudden death: the row stays, the lock is free."""
    store = MemoryStore()
    replica = Replica(id="w", address=None, version="1")
    await store.register(replica)
    store.lose_lock("w")
    assert {"w"} == await store.released_locks(["w", "other"])
    assert ["w"] == [row.id for row in await store.replicas()]
    await store.register(replica)
    assert frozenset() == await store.released_locks(["w"])


async def test_a_key_is_forgotten_after_its_time() -> None:
    """A repeat within the hours is a repeat, one after them is a new request."""
    now = ["2026-01-01T00:00:00Z"]
    store = MemoryStore(settings=attrs.evolve(DEFAULTS, idempotency_hours=2.0), clock=lambda: now[0])
    key = IdempotencyKey(scope="c", key="k", request_hash="h")
    await store.create_chat("c", Create(messages=()))
    await store.apply("c", SendMessage(content=TEXT), key)
    now[0] = "2026-01-01T01:59:59Z"
    assert not (await store.apply("c", SendMessage(content=TEXT), key)).changed
    with pytest.raises(IdempotencyConflict):
        await store.apply("c", SendMessage(content=TEXT), attrs.evolve(key, request_hash="other"))
    now[0] = "2026-01-01T02:00:00Z"
    assert (await store.apply("c", SendMessage(content=TEXT), key)).changed


async def test_it_is_set_back_to_an_older_copy() -> None:
    """All rows are as they were, whatever was written since, and the copy is good for another time."""
    store = MemoryStore()
    await store.create_chat("c", Create(messages=()))
    await store.register(Replica(id="w", address=None, version="1"))
    backup = store.backup()
    before = await Everything.of(store, "c")
    for _ in range(2):
        await store.apply("c", SendMessage(content=TEXT), IdempotencyKey(scope="c", key="k", request_hash="h"))
        await store.create_chat("d", Create(messages=()))
        await store.unregister("w")
        store.restore(backup)
        assert before == await Everything.of(store, "c")
        assert ["c"] == [chat.id for chat in await store.list_chats()]
        assert ["w"] == [row.id for row in await store.replicas()]
    assert (await store.apply("c", SendMessage(content=TEXT))).changed
