"""Which worker is followed: every dial is a script, and whatever finishes when, the viewer's stream is right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._dialer import DialRequest
from relaytrio._errors import (
    BadReplicaAddress,
    DialError,
    DialRefused,
    ReplicaNotFound,
    StoreUnavailable,
    SubscriptionFailed,
)
from relaytrio._protocol.burst import Burst
from relaytrio._protocol.chat import Abandon, BeginAttempt, Commit, FinishInterruption, Interrupt, RecordRetry
from relaytrio._protocol.events import (
    CaughtUp,
    Degraded,
    Episode,
    MessageEvent,
    MessagePart,
    MessageRef,
    PreviewReset,
    RetryState,
    Status,
)
from relaytrio._protocol.peer_wire import EndReason
from relaytrio._relay import RelayCounts, RelayParams
from relaytrio.stores._base import View
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import Schedule, check_stream, scheduled, text_burst, watch_seams
from tests import scene as scene_module
from tests.scene import ELSEWHERE, HERE, THERE, assistant, at_hand, kinds, open_scene, seqs, texts, until


@pytest.fixture(autouse=True, params=[False, True], ids=["by its task", "as they come"])
def _lays_down(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds whichever way rows are laid down."""
    monkeypatch.setattr(scene_module, "LAYS_DOWN", request.param)


async def test_parts_made_so_far_come_first_then_live_ones(autojump_clock: MockClock) -> None:
    """A chat that runs on another worker when a viewer subscribes: everything in order, once."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            selection = await leg.selected()
            assert (episode, 0) == (selection.episode, selection.after_seq)
            scene.feed(leg, episode, ["a", "b"])
            events = await until(subscription, MessagePart, seq=2)
            scene.feed(leg, episode, ["c"], first_seq=3)
            events += await until(subscription, MessagePart, seq=3)
        assert ["a", "b", "c"] == texts(events)
        check_stream(events)
        scene.dialer.assert_quiet()


@pytest.mark.parametrize("fails", [True, False])
async def test_a_dial_that_fails_or_hangs_delays_no_durable_event(autojump_clock: MockClock, fails: bool) -> None:
    """DIAL_IS_ASIDE: everything durable arrives in no time, and a failed dial is made again."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        started = trio.current_time()
        async with scene.subscribe() as subscription:
            dial = await scene.dialer.next_dial()
            if fails:
                dial.fail()
            await until(subscription, CaughtUp)
            await scene.send("queued")
            await until(subscription, Status)
            assert started == trio.current_time()
            if fails:
                await scene.dialer.next_dial()
                assert 0 < trio.current_time() - started <= scene.replica.settings.dial_retry_seconds


async def test_a_dropped_leg_is_dialed_again_and_again(autojump_clock: MockClock) -> None:
    """ALWAYS_RETRIES: after each drop the retry delay, and parts go on at the next seq."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            events = []
            for round in range(4):
                leg = (await scene.dialer.next_dial()).complete()
                assert 2 * round == (await leg.selected()).after_seq
                scene.feed(leg, episode, ["x", "y"], first_seq=2 * round + 1)
                events += await until(subscription, MessagePart, seq=2 * round + 2)
                leg.drop()
        assert list(range(1, 9)) == seqs(events)


async def test_known_rows_are_trimmed(autojump_clock: MockClock) -> None:
    """Whatever is sent twice is trimmed by its number."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a", "b", "c"])
            scene.feed(leg, episode, ["b", "c", "d"], first_seq=2)
            scene.feed(leg, episode, ["a"], first_seq=1)
            scene.feed(leg, episode, ["e"], first_seq=5)
            events = await until(subscription, MessagePart, seq=5)
        assert list("abcde") == texts(events)


async def test_a_gap_is_selected_again_once_and_then_told(autojump_clock: MockClock) -> None:
    """GAPS_ARE_TOLD: rows that cannot be had are announced as a reset at the first one that is here."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, episode, ["a"])
            scene.feed(leg, episode, ["d"], first_seq=4)
            assert 1 == (await leg.selected()).after_seq
            scene.feed(leg, episode, ["e"], first_seq=5)
            events = await until(subscription, MessagePart, seq=5)
        resets = [event for event in events if isinstance(event, PreviewReset)]
        assert [("gap", 5)] == [(reset.reason, reset.first_seq) for reset in resets]
        check_stream(events)


async def test_what_is_no_part_ends_the_leg(autojump_clock: MockClock) -> None:
    """Rows that say something else, or are of another place than their burst says, reach nobody; what came before
    stays, and the worker is dialed again."""
    for rows in (b'{"type":"status","status":"waiting"}', b"{}", text_burst(Episode(1, 1, "run1"), ["b"]).rows):
        async with open_scene() as scene:
            episode = await scene.acquire(THERE)
            async with scene.subscribe() as subscription:
                leg = (await scene.dialer.next_dial()).complete()
                await leg.selected()
                scene.feed(leg, episode, ["a"])
                leg.feed(Burst(episode, 2, 1, rows))
                events = await at_hand(subscription)
                assert ["a"] == texts(events)
                assert leg.closed.is_set()
                again = (await scene.dialer.next_dial()).complete()
                assert 1 == (await again.selected()).after_seq


async def test_rows_of_a_former_episode_stay_its_own(autojump_clock: MockClock) -> None:
    """What is still on its way of the episode before goes into no other log, though its numbers would fit there."""
    async with open_scene() as scene:
        former = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, former, ["a"])
            await scene.apply(BeginAttempt(run_id="run1", token="t"))
            events = await at_hand(subscription)
            await leg.selected()
            live = await scene.live_episode()
            scene.feed(leg, live, ["c"])
            events += await until(subscription, MessagePart, seq=1, episode=live)
            scene.feed(leg, former, ["b"], first_seq=2)
            scene.feed(leg, live, ["d"], first_seq=2)
            events += await until(subscription, MessagePart, seq=2, episode=live)
        assert ["a", "c", "d"] == texts(events)
        check_stream(events)


async def test_rows_that_come_before_the_relay_has_turned(autojump_clock: MockClock) -> None:
    """The next episode is wanted and not selected yet: a row of the one before goes into no log but its own, in
    whichever order the tasks run."""
    for seed in range(20):
        with scheduled(Schedule.random(seed)):
            await _row_before_the_relay_has_turned()


async def _row_before_the_relay_has_turned() -> None:
    async with open_scene() as scene:
        former = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            with watch_seams() as seams:
                stop = seams.stop("view read, not laid down")
                await scene.apply(BeginAttempt(run_id="run1", token="t"))
                async with stop:
                    pass
                for _ in range(10):
                    scene.feed(leg, former, ["a"], first_seq=1)
                    await trio.lowlevel.checkpoint()
            live = await scene.live_episode()
            scene.feed(leg, live, ["b"])
            events = await until(subscription, MessagePart, seq=1, episode=live)
        assert ["b"] == [
            event.part["text"] for event in events if isinstance(event, MessagePart) and event.episode == live
        ]
        check_stream(events)


async def test_a_log_that_lost_its_beginning_is_no_gap(autojump_clock: MockClock) -> None:
    """The worker's log says `truncated` in its first burst: nothing is selected again, the viewer is told."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            leg.feed(replace(text_burst(episode, ["x", "y"], first_seq=100), truncated=True))
            events = await until(subscription, MessagePart, seq=101)
            assert 1 == len(leg.selections)
        resets = [event for event in events if isinstance(event, PreviewReset)]
        assert [("truncated", 100)] == [(reset.reason, reset.first_seq) for reset in resets]


async def test_interrupt_and_resend_while_the_old_dial_is_in_flight(autojump_clock: MockClock) -> None:
    """NO_STALE_LEG: when that dial completes at last, nothing of it arrives, and the new worker's parts flow."""
    async with open_scene() as scene:
        old = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            late = await scene.dialer.next_dial()
            late.ignore_cancellation()
            events = await until(subscription, CaughtUp)
            await scene.send("again", when_busy="interrupt")
            await scene.apply(FinishInterruption(run_id="run1", token="t"))
            await scene.apply(Abandon(run_id="run1", token="u"))
            new = await scene.acquire(ELSEWHERE)
            leg = (await scene.dialer.next_dial()).complete()
            stale = late.complete()
            scene.feed(stale, old, ["stale"])
            scene.feed(leg, new, ["fresh"])
            events += await until(subscription, MessagePart, seq=1)
            events += await at_hand(subscription, 60)
            assert stale.closed.is_set()
        assert ["fresh"] == texts(events)
        check_stream(events)


async def test_a_to_b_with_no_status_between_is_exactly_two_dials(autojump_clock: MockClock) -> None:
    """The old leg is cancelled, the new one dialed at once."""
    async with open_scene() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            old = (await scene.dialer.next_dial()).complete()
            scene.feed(old, first, ["a"])
            events = await until(subscription, MessagePart)
            started = trio.current_time()
            second = await scene.acquire(ELSEWHERE, dead=THERE)
            new = await scene.dialer.next_dial()
            assert (ELSEWHERE, started) == (new.worker_id, trio.current_time())
            leg = new.complete()
            scene.feed(leg, second, ["b"])
            events += await until(subscription, MessagePart, episode=second)
            await wait_all_tasks_blocked()
            assert old.closed.is_set()
            assert 2 == len(scene.dialer.dials)
        assert ["a", "b"] == texts(events)
        assert ["worker_lost"] == [event.reason for event in events if isinstance(event, PreviewReset)]
        check_stream(events)


async def test_a_b_a_with_the_first_dial_finishing_last(autojump_clock: MockClock) -> None:
    """NO_STALE_LEG: three legs, and the first one's rows belong to an episode that nobody reads."""
    async with open_scene() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            late = await scene.dialer.next_dial()
            late.ignore_cancellation()
            await until(subscription, CaughtUp)
            await scene.acquire(ELSEWHERE, dead=THERE)
            (await scene.dialer.next_dial()).complete()
            third = await scene.acquire(THERE, dead=ELSEWHERE)
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, third, ["new"])
            scene.feed(late.complete(), first, ["old"])
            events = await at_hand(subscription, 60)
            assert 3 == len(scene.dialer.dials)
        assert ["new"] == texts(events)


async def test_the_same_worker_named_twice_is_dialed_once(autojump_clock: MockClock) -> None:
    """A status that changes nothing about the worker changes nothing about the leg."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await until(subscription, CaughtUp)
            await scene.send("queued")
            await until(subscription, Status)
            await scene.dialer.no_dial()
            assert not leg.closed.is_set()
            assert 1 == len(leg.selections)


async def test_a_new_episode_of_the_same_worker_is_selected_on_the_open_leg(autojump_clock: MockClock) -> None:
    """Queue promotion, tool step, retry: no dial, no delay."""
    async with open_scene() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, first, ["a"])
            events = await until(subscription, MessagePart)
            await scene.send("next")
            leg.end("sealed", 1)
            await scene.finish("a")
            started = trio.current_time()
            selection = await leg.selected()
            second = await scene.live_episode()
            assert (second, 0, started) == (selection.episode, selection.after_seq, trio.current_time())
            scene.feed(leg, second, ["b"])
            events += await until(subscription, MessagePart, episode=second)
            assert 1 == len(scene.dialer.dials)
        check_stream(events)


async def test_a_chat_that_moves_here_ends_the_leg_and_local_parts_flow(autojump_clock: MockClock) -> None:
    """STOPS: no further dial, and nothing of the old leg."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await until(subscription, CaughtUp)
            episode = await scene.acquire(HERE, dead=THERE)
            scene.make_parts(episode, "local")
            events = await until(subscription, MessagePart)
            await trio.sleep(1)
            assert leg.closed.is_set()
            await scene.dialer.no_dial()
            scene.dialer.assert_quiet()
        assert ["local"] == texts(events)


async def test_when_it_no_longer_runs_remotely_nothing_is_left(autojump_clock: MockClock) -> None:
    """STOPS: no dial, no leg, no timer, for hours."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            (await scene.dialer.next_dial()).fail()
            await until(subscription, CaughtUp)
            await scene.finish("done")
            await until(subscription, Status, status="waiting")
            await trio.sleep(3600)
            await scene.dialer.no_dial()
            scene.dialer.assert_quiet()


async def test_an_answer_that_finishes_before_the_dial_completes(autojump_clock: MockClock) -> None:
    """LAST_PARTS: within the 200 ms its parts are still seen, then the message, once each."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            dial = await scene.dialer.next_dial()
            events = await until(subscription, CaughtUp)
            await scene.finish("ab")
            await trio.sleep(0.1)
            leg = dial.complete()
            await leg.selected()
            scene.feed(leg, episode, ["a", "b"])
            leg.end("sealed", 2)
            started = trio.current_time()
            events += await until(subscription, Status, status="waiting")
            assert started == trio.current_time()
        assert ["message_part", "message_part", "message", "status"] == kinds(events)[-4:]
        check_stream(events)


async def test_two_episodes_later_the_last_parts_of_the_first_still_come(autojump_clock: MockClock) -> None:
    """LAST_PARTS: a commit, and a Stop right behind it, while the last burst before both is on its way."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart, seq=1)
            await scene.send("next")
            await scene.apply(Commit(run_id="run1", token="c", messages=(assistant("ab"),)))
            await wait_all_tasks_blocked()
            await scene.apply(Interrupt())
            await scene.apply(FinishInterruption(run_id="run1", token="f"))
            await wait_all_tasks_blocked()
            scene.feed(leg, episode, ["b"], first_seq=2)
            leg.end("sealed", 2, episode=episode)
            events += await until(subscription, Status, status="running", version=6)
        assert ["a", "b"] == texts(events)
        answers = [event for event in events if isinstance(event, MessageEvent) and event.message.role == "assistant"]
        parts = [event for event in events if isinstance(event, MessagePart)]
        assert events.index(parts[-1]) < events.index(answers[0])
        check_stream(events)


async def test_past_the_200_ms_the_message_comes_and_no_part_follows(autojump_clock: MockClock) -> None:
    """SUPERSEDED: nothing waits longer for a part than that, and a later one reaches nobody."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            started = trio.current_time()
            await scene.finish("ab")
            events += await until(subscription, Status, status="waiting")
            assert pytest.approx(0.2) == trio.current_time() - started
            scene.feed(leg, episode, ["b"], first_seq=2)
            events += await at_hand(subscription, 60)
        assert ["a"] == texts(events)
        check_stream(events)


async def test_a_newer_view_does_not_extend_the_wait(autojump_clock: MockClock) -> None:
    """The 200 ms count from the view that first said that the episode is over."""
    async with open_scene() as scene, trio.open_nursery() as nursery:
        episode = await scene.acquire(HERE)

        async def send_later() -> None:
            await trio.sleep(0.15)
            await scene.send("next")

        async with scene.subscribe() as subscription:
            scene.make_parts(episode, "a")
            await until(subscription, MessagePart)
            started = trio.current_time()
            await scene.finish("ab")
            nursery.start_soon(send_later)
            events = await until(subscription, Status, status="running")
            assert pytest.approx(0.2) == trio.current_time() - started
        assert ["assistant", "user"] == [e.message.role for e in events if isinstance(e, MessageEvent)]


async def test_no_message_waits_longer_for_a_worker_that_goes_on(autojump_clock: MockClock) -> None:
    """The leg stays open for the next episode, and the end of the former one is lost: 200 ms, no more."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            await until(subscription, MessagePart)
            await scene.send("next")
            await until(subscription, Status)
            started = trio.current_time()
            await scene.finish("ab")
            await until(subscription, MessageEvent)
            assert pytest.approx(0.2) == trio.current_time() - started
            assert not leg.closed.is_set()


async def test_a_lost_leg_at_the_end_makes_nobody_wait(autojump_clock: MockClock) -> None:
    """An unattended copy counts as sealed."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            await until(subscription, MessagePart)
            started = trio.current_time()
            await scene.finish("ab")
            await wait_all_tasks_blocked()
            leg.drop()
            await until(subscription, Status, status="waiting")
            assert started == trio.current_time()


async def test_an_idle_leg_is_closed_and_the_next_episode_dials_at_once(autojump_clock: MockClock) -> None:
    """`ended sealed` is no reason to dial; after 5 s the leg is given up, and the next episode needs a new one."""
    async with open_scene() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, first, ["a"])
            leg.end("sealed", 1, episode=first)
            await until(subscription, MessagePart)
            await trio.sleep(4.9)
            assert not leg.closed.is_set()
            await trio.sleep(0.2)
            assert leg.closed.is_set()
            await scene.dialer.no_dial()
            await scene.apply(BeginAttempt(run_id="run1", token="t"))
            started = trio.current_time()
            await scene.dialer.next_dial()
            assert started == trio.current_time()


async def test_a_new_episode_ends_the_retry_delay(autojump_clock: MockClock) -> None:
    """Whatever was wrong before: the new episode is dialed at once, and its first failure waits shortly again."""
    async with open_scene(dial_retry_seconds=8.0) as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            (await scene.dialer.next_dial()).fail()
            await until(subscription, CaughtUp)
            await scene.apply(BeginAttempt(run_id="run1", token="t"))
            started = trio.current_time()
            await scene.dialer.next_dial()
            assert started == trio.current_time()


async def test_a_retry_of_the_attempt_is_followed_on_the_same_leg(autojump_clock: MockClock) -> None:
    """During the delay between two attempts the leg stays open."""
    async with open_scene() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, first, ["a"])
            events = await until(subscription, MessagePart)
            leg.end("sealed", 1)
            state = RetryState(attempt=1, delay_seconds=1.0, error="busy")
            await scene.apply(RecordRetry(run_id="run1", token="t", retry=state))
            events += await until(subscription, PreviewReset)
            await trio.sleep(1)
            await scene.apply(BeginAttempt(run_id="run1", token="u"))
            second = await scene.live_episode()
            assert second == (await leg.selected()).episode
            scene.feed(leg, second, ["b"])
            events += await until(subscription, MessagePart)
            assert 1 == len(scene.dialer.dials)
        check_stream(events)


async def test_not_owner_is_a_reason_to_look_and_dial_once_a_version(autojump_clock: MockClock) -> None:
    """The peer's word changes nothing by itself: one immediate dial for each version, then the retry delay."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe():
            started = trio.current_time()
            for _ in range(2):
                leg = (await scene.dialer.next_dial()).complete()
                await leg.selected()
                leg.end("not_owner", 0)
            assert started == trio.current_time()
            await scene.dialer.next_dial()
            assert trio.current_time() > started


async def test_a_refused_dial_is_tried_once_more_then_slowly_and_told(autojump_clock: MockClock) -> None:
    """A fresh grant may help; after that a person has to act, and the viewer is told."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            started = trio.current_time()
            (await scene.dialer.next_dial()).fail(DialRefused(THERE, "401"))
            (await scene.dialer.next_dial()).fail(DialRefused(THERE, "401"))
            assert started == trio.current_time()
            await until(subscription, Degraded, what="relay", ok=False)
            third = await scene.dialer.next_dial()
            assert pytest.approx(15.0) == trio.current_time() - started
            leg = third.complete()
            scene.feed(leg, await scene.live_episode(), ["a"])
            await until(subscription, Degraded, what="relay", ok=True)


async def test_a_refused_select_counts_as_a_refused_dial(autojump_clock: MockClock) -> None:
    """The grant of a select may have come too late: once more with a fresh one, then slowly, and told."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            started = trio.current_time()
            for _ in range(2):
                leg = (await scene.dialer.next_dial()).complete()
                await leg.selected()
                leg.end("refused", 0)
            assert started == trio.current_time()
            [*_, told] = await until(subscription, Degraded)
            assert "replica there: the peer did not accept the grant" == getattr(told, "message", None)
            await scene.dialer.next_dial()
            assert pytest.approx(15.0) == trio.current_time() - started


@pytest.mark.parametrize("reason", ["beyond", "sealed"])
async def test_an_end_that_does_not_fit_the_copy_is_a_lost_leg(autojump_clock: MockClock, reason: EndReason) -> None:
    """GAPS_ARE_TOLD: a copy that lacks rows is not taken for whole; it is dialed again, and told if that lasts."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            for round in range(3):
                leg = (await scene.dialer.next_dial()).complete()
                assert min(round, 1) == (await leg.selected()).after_seq
                if round == 0:
                    scene.feed(leg, episode, ["a"])
                    await until(subscription, MessagePart)
                leg.end(reason, 5)
            [*_, told] = await until(subscription, Degraded)
            expected = "replica there: the peer's log and its copy here do not fit"
            assert expected == getattr(told, "message", None)
            assert not scene.log(episode).sealed


async def test_an_episode_that_is_over_there_is_a_reason_to_look(autojump_clock: MockClock) -> None:
    """NO_LOSS: the peer knows of an end that no hint has announced; whatever rows are here, none is waited for."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, episode, ["a"])
            await until(subscription, MessagePart)
            scene.announcing = False
            await scene.finish("ab")
            started = trio.current_time()
            leg.end("over", 5)
            await until(subscription, Status, status="waiting")
            assert started == trio.current_time()


@pytest.mark.parametrize(
    ("reason", "last_seq", "ends"),
    [("sealed", 2, True), ("sealed", 5, False), ("over", 2, False), ("beyond", 2, False)],
)
async def test_the_end_of_the_former_episode_may_come_after_the_next_was_selected(
    autojump_clock: MockClock, reason: EndReason, last_seq: int, ends: bool
) -> None:
    """LAST_PARTS: with all its rows here its message waits no longer; any other end of it changes nothing."""
    async with open_scene() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, first, ["a"])
            events = await until(subscription, MessagePart)
            await scene.send("next")
            started = trio.current_time()
            await scene.finish("ab")
            await leg.selected()
            scene.feed(leg, first, ["b"], first_seq=2)
            leg.end(reason, last_seq, episode=first)
            leg.end("sealed", 0, episode=attrs.evolve(first, run_id="foreign"))
            events += await until(subscription, MessageEvent)
            assert ends == scene.log(first).sealed
            assert pytest.approx(0.0 if ends else 0.2) == trio.current_time() - started
            scene.feed(leg, await scene.live_episode(), ["c"])
            events += await until(subscription, MessagePart)
            assert 1 == len(scene.dialer.dials)
        assert ["a", "b", "c"] == texts(events)


async def test_a_single_failed_dial_is_told_to_nobody(autojump_clock: MockClock) -> None:
    """A replica that restarts is everyday: the third failure in a row is told, with the worker's name."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            for _ in range(2):
                (await scene.dialer.next_dial()).fail()
            third = await scene.dialer.next_dial()
            assert "degraded" not in kinds(await at_hand(subscription))
            third.fail()
            [told] = await at_hand(subscription)
            assert "replica there: this dial was told to fail" == getattr(told, "message", None)


async def test_the_copy_at_hand_is_kept_while_its_leg_is_given_up(autojump_clock: MockClock) -> None:
    """A slow viewer still finds the rows of an episode whose worker goes on with something else for long."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            leg.end("sealed", 1, episode=episode)
            await until(subscription, MessagePart)
            await trio.sleep(3600)
            assert leg.closed.is_set()
            assert 1 == scene.log(episode).last_seq


@pytest.mark.parametrize("ends", ["lost", "not owner", "idle"])
async def test_a_refusal_after_a_good_leg_is_the_first_again(autojump_clock: MockClock, ends: str) -> None:
    """What was refused once, long ago, and worked since, is tried once more at once, and told to nobody."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            (await scene.dialer.next_dial()).fail(DialRefused(THERE, "401"))
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            if ends == "lost":
                leg.drop()
            elif ends == "not owner":
                leg.end("not_owner", 1)
            else:
                leg.end("sealed", 1)
                await leg.closed.wait()
                await scene.apply(BeginAttempt(run_id="run1", token="t"))
            dial = await scene.dialer.next_dial()
            started = trio.current_time()
            dial.fail(DialRefused(THERE, "401"))
            await scene.dialer.next_dial()
            assert started == trio.current_time()
            assert "degraded" not in kinds(events + await at_hand(subscription))


async def test_a_dial_is_told_the_chat_the_worker_and_the_viewers_headers(autojump_clock: MockClock) -> None:
    """What a dialer of one's own decides by; which headers go further is for it to say."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe(cookie="a=b"):
            assert DialRequest("c", THERE, {"cookie": "a=b"}) == (await scene.dialer.next_dial()).request


async def test_legs_are_counted(autojump_clock: MockClock) -> None:
    """An operator sees how many legs there are, and how many were opened and dialed."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe(), scene.subscribe():
            legs = [(await scene.dialer.next_dial()).complete() for _ in range(2)]
            await wait_all_tasks_blocked()
            assert RelayCounts(open=2, opened=2, dials=2) == scene.relay.counts
            legs[0].drop()
            (await scene.dialer.next_dial()).fail()
            assert RelayCounts(open=1, opened=2, dials=3) == scene.relay.counts
        assert RelayCounts(open=0, opened=2, dials=3) == scene.relay.counts


async def test_who_comes_back_at_once_is_followed_on_the_open_leg(autojump_clock: MockClock) -> None:
    """A turn ends and its worker acquires the next within the 200 ms: the leg that was to be left stays."""
    async with open_scene() as scene:
        first = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, first, ["a"])
            await until(subscription, MessagePart)
            await scene.finish("a")
            await trio.sleep(0.1)
            await scene.send("next")
            second = await scene.acquire(THERE)
            assert second == (await leg.selected()).episode
            await trio.sleep(60)
            assert not leg.closed.is_set()
            scene.feed(leg, second, ["b"])
            await until(subscription, MessagePart, episode=second)
            assert 1 == len(scene.dialer.dials)
            leg.drop()
            await scene.dialer.next_dial()


async def test_a_leg_that_ends_in_the_middle_is_a_lost_one(autojump_clock: MockClock) -> None:
    """ALWAYS_RETRIES: a peer that closes properly, but too early, is dialed again, and told of if that lasts."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            for _ in range(3):
                leg = (await scene.dialer.next_dial()).complete()
                await leg.selected()
                leg.hang_up()
            [*_, told] = await until(subscription, Degraded)
            assert "replica there: the leg ended in the middle of an episode" == getattr(told, "message", None)


@pytest.mark.parametrize("properly", [True, False])
async def test_an_idle_leg_that_ends_is_no_failure(autojump_clock: MockClock, properly: bool) -> None:
    """All that was wanted is here: nobody is told, nobody dials, and the next episode needs no delay."""
    async with open_scene(dial_retry_seconds=8.0) as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            for attempt in range(4):
                leg = (await scene.dialer.next_dial()).complete()
                leg.end("sealed", 0, episode=episode)
                await wait_all_tasks_blocked()
                if properly:
                    leg.hang_up()
                else:
                    leg.drop()
                assert "degraded" not in kinds(await at_hand(subscription, 60))
                await scene.dialer.no_dial()
                await scene.apply(BeginAttempt(run_id="run1", token=str(attempt)))
                episode = await scene.live_episode()
                started = trio.current_time()
                await wait_all_tasks_blocked()
                assert 1 == len(scene.dialer.pending_dials)
                assert started == trio.current_time()


async def test_what_breaks_again_is_told_again(autojump_clock: MockClock) -> None:
    """GAPS_ARE_TOLD: each time the relay stops to work, and each time it works again, and why."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            for number in range(3):
                (await scene.dialer.next_dial()).fail(ReplicaNotFound(THERE, "no"))
                [*_, broken] = await until(subscription, Degraded)
                leg = (await scene.dialer.next_dial()).complete()
                scene.feed(leg, episode, ["x"], first_seq=number + 1)
                [*_, works] = await until(subscription, Degraded)
                expected = [(False, "replica there: no"), (True, "parts arrive again")]
                assert expected == [(getattr(told, "ok", 0), getattr(told, "message", 0)) for told in (broken, works)]
                leg.drop()


@pytest.mark.parametrize(("brings", "failures"), [("a new row", 0), ("a known row", 2), ("a foreign row", 2)])
async def test_only_a_row_that_was_asked_for_resets_the_retry(
    autojump_clock: MockClock, brings: str, failures: int
) -> None:
    """A peer that accepts every leg and gives nothing of use is dialed ever more slowly."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe():
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, episode, ["a"])
            await wait_all_tasks_blocked()
            leg.drop()
            (await scene.dialer.next_dial()).fail()
            leg = (await scene.dialer.next_dial()).complete()
            of = attrs.evolve(episode, run_id="foreign") if brings == "a foreign row" else episode
            scene.feed(leg, of, ["x"], first_seq=1 if brings == "a known row" else 2)
            await wait_all_tasks_blocked()
            started = trio.current_time()
            leg.drop()
            await scene.dialer.next_dial()
            assert pytest.approx(0.999 * 0.5 * 2**failures) == trio.current_time() - started


async def test_who_has_a_leg_again_does_not_rest(autojump_clock: MockClock) -> None:
    """A viewer that was waiting to dial, and has a leg since, is one that others live on."""
    async with open_scene(dial_retry_seconds=15.0) as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as waiting:
            hanging = await scene.dialer.next_dial()
            async with scene.subscribe():
                (await scene.dialer.next_dial()).fail()
                leg = (await scene.dialer.next_dial()).complete()
                scene.feed(leg, episode, ["a"])
                hanging.fail()
                await until(waiting, MessagePart)
                await wait_all_tasks_blocked()
                started = trio.current_time()
            await scene.dialer.next_dial()
            assert started == trio.current_time()


@pytest.mark.parametrize("where", [HERE, ELSEWHERE])
async def test_a_degradation_ends_with_its_worker(autojump_clock: MockClock, where: str) -> None:
    """What was told of one worker does not stand when the chat has moved on."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            (await scene.dialer.next_dial()).fail(ReplicaNotFound(THERE, "no"))
            await until(subscription, Degraded, what="relay", ok=False)
            await scene.acquire(where, dead=THERE)
            await until(subscription, Degraded, what="relay", ok=True)


@pytest.mark.parametrize("error", [ReplicaNotFound, BadReplicaAddress, DialError])
async def test_a_worker_that_cannot_be_reached_is_told_and_retried(
    autojump_clock: MockClock, error: type[DialError]
) -> None:
    """ALWAYS_RETRIES: an unresolvable worker, a malformed address, a peer that drops at once."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            for _ in range(6):
                (await scene.dialer.next_dial()).fail(error(THERE, "no"))
            await until(subscription, Degraded, what="relay", ok=False)


async def test_a_store_error_at_the_recheck_loses_no_retry(autojump_clock: MockClock) -> None:
    """The read before a dial may fail or hang: the dial is made all the same."""

    class Failing(MemoryStore):
        mode = "ok"

        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            if self.mode == "fail":
                raise StoreUnavailable("no answer")
            if self.mode == "hang":
                await trio.sleep_forever()
            return await super().read_view(chat_id, base)

    for mode in ("fail", "hang"):
        async with open_scene() as scene:
            await scene.acquire(THERE)
            store = Failing()
            store.__dict__.update(scene.memory.__dict__)
            scene.replica = attrs.evolve(scene.replica, store=store)
            async with scene.subscribe():
                store.mode = mode
                for failures in range(4):
                    started = trio.current_time()
                    (await scene.dialer.next_dial()).fail()
                    waited = trio.current_time() - started
                    assert waited <= 0.5 * 2**failures + scene.replica.settings.look_again_seconds


async def test_the_last_other_filler_leaves_its_copy_to_who_waits(autojump_clock: MockClock) -> None:
    """A viewer whose own leg failed, and who lived on another's, dials at once when that one leaves."""
    async with open_scene(dial_retry_seconds=15.0) as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as waiting:
            failing = await scene.dialer.next_dial()
            async with scene.subscribe() as filling:
                leg = (await scene.dialer.next_dial()).complete()
                failing.fail()
                scene.feed(leg, episode, ["a"])
                assert ["a"] == texts(await until(filling, MessagePart))
                assert ["a"] == texts(await until(waiting, MessagePart))
            started = trio.current_time()
            second = (await scene.dialer.next_dial()).complete()
            assert started == trio.current_time()
            assert 1 == (await second.selected()).after_seq


async def test_all_who_lived_on_one_leg_dial_when_it_goes(autojump_clock: MockClock) -> None:
    """Several may be waiting; and one that leaves while it waits itself wakes nobody."""
    async with open_scene(dial_retry_seconds=15.0) as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe(), scene.subscribe():
            failing = [await scene.dialer.next_dial() for _ in range(2)]
            async with scene.subscribe():
                leg = (await scene.dialer.next_dial()).complete()
                for dial in failing:
                    dial.fail()
                scene.feed(leg, episode, ["a"])
                await wait_all_tasks_blocked()
            started = trio.current_time()
            again = [await scene.dialer.next_dial() for _ in range(2)]
            assert started == trio.current_time()
            async with scene.subscribe():
                (await scene.dialer.next_dial()).fail()
                for dial in again:
                    dial.fail()
                await wait_all_tasks_blocked()
            await scene.dialer.no_dial()


async def test_two_viewers_fill_one_copy(autojump_clock: MockClock) -> None:
    """Each row counts once, whichever leg brings it first."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as one, scene.subscribe() as other:
            legs = [(await scene.dialer.next_dial()).complete() for _ in range(2)]
            scene.feed(legs[0], episode, ["a", "b"])
            scene.feed(legs[1], episode, ["a"])
            scene.feed(legs[1], episode, ["b", "c"], first_seq=2)
            for subscription in (one, other):
                assert ["a", "b", "c"] == texts(await until(subscription, MessagePart, seq=3))


async def test_only_parts_travel_and_others_logs_stay_untouched(autojump_clock: MockClock) -> None:
    """Rows of an episode that this relay never asked for change nothing."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            scene.feed(leg, attrs.evolve(episode, run_id="foreign"), ["evil"])
            scene.feed(leg, attrs.evolve(episode, generation_attempt=9), ["evil"])
            scene.feed(leg, episode, ["good"])
            assert ["good"] == texts(await until(subscription, MessagePart))
            assert 1 == len(scene.parts)


@pytest.mark.parametrize("moment", ["dial", "select", "retry", "reading", "refused", "idle"])
async def test_leaving_is_prompt_whatever_the_relay_is_doing(autojump_clock: MockClock, moment: str) -> None:
    """NO_LEAK: in the middle of a dial, a select, a retry delay: nothing is left, in no time."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        before = trio.lowlevel.current_statistics().tasks_living
        async with scene.subscribe() as subscription:
            dial = await scene.dialer.next_dial()
            if moment == "retry":
                dial.fail()
            elif moment == "refused":
                dial.fail(DialRefused(THERE, "403"))
                (await scene.dialer.next_dial()).fail(DialRefused(THERE, "403"))
            elif moment != "dial":
                leg = dial.complete()
                if moment != "select":
                    scene.feed(leg, episode, ["a"])
                    await until(subscription, MessagePart)
                if moment == "idle":
                    leg.end("sealed", 1, episode=episode)
            await wait_all_tasks_blocked()
            started = trio.current_time()
        assert started == trio.current_time()
        await wait_all_tasks_blocked()
        assert before == trio.lowlevel.current_statistics().tasks_living
        scene.dialer.assert_quiet()
        assert scene.log(episode).ended


async def test_closed_notifications_cost_nothing(autojump_clock: MockClock) -> None:
    """NO_SPIN: the relay goes on with what it knows, and takes no steps."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await until(subscription, CaughtUp)
            notifications = subscription._watch.notifications
            assert notifications is not None
            notifications.close()
            await wait_all_tasks_blocked()
            steps = _Steps()
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(5)
            trio.lowlevel.remove_instrument(steps)
            assert steps.count < 10
            scene.feed(leg, episode, ["a"])
            assert ["a"] == texts(await until(subscription, MessagePart))


class _Steps(trio.abc.Instrument):
    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_a_failing_relay_of_ones_own_leaves_as_one_exception(autojump_clock: MockClock) -> None:
    """A hook's error is the engine's failure to the viewer, with its cause."""

    class Broken:
        @asynccontextmanager
        async def open(self, params: RelayParams) -> AsyncIterator[None]:
            raise ZeroDivisionError
            yield

    async with open_scene(relay=Broken()) as scene:
        await scene.acquire(THERE)
        with pytest.raises(SubscriptionFailed) as caught:
            async with scene.subscribe() as subscription:
                await at_hand(subscription, 60)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_an_interrupted_chat_still_runs_there(autojump_clock: MockClock) -> None:
    """`interrupting` counts as running elsewhere: the last parts before the Stop are seen."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await until(subscription, CaughtUp)
            await scene.apply(Interrupt())
            await until(subscription, Status, status="interrupting")
            await trio.sleep(1)
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            leg.end("sealed", 1, episode=episode)
            await scene.apply(FinishInterruption(run_id="run1", token="t"))
            events += await until(subscription, PreviewReset)
        assert ["nothing_kept"] == [event.reason for event in events if isinstance(event, PreviewReset)]
        assert not [event for event in events if isinstance(event, MessageEvent)]
