"""The numbered race of deaths: a replica that is gone in the middle of an answer, of an interruption, of its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._protocol.events import Episode, ErrorEvent, MessagePart, PreviewReset
from relaytrio.testing import (
    AnswerPlan,
    Reconnected,
    ScriptedViewer,
    Seam,
    Seams,
    SeamStop,
    SimulatedCluster,
    SimulatedReplica,
    check_cluster,
    check_stream,
)
from tests.races.race import open_cluster, race

SLOW = AnswerPlan(parts=6, pause_seconds=0.4)


def owner_of(cluster: SimulatedCluster, chat_id: str) -> SimulatedReplica:
    """The replica that runs the chat."""
    record = cluster.ledger.record(chat_id)
    assert record is not None
    return next(r for r in cluster.replicas if r.engine.replica_id == record.chat.worker_id)


async def crash_at(stop: SeamStop, replica: SimulatedReplica, *, silently: bool = False) -> None:
    """Let the replica die exactly while a task stands there: nothing that this task does has an effect any more."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: replica.crash(silently=silently))
        await wait_all_tasks_blocked()
        stop.release()


def answer_text(cluster: SimulatedCluster, chat_id: str) -> list[tuple[str, bool]]:
    record = cluster.ledger.record(chat_id)
    assert record is not None
    return [
        ("".join(part["text"] for part in message.content), message.interrupted)
        for message in record.messages
        if message.role == "assistant" and not message.deleted
    ]


def whole(question: str, parts: int = SLOW.parts) -> str:
    return "".join(f"{question}.{number};" for number in range(1, parts + 1))


def resets(viewer: ScriptedViewer) -> list[str]:
    return [event.reason for event in viewer.events if isinstance(event, PreviewReset)]


def episodes(viewer: ScriptedViewer) -> list[tuple[Episode, list[int]]]:
    """The episodes that a viewer saw parts of, and the numbers of these."""
    seen: dict[Episode, list[int]] = {}
    for event in viewer.events:
        if isinstance(event, MessagePart):
            seen.setdefault(event.episode, []).append(event.seq)
    return list(seen.items())


def check_taken_over(viewer: ScriptedViewer) -> None:
    """It saw parts of the dead run, then the reset with its reason, then the new attempt from its first part."""
    check_stream(viewer.events)
    (former, had), (latter, got) = episodes(viewer)
    assert former.run_id != latter.run_id
    assert list(range(1, len(had) + 1)) == had
    assert list(range(1, SLOW.parts + 1)) == got
    assert ["worker_lost"] == resets(viewer)
    kinds = [event.type for event in viewer.events if not isinstance(event, Reconnected)]
    assert "message_part" in kinds[: kinds.index("preview_reset")]


# ------------------------------------------------------------------------------------------------ mid-answer


@race(22, "rows came, not laid down", "acquired, not begun")
@pytest.mark.parametrize("silently", [False, True])
async def test_22_a_death_in_the_middle_of_an_answer(seams: Seams, silently: bool) -> None:
    """While its rows stand before the copy of another replica: another one takes over, and a viewer there sees the
    reset with its reason, then the new attempt from its first part."""
    async with open_cluster(replicas=3) as cluster:
        cluster.answers.default = SLOW
        chat = await cluster.create_chat()
        await cluster.send(chat.id, "q1")
        await trio.sleep(0.1)
        owner = owner_of(cluster, chat.id)
        viewer = cluster.viewer((owner.number + 1) % 3, chat.id)
        other = cluster.viewer((owner.number + 2) % 3, chat.id)
        await viewer.until(lambda shown: len(shown.preview) == 2)
        await other.until(lambda shown: len(shown.preview) == 2)
        await crash_at(await reached(seams.stop("rows came, not laid down")), owner, silently=silently)
        # A crash that nobody notices takes as long as a heartbeat may stand still.
        with trio.fail_after(cluster.settings.dead_after_seconds + 10):
            await viewer.until(lambda shown: len(shown.screen.messages) == 2)
        await check_cluster(cluster)
        check_taken_over(viewer)
        check_taken_over(other)
        assert [(whole("q1"), False)] == answer_text(cluster, chat.id)


async def reached(stop: SeamStop) -> SeamStop:
    await stop.wait()
    return stop


# ---------------------------------------------------------------------------------------- between seal and finish


@race(22, "sealed, not committed", "acquired, not begun")
@pytest.mark.parametrize("silently", [False, True])
async def test_22_a_death_between_seal_and_finish(seams: Seams, silently: bool) -> None:
    """All parts were seen and the message was not stored: they are void, another replica answers anew, once."""
    async with open_cluster(replicas=3) as cluster:
        cluster.answers.default = SLOW
        chat = await cluster.create_chat()
        stop = seams.stop("sealed, not committed", command="FinishTurn")
        await cluster.send(chat.id, "q1")
        await trio.sleep(0.1)
        owner = owner_of(cluster, chat.id)
        viewer = cluster.viewer((owner.number + 1) % 3, chat.id)
        await viewer.until(lambda shown: len(shown.preview) == SLOW.parts)
        await stop.wait()
        await crash_at(stop, owner, silently=silently)
        await check_cluster(cluster)
        check_taken_over(viewer)
        assert [(whole("q1"), False)] == answer_text(cluster, chat.id)


@race(22, "committed, not told")
@pytest.mark.parametrize("queued", [False, True])
async def test_22_a_death_between_finish_and_its_hint(seams: Seams, queued: bool) -> None:
    """The message is stored and nobody was told: it is found by polling, and the answer is not made again."""
    async with open_cluster(replicas=2) as cluster:
        cluster.answers.default = SLOW
        chat = await cluster.create_chat()
        stop = seams.stop("committed, not told", command="FinishTurn")
        await cluster.send(chat.id, "q1")
        if queued:
            await cluster.send(chat.id, "q2")
        await trio.sleep(0.1)
        owner = owner_of(cluster, chat.id)
        viewer = cluster.viewer(1 - owner.number, chat.id)
        await stop.wait()
        await crash_at(stop, owner)
        with trio.fail_after(cluster.settings.poll_seconds + 1):
            await viewer.until(lambda shown: len(shown.screen.messages) >= 2)
        await check_cluster(cluster)
        check_stream(viewer.events)
        expected = ["q1", "q2"] if queued else ["q1"]
        assert [(whole(question), False) for question in expected] == answer_text(cluster, chat.id)


@race(22, "committed, not told", "acquired, not begun")
async def test_22_a_death_after_a_step(seams: Seams) -> None:
    """What was committed in the middle of the answer stays; the take-over goes on after it, and not from the start."""
    async with open_cluster(replicas=2) as cluster:
        cluster.answers.default = AnswerPlan(parts=6, pause_seconds=0.2, commits_after=3)
        chat = await cluster.create_chat()
        stop = seams.stop("committed, not told", command="Commit")
        await cluster.send(chat.id, "q1")
        await trio.sleep(0.1)
        owner = owner_of(cluster, chat.id)
        viewer = cluster.viewer(1 - owner.number, chat.id)
        await stop.wait()
        await crash_at(stop, owner)
        await check_cluster(cluster)
        check_stream(viewer.events)
        first, rest = answer_text(cluster, chat.id)
        assert (whole("q1", 3), whole("q1", 6)) == (first[0], first[0] + rest[0])


# -------------------------------------------------------------------------------------- between Stop and its end


async def _stop(cluster: SimulatedCluster, chat_id: str, replica: int) -> None:
    await cluster.stop(chat_id, replica=replica)


async def _send_interrupting(cluster: SimulatedCluster, chat_id: str, replica: int) -> None:
    await cluster.send(chat_id, "q2", replica=replica, when_busy="interrupt")


Interruption = Callable[[SimulatedCluster, str, int], Awaitable[None]]


@race(22, "acquired, not begun")
@pytest.mark.parametrize("place", ["chat looked at, not compared", "sealed, not committed", "committed, not told"])
@pytest.mark.parametrize("interrupt", [_stop, _send_interrupting])
@pytest.mark.parametrize("silently", [False, True])
async def test_22_a_death_in_the_middle_of_an_interruption(
    seams: Seams, place: Seam, interrupt: Interruption, silently: bool
) -> None:
    """Before the Stop was seen, between the seal and the end of the interruption, or after that: it ends, nothing is
    `interrupting` for ever, no responder runs for what was stopped, and what waited behind it is answered."""
    async with open_cluster(replicas=3) as cluster:
        cluster.answers.default = SLOW
        chat = await cluster.create_chat()
        await cluster.send(chat.id, "q1")
        await trio.sleep(0.1)
        owner = owner_of(cluster, chat.id)
        afar = (owner.number + 1) % 3
        viewer = cluster.viewer(afar, chat.id)
        await viewer.until(lambda shown: len(shown.preview) == 2)
        stop = seams.stop(place, chat_id=chat.id)
        await interrupt(cluster, chat.id, afar)
        await stop.wait()
        await crash_at(stop, owner, silently=silently)
        await check_cluster(cluster)
        check_stream(viewer.events)
        kept = [] if place != "committed, not told" else [answer_text(cluster, chat.id)[0]]
        answers = answer_text(cluster, chat.id)
        assert all(interrupted for _, interrupted in kept)
        if interrupt is _send_interrupting:
            assert (whole("q2"), False) == answers.pop()
        assert kept == answers
        assert "waiting" == viewer.shown.status


@race(22, "sealed, not committed")
async def test_22_a_death_of_whoever_ends_an_interruption_for_another(seams: Seams) -> None:
    """The first to take over dies between its acquire and its end of the interruption: a third one ends it."""
    async with open_cluster(replicas=3) as cluster:
        cluster.answers.default = SLOW
        chat = await cluster.create_chat()
        await cluster.send(chat.id, "q1")
        await trio.sleep(0.1)
        first = owner_of(cluster, chat.id)
        viewer = cluster.viewer((first.number + 1) % 3, chat.id)
        await viewer.until(lambda shown: len(shown.preview) == 2)
        stop = seams.stop("sealed, not committed", command="FinishInterruption")
        await cluster.stop(chat.id, replica=(first.number + 1) % 3)
        await stop.wait()
        again = seams.stop("sealed, not committed", command="FinishInterruption")
        await crash_at(stop, first)
        await again.wait()
        second = owner_of(cluster, chat.id)
        assert first is not second
        await crash_at(again, second)
        await check_cluster(cluster)
        check_stream(viewer.events)
        assert [] == answer_text(cluster, chat.id)
        assert "waiting" == viewer.shown.status


# ---------------------------------------------------------------------------------------------- take-overs


@race(22, "sealed, not committed", "acquired, not begun")
@pytest.mark.parametrize("place", ["acquired, not begun", "history read, not answered", "sealed, not committed"])
async def test_22_a_chat_that_kills_its_worker_three_times(seams: Seams, place: Seam) -> None:
    """It is parked in error as `worker_lost`, its viewers are told, and a person can have it go on."""
    async with open_cluster(replicas=3) as cluster:
        cluster.answers.default = AnswerPlan(parts=2, pause_seconds=0.1)
        chat = await cluster.create_chat()
        viewer = cluster.viewer(0, chat.id)
        stop = seams.stop(place, chat_id=chat.id)
        await cluster.send(chat.id, "q1")
        for death in range(3):
            await stop.wait()
            victim = owner_of(cluster, chat.id)
            following = seams.stop(place, chat_id=chat.id) if death < 2 else None
            await crash_at(stop, victim)
            await victim.start()
            if following is not None:
                stop = following
        with trio.fail_after(60):
            await viewer.until(lambda shown: shown.error is not None)
        (error,) = [event.error for event in viewer.events if isinstance(event, ErrorEvent)]
        assert "worker_lost" == error.kind
        record = cluster.ledger.record(chat.id)
        assert record is not None
        assert ("error", None) == (record.chat.status, record.chat.worker_id)
        assert [] == answer_text(cluster, chat.id)
        await cluster.send(chat.id, "q2")
        await check_cluster(cluster)
        check_stream(viewer.events)
        assert [(whole("q2", 2), False)] == answer_text(cluster, chat.id)


@race(22, "acquired, not begun", "history read, not answered", "committed, not told")
async def test_22_deaths_count_from_the_last_change_of_the_history(seams: Seams) -> None:
    """A step that was committed in between begins the count anew, and a hand-over is no death: four of them in one turn
    do not park it."""
    async with open_cluster(replicas=3) as cluster:
        cluster.answers.default = AnswerPlan(parts=4, pause_seconds=0.1, commits_after=1)
        chat = await cluster.create_chat()
        viewer = cluster.viewer(0, chat.id)
        ends = ["crash", "crash", "crash after a commit", "crash", "stop"]

        def armed(end: str) -> SeamStop:
            if end == "crash after a commit":
                return seams.stop("committed, not told", chat_id=chat.id, command="Commit")
            return seams.stop("history read, not answered", chat_id=chat.id)

        stop = armed(ends[0])
        await cluster.send(chat.id, "q1")
        for end, following in zip(ends, [*ends[1:], None], strict=True):
            await stop.wait()
            owner, former = owner_of(cluster, chat.id), stop
            if following is not None:
                stop = armed(following)
            if end == "stop":
                former.release()
                await owner.stop()
            else:
                await crash_at(former, owner)
            await owner.start()
        await check_cluster(cluster)
        check_stream(viewer.events)
        assert whole("q1", 4) == "".join(text for text, _ in answer_text(cluster, chat.id))
