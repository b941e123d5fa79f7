"""Connections of a simulated network: what arrives, in which order, and what each fault looks like from either end."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from relaytrio.testing import Network
from relaytrio.testing._simulated_network import ROOM_BYTES, End


async def connected(network: Network) -> tuple[End, End]:
    """Both ends of a connection from node 0 to node 1."""
    accepted: list[End] = []
    network.listen(1, accepted.append)
    near = await network.connect(0, 1)
    return near, accepted[-1]


async def received_within(end: End, seconds: float) -> bytes | str | None:
    with trio.move_on_after(seconds):
        return await end.receive()
    return "nothing"


async def test_one_connection_keeps_its_order_and_two_do_not(autojump_clock: MockClock) -> None:
    """Latencies are drawn for everything that is sent."""
    network = Network(Random(1))
    network.latency_seconds = (0.0, 1.0)
    pairs = [await connected(network) for _ in range(2)]
    arrived: list[tuple[int, bytes]] = []

    async def take(number: int) -> None:
        for _ in range(10):
            item = await pairs[number][1].receive()
            assert item is not None
            arrived.append((number, item))

    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(take, number)
        for item in range(10):
            for near, _ in pairs:
                await near.send(bytes([item]))
    for number in range(2):
        assert [bytes([item]) for item in range(10)] == [item for who, item in arrived if who == number]
    assert arrived != sorted(arrived, key=lambda one: one[1])


async def test_a_cut_link_holds_what_is_sent_until_it_is_mended(autojump_clock: MockClock) -> None:
    """Nothing is lost, nothing arrives, and who connects waits."""
    network = Network(Random(1))
    near, far = await connected(network)
    network.partition(1, 0)
    await near.send(b"held")
    assert "nothing" == await received_within(far, 100)
    with trio.move_on_after(100) as waiting:
        await network.connect(0, 1)
    assert waiting.cancelled_caught
    assert 0 == network.dialing
    network.heal()
    assert b"held" == await received_within(far, 0.1)
    assert (await network.connect(0, 1)) is not None


async def test_a_reset_is_noticed_at_both_ends(autojump_clock: MockClock) -> None:
    """At once, also by who is waiting."""
    network = Network(Random(1))
    near, far = await connected(network)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await far.receive()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        network.drop(0, 1)
    with pytest.raises(trio.BrokenResourceError):
        await near.send(b"too late")


async def test_a_half_open_connection_takes_everything_and_brings_nothing(autojump_clock: MockClock) -> None:
    """Until its buffers are full. A new connection works."""
    network = Network(Random(1))
    near, far = await connected(network)
    network.half_open(0, 1)
    await near.send(b"gone")
    assert "nothing" == await received_within(far, 1000)
    with trio.move_on_after(100) as stuck:
        for _ in range(3):
            await near.send(bytes(ROOM_BYTES))
    assert stuck.cancelled_caught
    near.close()
    assert "nothing" == await received_within(far, 1000)
    again, there = await connected(network)
    await again.send(b"here")
    assert b"here" == await received_within(there, 0.1)


async def test_the_end_comes_after_what_was_sent(autojump_clock: MockClock) -> None:
    """A close is no loss; after it nothing can be sent, and when both ends are closed nothing is left."""
    network = Network(Random(1))
    near, far = await connected(network)
    await near.send(b"last")
    near.close()
    near.close()
    assert b"last" == await received_within(far, 1)
    assert None is await received_within(far, 1)
    assert None is await received_within(far, 1)
    with pytest.raises(trio.BrokenResourceError):
        await far.send(b"to nobody")
    with pytest.raises(trio.ClosedResourceError):
        await near.receive()
    assert 1 == network.connections
    far.close()
    assert 0 == network.connections


async def test_a_sender_waits_for_a_reader(autojump_clock: MockClock) -> None:
    """A side that does not read lets the other wait, and no memory grows."""
    network = Network(Random(1))
    near, far = await connected(network)
    await near.send(bytes(ROOM_BYTES))
    with trio.move_on_after(100) as stuck:
        await near.send(b"more")
    assert stuck.cancelled_caught
    assert bytes(ROOM_BYTES) == await far.receive()
    await near.send(b"more")
    assert b"more" == await far.receive()


@pytest.mark.parametrize("silently", [False, True])
async def test_a_node_that_is_gone(autojump_clock: MockClock, silently: bool) -> None:
    """Its process resets its connections; its machine tells nobody. Either way nobody listens there any more."""
    network = Network(Random(1))
    near, _ = await connected(network)
    network.leave(1, silently=silently)
    if silently:
        assert "nothing" == await received_within(near, 1000)
    else:
        with pytest.raises(trio.BrokenResourceError):
            await near.receive()
    with pytest.raises(ConnectionRefusedError):
        await network.connect(0, 1)
