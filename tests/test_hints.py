"""Who watches which chat: hints, their loss, and the poll that makes up for it."""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._errors import PubSubUnavailable
from relaytrio._hints import Hints, Trouble
from relaytrio._protocol.chat import Chat
from relaytrio._protocol.events import CaughtUp, Degraded, MessageEvent, Status
from relaytrio._settings import Settings
from relaytrio.pubsub._base import Hint, PubSub
from relaytrio.pubsub.memory import MemoryPubSub
from relaytrio.stores._base import Fingerprint
from relaytrio.stores.memory import MemoryStore
from tests.scene import HERE, at_hand, kinds, open_scene, until


@attrs.define(eq=False)
class Watching:
    """A watcher that writes down what it hears."""

    fingerprint: Fingerprint | None = None
    heard: list[object] = attrs.field(factory=list)

    def hinted(self, snapshot_version: int) -> None:
        self.heard.append(snapshot_version)

    def look(self) -> None:
        self.heard.append("look")

    def tell(self, what: Trouble, ok: bool, message: str) -> None:
        self.heard.append((what, ok))

    def finish(self, ending: Exception) -> None:
        self.heard.append(ending)


class Flaky:
    """A notifier that is lost whenever the test says so."""

    def __init__(self) -> None:
        self.inner = MemoryPubSub()
        self.lost = trio.Event()
        self.refusing = False
        self.listened = 0

    async def publish(self, hint: Hint) -> None:
        if self.refusing:
            raise PubSubUnavailable("no notifier")
        await self.inner.publish(hint)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        self.listened += 1
        if self.refusing:
            raise PubSubUnavailable("no notifier")
        async with self.inner.listen() as hints:
            yield self._until_lost(hints)

    async def _until_lost(self, hints: AsyncIterator[Hint]) -> AsyncIterator[Hint]:
        async for hint in hints:
            yield hint
            if self.refusing:
                raise PubSubUnavailable("the notifier was lost")

    async def aclose(self) -> None:
        await self.inner.aclose()


def make_hints(pubsub: PubSub | None, looked: list[Hint] | None = None) -> Hints:
    look = (lambda hint: None) if looked is None else looked.append
    return Hints(
        MemoryStore(), pubsub, Settings(), look=look, random=lambda: 0.5, logger=logging.getLogger("relaytrio")
    )


async def test_own_transitions_wake_own_watchers_without_any_pubsub(autojump_clock: MockClock) -> None:
    """WITHOUT_PUBSUB: the announcement itself is the wake, for subscriptions and the worker."""
    looked: list[Hint] = []
    hints, watcher, other = make_hints(None, looked), Watching(), Watching()
    with hints.watching("c", watcher), hints.watching("d", other):
        hints.announce(Chat(id="c", status="running", snapshot_version=7))
        hints.announce_deleted("c")
        assert [7, "look"] == watcher.heard
        assert [] == other.heard
        assert ["running", "deleted"] == [hint.status for hint in looked]
        assert 2 == len(hints)
    assert 0 == len(hints)


async def test_hints_reach_other_replicas(autojump_clock: MockClock) -> None:
    """What one replica announces, the watchers of another hear."""
    pubsub = MemoryPubSub()
    here, there, watcher = make_hints(pubsub), make_hints(pubsub), Watching()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        nursery.start_soon(there.run)
        await wait_all_tasks_blocked()
        with there.watching("c", watcher):
            here.announce(Chat(id="c", status="running", snapshot_version=7))
            await wait_all_tasks_blocked()
            assert [7] == watcher.heard
        nursery.cancel_scope.cancel()


async def test_hints_that_do_not_get_through_are_told_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure of minutes is one line of the log, not one for each transition; and so is its end."""
    caplog.set_level(logging.INFO, "relaytrio")
    pubsub = Flaky()
    hints = make_hints(pubsub)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hints.run)
        await wait_all_tasks_blocked()
        for refusing in (True, True, True, False, False):
            pubsub.refusing = refusing
            hints.announce(Chat(id="c", status="running", snapshot_version=7))
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    told = [record.levelname for record in caplog.records if "get through" in record.message]
    assert ["WARNING", "INFO"] == told


async def test_a_lost_notifier_is_told_and_listened_to_again(autojump_clock: MockClock) -> None:
    """WITHOUT_PUBSUB: its failure is told, and after it everybody looks, as hints may have been missed."""
    pubsub = Flaky()
    async with open_scene(pubsub=pubsub) as scene:
        await wait_all_tasks_blocked()
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            pubsub.refusing = True
            await pubsub.inner.publish(Hint("other", 1, "running", None))
            await until(subscription, Degraded, what="pubsub", ok=False)
            async with scene.subscribe() as late:
                assert "degraded" in kinds(await at_hand(late))
            await scene.acquire(HERE)
            await scene.finish("answer")
            events = await until(subscription, Status, status="waiting")
            assert "message" in kinds(events)
            pubsub.refusing = False
            await until(subscription, Degraded, what="pubsub", ok=True)


async def test_what_was_said_while_nobody_listened_is_looked_for(autojump_clock: MockClock) -> None:
    """NO_LOSS: when hints arrive again everybody looks at once, and does not wait for the poll."""
    pubsub = Flaky()
    async with open_scene(pubsub=pubsub, poll_seconds=1000.0) as scene:
        await wait_all_tasks_blocked()
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            pubsub.refusing = True
            await pubsub.inner.publish(Hint("other", 1, "running", None))
            await until(subscription, Degraded, what="pubsub", ok=False)
            scene.announcing = False
            await scene.acquire(HERE, log=False)
            await scene.finish("unheard")
            pubsub.refusing = False
            started = trio.current_time()
            await until(subscription, Status, status="waiting")
            assert trio.current_time() - started <= 10


async def test_a_notifier_that_always_ends_at_once_costs_nothing(autojump_clock: MockClock) -> None:
    """NO_SPIN: each new try waits longer, up to a bound."""
    pubsub = Flaky()
    pubsub.refusing = True
    async with open_scene(pubsub=pubsub):
        await trio.sleep(3600)
        assert pubsub.listened <= 3600 / 2 * 2 + 10


async def test_after_a_long_silence_hints_are_heard_again_soon(autojump_clock: MockClock) -> None:
    """However long the notifier was away, all viewers of a replica do not wait long for its one next try."""
    pubsub = Flaky()
    async with open_scene(pubsub=pubsub) as scene:
        await wait_all_tasks_blocked()
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            pubsub.refusing = True
            await pubsub.inner.publish(Hint("other", 1, "running", None))
            await until(subscription, Degraded, what="pubsub", ok=False)
            for _ in range(10):
                await trio.sleep(60)
                pubsub.refusing = False
                returned = trio.current_time()
                await until(subscription, Degraded, what="pubsub", ok=True)
                assert trio.current_time() - returned <= 2.0
                pubsub.refusing = True
                await pubsub.inner.publish(Hint("other", 1, "running", None))
                await until(subscription, Degraded, what="pubsub", ok=False)


async def test_a_poll_compares_with_unequal(autojump_clock: MockClock) -> None:
    """CONVERGES: a store that was set back to an older copy is noticed, and the viewer goes on from its own cursor."""
    async with open_scene() as scene:
        await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            older = {name: _copied(value) for name, value in scene.memory.__dict__.items()}
            await scene.finish("lost by the restore")
            await until(subscription, Status, status="waiting")
            scene.memory.__dict__.update(older)
            events = await until(subscription, Status, status="running")
        assert ["history_reset"] == kinds(events)[:1]
        assert not [event for event in events if isinstance(event, MessageEvent) and event.message.id > 1]


def _copied(value: object) -> object:
    return copy.deepcopy(value) if isinstance(value, dict | set) else value


async def test_hints_that_cannot_be_sent_take_one_place_a_chat(autojump_clock: MockClock) -> None:
    """BOUNDED: while nothing can be sent, only the newest hint of each chat is kept."""
    hints = make_hints(MemoryPubSub())
    for version in range(1000):
        hints.announce(Chat(id="c", status="running", snapshot_version=version))
    assert 1 == len(hints._unsent)
    await hints.flush()
    assert {} == hints._unsent


async def test_streams_end_each_with_an_exception_of_its_own(autojump_clock: MockClock) -> None:
    """One exception raised in many tasks would collect all their tracebacks."""
    hints, one, other = make_hints(None), Watching(), Watching()
    with hints.watching("c", one), hints.watching("c", other):
        hints.finish_all(lambda: ValueError("over"))
    assert one.heard[0] is not other.heard[0]
