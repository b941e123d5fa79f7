"""The numbered race of hints: a notifier that is not there, fails, hangs, drops, doubles, delays and reorders them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from relaytrio._protocol.events import CaughtUp, Degraded, Event, MessageEvent, MessagePart, QueueUpdate, Status
from relaytrio.pubsub._base import Hint
from relaytrio.testing import AnswerPlan, HintFaults, Seam, Seams, check_cluster, check_stream
from relaytrio.testing._simulated_pubsub import PubSubHandle, SimulatedPubSub
from tests.races.race import open_cluster, race
from tests.scene import HERE, THERE, Scene, at_hand, kinds, open_scene, texts, until

READ: Seam = "view read, not laid down"


@asynccontextmanager
async def open_heard(faults: HintFaults | None = None) -> AsyncIterator[tuple[Scene, SimulatedPubSub]]:
    """A scene that hears of what others do over a notifier only."""
    async with trio.open_nursery() as nursery:
        pubsub = SimulatedPubSub(nursery, Random(1), faults or HintFaults())
        async with open_scene(pubsub=PubSubHandle(pubsub)) as scene:
            scene.announcing = False
            yield scene, pubsub
        nursery.cancel_scope.cancel()


async def hint_of(scene: Scene) -> Hint:
    """What another replica says of the chat as it is now."""
    chat = await scene.memory.read_chat("c")
    return Hint(chat.id, chat.snapshot_version, chat.status, chat.worker_id)


def troubles(events: list[Event]) -> list[tuple[str, bool]]:
    return [(event.what, event.ok) for event in events if isinstance(event, Degraded)]


# --------------------------------------------------------------------------------------------- none, or one that fails


@race(15, "poll read, not compared", "selected, nothing read")
async def test_15_no_notifier(seams: Seams) -> None:
    """WITHOUT_PUBSUB: snapshot, polling, relay, parts and messages, each within one poll; and nothing is wrong."""
    async with open_scene(pubsub=None) as scene:
        scene.announcing = False
        poll_seconds = scene.replica.settings.poll_seconds
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            episode = await scene.acquire(THERE)
            leg = (await scene.dialer.next_dial()).complete()
            assert trio.current_time() <= poll_seconds
            scene.feed(leg, episode, ["a", "b"])
            events += await until(subscription, MessagePart, seq=2)
            leg.end("sealed", 2, episode=episode)
            await scene.finish("ab")
            events += await until(subscription, Status, status="waiting")
            assert trio.current_time() <= 2 * poll_seconds
        assert ["a", "b"] == texts(events)
        assert [] == troubles(events)
        check_stream(events)


@race(15, "watching, not read", "poll read, not compared")
async def test_15_a_notifier_that_fails_at_subscribe(seams: Seams) -> None:
    """WITHOUT_PUBSUB: it is told, what happens is polled; when it is back all look at once, and that is told too."""
    async with open_heard() as (scene, pubsub):
        stop = seams.stop("watching, not read")

        async def fail() -> None:
            async with stop:
                pubsub.set_down(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            async with scene.subscribe() as subscription:
                events = await until(subscription, Degraded, what="pubsub", ok=False)
                assert 0.0 == trio.current_time()
                events += await at_hand(subscription)
                await scene.acquire(THERE)
                began = trio.current_time()
                events += await until(subscription, Status, worker_id=THERE)
                assert trio.current_time() - began <= scene.replica.settings.poll_seconds
                await scene.send("unheard")
                pubsub.set_down(False)
                events += await until(subscription, Degraded, what="pubsub", ok=True)
                heard_at = trio.current_time()
                events += await until(subscription, QueueUpdate)
                assert trio.current_time() == heard_at
        assert [("pubsub", False), ("pubsub", True)] == troubles(events)
        check_stream(events)


@race(15, READ)
async def test_15_a_notifier_that_dies_in_the_middle_of_a_read(seams: Seams) -> None:
    """WITHOUT_PUBSUB: the hint that nobody will ever hear is of a commit that the read just missed: the poll finds it,
    and the failure is told once, however often listening fails again."""
    async with open_heard() as (scene, pubsub):
        await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            stop = seams.stop(READ)
            await scene.send("behind")
            pubsub.publish(await hint_of(scene))
            async with stop:
                pubsub.set_down(True)
                scene.log(await scene.live_episode()).seal()
                await scene.finish("unheard")
            began = trio.current_time()
            events += await until(subscription, MessageEvent)
            assert trio.current_time() - began <= scene.replica.settings.poll_seconds
            events += await at_hand(subscription, 120)
        assert [("pubsub", False)] == troubles(events)
        assert 1 == kinds(events).count("degraded")
        check_stream(events)


@race(15, "hint taken, not published")
async def test_15_a_notifier_that_hangs(seams: Seams) -> None:
    """WITHOUT_PUBSUB: nobody waits for a hint that is not sent: requests, the run and its viewers go on, and viewers
    elsewhere find everything by polling."""
    async with open_cluster() as cluster:
        chat = await cluster.create_chat()
        here, afar = cluster.viewer(0, chat.id), cluster.viewer(1, chat.id)
        stop = seams.stop("hint taken, not published", chat_id=chat.id)
        await cluster.send(chat.id, "q1", replica=0)
        await stop.wait()
        with trio.fail_after(1):
            await here.until(lambda shown: len(shown.screen.messages) == 2)
        with trio.fail_after(cluster.settings.poll_seconds + 1):
            await afar.until(lambda shown: len(shown.screen.messages) == 2)
        stop.release()
        await check_cluster(cluster)


# ---------------------------------------------------------------------------------- lost, doubled, late, out of order


@race(15, READ)
async def test_15_doubled_late_and_reordered_hints(seams: Seams) -> None:
    """NO_LOSS, NO_SPIN: a hint is a reason to read only if it is of something newer than what was read; a stale one
    sets nothing back, and nothing comes twice."""
    async with open_heard() as (scene, pubsub):
        hints = [await hint_of(scene)]
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            await scene.acquire(HERE)
            hints.append(await hint_of(scene))
            scene.log(await scene.live_episode()).seal()
            await scene.finish("answer")
            hints.append(await hint_of(scene))
            reads = seams.passed[READ]
            stop = seams.stop(READ)
            pubsub.publish(hints[2])
            async with stop:
                for hint in (hints[2], hints[0], hints[1], hints[0]):
                    pubsub.publish(hint)
                await scene.send("next")
                pubsub.publish(await hint_of(scene))
                pubsub.publish(hints[2])
            events += await at_hand(subscription, 5)
            # The one that was held, one for what it missed, and one from a base that the viewer had left meanwhile.
            assert seams.passed[READ] - reads in (2, 3)
            reads = seams.passed[READ]
            for hint in hints * 2:
                pubsub.publish(hint)
            events += await at_hand(subscription, 4)
            assert reads == seams.passed[READ]
        assert [1, 2, 3] == [event.message.id for event in events if isinstance(event, MessageEvent)]
        check_stream(events)


@race(15, READ)
async def test_15_a_hint_that_overtakes_its_commit(seams: Seams) -> None:
    """NO_LOSS: a hint is no fact: what it names is not taken for read, and when it becomes so it is seen."""
    async with open_heard() as (scene, pubsub):
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            now = await hint_of(scene)
            pubsub.publish(Hint("c", now.snapshot_version + 1, "running", HERE))
            assert [] == await at_hand(subscription)
            episode = await scene.acquire(HERE)
            scene.make_parts(episode, "a")
            events += await until(subscription, MessagePart)
            scene.log(episode).seal()
            await scene.finish("a")
            pubsub.publish(await hint_of(scene))
            events += await until(subscription, Status, status="waiting")
            assert trio.current_time() < 0.1
        check_stream(events)


FAULTS = {
    "deaf": HintFaults(delivered=0.0),
    "half": HintFaults(delivered=0.5),
    "doubled and late": HintFaults(doubled=1.0, delay_seconds=(0.0, 0.5)),
    "all of it": HintFaults(delivered=0.5, doubled=0.5, delay_seconds=(0.0, 3.0)),
    "none": None,
}


@race(15, "hint taken, not published")
@pytest.mark.parametrize("faults", ["deaf", "half", "doubled and late", "all of it"])
async def test_15_a_whole_cluster_and_its_hints(seams: Seams, faults: str) -> None:
    """NO_LOSS: whatever becomes of the hints, a question, its answer, a Stop and an edit are seen everywhere."""
    await _live_with(FAULTS[faults])


@race(15, "request committed, not told", "poll read, not compared")
async def test_15_a_whole_cluster_without_a_notifier(seams: Seams) -> None:
    """WITHOUT_PUBSUB: the same where there are no hints at all."""
    await _live_with(FAULTS["none"])


async def _live_with(hints: HintFaults | None) -> None:
    async with open_cluster(hints=hints) as cluster:
        cluster.answers.default = AnswerPlan(parts=4, pause_seconds=0.3)
        chat = await cluster.create_chat()
        viewers = [cluster.viewer(replica, chat.id) for replica in (0, 1)]
        answer = await cluster.send(chat.id, "q1", replica=0)
        assert answer is not None
        await cluster.send(chat.id, "q2", replica=1)
        await trio.sleep(2)
        await cluster.stop(chat.id, replica=1)
        await cluster.edit(chat.id, answer.messages[0].id, "q3", replica=1)
        # Within a poll to see that it runs, and within another one to see that it has ended.
        with trio.fail_after(cluster.settings.acquire_seconds + 2 * cluster.settings.poll_seconds + 5):
            for viewer in viewers:
                await viewer.until(lambda shown: len(shown.screen.messages) == 2 and shown.status == "waiting")
        await check_cluster(cluster)
