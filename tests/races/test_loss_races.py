"""The numbered race of a run that lost its chat, and of one that only lost an answer."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import pytest
import trio

from relaytrio._errors import TurnOver
from relaytrio._protocol.chat import Acquire, EditMessage, RunCommand, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._turn import Turn
from relaytrio.stores._base import Replica
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import AnswerPlan, Seam, Seams, check_cluster, check_stream
from tests.races.busy import Answers, open_busy_workshop
from tests.races.race import open_cluster, race
from tests.workshop import HELLO, HERE, THERE, Scripted, Workshop, says, text, until_idle

Loss: TypeAlias = Literal["edit", "take-over", "deleted", "taken for dead"]
LOSSES: tuple[Loss, ...] = ("edit", "take-over", "deleted", "taken for dead")
TRANSITIONS = ("Commit", "FinishTurn", "RecordRetry", "BeginAttempt", "Fail")
THEIRS = "theirs"
ALIVE_SECONDS = 12.0
"""So long the other replica is not found dead, although it has no heartbeat."""


async def lose(shop: Workshop, loss: Loss, *, hint: bool = False) -> None:
    """Take the chat from its run here: another replica has it then, unless it was deleted."""
    owner = (await shop.chat()).worker_id
    await shop.store.register(Replica(id=THERE, address=None, version="1"))
    match loss:
        case "edit":
            await shop.apply(EditMessage(message_id=1, content=user_message("rather").content), hint=False)
            await shop.apply(Acquire(worker_id=THERE, run_id=THEIRS), hint=hint)
        case "take-over":
            await shop.apply(Acquire(worker_id=THERE, run_id=THEIRS, dead_worker_id=owner), hint=hint)
        case "deleted":
            await shop.store.delete_chat("c")
            if hint:
                shop.worker.look("c")
        case "taken for dead":
            await shop.apply(Acquire(worker_id=THERE, run_id=THEIRS, dead_worker_id=owner), hint=False)
            shop.worker.cancel_all_runs()


def asked_by(shop: Workshop, run_id: str) -> list[str]:
    """What the run committed, by name."""
    return [
        type(command).__name__
        for command, _ in shop.store.committed
        if isinstance(command, RunCommand) and command.run_id == run_id
    ]


@race(20, "sealed, not committed")
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hint", [True, False])
async def test_20_a_chat_lost_before_a_transition(seams: Seams, transition: str, loss: Loss, hint: bool) -> None:
    """FENCED: the transition changes nothing, nothing follows it: no event, no hint, no call; and who took the chat
    keeps it as it is."""
    responder = Answers(transition)
    async with open_busy_workshop(responder) as shop:
        stop = seams.stop("sealed, not committed", command=transition)
        await shop.create()
        async with stop:
            run = shop.worker.runs["c"]
            committed, log = asked_by(shop, run.run_id), run._own.log
            await lose(shop, loss, hint=hint)
            announced, turns = list(shop.announced), list(responder.turns)
        await until_idle(ALIVE_SECONDS)
        assert committed == asked_by(shop, run.run_id)
        assert announced == shop.announced
        assert turns == responder.turns
        assert ({}, True) == (dict(shop.worker.runs), log.sealed)
        with pytest.raises(TurnOver):
            await turns[-1].send(text("late"))
        if loss != "deleted":
            chat = await shop.chat()
            assert ("running", THERE, THEIRS) == (chat.status, chat.worker_id, chat.run_id)


@race(20, "committed, not told")
@pytest.mark.parametrize("transition", ["Commit", "RecordRetry", "BeginAttempt"])
@pytest.mark.parametrize("loss", LOSSES)
async def test_20_a_chat_lost_after_a_transition(seams: Seams, transition: str, loss: Loss) -> None:
    """FENCED: what was committed may be told, once, as it was; the next thing that the run does is refused, and at the
    latest a heartbeat finds the loss."""
    responder = Answers(transition)
    async with open_busy_workshop(responder) as shop:
        stop = seams.stop("committed, not told", command=transition)
        await shop.create()
        async with stop:
            run = shop.worker.runs["c"]
            committed = asked_by(shop, run.run_id)
            await lose(shop, loss)
        await until_idle(shop.settings.heartbeat_seconds)
        assert {} == dict(shop.worker.runs)
        await until_idle(ALIVE_SECONDS)
        assert committed == asked_by(shop, run.run_id)
        told = [chat.snapshot_version for chat in shop.announced]
        assert sorted(set(told)) == told
        assert {run.run_id} == {chat.run_id for chat in shop.announced}
        assert transition == "BeginAttempt" or "lost" == responder.turns[-1].cancelled_by or len(responder.turns) == 1
        if loss != "deleted":
            assert THEIRS == (await shop.chat()).run_id


@race(20)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("place", ["acquired, not begun", "history read, not answered", "chat looked at, not compared"])
async def test_20_a_chat_lost_while_a_run_reads(seams: Seams, loss: Loss, place: Seam) -> None:
    """FENCED: what it has read is old: it commits nothing, and a heartbeat ends it."""
    turns: list[Turn] = []

    async def script(turn: Turn) -> None:
        turns.append(turn)
        await turn.send(text("a"))
        await trio.sleep_forever()

    async with open_busy_workshop(script) as shop:
        stop = seams.stop(place)
        await shop.create()
        if place == "chat looked at, not compared":
            await until_idle()
            shop.worker.look("c")
        async with stop:
            run_id = str((await shop.chat()).run_id)
            await lose(shop, loss)
        await until_idle(2 * shop.settings.heartbeat_seconds)
        assert ({}, []) == (dict(shop.worker.runs), asked_by(shop, run_id))
        assert all("lost" == turn.cancelled_by for turn in turns)
        # The history that it reads is another's: nobody answers that.
        assert [] == turns or (loss, place) != ("edit", "acquired, not begun")
        if loss != "deleted":
            assert THEIRS == (await shop.chat()).run_id
            assert ["hello"] == [message.content[0]["text"] for message in await shop.messages()] or loss == "edit"


@race(20, "owned chats read, not compared")
async def test_20_an_old_list_of_owned_chats(seams: Seams) -> None:
    """FENCED: a chat that was taken after the heartbeat has read what is owned is not handed over by its old row: the
    abandon carries the run id that was read."""
    async with open_busy_workshop(Scripted(says("a"))) as shop:
        await MemoryStore.create_chat(shop.store, "c", HELLO)
        await shop.apply(Acquire(worker_id=HERE, run_id="orphan"), hint=False)
        async with seams.stop("owned chats read, not compared"):
            await shop.store.register(Replica(id=THERE, address=None, version="1"))
            await shop.apply(Acquire(worker_id=THERE, run_id=THEIRS, dead_worker_id=HERE), hint=False)
        await until_idle(ALIVE_SECONDS)
        assert [] == shop.store.names()
        assert ("running", THERE, THEIRS) == _owner(await shop.chat())
        assert [] == shop.announced


def _owner(chat: Any) -> tuple[Any, ...]:
    return chat.status, chat.worker_id, chat.run_id


# ---------------------------------------------------------------------------------------------- lost answers


async def interrupted(turn: Turn) -> None:
    await turn.send(text("a"))
    await trio.sleep_forever()


@race(20, "sealed, not committed", "committed, not told")
@pytest.mark.parametrize("transition", [*TRANSITIONS, "FinishInterruption", "Abandon"])
@pytest.mark.parametrize("faults", [("lose",), ("lose", "fail", "lose"), ("fail", "lose")])
async def test_20_a_lost_answer_is_no_loss(seams: Seams, transition: str, faults: Any) -> None:
    """The transition is asked for again with its token, had its effect once, is told once, and the run goes on."""
    responder: Any = interrupted if transition in ("FinishInterruption", "Abandon") else Answers(transition)
    async with open_busy_workshop(responder) as shop:
        shop.store.plan(transition, *faults)
        await shop.create()
        await until_idle()
        if transition == "FinishInterruption":
            await shop.interrupt()
        if transition == "Abandon":
            shop.worker._acquisition.cancel()
            shop.worker.runs["c"].stop()
        await until_idle(4)
        if transition == "Commit":
            assert 1 == len(shop.worker.runs)  # and its responder is at work, in its second episode
            await shop.interrupt()
        await until_idle(20)
        asked = [command for command in shop.store.asked if type(command).__name__ == transition]
        assert 1 == shop.store.names().count(transition)
        assert len(faults) + 1 == len(asked)
        assert 1 == len(set(map(repr, asked)))
        assert {} == dict(shop.worker.runs)
        shop.check_announced()


@race(20, "sealed, not committed")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("transition", ["Commit", "RecordRetry"])
async def test_20_a_lost_answer_and_then_the_chat(seams: Seams, transition: str, loss: Loss) -> None:
    """Between the commit and the repeated question the chat was taken: nothing is changed twice, and no episode of the
    run is announced any more."""
    responder = Answers(transition)
    async with open_busy_workshop(responder) as shop:
        shop.store.plan(transition, "lose")
        await shop.create()
        await until_idle()
        assert 1 == shop.store.names().count(transition)
        turns = len(responder.turns)
        await lose(shop, loss)
        await until_idle(20)
        assert 1 == shop.store.names().count(transition)
        assert turns == len(responder.turns)
        assert {} == dict(shop.worker.runs)
        assert [1] == [chat.snapshot_version - 1 for chat in shop.announced if chat.run_id not in (None, THEIRS)]
        if loss != "deleted":
            assert THEIRS == (await shop.chat()).run_id


@race(20, "sealed, not committed")
async def test_20_a_lost_answer_to_the_last_transition(seams: Seams) -> None:
    """By the time that it is asked again the chat has another question, and another owner, who keeps it."""
    responder = Answers("FinishTurn")
    async with open_busy_workshop(responder) as shop:
        shop.store.plan("FinishTurn", "lose")
        await shop.create()
        await until_idle()
        await shop.store.register(Replica(id=THERE, address=None, version="1"))
        await shop.apply(SendMessage(content=user_message("next").content), hint=False)
        await shop.apply(Acquire(worker_id=THERE, run_id=THEIRS), hint=False)
        await until_idle(ALIVE_SECONDS)
        assert ["Acquire", "FinishTurn"] == shop.store.names()
        assert (1, {}) == (len(responder.turns), dict(shop.worker.runs))
        assert ("running", THERE, THEIRS) == _owner(await shop.chat())
        assert [("re hello.", False)] == await shop.answers()


@race(20, "sealed, not committed")
@pytest.mark.parametrize("deed", ["interrupt", "send"])
async def test_20_a_lost_answer_and_a_person(seams: Seams, deed: str) -> None:
    """What a person does between the commit and the repeated question is kept: the first answer does not hide it."""
    async with open_busy_workshop(Answers("Commit")) as shop:
        shop.store.plan("Commit", "lose")
        await shop.create()
        await until_idle()
        if deed == "interrupt":
            await shop.interrupt(hint=False)
        else:
            await shop.send("now", when_busy="interrupt")
        await until_idle(20)
        assert "waiting" == (await shop.chat()).status
        assert [("re hello.", False)] == (await shop.answers())[:1]
        assert deed == "interrupt" or ("re now.", False) == (await shop.answers())[-1]


# ------------------------------------------------------------------------------------------- seen from outside


@race(20, "history read, not answered", "request committed, not told")
@pytest.mark.parametrize("place", ["acquired, not begun", "history read, not answered"])
async def test_20_nobody_sees_anything_of_a_lost_run(seams: Seams, place: Seam) -> None:
    """FENCED, in a whole cluster without hints: an edit between the acquire and the first part of the answer; viewers
    on both replicas never see a part that answers the old question."""
    async with open_cluster(hints=None) as cluster:
        cluster.answers.default = AnswerPlan(parts=3, pause_seconds=0.5)
        chat = await cluster.create_chat()
        viewers = [cluster.viewer(replica, chat.id) for replica in (0, 1)]
        stop = seams.stop(place)
        answer = await cluster.send(chat.id, "q1")
        assert answer is not None
        async with stop:
            await cluster.edit(chat.id, answer.messages[0].id, "q2", replica=1)
        await check_cluster(cluster)
        for viewer in viewers:
            check_stream(viewer.events)
            shown = "".join(part["text"] for message in viewer.shown.screen.messages for part in message.content)
            assert shown.startswith("q2")
