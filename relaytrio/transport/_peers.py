"""Which replica is served the parts that are made here, and what serves it, whatever carries the frames.

Must not know: how its connection came about. Who calls: the ASGI app's route, the listener beside the app.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ._connection import FrameConnection
from ._problems import RouteNotFound
from .parts_endpoint import authorize_peer, serve_parts

if TYPE_CHECKING:
    from .._engine import Engine

_logger = logging.getLogger("relaytrio.server")


class Peers:
    """The other replicas of one engine's cluster."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def authorize(self, headers: Mapping[str, str]) -> str:
        """The id of the replica that sent these headers. Raises `InvalidGrant`; without a secret, `RouteNotFound`."""
        engine = self._engine
        if engine.secret is None:
            raise RouteNotFound("this replica has no secret, so that it serves no others")
        return authorize_peer(headers, secret=engine.secret, replica_id=engine.replica_id, now=time.time())

    async def serve(self, connection: FrameConnection, source: str) -> None:
        """Serve a replica that was authorized, until its connection is lost; it is closed then."""
        engine = self._engine
        assert engine.secret is not None
        reason = await serve_parts(
            connection,
            parts=engine.parts,
            store=engine.store,
            replica_id=engine.replica_id,
            secret=engine.secret,
            source=source,
            settings=engine.settings,
        )
        _logger.debug("the connection of replica %s ended: %s", source, reason)
