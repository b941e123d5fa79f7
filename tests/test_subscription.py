"""One viewer: what it gets, in which order, and what leaves with it."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._errors import ChatDeleted, ChatNotFound, ConfigurationError, StoreUnavailable, SubscriptionFailed
from relaytrio._frames import Frame, framed
from relaytrio._protocol import wire
from relaytrio._protocol.burst import SEPARATOR
from relaytrio._protocol.chat import BeginAttempt, EditMessage, FinishInterruption, Interrupt, RecordRetry
from relaytrio._protocol.events import (
    CaughtUp,
    Cursor,
    Degraded,
    Event,
    HistoryReset,
    MessageEvent,
    MessagePart,
    MessageRef,
    PreviewReset,
    RetryState,
    Status,
)
from relaytrio.stores._base import View
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import check_stream, text_burst
from tests.scene import HERE, THERE, assistant, at_hand, kinds, open_scene, seqs, texts, until


async def test_a_viewer_gets_history_state_and_local_parts_in_order(autojump_clock: MockClock) -> None:
    """History, queue, status, caught_up, then live parts, then the message: the whole of a turn."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            assert ["message", "queue_update", "status", "caught_up"] == kinds(events)
            scene.make_parts(episode, "a", "b")
            events += await until(subscription, MessagePart, seq=2)
            scene.make_parts(episode, "c")
            scene.log(episode).seal()
            await scene.finish("abc")
            events += await until(subscription, Status, status="waiting")
        assert ["a", "b", "c"] == texts(events)
        assert ["message_part", "message", "status"] == kinds(events)[-3:]
        check_stream(events)


async def test_last_parts_go_before_the_message(autojump_clock: MockClock) -> None:
    """LAST_PARTS: rows that are here when the turn ends are seen before its message, however late the viewer reads."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            scene.make_parts(episode, *"abcdef")
            scene.log(episode).seal()
            await scene.finish("abcdef")
            events = await until(subscription, MessageEvent)
        assert list("abcdef") == texts(events)


async def test_a_message_waits_for_no_log_that_is_not_here(autojump_clock: MockClock) -> None:
    """NEVER_HANGS: where no part of an episode can come from, its message comes at once."""
    async with open_scene() as scene:
        await scene.acquire(THERE)
        async with scene.subscribe(relay=False) as subscription:
            await until(subscription, CaughtUp)
            started = trio.current_time()
            await scene.finish("answer")
            await until(subscription, MessageEvent)
            assert started == trio.current_time()


async def test_a_resumed_viewer_gets_exactly_the_rest(autojump_clock: MockClock) -> None:
    """CATCH_UP: no message and no part that the cursor covers is sent again."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        scene.make_parts(episode, *"aaaaaa")
        for seen in range(1, 6):
            async with scene.subscribe() as subscription:
                await until(subscription, MessagePart, seq=seen)
                cursor = subscription.cursor
            async with scene.subscribe(cursor) as subscription:
                events = await at_hand(subscription)
            assert list(range(seen + 1, 7)) == seqs(events)
            assert "message" not in kinds(events)


async def test_a_cursor_is_the_same_in_frames_as_in_events(autojump_clock: MockClock) -> None:
    """Ready frames hold the same events, and their cursor is that of their last one."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        scene.make_parts(episode, *"abc")
        async with scene.subscribe() as one, scene.subscribe() as other:
            events = await at_hand(one)
            framed = []
            with trio.move_on_after(1):
                async for frame in other.frames():
                    framed += wire.decode_frame(frame.data)
                    assert frame.cursor == framed[-1].cursor == other.cursor
        assert [wire.encode_event(event) for event in events] == [wire.encode_event(event) for event in framed]


async def test_bursts_are_the_same_events_as_they_came(autojump_clock: MockClock) -> None:
    """What is there when the viewer asks comes at once, with the cursor behind it; cancelled, nothing is taken."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        scene.make_parts(episode, *"abc")
        async with scene.subscribe() as one, scene.subscribe() as other:
            events = await at_hand(one)
            bursts = []
            with trio.move_on_after(1):
                async for burst in other.bursts():
                    bursts.append(list(burst))
                    assert other.cursor == burst[-1].cursor
            assert events == [event for burst in bursts for event in burst]
            assert [1, 2, 3] == seqs(bursts[-1])
            scene.make_parts(episode, *"de")
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(other.bursts())
            assert [4, 5] == seqs(await anext(other.bursts()))


def given_by(some: Event | Sequence[Event] | Frame) -> Sequence[Event]:
    """The events of what a reader gave."""
    if isinstance(some, Frame):
        return wire.decode_frame(some.data)
    return some if isinstance(some, Sequence) else [some]


@pytest.mark.parametrize("first", ["events", "bursts", "frames"])
@pytest.mark.parametrize("then", ["events", "bursts", "frames"])
async def test_whoever_reads_on_gets_what_the_one_before_has_left(
    first: str, then: str, autojump_clock: MockClock
) -> None:
    """ORDER: a loop that was left in the middle of what came together takes nothing away from the next one, of whatever
    kind; the cursor is that of the last event that was given."""
    async with open_scene(burst_bytes=1) as scene:
        await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await at_hand(subscription)

        got: list[Event] = []
        async with scene.subscribe() as subscription:
            readers: dict[str, Callable[[], AsyncIterator[Any]]] = {
                "events": lambda: aiter(subscription),
                "bursts": subscription.bursts,
                "frames": subscription.frames,
            }
            got += given_by(await anext(readers[first]()))
            assert subscription.cursor == got[-1].cursor
            with trio.move_on_after(1):
                async for some in readers[then]():
                    got += given_by(some)
                    assert subscription.cursor == got[-1].cursor
        assert len(events) > 2
        assert [wire.encode_event(event) for event in events] == [wire.encode_event(event) for event in got]


@given(sizes=st.lists(st.integers(0, 40), min_size=1), limit=st.integers(0, 200))
def test_frames_of_events_are_cut_at_the_limit(sizes: list[int], limit: int) -> None:
    """BOUNDED: the rows of a frame are within the limit, unless it is one alone; none is smaller than need be."""
    events = tuple(CaughtUp(cursor=f"{number}".rjust(size, "x")) for number, size in enumerate(sizes))
    frames = list(framed(events, limit))
    cut = [wire.decode_frame(frame.data) for frame in frames]
    assert list(events) == [event for inside in cut for event in inside]
    assert [inside[-1].cursor for inside in cut] == [frame.cursor for frame in frames]
    weights = [len(frame.data) - len(b"[]") for frame in frames]
    assert all(weight <= limit or len(inside) == 1 for weight, inside in zip(weights, cut, strict=True))
    for weight, following in zip(weights, cut[1:], strict=False):
        assert weight + len(SEPARATOR) + len(wire.encode_event(following[0])) > limit


async def test_before_the_first_event_the_cursor_is_the_one_given(autojump_clock: MockClock) -> None:
    """A viewer who leaves at once has had what it came with."""
    async with open_scene() as scene, scene.subscribe("1-other") as subscription:
        assert "1-other" == subscription.cursor


async def test_after_message_id_catches_up_without_repeats(autojump_clock: MockClock) -> None:
    """A viewer that knows an id only gets what follows it, and a whole cursor."""
    async with open_scene() as scene:
        await scene.acquire(HERE)
        async with scene.subscribe(after_message_id=1) as subscription:
            events = await until(subscription, CaughtUp)
        assert ["queue_update", "status", "caught_up"] == kinds(events)
        assert events[-1].cursor.startswith("1-")
        assert events[-1].cursor != "1-"


async def test_history_comes_in_pages_and_rows_after_all_of_it(autojump_clock: MockClock) -> None:
    """More messages than a page holds are all sent, by id, before any row of the live episode."""
    async with open_scene(page_messages=3) as scene:
        for number in range(4):
            await scene.acquire(HERE)
            await scene.finish(f"answer {number}")
            await scene.send(f"question {number}")
        episode = await scene.acquire(HERE)
        scene.make_parts(episode, "a")
        started = trio.current_time()
        async with scene.subscribe() as subscription:
            events = await until(subscription, MessagePart)
        assert started == trio.current_time()
        assert list(range(1, 10)) == [event.message.id for event in events if isinstance(event, MessageEvent)]
        assert ["queue_update", "status", "caught_up", "message_part"] == kinds(events)[-4:]
        check_stream(events)


async def test_a_commit_between_subscribe_and_read_is_seen_once(autojump_clock: MockClock) -> None:
    """SUBSCRIBE_FIRST: hints are listened to before the first read."""

    class Committing(MemoryStore):
        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            view = await super().read_view(chat_id, base)
            if scene.runs == 0:
                await scene.acquire(HERE)
                await scene.finish("quick")
            return view

    async with open_scene() as scene:
        late = Committing()
        late.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=late)
        started = trio.current_time()
        async with scene.subscribe() as subscription:
            events = await until(subscription, Status, status="waiting")
        assert started == trio.current_time()
        assert [1, 2] == [event.message.id for event in events if isinstance(event, MessageEvent)]


async def test_lost_hints_change_nothing_but_timing(autojump_clock: MockClock) -> None:
    """NO_LOSS: the poll finds what no hint announced, within one interval."""
    async with open_scene() as scene:
        scene.announcing = False
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            await scene.acquire(HERE)
            await scene.finish("unheard")
            started = trio.current_time()
            events = await until(subscription, Status, status="waiting")
            assert trio.current_time() - started <= scene.replica.settings.poll_seconds
        assert [2] == [event.message.id for event in events if isinstance(event, MessageEvent)]


async def test_a_hint_of_what_the_store_does_not_have_is_looked_for_once(autojump_clock: MockClock) -> None:
    """NO_SPIN: a version that was lost with a restore, or never was, costs one read."""

    class Counting(MemoryStore):
        reads = 0

        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            self.reads += 1
            return await super().read_view(chat_id, base)

    async with open_scene() as scene:
        store = Counting()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            scene.hints.announce(attrs.evolve(await scene.memory.read_chat("c"), snapshot_version=999))
            with trio.move_on_after(1):
                await subscription.__anext__()
            assert 2 == store.reads


async def test_an_edit_below_the_cursor_resets_the_history(autojump_clock: MockClock) -> None:
    """A viewer whose last message was deleted is told where to cut, and gets what stands now."""
    async with open_scene() as scene:
        await scene.acquire(HERE)
        await scene.finish("first answer")
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            await scene.apply(EditMessage(message_id=1, content=[{"type": "text", "text": "better"}]))
            events += await until(subscription, Status, status="running")
        resets = [event for event in events if isinstance(event, HistoryReset)]
        assert [0] == [reset.after_id for reset in resets]
        assert [1, 2, 3] == [event.message.id for event in events if isinstance(event, MessageEvent)]
        check_stream(events)


async def test_a_cursor_of_another_life_of_the_store_starts_over(autojump_clock: MockClock) -> None:
    """A stamp that the store does not know: all of the history, after a reset."""
    async with open_scene() as scene:
        async with scene.subscribe("1-other") as subscription:
            events = await until(subscription, CaughtUp)
        assert ["history_reset", "message"] == kinds(events)[:2]


async def test_a_failed_attempt_is_reset_and_the_next_begins_at_one(autojump_clock: MockClock) -> None:
    """A late joiner during the delay sees the retry and no part; who saw parts is told they are void."""
    async with open_scene() as scene:
        first = await scene.acquire(HERE)
        scene.make_parts(first, "x", "y")
        async with scene.subscribe() as subscription:
            events = await until(subscription, MessagePart, seq=2)
            scene.log(first).seal()
            retry = RetryState(attempt=1, delay_seconds=2.0, error="busy")
            await scene.apply(RecordRetry(run_id="run1", token="t1", retry=retry))
            events += await until(subscription, PreviewReset)
            assert ["status", "retry", "preview_reset"] == kinds(events)[-3:]
            assert "new_attempt" == getattr(events[-1], "reason", None)
            async with scene.subscribe() as late:
                joined = await at_hand(late)
            assert "retry" in kinds(joined)
            assert [] == texts(joined)
            await scene.apply(BeginAttempt(run_id="run1", token="t2"))
            second = await scene.live_episode()
            scene.parts.make("c", second)
            scene.make_parts(second, "z")
            events += await until(subscription, MessagePart, seq=1)
            async with scene.subscribe() as after:
                assert "retry" not in kinds(await at_hand(after))
        assert ["x", "y", "z"] == texts(events)
        check_stream(events)


async def test_a_stop_during_the_delay_does_not_bring_the_failed_parts_back(autojump_clock: MockClock) -> None:
    """SUPERSEDED: after its failure was announced, no part of an attempt, however the status goes on."""
    async with open_scene() as scene:
        first = await scene.acquire(HERE)
        scene.make_parts(first, "x", "y")
        async with scene.subscribe() as subscription:
            events = await until(subscription, MessagePart, seq=2)
            scene.log(first).seal()
            retry = RetryState(attempt=1, delay_seconds=2.0, error="busy")
            await scene.apply(RecordRetry(run_id="run1", token="t1", retry=retry))
            events += await until(subscription, PreviewReset)
            await scene.apply(Interrupt())
            events += await at_hand(subscription)
            async with scene.subscribe(subscription.cursor) as resumed:
                assert [] == texts(await at_hand(resumed))
            await scene.apply(FinishInterruption(run_id="run1", token="t2", messages=(assistant("xy"),)))
            events += await until(subscription, Status, status="waiting")
        assert ["x", "y"] == texts(events)
        check_stream(events)


async def test_a_slow_viewer_is_told_what_it_missed(autojump_clock: MockClock) -> None:
    """GAPS_ARE_TOLD, BOUNDED: past the log's limit the oldest rows go, and the viewer goes on where rows are left."""
    async with open_scene(part_log_bytes=20_000, burst_bytes=1_000) as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            await wait_all_tasks_blocked()
            for number in range(1_000):
                scene.make_parts(episode, str(number))
                if number % 20 == 0:
                    await wait_all_tasks_blocked()
            scene.log(episode).seal()
            await scene.finish("all")
            events += await until(subscription, Status, status="waiting")
        resets = [event for event in events if isinstance(event, PreviewReset)]
        assert ["truncated"] * len(resets) == [reset.reason for reset in resets]
        assert resets
        assert 1_000 == seqs(events)[-1]
        check_stream(events)


async def test_a_viewer_that_never_reads_delays_nobody(autojump_clock: MockClock) -> None:
    """DIAL_IS_ASIDE: others get everything, and leaving is prompt."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe(), scene.subscribe() as other:
            for number in range(100):
                scene.make_parts(episode, str(number))
                await wait_all_tasks_blocked()
            events = await at_hand(other)
        assert 100 == len(texts(events))


async def test_parts_before_the_status_that_announces_them(autojump_clock: MockClock) -> None:
    """Rows of a newer episode stay in their log and make watch look: no hint is needed on the worker's own replica."""
    async with open_scene() as scene:
        scene.announcing = False
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            episode = await scene.acquire(HERE)
            scene.make_parts(episode, "a")
            events = await at_hand(subscription)
        assert ["status", "message_part"] == kinds(events)


async def test_only_a_newer_episode_that_appears_is_a_reason_to_look(autojump_clock: MockClock) -> None:
    """NO_LOSS, NO_SPIN: what this viewer cannot know yet is looked for at once; an older copy costs no read."""

    class Counting(MemoryStore):
        reads = 0

        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            self.reads += 1
            return await super().read_view(chat_id, base)

    async with open_scene() as scene:
        store = Counting()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store)
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            scene.parts.make("c", attrs.evolve(episode, history_version=0))
            await wait_all_tasks_blocked()
            assert 1 == store.reads
            scene.announcing = False
            newer = await scene.acquire(HERE, dead=HERE)
            scene.make_parts(newer, "a")
            assert ["a"] == texts(await at_hand(subscription, 1))


async def test_who_works_through_a_burst_lets_others_run(autojump_clock: MockClock) -> None:
    """A checkpoint every 64 events, counted from the last wait, however many rows there are at hand."""

    class Yields(trio.abc.Instrument):
        def __init__(self) -> None:
            self.count = 0

        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            self.count += task is me

    async with open_scene() as scene:
        me = trio.lowlevel.current_task()
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            scene.make_parts(episode, *map(str, range(200)))
            await subscription.__anext__()
            yields = Yields()
            trio.lowlevel.add_instrument(yields)
            counts = []
            for _ in range(199):
                await subscription.__anext__()
                counts.append(yields.count)
            trio.lowlevel.remove_instrument(yields)
        assert [0] * 62 + [1] * 64 + [2] * 64 + [3] * 9 == counts


async def test_no_row_after_the_turn_ended(autojump_clock: MockClock) -> None:
    """SUPERSEDED: rows that come after the message of their episode reach nobody."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            await scene.finish("done")
            await until(subscription, Status, status="waiting")
            scene.make_parts(episode, "late")
            assert [] == await at_hand(subscription, 3600.0)


class Failing(MemoryStore):
    """Reads of it fail for as long as the test says so."""

    failing = False

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        if self.failing:
            raise StoreUnavailable("no answer")
        return await super().read_view(chat_id, base)


async def test_store_errors_are_told_and_the_stream_goes_on(autojump_clock: MockClock) -> None:
    """A store that fails for a while is told as degraded, and what happened meanwhile comes afterwards."""

    async with open_scene() as scene:
        store = Failing()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            store.failing = True
            await scene.acquire(HERE)
            await until(subscription, Degraded, what="store", ok=False)
            await trio.sleep(60)
            store.failing = False
            events = await at_hand(subscription, 60)
        assert {"degraded", "status"} == set(kinds(events))
        assert [True] == [event.ok for event in events if isinstance(event, Degraded)]


async def test_a_failed_read_is_made_again_soon_and_both_are_told(autojump_clock: MockClock) -> None:
    """Neither a hint nor the poll is needed for it, and the viewer learns why it waited."""

    class FailingOnce(MemoryStore):
        failing = False

        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            if self.failing:
                self.failing = False
                raise StoreUnavailable("no answer")
            return await super().read_view(chat_id, base)

    async with open_scene() as scene:
        store = FailingOnce()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            store.failing = True
            started = trio.current_time()
            await scene.send("more")
            events = await until(subscription, Status)
            assert trio.current_time() - started <= scene.replica.settings.store_retry_seconds
            events += await at_hand(subscription)
        told = [(event.ok, event.message) for event in events if isinstance(event, Degraded)]
        assert [(False, "no answer"), (True, "the store answers again")] == told


async def test_an_idle_chat_is_read_no_more(autojump_clock: MockClock) -> None:
    """NO_SPIN: the poll compares with what this viewer has read, with and without messages in its last view."""

    class Counting(MemoryStore):
        reads = 0

        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            self.reads += 1
            return await super().read_view(chat_id, base)

    async with open_scene(page_messages=1) as scene:
        store = Counting()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store)
        await scene.acquire(HERE)
        await scene.finish("answer")
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            before = store.reads
            await trio.sleep(3600)
            assert before == store.reads
            await scene.send("next")
            await scene.acquire(HERE)
            await until(subscription, Status, status="running", worker_id=HERE)
            before = store.reads
            await trio.sleep(3600)
            assert before == store.reads
            scene.announcing = False
            await scene.finish("unheard")
            await until(subscription, MessageEvent, cursor=str(Cursor(scene.last)))


async def test_who_hears_that_the_store_is_back_does_not_wait(autojump_clock: MockClock) -> None:
    """A hint says that somebody has reached the store: the pause between tries, long by now, ends with it."""

    async with open_scene() as scene:
        store = Failing()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store, random=lambda: 1.0)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            store.failing = True
            await scene.acquire(HERE)
            await until(subscription, Degraded, what="store", ok=False)
            await trio.sleep(601)
            store.failing = False
            returned = trio.current_time()
            await scene.finish("answer")
            await until(subscription, Status, status="waiting")
            assert trio.current_time() - returned <= 1.0


async def test_a_read_that_hangs_counts_as_failed(autojump_clock: MockClock) -> None:
    """NEVER_HANGS: one lost answer of the store is told, and the next read brings what was missed."""

    class Hanging(MemoryStore):
        hanging = False

        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            if self.hanging:
                self.hanging = False
                await trio.sleep_forever()
            return await super().read_view(chat_id, base)

    async with open_scene() as scene:
        store = Hanging()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            store.hanging = True
            await scene.acquire(HERE)
            await until(subscription, Degraded, what="store", ok=False)
            await scene.finish("answer")
            assert "message" in kinds(await until(subscription, Status, status="waiting"))


async def test_whoever_looks_again_waits_for_a_read_that_began_afterwards(autojump_clock: MockClock) -> None:
    """What a read under way has seen may be older than the reason to look: it is the next one that counts."""

    class Slow(MemoryStore):
        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            view = await super().read_view(chat_id, base)
            await trio.sleep(0.5)
            return view

    async with open_scene() as scene:
        store = Slow()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store)
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            started = trio.current_time()
            await subscription._watch.look_again()
            assert pytest.approx(0.5) == trio.current_time() - started
            subscription._watch.look()
            await trio.sleep(0.1)
            await subscription._watch.look_again()
            assert pytest.approx(1.5) == trio.current_time() - started


async def test_a_deleted_chat_ends_the_stream(autojump_clock: MockClock) -> None:
    """The viewer is told so, and an unknown chat is refused at the door."""
    async with open_scene() as scene:
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            await scene.memory.delete_chat("c")
            scene.hints.announce_deleted("c")
            with pytest.raises(ChatDeleted):
                await at_hand(subscription, 5)
        with pytest.raises(ChatNotFound):
            async with scene.subscribe():
                pass


async def test_an_exception_of_the_body_leaves_as_it_is(autojump_clock: MockClock) -> None:
    """Not in a group, and with its own context."""
    async with open_scene() as scene:
        context = KeyError("context")
        with pytest.raises(ValueError, match="mine") as caught:
            async with scene.subscribe():
                try:
                    raise context
                except KeyError:
                    raise ValueError("mine")  # noqa: B904 - its context is what is looked at
        assert context is caught.value.__context__


async def test_a_failure_of_the_engine_leaves_as_one_exception_of_ours(autojump_clock: MockClock) -> None:
    """The body is cancelled, and told why when it leaves."""

    class Broken(MemoryStore):
        async def read_view(self, chat_id: str, base: MessageRef) -> View:
            if scene.runs:
                raise ZeroDivisionError
            return await super().read_view(chat_id, base)

    async with open_scene() as scene:
        store = Broken()
        store.__dict__.update(scene.memory.__dict__)
        scene.replica = attrs.evolve(scene.replica, store=store)
        with pytest.raises(SubscriptionFailed) as caught:
            async with scene.subscribe() as subscription:
                await scene.acquire(HERE)
                await at_hand(subscription, 3600)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_the_callers_cancellation_is_not_swallowed(autojump_clock: MockClock) -> None:
    """A cancelled viewer is cancelled, not told of a failure."""
    async with open_scene() as scene:
        with trio.move_on_after(1) as scope:
            async with scene.subscribe() as subscription:
                async for _ in subscription:
                    pass
        assert scope.cancelled_caught


async def test_leaving_leaves_nothing(autojump_clock: MockClock) -> None:
    """NO_LEAK: no task, no hint listener, no log reader is left, whatever the viewer was doing."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(3):
            async with scene.subscribe() as subscription:
                scene.make_parts(episode, "a")
                await until(subscription, MessagePart)
        await wait_all_tasks_blocked()
        assert before == trio.lowlevel.current_statistics().tasks_living
        assert 0 == len(scene.hints)
        assert [] == scene.parts.watched
        assert {} == scene.parts._chat_wakes
        gc.collect()


async def test_two_readers_of_one_subscription_are_refused(autojump_clock: MockClock) -> None:
    """A stream has one reader; another is a mistake of the caller."""
    async with open_scene() as scene, scene.subscribe() as subscription:
        await until(subscription, CaughtUp)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.__anext__)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await subscription.__anext__()
            nursery.cancel_scope.cancel()


async def test_a_subscription_that_was_left_is_closed(autojump_clock: MockClock) -> None:
    """Reading on after the context is `trio.ClosedResourceError`."""
    async with open_scene() as scene:
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
        with pytest.raises(trio.ClosedResourceError):
            await subscription.__anext__()


async def test_a_subscription_is_read_inside_of_its_context_only(autojump_clock: MockClock) -> None:
    """One that was never entered would wait for ever, and one has one life: both are told to the caller."""
    async with open_scene() as scene:
        subscription = scene.subscribe()
        for reader in (subscription, subscription.bursts(), subscription.frames()):
            with pytest.raises(ConfigurationError, match="async with"):
                await anext(reader)
        async with subscription:
            await until(subscription, CaughtUp)
        with pytest.raises(ConfigurationError, match="once"):
            await subscription.__aenter__()
        assert 0 == len(scene.hints)


async def test_a_part_of_any_text_passes_through_unchanged(autojump_clock: MockClock) -> None:
    """Nothing is decoded on the way: what the worker encoded is what the viewer gets."""
    odd = ["\n", ",\n", '"}],\n[{"', "\u2028", "", "ä漢😀"]
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        scene.log(episode).append(text_burst(episode, odd).split())
        async with scene.subscribe() as subscription:
            assert odd == texts(await at_hand(subscription))


async def test_rows_of_the_next_episode_wake_the_viewer(autojump_clock: MockClock) -> None:
    """DIAL_IS_ASIDE: the log of the episode that is live now is watched, not that of the first."""
    async with open_scene() as scene, trio.open_nursery() as nursery:
        first = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            scene.make_parts(first, "a")
            await until(subscription, MessagePart)
            scene.log(first).seal()
            scene.announcing = False
            await scene.apply(BeginAttempt(run_id="run1", token="t"))
            second = await scene.live_episode()
            scene.parts.make("c", second)
            await at_hand(subscription, 1)
            started = trio.current_time()

            async def send_later() -> None:
                await trio.sleep(1)
                scene.make_parts(second, "b")

            nursery.start_soon(send_later)
            with trio.fail_after(5):
                await until(subscription, MessagePart, episode=second)
            assert started + 1 == trio.current_time()
