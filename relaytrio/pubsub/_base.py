"""The PubSub protocol: carries hints between replicas, and promises nothing.

A hint says "look now". It may be lost, late, doubled or out of order; nothing but timing may depend on it. It must not
know what a chat is beyond the four fields. Who calls: the engine, which sends hints after commits and hands received
ones to subscriptions and the worker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import attrs

from .._protocol.events import ChatStatus

HintStatus: TypeAlias = ChatStatus | Literal["deleted"]


@attrs.frozen
class Hint:
    """A chat has changed."""

    chat_id: str
    snapshot_version: int
    status: HintStatus
    worker_id: str | None


class PubSub(Protocol):
    """A notifier between the replicas of a cluster."""

    async def publish(self, hint: Hint) -> None:
        """Send a hint to all replicas (this one may hear it too). Raises `PubSubUnavailable`."""

    def listen(self) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        """All hints of all chats from the moment that the context is entered.

        Entering raises `PubSubUnavailable` if hints cannot be had. The iterator ends, or raises
        `PubSubUnavailable`, when the notifier is lost; the engine then listens anew. A listener that is too slow
        loses hints, never memory: at most one, the newest, is kept for each chat.
        """

    async def aclose(self) -> None:
        """Close it. Twice is fine."""
