"""The routes that stay open: a viewer's stream, by WebSocket or SSE, and the parts endpoint between replicas.

All that can be refused is refused before the upgrade, with an HTTP status and a problem; but a malformed cursor, which
a browser could not tell from a network that fails: its WebSocket is accepted and closed with 4006.

Must not know: how a connection is kept (`_viewer.py`), what the parts endpoint does. Who calls: the routes of asgi.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from .._errors import InvalidCursor, RelaytrioError
from ._admission import Admission
from ._answers import refusal
from ._peer_websocket import PeerConnection
from ._peers import Peers
from ._problems import RouteNotFound
from ._viewer import PROTOCOL_ERROR, Ending, Outlet
from ._viewer_sse import HEADERS, EventStreamOutlet
from ._viewer_websocket import WebSocketOutlet

if TYPE_CHECKING:
    from .._engine import Engine


class Streams:
    """The handlers for one engine."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission
        self._peers = Peers(engine)

    async def by_websocket(self, websocket: WebSocket) -> None:
        """`GET /v1/chats/{id}/stream` with an upgrade."""
        outlet = WebSocketOutlet(websocket, self._engine.settings)
        try:
            subscription = await self._admission.subscription(websocket)
            await self._admission.viewer(websocket, outlet).serve(subscription)
        except InvalidCursor:
            await outlet.open()
            await outlet.finish(Ending(PROTOCOL_ERROR, "invalid-cursor"))
        except (RelaytrioError, HTTPException) as error:
            await _deny(websocket, error)

    async def by_sse(self, request: Request) -> Response:
        """`GET /v1/chats/{id}/stream` without one."""
        subscription = await self._admission.subscription(request)
        if request.method == "HEAD":
            await self._engine.get_chat(subscription.chat_id)
            return Response(headers={name.decode(): value.decode() for name, value in HEADERS})
        return _EventStream(lambda outlet: self._admission.viewer(request, outlet).serve(subscription))

    async def parts(self, websocket: WebSocket) -> None:
        """`GET /relay/v1/parts`: only for replicas that have the cluster's secret."""
        try:
            source = self._peers.authorize(websocket.headers)
        except RelaytrioError as error:
            await _deny(websocket, error)
            return
        await websocket.accept()
        connection = PeerConnection(websocket)
        await self._peers.serve(connection, source)
        await connection.say_going_away()

    async def nowhere(self, websocket: WebSocket) -> None:
        """Any other path, with an upgrade."""
        await _deny(websocket, RouteNotFound("there is nothing at this path"))


class _EventStream(Response):
    """An answer that goes on until the stream ends. What is refused when it begins is a problem like any other."""

    def __init__(self, serve: Callable[[Outlet], Awaitable[None]]) -> None:
        super().__init__()
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._serve(EventStreamOutlet(receive, send))


async def _deny(websocket: WebSocket, error: RelaytrioError | HTTPException) -> None:
    """Refuse the upgrade: with a status and a problem, where the server can do that."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(refusal(error))
    else:
        await websocket.close()
