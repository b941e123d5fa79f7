"""The numbered race of several people against a run: one before a transition of it, and another one after that."""

from __future__ import annotations

import pytest

from relaytrio.testing import Seams
from tests.races.busy import DEEDS, PLACES, TRANSITIONS, Answers, Deed, check_in_the_end, do, open_busy_workshop
from tests.races.race import race
from tests.workshop import until_idle


@race(19, "sealed, not committed", "committed, not told")
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("before", DEEDS)
@pytest.mark.parametrize("after", DEEDS)
async def test_19_people_on_both_sides_of_a_transition(
    seams: Seams, transition: str, before: Deed, after: Deed
) -> None:
    """Two of them, one before the transaction and one between its answer and what the run does with it."""
    async with open_busy_workshop(Answers(transition)) as shop:
        one, other = (seams.stop(place, command=transition) for place in PLACES)
        await shop.create()
        await shop.send("waits")
        async with one:
            await do(shop, before, hint=False)
        await until_idle()
        # One that was refused or fenced never gets there.
        await do(shop, after, hint=True, saying="and now")
        other.release()
        await until_idle(6)
        await do(shop, "Stop", hint=True)
        await until_idle(6)
        await check_in_the_end(shop, before, after, "Stop")


@race(19, "sealed, not committed")
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("first", DEEDS)
async def test_19_people_against_the_end_of_an_interruption(seams: Seams, first: Deed, deed: Deed) -> None:
    """While the run is about to end an interruption, another person does something: both are done, once."""
    async with open_busy_workshop(Answers("Commit")) as shop:
        await shop.create()
        await shop.send("waits")
        await until_idle()
        stop = seams.stop("sealed, not committed")
        await do(shop, first if first != "edit" else "Stop", hint=True)
        async with stop:
            await do(shop, deed, hint=True, saying="and now")
            if first == "edit":
                await do(shop, first, hint=True)
        await until_idle()
        assert "interrupting" != (await shop.chat()).status
        await until_idle(10)
        await check_in_the_end(shop, first, deed, *(("Stop",) if first == "edit" else ()))
