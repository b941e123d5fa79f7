"""The numbered races of the relay: dials, legs and targets that finish in the wrong order."""

from __future__ import annotations

from relaytrio._protocol.chat import Abandon, FinishInterruption
from relaytrio._protocol.events import MessagePart
from relaytrio.testing import Seams
from tests.races.race import race
from tests.scene import ELSEWHERE, THERE, at_hand, open_scene, texts, until


@race(1, "selected, nothing read")
async def test_1_parts_made_so_far_come_first(seams: Seams) -> None:
    """CONTIGUOUS: what was made before the viewer came, then what is made from then on, in order and once."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            stop = seams.stop("selected, nothing read")
            leg = (await scene.dialer.next_dial()).complete()
            async with stop:
                scene.feed(leg, episode, ["a", "b"])
                scene.feed(leg, episode, ["c"])
            events = await until(subscription, MessagePart, seq=3)
            scene.feed(leg, episode, ["d"])
            events += await until(subscription, MessagePart, seq=4)
        assert ["a", "b", "c", "d"] == texts(events)


@race(5, "dialed, not selected")
async def test_5_a_dial_to_the_old_worker_that_completes_at_last(seams: Seams) -> None:
    """NO_STALE_LEG: nothing of it arrives, its connection is closed, the new worker's parts flow."""
    async with open_scene() as scene:
        old = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            late = await scene.dialer.next_dial()
            late.ignore_cancellation()
            await scene.send("again", when_busy="interrupt")
            await scene.apply(FinishInterruption(run_id="run1", token="t"))
            await scene.apply(Abandon(run_id="run1", token="u"))
            new = await scene.acquire(ELSEWHERE)
            leg = (await scene.dialer.next_dial()).complete()
            stale = late.complete()
            scene.feed(stale, old, ["stale"])
            scene.feed(leg, new, ["fresh"])
            events = await until(subscription, MessagePart)
            await stale.closed.wait()
            events += await at_hand(subscription, 3600)
        assert ["fresh"] == texts(events)
        assert [] == stale.selections
