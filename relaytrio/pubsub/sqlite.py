"""Hints between processes that share one SQLite file: the file itself says that it was written.

A commit is the publication: `publish` has nothing to do. One task, while somebody listens, asks SQLite whenever the
file may have been written (`_file_watch.py`) whether another connection has committed (`PRAGMA data_version`: a look at
shared memory, done on Trio's thread), and only then, in a thread, which chats have changed. Its connection is its own,
so it hears this process's store as well.

Must not know: what a change was. Who calls: `derive_pubsub`, and the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from .._errors import PubSubUnavailable, StoreError
from .._nursery import BodyNursery
from .._wakeup import Wakeup
from ..stores._sqlite_file import open_reader, translated
from ..stores._sqlite_schema import CHANGED_SINCE, LAST_CHANGE
from ._base import Hint
from ._file_watch import watch_file
from ._listener import Listener

MOST_CHANGES = 1000
"""Chats that one query gives; the next look takes the rest."""
CLOSE_SECONDS = 10.0
"""The most that closing waits for the query in progress."""


@asynccontextmanager
async def open_sqlite_pubsub(path: str | Path) -> AsyncIterator[SqlitePubSub]:
    """The hints of the store in this file, which is opened when the first listener comes."""
    pubsub = SqlitePubSub(_absolute(path))
    try:
        async with BodyNursery(lambda: PubSubUnavailable(f"the watch of {path} failed")) as nursery:
            nursery.start_soon(pubsub.run)
            yield pubsub
    finally:
        await pubsub.aclose()  # when no thread reads any more


class SqlitePubSub:
    """A `PubSub` that watches a file; made by `open_sqlite_pubsub`, which runs its task.

    The reader is touched by one task at a time: by the watch while there are listeners, by `listen` and `aclose` when
    there are none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listeners: set[Listener] = set()
        self._reader: _Reader | None = None
        self._entering = trio.Lock()
        self._thread = trio.CapacityLimiter(1)
        self._somebody_listens = Wakeup()
        self._closed = False

    async def publish(self, hint: Hint) -> None:
        """A checkpoint only: the commit that the hint tells of says it all."""
        await trio.lowlevel.checkpoint()
        self._check_open()

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        """All changes that are committed while the context is open, and perhaps some before."""
        listener = Listener()
        async with self._entering:
            self._check_open()
            if not self._listeners:
                await self._start()
            if self._closed:  # meanwhile, and what was opened for it is still open
                await self._let_go()
            self._check_open()
            self._listeners.add(listener)
            self._somebody_listens.set()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            listener.close()

    async def aclose(self) -> None:
        """End all listeners and close the file. Closes even if cancelled. Twice is fine."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
        await self._let_go()

    async def run(self) -> None:
        """Watch the file while somebody listens. Ends by cancellation only."""
        while True:
            await self._somebody_listens.wait()
            reason = await self._watch()
            if reason is not None:
                await self._give_up(reason)

    async def _give_up(self, reason: str) -> None:
        """Tell all listeners; not while another is entering with the connection that is closed here."""
        async with self._entering:
            for listener in self._listeners:
                listener.fail(reason)
            await self._let_go()

    async def _start(self) -> None:
        """What is committed from now on is news. If the file cannot be read, the next listener opens it anew."""
        try:
            self._reader = await trio.to_thread.run_sync(_up_to_date, self._reader, self._path, limiter=self._thread)
        except StoreError as error:
            self._reader = None
            raise PubSubUnavailable(str(error)) from error

    async def _watch(self) -> str | None:
        """Until nobody listens; why the file cannot be read any more, if that ended it."""
        watch = watch_file(self._path)
        try:
            while self._listeners and self._reader is not None:
                if self._reader.has_news():
                    watch.saw_news()
                    for hint in await trio.to_thread.run_sync(self._reader.take, limiter=self._thread):
                        self._deliver(hint)
                await watch.wait()
        except StoreError as error:
            return str(error)
        finally:
            watch.close()
        return None

    def _deliver(self, hint: Hint) -> None:
        for listener in self._listeners:
            listener.put(hint)

    async def _let_go(self) -> None:
        """Forget the listeners at once; close the file when no thread uses it."""
        self._listeners.clear()
        reader, self._reader = self._reader, None
        if reader is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                await trio.to_thread.run_sync(reader.close, limiter=self._thread)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the pubsub is closed")


class _Reader:
    """A connection that knows how much of the store's changes it has seen. Synchronous; raises `StoreError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = open_reader(path)
        self._data_version: int | None = None
        self._last_change = 0

    def has_news(self) -> bool:
        """Whether a connection has committed since this was asked last. Some microseconds, and no disk."""
        with translated(self._path):
            before = self._data_version
            ((self._data_version,),) = self._connection.execute("PRAGMA data_version").fetchall()
        return self._data_version != before

    def skip(self) -> None:
        """Take all that was committed before now as seen."""
        with translated(self._path):
            ((self._last_change,),) = self._connection.execute(LAST_CHANGE).fetchall()

    def take(self) -> list[Hint]:
        """What was not seen yet. A file that was set back to an older state counts its changes from there."""
        with translated(self._path):
            ((last_change,),) = self._connection.execute(LAST_CHANGE).fetchall()
            self._last_change = min(self._last_change, last_change)
            rows = self._connection.execute(
                CHANGED_SINCE, {"since": self._last_change, "limit": MOST_CHANGES}
            ).fetchall()
        if len(rows) == MOST_CHANGES:
            self._data_version = None  # there may be more
        if rows:
            self._last_change = rows[-1][0]
        return [Hint(*row[1:]) for row in rows]

    def close(self) -> None:
        self._connection.close()


def _up_to_date(reader: _Reader | None, path: Path) -> _Reader:
    """A reader that has seen all that there is. Closes one that cannot read any more."""
    reader = _Reader(path) if reader is None else reader
    try:
        reader.skip()
    except BaseException:
        reader.close()
        raise
    return reader


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()
