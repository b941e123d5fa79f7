"""The numbered races of dials: the first one, those to a worker that is not the chat's any more, those that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._errors import (
    BadReplicaAddress,
    DialError,
    DialTimeout,
    ReplicaNotFound,
)
from relaytrio._protocol.chat import Abandon, FinishInterruption
from relaytrio._protocol.events import CaughtUp, Degraded, Event, MessagePart, PreviewReset, Status
from relaytrio.testing import ScriptedDial, Seams, check_stream
from tests.races.race import race
from tests.races.stage import TroubledStore, in_no_time, open_stage, troubled
from tests.scene import ELSEWHERE, HERE, THERE, Scene, at_hand, texts, until

# -------------------------------------------------------------------------------------- 2: the first dial


async def _durable_events_come(seams: Seams, *, hangs: bool) -> None:
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        stop = seams.stop("about to dial")
        async with scene.subscribe() as subscription:
            async with in_no_time():
                async with stop:
                    events = await until(subscription, CaughtUp)
                dial = await scene.dialer.next_dial()
                await scene.send("queued while it is dialed")
                events += await until(subscription, Status)
                if not hangs:
                    dial.fail()
                await scene.send("queued afterwards")
                events += await until(subscription, Status)
            if hangs:
                await trio.sleep(5)
                dial.fail(DialTimeout(THERE, "no connection within 5 s"))
            failed = trio.current_time()
            leg = (await scene.dialer.next_dial()).complete()
            assert pytest.approx(0.999 * 0.5) == trio.current_time() - failed
            scene.feed(leg, episode, ["a"])
            events += await until(subscription, MessagePart)
        assert ["a"] == texts(events)
        check_stream(events)


@race(2, "about to dial", "rested, not looked again")
async def test_2_it_fails(seams: Seams) -> None:
    """DIAL_IS_ASIDE: all durable events arrive in no time, and the dial is made again after the first delay."""
    await _durable_events_come(seams, hangs=False)


@race(2, "about to dial", "rested, not looked again")
async def test_2_it_hangs(seams: Seams) -> None:
    """DIAL_IS_ASIDE: all durable events arrive in no time, and a dial that timed out is made again."""
    await _durable_events_come(seams, hangs=True)


# --------------------------------------------------------------------------------- 4: something that hangs


@race(4, "about to dial")
async def test_4_a_dial_that_hangs(seams: Seams) -> None:
    """DIAL_IS_ASIDE: durable events flow, a new target is dialed at once, and local parts flow when it moves here."""
    async with open_stage() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            hanging = [await scene.dialer.next_dial()]
            hanging[0].ignore_cancellation()
            async with in_no_time():
                events = await until(subscription, CaughtUp)
                await scene.acquire(ELSEWHERE, dead=THERE)
                hanging.append(await scene.dialer.next_dial())
                assert ELSEWHERE == hanging[1].worker_id
                hanging[1].ignore_cancellation()
                await scene.send("queued")
            moved = trio.current_time()
            episode = await scene.acquire(HERE, dead=ELSEWHERE)
            scene.make_parts(episode, "local")
            events += await until(subscription, MessagePart)
            assert trio.current_time() <= moved + 0.2
            events += await at_hand(subscription, 60)
            for dial in hanging:
                assert dial.cancelled
                dial.fail()
        assert ["local"] == texts(events)
        check_stream(events)


@race(4, "rested, not looked again")
async def test_4_a_store_read_that_hangs(seams: Seams) -> None:
    """DIAL_IS_ASIDE: the leg's parts flow, a lost leg is dialed again, a new target once it is read."""
    async with open_stage(wrap_store=TroubledStore) as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            events = await until(subscription, CaughtUp)
            troubled(scene).mode = "hangs"
            await scene.send("its hint makes the replica look")
            await wait_all_tasks_blocked()
            assert 1 == troubled(scene).hanging
            async with in_no_time():
                scene.feed(leg, episode, ["a"])
                events += await until(subscription, MessagePart, seq=1)
            dropped = trio.current_time()
            leg.drop()
            leg = (await scene.dialer.next_dial()).complete()
            assert pytest.approx(0.999 * 0.5 + 2) == trio.current_time() - dropped
            scene.feed(leg, episode, ["b"], first_seq=2)
            events += await until(subscription, MessagePart, seq=2)
            await scene.acquire(ELSEWHERE, dead=THERE)
            troubled(scene).mode = "answers"
            async with seams.stop("about to dial", worker_id=ELSEWHERE):
                settings = scene.replica.settings
                late = settings.store_read_seconds + settings.store_retry_seconds
                assert trio.current_time() - dropped <= late
                await wait_all_tasks_blocked()
                assert leg.closed.is_set()
        assert ["a", "b"] == texts(events)
        check_stream(events)


@race(4, "watching, not read")
async def test_4_a_store_read_that_hangs_beside_a_local_answer(seams: Seams) -> None:
    """DIAL_IS_ASIDE: local parts flow while a read of the store hangs."""
    async with open_stage(wrap_store=TroubledStore) as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            async with in_no_time():
                troubled(scene).mode = "hangs"
                await scene.send("its hint makes the replica look")
                await wait_all_tasks_blocked()
                assert 1 == troubled(scene).hanging
                scene.make_parts(episode, "a", "b")
                events += await until(subscription, MessagePart, seq=2)
        check_stream(events)


@race(4, "rows came, not laid down")
async def test_4_a_viewer_that_never_reads(seams: Seams) -> None:
    """DIAL_IS_ASIDE: its old leg is closed and the new target dialed all the same, in no time."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe(), in_no_time():
            leg = (await scene.dialer.next_dial()).complete()
            for text in "abcdefgh":
                scene.feed(leg, episode, [text])
                await wait_all_tasks_blocked()
            await scene.acquire(ELSEWHERE, dead=THERE)
            dial = await scene.dialer.next_dial()
            assert ELSEWHERE == dial.worker_id
            await leg.closed.wait()
            new = dial.complete()
            assert await scene.live_episode() == (await new.selected()).episode


# ------------------------------------------------------------------- 5: interrupt and resend during the dial


async def _interrupt_and_resend(scene: Scene) -> None:
    await scene.send("again", when_busy="interrupt")
    await scene.apply(FinishInterruption(run_id="run1", token="t"))
    await scene.apply(Abandon(run_id="run1", token="u"))


@race(5, "dialed, not selected")
async def test_5_a_dial_to_the_old_worker_that_completes_at_last(seams: Seams) -> None:
    """NO_STALE_LEG: nothing of it arrives, its connection is closed, the new worker's parts flow."""
    async with open_stage() as scene:
        old = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            late = await scene.dialer.next_dial()
            late.ignore_cancellation()
            await _interrupt_and_resend(scene)
            new = await scene.acquire(ELSEWHERE)
            leg = (await scene.dialer.next_dial()).complete()
            stale = late.complete()
            scene.feed(stale, old, ["stale"])
            scene.feed(leg, new, ["fresh"])
            events = await until(subscription, MessagePart)
            await stale.closed.wait()
            events += await at_hand(subscription, 60)
        assert ["fresh"] == texts(events)
        assert [] == stale.selections
        check_stream(events)


@race(5, "dialed, not selected")
async def test_5_a_dial_that_has_just_completed(seams: Seams) -> None:
    """NO_STALE_LEG: its leg is closed before anything was selected on it, in the instant in which the news comes."""
    async with open_stage() as scene:
        old = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            stop = seams.stop("dialed, not selected", worker_id=THERE)
            stale = (await scene.dialer.next_dial()).complete()
            async with in_no_time(), stop:
                await _interrupt_and_resend(scene)
                new = await scene.acquire(ELSEWHERE)
                leg = (await scene.dialer.next_dial()).complete()
                await stale.closed.wait()
            scene.feed(stale, old, ["stale"])
            scene.feed(leg, new, ["fresh"])
            events = await until(subscription, MessagePart)
            events += await at_hand(subscription, 60)
        assert ["fresh"] == texts(events)
        assert [] == stale.selections
        check_stream(events)


# ------------------------------------------------------------------------------ 6: from worker to worker


@race(6, "rows came, not laid down")
async def test_6_a_to_b_with_no_status_between(seams: Seams) -> None:
    """NO_STALE_LEG: A's leg is cancelled with what it was about to lay down, B's parts arrive; exactly two dials."""
    async with open_stage() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            old = (await scene.dialer.next_dial()).complete()
            scene.feed(old, first, ["a"])
            events = await until(subscription, MessagePart)
            stop = seams.stop("rows came, not laid down")
            scene.feed(old, first, ["stale"])
            async with in_no_time(), stop:
                second = await scene.acquire(ELSEWHERE, dead=THERE)
                new = await scene.dialer.next_dial()
                assert ELSEWHERE == new.worker_id
                await old.closed.wait()
            scene.feed(new.complete(), second, ["b"])
            events += await until(subscription, MessagePart, episode=second)
            events += await at_hand(subscription, 60)
            assert 2 == len(scene.dialer.dials)
        assert ["a", "b"] == texts(events)
        assert ["worker_lost"] == [event.reason for event in events if isinstance(event, PreviewReset)]
        check_stream(events)


@race(6, "about to dial")
async def test_6_a_b_a_with_the_first_dial_finishing_last(seams: Seams) -> None:
    """NO_STALE_LEG: three dials, and what the first one comes to changes nothing."""
    async with open_stage() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            late = await scene.dialer.next_dial()
            late.ignore_cancellation()
            events = await until(subscription, CaughtUp)
            second = await scene.acquire(ELSEWHERE, dead=THERE)
            between = (await scene.dialer.next_dial()).complete()
            assert second == (await between.selected()).episode
            third = await scene.acquire(THERE, dead=ELSEWHERE)
            leg = (await scene.dialer.next_dial()).complete()
            stale = late.complete()
            scene.feed(stale, first, ["old"])
            scene.feed(leg, third, ["new"])
            events += await until(subscription, MessagePart)
            events += await at_hand(subscription, 60)
            assert 3 == len(scene.dialer.dials)
            assert stale.closed.is_set()
            assert between.closed.is_set()
            assert [leg] == scene.dialer.open_legs
        assert ["new"] == texts(events)
        assert [] == stale.selections
        check_stream(events)


@race(6, "rested, not looked again")
async def test_6_the_look_before_a_dial_says_whom_to_dial(seams: Seams) -> None:
    """NO_STALE_LEG: where the hint was lost, the look finds the new worker, and the old one is not dialed again."""
    async with open_stage() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            stop = seams.stop("rested, not looked again")
            (await scene.dialer.next_dial()).fail()
            async with stop, in_no_time():
                scene.announcing = False
                await scene.acquire(ELSEWHERE, dead=THERE)
                stop.release()
                assert ELSEWHERE == (await scene.dialer.next_dial()).worker_id
            assert [THERE, ELSEWHERE] == [dial.worker_id for dial in scene.dialer.dials]
            assert 2 == scene.relay.counts.dials


# ------------------------------------------------------------------------------- 10: dials that fail


async def _retried(seams: Seams, fail: Callable[[ScriptedDial], object], *, told_after: int) -> None:
    """Each dial fails like this: the next comes twice as late, up to 15 s, and the viewer is told once."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            for number, bound in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0), 1):
                dial = await scene.dialer.next_dial()
                stop = seams.stop("leg lost, not resting")
                fail(dial)
                async with stop:
                    events += await at_hand(subscription)
                    assert (number >= told_after) == bool(_degradations(events))
                    failed = trio.current_time()
                async with seams.stop("rested, not looked again"):
                    assert pytest.approx(0.999 * bound) == trio.current_time() - failed
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            events += await until(subscription, MessagePart)
            events += await at_hand(subscription)
        assert [False, True] == _degradations(events)
        check_stream(events)


def _degradations(events: Sequence[Event]) -> list[bool]:
    return [event.ok for event in events if isinstance(event, Degraded) and event.what == "relay"]


@race(10, "leg lost, not resting")
async def test_10_a_dial_that_fails(seams: Seams) -> None:
    """ALWAYS_RETRIES: ever more slowly; it is told when it has lasted."""
    await _retried(seams, lambda dial: dial.fail(DialError(THERE, "cannot connect")), told_after=3)


@race(10, "leg lost, not resting")
async def test_10_a_dial_that_times_out(seams: Seams) -> None:
    """ALWAYS_RETRIES: ever more slowly; it is told when it has lasted."""
    await _retried(seams, lambda dial: dial.fail(DialTimeout(THERE, "no answer within 10 s")), told_after=3)


@race(10, "leg lost, not resting")
async def test_10_a_peer_that_accepts_and_drops_at_once(seams: Seams) -> None:
    """ALWAYS_RETRIES: a handshake is no success: ever more slowly, and it is told when it has lasted."""
    await _retried(seams, lambda dial: dial.complete().drop(), told_after=3)


@race(10, "leg lost, not resting")
async def test_10_a_peer_that_accepts_and_hangs_up_at_once(seams: Seams) -> None:
    """ALWAYS_RETRIES: a leg that just ends is a lost one."""
    await _retried(seams, lambda dial: dial.complete().hang_up(), told_after=3)


@race(10, "leg lost, not resting")
async def test_10_a_worker_that_is_not_found(seams: Seams) -> None:
    """ALWAYS_RETRIES: it may register yet; what does not pass by itself is told at once."""
    await _retried(seams, lambda dial: dial.fail(ReplicaNotFound(THERE, "no address is known for it")), told_after=1)


@race(10, "leg lost, not resting")
async def test_10_a_malformed_address(seams: Seams) -> None:
    """ALWAYS_RETRIES: it may be put right; what does not pass by itself is told at once."""
    await _retried(seams, lambda dial: dial.fail(BadReplicaAddress(THERE, "it has no host")), told_after=1)


async def _looked_in_vain(seams: Seams, mode: str, look_seconds: float) -> None:
    """The store does not answer at any re-check."""
    async with open_stage(wrap_store=TroubledStore) as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            dial = await scene.dialer.next_dial()
            for bound in (0.5, 1.0, 2.0, 4.0, 8.0):
                troubled(scene).mode = mode
                failed = trio.current_time()
                dial.fail()
                dial = await scene.dialer.next_dial()
                waited = trio.current_time() - failed
                assert 0.999 * bound - 1e-6 <= waited <= bound + look_seconds
            scene.feed(dial.complete(), episode, ["a"])
            events += await until(subscription, MessagePart)
        assert ["a"] == texts(events)
        check_stream(events)


@race(10, "rested, not looked again")
async def test_10_a_store_that_fails_at_the_re_check(seams: Seams) -> None:
    """ALWAYS_RETRIES: a failed look is a look, and the dial is made; no retry is lost, and none waits for the store."""
    await _looked_in_vain(seams, "fails", 2.0)


@race(10, "rested, not looked again")
async def test_10_a_store_that_hangs_at_the_re_check(seams: Seams) -> None:
    """ALWAYS_RETRIES: after 2 s the dial is made without an answer."""
    await _looked_in_vain(seams, "hangs", 2.0)


@race(10, "selected, nothing read")
async def test_10_not_the_owner_any_more(seams: Seams) -> None:
    """ALWAYS_RETRIES: the peer's word is a reason to look; one dial at once for each version that still names it."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            scene.announcing = False
            async with in_no_time():
                for _ in range(5):
                    leg = (await scene.dialer.next_dial()).complete()
                    await leg.selected()
                    leg.end("not_owner", 0, ELSEWHERE)
                    await scene.send("raises the version, without a hint")
                leg = (await scene.dialer.next_dial()).complete()
                await leg.selected()
            disowned = trio.current_time()
            leg.end("not_owner", 0)
            leg = (await scene.dialer.next_dial()).complete()
            assert pytest.approx(0.999 * 0.5) == trio.current_time() - disowned
            scene.feed(leg, episode, ["a"])
            events += await until(subscription, MessagePart)
        assert {THERE} == {dial.worker_id for dial in scene.dialer.dials}
        check_stream(events)


@race(10, "selected, nothing read")
async def test_10_not_the_owner_and_over(seams: Seams) -> None:
    """STOPS: when the look finds that the chat runs nowhere, nobody waits for the delay, and no dial follows."""
    async with open_stage() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            leg.end("not_owner", 0)
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.announcing = False
            await scene.finish("done")
            async with in_no_time():
                leg.end("not_owner", 0)
                events += await until(subscription, Status, status="waiting")
            await trio.sleep(600)
            await scene.dialer.no_dial()
            assert 2 == scene.relay.counts.dials
        check_stream(events)
