"""The numbered races of open legs: what they bring, how they end, and which episode they carry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._protocol.chat import BeginAttempt, RecordRetry
from relaytrio._protocol.commands import Commit
from relaytrio._protocol.events import (
    CaughtUp,
    MessageEvent,
    MessagePart,
    PreviewReset,
    RetryState,
    Status,
)
from relaytrio.testing import Seams, check_stream
from tests.races.race import race
from tests.races.stage import held, in_no_time, open_stage
from tests.scene import HERE, THERE, Scene, assistant, at_hand, kinds, seqs, texts, until

# ----------------------------------------------------------------------------- 1: it runs elsewhere already


@race(1, "selected, nothing read")
async def test_1_parts_made_so_far_come_first(seams: Seams) -> None:
    """CONTIGUOUS: what was made before the viewer came, then what is made from then on, in order and once."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            stop = seams.stop("selected, nothing read")
            leg = (await scene.dialer.next_dial()).complete()
            async with stop:
                assert 0 == (await leg.selected()).after_seq
                scene.feed(leg, episode, ["a", "b"])
                scene.feed(leg, episode, ["c"])
            events = await until(subscription, MessagePart, seq=3)
            scene.feed(leg, episode, ["d"])
            events += await until(subscription, MessagePart, seq=4)
        assert ["a", "b", "c", "d"] == texts(events)
        check_stream(events)


@race(1, "rows came, not laid down")
async def test_1_what_two_legs_bring_is_seen_once(seams: Seams) -> None:
    """CONTIGUOUS: known rows are trimmed, whichever of two viewers' legs brought them first."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as one, scene.subscribe() as other:
            legs = [(await scene.dialer.next_dial()).complete() for _ in range(2)]
            for leg in legs:
                assert 0 == (await leg.selected()).after_seq
            async with held(seams, "rows came, not laid down", lambda: scene.feed(legs[0], episode, ["a", "b"])):
                scene.feed(legs[1], episode, ["a", "b", "c"])
                assert ["a", "b", "c"] == texts(await until(other, MessagePart, seq=3))
            scene.feed(legs[0], episode, ["c", "d"])
            for subscription, expected in ((one, "abcd"), (other, "d")):
                events = await until(subscription, MessagePart, seq=4)
                assert list(expected) == texts(events)


# ------------------------------------------------------------------------------------- 3: dropped, and again


@race(3, "leg lost, not resting", "rested, not looked again")
async def test_3_dropped_again_and_again(seams: Seams) -> None:
    """ALWAYS_RETRIES: after each drop of a leg that worked the first delay, and parts go on at the next seq."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        events = []
        async with scene.subscribe() as subscription:
            dropped = trio.current_time()
            for round in range(4):
                dial = await scene.dialer.next_dial()
                if round:
                    assert pytest.approx(0.999 * 0.5) == trio.current_time() - dropped
                leg = dial.complete()
                assert 2 * round == (await leg.selected()).after_seq
                scene.feed(leg, episode, ["x", "y"])
                events += await until(subscription, MessagePart, seq=2 * round + 2)
                dropped = trio.current_time()
                leg.drop()
        assert list(range(1, 9)) == seqs(events)
        check_stream(events)


@race(3, "rows came, not laid down", "leg lost, not resting")
async def test_3_what_came_before_the_drop_is_kept(seams: Seams) -> None:
    """CONTIGUOUS: rows that were received count, and the next leg begins behind them."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            async with held(seams, "rows came, not laid down", lambda: scene.feed(leg, episode, ["a", "b"])):
                scene.feed(leg, episode, ["c"], first_seq=3)
                leg.drop()
            events = await until(subscription, MessagePart, seq=3)
            again = (await scene.dialer.next_dial()).complete()
            assert 3 == (await again.selected()).after_seq
            scene.feed(again, episode, ["d"])
            events += await until(subscription, MessagePart, seq=4)
        assert list("abcd") == texts(events)
        check_stream(events)


@race(3, "rested, not looked again")
async def test_3_a_handshake_is_no_success(seams: Seams) -> None:
    """ALWAYS_RETRIES: legs that bring nothing are dialed ever more slowly; the first row makes the pace quick again."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            for bound in (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0):
                leg = (await scene.dialer.next_dial()).complete()
                dropped = trio.current_time()
                leg.drop()
                async with seams.stop("rested, not looked again"):
                    assert pytest.approx(0.999 * bound) == trio.current_time() - dropped
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            await until(subscription, MessagePart)
            dropped = trio.current_time()
            leg.drop()
            await scene.dialer.next_dial()
            assert pytest.approx(0.999 * 0.5) == trio.current_time() - dropped


# ---------------------------------------------------------------------------------------- 7: the same worker


@race(7, "about to dial")
async def test_7_the_same_worker_named_twice(seams: Seams) -> None:
    """A status that changes nothing about the worker begins no second dial, whatever the first one is at."""
    async with open_stage() as scene:
        stop = seams.stop("about to dial")
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            async with stop:
                await scene.send("queued at once")
                events = await until(subscription, Status)
            dial = await scene.dialer.next_dial()
            await scene.send("queued while it is dialed")
            await scene.dialer.no_dial()
            leg = dial.complete()
            await leg.selected()
            await scene.send("queued while it is followed")
            scene.feed(leg, episode, ["a"])
            events += await until(subscription, MessagePart)
            await scene.dialer.no_dial()
            assert 1 == len(leg.selections)
        check_stream(events)


async def _promote(scene: Scene) -> None:
    await scene.send("next")
    await scene.finish("a")


async def _step(scene: Scene) -> None:
    await scene.apply(Commit(run_id="run1", token="step", messages=(assistant("a"),)))


async def _retry(scene: Scene) -> None:
    state = RetryState(attempt=1, delay_seconds=1.0, error="busy")
    await scene.apply(RecordRetry(run_id="run1", token="retry", retry=state))
    await scene.apply(BeginAttempt(run_id="run1", token="begin"))


async def _goes_on(seams: Seams, go_on: Callable[[Scene], Awaitable[None]]) -> None:
    """The next episode comes while the leg has only just selected the former one."""
    async with open_stage() as scene:
        former = await scene.acquire(THERE)
        stop = seams.stop("selected, nothing read")
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            async with stop:
                assert former == (await leg.selected()).episode
                await go_on(scene)
                episode = await scene.live_episode()
                await wait_all_tasks_blocked()
                scene.feed(leg, former, ["a"])
                leg.end("sealed", 1, episode=former)
                async with in_no_time():
                    stop.release()
                    selection = await leg.selected()
            assert (episode, 0) == (selection.episode, selection.after_seq)
            scene.feed(leg, episode, ["b"])
            async with in_no_time():
                events = await until(subscription, MessagePart, episode=episode)
                await wait_all_tasks_blocked()
                scene.feed(leg, episode, ["c"])
                events += await until(subscription, MessagePart, episode=episode)
            assert 1 == len(scene.dialer.dials)
        assert ["b", "c"] == texts(events)[-2:]
        check_stream(events)


@race(7, "selected, nothing read")
async def test_7_a_queued_message_is_promoted(seams: Seams) -> None:
    """The next turn of the same worker is selected on the open leg, without a dial and without a delay."""
    await _goes_on(seams, _promote)


@race(7, "selected, nothing read")
async def test_7_a_tool_step(seams: Seams) -> None:
    """The next step of a turn is selected on the open leg, without a dial and without a delay."""
    await _goes_on(seams, _step)


@race(7, "selected, nothing read")
async def test_7_a_retry(seams: Seams) -> None:
    """The next attempt of a turn is selected on the open leg, without a dial and without a delay."""
    await _goes_on(seams, _retry)


@race(7, "dialed, not selected")
async def test_7_an_episode_that_changes_while_it_is_dialed(seams: Seams) -> None:
    """The dial goes on, and what is selected is the newest episode only."""
    async with open_stage() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            dial = await scene.dialer.next_dial()
            await _step(scene)
            await wait_all_tasks_blocked()
            stop = seams.stop("dialed, not selected")
            leg = dial.complete()
            async with stop:
                await _retry(scene)
                await wait_all_tasks_blocked()
            episode = await scene.live_episode()
            assert episode == (await leg.selected()).episode
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            assert [episode] == [selection.episode for selection in leg.selections]
            assert 1 == len(scene.dialer.dials)
        check_stream(events)


@race(7, "leg lost, not resting")
async def test_7_a_new_episode_ends_the_retry_delay(seams: Seams) -> None:
    """Whatever was wrong before, the new episode is dialed at once; also if it came just before the delay began."""
    async with open_stage(dial_retry_seconds=8.0) as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            stop = seams.stop("leg lost, not resting")
            (await scene.dialer.next_dial()).fail()
            async with in_no_time():
                async with stop:
                    await _step(scene)
                    await wait_all_tasks_blocked()
                dial = await scene.dialer.next_dial()
            async with in_no_time():
                dial.fail()
                await wait_all_tasks_blocked()
                await _retry(scene)
                leg = (await scene.dialer.next_dial()).complete()
            episode = await scene.live_episode()
            assert episode == (await leg.selected()).episode
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
        check_stream(events)


# ------------------------------------------------------------------------------------------ 8: it moves here


@race(8, "about to dial")
async def test_8_while_it_is_dialed(seams: Seams) -> None:
    """STOPS: the dial is given up within the 200 ms, there is no further one, and local parts flow."""
    async with open_stage() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            dial = await scene.dialer.next_dial()
            events = await until(subscription, CaughtUp)
            events += await _moves_here(scene, lambda: until(subscription, MessagePart))
            assert dial.cancelled
        assert ["local"] == texts(events)
        check_stream(events)


@race(8, "selected, nothing read")
async def test_8_while_a_leg_is_open(seams: Seams) -> None:
    """STOPS: the leg ends, and what it still brings is seen before the local parts or not at all."""
    async with open_stage() as scene:
        former = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            events = await until(subscription, CaughtUp)
            async with held(seams, "rows came, not laid down", lambda: scene.feed(leg, former, ["late"])):
                events += await _moves_here(scene, lambda: until(subscription, MessagePart, part=LOCAL))
            assert leg.closed.is_set()
            events += await at_hand(subscription)
        assert texts(events) in (["local"], ["late", "local"])
        check_stream(events)


@race(8, "rested, not looked again")
async def test_8_while_it_waits_to_dial_again(seams: Seams) -> None:
    """STOPS: who was about to dial again looks first, and finds no reason to."""
    async with open_stage() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            stop = seams.stop("rested, not looked again")
            (await scene.dialer.next_dial()).fail()
            events = await until(subscription, CaughtUp)
            async with stop:
                events += await _moves_here(scene, lambda: until(subscription, MessagePart))
            await scene.dialer.no_dial()
        assert ["local"] == texts(events)
        check_stream(events)


LOCAL = {"type": "text", "text": "local"}


async def _moves_here(scene: Scene, see: Callable[[], Awaitable[list]]) -> list:  # type: ignore[type-arg]
    """Let this replica take the chat over and send a part, which `see` waits for; and no dial follows."""
    moved = trio.current_time()
    episode = await scene.acquire(HERE, dead=THERE)
    scene.make_parts(episode, "local")
    events = await see()
    assert trio.current_time() <= moved + scene.replica.settings.end_of_episode_seconds
    await trio.sleep(scene.replica.settings.end_of_episode_seconds)
    await wait_all_tasks_blocked()
    scene.dialer.assert_quiet()
    await trio.sleep(600)
    await scene.dialer.no_dial()
    return events


# ------------------------------------------------------------------------ 11: it ends before its parts are there


@race(11, "dialed, not selected")
async def test_11_it_finishes_before_the_dial_completes(seams: Seams) -> None:
    """LAST_PARTS: within the 200 ms its parts are still seen, then the message, once each."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            dial = await scene.dialer.next_dial()
            events = await until(subscription, CaughtUp)
            await scene.finish("ab")
            await trio.sleep(0.1)
            stop = seams.stop("dialed, not selected")
            leg = dial.complete()
            async with stop:
                await trio.sleep(0.05)
            async with in_no_time():
                await leg.selected()
                scene.feed(leg, episode, ["a", "b"])
                leg.end("sealed", 2)
                events += await until(subscription, Status, status="waiting")
            events += await at_hand(subscription, 60)
            assert leg.closed.is_set()
        assert ["message_part", "message_part", "message", "status"] == kinds(events)[-4:]
        check_stream(events)


@race(11, "rows came, not laid down")
async def test_11_the_finish_overtakes_the_last_burst(seams: Seams) -> None:
    """LAST_PARTS: the message waits for rows that are on their way, and for no longer than their end."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            async with held(seams, "rows came, not laid down", lambda: scene.feed(leg, episode, ["b"])):
                await scene.finish("abc")
                await trio.sleep(0.1)
                scene.feed(leg, episode, ["c"])
                leg.end("sealed", 3)
            async with in_no_time():
                events += await until(subscription, Status, status="waiting")
        assert ["message_part"] * 2 + ["message", "status"] == kinds(events)[-4:]
        assert list("abc") == texts(events)
        check_stream(events)


@race(11, "rows came, not laid down")
async def test_11_rows_that_come_too_late(seams: Seams) -> None:
    """SUPERSEDED: after 200 ms the message comes without its last rows, and none of them follows it."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            finished = trio.current_time()
            await scene.finish("ab")
            events += await until(subscription, MessageEvent)
            assert pytest.approx(0.2) == trio.current_time() - finished
            scene.feed(leg, episode, ["b"], first_seq=2)
            events += await at_hand(subscription, 60)
        assert ["a"] == texts(events)
        check_stream(events)


@race(11, "about to dial")
async def test_11_a_dial_that_completes_too_late(seams: Seams) -> None:
    """SUPERSEDED: past the 200 ms the dial is given up, the message has come, and no part follows."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            dial = await scene.dialer.next_dial()
            dial.ignore_cancellation()
            events = await until(subscription, CaughtUp)
            finished = trio.current_time()
            await scene.finish("a")
            events += await until(subscription, Status, status="waiting")
            assert pytest.approx(0.2) == trio.current_time() - finished
            await trio.sleep(1)
            leg = dial.complete()
            scene.feed(leg, episode, ["a"])
            await leg.closed.wait()
            events += await at_hand(subscription, 60)
        assert [] == texts(events)
        assert [] == leg.selections
        check_stream(events)


@race(11, "leg lost, not resting")
async def test_11_nobody_waits_for_a_leg_that_is_gone(seams: Seams) -> None:
    """LAST_PARTS: the message waits for who may still bring rows, not for time."""
    async with open_stage() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            stop = seams.stop("leg lost, not resting")
            leg.drop()
            async with stop:
                await scene.finish("ab")
                await trio.sleep(0.1)
            async with in_no_time():
                events += await until(subscription, Status, status="waiting")
        assert not [event for event in events if isinstance(event, PreviewReset)]
        check_stream(events)
