"""How the default dialer opens a connection, and how that fails; in virtual time, over streams in memory."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair
from trio_websocket import wrap_server_stream

from relaytrio._dialer import DialRequest
from relaytrio._errors import (
    BadReplicaAddress,
    ConfigurationError,
    DialError,
    DialRefused,
    DialTimeout,
    ReplicaNotFound,
    StoreUnavailable,
)
from relaytrio._settings import Settings
from relaytrio.transport._stream_frames import HEAD_BYTES
from relaytrio.transport.dialer import WebSocketDialer
from relaytrio.transport.grants import GRANT_HEADER, SOURCE_HEADER, check_connection_grant
from relaytrio.transport.parts_endpoint import authorize_peer
from tests.transport.anonymous_tls import anonymous_tls
from tests.transport.dialer_remote import (
    HERE,
    NOW,
    OF_THE_UPGRADE,
    SECRET,
    WORKER,
    Peer,
    Remote,
    Watched,
    answering,
    burst,
    cluster,
    fails,
    fails_against,
    hang,
    make_dialer,
    resolved,
)


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

    for resolve, open_stream in ((hang_on, None), (resolved, hang_on)):
        start = trio.current_time()
        dialer = WebSocketDialer(
            resolve=resolve, replica_id=lambda: HERE, secret=SECRET, settings=Settings(), open_stream=open_stream
        )
        assert isinstance(await fails(dialer), DialTimeout)
        assert trio.current_time() - start == 5


async def test_a_refused_connection_is_a_plain_error_with_the_systems_reason() -> None:
    """Not a group, though the library below tries several addresses."""

    async def refuse(host: str, port: int) -> trio.abc.Stream:
        raise OSError("all attempts failed") from ExceptionGroup(
            "", [ConnectionRefusedError(111, "Connection refused")]
        )

    dialer = WebSocketDialer(
        resolve=resolved, replica_id=lambda: HERE, secret=SECRET, settings=Settings(), open_stream=refuse
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
        resolve=resolved, replica_id=lambda: HERE, secret=SECRET, settings=Settings(), open_stream=open_stream
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
        WebSocketDialer(resolve=resolved, replica_id=lambda: HERE, secret=b"", settings=Settings())


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
