"""All viewers of a chat share one read of the store, and none is given a read that began before its reason to look."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._errors import StoreUnavailable
from relaytrio._protocol.chat import Create, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import NO_MESSAGE, MessageRef
from relaytrio._shared_reads import SharedReads
from relaytrio.stores._base import View
from relaytrio.stores.memory import MemoryStore
from tests.scene import HERE, at_hand, open_scene

TEXT = user_message("q").content


class Held(MemoryStore):
    """A store whose reads take their view, and then wait until the test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.waits: list[trio.Event] = []
        self.fails = False
        self.held = True

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        self.reads += 1
        view = await super().read_view(chat_id, base)
        if self.held:
            self.waits.append(trio.Event())
            await self.waits[-1].wait()
        if self.fails:
            raise StoreUnavailable("planned")
        return view


class Viewers:
    """Those who read, and what they read."""

    def __init__(self, store: Held) -> None:
        self.reads = SharedReads(store, 10.0)
        self.versions: list[int] = []
        self.errors: list[StoreUnavailable] = []

    async def look(self, since: int | None = None) -> None:
        try:
            view = await self.reads.read("c", NO_MESSAGE, self.reads.begun if since is None else since)
            self.versions.append(view.chat.snapshot_version)
        except StoreUnavailable as error:
            self.errors.append(error)


async def held_store() -> Held:
    store = Held()
    await store.create_chat("c", Create(messages=(user_message("hello"),)))
    return store


async def test_who_has_the_same_reason_shares_one_read(autojump_clock: MockClock) -> None:
    """However many they are."""
    store = await held_store()
    viewers = Viewers(store)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(viewers.look, 0)
        await wait_all_tasks_blocked()
        store.waits[0].set()
    assert [1] * 50 == viewers.versions
    assert 1 == store.reads


async def test_a_later_reason_needs_a_later_read(autojump_clock: MockClock) -> None:
    """SUBSCRIBE_FIRST: what was committed after a read began is not in it."""
    store = await held_store()
    viewers = Viewers(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewers.look)
        await wait_all_tasks_blocked()
        await store.apply("c", SendMessage(content=TEXT))
        for _ in range(3):
            nursery.start_soon(viewers.look, viewers.reads.begun)
        await wait_all_tasks_blocked()
        for wait in store.waits:
            wait.set()
    assert sorted([1, 2, 2, 2]) == sorted(viewers.versions)
    assert 2 == store.reads


async def test_whoever_leads_may_leave(autojump_clock: MockClock) -> None:
    """Those who took part begin another read, one for all."""
    store = await held_store()
    viewers, leader = Viewers(store), trio.CancelScope()

    async def lead() -> None:
        with leader:
            await viewers.look(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await wait_all_tasks_blocked()
        for _ in range(5):
            nursery.start_soon(viewers.look, 0)
        await wait_all_tasks_blocked()
        leader.cancel()
        await wait_all_tasks_blocked()
        assert 2 == store.reads
        store.waits[1].set()
    assert [1] * 5 == viewers.versions


async def test_a_read_that_fails_fails_for_all(autojump_clock: MockClock) -> None:
    """Each is told by an error of its own."""
    store = await held_store()
    store.fails = True
    viewers = Viewers(store)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(viewers.look, 0)
        await wait_all_tasks_blocked()
        store.waits[0].set()
    assert ["planned"] * 3 == [str(error) for error in viewers.errors]
    assert 3 == len(set(map(id, viewers.errors)))


async def test_a_read_that_hangs_ends_for_all(autojump_clock: MockClock) -> None:
    """After the same time, and the next one is another."""
    store = await held_store()
    viewers = Viewers(store)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(viewers.look, 0)
    assert 3 == len(viewers.errors)
    assert 10.0 == trio.current_time()
    store.held = False
    await viewers.look()
    assert [1] == viewers.versions


@pytest.mark.parametrize("viewers", [1, 100])
async def test_a_change_costs_one_read_however_many_watch(autojump_clock: MockClock, viewers: int) -> None:
    """They hear of it at the same moment."""
    store = Held()
    store.held = False

    def wrap(memory: MemoryStore) -> Held:
        store.__dict__.update(memory.__dict__)
        return store

    async with open_scene(wrap_store=wrap) as scene, trio.open_nursery() as nursery:

        async def view() -> None:
            async with scene.subscribe() as subscription:
                await at_hand(subscription, 10)

        for _ in range(viewers):
            nursery.start_soon(view)
        await trio.sleep(1)
        before = store.reads
        await scene.acquire(HERE)
        await trio.sleep(1)
        assert before + 1 == store.reads
        nursery.cancel_scope.cancel()
