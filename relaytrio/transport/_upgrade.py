"""The opening handshake of a WebSocket, a viewer's or a peer's, seen from the server.

Bytes in, a request out, and what answers it.

h11 reads the head and holds its length; wsproto says whether it asks for a WebSocket. Everything else that comes, of
whatever kind, is a refusal (`transport/_problems.py`): no bytes of a peer's raise anything else.

Pure. Must not know: sockets, time, who may see what. Who calls: the viewer listener.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final
from urllib.parse import unquote

import h11
from starlette.requests import HTTPConnection
from starlette.responses import Response
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from ._address import PARTS_PATH
from ._problems import MalformedRequest, MethodNotAllowed, RouteNotFound, UpgradeRequired

HEAD_BYTES: Final = 16 * 1024
"""The most that a request line and its headers may have: what other servers take, cookies and all."""
_CLOSE: Final = [(b"Connection", b"close")]
_MORE: Final = {
    405: [(b"Allow", b"GET"), *_CLOSE],
    426: [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13"), (b"Connection", b"Upgrade, close")],
}
"""The headers that a refusal of the handshake itself has."""
_ROUTES = re.compile(rf"/v1/chats/(?P<chat_id>[^/]+)/stream|{re.escape(PARTS_PATH)}")


class Opening:
    """One connection until it is a WebSocket, or is refused."""

    def __init__(self, *, tls: bool, client: tuple[str, int] | None, server: tuple[str, int] | None) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._scheme = "wss" if tls else "ws"
        self._client = client
        self._server = server
        self._accepting: H11Handshake | None = None

    def take(self, data: bytes | bytearray) -> HTTPConnection | None:
        """The request, if these bytes complete it, as the ASGI app would have it. Raises a `RequestError`.

        The end of the stream, `b""`, before that is malformed too.
        """
        try:
            self._http.receive_data(bytes(data))
            event = self._http.next_event()
        except h11.RemoteProtocolError:
            raise MalformedRequest("this is no HTTP request, or its head is too long") from None
        if isinstance(event, h11.Request):
            return self._checked(event)
        if event is h11.NEED_DATA:
            return None
        raise MalformedRequest("the request did not come to its end")

    def accept(self) -> tuple[bytes, bytes]:
        """What makes it a WebSocket, and what came behind the request: frames of one who did not wait for that.

        Once, at the end: what the handshake needed is let go. No extension is agreed to, nor a subprotocol.
        """
        assert self._accepting is not None
        data = self._accepting.send(AcceptConnection())
        trailing = self._http.trailing_data[0]
        self._accepting = None
        del self._http
        return data, trailing

    def refuse(self, answer: Response) -> bytes:
        """The whole answer, after which the connection is closed."""
        headers = [*answer.raw_headers, *_MORE.get(answer.status_code, _CLOSE)]
        http = h11.Connection(h11.SERVER)  # its own may be in a state in which it says nothing
        http.receive_data(b"GET / HTTP/1.1\r\nhost: -\r\n\r\n")
        http.next_event()
        data = http.send(h11.Response(status_code=answer.status_code, headers=headers)) or b""
        data += http.send(h11.Data(data=bytes(answer.body))) or b""
        return data + (http.send(h11.EndOfMessage()) or b"")

    def _checked(self, request: h11.Request) -> HTTPConnection:
        raw_path, _, query = request.target.partition(b"?")
        path = unquote(raw_path.decode("ascii"))
        found = _ROUTES.fullmatch(path)
        if found is None:
            raise RouteNotFound("there is nothing at this path")
        if request.method != b"GET":
            raise MethodNotAllowed("a stream is got by GET")
        self._check_upgrade(request)
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "scheme": self._scheme,
            "path": path,
            "raw_path": raw_path,
            "root_path": "",
            "query_string": query,
            "headers": list(request.headers),
            "client": self._client,
            "server": self._server,
            "subprotocols": [],
            "extensions": {},
            "path_params": {} if path == PARTS_PATH else found.groupdict(),
        }
        return HTTPConnection(scope)

    def _check_upgrade(self, request: h11.Request) -> None:
        """Whether it asks for a WebSocket of the one version that there is."""
        headers = dict(request.headers)
        if headers.get(b"upgrade", b"").lower() != b"websocket":
            raise UpgradeRequired("ask for an upgrade to a WebSocket")
        handshake = H11Handshake(ConnectionType.SERVER)
        try:
            handshake.initiate_upgrade_connection(list(request.headers), request.target)
            agreed = next(handshake.events(), None)
        except (RemoteProtocolError, h11.LocalProtocolError, UnicodeError):
            raise UpgradeRequired("this is no upgrade to a WebSocket of version 13") from None
        if not isinstance(agreed, Request) or not _is_key(headers.get(b"sec-websocket-key", b"")):
            raise MalformedRequest("Sec-WebSocket-Key: 16 bytes in base64")
        self._accepting = handshake


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False
