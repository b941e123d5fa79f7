"""The numbered race at the boundary: what leaves a subscription, and an engine, while its tasks stand anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio import EngineFailed, SubscriptionFailed, open_engine, user_message
from relaytrio._protocol.events import CaughtUp, MessagePart, MessageRef
from relaytrio._turn import Turn
from relaytrio.stores._base import View
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import Seam, Seams
from tests.races.race import race
from tests.scene import HERE, THERE, Scene, open_scene, until

UNDER_WAY: list[Seam] = [
    "view read, not laid down",
    "about to dial",
    "dialed, not selected",
    "selected, nothing read",
    "rows came, not laid down",
]
"""Where a task of a subscription may stand when its viewer leaves."""


class Own(Exception):
    """A viewer's own."""


async def nothing_left(scene: Scene) -> None:
    """NO_LEAK: no listener, reader, leg or task of a subscription."""
    await wait_all_tasks_blocked()
    assert 0 == len(scene.hints)
    assert [] == scene.parts.watched
    assert {} == scene.parts._chat_wakes
    assert not any(dial.pending or dial.open for dial in scene.dialer.dials)


async def bring_to(scene: Scene, seam: Seam, work: trio.Nursery) -> None:
    """Have the subscription's tasks come to that seam."""

    async def worker() -> None:
        leg = (await scene.dialer.next_dial()).complete()
        await leg.selected()
        scene.feed(leg, await scene.live_episode(), ["a"])

    if seam == "view read, not laid down":
        await scene.send("behind")
    else:
        work.start_soon(worker)
        await scene.acquire(THERE)


@asynccontextmanager
async def standing_at(seams: Seams, scene: Scene, seam: Seam) -> AsyncIterator[Any]:
    """Inside of a subscription one of whose tasks stands at that seam, and stays there."""
    async with trio.open_nursery() as work:
        try:
            async with scene.subscribe() as subscription:
                await until(subscription, CaughtUp)
                stop = seams.stop(seam)
                await bring_to(scene, seam, work)
                await stop.wait()
                yield subscription
        finally:
            work.cancel_scope.cancel()


@race(18)
@pytest.mark.parametrize("seam", UNDER_WAY)
async def test_18_an_exception_of_the_viewer_leaves_as_it_is(seams: Seams, seam: Seam) -> None:
    """The very exception with its own context, at once, wherever the tasks stand; and nothing is left of them."""
    own, context = Own("mine"), KeyError("context")
    async with open_scene() as scene:
        caught: BaseException | None = None
        async with trio.open_nursery() as work:
            try:
                async with scene.subscribe() as subscription:
                    await until(subscription, CaughtUp)
                    stop = seams.stop(seam)
                    await bring_to(scene, seam, work)
                    await stop.wait()
                    try:
                        raise context
                    except KeyError:
                        raise own  # noqa: B904 - its context is what is looked at
            except Own as error:
                caught = error
            work.cancel_scope.cancel()
        assert own is caught
        assert context is own.__context__
        assert 0.0 == trio.current_time()
        await nothing_left(scene)
    assert 1 <= seams.passed[seam]


@race(18)
@pytest.mark.parametrize("seam", ["watching, not read", *UNDER_WAY])
async def test_18_a_cancellation_by_the_caller_is_neither_swallowed_nor_converted(seams: Seams, seam: Seam) -> None:
    """While it enters, waits or leaves: the scope that was cancelled catches it, at once, and nothing is left."""
    async with open_scene() as scene:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                stop = seams.stop(seam)

                async def cancel() -> None:
                    await stop.wait()
                    scope.cancel()

                nursery.start_soon(cancel)
                if seam not in ("watching, not read", "view read, not laid down"):
                    await bring_to(scene, seam, nursery)
                async with scene.subscribe() as subscription:
                    async for _ in subscription:
                        pass
        assert scope.cancelled_caught
        assert 0.0 == trio.current_time()
        await nothing_left(scene)
    assert 1 <= seams.passed[seam]


class Breaking(MemoryStore):
    """A store with a fault that is nobody's but the engine's."""

    broken = False

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        if self.broken:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError
        return await super().read_view(chat_id, base)


@asynccontextmanager
async def open_breaking_scene() -> AsyncIterator[tuple[Scene, Breaking]]:
    store = Breaking()

    def wrap(memory: MemoryStore) -> Breaking:
        store.__dict__.update(memory.__dict__)
        return store

    async with open_scene(wrap_store=wrap) as scene:
        yield scene, store


@race(18, "asked, not taken")
async def test_18_a_failure_of_the_engine_leaves_as_one_exception_of_ours(seams: Seams) -> None:
    """While the viewer waits for the next: the body is cancelled, and told why when it leaves."""
    async with open_breaking_scene() as (scene, store):
        await scene.acquire(HERE)
        with pytest.raises(SubscriptionFailed) as failed:
            async with scene.subscribe() as subscription:
                await until(subscription, CaughtUp)
                store.broken = True
                await scene.send("behind")
                await until(subscription, MessagePart)
        assert isinstance(failed.value.__cause__, ZeroDivisionError)
        assert 0.0 == trio.current_time()
        await nothing_left(scene)


@race(18, "view read, not laid down")
async def test_18_a_failure_and_a_cancellation_in_the_same_instant(seams: Seams) -> None:
    """Either the scope catches its cancellation, or the one exception of ours leaves: never a group, never neither."""
    async with open_breaking_scene() as (scene, store):
        failure: SubscriptionFailed | None = None
        await scene.acquire(HERE)
        with trio.CancelScope() as scope:
            try:
                async with scene.subscribe() as subscription:
                    await until(subscription, CaughtUp)
                    store.broken = True
                    await scene.send("behind")
                    await trio.lowlevel.checkpoint()
                    scope.cancel()
                    await until(subscription, MessagePart)
            except SubscriptionFailed as error:
                failure = error
        assert failure is None or isinstance(failure.__cause__, ZeroDivisionError)
        assert scope.cancelled_caught == (failure is None)
        await nothing_left(scene)


@race(18, "view read, not laid down")
async def test_18_a_failure_and_an_exception_of_the_viewer_in_the_same_instant(seams: Seams) -> None:
    """The viewer's own leaves as it is, or the one of ours: never a group of both."""
    own = Own("mine")
    async with open_breaking_scene() as (scene, store):
        await scene.acquire(HERE)
        with pytest.raises((Own, SubscriptionFailed)) as caught:
            async with scene.subscribe() as subscription:
                await until(subscription, CaughtUp)
                store.broken = True
                await scene.send("behind")
                await trio.lowlevel.checkpoint()
                raise own
        assert caught.value is own or isinstance(caught.value.__cause__, ZeroDivisionError)
        await nothing_left(scene)


# ------------------------------------------------------------------------------------------------ a whole replica


async def stays(turn: Turn) -> None:
    await turn.send({"type": "text", "text": "half"})
    await trio.sleep_forever()


@race(18, "history read, not answered")
@pytest.mark.parametrize("seam", ["history read, not answered", "sealed, not committed"])
async def test_18_an_exception_under_an_engine_leaves_as_it_is(seams: Seams, seam: Seam) -> None:
    """Out of an engine too, with a run and a viewer under way; and the chat is handed over."""
    own, store = Own("mine"), MemoryStore()
    with pytest.raises(Own) as caught:
        async with open_engine(store, pubsub=None, responder=stays) as engine:
            chat = await engine.create_chat([user_message("hello")])
            async with engine.subscribe(chat.id) as subscription:
                stop = None if seam == "sealed, not committed" else seams.stop(seam)
                await (until(subscription, MessagePart) if stop is None else stop.wait())
                if stop is None:
                    stop = seams.stop(seam)
                    await engine.interrupt(chat.id)
                    await stop.wait()
                # Whoever stands there with a transition is not cut off: it has its time, and then goes on.
                stop.release()
                raise own
    assert own is caught.value
    assert (await store.read_chat(chat.id)).worker_id is None


@race(18, "history read, not answered")
async def test_18_a_cancellation_of_an_engine_is_neither_swallowed_nor_converted(seams: Seams) -> None:
    """With a run that has read its history and a viewer: the scope catches it, and the chat is handed over."""
    store = MemoryStore()
    with trio.CancelScope() as scope:
        async with open_engine(store, pubsub=None, responder=stays) as engine:
            stop = seams.stop("history read, not answered")
            chat = await engine.create_chat([user_message("hello")])
            async with engine.subscribe(chat.id) as subscription, stop:
                scope.cancel()
                async for _ in subscription:
                    pass
    assert scope.cancelled_caught
    assert (await store.read_chat(chat.id)).worker_id is None


class Failing(MemoryStore):
    """A store whose heartbeat has a fault that is the engine's."""

    async def heartbeat(self, replica_id: str, load: int) -> bool:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError


@race(18, "asked, not taken")
async def test_18_a_failure_of_an_engine_leaves_as_one_exception_of_ours(seams: Seams) -> None:
    """The body, in the middle of a viewer's stream, is cancelled, and told why when it leaves."""
    store = Failing()
    with pytest.raises(EngineFailed) as failed:
        async with open_engine(store, pubsub=None, responder=stays) as engine:
            chat = await engine.create_chat([user_message("hello")])
            async with engine.subscribe(chat.id) as subscription:
                async for _ in subscription:
                    pass
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    assert (await store.read_chat(chat.id)).worker_id is None
