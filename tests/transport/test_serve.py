"""What a peer can do to its own connection, and not to the server: on socket pairs and virtual time."""

from __future__ import annotations

import socket

import pytest
import trio
from starlette.types import Receive, Scope, Send
from trio.testing import MockClock

from relaytrio._settings import Settings
from relaytrio.transport._serve import _Connection, _Connections

UPGRADE_TO_HTTP2 = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: 2Bgu8Q==\r\n"
PROTOCOL = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: \xff\r\n"


def request(headers: bytes = b"") -> bytes:
    return b"GET / HTTP/1.1\r\nHost: here\r\nCookie: crumbs\r\n%b\r\n" % headers


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """The server's end and the peer's."""
    ours, theirs = socket.socketpair()
    return tuple(trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (ours, theirs))  # type: ignore[return-value]


async def tick(scope: Scope, receive: Receive, send: Send) -> None:
    """An app whose answer goes on until the peer has left."""
    request = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while request["type"] != "http.disconnect":
        await send({"type": "http.response.body", "body": b"tick", "more_body": True})
        with trio.move_on_after(1):
            request = await receive()


@pytest.mark.parametrize("headers", [UPGRADE_TO_HTTP2, PROTOCOL])
async def test_what_cannot_be_parsed_ends_its_own_connection(headers: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """No request ends more than the connection that it came over, nor puts its headers into the log."""
    connections = _Connections(tick, Settings())
    ours, theirs = stream_pair()
    async with ours, theirs:
        await theirs.send_all(request(headers))
        await connections.serve(ours)
    assert "given up" in caplog.text
    assert "crumbs" not in caplog.text


async def test_nothing_stays_of_a_peer_that_has_left(autojump_clock: MockClock) -> None:
    """A second request that waits behind an endless answer does not keep a connection that nobody has any more."""
    connections = _Connections(tick, Settings())
    ours, theirs = stream_pair()
    with trio.fail_after(60):
        async with ours, trio.open_nursery() as nursery:
            nursery.start_soon(connections.serve, ours)
            await theirs.send_all(request() + request())
            received = b""
            while b"tick" not in received:
                received += await theirs.receive_some()
            await theirs.aclose()


async def test_sending_while_the_connection_is_closed_beside_it_finds_it_broken(autojump_clock: MockClock) -> None:
    """The server may close while the app sends: to the app the peer is gone, it is no failure of its own."""
    ours, theirs = stream_pair()
    connection = _Connection(ours)
    async with theirs, trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, bytes(10_000_000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await connection.send_all(b"x")
        nursery.cancel_scope.cancel()
    await connection.aclose()
