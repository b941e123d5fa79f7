"""Whether a replica lives, and whether it should be sent anything. Nobody is asked for permission here.

Who calls: the routes of asgi.py, for a load balancer or an orchestrator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
from starlette.requests import Request
from starlette.responses import Response

from .._errors import StoreError
from ._answers import answer

if TYPE_CHECKING:
    from .._engine import Engine

PING_SECONDS: Final = 2.0
"""How long the store may take to answer: orchestrators commonly give up after a few seconds."""


class Health:
    """The handlers for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def alive(self, request: Request) -> Response:
        """`GET /healthz`: it answers, so it lives."""
        return answer({"ok": True, **self._told()})

    async def ready(self, request: Request) -> Response:
        """`GET /readyz`: the store answers, and the replica is not being stopped."""
        why_not = await self._why_not()
        told = {"ok": why_not is None, "why_not": why_not, **self._told()}
        return answer(told, 200 if why_not is None else 503)

    async def _why_not(self) -> str | None:
        if self._engine.draining:
            return "draining"
        try:
            with trio.fail_after(PING_SECONDS):
                await self._engine.store.ping()
        except trio.TooSlowError:
            return f"the store has not answered for {PING_SECONDS:g} s"
        except StoreError:
            return "the store cannot be reached"
        return None

    def _told(self) -> dict[str, Any]:
        from .._engine import VERSION  # not at the top: the engine is made of what is below this room

        stats = attrs.asdict(self._engine.stats())
        return {"replica_id": self._engine.replica_id, "version": VERSION, "stats": stats}
