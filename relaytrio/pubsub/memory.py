"""Hints between engines of one process that share this object: for tests and simulated clusters.

Must not know: what a hint is good for. Who calls: the engine; `derive_pubsub` gives the one that belongs to a store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ._base import Hint
from ._listener import Listener


class MemoryPubSub:
    """A `PubSub` in memory. A subclass that overrides `_deliver` may lose, double, delay or reorder hints."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._closed = False

    async def publish(self, hint: Hint) -> None:
        """Hand the hint to all listeners. A checkpoint; cancelled, it hands over nothing."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        self._deliver(hint)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        """All hints that are published while the context is open."""
        self._check_open()
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            listener.close()

    async def aclose(self) -> None:
        """End all listeners. Afterwards `publish` and `listen` raise `trio.ClosedResourceError`."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _deliver(self, hint: Hint) -> None:
        for listener in self._listeners:
            listener.put(hint)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the pubsub is closed")
