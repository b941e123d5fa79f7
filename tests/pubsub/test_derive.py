"""The notifier that fits a store."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from relaytrio.pubsub import Hint, MemoryPubSub, SqlitePubSub, derive_pubsub
from relaytrio.stores import MemoryStore, Store, open_sqlite_store


async def test_engines_that_share_a_memory_store_share_its_hints() -> None:
    """And the notifier goes on when one of them leaves."""
    store = MemoryStore()
    async with derive_pubsub(store) as first:
        assert isinstance(first, MemoryPubSub)
        async with derive_pubsub(store) as second:
            assert first is second
        async with first.listen() as hints:
            await first.publish(Hint("a", 1, "running", None))
            assert "a" == (await anext(hints)).chat_id
    async with derive_pubsub(MemoryStore()) as other:
        assert other is not first


async def test_a_file_is_its_own_notifier(tmp_path: Path) -> None:
    """A SQLite store gets one that watches its file."""
    async with open_sqlite_store(tmp_path / "chat.db") as store, derive_pubsub(store) as pubsub:
        assert isinstance(pubsub, SqlitePubSub)


async def test_a_store_that_is_not_known_has_none() -> None:
    """An author's own store: no hints, unless a pubsub is named."""
    async with derive_pubsub(cast(Store, object())) as pubsub:
        assert pubsub is None
