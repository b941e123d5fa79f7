"""The numbered races of leaving: whatever a subscription is in the middle of, it ends at once and leaves nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._dialer import Dialer, DialRequest, Leg, LegEnd
from relaytrio._errors import DialRefused
from relaytrio._protocol.burst import Burst
from relaytrio._protocol.events import CaughtUp, Episode, MessagePart
from relaytrio._subscription import Subscription
from relaytrio.testing import Seam, Seams
from tests.races.race import race
from tests.races.stage import TroubledStore, dial_with, nothing_is_left, open_stage, troubled
from tests.scene import THERE, Scene, texts, until

Reach = Callable[[Scene, Subscription, Episode], Awaitable[None]]


class _Enough(Exception):
    """The viewer's own."""


async def _leave_in_the_middle(reach: Reach) -> None:
    """Leave in three ways: at the end of the body, with an error of its own, cancelled. Then come back."""
    for way in ("at its end", "with an error", "cancelled"):
        async with open_stage(wrap_store=TroubledStore) as scene:
            episode = await scene.acquire(THERE)
            left = 0.0
            async with nothing_is_left(scene):
                with trio.CancelScope() as scope, suppress(_Enough):
                    async with scene.subscribe() as subscription:
                        await reach(scene, subscription, episode)
                        await wait_all_tasks_blocked()
                        left = trio.current_time()
                        if way == "with an error":
                            raise _Enough
                        if way == "cancelled":
                            scope.cancel()
                            await trio.sleep_forever()
                assert left == trio.current_time()
                assert scope.cancelled_caught == (way == "cancelled")
            await _come_back(scene, episode)


async def _come_back(scene: Scene, episode: Episode) -> None:
    """The next viewer is served as if nobody had been there."""
    troubled(scene).mode = "answers"
    dial_with(scene, scene.dialer)
    async with scene.subscribe() as subscription:
        while not scene.dialer.pending_dials:
            await scene.dialer.next_dial()
        leg = scene.dialer.pending_dials[-1].complete()
        had = (await leg.selected()).after_seq
        scene.feed(leg, episode, ["next"])
        assert "next" == texts(await until(subscription, MessagePart, seq=had + 1))[-1]


async def _wait_at(seams: Seams, seam: Seam, act: Callable[[], object]) -> None:
    """Bring the subscription to a seam, where it stays."""
    stop = seams.stop(seam)
    act()
    await stop.wait()


@race(9, "about to dial")
async def test_9_a_dial(seams: Seams) -> None:
    """NO_LEAK: in the middle of a dial."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        await scene.dialer.next_dial()

    await _leave_in_the_middle(reach)


@race(9, "dialed, not selected")
async def test_9_a_dial_that_has_just_completed(seams: Seams) -> None:
    """NO_LEAK: between the dial and the select."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        dial = await scene.dialer.next_dial()
        await _wait_at(seams, "dialed, not selected", dial.complete)

    await _leave_in_the_middle(reach)


@race(9, "selected, nothing read")
async def test_9_a_select_that_was_made(seams: Seams) -> None:
    """NO_LEAK: between the select and the first row."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        dial = await scene.dialer.next_dial()
        await _wait_at(seams, "selected, nothing read", dial.complete)

    await _leave_in_the_middle(reach)


@race(9, "dialed, not selected")
async def test_9_a_select_that_blocks(seams: Seams) -> None:
    """NO_LEAK: in the middle of a select that a peer does not take."""
    for _ in range(2):
        async with open_stage(wrap_store=TroubledStore) as scene:
            episode = await scene.acquire(THERE)
            dialer = _Unread(scene.dialer)
            dial_with(scene, dialer)
            async with nothing_is_left(scene):
                async with scene.subscribe():
                    (await scene.dialer.next_dial()).complete()
                    await wait_all_tasks_blocked()
                    assert 1 == dialer.selecting
                    left = trio.current_time()
                assert left == trio.current_time()
                assert 0 == dialer.selecting
            await _come_back(scene, episode)


@attrs.define
class _Unread:
    """A dialer whose peers read nothing: selects wait for ever."""

    dialer: Dialer
    selecting: int = 0

    @asynccontextmanager
    async def dial(self, request: DialRequest) -> AsyncIterator[Leg]:
        async with self.dialer.dial(request) as leg:
            yield _UnreadLeg(self, leg)


@attrs.frozen
class _UnreadLeg:
    dialer: _Unread
    leg: Leg

    async def select(self, episode: Episode, after_seq: int) -> None:
        self.dialer.selecting += 1
        try:
            await trio.sleep_forever()
        finally:
            self.dialer.selecting -= 1

    def __aiter__(self) -> AsyncIterator[Burst | LegEnd]:
        return self.leg.__aiter__()


@race(9, "rows came, not laid down")
async def test_9_a_burst_that_has_just_come(seams: Seams) -> None:
    """NO_LEAK: between the leg and the copy."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        leg = (await scene.dialer.next_dial()).complete()
        await leg.selected()
        await _wait_at(seams, "rows came, not laid down", lambda: scene.feed(leg, episode, ["a"]))

    await _leave_in_the_middle(reach)


@race(9, "leg lost, not resting")
async def test_9_a_retry_delay(seams: Seams) -> None:
    """NO_LEAK: in the middle of the delay before the next dial."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        (await scene.dialer.next_dial()).fail()
        await wait_all_tasks_blocked()
        await trio.sleep(0.1)

    await _leave_in_the_middle(reach)


@race(9, "about to dial")
async def test_9_the_delay_after_a_refusal(seams: Seams) -> None:
    """NO_LEAK: in the middle of the long delay after a second refusal."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        for _ in range(2):
            (await scene.dialer.next_dial()).fail(DialRefused(THERE, "401"))
        await wait_all_tasks_blocked()
        await trio.sleep(1)

    await _leave_in_the_middle(reach)


@race(9, "rested, not looked again")
async def test_9_the_end_of_a_retry_delay(seams: Seams) -> None:
    """NO_LEAK: between the delay and the look."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        dial = await scene.dialer.next_dial()
        await _wait_at(seams, "rested, not looked again", dial.fail)

    await _leave_in_the_middle(reach)


@race(9, "asked, not taken")
async def test_9_a_blocked_send(seams: Seams) -> None:
    """NO_LEAK: while much waits for a viewer that takes nothing."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        leg = (await scene.dialer.next_dial()).complete()
        await leg.selected()
        for text in "abcdefgh":
            scene.feed(leg, episode, [text])
            await wait_all_tasks_blocked()
        assert 8 == scene.log(episode).last_seq
        assert ["a"] == texts(await until(subscription, MessagePart, seq=8))[:1]

    await _leave_in_the_middle(reach)


@race(9, "rested, not looked again")
async def test_9_a_store_read(seams: Seams) -> None:
    """NO_LEAK: in the middle of a read of the store, for which the relay waits too."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        await until(subscription, CaughtUp)
        troubled(scene).mode = "hangs"
        stop = seams.stop("rested, not looked again")
        (await scene.dialer.next_dial()).fail()
        async with stop:
            pass
        await wait_all_tasks_blocked()
        assert 1 == troubled(scene).hanging

    await _leave_in_the_middle(reach)


@race(9, "view read, not laid down")
async def test_9_a_view_that_has_just_been_read(seams: Seams) -> None:
    """NO_LEAK: between the answer of the store and what follows from it."""

    async def reach(scene: Scene, subscription: Subscription, episode: Episode) -> None:
        await until(subscription, CaughtUp)
        stop = seams.stop("view read, not laid down")
        await scene.send("its hint makes the replica look")
        await stop.wait()

    await _leave_in_the_middle(reach)


@race(9, "watching, not read")
async def test_9_the_first_read(seams: Seams) -> None:
    """NO_LEAK: a viewer that gives up while it is let in."""
    async with open_stage(wrap_store=TroubledStore) as scene:
        episode = await scene.acquire(THERE)
        troubled(scene).mode = "hangs"
        async with nothing_is_left(scene):
            given_up = trio.current_time() + 1
            with trio.move_on_after(1) as scope:
                async with scene.subscribe():
                    raise AssertionError("entered without a read")
            assert scope.cancelled_caught
            assert given_up == trio.current_time()
        await _come_back(scene, episode)
