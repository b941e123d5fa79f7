"""The memory pubsub keeps the contract, and can be made worse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trio.testing import wait_all_tasks_blocked

from relaytrio.pubsub import Hint, MemoryPubSub, PubSub
from relaytrio.testing.contracts import PubSubContract


class TestContract(PubSubContract):
    """The pubsub contract."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[PubSub]:
        pubsub = MemoryPubSub()
        yield pubsub
        await pubsub.aclose()


async def test_a_thousand_changes_that_nobody_reads_are_one_hint() -> None:
    """A slow listener keeps the newest of each chat only."""
    pubsub = MemoryPubSub()
    async with pubsub.listen() as hints:
        for version in range(1, 1001):
            await pubsub.publish(Hint("a", version, "running", None))
        await pubsub.aclose()
        assert [Hint("a", 1000, "running", None)] == [hint async for hint in hints]


async def test_a_subclass_may_lose_hints() -> None:
    """`_deliver` is what a test overrides to be deaf."""

    class Deaf(MemoryPubSub):
        def _deliver(self, hint: Hint) -> None:
            lost.append(hint)

    lost: list[Hint] = []
    pubsub = Deaf()
    async with pubsub.listen() as hints:
        await pubsub.publish(Hint("a", 1, "running", None))
        await wait_all_tasks_blocked()
        await pubsub.aclose()
        assert [] == [hint async for hint in hints]
    assert [Hint("a", 1, "running", None)] == lost
