"""Which viewer gets which stream: the chat of the path, `authorize`, and where the stream begins; and asking again.

Must not know: how a stream is carried. Who calls: the ASGI app's routes, the viewer listener.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from .._errors import ConfigurationError, NotAllowed
from .._subscription import Subscription
from ._authorize import Authorize, principal_of
from ._reading import chat_id_of, position_of
from ._viewer import NOT_ALLOWED, Ending, Outlet, Viewer

if TYPE_CHECKING:
    from .._engine import Engine


class Admission:
    """The rules of one engine."""

    def __init__(
        self,
        engine: Engine,
        authorize: Authorize | None,
        *,
        recheck_seconds: float | None,
        random: Callable[[], float],
    ) -> None:
        if recheck_seconds is not None and recheck_seconds <= 0:
            raise ConfigurationError("recheck_seconds is more than 0, or None")
        self.rechecks = recheck_seconds is not None
        """Whether those who were admitted may lose their stream again."""
        self.random = random
        self._engine = engine
        self._authorize = authorize
        self._recheck_seconds = recheck_seconds

    async def subscription(self, connection: HTTPConnection) -> Subscription:
        """The subscription of a viewer who may have it, not yet entered."""
        chat_id = chat_id_of(connection)
        await principal_of(self._authorize, connection, chat_id, "stream")
        return self._engine.subscribe(chat_id, cursor=position_of(connection), headers=connection.headers)

    def viewer(self, connection: HTTPConnection, outlet: Outlet) -> Viewer:
        """What carries the subscription to that outlet."""
        return Viewer(
            outlet,
            settings=self._engine.settings,
            drain_started=self._engine.drain_started,
            recheck=lambda: self.recheck(connection),
            random=self.random,
        )

    async def recheck(self, connection: HTTPConnection) -> Ending:
        """Ask again whether the viewer may see this, every `recheck_seconds`, until the answer is no."""
        if self._recheck_seconds is None:
            await trio.sleep_forever()
        while True:
            await trio.sleep(self._recheck_seconds)
            try:
                await principal_of(self._authorize, connection, chat_id_of(connection), "stream")
            except (NotAllowed, HTTPException):
                return Ending(NOT_ALLOWED, "not allowed any more")
