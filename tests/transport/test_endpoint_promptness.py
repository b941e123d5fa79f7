"""When the parts endpoint sends: alone or together, in the step of a row or by its writer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._parts import PartLog
from relaytrio._protocol.peer_wire import Ended, LegBurst, decode_control
from relaytrio.transport.parts_endpoint import FEW, TOGETHER
from tests.transport.endpoint_peer import EPISODE, MUCH, Endpoint, PromptPeer, append, burst, sealed


async def test_a_lone_row_leaves_at_once(endpoint: Endpoint) -> None:
    """There is no timer: no time passes between a row and its frame."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        await peer.nothing_comes()
        append(log, 1)
        await wait_all_tasks_blocked()
        assert decode_control(peer._from_endpoint.receive_nowait(), limit_bytes=MUCH) == burst(1)


@pytest.fixture
def prompt(endpoint: Endpoint) -> PromptPeer:
    """The endpoint's peer is one that takes frames without waiting."""
    peer = endpoint.peer = PromptPeer()
    return peer


@asynccontextmanager
async def selected(endpoint: Endpoint, prompt: PromptPeer) -> AsyncIterator[PartLog]:
    """The log that the peer has selected, and its writer waits."""
    log = endpoint.log()
    async with endpoint.running():
        prompt.select()
        await trio.sleep(0.001)
        yield log


async def test_a_row_that_comes_alone_leaves_in_its_own_step(
    endpoint: Endpoint, prompt: PromptPeer, autojump_clock: MockClock
) -> None:
    """No task has to run for it; nor for the end of the log."""
    async with selected(endpoint, prompt) as log:
        for seq in (1, 2, 3):
            await trio.sleep(0.001)
            append(log, seq)
            assert [burst(seq)] == prompt.taken()
        await trio.sleep(0.001)
        log.seal()
        assert [sealed(3)] == prompt.taken()
        await wait_all_tasks_blocked()
        assert [] == prompt.taken()


@pytest.mark.parametrize("few", [2, FEW])
async def test_a_few_rows_that_come_together_leave_in_their_own_steps(
    endpoint: Endpoint, prompt: PromptPeer, autojump_clock: MockClock, few: int
) -> None:
    """As if each came alone, time after time."""
    async with selected(endpoint, prompt) as log:
        for first in (1, few + 1):
            await trio.sleep(0.001)
            for seq in range(first, first + few):
                append(log, seq)
                assert [burst(seq)] == prompt.taken()


async def test_rows_that_come_together_are_left_to_the_writer(
    endpoint: Endpoint, prompt: PromptPeer, autojump_clock: MockClock
) -> None:
    """The first of them leave as if they were alone, once: whose rows come so is known from then on."""
    async with selected(endpoint, prompt) as log:
        last = 0
        for at_once in (FEW, 0, 0):
            await trio.sleep(0.001)
            group = range(last + 1, last + FEW + 3)
            for seq in group:
                append(log, seq)
            assert [burst(seq) for seq in group[:at_once]] == prompt.taken()
            await wait_all_tasks_blocked()
            assert [burst(*group[at_once:])] == prompt.taken()
            last = group[-1]
        await trio.sleep(0.001)
        append(log, last + 1)
        assert [] == prompt.taken()
        await trio.sleep(0.001)
        assert [burst(last + 1)] == prompt.taken()
        append(log, last + 2)
        assert [burst(last + 2)] == prompt.taken()


async def test_what_does_not_go_out_whole_is_left_to_the_writer(
    endpoint: Endpoint, prompt: PromptPeer, autojump_clock: MockClock
) -> None:
    """Its rest first, and then what has come meanwhile."""
    async with selected(endpoint, prompt) as log:
        prompt.whole = False
        append(log, 1)
        assert [burst(1)] == prompt.taken()
        prompt.free = False
        append(log, 2)
        assert [] == prompt.taken()
        await wait_all_tasks_blocked()
        assert 1 == prompt.flushed
        assert await prompt.next() == burst(2)
        prompt.free = prompt.whole = True
        await trio.sleep(0.001)
        append(log, 3)
        await wait_all_tasks_blocked()
        assert [burst(3)] == prompt.taken()


async def test_only_one_frame_leaves_in_the_step_of_a_row(
    make_endpoint: Callable[..., Endpoint], autojump_clock: MockClock
) -> None:
    """However much there is for that peer: whoever appends does not send all of it."""
    endpoint = make_endpoint(burst_bytes=1000)
    peer = endpoint.peer = PromptPeer()
    log = endpoint.log()
    logs = [endpoint.log(1, 2, 3, chat=f"chat{leg}") for leg in range(2, 6)]
    async with endpoint.running():
        peer.select()
        await trio.sleep(0.001)
        # As when a peer comes back: its selects have been read, and the writer was woken by none of them yet.
        for leg, other in enumerate(logs, 2):
            peer.select(leg=leg, chat=other.chat_id)
        await wait_all_tasks_blocked()
        taken = peer.taken()
        assert 4 == len(taken)
        await trio.sleep(0.001)
        append(log, *range(1, 41), size=40)
        assert 1 == len(peer.taken())
        await wait_all_tasks_blocked()
        assert 1 < len(peer.taken())


async def test_a_log_that_is_forgotten_in_the_step_of_another_s_row(
    make_endpoint: Callable[..., Endpoint], autojump_clock: MockClock
) -> None:
    """Its end leaves in that step too, and its selection with it: whoever appends the row learns nothing of that."""
    endpoint = make_endpoint(part_logs_bytes=100_000)
    peer = endpoint.peer = PromptPeer()
    logs = [endpoint.log(chat="chat1"), endpoint.log(chat="chat2")]
    async with endpoint.running():
        for leg, log in enumerate(logs, 1):
            peer.select(leg=leg, chat=log.chat_id)
        await trio.sleep(0.001)
        for seq in range(1, FEW + 3):
            append(logs[0], seq)
        # All in one turn of the loop: the writer, which was woken, does not come to run.
        autojump_clock.jump(0.001)
        logs[0].seal()
        autojump_clock.jump(0.001)
        append(logs[1], 1, size=101_000)
        assert (None, 1) == (endpoint.parts.find("chat1", EPISODE), logs[1].last_seq)
        assert "over" in [frame.reason for frame in peer.taken() if isinstance(frame, Ended)]


@pytest.mark.parametrize("loss", [trio.BrokenResourceError, trio.ClosedResourceError])
async def test_a_connection_that_is_lost_by_a_row_ends(
    endpoint: Endpoint, prompt: PromptPeer, loss: type[Exception], autojump_clock: MockClock
) -> None:
    """Whoever appends it is not told: it is nobody's fault there."""
    async with selected(endpoint, prompt) as log:
        prompt.lost = loss
        append(log, 1)
        append(log, 2)
        await endpoint.ends("the connection was closed")


async def test_parts_that_come_fast_come_together(endpoint: Endpoint) -> None:
    """A part a turn of the loop, as from a responder that never waits: few frames, though the peer takes each at once,
    and the first part alone; the last one leaves as soon as nothing follows."""
    log = endpoint.log()
    got: list[int] = []
    async with endpoint.running() as peer, trio.open_nursery() as nursery:
        peer.select()
        await wait_all_tasks_blocked()

        async def take() -> None:
            while sum(got) < 1000:
                frame = await peer.next()
                assert isinstance(frame, LegBurst)
                got.append(frame.burst.count)

        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        for seq in range(1, 1001):
            append(log, seq)
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        assert 1000 == sum(got)
    assert got[0] <= 2
    assert max(got) <= TOGETHER + 4
    assert len(got) <= 1000 // (TOGETHER // 2)


async def test_a_part_that_comes_alone_leaves_at_once(endpoint: Endpoint) -> None:
    """No turn of the loop is waited for when the one before has left, nor is it waited for others for ever."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        for seq in range(1, 4):
            append(log, seq)
            assert burst(seq) == await peer.next()
            await wait_all_tasks_blocked()
        turns = 0
        while peer.sending is None:
            append(log, 4 + turns)
            turns += 1
            await trio.lowlevel.checkpoint()
        assert turns <= 3
