"""The ASGI app of a replica: its routes, each with its methods. To be mounted in a Starlette application, or served.

It needs no lifespan: all that it uses belongs to the engine. It needs Trio: serve it with Hypercorn's Trio worker
(`_serve.py`), and not with a server for asyncio. There is no CORS: who wants it adds Starlette's middleware; and an
`authorize` that goes by cookies should look at `Origin`, for browsers let any page open a WebSocket.

Must not know: what a handler does. Who calls: `Engine.asgi_app`.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from .._errors import RelaytrioError
from ._address import PARTS_PATH
from ._admission import Admission
from ._answers import refuse
from ._authorize import Action as Action
from ._authorize import Authorize as Authorize
from ._health import Health
from ._requests import Requests
from ._streams import Streams

if TYPE_CHECKING:
    from .._engine import Engine

_Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


def make_asgi_app(
    engine: Engine,
    *,
    authorize: Authorize | None = None,
    recheck_seconds: float | None = None,
    random: Callable[[], float] = random_module.random,
) -> Starlette:
    """The app. `authorize` is asked before any request is served or upgraded; without one everything is allowed.

    Every `recheck_seconds` it is asked for each open stream again; one that is refused then ends (4001). Without it a
    stream that was allowed stays so. `random` draws from [0, 1) and spreads those who come back.
    """
    admission = Admission(engine, authorize, recheck_seconds=recheck_seconds, random=random)
    requests = Requests(engine, authorize)
    streams = Streams(engine, admission)
    handlers: dict[Any, Any] = dict.fromkeys((RelaytrioError, HTTPException, Exception), refuse)
    app = Starlette(routes=_routes(requests, streams, Health(engine)), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def _routes(requests: Requests, streams: Streams, health: Health) -> list[BaseRoute]:
    chat = "/v1/chats/{chat_id}"
    queued = chat + "/queue/{queued_id}"
    return [
        _route("/v1/chats", POST=requests.create_chat, GET=requests.list_chats),
        _route(chat, GET=requests.get_chat, DELETE=requests.delete_chat),
        _route(chat + "/messages", GET=requests.list_messages, POST=requests.send_message),
        _route(chat + "/messages/{message_id}", PATCH=requests.edit_message),
        _route(chat + "/interrupt", POST=requests.interrupt),
        _route(chat + "/queue", GET=requests.list_queue),
        _route(queued, DELETE=requests.delete_queued),
        _route(queued + "/promote", POST=requests.promote_queued),
        _route(chat + "/stream", GET=streams.by_sse),
        WebSocketRoute(chat + "/stream", streams.by_websocket),
        WebSocketRoute(PARTS_PATH, streams.parts),
        _route("/healthz", GET=health.alive),
        _route("/readyz", GET=health.ready),
        WebSocketRoute("/{path:path}", streams.nowhere),
    ]


def _route(path: str, **handlers: _Handler) -> Route:
    """One route for all methods of a path, so that `Allow` names them all."""

    async def endpoint(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, endpoint, methods=list(handlers))
