"""The numbered race of a person against a run: what is done before, between and after its transitions."""

from __future__ import annotations

import pytest
import trio

from relaytrio._protocol.chat import Interrupt
from relaytrio.testing import Seam, Seams
from tests.races.busy import DEEDS, FIRST, PLACES, TRANSITIONS, Answers, Deed, check_in_the_end, do, open_busy_workshop
from tests.races.race import race
from tests.workshop import until_idle


@race(19, "sealed, not committed", "committed, not told")
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hint", [True, False])
async def test_19_people_against_transitions(
    seams: Seams, transition: str, deed: Deed, place: Seam, hint: bool
) -> None:
    """What a person does before a transaction of the run, or after it, is done once, and the chat comes to rest:
    a Stop at once, or within a heartbeat if its hint is lost."""
    async with open_busy_workshop(Answers(transition)) as shop:
        stop = seams.stop(place, command=transition)
        await shop.create()
        await shop.send("waits")
        async with stop:
            await do(shop, deed, hint=hint)
        await until_idle(0.0 if hint else shop.settings.heartbeat_seconds)
        assert "interrupting" != (await shop.chat()).status
        if transition == "Commit" and (await shop.chat()).run_id is not None:
            await do(shop, "Stop", hint=True)  # its responder does not end by itself
            await until_idle(10)
            await check_in_the_end(shop, deed, "Stop")
        else:
            await until_idle(10)
            await check_in_the_end(shop, deed)


@race(19, "owned chats read, not compared", "chat looked at, not compared", "sealed, not committed")
@pytest.mark.parametrize("deed", ["Stop", "interrupting message", "promote"])
async def test_19_a_stop_whose_hint_is_lost(seams: Seams, deed: Deed) -> None:
    """It stops within a heartbeat, in the middle of an answer, and what was sent is kept as interrupted."""
    async with open_busy_workshop(Answers("Commit")) as shop:
        await shop.create()
        await shop.send("waits")
        await until_idle(1)
        await do(shop, deed, hint=False)
        stopped_at = trio.current_time()
        async with seams.stop("sealed, not committed", command="FinishInterruption"):
            assert trio.current_time() - stopped_at <= shop.settings.heartbeat_seconds
        await until_idle(10)
        assert ("more.", True) in await shop.answers()
        await check_in_the_end(shop, deed)


@race(19, "committed, not told")
@pytest.mark.parametrize("hint", [True, False])
async def test_19_a_late_stop_of_an_earlier_turn(seams: Seams, hint: bool) -> None:
    """It stops nothing: neither the next turn of the same run, nor the one after an edit."""
    responder = Answers("FinishTurn")
    async with open_busy_workshop(responder) as shop:
        stop = seams.stop("committed, not told", command="FinishTurn")
        await shop.create()
        await until_idle()
        earlier = None if not shop.announced else shop.announced[0].live_episode
        assert earlier is not None
        await shop.send("waits")
        async with stop:
            done = await shop.apply(Interrupt(of=earlier), hint=hint)
        assert "nothing" == done.done
        await until_idle(10)
        assert [f"re {FIRST}.", "re waits."] == [said for said, _ in await shop.answers()]
        assert [None, None] == [turn.cancelled_by for turn in responder.turns]
        await check_in_the_end(shop)


@race(19, "committed, not told")
@pytest.mark.parametrize("transition", ["Commit", "BeginAttempt"])
@pytest.mark.parametrize("hint", [True, False])
async def test_19_a_stop_of_an_earlier_step_of_this_turn(seams: Seams, transition: str, hint: bool) -> None:
    """It stops the turn: a tool step or another attempt does not save it, however late the Stop comes."""
    responder = Answers(transition)
    async with open_busy_workshop(responder) as shop:
        stop = seams.stop("committed, not told", command=transition)
        await shop.create()
        await until_idle()
        earlier = shop.announced[0].live_episode
        assert earlier is not None
        async with stop:
            done = await shop.apply(Interrupt(of=earlier), hint=hint)
        assert "interrupting" == done.done
        await until_idle(0 if hint else shop.settings.heartbeat_seconds)
        chat = await shop.chat()
        assert ("waiting", {}) == (chat.status, dict(shop.worker.runs))
        shop.check_announced()
