"""The numbered races of a viewer: what is committed and sent while it comes, reads, is slow, or is away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._protocol.chat import (
    Abandon,
    BeginAttempt,
    Command,
    Commit,
    DeleteQueued,
    EditMessage,
    FinishTurn,
    RecordRetry,
)
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import (
    CaughtUp,
    Cursor,
    Event,
    HistoryReset,
    MessageEvent,
    MessagePart,
    PreviewReset,
    RetryState,
    Status,
)
from relaytrio.testing import Reconnected, Seam, Seams, check_stream, text_of
from tests.races.race import race
from tests.scene import HERE, THERE, Scene, assistant, at_hand, kinds, open_scene, seqs, texts, until

RETRY = RetryState(attempt=1, delay_seconds=60.0, error="busy")
LATE: Seam = "rows came, not laid down"


def message_ids(events: Sequence[Event]) -> list[int]:
    return [event.message.id for event in events if isinstance(event, MessageEvent)]


def statuses(events: Sequence[Event]) -> list[str]:
    return [event.status for event in events if isinstance(event, Status)]


async def goes_on(scene: Scene, command: Command) -> None:
    """A transition of a run here that begins another episode: its log is made before anybody hears of it."""
    scene.announcing = False
    await scene.apply(command)
    scene.parts.make(scene.chat_id, await scene.live_episode())
    scene.announcing = True
    scene.hints.announce(await scene.memory.read_chat(scene.chat_id))


# --------------------------------------------------------------------------------------- 14: subscribe, then read


@race(14, "watching, not read")
async def test_14_a_commit_between_subscribe_and_read(seams: Seams) -> None:
    """SUBSCRIBE_FIRST: it is in the first read, once, and its hint is no reason for another one."""
    async with open_scene() as scene:
        stop = seams.stop("watching, not read")

        async def commit() -> None:
            async with stop:
                await scene.acquire(HERE)
                await scene.finish("quick")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            async with scene.subscribe() as subscription:
                events = await at_hand(subscription)
                assert 1 == seams.passed["view read, not laid down"]
                events += await at_hand(subscription, 60)
    assert [1, 2] == message_ids(events)
    assert ["waiting"] == statuses(events)
    check_stream(events)


@race(14, "view read, not laid down")
async def test_14_a_commit_between_the_first_read_and_what_follows_it(seams: Seams) -> None:
    """SUBSCRIBE_FIRST: the hint of what the read just missed came before the read was laid down, and still counts."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        stop = seams.stop("view read, not laid down")

        async def commit() -> None:
            async with stop:
                scene.log(episode).seal()
                await scene.finish("quick")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            async with scene.subscribe() as subscription:
                events = await until(subscription, Status, status="waiting")
                assert 0.0 == trio.current_time()
                events += await at_hand(subscription, 60)
    assert [1, 2] == message_ids(events)
    check_stream(events)


@race(14, "view read, not laid down")
async def test_14_a_commit_between_a_later_read_and_what_follows_it(seams: Seams) -> None:
    """The same under way: two messages of one transition that a read of the queue just missed come at once, once."""
    async with open_scene() as scene:
        await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            stop = seams.stop("view read, not laid down")
            await scene.send("behind")
            async with stop:
                await _finish_and_promote(scene)
            events += await until(subscription, MessagePart, seq=2)
            assert 0.0 == trio.current_time()
            events += await at_hand(subscription, 60)
    assert [1, 2, 3] == message_ids(events)
    assert ["d", "e"] == texts(events)
    check_stream(events)


@race(14, "poll read, not compared")
async def test_14_a_commit_between_a_poll_and_its_comparison(seams: Seams) -> None:
    """NO_LOSS: what the poll has read is old when it is compared; the next one finds what no hint told, once."""
    async with open_scene() as scene:
        await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            scene.announcing = False
            async with seams.stop("poll read, not compared"):
                scene.log(await scene.live_episode()).seal()
                await scene.finish("unheard")
            committed_at = trio.current_time()
            events += await until(subscription, Status, status="waiting")
            assert trio.current_time() - committed_at <= scene.replica.settings.poll_seconds
            events += await at_hand(subscription, 60)
    assert [1, 2] == message_ids(events)
    check_stream(events)


Step = Callable[[Scene], Awaitable[object]]


async def _first_parts(scene: Scene) -> None:
    await scene.acquire(HERE)
    scene.make_parts(await scene.live_episode(), "a", "a", "b")


async def _commit(scene: Scene) -> None:
    scene.log(await scene.live_episode()).seal()
    await goes_on(scene, Commit(run_id="run1", token="commit", messages=(assistant("aab"),)))
    scene.make_parts(await scene.live_episode(), "c")


async def _fill_queue(scene: Scene) -> None:
    await scene.send("second question")
    await scene.send("third question")


async def _unqueue(scene: Scene) -> None:
    await scene.apply(DeleteQueued(queued_id=2))


async def _finish_and_promote(scene: Scene) -> None:
    """Two messages in one transition."""
    scene.log(await scene.live_episode()).seal()
    await goes_on(scene, FinishTurn(run_id="run1", token="finish", messages=(assistant("c"),)))
    scene.make_parts(await scene.live_episode(), "d", "e")


async def _edit_last(scene: Scene) -> None:
    """Below the last cursors, above the first ones."""
    scene.log(await scene.live_episode()).seal()
    await scene.apply(EditMessage(message_id=4, content=user_message("rather").content))


async def _answer(scene: Scene) -> None:
    await scene.acquire(HERE)
    scene.make_parts(await scene.live_episode(), "f")


async def _edit_first(scene: Scene) -> None:
    scene.log(await scene.live_episode()).seal()
    await scene.apply(EditMessage(message_id=1, content=user_message("from the start").content))


STORY: tuple[Step, ...] = (
    _first_parts,
    _commit,
    _fill_queue,
    _unqueue,
    _finish_and_promote,
    _edit_last,
    _answer,
    _edit_first,
)


@race(14, "watching, not read")
@pytest.mark.parametrize("step", range(len(STORY)))
async def test_14_every_cut_of_a_stream(seams: Seams, step: int) -> None:
    """CATCH_UP: whoever comes back with a cursor, wherever the stream was cut, while something happens between its
    subscribe and its read, ends with what a viewer shows that was never away, and is sent nothing twice."""
    async with open_scene() as scene, scene.subscribe() as faithful:
        events = await at_hand(faithful)
        for before in STORY[:step]:
            await before(scene)
            events += await at_hand(faithful)
        cuts = range(1, len(events) + 1)
        stops = [seams.stop("watching, not read") for _ in cuts]
        resumed: dict[int, list[Event]] = {}

        async def resume(cut: int) -> None:
            async with scene.subscribe(events[cut - 1].cursor) as subscription:
                resumed[cut] = await at_hand(subscription, 60)

        async with trio.open_nursery() as nursery:
            for cut in cuts:
                nursery.start_soon(resume, cut)
            for stop in stops:
                await stop.wait()
            await STORY[step](scene)
            for stop in stops:
                stop.release()
        expected = text_of(events + await at_hand(faithful, 60))
        for cut in cuts:
            stream: list[Event | Reconnected] = [*events[:cut], Reconnected(events[cut - 1].cursor), *resumed[cut]]
            check_stream(stream)
            assert expected == text_of(stream)


@race(14, "watching, not read", "view read, not laid down")
@pytest.mark.parametrize("after_id", [1, 2, 3, 4])
async def test_14_after_message_id_without_repeats(seams: Seams, after_id: int) -> None:
    """CATCH_UP: an id alone is enough, across two messages of one transition that is committed meanwhile."""
    async with open_scene() as scene:
        for step in (_first_parts, _commit, _fill_queue):
            await step(scene)
        stop = seams.stop("watching, not read")
        if after_id > 2:  # an id that the viewer can only know when the transition was committed
            await _finish_and_promote(scene)

        async def commit() -> None:
            async with stop:
                if after_id <= 2:
                    await _finish_and_promote(scene)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            async with scene.subscribe(after_message_id=after_id) as subscription:
                events = await at_hand(subscription, 60)
    assert list(range(after_id + 1, 5)) == message_ids(events)
    assert ["d", "e"] == texts(events)


@race(14, "watching, not read", "poll read, not compared")
@pytest.mark.parametrize("steps_lost", [1, 2, 4, 5])
async def test_14_a_store_that_is_set_back(seams: Seams, steps_lost: int) -> None:
    """CATCH_UP: between a subscribe and its read, or under a viewer: both end with what the store holds now, and the
    viewer goes on from its own cursor."""
    async with open_scene() as scene, scene.subscribe() as faithful:
        events, backups = await at_hand(faithful), []
        for step in STORY[:5]:
            backups.append(scene.memory.backup())
            await step(scene)
            events += await at_hand(faithful)
        stop = seams.stop("watching, not read")
        late: list[Event] = []

        async def resume() -> None:
            async with scene.subscribe(faithful.cursor) as subscription:
                late.extend(await at_hand(subscription, 60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(resume)
            async with stop:
                scene.memory.restore(backups[-steps_lost])
                # Whoever owned the chat then is gone: the episodes that it had are over.
                chat = await scene.memory.read_chat("c")
                if chat.run_id is not None:
                    await scene.memory.apply("c", Abandon(run_id=chat.run_id, token="gone"))
        after = await at_hand(faithful, 60)
        truth = [message.id for message in await scene.memory.list_messages("c")]
        for stream in ([*events, *after], [*events, Reconnected(events[-1].cursor), *late]):
            check_stream(stream)
            assert len(truth) == len(text_of(stream).history)
            assert "" == text_of(stream).preview
        assert isinstance(late[0], HistoryReset)


# ---------------------------------------------------------------------- 16: late joiners, slow viewers, same parts


@race(16, "watching, not read")
@pytest.mark.parametrize("at", ["watching, not read", "view read, not laid down"])
async def test_16_a_late_joiner_meets_a_retry(seams: Seams, at: Seam) -> None:
    """It sees the retry, and no part of the failed attempt after that; joining as the delay ends, it sees none."""
    async with open_scene() as scene:
        first = await scene.acquire(HERE)
        scene.make_parts(first, "x", "y")
        scene.log(first).seal()

        async def join(command: Command) -> list[Event]:
            stop = seams.stop(at)

            async def commit() -> None:
                async with stop:
                    if isinstance(command, BeginAttempt):
                        await goes_on(scene, command)
                        scene.make_parts(await scene.live_episode(), "z")
                    else:
                        await scene.apply(command)

            events: list[Event] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(commit)
                async with scene.subscribe() as subscription:
                    events = await at_hand(subscription, 30)
            return events

        during = await join(RecordRetry(run_id="run1", token="t1", retry=RETRY))
        assert 1 == kinds(during).count("retry")
        assert [] == texts(during[kinds(during).index("retry") :])
        check_stream(during)
        after = await join(BeginAttempt(run_id="run1", token="t2"))
        # The first view of one who had read before is of the delay; of one who had not, it is of the new attempt.
        assert (at == "view read, not laid down") == ("retry" in kinds(after))
        assert ["z"] == texts(after)
        check_stream(after)
        async with scene.subscribe() as latest:
            assert "retry" not in kinds(await at_hand(latest, 30))


@race(16, "asked, not taken")
@pytest.mark.parametrize("sealed", [True, False])
async def test_16_a_viewer_slower_than_the_log_keeps_rows(seams: Seams, sealed: bool) -> None:
    """GAPS_ARE_TOLD: what went while it was held is told, once, and it goes on where rows are left, to the last."""
    async with open_scene(part_log_bytes=4_000, burst_bytes=500) as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            for number in range(100):
                scene.make_parts(episode, str(number))
            if sealed:
                scene.log(episode).seal()
                await scene.finish("all")
                events += await until(subscription, Status, status="waiting")
            else:
                events += await until(subscription, MessagePart, seq=100)
            events += await at_hand(subscription, 60)
    (reset,) = [event for event in events if isinstance(event, PreviewReset)]
    assert "truncated" == reset.reason
    assert list(range(reset.first_seq, 101)) == [seq for seq in seqs(events) if seq >= reset.first_seq]
    assert 100 == seqs(events)[-1]
    check_stream(events)


@race(16, "selected, nothing read", LATE)
@pytest.mark.parametrize("seed", range(4))
async def test_16_identical_parts_with_random_cuts(seams: Seams, seed: int) -> None:
    """CONTIGUOUS: nothing but the number tells them apart, and it does: however the leg and the viewer are cut, and
    whatever is sent again, the viewer has each once."""
    random, count = Random(seed), 30
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        events: list[Event | Reconnected] = []
        cursor, had = "0-", 0
        while had < count:
            if events:
                events.append(Reconnected(cursor))
            async with scene.subscribe(cursor) as subscription:
                leg = (await scene.dialer.next_dial()).complete()
                after = (await leg.selected()).after_seq
                goal = min(count, had + random.randint(1, 8))
                sent = after
                while sent < goal:
                    first = max(1, sent + 1 - random.randint(0, 3))  # some come again
                    sent = min(goal, sent + random.randint(1, 5))
                    scene.feed(leg, episode, ["a "] * (sent - first + 1), first_seq=first)
                    if random.random() < 0.3:
                        leg.drop()
                        leg = (await scene.dialer.next_dial()).complete()
                        sent = (await leg.selected()).after_seq
                events += await until(subscription, MessagePart, seq=goal)
                cursor, had = subscription.cursor, goal
        stream = [event for event in events if not isinstance(event, Reconnected)]
        check_stream(events)
        assert "a " * count == "".join(texts(stream))
        assert list(range(1, count + 1)) == seqs(stream)


# --------------------------------------------------------------------------- 17: parts before and after their time


@race(17, "view read, not laid down")
async def test_17_parts_before_the_status_that_announces_them(seams: Seams) -> None:
    """SUPERSEDED: rows of an episode that the viewer was not told of wait for the view that names it."""
    async with open_scene() as scene:
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            stop = seams.stop("view read, not laid down")
            scene.announcing = False
            episode = await scene.acquire(HERE)  # the log is there; nothing but that makes watch look
            async with stop:
                scene.make_parts(episode, "a", "b")
                assert [] == await at_hand(subscription, 5)
            events += await until(subscription, MessagePart, seq=2)
        assert ["status", "message_part", "message_part"] == kinds(events)[-3:]
        check_stream(events)


@race(17, "selected, nothing read", "asked, not taken")
async def test_17_remote_parts_before_the_status_that_announces_them(seams: Seams) -> None:
    """The same where the relay is faster than the viewer: the leg is selected, and its rows are here, before the
    status is sent."""
    async with open_scene() as scene:
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            episode = await scene.acquire(THERE)
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, episode, ["a", "b"])
            await wait_all_tasks_blocked()
            events += await until(subscription, MessagePart, seq=2)
        assert ["status", "message_part", "message_part"] == kinds(events)[-3:]
        check_stream(events)


async def _finish(scene: Scene) -> None:
    await scene.finish("ab")


async def _fail_attempt(scene: Scene) -> None:
    await scene.apply(RecordRetry(run_id="run1", token="t", retry=RETRY))


async def _edit(scene: Scene) -> None:
    await scene.apply(EditMessage(message_id=1, content=user_message("rather").content))


ENDS: dict[str, Step] = {"message": _finish, "retry": _fail_attempt, "history_reset": _edit}
"""By the type of event that tells of it."""


@race(17, LATE)
@pytest.mark.parametrize("told", ENDS)
async def test_17_remote_parts_after_their_episode_ended(seams: Seams, told: str) -> None:
    """SUPERSEDED: rows that come when the end was told, past the time that it waits for them, reach nobody: neither
    after the message, nor after a failure, nor after an edit."""
    async with open_scene() as scene:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            leg = (await scene.dialer.next_dial()).complete()
            await leg.selected()
            scene.feed(leg, episode, ["a"])
            events = await until(subscription, MessagePart)
            await ENDS[told](scene)
            events += await at_hand(subscription, 1)
            assert told in kinds(events)
            scene.feed(leg, episode, ["b"], first_seq=2)
            assert [] == await at_hand(subscription, 120)
        assert ["a"] == texts(events)
        check_stream(events)


@race(17, "asked, not taken")
@pytest.mark.parametrize("told", ENDS)
async def test_17_local_parts_after_their_episode_ended(seams: Seams, told: str) -> None:
    """The same on the worker's own replica, for rows that are made when the end was told."""
    async with open_scene() as scene:
        episode = await scene.acquire(HERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            scene.make_parts(episode, "a")
            events += await until(subscription, MessagePart)
            await ENDS[told](scene)
            events += await at_hand(subscription, 1)
            assert told in kinds(events)
            scene.make_parts(episode, "late")
            events += await at_hand(subscription, 1)
            scene.make_parts(episode, "later")
            scene.log(episode).seal()
            events += await at_hand(subscription, 120)
        assert ["a"] == texts(events)
        check_stream(events)


@race(17, "watching, not read")
async def test_17_a_cursor_of_an_attempt_that_failed_meanwhile(seams: Seams) -> None:
    """Whoever comes back with parts of it is told that they are void, and gets the new attempt from its first part."""
    async with open_scene() as scene:
        first = await scene.acquire(HERE)
        scene.make_parts(first, "x", "y")
        async with scene.subscribe() as subscription:
            events: list[Event | Reconnected] = list(await until(subscription, MessagePart, seq=2))
            cursor = Cursor.parse(subscription.cursor)
        scene.log(first).seal()
        stop = seams.stop("watching, not read")

        async def fail() -> None:
            async with stop:
                await _fail_attempt(scene)
                await goes_on(scene, BeginAttempt(run_id="run1", token="u"))
                scene.make_parts(await scene.live_episode(), "z")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            async with scene.subscribe(cursor) as subscription:
                resumed = await at_hand(subscription, 60)
        assert ["new_attempt"] == [event.reason for event in resumed if isinstance(event, PreviewReset)]
        assert ["z"] == texts(resumed)
        check_stream([*events, Reconnected(cursor), *resumed])
