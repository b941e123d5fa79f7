"""A leg of the default dialer: open, left, and with the real endpoint at its other end; in virtual time."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, wrap_server_stream
from wsproto.events import BytesMessage, CloseConnection
from wsproto.utilities import LocalProtocolError

from relaytrio._dialer import DialRequest, LegEnd
from relaytrio._errors import LegLost
from relaytrio._parts import PartLogs
from relaytrio._protocol.peer_wire import Ended, Heartbeat, LegBurst, Release, Select, encode_control
from relaytrio._settings import Settings
from relaytrio.stores._base import Store
from relaytrio.transport._leg import BURSTS_WAITING, LEG
from relaytrio.transport._websocket import WebSocketFrames
from relaytrio.transport.dialer import WebSocketDialer
from relaytrio.transport.grants import check_select_grant
from relaytrio.transport.parts_endpoint import authorize_peer, serve_parts
from tests.transport.dialer_remote import (
    EPISODE,
    HERE,
    NEXT,
    NOW,
    SECRET,
    TAKEN_UNREAD,
    WORKER,
    Remote,
    burst,
    cluster,
    hang,
    make_dialer,
    resolved,
)


async def test_a_select_carries_a_fresh_grant() -> None:
    """Over the chat, the source, the target and the expiry."""
    async with cluster() as made, made.dial() as (leg, peer):
        await leg.select(EPISODE, 7)
        frame = await peer.heard()
    assert isinstance(frame, Select)
    assert (frame.leg, frame.chat_id, frame.episode, frame.after_seq) == (LEG, "chat", EPISODE, 7)
    check_select_grant(SECRET, frame.grant, chat_id="chat", source=HERE, target=WORKER, now=NOW)


async def test_selects_go_out_in_order() -> None:
    """None takes the place of another on its way: the peer decides what a newer one replaces."""
    async with cluster() as made, made.dial() as (leg, peer):
        await leg.select(EPISODE, 0)
        await leg.select(NEXT, 0)
        heard = [await peer.heard(), await peer.heard()]
    assert [frame.episode for frame in heard if isinstance(frame, Select)] == [EPISODE, NEXT]


async def test_bursts_and_ends_come_as_they_were_sent() -> None:
    """In order, with all they say."""
    async with cluster() as made, made.dial() as (leg, peer):
        cut = replace(burst(4, 5), truncated=True)
        await peer.say(LegBurst(LEG, cut))
        await peer.say(Ended(LEG, EPISODE, "sealed", 5))
        await peer.say(Ended(LEG, NEXT, "not_owner", 0, "replica-c"))
        got = [await anext(aiter(leg)) for _ in range(3)]
    assert got == [cut, LegEnd(EPISODE, "sealed", 5, None), LegEnd(NEXT, "not_owner", 0, "replica-c")]


async def test_frames_of_other_legs_and_types_and_heartbeats_are_passed_over() -> None:
    """Only what is for this leg comes out."""
    async with cluster() as made, made.dial() as (leg, peer):
        await peer.burst(1, leg=LEG + 1)
        await peer.say(Ended(LEG + 1, EPISODE, "sealed", 1))
        await peer.say(Heartbeat())
        await peer.say('{"v":2,"type":"wave"}')
        await peer.burst(2)
        assert await anext(aiter(leg)) == burst(2)


async def test_cancelling_a_wait_loses_nothing() -> None:
    """Whatever is cancelled when, every burst comes once and in order."""
    async with cluster() as made, made.dial() as (leg, peer), trio.open_nursery() as nursery:

        async def say_all() -> None:
            for seq in range(1, 101):
                await peer.burst(seq)

        nursery.start_soon(say_all)
        got: list[object] = []
        while len(got) < 100:
            scope = trio.CancelScope()
            nursery.start_soon(_cancel_soon, scope)
            with scope:
                got.append(await anext(aiter(leg)))
        assert got == [burst(seq) for seq in range(1, 101)]


async def _cancel_soon(scope: trio.CancelScope) -> None:
    await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_cancelled_wait_leaves_what_comes_later() -> None:
    """A wait that was cancelled in vain can be repeated."""
    async with cluster() as made, made.dial() as (leg, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(aiter(leg))
        assert scope.cancelled_caught
        await peer.burst(1)
        assert await anext(aiter(leg)) == burst(1)


async def test_a_flood_waits_for_its_taker(autojump_clock: MockClock) -> None:
    """Saturation: what a peer sends and nobody takes stays with the peer. To be slow is not to be silent."""
    async with cluster(lockstep=True) as made, made.dial() as (leg, peer), trio.open_nursery() as nursery:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for seq in range(1, 101):
                await peer.burst(seq)
                sent = seq

        async def hear() -> None:
            while True:
                await peer.heard()

        nursery.start_soon(flood)
        nursery.start_soon(hear)
        await trio.sleep(1000)
        # Waiting for the taker, held by the reader, in the library's queue, in its hands, and one being sent.
        assert sent <= BURSTS_WAITING + 4
        got = [await anext(aiter(leg)) for _ in range(100)]
        nursery.cancel_scope.cancel()
    assert got == [burst(seq) for seq in range(1, 101)]


async def test_a_leg_carries_heartbeats(autojump_clock: MockClock) -> None:
    """An empty frame every 15 s while there is nothing to select."""
    async with cluster() as made, made.dial() as (_, peer):
        start = trio.current_time()
        assert [await peer.heard(), await peer.heard()] == [Heartbeat(), Heartbeat()]
        assert trio.current_time() - start == 30


async def test_a_silent_peer_is_a_lost_leg(autojump_clock: MockClock) -> None:
    """After 45 s without a frame; heartbeats keep it."""
    async with cluster() as made, made.dial() as (leg, peer):
        await trio.sleep(40)
        await peer.say(Heartbeat())
        with pytest.raises(LegLost, match="nothing was heard"):
            await anext(aiter(leg))
        assert trio.current_time() == 85


async def test_a_peer_that_stops_reading_is_a_lost_leg(autojump_clock: MockClock) -> None:
    """15 s after the send began the stream is closed; nothing is written to it again."""
    async with cluster(lockstep=True) as made, made.dial() as (leg, _):
        for _ in range(TAKEN_UNREAD):
            await leg.select(EPISODE, 0)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        with pytest.raises(LegLost, match="taken nothing for 15 s"):
            await anext(aiter(leg))
        assert trio.current_time() - start == 15
        await wait_all_tasks_blocked()
        assert made.remote.all_closed
        with pytest.raises(LegLost):
            await leg.select(EPISODE, 0)


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "[1]",
        b"",
        b"\xff\n{}",
        '{"v":1,"type":"ended","leg":1}',
        encode_control(Select(LEG, "chat", EPISODE, 0, "grant")),
        encode_control(Release(LEG)),
        b"x" * 5_000_000,
    ],
)
async def test_a_frame_that_is_none_or_not_a_peers_loses_the_leg(frame: str | bytes) -> None:
    """What came before it can be taken; nothing of it or after it is."""
    async with cluster() as made, made.dial() as (leg, peer):
        await peer.burst(1)
        await peer.say(frame)
        with pytest.raises(ConnectionClosed):
            while True:
                await peer.burst(2)
                await trio.lowlevel.checkpoint()
        assert await anext(aiter(leg)) == burst(1)
        for _ in range(2):
            with pytest.raises(LegLost, match=WORKER):
                await anext(aiter(leg))


async def test_frames_that_are_too_large_one_after_the_other_lose_the_leg() -> None:
    """Nothing that comes behind the first one counts."""
    settings = Settings(leg_frame_bytes=1000, leg_receive_buffer_bytes=1 << 20)
    async with cluster(settings=settings) as made, made.dial() as (leg, peer):
        frames = [peer.connection._wsproto.send(BytesMessage(letter * 1001)) for letter in (b"x", b"y")]
        await peer.connection._stream.send_all(b"".join(frames))
        with pytest.raises(LegLost, match="closed"):
            await anext(aiter(leg))


async def test_an_endless_frame_takes_no_memory() -> None:
    """Saturation: a frame that never ends is given up at the limit, before it is whole."""
    async with cluster(settings=Settings(leg_frame_bytes=10_000)) as made, made.dial() as (leg, peer):
        with pytest.raises((trio.BrokenResourceError, LocalProtocolError)):
            for _ in range(20):
                piece = peer.connection._wsproto.send(BytesMessage(b"x" * 1000, message_finished=False))
                await peer.connection._stream.send_all(piece)
                await wait_all_tasks_blocked()
        with pytest.raises(LegLost):
            await anext(aiter(leg))


async def test_a_send_on_a_closing_websocket_is_a_broken_one() -> None:
    """Whatever state the library is in, it ends the connection and crashes nothing."""
    async with cluster() as made, made.dial() as (_, peer):
        frames = WebSocketFrames(peer.connection, peer.connection._stream)
        peer.connection._wsproto.send(CloseConnection(1000))
        with pytest.raises(trio.BrokenResourceError):
            await frames.send("[]")
        await frames.aclose_forcefully()
        await frames.aclose_forcefully()


@pytest.mark.parametrize("how", ["close", "going away", "cut"])
async def test_a_peer_that_leaves_is_a_lost_leg(how: str) -> None:
    """What came before can be taken; waiting and selecting then say so, and name the worker."""
    async with cluster() as made, made.dial() as (leg, peer), trio.open_nursery() as nursery:
        await peer.burst(1)
        await wait_all_tasks_blocked()
        if how == "cut":
            await trio.aclose_forcefully(peer.connection._stream)
        else:
            nursery.start_soon(peer.connection.aclose, 1000 if how == "close" else 1001)
        await wait_all_tasks_blocked()
        assert await anext(aiter(leg)) == burst(1)
        with pytest.raises(LegLost, match=WORKER) as lost:
            await anext(aiter(leg))
        assert lost.value.worker_id == WORKER
        with pytest.raises(LegLost, match=WORKER):
            await leg.select(NEXT, 0)
        assert made.remote.all_closed


async def test_leaving_does_not_wait_for_the_peer(autojump_clock: MockClock) -> None:
    """No closing handshake: no time passes, though the peer reads nothing."""
    async with cluster(lockstep=True) as made:
        async with made.dial() as (leg, _):
            for _ in range(TAKEN_UNREAD):
                await leg.select(EPISODE, 0)
            await wait_all_tasks_blocked()
            start = trio.current_time()
        assert trio.current_time() == start
        assert made.remote.all_closed


async def test_a_leg_that_was_left_is_closed() -> None:
    """Use after it is a mistake of the program, not a lost leg."""
    async with cluster() as made:
        async with made.dial() as (leg, _):
            pass
        with pytest.raises(trio.ClosedResourceError):
            await leg.select(EPISODE, 0)
        with pytest.raises(trio.ClosedResourceError):
            await anext(aiter(leg))


@pytest.mark.parametrize("error", [KeyError("mine"), ExceptionGroup("mine", [KeyError()]), LegLost(WORKER, "mine")])
async def test_an_error_of_the_body_leaves_as_it_was(error: Exception) -> None:
    """Not inside a group, and with its own context."""
    context = ValueError("before")
    error.__context__ = context
    async with cluster() as made:
        with pytest.raises(type(error)) as left:
            async with made.dialer.dial(DialRequest("chat", WORKER)):
                raise error
        assert left.value is error
        assert error.__context__ is context


async def test_a_lost_leg_does_not_cancel_the_body() -> None:
    """The body learns of it where it uses the leg, and nowhere else."""
    async with cluster() as made, made.dial() as (leg, peer):
        await trio.aclose_forcefully(peer.connection._stream)
        await wait_all_tasks_blocked()
        await trio.lowlevel.checkpoint()
        with pytest.raises(LegLost):
            await leg.select(EPISODE, 0)


@pytest.mark.parametrize("where", ["resolve", "connect", "tls", "handshake", "body", "receive", "select"])
async def test_cancelled_anywhere_it_leaves_nothing_open(where: str, autojump_clock: MockClock) -> None:
    """NO_LEAK: at every await; at once; and the next dial works."""
    async with cluster(lockstep=where == "select") as made:
        dialer = made.dialer
        if where in ("tls", "handshake"):
            made.remote.behave = hang
            dialer = make_dialer(made.remote, address="https://worker" if where == "tls" else "http://worker")
        elif where in ("resolve", "connect"):
            dialer = WebSocketDialer(
                resolve=_hang if where == "resolve" else resolved,
                replica_id=lambda: HERE,
                secret=SECRET,
                settings=Settings(),
                open_stream=_hang if where == "connect" else made.remote.open_stream,
            )

        async def use() -> None:
            async with dialer.dial(DialRequest("chat", WORKER)) as leg:
                while where == "select":
                    await leg.select(EPISODE, 0)
                if where == "receive":
                    await anext(aiter(leg))
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await wait_all_tasks_blocked()
            start = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() == start
        assert made.remote.all_closed


async def _hang(*_: object) -> Any:
    await trio.sleep_forever()


async def test_dials_cancelled_at_any_step_leave_nothing_open() -> None:
    """A cancellation after any number of steps of the scheduler closes what was opened by then."""
    async with cluster() as made:
        for steps in range(60):
            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, scope, steps)
                with scope:
                    async with made.dialer.dial(DialRequest("chat", WORKER)) as leg:
                        await leg.select(EPISODE, 0)
                        await anext(aiter(leg))
            assert made.remote.all_closed
            await wait_all_tasks_blocked()
            while made.peers.statistics().current_buffer_used:
                made.peers.receive_nowait()


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_dialer_and_an_endpoint_carry_an_answer(autojump_clock: MockClock) -> None:
    """Rows made on one replica come out on the other, live and to their end; the next episode on the same leg."""
    parts = PartLogs(Settings())
    source = ""

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal source
        async with stream, trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            headers = {name.decode(): value.decode() for name, value in request.headers}
            source = authorize_peer(headers, secret=SECRET, replica_id=WORKER, now=NOW)
            await serve_parts(
                WebSocketFrames(await request.accept(), stream),
                parts=parts,
                store=cast("Store", None),
                replica_id=WORKER,
                secret=SECRET,
                source=source,
                settings=Settings(),
                clock=lambda: NOW,
            )
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        remote = Remote(nursery, serve)
        copy: list[bytes] = []
        async with make_dialer(remote).dial(DialRequest("chat", WORKER)) as leg:
            for episode in (EPISODE, NEXT):
                log, copy = parts.make("chat", episode), []
                await leg.select(episode, 0)
                for seq in range(1, 51):
                    log.append(burst(seq, episode=episode).split())
                    await trio.sleep(0.5 if seq % 10 else 20)
                log.seal()
                async for brought in leg:
                    if isinstance(brought, LegEnd):
                        assert brought == LegEnd(episode, "sealed", 50)
                        break
                    assert brought.first_seq == len(copy) + 1
                    copy += brought.split()
                assert copy == burst(*range(1, 51), episode=episode).split()
        assert source == HERE
        assert remote.all_closed
    assert not parts.watched
