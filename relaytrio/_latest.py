"""A channel with one place, in which the newest value replaces the older: for news that only the latest of counts."""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

from ._wakeup import Wakeup

T = TypeVar("T")


class Latest(Generic[T]):
    """One reader. Values that the reader has not taken yet are replaced, so a slow reader costs nothing."""

    def __init__(self) -> None:
        self._values: list[T] = []
        self._closed = False
        self._wakeup = Wakeup()

    def put(self, value: T) -> None:
        """Replace what is there. After `close` it changes nothing."""
        if not self._closed:
            self._values = [value]
            self._wakeup.set()

    def close(self) -> None:
        """The reader takes what is there, then its channel ends. Twice is fine."""
        self._closed = True
        self._wakeup.set()

    async def get(self) -> T:
        """The newest value that was not taken yet. A checkpoint. Raises `trio.EndOfChannel` when it was closed."""
        # First, not last: a value that is taken is in its reader's hands at once, and in nobody's while he waits.
        if self._values or self._closed:
            await trio.lowlevel.checkpoint()
        while not self._values and not self._closed:
            await self._wakeup.wait()
        if not self._values:
            raise trio.EndOfChannel
        return self._take()

    def get_nowait(self) -> T:
        """The newest value that was not taken yet. Raises `trio.WouldBlock` if there is none, closed or not."""
        if not self._values:
            raise trio.WouldBlock
        return self._take()

    def _take(self) -> T:
        self._wakeup.clear()
        return self._values.pop()
