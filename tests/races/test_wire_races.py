"""The numbered races of what travels between replicas, over the real dialer and real connections in memory."""

from __future__ import annotations

import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import wrap_server_stream

from relaytrio._dialer import DialRequest, LegEnd
from relaytrio._protocol.burst import join
from relaytrio._protocol.events import CaughtUp, Cursor, Degraded, Episode, MessagePart
from relaytrio._protocol.peer_wire import Ended, LegBurst, Release, Select, encode_control
from relaytrio._subscription import Subscription
from relaytrio.testing import Seams, check_stream, text_burst
from relaytrio.transport._leg import LEG
from relaytrio.transport._websocket import WebSocketFrames
from relaytrio.transport.dialer import WebSocketDialer
from relaytrio.transport.parts_endpoint import serve_parts
from tests.races.peers import SECRET, open_peers
from tests.races.race import race
from tests.races.stage import in_no_time, open_stage
from tests.scene import HERE, THERE, Scene, at_hand, kinds, texts, until

STATUS = b'{"type":"status","status":"waiting","worker_id":null,"version":99,"cursor":"1-abcde"}'


def _parts(scene: Scene, episode: Episode, *parts: str, first_seq: int) -> LegBurst:
    return LegBurst(LEG, text_burst(episode, parts, first_seq=first_seq, cursor=scene.begun_after[episode]))


def _rows(episode: Episode, first_seq: int, *rows: bytes) -> LegBurst:
    return LegBurst(LEG, join(episode, first_seq, rows))


def _no_parts(scene: Scene, episode: Episode, first_seq: int) -> list[str | bytes]:
    """What a peer that is broken or hostile might send in place of the part of that seq."""
    part = text_burst(episode, ["evil"], first_seq=first_seq, cursor=scene.begun_after[episode]).rows
    other = text_burst(Episode(1, 1, "other"), ["evil"], first_seq=first_seq, cursor=Cursor()).rows
    return [
        "",
        "evil",
        b"evil",
        f"[{STATUS.decode()}]",
        f"[{part.decode()}]",
        encode_control(Select(LEG, "c", episode, 0, "grant")),
        encode_control(Release(LEG)),
        encode_control(_rows(episode, first_seq, STATUS)),
        encode_control(_rows(episode, first_seq, part, STATUS)),
        encode_control(_rows(episode, first_seq, other)),
        encode_control(_rows(episode, first_seq + 1, part)),
    ]


@race(13, "selected, nothing read")
async def test_13_a_peer_that_sends_something_else(seams: Seams) -> None:
    """Only parts travel on a leg: anything else ends it and changes nothing; what came before stays."""
    async with open_stage() as scene, open_peers(scene) as peers:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            expected: list[str] = []
            for seq in range(1, len(_no_parts(scene, episode, 1)) + 1):
                peer = await peers.next()
                assert seq - 1 == (await peer.selected()).after_seq
                await peer.say(_parts(scene, episode, str(seq), first_seq=seq))
                async with in_no_time():
                    await peer.say(_no_parts(scene, episode, seq + 1)[seq - 1])
                    await peer.gone()
                expected.append(str(seq))
                events += await until(subscription, MessagePart, seq=seq)
                assert [] == await at_hand(subscription)
        assert expected == texts(events)
        assert {"message", "message_part", "status", "queue_update", "caught_up"} >= set(kinds(events))
        assert 1 == kinds(events).count("status")
        check_stream(events)


@race(13, "selected, nothing read")
async def test_13_ends_that_nobody_asked_for(seams: Seams) -> None:
    """The end of another episode, or of another leg, changes nothing; and the leg stays."""
    async with open_stage() as scene, open_peers(scene) as peers:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            events = await until(subscription, CaughtUp)
            peer = await peers.next()
            await peer.selected()
            await peer.say(Ended(LEG, Episode(99, 1, "other"), "sealed", 7))
            await peer.say(Ended(LEG + 1, episode, "sealed", 7))
            await peer.say(Ended(LEG, Episode(99, 1, "other"), "not_owner", 0, HERE))
            await peer.say(_parts(scene, episode, "a", first_seq=1))
            events += await until(subscription, MessagePart)
            assert [] == await at_hand(subscription)
            assert 1 == scene.relay.counts.dials
        check_stream(events)


OF_THE_UPGRADE = {"host", "upgrade", "connection"}
OURS = {"x-relaytrio-source-replica", "x-relaytrio-grant"}


@race(13, "selected, nothing read")
async def test_13_only_the_named_headers_are_sent(seams: Seams) -> None:
    """MINIMAL_HEADERS: at the first dial and at every further one."""
    headers = {"Cookie": "session=1", "Authorization": "Bearer x", "X-Trace": "1", "Origin": "http://x"}
    async with open_stage() as scene, open_peers(scene, forward_headers=["Authorization"]) as peers:
        await scene.acquire(THERE)
        async with Subscription(scene.replica, scene.chat_id, Cursor(), headers):
            for _ in range(3):
                peer = await peers.next()
                await peer.selected()
                sent = {name for name in peer.headers if not name.startswith("sec-websocket-")}
                assert OURS | {"authorization"} == sent - OF_THE_UPGRADE
                assert "Bearer x" == peer.headers["authorization"]
                await peer.say("evil")
                await peer.gone()


@race(13, "about to dial")
async def test_13_the_replica_id_is_asked_for_only_when_dialing(seams: Seams) -> None:
    """A replica that relays nothing needs no id; each dial asks for the present one."""
    async with open_stage() as scene, open_peers(scene) as peers:
        async with scene.subscribe() as subscription:
            await until(subscription, CaughtUp)
            stop = seams.stop("about to dial")
            await scene.acquire(THERE)
            async with stop:
                await wait_all_tasks_blocked()
                assert 0 == peers.ids_asked_for
            for dials in (1, 2, 3):
                peer = await peers.next()
                await peer.selected()
                assert dials == peers.ids_asked_for
                await peer.say("evil")
                await peer.gone()


@race(13, "chat looked up, not answered", "rows came, not laid down")
async def test_13_a_relayed_request_is_not_relayed(seams: Seams) -> None:
    """ONE_HOP: a replica that itself follows the chat serves a third nothing, says who owns it, and dials nobody."""
    async with open_stage() as scene, open_peers(scene) as peers, trio.open_nursery() as nursery:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            peer = await peers.next()
            await peer.selected()
            await peer.say(_parts(scene, episode, "a", first_seq=1))
            events = await until(subscription, MessagePart)

            async def open_stream(host: str, port: int) -> trio.abc.Stream:
                ours, theirs = memory_stream_pair()
                nursery.start_soon(_serve_here, scene, peers.clock, theirs)
                return ours

            third = WebSocketDialer(
                resolve=peers.resolve,
                replica_id=lambda: "third",
                secret=SECRET,
                settings=scene.replica.settings,
                clock=peers.clock,
                open_stream=open_stream,
            )
            async with third.dial(DialRequest(scene.chat_id, HERE)) as leg:
                await leg.select(episode, 0)
                async with seams.stop("chat looked up, not answered"):
                    await peer.say(_parts(scene, episode, "b", first_seq=2))
                    events += await until(subscription, MessagePart, seq=2)
                assert LegEnd(episode, "not_owner", 0, THERE) == await anext(aiter(leg))
                await peer.say(_parts(scene, episode, "c", first_seq=3))
                events += await until(subscription, MessagePart, seq=3)
                with trio.move_on_after(20):
                    raise AssertionError(f"relayed: {await anext(aiter(leg))}")
            assert 1 == scene.relay.counts.dials
        assert ["a", "b", "c"] == texts(events)
        nursery.cancel_scope.cancel()


async def _serve_here(scene: Scene, clock: object, stream: trio.abc.Stream) -> None:
    """The scene's replica serves one peer."""
    async with stream, trio.open_nursery() as nursery:
        request = await wrap_server_stream(nursery, stream)
        await serve_parts(
            WebSocketFrames(await request.accept(), stream),
            parts=scene.parts,
            store=scene.store,
            replica_id=HERE,
            secret=SECRET,
            source="third",
            settings=scene.replica.settings,
            clock=clock,  # type: ignore[arg-type]
        )
        nursery.cancel_scope.cancel()


async def _refused(status: int) -> None:
    async with open_stage() as scene, open_peers(scene, refuse_with=status) as peers:
        episode = await scene.acquire(THERE)
        async with scene.subscribe() as subscription:
            async with in_no_time():
                events = await until(subscription, CaughtUp)
                events += await until(subscription, Degraded, what="relay", ok=False)
                await wait_all_tasks_blocked()
                assert 2 == len(peers.grants) == len(set(peers.grants))
            await trio.sleep(14.9)
            assert 2 == len(peers.grants)
            await trio.sleep(0.2)
            assert 3 == len(peers.grants)
            peers.refuse_with = None
            peer = await peers.next()
            assert 30 == trio.current_time()
            await peer.selected()
            await peer.say(_parts(scene, episode, "a", first_seq=1))
            events += await until(subscription, MessagePart)
            assert 4 == len(set(peers.grants))
        assert ["a"] == texts(events)
        check_stream(events)


@race(10, "about to dial")
async def test_10_a_handshake_that_is_not_authorised(seams: Seams) -> None:
    """ALWAYS_RETRIES: 401: once more at once with a fresh grant, then told, and every 15 s."""
    await _refused(401)


@race(10, "about to dial")
async def test_10_a_handshake_that_is_forbidden(seams: Seams) -> None:
    """ALWAYS_RETRIES: 403: once more at once with a fresh grant, then told, and every 15 s."""
    await _refused(403)
