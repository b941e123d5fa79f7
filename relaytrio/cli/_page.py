"""The demo's page and the replica's own app under one roof.

`/` is the page, `/demo/...` what it needs, all else is the app of the replica. Must not know: chats. Who calls:
`_serve.py`, where the page is wanted.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from .._engine import Engine

_TYPES: Final = {
    "index.html": "text/html",
    "app.css": "text/css",
    "app.js": "text/javascript",
    "chat.js": "text/javascript",
    "stream.js": "text/javascript",
}
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing comes from, and nothing goes to, anywhere but the replica that served the page."""


def page_app(engine: Engine) -> Starlette:
    """The replica's app, with the page at `/`."""
    routes: list[Route | Mount] = [Route("/", _file("index.html"), methods=["GET"])]
    routes += [Route(f"/demo/{name}", _file(name), methods=["GET"]) for name in _TYPES if name != "index.html"]
    routes.append(Route("/demo/replicas.json", _Replicas(engine).answer))
    routes.append(Mount("/", engine.asgi_app()))
    return Starlette(routes=routes)


def _file(name: str) -> Response:
    """One file of the page, read once. A response is an ASGI app: it serves any number of requests."""
    content = (files("relaytrio") / "web" / name).read_bytes()
    return Response(content, media_type=_TYPES[name], headers=_HEADERS)


class _Replicas:
    """The replicas of the cluster, for the page's links to the same chat elsewhere."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def answer(self, request: Request) -> JSONResponse:
        """`{"self": id, "replicas": [{"id", "address"}]}`, by address. A replica that died may still be among them."""
        known = [replica for replica in await self._engine.store.replicas() if replica.address is not None]
        listed = [{"id": replica.id, "address": replica.address} for replica in known]
        listed.sort(key=lambda replica: str(replica["address"]))
        return JSONResponse(
            {"self": self._engine.replica_id, "replicas": listed}, headers={"Cache-Control": "no-store"}
        )
