"""The viewer listener and what may come over its sockets: nothing of it ends more than its own connection."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from starlette.requests import HTTPConnection
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

import relaytrio
from relaytrio._protocol.events import Cursor
from relaytrio._settings import Settings
from relaytrio.testing import text_burst
from relaytrio.transport._authorize import Authorize
from relaytrio.transport._problems import TYPE_PREFIX
from relaytrio.transport._server_frames import rows_frame, text_frame
from relaytrio.transport._upgrade import HEAD_BYTES
from relaytrio.transport._viewers import Viewers
from tests.transport.site import SETTINGS, Site, open_site
from tests.transport.viewer_client import Client, connect, server_context, upgrade

SMALL = 4096
"""A socket's buffer, in bytes; the system doubles it."""


@attrs.frozen
class Listener:
    """A site with the listener."""

    site: Site
    viewers: Viewers

    @asynccontextmanager
    async def watch(self, **options: object) -> AsyncIterator[Client]:
        """A viewer who has caught up."""
        async with connect(self.viewers, **options) as client:  # type: ignore[arg-type]
            await client.ask(self.site.target)
            assert await client.opened()
            await client.until("caught_up")
            yield client


@asynccontextmanager
async def open_listener(
    settings: Settings = SETTINGS, *, authorize: Authorize | None = None, tls: bool = False
) -> AsyncIterator[Listener]:
    async with trio.open_nursery() as nursery, open_site(settings) as site:
        context = server_context() if tls else None
        viewers = Viewers(site.engine, authorize, recheck_seconds=None, ssl_context=context, random=lambda: 0.5)
        await nursery.start(viewers.run)
        yield Listener(site, viewers)
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------ the opening


@pytest.mark.parametrize(
    ("request_", "status", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404, "route-not-found"),
        (b"GET /v1/chats/%2e%2e%2fx/stream HTTP/1.1\r\nHost: x\r\n\r\n", 404, "route-not-found"),
        (b"GET http://x/v1/chats/c/stream HTTP/1.1\r\nHost: x\r\n\r\n", 404, "route-not-found"),
        (b"POST /v1/chats/c/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405, "method-not-allowed"),
        (b"GET /v1/chats/c/stream HTTP/1.1\r\nHost: x\r\n\r\n", 426, "upgrade-required"),
        (upgrade("/v1/chats/c/stream", {"Upgrade": "h2c"}), 426, "upgrade-required"),
        (upgrade("/v1/chats/c/stream", {"Sec-WebSocket-Version": "8"}), 426, "upgrade-required"),
        (upgrade("/v1/chats/c/stream", without="Connection"), 426, "upgrade-required"),
        (upgrade("/v1/chats/c/stream", without="Sec-WebSocket-Key"), 426, "upgrade-required"),
        (upgrade("/v1/chats/c/stream", {"Sec-WebSocket-Key": "c2hvcnQ="}), 400, "malformed-request"),
        (upgrade("/v1/chats/c/stream", {"Sec-WebSocket-Key": "\xff"}), 400, "malformed-request"),
        (upgrade("/v1/chats/c/stream", {"Connection": "\xff"}), 426, "upgrade-required"),
        (upgrade("/v1/chats/c/stream", {"Host": "\xff\xfe"}), 426, "upgrade-required"),
        (upgrade("/v1/chats/c/stream", {"X": "a\x00b"}), 400, "malformed-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50, 400, "malformed-request"),
        (b"\r\n\r\n\r\n", 400, "malformed-request"),
        (b"GET /v1/chats/c/stream HTTP/1.1\r\nX: " + b"x" * (HEAD_BYTES + 1), 400, "malformed-request"),
        (b"GET /v1/chats/c/stream HTTP/1.1\r\n" + b"X: y\r\n" * HEAD_BYTES, 400, "malformed-request"),
    ],
)
async def test_what_asks_for_no_stream_is_refused(
    request_: bytes, status: int, name: str, autojump_clock: MockClock
) -> None:
    """With a status and a problem, which holds nothing of the request; then the connection is closed."""
    async with open_listener() as listener, connect(listener.viewers) as client:
        await client.send(request_)
        answered, problem = await client.denied()
        assert (status, TYPE_PREFIX + name) == (answered, problem["type"])
        assert b"" == await client.rest()
        await client.leave()
        await client.returned.wait()
        assert 0 == trio.current_time()


async def test_a_refused_upgrade_says_what_is_wanted(autojump_clock: MockClock) -> None:
    """426 names the protocol and its version, 405 the method."""
    async with open_listener() as listener:
        for request, header in [
            (b"GET /v1/chats/c/stream HTTP/1.1\r\nHost: x\r\n\r\n", b"sec-websocket-version: 13"),
            (b"PUT /v1/chats/c/stream HTTP/1.1\r\nHost: x\r\n\r\n", b"allow: get"),
        ]:
            async with connect(listener.viewers) as client:
                await client.send(request)
                assert header in (await client.rest()).lower()


@pytest.mark.parametrize("begun", [b"", b"GET /v1/chats/c/stream HTTP/1.1\r\n"])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_request_that_does_not_come_is_not_waited_for(
    begun: bytes, tls: bool, autojump_clock: MockClock
) -> None:
    """A byte now and then buys no time: after 10 s the connection is closed."""
    async with open_listener(tls=tls) as listener, connect(listener.viewers, tls=False) as client:
        if not tls:
            await client.send(begun)
        while not client.returned.is_set():
            with trio.move_on_after(0.3):
                await client.returned.wait()
            if not client.returned.is_set() and not tls:
                await client.send(b"X")
        assert SETTINGS.handshake_seconds == trio.current_time()


async def test_one_who_leaves_before_the_request_leaves_nothing(autojump_clock: MockClock) -> None:
    """In the middle of the request, of a TLS handshake, or while `authorize` is asked."""

    async def slow(request: HTTPConnection, chat_id: str | None, action: str) -> bool:
        await trio.sleep(1)
        return True

    async with open_listener(authorize=slow) as listener, connect(listener.viewers) as client:
        await client.ask(listener.site.target)
        await wait_all_tasks_blocked()
        await client.leave()
        await client.returned.wait()
        assert 0 == await listener.site.viewers()
    async with open_listener(tls=True) as listener, connect(listener.viewers) as client:
        await client.send(b"\x16\x03\x01")
        await client.leave()
        await client.returned.wait()


async def test_an_authorize_that_fails_is_a_500_and_ends_one_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer is told nothing of it, and nothing of the request is logged."""

    def broken(*_: object) -> bool:
        raise ValueError("crumbs")

    async with open_listener(authorize=broken) as listener:
        for _ in range(2):
            async with connect(listener.viewers) as client:
                await client.ask(listener.site.target, {"Cookie": "crumbs"})
                status, problem = await client.denied()
                assert (500, "urn:relaytrio:problem:internal-error") == (status, problem["type"])
                assert "crumbs" not in str(problem)
                await client.leave()
                await client.returned.wait()
    assert "crumbs" not in caplog.text
    assert "ValueError" in caplog.text


async def test_what_a_viewer_asks_for_cannot_be_put_into_the_answer(autojump_clock: MockClock) -> None:
    """Neither extensions nor subprotocols are agreed to, and no header of the request comes back."""
    headers = {
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
        "Sec-WebSocket-Protocol": "chat, superchat",
        "X-Echo": "crumbs",
    }
    async with open_listener() as listener, connect(listener.viewers) as client:
        await client.ask(listener.site.target, headers)
        assert await client.opened()
        assert client.answer is not None
        names = {name for name, _ in client.answer.headers}
        assert {b"upgrade", b"connection", b"sec-websocket-accept"} == names


async def test_frames_behind_the_request_are_heard(autojump_clock: MockClock) -> None:
    """One who does not wait for the answer loses nothing."""
    async with open_listener() as listener, connect(listener.viewers) as client:
        await client.ask(listener.site.target)
        async with connect(listener.viewers) as eager:
            await eager.send(upgrade(listener.site.target) + eager.frame_of(Ping(b"early")))
            data = b""
            while b"early" not in data:
                data += await eager.receive()


# ------------------------------------------------------------------------------- what a viewer may send


async def test_pings_are_answered_and_pongs_taken(autojump_clock: MockClock) -> None:
    """Between the frames; both say that the viewer lives."""
    for tls in (False, True):
        async with open_listener(tls=tls) as listener, listener.watch(tls=tls) as client:
            for event in (Ping(b"here?"), Pong(b"unasked")):
                await trio.sleep(14)
                await client.send(client.frame_of(event))
            assert b"here?" == await client.pong()
            await trio.sleep(44)
            assert not client.returned.is_set()


async def test_a_heartbeat_in_pieces_is_one(autojump_clock: MockClock) -> None:
    """However the message is fragmented, and the bytes divided; a ping may come in between."""
    async with open_listener() as listener, listener.watch() as client:
        pieces = client.frame_of(TextMessage("[", message_finished=False))
        await client.send(pieces)
        await client.send(client.frame_of(Ping(b"in between")))
        assert b"in between" == await client.pong()
        last = bytearray(client.frame_of(TextMessage("]")))
        last[0] = 0x80  # a continuation
        for byte in bytes(last):
            await client.send(bytes([byte]))
            await wait_all_tasks_blocked()
        await client.say("[]")
        await client.send(client.frame_of(Ping(b"after")))
        assert b"after" == await client.pong()


def unmasked(data: bytes) -> bytes:
    return text_frame(data)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (unmasked(b"[]"), 4006),
        (b"\xc1\x82aaaa\x3a\x3c", 4006),  # a reserved bit
        (b"\x83\x80aaaa", 4006),  # a reserved opcode
        (b"\x80\x80aaaa", 4006),  # a continuation of nothing
        (b"\x09\x80aaaa", 4006),  # a ping in pieces
        (b"\x89\xfe\x00\x80aaaa", 4006),  # a ping that is too long
        (b"\x81\xfe\x00\x02aaaa\x3a\x3c", 4006),  # a length that is longer than it need be
        (b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xffaaaa", 4006),
        (b"\x81\x81aaaa\x9e", 4006),  # no UTF-8
        (b"\x88\x81aaaa\x00", 4006),  # a close of half a code
        (b"GET / HTTP/1.1\r\n\r\n", 4006),
        (b"\x82\x82aaaa\x3a\x3c", 4006),  # a heartbeat in binary
        (b"\x01\xfe\x03\xe9aaaa" + b"a" * 1001, 1009),  # too large, before it is whole
    ],
)
async def test_what_breaks_the_protocol_ends_the_stream(frame: bytes, code: int, autojump_clock: MockClock) -> None:
    """With a code and a reason of ours; what follows is not listened to."""
    async with open_listener() as listener, listener.watch() as client:
        await client.send(frame)
        await client.send(b"\x00" * 100)
        event = await client.event()
        assert isinstance(event, CloseConnection)
        assert code == event.code
        await client.leave()
        await client.returned.wait()
        assert 0 == await listener.site.viewers()


async def test_an_announced_length_takes_no_memory_and_no_time(autojump_clock: MockClock) -> None:
    """Of a message of 2 GiB as much is read as is accepted; one that does not come is silence."""
    async with open_listener() as listener, listener.watch() as client:
        await client.send(b"\x81\xff\x00\x00\x00\x00\x80\x00\x00\x00aaaa")
        for _ in range(2):
            await trio.sleep(20)
            await client.send(b"\x00")
        with pytest.raises(AssertionError, match="1001"):
            while True:
                await client.frame()
        assert 45 == trio.current_time()


async def test_a_viewer_may_close(autojump_clock: MockClock) -> None:
    """Its code comes back, then the connection ends, at once."""
    async with open_listener() as listener:
        for code in (1000, 4999, 1005):
            async with listener.watch() as client:
                without_code = b"\x88\x80aaaa"
                await client.send(without_code if code == 1005 else client.frame_of(CloseConnection(code, "bye")))
                answer = await client.event()
                assert isinstance(answer, CloseConnection)
                assert code == answer.code
                assert b"" == await client.rest()
                await client.returned.wait()
        assert 0 == trio.current_time()


async def test_a_close_that_is_not_answered_is_not_waited_for(autojump_clock: MockClock) -> None:
    """Two seconds, whatever else it sends."""
    async with open_listener() as listener, listener.watch() as client:
        await listener.site.engine.delete_chat(listener.site.chat_id)
        while not client.returned.is_set():
            with trio.move_on_after(0.3):
                await client.returned.wait()
            if not client.returned.is_set():
                await client.say("[]")
        assert 2 == trio.current_time()


@pytest.mark.parametrize("seed", range(40))
async def test_garbage_ends_its_own_connection_only(seed: int, autojump_clock: MockClock) -> None:
    """Random bytes, before and after the upgrade, alone or in what was well-formed: no trace, no leak, no failure."""
    draw = random.Random(seed)
    async with open_listener() as listener, listener.watch() as witness:
        async with connect(listener.viewers) as client:
            head = bytearray(upgrade(listener.site.target))
            if draw.random() < 0.5:
                for _ in range(draw.randrange(1, 8)):
                    head[draw.randrange(len(head))] = draw.randrange(256)
            try:
                await client.send(bytes(head) + b"\r\n\r\n")
                for _ in range(10):
                    await client.send(draw.randbytes(draw.randrange(1, 300)))
                    await wait_all_tasks_blocked()
            except trio.BrokenResourceError:
                pass
            await client.leave()
            await client.returned.wait()
        await listener.site.generate()
        await witness.until("status")
        assert 1 == await listener.site.viewers()


# ---------------------------------------------------------------------------- who does not read, and others


async def generating(listener: Listener, *clients: Client) -> None:
    """An answer has begun, and they know."""
    await listener.site.generate()
    for client in clients:
        await client.until("status")


def frames_in(data: bytes) -> tuple[list[int], int]:
    """The sizes of the whole text frames, and how many bytes of another one follow them."""
    sizes = []
    while len(data) >= 10:
        assert 0x81 == data[0]
        length, at = data[1], 2
        if length >= 126:
            at = 4 if length == 126 else 10
            length = int.from_bytes(data[2:at], "big")
        if len(data) < at + length:
            break
        sizes.append(length)
        data = data[at + length :]
    return sizes, len(data)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_half_frame_is_never_followed_by_another_byte(tls: bool, autojump_clock: MockClock) -> None:
    """One who reads nothing for 15 s is cut: not a heartbeat, a pong or a close follows what went out by half."""
    async with open_listener(tls=tls) as listener, listener.watch(tls=tls, buffer_bytes=SMALL) as client:
        await generating(listener, client)
        listener.site.part(*("x" * 1000 for _ in range(60)))
        await wait_all_tasks_blocked()
        for _ in range(2):
            await client.send(client.frame_of(Ping(b"pingping")))
        await client.returned.wait()
        assert SETTINGS.stalled_send_seconds == trio.current_time()
        data = await client.rest()
        assert b"pingping" not in data
        if not tls:
            sizes, half = frames_in(data)
            assert not sizes
            assert half > 0
        assert 0 == await listener.site.viewers()


async def test_one_who_reads_slowly_misses_nothing(autojump_clock: MockClock) -> None:
    """Whoever takes something within 15 s stays, and gets what it missed in large bursts; its pings are answered."""
    async with open_listener() as listener, listener.watch(buffer_bytes=SMALL) as client:
        await generating(listener, client)
        seqs: list[int] = []
        pongs = 0
        for _ in range(10):
            listener.site.part(*("x" * 1000 for _ in range(40)))
        await client.send(client.frame_of(Ping(b"now?")))
        while len(seqs) < 400:
            await trio.sleep(0.9)
            if trio.current_time() % 40 < 1:
                await client.say("[]")
            event = await client.event()
            pongs += isinstance(event, Pong)
            if isinstance(event, TextMessage):
                client.text += event.data
                if event.message_finished:
                    seqs += [part["seq"] for part in json.loads(client.text) if part["type"] == "message_part"]
                    client.text = ""
        assert (list(range(1, 401)), 1) == (seqs, pongs)
        assert trio.current_time() > 2 * SETTINGS.stalled_send_seconds


async def test_a_stalled_viewer_costs_the_others_nothing(autojump_clock: MockClock) -> None:
    """They have everything at once, in the same bytes, and it is cut alone."""
    async with open_listener() as listener, listener.watch(buffer_bytes=SMALL) as stalled:
        async with listener.watch() as first, listener.watch() as second:
            await generating(listener, first, second, stalled)
            for number in range(100):
                listener.site.part("x" * 1000)
                for client in (first, second):
                    (part,) = await client.until("message_part")
                    assert number + 1 == part["seq"]
            assert 0 == trio.current_time()
            await stalled.returned.wait()
            assert SETTINGS.stalled_send_seconds == trio.current_time()
            assert 2 == await listener.site.viewers()


async def test_an_ending_waits_for_the_frame_under_way(autojump_clock: MockClock) -> None:
    """The close follows the whole frame, and nothing else."""
    async with open_listener() as listener, listener.watch(buffer_bytes=SMALL) as client:
        await generating(listener, client)
        listener.site.part(*("x" * 1000 for _ in range(40)))
        await wait_all_tasks_blocked()
        await listener.site.engine.delete_chat(listener.site.chat_id)
        await trio.sleep(5)
        assert 40 == len(await client.frame())
        assert 4005 == (await client.closed())[0]


async def test_those_who_are_cut_off_are_told_to_come_again(autojump_clock: MockClock) -> None:
    """A listener that is cancelled closes with 1001, where nothing is on its way by half."""
    async with open_site() as site, trio.open_nursery() as nursery:
        viewers = Viewers(site.engine, None, recheck_seconds=None, ssl_context=None, random=lambda: 0.5)
        await nursery.start(viewers.run)
        listener = Listener(site, viewers)
        async with listener.watch() as client:
            ours: list[Callable[[], None]] = [viewer.close for viewer in viewers._hall.viewers]
            for close in ours:
                close()
            event = await client.event()
            assert isinstance(event, CloseConnection)
            assert 1001 == event.code
            nursery.cancel_scope.cancel()


async def test_viewers_at_one_place_get_the_same_bytes(autojump_clock: MockClock) -> None:
    """A company of more than one step's worth, some of whom leave, come, and fall behind, has each part once."""
    async with open_listener() as listener, trio.open_nursery() as nursery:
        seen: dict[int, list[int]] = {}
        site = listener.site
        draw = random.Random(7)

        async def view(number: int) -> None:
            position, seqs = "", seen.setdefault(number, [])
            for stay in (draw.randrange(1, 40), 1000):
                async with connect(listener.viewers) as client:
                    await client.ask(site.target + position)
                    await client.opened()
                    while len(seqs) < 200 and stay > 0:
                        for event in await client.frame():
                            position = f"?cursor={event['cursor']}"
                            if event["type"] == "message_part":
                                seqs.append(event["seq"])
                                stay -= 1

        for number in range(150):
            nursery.start_soon(view, number)
        await wait_all_tasks_blocked()
        await site.generate()
        for number in range(100):
            site.part(f"{number}a", f"{number}b")
            if number % 3:
                await trio.lowlevel.checkpoint()
            else:
                await wait_all_tasks_blocked()
    assert {number: list(range(1, 201)) for number in range(150)} == seen


async def test_an_idle_company_is_kept_alive_one_by_one(autojump_clock: MockClock) -> None:
    """A heartbeat comes 15 s after the last part that one got with the others."""
    async with open_listener() as listener, listener.watch() as first, listener.watch() as second:
        await generating(listener, first, second)
        await trio.sleep(10)
        listener.site.part("a")
        await wait_all_tasks_blocked()
        listener.site.part("b")
        for client in (first, second):
            await client.until("message_part")
            await client.until("message_part")
            assert [] == await client.frame()
            assert 25 == trio.current_time()


def test_a_frame_is_its_payload_behind_the_shortest_header() -> None:
    """Lengths of 7, 16 and 64 bits."""
    for size, header in [(125, 2), (126, 4), (65535, 4), (65536, 10)]:
        assert header + size == len(text_frame(b"x" * size))
    burst = text_burst(relaytrio.Episode(1, 1, "r"), ["a", "b"], first_seq=1, cursor=Cursor())
    assert text_frame(b"[" + burst.rows + b"]") == rows_frame(burst)


async def test_it_is_configured_or_refuses(autojump_clock: MockClock) -> None:
    """What cannot work is said at once."""
    async with open_site() as site:
        with pytest.raises(relaytrio.ConfigurationError):
            await relaytrio.serve_viewers(site.engine, listeners=[])
        with pytest.raises(relaytrio.ConfigurationError):
            await relaytrio.serve_viewers(site.engine, recheck_seconds=0)
