"""The numbered races of channels that close: they cost nothing, for hours, and what they carried is had another way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from relaytrio._protocol.chat import BeginAttempt
from relaytrio._protocol.events import CaughtUp, Degraded, MessagePart, Status
from relaytrio.pubsub._base import Hint
from relaytrio.testing import ScriptedDialer, Seams, check_stream
from tests.races.race import race
from tests.races.stage import dial_with, open_stage, steps_in
from tests.scene import HERE, THERE, Scene, texts, until

SECONDS = 6 * 3600.0
SELDOM: dict[str, Any] = {"poll_seconds": 600.0, "dial_retry_max_seconds": 300.0, "store_retry_max_seconds": 300.0}
"""Of what comes again and again by itself, so little that a loop without a wait would stand out."""
FEW = 50
A_RETRY = 60
"""Steps that all tasks together take for one try: the delay's end, the look, the dial, the loss."""


async def _idle_steps(scene: Scene) -> int:
    """What the scene costs while all channels are open."""
    return await steps_in(SECONDS)


@race(12, "selected, nothing read")
async def test_12_the_notifications(seams: Seams) -> None:
    """NO_SPIN: the relay goes on with what it knows; a lost leg is dialed again."""
    async with open_stage(**SELDOM) as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            events = await until(subscription, CaughtUp)
            idle = await _idle_steps(scene)
            notifications = subscription._watch.notifications
            assert notifications is not None
            notifications.close()
            assert await steps_in(SECONDS) <= idle + FEW
            dropped = trio.current_time()
            leg.drop()
            leg = (await scene.dialer.next_dial()).complete()
            assert pytest.approx(0.999 * 0.5) == trio.current_time() - dropped
            scene.feed(leg, episode, ["a"])
            events += await until(subscription, MessagePart)
        assert ["a"] == texts(events)
        check_stream(events)


@race(12, "leg lost, not resting")
async def test_12_the_leg(seams: Seams) -> None:
    """NO_SPIN: one that closes as soon as it is open is dialed at the slowest pace, and never given up."""
    async with open_stage(**SELDOM) as scene:
        episode = await scene.acquire(THERE)
        dialer = scene.dialer = ScriptedDialer(lambda dial: dial.complete().hang_up() if closing else None)
        dial_with(scene, dialer)
        closing = True
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            steps = await steps_in(SECONDS)
            dials = len(dialer.dials)
            assert SECONDS / 300 <= dials <= SECONDS / 300 + 15
            assert steps <= dials * A_RETRY
            closing = False
            dial = await dialer.next_dial()
            while not dial.pending:
                dial = await dialer.next_dial()
            scene.feed(dial.complete(), episode, ["a"])
            events += await until(subscription, MessagePart)
        assert ["a"] == texts(events)
        check_stream(events)


@race(12, "selected, nothing read")
async def test_12_the_leg_of_which_nothing_is_wanted(seams: Seams) -> None:
    """NO_SPIN: it closes after the end of its episode: no dial, no steps, until there is another episode."""
    async with open_stage(**SELDOM) as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            idle = await _idle_steps(scene)
            leg.end("sealed", 1, episode=episode)
            leg.hang_up()
            assert await steps_in(SECONDS) <= idle + FEW
            await scene.dialer.no_dial()
            await scene.apply(BeginAttempt(run_id="run1", token="t"))
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, await scene.live_episode(), ["b"])
            events += await until(subscription, MessagePart)
        assert ["a", "b"] == texts(events)
        check_stream(events)


class _Ending:
    """A notifier whose listeners' iterators end at once."""

    def __init__(self) -> None:
        self.listens = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        self.listens += 1
        await trio.lowlevel.checkpoint()
        yield _nothing()

    async def publish(self, hint: Hint) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        pass


async def _nothing() -> AsyncIterator[Hint]:
    nothing: tuple[Hint, ...] = ()
    await trio.lowlevel.checkpoint()
    for hint in nothing:
        yield hint


@race(12, "poll read, not compared")
async def test_12_the_hints(seams: Seams) -> None:
    """NO_SPIN: a notifier that ends again and again is listened to ever more seldom; it is told, and polls go on."""
    pubsub = _Ending()
    async with open_stage(pubsub=pubsub, **SELDOM) as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            if not any(isinstance(event, Degraded) for event in events):
                events += await until(subscription, Degraded, what="pubsub", ok=False)
            (await scene.dialer.next_dial()).complete()
            before = pubsub.listens
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_on, subscription)
                steps = await steps_in(SECONDS)
                nursery.cancel_scope.cancel()
            tries = pubsub.listens - before
            assert SECONDS / 300 <= tries <= SECONDS / 150 + 15
            assert steps <= (tries + SECONDS / 600) * A_RETRY
            scene.announcing = False
            await scene.send("seen by the poll")
            committed = trio.current_time()
            await until(subscription, Status)
            assert trio.current_time() <= committed + 600


async def _read_on(subscription: Any) -> None:
    async for _ in subscription:
        pass


@race(12, "watching, not read")
async def test_12_the_local_log(seams: Seams) -> None:
    """NO_SPIN: one that is sealed costs nothing, and the next attempt's is read."""
    async with open_stage(**SELDOM) as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            scene.make_parts(episode, "a")
            events = await until(subscription, MessagePart)
            idle = await _idle_steps(scene)
            scene.log(episode).seal()
            assert await steps_in(SECONDS) <= idle + FEW
            await scene.apply(BeginAttempt(run_id="run1", token="t"))
            attempt = await scene.live_episode()
            scene.parts.make(scene.chat_id, attempt)
            scene.make_parts(attempt, "b")
            events += await until(subscription, MessagePart)
        assert ["a", "b"] == texts(events)
        check_stream(events)
