"""The numbered race of a replica that stops in the same instant as everything else, and of hints that are too old."""

from __future__ import annotations

import pytest
import trio

from relaytrio._protocol.chat import Interrupt
from relaytrio._turn import Turn
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import AnswerPlan, Seam, Seams, check_cluster
from tests.races.busy import Answers, open_busy_workshop
from tests.races.race import open_cluster, race
from tests.workshop import Workshop, open_workshop, text, until_idle

PLACES: tuple[Seam, ...] = ("sealed, not committed", "committed, not told")


async def stays(turn: Turn) -> None:
    await turn.send(text("half"))
    await trio.sleep_forever()


def check_let_go(shop: Workshop, *asked: str) -> None:
    """No run is left, and the worker asked for this, each told once."""
    assert {} == dict(shop.worker.runs)
    assert list(asked) == shop.store.names()
    shop.check_announced()


# ------------------------------------------------------------------------------------- as the answer finishes


@race(21, "sealed, not committed", "committed, not told", "grace over, not stopped")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_21_shutdown_as_the_answer_finishes(seams: Seams, place: Seam, queued: bool, cancelled: bool) -> None:
    """Drained or cancelled on either side of the transaction: the answer is kept, once and whole, and what the finish
    promotes is handed over without a responder."""
    responder = Answers("FinishTurn")
    async with open_workshop(responder, acquire_seconds=1e6) as shop:
        stop = seams.stop(place, command="FinishTurn")
        await shop.create()
        if queued:
            await shop.send("next")
        async with trio.open_nursery() as nursery, stop:
            if cancelled:
                nursery.start_soon(shop.worker.drain)
                shop.scope.cancel()
            else:
                nursery.start_soon(shop.worker.drain)
            await until_idle()
        await until_idle(1)
        check_let_go(shop, "Acquire", "FinishTurn", *(["Abandon"] if queued else []))
        assert [("re hello.", False)] == await shop.answers()
        chat = await shop.chat()
        assert ("running" if queued else "waiting", None, 0) == (chat.status, chat.worker_id, chat.takeovers)
        assert 1 == len(responder.turns)


@race(21, "sealed, not committed", "grace over, not stopped")
@pytest.mark.parametrize("transition", ["Commit", "RecordRetry", "BeginAttempt", "Fail"])
@pytest.mark.parametrize("place", PLACES)
async def test_21_shutdown_at_every_transition(seams: Seams, transition: str, place: Seam) -> None:
    """Whatever the run is about to do, it is done once, and then the chat is handed over or at rest."""
    async with open_workshop(Answers(transition), acquire_seconds=1e6, grace_seconds=3.0, retry_seconds=1.0) as shop:
        stop = seams.stop(place, command=transition)
        await shop.create()
        async with stop:
            shop.nursery.start_soon(shop.worker.drain)
            await until_idle()
        await shop.worker.drain()
        chat = await shop.chat()
        assert {} == dict(shop.worker.runs)
        assert (None, 0) == (chat.worker_id, chat.takeovers)
        assert ("error" if transition == "Fail" else "running") == chat.status
        assert 1 == shop.store.names().count(transition)
        assert ("Fail" if transition == "Fail" else "Abandon") == shop.store.names()[-1]
        shop.check_announced()


@race(21, "grace over, not stopped")
@pytest.mark.parametrize("deed", ["finishes", "Stop", "nothing"])
async def test_21_the_grace_ends_as_the_answer_does(seams: Seams, deed: str) -> None:
    """Between the end of the grace and the cancellation: what finishes then is kept, what is stopped then is kept as
    interrupted, and the rest begins again elsewhere."""
    finish = trio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(text("half"))
        await finish.wait()

    async with open_workshop(script, acquire_seconds=1e6) as shop:
        await shop.create()
        await until_idle()
        stop = seams.stop("grace over, not stopped")
        shop.nursery.start_soon(shop.worker.drain)
        async with stop:
            if deed == "finishes":
                finish.set()
            elif deed == "Stop":
                await shop.interrupt()
            await until_idle()
        await until_idle()
        expected = {"finishes": "FinishTurn", "Stop": "FinishInterruption", "nothing": "Abandon"}[deed]
        check_let_go(shop, "Acquire", expected)
        kept = {"finishes": [("half", False)], "Stop": [("half", True)], "nothing": []}[deed]
        assert kept == await shop.answers()


@race(21, "grace over, not stopped", "sealed, not committed")
async def test_21_the_grace_ends_and_the_answer_in_the_same_instant(seams: Seams) -> None:
    """Either of them is first, as the tasks happen to run: the answer is kept whole, or begins again elsewhere."""

    async def script(turn: Turn) -> None:
        await turn.send(text("whole"))
        await trio.sleep(20)

    async with open_workshop(script, acquire_seconds=1e6, grace_seconds=20.0) as shop:
        await shop.create()
        await until_idle()
        await shop.worker.drain()
        assert 20.0 == trio.current_time()
        chat, answers = await shop.chat(), await shop.answers()
        assert (chat.status, answers) in [("waiting", [("whole", False)]), ("running", [])]
        assert (None, 0) == (chat.worker_id, chat.takeovers)
        shop.check_announced()


# --------------------------------------------------------------------------------------- as the chat is acquired


@race(21, "acquired, not begun", "grace over, not stopped")
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("interrupted", [False, True])
async def test_21_shutdown_as_the_chat_is_acquired(seams: Seams, cancelled: bool, interrupted: bool) -> None:
    """The acquire is undone: no responder, no death counted, and a Stop that came meanwhile is carried out."""
    turns: list[Turn] = []

    async def script(turn: Turn) -> None:
        turns.append(turn)
        await trio.sleep_forever()

    async with open_workshop(script, acquire_seconds=1e6) as shop:
        stop = seams.stop("acquired, not begun")
        await shop.create()
        async with stop:
            if interrupted:
                await shop.interrupt()
            shop.nursery.start_soon(shop.worker.drain)
            if cancelled:
                shop.scope.cancel()
            await until_idle()
        await until_idle()
        check_let_go(shop, "Acquire", *(["FinishInterruption"] if interrupted else ["Abandon"]))
        chat = await shop.chat()
        assert ("waiting" if interrupted else "running", None, 0) == (chat.status, chat.worker_id, chat.takeovers)
        assert [] == turns


@race(21, "candidates read, not acquired", "grace over, not stopped")
async def test_21_shutdown_as_a_chat_is_found(seams: Seams) -> None:
    """What was found and is not acquired yet is left to others."""
    async with open_workshop(stays, acquire_seconds=1e6) as shop:
        stop = seams.stop("candidates read, not acquired")
        await shop.create()
        async with stop:
            shop.nursery.start_soon(shop.worker.drain)
            await until_idle()
        await until_idle()
        check_let_go(shop)
        assert ("running", None) == ((await shop.chat()).status, (await shop.chat()).worker_id)


# ------------------------------------------------------------------------------------------ as it is interrupted


@race(21, "sealed, not committed", "grace over, not stopped")
@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("hint", [False, True])
async def test_21_a_stop_before_the_hand_over(seams: Seams, queued: bool, hint: bool) -> None:
    """A person's Stop between the seal and the abandon: that is refused, the interruption ends with what is at hand,
    and what it promotes is handed over."""
    async with open_workshop(stays, acquire_seconds=1e6, grace_seconds=1.0) as shop:
        await shop.create()
        if queued:
            await shop.send("next")
        await until_idle()
        stop = seams.stop("sealed, not committed", command="Abandon")
        shop.nursery.start_soon(shop.worker.drain)
        async with stop:
            await shop.interrupt(hint=hint)
        await until_idle()
        check_let_go(shop, "Acquire", "FinishInterruption", *(["Abandon"] if queued else []))
        assert [("half", True)] == await shop.answers()
        assert ("running" if queued else "waiting") == (await shop.chat()).status


@race(21, "sealed, not committed", "committed, not told", "grace over, not stopped")
@pytest.mark.parametrize("place", PLACES)
async def test_21_shutdown_as_an_interruption_ends(seams: Seams, place: Seam) -> None:
    """The other way round: the interruption ends once, and what it promotes is not begun here any more."""
    turns: list[Turn] = []

    async def script(turn: Turn) -> None:
        turns.append(turn)
        await stays(turn)

    async with open_workshop(script, acquire_seconds=1e6) as shop:
        await shop.create()
        await shop.send("next")
        await until_idle()
        stop = seams.stop(place, command="FinishInterruption")
        await shop.interrupt()
        async with stop:
            shop.nursery.start_soon(shop.worker.drain)
            await until_idle()
        await until_idle()
        check_let_go(shop, "Acquire", "FinishInterruption", "Abandon")
        assert 1 == len(turns)


@race(21, "acquired, not begun", "sealed, not committed")
@pytest.mark.parametrize("seam", ["acquired, not begun", "sealed, not committed", "committed, not told"])
async def test_21_a_deployment_while_everything_happens(seams: Seams, seam: Seam) -> None:
    """A whole replica that stops at that place, with viewers and people on both: no turn is lost, and nothing is
    doubled."""
    async with open_cluster() as cluster:
        cluster.answers.default = AnswerPlan(parts=3, pause_seconds=0.2)
        chat = await cluster.create_chat()
        for number in (0, 1):
            cluster.viewer(number, chat.id)
        stop = seams.stop(seam, chat_id=chat.id)
        await cluster.send(chat.id, "q1")
        await cluster.send(chat.id, "q2", replica=1)
        await stop.wait()
        owner = next(
            replica
            for replica in cluster.replicas
            if replica.engine.replica_id == cluster.ledger.commits[-1].outcome.chat.worker_id
            or chat.id in (replica.engine._worker.runs if replica.engine._worker else {})
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner.stop)
            await until_idle()
            stop.release()
        await check_cluster(cluster)
        record = cluster.ledger.record(chat.id)
        assert record is not None
        assert ["user", "assistant"] * 2 == [message.role for message in record.messages]


# ------------------------------------------------------------------------------------------------- stale hints


@race(21, "history read, not answered")
@pytest.mark.parametrize("place", ["acquired, not begun", "history read, not answered", "chat looked at, not compared"])
async def test_21_a_stale_hint_and_a_fresh_run(seams: Seams, place: Seam) -> None:
    """A hint of the Stop before only says look: the fresh run of the next question goes on."""
    turns: list[Turn] = []

    async def script(turn: Turn) -> None:
        turns.append(turn)
        await stays(turn)

    async with open_busy_workshop(script) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt()
        await until_idle()
        stop = seams.stop(place)
        await shop.send("again")
        if place == "chat looked at, not compared":
            await until_idle()
            shop.worker.look("c")
        async with stop:
            shop.worker.look("c")
            shop.worker.look("c")
        await until_idle(shop.settings.heartbeat_seconds + 1)
        assert ["interrupt", None] == [turn.cancelled_by for turn in turns]
        assert ["Acquire", "FinishInterruption", "Acquire"] == shop.store.names()


@race(21, "chat looked at, not compared", "committed, not told")
async def test_21_a_stale_look_and_the_next_turn_of_the_same_run(seams: Seams) -> None:
    """The run has read a Stop when its answer is finished all the same: the next turn, which has begun by the time that
    it compares, is not what was stopped."""
    turns: list[Turn] = []
    finish = [trio.Event(), trio.Event()]

    async def script(turn: Turn) -> None:
        turns.append(turn)
        await turn.send(text(f"{len(turns)}"))
        await finish[len(turns) - 1].wait()

    async with open_busy_workshop(script) as shop:
        await shop.create()
        await shop.send("next")
        await until_idle()
        stop = seams.stop("chat looked at, not compared")
        await shop.interrupt()
        async with stop:
            finish[0].set()
            await until_idle()
            assert 2 == len(turns)
        await until_idle(shop.settings.heartbeat_seconds)
        assert [None, None] == [turn.cancelled_by for turn in turns]
        finish[1].set()
        await until_idle()
        check_let_go(shop, "Acquire", "FinishTurn", "FinishTurn")
        assert [("1", False), ("2", False)] == await shop.answers()


@race(21, "owned chats read, not compared")
async def test_21_a_stale_list_of_owned_chats_and_a_fresh_run(seams: Seams) -> None:
    """The heartbeat has read that the former run is to be interrupted; by the time it compares, a fresh run owns the
    chat, and that is neither interrupted nor taken for a chat without a run."""
    turns: list[Turn] = []

    async def script(turn: Turn) -> None:
        turns.append(turn)
        await stays(turn)

    async with open_busy_workshop(script) as shop:
        await shop.create()
        await until_idle()
        await shop.interrupt(hint=False)
        async with seams.stop("owned chats read, not compared"):
            shop.worker.look("c")
            await until_idle()
            await shop.send("again")
            await until_idle()
            assert 2 == len(turns)
        await until_idle(2 * shop.settings.heartbeat_seconds)
        assert ["interrupt", None] == [turn.cancelled_by for turn in turns]
        assert ["Acquire", "FinishInterruption", "Acquire"] == shop.store.names()


@race(21, "acquired, not begun", "owned chats read, not compared")
async def test_21_a_heartbeat_between_the_acquire_and_the_run(seams: Seams) -> None:
    """The chat names this replica and has no run yet: that is no reason to hand it over."""
    async with open_busy_workshop(stays) as shop:
        stop = seams.stop("acquired, not begun")
        async with seams.stop("owned chats read, not compared"):
            pass
        await trio.sleep(shop.settings.heartbeat_seconds - 1)
        acquired = seams.stop("owned chats read, not compared")
        await shop.create()
        async with acquired:
            assert (True, {}) == (stop.reached, dict(shop.worker.runs))
        await until_idle()
        stop.release()
        await until_idle(2 * shop.settings.heartbeat_seconds)
        assert ["Acquire"] == shop.store.names()
        assert 1 == len(shop.worker.runs)


@race(21, "owned chats read, not compared")
@pytest.mark.parametrize("interrupted", [False, True])
async def test_21_a_lost_acquire_as_the_replica_stops(seams: Seams, interrupted: bool) -> None:
    """Its chat has no run here; the heartbeat hands it over, or ends its interruption, while the replica drains."""
    async with open_busy_workshop(stays) as shop:
        shop.store.plan("Acquire", "lose")
        await shop.create()
        await until_idle()
        assert {} == dict(shop.worker.runs)
        if interrupted:
            await MemoryStore.apply(shop.store, "c", Interrupt())
        async with seams.stop("owned chats read, not compared"):
            shop.nursery.start_soon(shop.worker.drain)
            await until_idle()
        await until_idle(1)
        chat = await shop.chat()
        assert ("waiting" if interrupted else "running", None) == (chat.status, chat.worker_id)
        assert ["Acquire", "FinishInterruption" if interrupted else "Abandon"] == shop.store.names()
