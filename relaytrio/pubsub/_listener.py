"""What a slow listener keeps: of each chat the newest hint, and no more chats than a bound.

Must not know: where hints come from. Who calls: the notifiers put, the engine iterates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from .._errors import PubSubUnavailable
from .._wakeup import Wakeup
from ._base import Hint

MOST_CHATS = 10_000
"""About two megabytes. Past it the chats that have waited longest are forgotten: the poll makes up for it."""


class Listener(AsyncIterator[Hint]):
    """The hints of one `listen()`. `put`, `close` and `fail` are synchronous and never wait for the reader."""

    def __init__(self, most_chats: int = MOST_CHATS) -> None:
        self._most_chats = most_chats
        self._hints: dict[str, Hint] = {}
        self._ended = False
        self._failure: str | None = None
        self._wakeup = Wakeup()

    def put(self, hint: Hint) -> None:
        """Keep it, unless a newer one of its chat waits already."""
        if self._ended:
            return
        older = self._hints.get(hint.chat_id)
        if older is None and len(self._hints) >= self._most_chats:
            del self._hints[next(iter(self._hints))]
        if older is None or replaces(hint, older):
            self._hints[hint.chat_id] = hint
        self._wakeup.set()

    def close(self) -> None:
        """The reader takes what is there, then its iteration ends."""
        self._ended = True
        self._wakeup.set()

    def fail(self, reason: str) -> None:
        """The reader takes what is there, then gets `PubSubUnavailable`."""
        self._failure = reason
        self.close()

    async def __anext__(self) -> Hint:
        """The hint that has waited longest. Always a checkpoint."""
        while not self._hints:
            if self._ended:
                await trio.lowlevel.checkpoint()
                raise self._end()
            await self._wakeup.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        hint = self._hints.pop(next(iter(self._hints)))
        await trio.lowlevel.cancel_shielded_checkpoint()
        return hint

    def _end(self) -> Exception:
        return StopAsyncIteration() if self._failure is None else PubSubUnavailable(self._failure)


def replaces(newer: Hint, older: Hint) -> bool:
    """Nothing comes after the end of a chat."""
    if "deleted" in (newer.status, older.status):
        return newer.status == "deleted"
    return newer.snapshot_version >= older.snapshot_version
