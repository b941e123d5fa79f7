"""The scripted dialer: what a test can make of a dial and a leg, and what the relay sees of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from relaytrio._dialer import Dialer, DialRequest, Leg, LegEnd
from relaytrio._errors import DialError, DialRefused, LegLost
from relaytrio._protocol import wire
from relaytrio._protocol.burst import Burst
from relaytrio._protocol.events import Cursor, Episode, MessageRef
from relaytrio.testing import ScriptedDial, ScriptedDialer, ScriptedLeg, Selection, text_burst

EPISODE = Episode(57, 1, "p8r2dq7w3e")
NEXT = Episode(58, 1, "p8r2dq7w3e")


def request(worker_id: str = "worker-b") -> DialRequest:
    return DialRequest("chat", worker_id)


async def use(dialer: Dialer, took: list[Burst | LegEnd], worker_id: str = "worker-b") -> None:
    """What a relay does, at its simplest."""
    async with dialer.dial(request(worker_id)) as leg:
        await leg.select(EPISODE, 0)
        took.extend([item async for item in leg])


async def opened(dialer: ScriptedDialer, stack: AsyncExitStack) -> tuple[Leg, ScriptedLeg]:
    """Both ends of a leg, in one task."""
    async with trio.open_nursery() as nursery:

        async def complete() -> None:
            (await dialer.next_dial()).complete()

        nursery.start_soon(complete)
        leg = await stack.enter_async_context(dialer.dial(request()))
    control = dialer.dials[-1].leg
    assert control is not None
    return leg, control


# -------------------------------------------------------------------------------------------------------- dials


async def test_dials_come_in_the_order_of_dialing(nursery: trio.Nursery) -> None:
    """Each dial is handed to the test once, with its request, and hangs while it is left alone."""
    dialer = ScriptedDialer()
    for worker_id in ("a", "b"):
        nursery.start_soon(use, dialer, [], worker_id)
        await wait_all_tasks_blocked()
    dials = [await dialer.next_dial(), await dialer.next_dial()]
    assert [dial.worker_id for dial in dials] == ["a", "b"]
    assert dials == dialer.dials == dialer.pending_dials
    assert [(dial.pending, dial.open, dial.closed, dial.cancelled) for dial in dials] == [
        (True, False, False, False)
    ] * 2
    assert dials[0].request == request("a")


async def test_next_dial_waits_for_the_relay(nursery: trio.Nursery) -> None:
    """A test need not know when the relay will dial."""
    dialer = ScriptedDialer()

    async def dial_later() -> None:
        await wait_all_tasks_blocked()
        await use(dialer, [])

    nursery.start_soon(dial_later)
    with assert_checkpoints():
        dial = await dialer.next_dial()
    assert dial.pending


async def test_a_completed_dial_is_an_open_leg_until_the_relay_leaves_it(nursery: trio.Nursery) -> None:
    """`complete` lets the relay in; when it leaves, the test sees it."""
    dialer = ScriptedDialer()
    nursery.start_soon(use, dialer, [])
    dial = await dialer.next_dial()
    leg = dial.complete()
    assert dial.open
    assert dialer.open_legs == [leg]
    assert await leg.selected() == Selection(EPISODE, 0)
    leg.hang_up()
    await leg.closed.wait()
    assert dial.closed
    assert dialer.open_legs == []
    dialer.assert_quiet()


async def test_a_failed_dial_raises_at_the_relay() -> None:
    """The relay gets exactly the error that the test gave."""
    dialer = ScriptedDialer()
    error = DialRefused("worker-b", "401")
    async with trio.open_nursery() as nursery:

        async def fail() -> None:
            (await dialer.next_dial()).fail(error)

        nursery.start_soon(fail)
        with pytest.raises(DialRefused) as raised:
            await use(dialer, [])
    assert raised.value is error
    assert dialer.dials[0].error is error
    assert dialer.dials[0].state == "failed"
    dialer.assert_quiet()


async def test_a_failed_dial_names_the_worker() -> None:
    """Without an error of the test's own, it is a plain `DialError`."""
    dialer = ScriptedDialer(on_dial=ScriptedDial.fail)
    with pytest.raises(DialError, match="worker-b"):
        await use(dialer, [])


async def test_a_dial_that_hangs_is_cancelled_promptly() -> None:
    """As the contract of dialers says; and nothing that happens to it afterwards reaches anybody."""
    dialer = ScriptedDialer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, dialer, [])
        dial = await dialer.next_dial()
        nursery.cancel_scope.cancel()
    assert (dial.cancelled, dial.pending, dial.state) == (True, False, "cancelled")
    dialer.assert_quiet()
    leg = dial.complete()
    assert leg.closed.is_set()
    assert dial.closed
    leg.feed_parts(EPISODE, ["late"])
    dialer.assert_quiet()


async def test_a_cancelled_dial_may_fail_late() -> None:
    """Nobody hears of it, and it stays a cancelled one."""
    dialer = ScriptedDialer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, dialer, [])
        dial = await dialer.next_dial()
        nursery.cancel_scope.cancel()
    dial.fail()
    assert dial.state == "cancelled"


async def test_a_dial_is_decided_once(nursery: trio.Nursery) -> None:
    """A script that contradicts itself is told so."""
    dialer = ScriptedDialer()
    nursery.start_soon(use, dialer, [])
    dial = await dialer.next_dial()
    dial.complete()
    with pytest.raises(ValueError, match=r"worker-b.*: open"):
        dial.complete()
    with pytest.raises(ValueError, match="already decided"):
        dial.fail()


@pytest.mark.parametrize("by_dialer", [True, False])
async def test_a_stubborn_dial_ends_when_the_test_says_so(by_dialer: bool) -> None:
    """Cancelled, it goes on; completed late, its leg is handed over and closed before the relay can select anything."""
    dialer = ScriptedDialer(stubborn=by_dialer)
    took: list[Burst | LegEnd] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, dialer, took)
        dial = await dialer.next_dial()
        if not by_dialer:
            dial.ignore_cancellation()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await wait_all_tasks_blocked()
            assert dial.cancelled
            assert not dial.pending
            leg = dial.complete()
            leg.feed_parts(EPISODE, ["late"])
            await leg.closed.wait()
    assert leg.selections == []
    assert took == []
    dialer.assert_quiet()


async def test_a_stubborn_dial_may_fail_late() -> None:
    """Its error then reaches a relay that was cancelled before."""
    dialer = ScriptedDialer(stubborn=True)
    errors: list[DialError] = []

    async def dial_once() -> None:
        try:
            await use(dialer, [])
        except DialError as error:
            errors.append(error)
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial_once)
        dial = await dialer.next_dial()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await wait_all_tasks_blocked()
            dial.fail()
            await wait_all_tasks_blocked()
    assert errors == [dial.error]


async def test_a_dial_that_is_cancelled_before_it_begins_is_none() -> None:
    """Nothing is dialed for a relay that is cancelled already."""
    dialer = ScriptedDialer()
    with trio.CancelScope() as scope:
        scope.cancel()
        await use(dialer, [])
    assert dialer.dials == []


async def test_a_completed_dial_whose_relay_was_cancelled_meanwhile_is_closed() -> None:
    """Between the completion and the relay's next step a cancellation leaves no open leg."""
    dialer = ScriptedDialer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, dialer, [])
        dial = await dialer.next_dial()
        leg = dial.complete()
        nursery.cancel_scope.cancel()
    assert leg.closed.is_set()
    assert leg.selections == []
    assert not dial.cancelled


async def test_on_dial_may_decide_at_once() -> None:
    """A test that does not care for dials lets all succeed; each is still handed out."""
    dialer = ScriptedDialer(on_dial=lambda dial: dial.complete().hang_up())
    took: list[Burst | LegEnd] = []
    with pytest.raises(LegLost):
        await use(dialer, took)
    assert (await dialer.next_dial()).closed


async def test_no_dial_is_an_assertion(nursery: trio.Nursery) -> None:
    """It fails for a dial that the test has not taken yet, and for none that it has."""
    dialer = ScriptedDialer()
    await dialer.no_dial()
    nursery.start_soon(use, dialer, [])
    with pytest.raises(AssertionError, match=r"expected no dial.*worker-b"):
        await dialer.no_dial()
    await dialer.next_dial()
    await dialer.no_dial()


async def test_assert_quiet_names_what_is_there(nursery: trio.Nursery) -> None:
    """A pending dial and an open leg are both an assertion's failure."""
    dialer = ScriptedDialer()
    nursery.start_soon(use, dialer, [])
    dial = await dialer.next_dial()
    with pytest.raises(AssertionError, match="dial of worker-b for chat chat: pending"):
        dialer.assert_quiet()
    dial.complete()
    with pytest.raises(AssertionError, match="open"):
        dialer.assert_quiet()


# --------------------------------------------------------------------------------------------------------- legs


async def test_what_is_fed_arrives_in_order() -> None:
    """Bursts and ends reach the relay as they are, in the order in which they were fed, before it asks too."""
    async with AsyncExitStack() as stack:
        leg, control = await opened(ScriptedDialer(), stack)
        first = control.feed_parts(EPISODE, ["a", "b"])
        control.end("sealed", 2, episode=EPISODE)
        control.hang_up()
        assert [item async for item in leg] == [first, LegEnd(EPISODE, "sealed", 2)]


async def test_selections_are_handed_out_once_each() -> None:
    """`selected` gives them in order; `selections` keeps all."""
    async with AsyncExitStack() as stack:
        leg, control = await opened(ScriptedDialer(), stack)
        with assert_checkpoints():
            await leg.select(EPISODE, 3)
        await leg.select(NEXT, 0)
        assert await control.selected() == Selection(EPISODE, 3)
        assert await control.selected() == Selection(NEXT, 0)
        assert control.selections == [Selection(EPISODE, 3), Selection(NEXT, 0)]


async def test_feed_parts_makes_real_rows() -> None:
    """A burst that is fed holds the complete events, with cursors to resume from."""
    async with AsyncExitStack() as stack:
        _, control = await opened(ScriptedDialer(), stack)
        burst = control.feed_parts(EPISODE, ["Hel", "lo"], first_seq=4, cursor=Cursor(MessageRef(41, "k3x9q")))
    assert (burst.first_seq, burst.count, burst.truncated) == (4, 2, False)
    events = wire.decode_rows(burst)
    assert [event.part["text"] for event in events] == ["Hel", "lo"]
    assert events[1].cursor == "41-k3x9q-57.1.p8r2dq7w3e-5"


async def test_feed_parts_goes_on_where_it_was() -> None:
    """Without a first seq, parts follow the last ones of that episode, or what was selected after."""
    async with AsyncExitStack() as stack:
        leg, control = await opened(ScriptedDialer(), stack)
        assert control.feed_parts(EPISODE, ["a", "b"]).last_seq == 2
        assert control.feed_parts(EPISODE, ["c"]).first_seq == 3
        assert control.feed_parts(NEXT, ["d"]).first_seq == 1
        await leg.select(EPISODE, 7)
        assert control.feed_parts(EPISODE, ["e"]).first_seq == 8


def test_a_truncated_burst_says_so() -> None:
    """A script can play a log that has lost its beginning."""
    assert text_burst(EPISODE, ["x"], first_seq=9, truncated=True).truncated


async def test_end_is_of_what_was_selected_last() -> None:
    """The usual end needs no episode; before any selection it does."""
    async with AsyncExitStack() as stack:
        leg, control = await opened(ScriptedDialer(), stack)
        with pytest.raises(ValueError, match="nothing was selected"):
            control.end("sealed", 0)
        await leg.select(NEXT, 0)
        control.end("not_owner", 0, "worker-c")
        control.hang_up()
        assert [item async for item in leg] == [LegEnd(NEXT, "not_owner", 0, "worker-c")]


async def test_a_dropped_leg_gives_what_was_fed_and_then_is_lost() -> None:
    """The loss comes after what had arrived, each time it is asked, and a select is refused at once."""
    async with AsyncExitStack() as stack:
        leg, control = await opened(ScriptedDialer(), stack)
        burst = control.feed_parts(EPISODE, ["a"])
        control.drop()
        items = aiter(leg)
        assert await anext(items) == burst
        for _ in range(2):
            with pytest.raises(LegLost, match="worker-b"), assert_checkpoints():
                await anext(items)
        with pytest.raises(LegLost):
            await leg.select(EPISODE, 1)
        with pytest.raises(trio.ClosedResourceError):
            control.feed_parts(EPISODE, ["b"])


async def test_a_drop_wakes_the_relay_that_waits() -> None:
    """A relay in the middle of a read learns of the loss without doing anything."""
    dialer = ScriptedDialer()
    async with trio.open_nursery() as nursery:

        async def drop() -> None:
            leg = (await dialer.next_dial()).complete()
            await leg.selected()
            await wait_all_tasks_blocked()
            leg.drop()

        nursery.start_soon(drop)
        with pytest.raises(LegLost):
            await use(dialer, [])


async def test_a_peer_that_hangs_up_just_ends_the_iteration() -> None:
    """Which means the same as a loss, as the contract of legs says; a select is refused."""
    async with AsyncExitStack() as stack:
        leg, control = await opened(ScriptedDialer(), stack)
        control.hang_up()
        assert [item async for item in leg] == []
        with pytest.raises(LegLost):
            await leg.select(EPISODE, 0)


async def test_a_cancelled_read_loses_nothing() -> None:
    """As the contract of legs says, before and after something was fed."""
    async with AsyncExitStack() as stack:
        leg, control = await opened(ScriptedDialer(), stack)
        items = aiter(leg)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, items)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        burst = control.feed_parts(EPISODE, ["a"])
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await anext(items)
        assert cancelled.cancelled_caught
        with assert_checkpoints():
            assert await anext(items) == burst


async def test_a_leg_has_one_reader() -> None:
    """Two tasks that read one leg are told, as with a real one."""
    async with AsyncExitStack() as stack:
        leg, control = await opened(ScriptedDialer(), stack)
        items = aiter(leg)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, items)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await anext(items)
            control.feed_parts(EPISODE, ["a"])


STEPS: dict[str, Callable[[ScriptedDial], object]] = {
    "complete": ScriptedDial.complete,
    "fail": ScriptedDial.fail,
    "feed": lambda dial: dial.leg is None or dial.leg.feed_parts(EPISODE, ["x"]),
    "drop": lambda dial: dial.leg is not None and dial.leg.drop(),  # type: ignore[func-returns-value]
}


@given(
    script=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([*STEPS, "cancel"])), max_size=30),
    stubborn=st.booleans(),
    schedule=st.random_module(),
)
@settings(max_examples=50)
def test_any_script_ends_quietly(script: list[tuple[int, str]], stubborn: bool, schedule: object) -> None:
    """Whatever a test does to several dials, in any order: each is in one state, and none is left over at the end."""
    dialer = ScriptedDialer(stubborn=stubborn)

    async def one(scope: trio.CancelScope) -> None:
        with scope:
            with suppress(DialError):
                await use(dialer, [])
        await trio.lowlevel.checkpoint()

    async def run() -> None:
        scopes = [trio.CancelScope() for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(one, scope)
                await dialer.next_dial()
            for number, step in script:
                dial = dialer.dials[number]
                if step == "cancel":
                    scopes[number].cancel()
                    await wait_all_tasks_blocked()
                    continue
                try:
                    STEPS[step](dial)
                except (ValueError, trio.ClosedResourceError):
                    assert dial.leg is not None or dial.error is not None
                assert dial.pending + dial.open + dial.closed <= 1
            for dial in dialer.pending_dials:
                dial.complete()
            for scope, dial in zip(scopes, dialer.dials, strict=True):
                scope.cancel()
                if dial.state == "cancelled" and stubborn:
                    dial.complete()
        dialer.assert_quiet()

    trio.run(run)
