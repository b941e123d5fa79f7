"""The store contract: who owns which chat, who is there, and whose lock is free."""

from __future__ import annotations

import attrs
import trio

from ..._protocol.chat import Create, Fail, FinishTurn, Interrupt, SendMessage
from ..._protocol.events import ChatError
from ...stores import Candidate, OwnedChat, Replica, Store
from ._kit import LIMITS, StoreTests, acquire, asked, text

W = Replica(id="w", address="http://10.0.0.5:8001", version="1.2")
X = Replica(id="x", address=None, version="1.3")


class StoreOwners(StoreTests):
    """Candidates, owned chats, replicas, locks."""

    async def test_a_chat_without_an_owner_is_a_candidate(self) -> None:
        """Only while it is running."""
        async with self.open(LIMITS) as store:
            await store.register(W)
            await store.create_chat("idle", Create(messages=()))
            await store.create_chat("c", asked("q"))
            assert [Candidate(chat_id="c", status="running", worker_id=None)] == list(await store.candidates(()))
            await acquire(store, "c")
            assert [] == list(await store.candidates(()))
            await store.apply("c", Fail(run_id="r", token="t", error=ChatError(kind="k", message="m")))
            assert [] == list(await store.candidates({"w"}))

    async def test_a_chat_of_the_dead_is_a_candidate(self) -> None:
        """Of an owner that was named as dead, and of one that has no row; running or interrupting."""
        async with self.open(LIMITS) as store:
            await store.register(W)
            await store.register(X)
            for chat_id, worker_id in (("of w", "w"), ("of x", "x"), ("of nobody", "gone")):
                await store.create_chat(chat_id, asked("q"))
                await acquire(store, chat_id, worker_id=worker_id)
                await store.apply(chat_id, Interrupt())
            gone = Candidate(chat_id="of nobody", status="interrupting", worker_id="gone")
            of_w = Candidate(chat_id="of w", status="interrupting", worker_id="w")
            assert [gone] == list(await store.candidates(()))
            assert [of_w, gone] == list(await store.candidates({"w"}))
            await store.unregister("x")
            assert ["of x", "of nobody"] == [chat.chat_id for chat in await store.candidates(())]

    async def test_the_oldest_change_comes_first(self) -> None:
        """What has waited longest is taken first; at most `limit`."""
        async with self.open(LIMITS) as store:
            for chat_id in ("a", "b", "c"):
                await store.create_chat(chat_id, asked("q"))
            await store.apply("a", SendMessage(content=text("more")))
            assert ["b", "c", "a"] == [chat.chat_id for chat in await store.candidates(())]
            assert ["b", "c"] == [chat.chat_id for chat in await store.candidates((), limit=2)]

    async def test_a_taken_over_chat_has_a_new_owner(self) -> None:
        """Whoever found that very owner dead replaces it; the take-over is counted."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"))
            await acquire(store, "c", worker_id="gone")
            await acquire(store, "c", worker_id="w", run_id="s", dead="gone")
            chat = await store.read_chat("c")
            assert ("w", "s", 1) == (chat.worker_id, chat.run_id, chat.takeovers)

    async def test_owned_chats(self) -> None:
        """All chats that name the replica, with run, status and version; until they are not its any more."""
        async with self.open(LIMITS) as store:
            for chat_id, worker_id in (("a", "w"), ("b", "w"), ("c", "x")):
                await store.create_chat(chat_id, asked("q"))
                await acquire(store, chat_id, worker_id=worker_id, run_id=f"run{chat_id}")
            await store.apply("b", Interrupt())
            owned_a = OwnedChat(chat_id="a", run_id="runa", status="running", snapshot_version=2)
            owned_b = OwnedChat(chat_id="b", run_id="runb", status="interrupting", snapshot_version=3)
            assert [owned_a, owned_b] == sorted(await store.owned_by("w"), key=lambda owned: owned.chat_id)
            await store.apply("a", FinishTurn(run_id="runa", token="t"))
            assert [owned_b] == list(await store.owned_by("w"))
            assert [] == list(await store.owned_by("unknown"))

    async def test_replicas_come_and_go(self) -> None:
        """A row is what was registered, counts its heartbeats, and goes."""
        async with self.open(LIMITS) as store:
            await store.register(W)
            await store.register(X)
            assert [W, X] == await _rows(store)
            assert await store.heartbeat("w", 3)
            assert await store.heartbeat("w", 2)
            assert [attrs.evolve(W, heartbeat=2, load=2), X] == await _rows(store)
            await store.unregister("w")
            await store.unregister("w")
            assert [X] == await _rows(store)

    async def test_a_heartbeat_without_a_row_says_so(self) -> None:
        """A replica whose row is gone is told, and writes none; it registers anew."""
        async with self.open(LIMITS) as store:
            assert not await store.heartbeat("w", 1)
            assert [] == await _rows(store)
            await store.register(W)
            assert await store.heartbeat("w", 1)
            moved = attrs.evolve(W, address="http://10.0.0.6:8001")
            await store.register(moved)
            assert [moved] == await _rows(store)

    async def test_heartbeats_are_all_counted(self) -> None:
        """Over all connections."""
        async with self.open(LIMITS) as store, self.open_again(store, LIMITS) as other:
            await store.register(W)
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon((store, other)[number % 2].heartbeat, "w", number)
            assert [10] == [replica.heartbeat for replica in await store.replicas()]

    async def test_the_lock_of_the_living_is_not_free(self) -> None:
        """Nobody who is registered, has left, or was never there is called dead by its lock, over any connection."""
        async with self.open(LIMITS) as store, self.open_again(store, LIMITS) as other:
            await store.register(W)
            await store.register(W)
            for observer in (store, other):
                assert frozenset() == await observer.released_locks(["w", "unknown"])
                assert frozenset() == await observer.released_locks([])
            await store.unregister("w")
            assert frozenset() == await other.released_locks(["w"])

    async def test_locks_can_be_switched_off(self) -> None:
        """Then no row claims one, and an observer who has them switched off calls nobody dead."""
        off = attrs.evolve(LIMITS, replica_locks=False)
        async with self.open(off) as store, self.open_again(store, LIMITS) as trusting:
            await store.register(W)
            assert [W] == list(await store.replicas())
            for observer in (store, trusting):
                assert frozenset() == await observer.released_locks(["w"])


async def _rows(store: Store) -> list[Replica]:
    """All rows, but for their locks: those are the store's."""
    return sorted([attrs.evolve(row, lock="") for row in await store.replicas()], key=lambda row: row.id)
