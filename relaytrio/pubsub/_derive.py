"""The notifier that fits a store, for those who name none.

Who calls: the engine. Must not know: what an engine does without one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from ..stores import MemoryStore, SqliteStore, Store
from ..stores._postgres_place import PostgresPlace
from ._base import PubSub
from .memory import MemoryPubSub
from .sqlite import open_sqlite_pubsub

_OF_MEMORY_STORES: WeakKeyDictionary[MemoryStore, MemoryPubSub] = WeakKeyDictionary()
"""Engines that share a store share its hints, as they would share a database's."""


@asynccontextmanager
async def derive_pubsub(store: Store) -> AsyncIterator[PubSub | None]:
    """The `MemoryPubSub` that belongs to a `MemoryStore` (one for all who ask, so it is not closed with the context), a
    `SqlitePubSub` on the file of a `SqliteStore`, a `PostgresPubSub` on the database of a `PostgresStore`, and None for
    any other store: name a pubsub, or live by polling.
    """
    if isinstance(store, MemoryStore):
        yield _OF_MEMORY_STORES.setdefault(store, MemoryPubSub())
    elif isinstance(store, SqliteStore):
        async with open_sqlite_pubsub(store.path) as pubsub:
            yield pubsub
    elif isinstance(place := getattr(store, "place", None), PostgresPlace):
        # Known by its place: to ask for its class would load the driver, which those without such a store may not have.
        from .postgres import open_postgres_pubsub

        async with open_postgres_pubsub(place.conninfo, schema=place.schema) as postgres_pubsub:
            yield postgres_pubsub
    else:
        yield None
