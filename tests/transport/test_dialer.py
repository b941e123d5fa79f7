"""The default dialer, in virtual time over streams in memory, against peers that behave well, badly and not at all."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import attrs
import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream
from wsproto.events import BytesMessage, CloseConnection
from wsproto.utilities import LocalProtocolError

from relaytrio._dialer import Dialer, DialRequest, Leg, LegEnd
from relaytrio._errors import (
    BadReplicaAddress,
    ConfigurationError,
    DialError,
    DialRefused,
    DialTimeout,
    LegLost,
    ReplicaNotFound,
    StoreUnavailable,
)
from relaytrio._parts import PartLogs
from relaytrio._protocol.burst import Burst, join
from relaytrio._protocol.events import Episode
from relaytrio._protocol.peer_wire import (
    Control,
    Ended,
    Heartbeat,
    LegBurst,
    Release,
    Select,
    decode_control,
    encode_control,
)
from relaytrio._settings import Settings
from relaytrio.stores._base import Store
from relaytrio.transport._leg import BURSTS_WAITING, LEG
from relaytrio.transport._stream_frames import HEAD_BYTES
from relaytrio.transport._websocket import WebSocketFrames
from relaytrio.transport.dialer import WebSocketDialer
from relaytrio.transport.grants import (
    GRANT_HEADER,
    SOURCE_HEADER,
    check_connection_grant,
    check_select_grant,
)
from relaytrio.transport.parts_endpoint import authorize_peer, serve_parts
from tests.protocol.wires import text_rows
from tests.transport.anonymous_tls import anonymous_tls

SECRET = b"secret"
HERE, WORKER = "replica-a", "replica-b"
NOW = 1_700_000_000.0
EPISODE = Episode(5, 2, "run0")
NEXT = Episode(5, 3, "run0")
MUCH = 8 << 20
OF_THE_UPGRADE = {b"host", b"upgrade", b"connection"}
TAKEN_UNREAD = 4
"""Frames that a peer's library takes though the peer itself reads none, and one more that is being sent."""

Behaviour = Callable[[trio.abc.Stream], Awaitable[None]]


def burst(*seqs: int, episode: Episode = EPISODE, size: int = 0) -> Burst:
    return join(episode, seqs[0], text_rows(*seqs, episode=episode, size=size))


# ----------------------------------------------------------------------------------------------- the peer


@attrs.define
class Remote:
    """The worker's replica: what it does with a stream, and what it saw."""

    nursery: trio.Nursery
    behave: Behaviour
    lockstep: bool = False
    dialed: list[tuple[str, int]] = attrs.Factory(list)
    streams: list[trio.abc.Stream] = attrs.Factory(list)
    """Our ends, as the dialer got them."""
    closed: list[trio.abc.Stream] = attrs.Factory(list)

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = lockstep_stream_pair() if self.lockstep else memory_stream_pair()
        stream = Watched(ours, self.closed)
        self.dialed.append((host, port))
        self.streams.append(stream)
        self.nursery.start_soon(self.behave, theirs)
        return stream

    @property
    def all_closed(self) -> bool:
        return all(stream in self.closed for stream in self.streams)


class Watched(trio.abc.Stream):
    """A stream that notes its closing."""

    def __init__(self, stream: trio.abc.Stream, closed: list[trio.abc.Stream]) -> None:
        self._stream, self._closed = stream, closed

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        self._closed.append(self)
        await self._stream.aclose()


class Peer:
    """An open WebSocket on the worker's side, in the hands of the test."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection

    async def say(self, frame: Control | str | bytes) -> None:
        await self.connection.send_message(frame if isinstance(frame, str | bytes) else encode_control(frame))

    async def burst(self, *seqs: int, leg: int = LEG, size: int = 0) -> None:
        await self.say(LegBurst(leg, burst(*seqs, size=size)))

    async def heard(self) -> Control | None:
        return decode_control(await self.connection.get_message(), limit_bytes=MUCH)


@attrs.define
class Cluster:
    """A worker's replica that accepts, and a dialer that reaches it."""

    remote: Remote
    dialer: WebSocketDialer
    requests: list[WebSocketRequest]
    peers: trio.MemoryReceiveChannel[Peer]

    @asynccontextmanager
    async def dial(self, headers: dict[str, str] | None = None) -> AsyncIterator[tuple[Leg, Peer]]:
        async with self.dialer.dial(DialRequest("chat", WORKER, headers or {})) as leg:
            yield leg, await self.peers.receive()


@asynccontextmanager
async def cluster(
    *,
    lockstep: bool = False,
    forward_headers: Collection[str] = (),
    address: str = "http://10.0.0.5:8001",
    settings: Settings | None = None,
) -> AsyncIterator[Cluster]:
    requests: list[WebSocketRequest] = []
    to_test, peers = trio.open_memory_channel[Peer](10)

    async def accept(stream: trio.abc.Stream) -> None:
        async with stream, trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream, max_message_size=MUCH)
            requests.append(request)
            with suppress(ConnectionClosed):  # who dialed may have left meanwhile
                await to_test.send(Peer(await request.accept()))

    async with trio.open_nursery() as nursery:
        with to_test, peers:
            remote = Remote(nursery, accept, lockstep)
            dialer = make_dialer(remote, forward_headers=forward_headers, address=address, settings=settings)
            try:
                yield Cluster(remote, dialer, requests, peers)
            except BaseException as error:  # noqa: ASYNC103 - told as a failure of the test
                # It would be taken for ours below, and the test for one that passed.
                if isinstance(error, trio.Cancelled):
                    raise AssertionError("cancelled, and nobody did it") from error  # noqa: ASYNC104
                raise
            await wait_all_tasks_blocked()
            assert remote.all_closed
        nursery.cancel_scope.cancel()


def make_dialer(
    remote: Remote | None,
    *,
    forward_headers: Collection[str] = (),
    address: str | None = "http://10.0.0.5:8001",
    settings: Settings | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> WebSocketDialer:
    async def resolve(replica_id: str) -> str | None:
        assert replica_id == WORKER
        await trio.lowlevel.checkpoint()
        return address

    return WebSocketDialer(
        resolve=resolve,
        replica_id=lambda: HERE,
        secret=SECRET,
        settings=settings or Settings(),
        forward_headers=forward_headers,
        ssl_context=ssl_context,
        clock=lambda: NOW,
        open_stream=None if remote is None else remote.open_stream,
    )


async def fails(dialer: Dialer, headers: dict[str, str] | None = None) -> DialError:
    """The error with which dialing fails: a plain one that names the worker."""
    with pytest.raises(DialError) as failed:
        async with dialer.dial(DialRequest("chat", WORKER, headers or {})):
            raise AssertionError("a leg, where there can be none")
    assert failed.value.worker_id == WORKER
    assert WORKER in str(failed.value)
    return failed.value


async def fails_against(behave: Behaviour, **options: Any) -> DialError:
    async with trio.open_nursery() as nursery:
        remote = Remote(nursery, behave)
        error = await fails(make_dialer(remote, **options))
        assert remote.all_closed
        nursery.cancel_scope.cancel()
    return error


def answering(answer: bytes) -> Behaviour:
    async def behave(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)
            await trio.sleep_forever()

    return behave


async def hang(stream: trio.abc.Stream) -> None:
    async with stream:
        await trio.sleep_forever()


# -------------------------------------------------------------------------------------------- the handshake


@pytest.mark.parametrize(
    ("address", "where", "authority", "path"),
    [
        ("http://10.0.0.5:8001", ("10.0.0.5", 8001), "10.0.0.5:8001", "/relay/v1/parts"),
        ("http://worker.internal", ("worker.internal", 80), "worker.internal", "/relay/v1/parts"),
        ("http://[::1]:8001/", ("::1", 8001), "[::1]:8001", "/relay/v1/parts"),
        ("http://10.0.0.5:8001/chat/", ("10.0.0.5", 8001), "10.0.0.5:8001", "/chat/relay/v1/parts"),
        ("http://10.0.0.5:8001/a%20b", ("10.0.0.5", 8001), "10.0.0.5:8001", "/a%20b/relay/v1/parts"),
    ],
)
async def test_the_parts_endpoint_below_the_address_is_dialed(
    address: str, where: tuple[str, int], authority: str, path: str
) -> None:
    """Host, port and path prefix are those that the replica advertises."""
    async with cluster(address=address) as made, made.dial():
        assert made.remote.dialed == [where]
        assert made.requests[0].path == path
        assert made.requests[0]._event.host == authority


async def test_only_our_two_headers_are_sent() -> None:
    """MINIMAL_HEADERS: no header of the viewer leaves the replica."""
    viewer = {"Cookie": "session=1", "Authorization": "Bearer x", "X-Session-Token": "t", "Origin": "http://x"}
    async with cluster() as made, made.dial(viewer):
        headers = dict(made.requests[0].headers)
    ours = {SOURCE_HEADER.lower().encode(), GRANT_HEADER.lower().encode()}
    assert {name for name in headers if not name.startswith(b"sec-websocket-")} - OF_THE_UPGRADE == ours


async def test_headers_that_were_named_are_forwarded() -> None:
    """In any case, and only those that the viewer has."""
    viewer = {"COOKIE": "session=1", "authorization": "Bearer x", "Origin": "http://x"}
    async with cluster(forward_headers=("Cookie", "Authorization", "X-Session-Token")) as made, made.dial(viewer):
        headers = dict(made.requests[0].headers)
    assert (headers[b"cookie"], headers[b"authorization"]) == (b"session=1", b"Bearer x")
    assert b"origin" not in headers
    assert b"x-session-token" not in headers


async def test_the_handshake_carries_a_grant() -> None:
    """Over source, target and expiry, and the source's name."""
    async with cluster() as made, made.dial():
        headers = {name.decode(): value.decode() for name, value in made.requests[0].headers}
    grant = headers[GRANT_HEADER.lower()]
    check_connection_grant(SECRET, grant, source=HERE, target=WORKER, now=NOW)
    assert authorize_peer(headers, secret=SECRET, replica_id=WORKER, now=NOW) == HERE


async def test_the_replica_id_is_asked_for_only_when_dialing() -> None:
    """A dialer can be made before the replica has an id."""
    asked = 0

    def replica_id() -> str:
        nonlocal asked
        asked += 1
        return HERE

    async def resolve(_: str) -> None:
        assert asked == 1

    dialer = WebSocketDialer(resolve=resolve, replica_id=replica_id, secret=SECRET, settings=Settings())
    assert asked == 0
    assert isinstance(await fails(dialer), ReplicaNotFound)


# --------------------------------------------------------------------------------------- how dialing fails


async def test_a_replica_without_an_address_is_not_found() -> None:
    """`ReplicaNotFound`."""
    assert isinstance(await fails(make_dialer(None, address=None)), ReplicaNotFound)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.0.0.5:8001",
        "ftp://10.0.0.5",
        "ws://10.0.0.5:8001",
        "http://",
        "http://:8001",
        "http://host:99999",
        "http://host:0",
        "http://host:port",
        "http://[::1",
        "http://user:hunter2@host",
        "http://host/?token=hunter2",
        "http://host/#hunter2",
        "http://host/a b",
        "http://host/é",
        "http://hést",
        "http://ho st",
        "http://host/\r\nX: hunter2",
        "http://ho_st\x00",
    ],
)
async def test_an_address_that_cannot_be_dialed_is_bad(address: str) -> None:
    """`BadReplicaAddress`, before anything is sent; its text holds no secret of the address."""
    error = await fails(make_dialer(None, address=address))
    assert isinstance(error, BadReplicaAddress)
    assert "hunter2" not in str(error)


async def test_a_host_that_no_name_service_can_look_up_is_bad() -> None:
    """What the system refuses to encode is the address's fault."""
    assert isinstance(await fails(make_dialer(None, address=f"http://{'a' * 70}.example")), BadReplicaAddress)


@pytest.mark.parametrize("error", [StoreUnavailable("secret-url"), KeyError("secret"), OSError(), trio.TooSlowError()])
async def test_a_resolver_that_fails_is_a_failed_dial(error: Exception) -> None:
    """Plain, to be tried again; the text names the error's type only."""

    async def resolve(_: str) -> None:
        raise error

    failed = await fails(WebSocketDialer(resolve=resolve, replica_id=lambda: HERE, secret=SECRET, settings=Settings()))
    assert type(failed) is DialError
    assert type(error).__name__ in str(failed)
    assert "secret" not in str(failed)


async def test_a_resolver_that_fails_with_a_group_is_a_plain_failure() -> None:
    """Never a group, whatever the resolver uses inside."""

    async def resolve(_: str) -> None:
        raise ExceptionGroup("many", [OSError("one"), OSError("two")])

    dialer = WebSocketDialer(resolve=resolve, replica_id=lambda: HERE, secret=SECRET, settings=Settings())
    assert type(await fails(dialer)) is DialError


async def test_looking_up_and_connecting_take_five_seconds_at_most(autojump_clock: MockClock) -> None:
    """`DialTimeout`, whichever of the two hangs."""

    async def hang_on(*_: object) -> Any:
        await trio.sleep_forever()

    for resolve, open_stream in ((hang_on, None), (_resolved, hang_on)):
        start = trio.current_time()
        dialer = WebSocketDialer(
            resolve=resolve, replica_id=lambda: HERE, secret=SECRET, settings=Settings(), open_stream=open_stream
        )
        assert isinstance(await fails(dialer), DialTimeout)
        assert trio.current_time() - start == 5


async def _resolved(_: str) -> str:
    return "http://10.0.0.5:8001"


async def test_a_refused_connection_is_a_plain_error_with_the_systems_reason() -> None:
    """Not a group, though the library below tries several addresses."""

    async def refuse(host: str, port: int) -> trio.abc.Stream:
        raise OSError("all attempts failed") from ExceptionGroup(
            "", [ConnectionRefusedError(111, "Connection refused")]
        )

    dialer = WebSocketDialer(
        resolve=_resolved, replica_id=lambda: HERE, secret=SECRET, settings=Settings(), open_stream=refuse
    )
    error = await fails(dialer)
    assert type(error) is DialError
    assert "10.0.0.5:8001" in str(error)
    assert "Connection refused" in str(error)


async def test_the_handshake_takes_ten_seconds_at_most(autojump_clock: MockClock) -> None:
    """`DialTimeout` against a peer that connects and says nothing."""
    start = trio.current_time()
    assert isinstance(await fails_against(hang), DialTimeout)
    assert trio.current_time() - start == 10


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", [b"", b"no: hunter2"])
async def test_a_refused_handshake(status: int, body: bytes) -> None:
    """401 and 403 are `DialRefused`; nothing that the peer sent is in the text."""
    head = f"HTTP/1.1 {status} No\r\nSet-Cookie: hunter2\r\nContent-Length: {len(body)}\r\n\r\n"
    error = await fails_against(answering(head.encode() + body))
    assert type(error) is DialRefused
    assert "hunter2" not in repr(error)
    assert error.__cause__ is None


@pytest.mark.parametrize("status", [200, 302, 400, 404, 426, 429, 500, 503])
async def test_another_status_is_a_plain_error(status: int) -> None:
    """It says which, and is no refusal of the grant."""
    error = await fails_against(answering(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()))
    assert type(error) is DialError
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff\r\n\r\n",
        b"SSH-2.0-hunter2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: hunter2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000,
        b"HTTP/1.1 500 No\r\n\r\n" + b"x" * (HEAD_BYTES + 1),
    ],
)
async def test_an_answer_that_is_none_is_a_plain_error(answer: bytes, autojump_clock: MockClock) -> None:
    """At once, and holding nothing that the peer sent."""
    start = trio.current_time()
    error = await fails_against(answering(answer))
    assert type(error) is DialError
    assert "hunter2" not in str(error)
    assert trio.current_time() == start


async def test_an_endless_answer_takes_no_memory() -> None:
    """Saturation: a head that never ends is cut."""

    async def behave(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 500 No\r\n")
            sent = 0
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"X: " + b"x" * 0x1000 + b"\r\n")
                    sent += 0x1000
                    assert sent < 4 * HEAD_BYTES

    error = await fails_against(behave)
    assert type(error) is DialError
    assert "longer than" in str(error)


@pytest.mark.parametrize("when", ["at once", "after the request", "half an answer"])
async def test_a_peer_that_leaves_during_the_handshake(when: str, autojump_clock: MockClock) -> None:
    """A plain error, at once and not after a timeout."""

    async def behave(stream: trio.abc.Stream) -> None:
        if when != "at once":
            await stream.receive_some()
        if when == "half an answer":
            await stream.send_all(b"HTTP/1.1 101 Swit")
        await stream.aclose()

    start = trio.current_time()
    error = await fails_against(behave)
    assert type(error) is DialError
    assert "closed" in str(error)
    assert trio.current_time() == start


async def test_a_connection_that_is_reset_during_the_handshake(autojump_clock: MockClock) -> None:
    """A plain error, at once, also where the system calls it broken."""
    broken = trio.BrokenResourceError()

    class Reset(Watched):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            raise broken

    start, closed = trio.current_time(), list[trio.abc.Stream]()
    stream = Reset(memory_stream_pair()[0], closed)

    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        return stream

    made = WebSocketDialer(
        resolve=_resolved, replica_id=lambda: HERE, secret=SECRET, settings=Settings(), open_stream=open_stream
    )
    error = await fails(made)
    assert type(error) is DialError
    assert "closed" in str(error)
    assert trio.current_time() == start
    assert closed


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\x00b", "☃", "\x7f"])
async def test_a_forwarded_value_that_no_header_can_have_is_not_sent(value: str) -> None:
    """It can smuggle nothing; the error names the header, not the value."""
    error = await fails(make_dialer(None, forward_headers=("cookie",)), {"Cookie": f"hunter2{value}"})
    assert "Cookie" in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("name", ["Host", "UPGRADE", "Sec-WebSocket-Key", SOURCE_HEADER, GRANT_HEADER, "a b", "", "é"])
def test_headers_of_the_connection_cannot_be_forwarded(name: str) -> None:
    """A mistake of the program, told when the dialer is made."""
    with pytest.raises(ConfigurationError, match="forward_headers"):
        make_dialer(None, forward_headers=[name])


def test_one_string_is_no_collection_of_names() -> None:
    """It would be taken for the letters it is made of."""
    with pytest.raises(ConfigurationError, match="forward_headers"):
        make_dialer(None, forward_headers="cookie")


def test_a_dialer_needs_a_secret() -> None:
    """Replicas trust each other by it."""
    with pytest.raises(ConfigurationError, match="secret"):
        WebSocketDialer(resolve=_resolved, replica_id=lambda: HERE, secret=b"", settings=Settings())


# ---------------------------------------------------------------------------------------------------- TLS


async def test_an_https_address_is_dialed_with_tls() -> None:
    """The WebSocket is inside, and the given context is used."""
    seen: list[str] = []

    async def behave(stream: trio.abc.Stream) -> None:
        tls = trio.SSLStream(stream, anonymous_tls(ssl.PROTOCOL_TLS_SERVER), server_side=True, https_compatible=True)
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, tls)
            seen.append(request.path)
            peer = Peer(await request.accept())
            await peer.burst(1)

    async with trio.open_nursery() as nursery:
        remote = Remote(nursery, behave)
        context = anonymous_tls(ssl.PROTOCOL_TLS_CLIENT)
        dialer = make_dialer(remote, address="https://worker.internal", ssl_context=context)
        async with dialer.dial(DialRequest("chat", WORKER)) as leg:
            assert await anext(aiter(leg)) == burst(1)
        assert remote.dialed == [("worker.internal", 443)]
        assert remote.all_closed
        nursery.cancel_scope.cancel()
    assert seen == ["/relay/v1/parts"]


async def test_a_peer_that_cannot_be_trusted_is_a_plain_error() -> None:
    """A peer without a certificate, where the system's authorities are asked."""

    async def behave(stream: trio.abc.Stream) -> None:
        tls = trio.SSLStream(stream, anonymous_tls(ssl.PROTOCOL_TLS_SERVER), server_side=True)
        with pytest.raises(trio.BrokenResourceError):
            await tls.do_handshake()
        await trio.aclose_forcefully(tls)

    error = await fails_against(behave, address="https://worker.internal")
    assert type(error) is DialError
    assert "TLS" in str(error)


async def test_a_peer_that_speaks_no_tls_is_a_plain_error() -> None:
    """What it answers is not TLS."""
    error = await fails_against(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), address="https://worker.internal")
    assert type(error) is DialError
    assert "TLS" in str(error)


async def test_tls_is_part_of_the_handshakes_time(autojump_clock: MockClock) -> None:
    """`DialTimeout` after the same ten seconds."""
    start = trio.current_time()
    assert isinstance(await fails_against(hang, address="https://worker.internal"), DialTimeout)
    assert trio.current_time() - start == 10


# --------------------------------------------------------------------------------------------- an open leg


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


# ----------------------------------------------------------------------------------------- leaving the leg


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
                resolve=_hang if where == "resolve" else _resolved,
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


# ----------------------------------------------------------------------------------------- both ends


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
