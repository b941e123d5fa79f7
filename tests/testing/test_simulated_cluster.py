"""A simulated cluster is the real one in a world that does as it is told, and the same seed is the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from relaytrio import RelaytrioError, RequestFailed, Settings, StoreUnavailable
from relaytrio._protocol.events import Degraded, MessageEvent, MessagePart, PreviewReset
from relaytrio.testing import (
    AnswerPlan,
    HintFaults,
    SimulatedCluster,
    check_cluster,
    open_simulated_cluster,
)
from relaytrio.testing._simulated_legs import LegKind

BOTH_KINDS = pytest.mark.parametrize("legs", ["memory", "websocket"])
SLOWLY = AnswerPlan(parts=20, pause_seconds=1.0)


def answered(text: str) -> Callable[[Any], bool]:
    """Whether a viewer shows the whole answer to that question, of three parts."""
    return lambda shown: (f"{text}.1;{text}.2;{text}.3;") in [said for _, said in said_in(shown)]


def said_in(shown: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content[0]["text"]) for message in shown.screen.messages]


def owner_of(cluster: SimulatedCluster, chat_id: str) -> int:
    record = cluster.ledger.record(chat_id)
    assert record is not None
    (number,) = [replica.number for replica in cluster.replicas if replica.engine.replica_id == record.chat.worker_id]
    return number


async def begin(cluster: SimulatedCluster, plan: AnswerPlan = SLOWLY, parts: int = 3) -> tuple[str, int, int]:
    """A chat that is being answered, and has shown some parts to a viewer elsewhere: its id, owner, another replica."""
    cluster.answers.plans["q"] = plan
    chat = await cluster.create_chat("q")
    await trio.sleep(0.5)
    owner = owner_of(cluster, chat.id)
    viewer = cluster.viewer((owner + 1) % len(cluster.replicas), chat.id)
    await viewer.until(lambda shown: len(shown.preview) >= parts)
    return chat.id, owner, (owner + 1) % len(cluster.replicas)


async def drive(seed: int, legs: LegKind) -> list[str]:
    """Something of everything, as a trace with times and ids."""
    hints = HintFaults(delivered=0.5, doubled=0.5, delay_seconds=(0.0, 0.2))
    async with open_simulated_cluster(replicas=3, seed=seed, legs=legs, hints=hints) as cluster:
        cluster.network.latency_seconds = (0.001, 0.05)
        chat = await cluster.create_chat("a")
        for number in range(3):
            cluster.viewer(number, chat.id)
        await cluster.send(chat.id, "b", replica=1, when_busy="interrupt")
        await trio.sleep(0.2)
        await cluster.replicas[2].crash()
        await cluster.send(chat.id, "c", replica=0)
        await trio.sleep(30)
        await cluster.replicas[2].restart()
        await check_cluster(cluster)
        return cluster.history()


@BOTH_KINDS
def test_the_same_seed_gives_the_same_run(legs: LegKind) -> None:
    """Event by event, with all ids and instants: what was seen once can be seen again."""
    runs = [trio.run(drive, seed, legs, clock=MockClock(autojump_threshold=0)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@BOTH_KINDS
async def test_what_a_viewer_sees_comes_over_real_legs(autojump_clock: MockClock, legs: LegKind) -> None:
    """Parts are made on one replica and seen through another, live, all of them, and the message after them."""
    async with open_simulated_cluster(replicas=2, legs=legs) as cluster:
        _, owner, other = await begin(cluster, AnswerPlan(parts=3, pause_seconds=1.0))
        viewer = cluster.viewers[0]
        await viewer.until(answered("q"))
        seen = [event for event in viewer.events if isinstance(event, MessagePart | MessageEvent)]
        assert ["message", *["message_part"] * 3, "message"] == [event.type for event in seen]
        assert 3 == cluster.replicas[other].engine.stats().parts_relayed
        assert 0 == cluster.replicas[owner].engine.stats().parts_relayed
        report = await check_cluster(cluster)
        assert (1, 1, 3, 3) == (report.chats, report.viewers, report.commits, report.parts_seen)


async def test_hours_pass(autojump_clock: MockClock) -> None:
    """Virtual time is cheap: an afternoon in which somebody asks now and then."""
    async with open_simulated_cluster(replicas=2, seed=3) as cluster:
        chat = await cluster.create_chat()
        viewer = cluster.viewer(0, chat.id)
        for number in range(3):
            await trio.sleep(1200)
            await cluster.send(chat.id, f"q{number}", replica=1)
        await viewer.until(answered("q2"))
        assert (await check_cluster(cluster)).virtual_seconds > 3600


async def test_a_real_clock_is_refused() -> None:
    """A simulation on real time would wait for ever, or prove nothing."""
    with pytest.raises(RuntimeError, match="MockClock"):
        async with open_simulated_cluster():
            pass


async def test_the_bodys_exception_leaves_as_it_is(autojump_clock: MockClock) -> None:
    """A failing assertion is the test's own, not one in a group."""
    with pytest.raises(ZeroDivisionError):
        async with open_simulated_cluster(replicas=1):
            raise ZeroDivisionError


# -------------------------------------------------------------------------------------------- replicas


@BOTH_KINDS
@pytest.mark.parametrize("silently", [False, True])
async def test_a_crash_has_no_last_words(autojump_clock: MockClock, legs: LegKind, silently: bool) -> None:
    """All tasks are gone in no time and without a transition; others take over when they notice, and viewers hear."""
    async with open_simulated_cluster(replicas=3, seed=5, legs=legs) as cluster:
        chat_id, owner, _ = await begin(cluster)
        commits, now = len(cluster.ledger.all_commits), trio.current_time()
        await cluster.replicas[owner].crash(silently=silently)
        assert (now, commits) == (trio.current_time(), len(cluster.ledger.all_commits))
        assert not cluster.replicas[owner].up
        viewer = cluster.viewers[0]
        await viewer.until(lambda shown: shown.preview == ["q.1;"])
        waited = trio.current_time() - now
        assert 15 <= waited < 30 if silently else waited < 5
        assert ["worker_lost"] == [event.reason for event in viewer.events if isinstance(event, PreviewReset)]
        assert owner != owner_of(cluster, chat_id)
        await check_cluster(cluster)


async def test_a_paused_replica_stands_still_and_then_does_nothing_of_the_past(autojump_clock: MockClock) -> None:
    """It is taken for dead meanwhile; what it made is fenced when it goes on."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat_id, owner, other = await begin(cluster)
        paused = cluster.replicas[owner]
        made = paused.engine.stats().parts_made
        paused.pause()
        await trio.sleep(35)
        assert made == paused.engine.stats().parts_made
        assert other == owner_of(cluster, chat_id)
        paused.resume()
        await check_cluster(cluster)
        assert cluster.replicas[other].engine.stats().parts_made >= 20


async def test_a_replica_restarts_as_another_one_at_the_same_address(autojump_clock: MockClock) -> None:
    """A new id, nothing of the former life, and its viewers come back to it or to others."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat_id, owner, _ = await begin(cluster)
        before = cluster.replicas[owner].engine
        cluster.viewer(owner, chat_id)
        await cluster.replicas[owner].restart()
        after = cluster.replicas[owner].engine
        assert before.replica_id != after.replica_id
        assert before.address == after.address
        assert 0 == len(after.parts)
        await check_cluster(cluster)


async def test_a_stopped_replica_finishes_or_hands_over(autojump_clock: MockClock) -> None:
    """Stopping is not crashing: no turn is lost to it."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat_id, owner, other = await begin(cluster, AnswerPlan(parts=40, pause_seconds=1.0))
        await cluster.replicas[owner].stop()
        assert not cluster.replicas[owner].up
        await trio.sleep(2)
        assert other == owner_of(cluster, chat_id)
        record = cluster.ledger.record(chat_id)
        assert record is not None
        assert 0 == record.chat.takeovers
        await check_cluster(cluster)


async def test_a_request_to_a_replica_that_ends_is_lost(autojump_clock: MockClock) -> None:
    """As over a connection that is lost: whoever insists gets it done elsewhere, once."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat = await cluster.create_chat()
        cluster.replicas[0].store.set_fault("hangs")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: cluster.send(chat.id, "insisted", insist=True))
            await trio.sleep(1)
            await cluster.replicas[0].crash()
        with pytest.raises(RequestFailed):
            await cluster.replicas[0].call(lambda engine: engine.get_chat(chat.id))
        assert ["taken"] == [sent.state for sent in cluster.sent]
        await check_cluster(cluster)


# ----------------------------------------------------------------------------------------- the database


async def test_a_store_that_fails_and_hangs(autojump_clock: MockClock) -> None:
    """One replica's way to the database only: it says so to its viewers, the others go on."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat = await cluster.create_chat()
        near, far = cluster.viewer(0, chat.id), cluster.viewer(1, chat.id)
        await trio.sleep(1)
        store = cluster.replicas[0].store
        store.set_fault("fails")
        with pytest.raises(StoreUnavailable):
            await cluster.replicas[0].call(lambda engine: engine.get_chat(chat.id))
        await cluster.send(chat.id, "q", replica=1)
        await far.until(answered("q"))
        await trio.sleep(15)
        assert [False] == [event.ok for event in near.events if isinstance(event, Degraded)]
        store.set_fault("hangs")
        with trio.move_on_after(5) as waiting:
            await cluster.replicas[0].call(lambda engine: engine.get_chat(chat.id))
        assert waiting.cancelled_caught
        store.set_fault(None)
        await near.until(answered("q"))
        await check_cluster(cluster)


async def test_the_answer_to_a_commit_is_lost(autojump_clock: MockClock) -> None:
    """It was committed, and whoever asked is not told; repeated with its key, it is the same one."""
    async with open_simulated_cluster(replicas=1, seed=5) as cluster:
        chat = await cluster.create_chat()
        cluster.replicas[0].store.lose_answers()
        assert None is await cluster.send(chat.id, "unknown")
        cluster.replicas[0].store.lose_answers(2)
        assert None is not await cluster.send(chat.id, "insisted", insist=True)
        assert ["unknown", "taken"] == [sent.state for sent in cluster.sent]
        await check_cluster(cluster)
        sent = [type(commit.command).__name__ for commit in cluster.ledger.commits]
        assert 2 == sent.count("SendMessage")


async def test_the_database_is_set_back(autojump_clock: MockClock) -> None:
    """Under everybody: what was stored since is gone, and every viewer comes to show what is there now."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat = await cluster.create_chat("before")
        viewer = cluster.viewer(1, chat.id)
        await viewer.until(answered("before"))
        backup = cluster.take_backup()
        await cluster.send(chat.id, "lost")
        await viewer.until(answered("lost"))
        cluster.set_back(backup)
        await trio.sleep(11)
        assert ["before", "before.1;before.2;before.3;"] == [text for _, text in said_in(viewer.shown)]
        await cluster.send(chat.id, "after")
        await viewer.until(answered("after"))
        await check_cluster(cluster)


# ------------------------------------------------------------------------------------------------ hints


@pytest.mark.parametrize(
    "hints",
    [
        None,
        HintFaults(delivered=0.0),
        HintFaults(delivered=0.5),
        HintFaults(doubled=1.0),
        HintFaults(delay_seconds=(0.0, 3.0)),
    ],
    ids=["none", "deaf", "half", "doubled", "late"],
)
async def test_whatever_becomes_of_hints(autojump_clock: MockClock, hints: HintFaults | None) -> None:
    """NO_LOSS, WITHOUT_PUBSUB: everything is seen all the same, within a poll interval."""
    async with open_simulated_cluster(replicas=3, seed=5, hints=hints) as cluster:
        chat = await cluster.create_chat()
        viewers = [cluster.viewer(number, chat.id) for number in range(3)]
        for number in range(4):
            await cluster.send(chat.id, f"q{number}", replica=number % 3)
            await trio.sleep(5)
        for viewer in viewers:
            with trio.fail_after(Settings().poll_seconds + 1):
                await viewer.until(answered("q3"))
        await check_cluster(cluster)


async def test_a_notifier_that_dies_is_told(autojump_clock: MockClock) -> None:
    """Those who listened hear of it, and of its return; meanwhile all goes on by polling."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat = await cluster.create_chat()
        viewer = cluster.viewer(1, chat.id)
        await trio.sleep(1)
        cluster.pubsub.set_down(True)
        await cluster.send(chat.id, "q")
        await viewer.until(answered("q"))
        cluster.pubsub.set_down(False)
        await trio.sleep(15)
        told = [(event.what, event.ok) for event in viewer.events if isinstance(event, Degraded)]
        assert [("pubsub", False), ("pubsub", True)] == told
        await check_cluster(cluster)


# ---------------------------------------------------------------------------------------------- viewers


async def test_a_viewer_moves_with_its_cursor(autojump_clock: MockClock) -> None:
    """It goes on at another replica exactly where it was, in the middle of an answer, and an older self does too."""
    async with open_simulated_cluster(replicas=3, seed=5) as cluster:
        _, owner, other = await begin(cluster, parts=5)
        viewer = cluster.viewers[0]
        for number in (owner, 3 - owner - other, other):
            viewer.connect(cluster.replicas[number])
            await trio.sleep(2.5)
        viewer.connect(cluster.replicas[owner], events_back=3)
        await trio.sleep(5)
        assert [f"q.{number};" for number in range(1, len(viewer.shown.preview) + 1)] == viewer.shown.preview
        await check_cluster(cluster)


async def test_a_viewer_that_is_cut_stays_away(autojump_clock: MockClock) -> None:
    """Until it is sent back: then it gets what it has missed, once."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat = await cluster.create_chat("one")
        viewer = cluster.viewer(1, chat.id)
        await viewer.until(answered("one"))
        viewer.cut()
        await cluster.send(chat.id, "two")
        await trio.sleep(60)
        assert not answered("two")(viewer.shown)
        assert 0 == cluster.replicas[1].engine.stats().subscriptions
        viewer.connect(cluster.replicas[0])
        await viewer.until(answered("two"))
        await check_cluster(cluster)


async def test_a_slow_viewer_delays_nobody(autojump_clock: MockClock) -> None:
    """It sees all that is stored in its own time."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat = await cluster.create_chat()
        slow, quick = cluster.viewer(1, chat.id), cluster.viewer(1, chat.id)
        slow.slow_seconds = 30.0
        await cluster.send(chat.id, "q")
        with trio.fail_after(1):
            await quick.until(answered("q"))
        await slow.until(lambda shown: answered("q")(shown) and shown.version == 4)
        assert trio.current_time() > 30
        await check_cluster(cluster)


async def test_a_viewer_of_a_deleted_chat_is_at_its_end(autojump_clock: MockClock) -> None:
    """It does not come back for ever."""
    async with open_simulated_cluster(replicas=2, seed=5) as cluster:
        chat = await cluster.create_chat()
        viewer = cluster.viewer(1, chat.id)
        await trio.sleep(1)
        await cluster.replicas[0].call(lambda engine: engine.delete_chat(chat.id))
        await trio.sleep(1)
        assert isinstance(viewer.ended, RelaytrioError)
        assert not viewer.connected
        await check_cluster(cluster)


async def test_a_replica_that_cannot_reach_the_database_does_not_start(autojump_clock: MockClock) -> None:
    """Whoever starts it is told, nothing of that life is left, and the next start is a new one."""
    async with open_simulated_cluster(replicas=2) as cluster:
        replica = cluster.replicas[0]
        await replica.crash()
        cluster.store_latency_seconds = (1.0, 1.0)
        refused = trio.Event()

        async def start() -> None:
            with pytest.raises(StoreUnavailable):
                await replica.start()
            refused.set()

        cluster.nursery.start_soon(start)
        await trio.sleep(0.5)
        replica.store.set_fault("fails")
        await refused.wait()
        assert not replica.up
        await replica.start()
        assert replica.up
        await check_cluster(cluster)
