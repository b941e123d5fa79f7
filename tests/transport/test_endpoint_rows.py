"""What the parts endpoint sends of the logs that are here: rows, ends, and whose turn it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from trio.testing import wait_all_tasks_blocked

from relaytrio._protocol.burst import Burst
from relaytrio._protocol.peer_wire import Bundle, Ended, Heartbeat, LegBurst, Release
from tests.transport.endpoint_peer import EPISODE, HERE, NEXT, Endpoint, append, burst, leg_of, rows, sealed


async def test_a_sealed_log_comes_whole_with_its_end(endpoint: Endpoint) -> None:
    """All rows, then `ended sealed` as a frame; the connection stays."""
    endpoint.log(1, 2, 3, seal=True)
    async with endpoint.running() as peer:
        peer.select()
        assert [await peer.next(), await peer.next()] == [burst(1, 2, 3), sealed(3)]
        await peer.nothing_comes()
        assert peer.closed == 0


async def test_only_rows_after_the_selected_seq_come(endpoint: Endpoint) -> None:
    """A select says what is known already."""
    endpoint.log(1, 2, 3, seal=True)
    async with endpoint.running() as peer:
        peer.select(after_seq=2)
        assert [await peer.next(), await peer.next()] == [burst(3), sealed(3)]


async def test_a_select_after_the_last_row_of_a_sealed_log_gets_its_end(endpoint: Endpoint) -> None:
    """Who has all rows is told that there are no more."""
    endpoint.log(1, 2, seal=True)
    async with endpoint.running() as peer:
        peer.select(after_seq=2)
        assert await peer.next() == sealed(2)


async def test_an_empty_sealed_log_has_an_end(endpoint: Endpoint) -> None:
    """An episode that generated nothing ends too."""
    endpoint.log(seal=True)
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == sealed(0)


async def test_what_accumulates_during_a_send_goes_into_one_frame(endpoint: Endpoint) -> None:
    """A flood travels in large frames."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        append(log, 1)
        await wait_all_tasks_blocked()
        for seq in range(2, 101):
            append(log, seq)
            await wait_all_tasks_blocked()
        assert [await peer.next(), await peer.next()] == [burst(1), burst(*range(2, 101))]
        log.seal()
        assert await peer.next() == sealed(100)


async def test_a_frame_has_at_most_the_bytes_of_a_burst(make_endpoint: Callable[..., Endpoint]) -> None:
    """What does not fit into one frame goes into the next."""
    endpoint = make_endpoint(burst_bytes=1000)
    append(endpoint.parts.make("chat", EPISODE), *range(1, 51), size=40)
    async with endpoint.running() as peer:
        peer.select()
        got: list[Burst] = []
        while not got or got[-1].last_seq < 50:
            frame = await peer.next()
            assert isinstance(frame, LegBurst)
            got.append(frame.burst)
    assert max(len(burst.rows) for burst in got) <= 1000
    assert [row for burst in got for row in burst.split()] == rows(*range(1, 51), size=40)


async def test_rows_of_several_legs_travel_in_one_frame(endpoint: Endpoint) -> None:
    """To a peer that takes bundles; an end goes alone, after the rows before it and before those after it."""
    logs = [endpoint.parts.make(f"chat{leg}", EPISODE) for leg in (1, 2, 3)]
    async with endpoint.running() as peer:
        for leg in (1, 2, 3):
            peer.select(leg=leg, chat=f"chat{leg}", bundles=leg == 2)
        await wait_all_tasks_blocked()
        append(logs[0], 1)
        await wait_all_tasks_blocked()  # ... and waits to be taken; what comes meanwhile goes together
        for log in logs:
            append(log, log.last_seq + 1)
        logs[1].seal()
        assert burst(1) == await peer.next()
        assert Bundle((burst(2), burst(1, leg=2), burst(1, leg=3))) == await peer.next()
        assert sealed(1, leg=2) == await peer.next()
        await peer.nothing_comes()
        append(logs[0], 3)
        assert burst(3) == await peer.next()


async def test_an_end_is_not_overtaken_by_a_bundle(endpoint: Endpoint) -> None:
    """What is found while a bundle is put together goes out right behind it."""
    first, second = endpoint.parts.make("chat1", EPISODE), endpoint.parts.make("chat2", EPISODE)
    async with endpoint.running() as peer:
        peer.select(leg=1, chat="chat1", bundles=True)
        peer.select(leg=2, chat="chat2", bundles=True)
        await wait_all_tasks_blocked()
        append(first, 1)
        await wait_all_tasks_blocked()
        append(second, 1)
        first.seal()
        await wait_all_tasks_blocked()
        assert [burst(1), burst(1, leg=2), sealed(1)] == [await peer.next() for _ in range(3)]


async def test_an_older_peer_gets_no_bundle(endpoint: Endpoint) -> None:
    """It has never said that it takes them."""
    logs = [endpoint.parts.make(f"chat{leg}", EPISODE) for leg in (1, 2)]
    async with endpoint.running() as peer:
        for leg in (1, 2):
            peer.select(leg=leg, chat=f"chat{leg}")
        append(logs[0], 1)
        await wait_all_tasks_blocked()
        append(logs[0], 2)
        append(logs[1], 1)
        frames = [await peer.next() for _ in range(3)]
    assert [burst(1), burst(2), burst(1, leg=2)] == sorted(frames, key=lambda frame: frame.leg)  # type: ignore[union-attr]


async def test_a_bundle_has_at_most_the_bytes_of_a_burst(make_endpoint: Callable[..., Endpoint]) -> None:
    """A leg whose turn comes late in it waits for the next, or gets there what is left of the room."""
    endpoint = make_endpoint(burst_bytes=1000)
    for leg in range(1, 11):
        append(endpoint.parts.make(f"chat{leg}", EPISODE), *range(1, 11), size=20)
    taken: dict[int, list[bytes]] = {leg: [] for leg in range(1, 11)}
    async with endpoint.running() as peer:
        for leg in range(1, 11):
            peer.select(leg=leg, chat=f"chat{leg}", bundles=True)
        while sum(map(len, taken.values())) < 100:
            frame = await peer.next()
            assert isinstance(frame, LegBurst | Bundle)
            bursts = frame.bursts if isinstance(frame, Bundle) else (frame,)
            assert sum(len(of_leg.burst.rows) for of_leg in bursts) <= 1000
            for of_leg in bursts:
                taken[of_leg.leg] += of_leg.burst.split()
    assert dict.fromkeys(taken, rows(*range(1, 11), size=20)) == taken


async def test_a_log_that_lost_its_beginning_says_so(make_endpoint: Callable[..., Endpoint]) -> None:
    """The first burst is marked `truncated`: to the other side that is no gap."""
    endpoint = make_endpoint(part_log_bytes=200)
    log = endpoint.log(*range(1, 41))
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == burst(*range(log.first_seq, 41), truncated=True)


async def test_a_leg_takes_one_select_after_the_other(endpoint: Endpoint) -> None:
    """The end of an episode does not end the leg."""
    endpoint.log(1, seal=True)
    endpoint.log(1, 2, episode=NEXT, seal=True)
    async with endpoint.running() as peer:
        peer.select()
        assert [await peer.next(), await peer.next()] == [burst(1), sealed(1)]
        peer.select(NEXT)
        assert [await peer.next(), await peer.next()] == [burst(1, 2, episode=NEXT), sealed(2, NEXT)]


async def test_a_log_forgotten_before_all_of_it_was_sent_is_over(make_endpoint: Callable[..., Endpoint]) -> None:
    """A slow leg holds no memory: what is forgotten is gone for it too, and it is told."""
    endpoint = make_endpoint(burst_bytes=1)
    endpoint.log(1, 2, 3, seal=True)
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        endpoint.parts._forget(("chat", EPISODE))
        assert [await peer.next(), await peer.next()] == [burst(1), Ended(1, EPISODE, "over", 1)]


@pytest.mark.parametrize("seal", [True, False])
async def test_a_select_beyond_the_end_of_a_log_ends(endpoint: Endpoint, seal: bool) -> None:
    """Rows that were never made here are not waited for; the leg can select again."""
    endpoint.log(1, 2, seal=seal)
    async with endpoint.running() as peer:
        peer.select(after_seq=3)
        assert await peer.next() == Ended(1, EPISODE, "beyond", 2)
        peer.select(after_seq=1)
        assert await peer.next() == burst(2)


async def test_a_log_that_appears_too_short_ends_the_select(endpoint: Endpoint) -> None:
    """`beyond` holds also for a log that came after the select."""
    endpoint.chats.owned_by(HERE)
    async with endpoint.running() as peer:
        peer.select(after_seq=1)
        await peer.nothing_comes()
        endpoint.log()
        assert await peer.next() == Ended(1, EPISODE, "beyond", 0)


async def test_one_connection_carries_many_legs(endpoint: Endpoint) -> None:
    """Each leg gets its own rows, of its own chat; two may have the same."""
    endpoint.log(1, seal=True)
    endpoint.log(1, 2, seal=True, chat="other")
    async with endpoint.running() as peer:
        peer.select(leg=1)
        peer.select(leg=2, chat="other")
        peer.select(leg=3)
        got = [await peer.next() for _ in range(6)]
    assert [frame for frame in got if frame in (burst(1), sealed(1))] == [burst(1), sealed(1)]
    assert [burst(1, 2, leg=2), sealed(2, leg=2)] == [
        frame for frame in got if frame is not None and leg_of(frame) == 2
    ]
    assert [burst(1, leg=3), sealed(1, leg=3)] == [frame for frame in got if frame is not None and leg_of(frame) == 3]


async def test_a_flood_on_one_leg_does_not_hold_up_another(make_endpoint: Callable[..., Endpoint]) -> None:
    """Legs take turns, a frame each."""
    endpoint = make_endpoint(burst_bytes=1)
    endpoint.log(*range(1, 101))
    other = endpoint.log(chat="other")
    async with endpoint.running() as peer:
        peer.select(leg=1)
        peer.select(leg=2, chat="other")
        assert leg_of((await peer.next()) or Heartbeat()) == 1
        await wait_all_tasks_blocked()
        append(other, 1)
        got = [await peer.next() for _ in range(3)]
    assert burst(1, leg=2) in got


async def test_two_legs_of_one_episode_are_woken_independently(endpoint: Endpoint) -> None:
    """Releasing one of them leaves the other one awake."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select(leg=1)
        peer.select(leg=2)
        peer.say(Release(1))
        await peer.nothing_comes()
        append(log, 1)
        assert await peer.next() == burst(1, leg=2)
        await peer.nothing_comes()
