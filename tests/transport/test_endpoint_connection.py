"""A peer's connection to the parts endpoint: by what it is given up, and how much it may ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._protocol.events import Episode
from relaytrio._protocol.peer_wire import Ended, Heartbeat, Select, encode_control
from relaytrio.transport import _selections
from relaytrio.transport._selections import Selections
from relaytrio.transport._tasks import TaskFailed
from relaytrio.transport.parts_endpoint import CLOSING_SECONDS
from tests.transport.endpoint_peer import EPISODE, HERE, Endpoint, append, burst


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "\x00",
        "[1]",
        '{"v":1,"type":"select","leg":1}',
        b"",
        b"\xff\xfe",
        encode_control(Ended(1, EPISODE, "sealed", 3)),
        encode_control(burst(1)),
    ],
)
async def test_a_frame_that_is_none_or_not_a_peers_ends_the_connection(endpoint: Endpoint, frame: str | bytes) -> None:
    """Malformed frames, and those that only an endpoint sends."""
    endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        peer.say(frame)
        await endpoint.ends("it sent")


async def test_a_frame_beyond_the_limit_ends_the_connection(make_endpoint: Callable[..., Endpoint]) -> None:
    """Nothing of such a frame is taken."""
    endpoint = make_endpoint(leg_frame_bytes=1000)
    async with endpoint.running() as peer:
        peer.say("[" + " " * 1000 + "]")
        await endpoint.ends("1000 bytes")


async def test_frames_of_unknown_types_are_passed_over(endpoint: Endpoint) -> None:
    """A newer peer may have more to say."""
    endpoint.log(1)
    async with endpoint.running() as peer:
        peer.say('{"v":2,"type":"wave"}')
        peer.select()
        assert await peer.next() == burst(1)


async def test_an_idle_connection_carries_heartbeats(endpoint: Endpoint, autojump_clock: MockClock) -> None:
    """An empty frame after every 15 s without any other."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        start = trio.current_time()
        assert await peer.next() == Heartbeat()
        assert trio.current_time() - start == 15
        await trio.sleep(10)
        append(log, 1)
        assert await peer.next() == burst(1)
        assert await peer.next() == Heartbeat()
        assert trio.current_time() - start == 40


async def test_a_silent_peer_is_dropped(endpoint: Endpoint, autojump_clock: MockClock) -> None:
    """45 s without a frame, though it takes all that it is sent."""
    endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        assert [await peer.next(), await peer.next()] == [Heartbeat(), Heartbeat()]
        peer.say(Heartbeat())
        assert [await peer.next(), await peer.next()] == [Heartbeat(), Heartbeat()]
        await trio.sleep(16)
        await endpoint.ends("nothing was heard")


async def test_a_peer_that_stops_reading_is_cut(endpoint: Endpoint, autojump_clock: MockClock) -> None:
    """15 s after the send began; nothing is ever sent again, and no log is watched any more."""
    log = endpoint.log(1)
    async with endpoint.running() as peer:
        peer.select()
        await trio.sleep(14)
        append(log, 2)
        assert peer.reason is None
        await trio.sleep(2)
        await endpoint.ends("taken nothing")
        assert (peer.sends_cancelled, peer.sends_after_that) == (1, 0)


async def test_a_peer_that_leaves_ends_the_connection(endpoint: Endpoint) -> None:
    """Even while a frame is being sent to it: the writer races the reader."""
    endpoint.log(1)
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        peer.leave()
        await endpoint.ends("closed")


async def test_a_peer_that_vanishes_during_a_send_ends_the_connection(endpoint: Endpoint) -> None:
    """A broken send is noticed by the writer."""
    endpoint.log(1)
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        peer._from_endpoint.close()
        await endpoint.ends("closed")


@pytest.mark.parametrize("where", ["receive", "send", "store", "wakeup"])
async def test_cancelled_anywhere_nothing_is_left(endpoint: Endpoint, where: str) -> None:
    """NO_LEAK: the connection is closed, nothing is sent any more, no log is watched."""
    if where == "send":
        endpoint.log(1)
    elif where == "wakeup":
        endpoint.log()
    elif where == "store":
        endpoint.chats.gate = trio.Event()
    async with endpoint.running() as peer:
        if where != "receive":
            peer.select()
        await wait_all_tasks_blocked()
        endpoint.scope.cancel()
        await wait_all_tasks_blocked()
        assert (peer.closed, endpoint.watched, peer.sends_after_that) == (1, 0, 0)
        assert peer.reason is None


async def test_a_connection_that_cannot_be_closed_hangs_no_shutdown(
    endpoint: Endpoint, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letting go takes a second at most, whatever the server below does."""
    monkeypatch.setattr(endpoint.peer, "aclose_forcefully", trio.sleep_forever)
    async with endpoint.running():
        await wait_all_tasks_blocked()
        start = trio.current_time()
    assert trio.current_time() - start == CLOSING_SECONDS


async def test_more_selects_than_a_leg_can_wait_for_end_the_connection(endpoint: Endpoint) -> None:
    """Saturation: a peer that selects and takes nothing is cut; memory does not grow with it."""
    for attempt in range(1, 30):
        endpoint.log(1, episode=Episode(9, attempt, "run0"), seal=True)
    async with endpoint.running() as peer:
        for attempt in range(1, 30):
            peer.select(Episode(9, attempt, "run0"))
        await endpoint.ends("selected more than 16 times")


async def test_refusals_that_nobody_takes_end_the_connection(endpoint: Endpoint) -> None:
    """Saturation: answers to bad selects do not pile up."""
    async with endpoint.running() as peer:
        for _ in range(30):
            peer.select(grant="bad")
        await endpoint.ends("selected more than 16 times")


async def test_a_peer_may_follow_all_that_runs_here(make_endpoint: Callable[..., Endpoint]) -> None:
    """Over its one connection, however many chats a worker is allowed to run; one too many would cut all of them."""
    endpoint = make_endpoint(max_runs=1500)
    endpoint.log(1)
    async with endpoint.running() as peer:
        for leg in range(1500):
            peer.select(leg=leg)
        await wait_all_tasks_blocked()
        assert (peer.reason, peer.closed) == (None, 0)


async def test_more_legs_than_a_connection_has_end_it(
    make_endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saturation: the number of legs is bounded."""
    monkeypatch.setattr(_selections, "LEGS", 5)
    endpoint = make_endpoint(max_runs=1)
    endpoint.log()
    async with endpoint.running() as peer:
        for leg in range(5):
            peer.select(leg=leg)
        await peer.nothing_comes()
        peer.select(leg=5)
        await endpoint.ends("more than 5 legs")


async def test_legs_that_come_and_go_behind_a_stalled_send_take_no_room(endpoint: Endpoint) -> None:
    """Saturation: a peer that reads nothing cannot fill the list of those whose turn it is."""
    endpoint.log(1)
    selections = Selections(endpoint.parts, burst_bytes=1000, runs=1, wake=lambda: None, wake_for_rows=lambda: None)
    for leg in range(1000):
        selections.add(Select(leg, "chat", EPISODE, 0, ""))
        selections.release(leg)
    assert (len(selections), len(selections._ready), endpoint.watched) == (0, 0, 0)


async def test_a_flood_of_selects_of_one_leg_takes_no_room(endpoint: Endpoint) -> None:
    """Only the last of those that replace each other is kept."""
    endpoint.chats.owned_by(HERE)
    async with endpoint.running() as peer:
        for attempt in range(2, 1000):
            peer.select(Episode(5, attempt, "run0"))
        await peer.nothing_comes()
        assert endpoint.watched == 1
        endpoint.log(1, episode=Episode(5, 999, "run0"))
        assert await peer.next() == burst(1, episode=Episode(5, 999, "run0"))


async def test_a_failure_of_our_own_leaves_plain(endpoint: Endpoint) -> None:
    """Not inside a group: one exception of this package, with its cause; the connection is closed."""
    endpoint.chats.chat = ZeroDivisionError()
    endpoint.peer.select()
    with pytest.raises(TaskFailed) as failed:
        await endpoint.serve()
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    assert endpoint.peer.closed == 1
