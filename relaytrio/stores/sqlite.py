"""A store in one SQLite file, for one machine: several processes may have it open at once.

SQLite waits with threads, so each call is one transaction in a worker thread. Those that may write run one at a time,
and those that wait for their turn share one commit (`_group_commit.py`); those that only read run beside them, on
connections of their own. A call that is cancelled while it waits for its turn has no effect; one whose transaction has
begun waits for its end (some milliseconds; up to the busy timeout while another process holds the file) and gives its
result, and the cancellation comes with the caller's next checkpoint. So a transaction is never left open, and a caller
who got `trio.Cancelled` changed nothing.

Durable against the death of any process. Against the loss of power, the last transactions may be missing (never a part
of one) unless `synchronous="FULL"`, which costs a flush to the disk for each transaction.

Must not know: SQL (`_sql_chats.py`, `_sql_replicas.py`), what makes a file usable (`_sqlite_file.py`). Who calls:
`open_store`. Not for network file systems: neither SQLite's log nor the replicas' locks work there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

import trio

from .._errors import StoreUnavailable, StoreUnusable
from .._settings import DEFAULTS, Settings
from . import _sqlite_replicas as ownership
from ._base import Replica
from ._fresh import Fresher, utc_now
from ._group_commit import GroupCommit, Work
from ._sql_session import Session
from ._sql_store import SqlStore
from ._sqlite_file import Standing, Synchronous, open_file, open_reader, translated
from ._sqlite_locks import ReplicaLocks, boot_id
from ._sqlite_session import SqliteSession

T = TypeVar("T")
BUSY_SECONDS = 5.0
"""How long a transaction waits for those of other processes: far longer than any takes."""
READERS = 2
"""Connections that read beside the writer; opened when they are needed."""
CLOSE_SECONDS = 30.0
"""The most that closing waits for the transaction in progress."""


@asynccontextmanager
async def open_sqlite_store(
    path: str | Path,
    *,
    settings: Settings = DEFAULTS,
    synchronous: Synchronous = "NORMAL",
    busy_seconds: float = BUSY_SECONDS,
    clock: Callable[[], str] = utc_now,
    random: Random | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncIterator[SqliteStore]:
    """The store in this file, which is made if its directory exists.

    `clock` gives the instant as RFC 3339 in UTC, `random` the stamps of messages, `monotonic` seconds since any moment;
    tests inject them. Raises `StoreUnusable` if the file cannot be opened or written, is of a newer schema, belongs to
    another program or is no database, and has then changed nothing; `StoreUnavailable` if others keep it locked.
    """
    place = _absolute(path)
    limiter = trio.CapacityLimiter(1)

    def connect() -> sqlite3.Connection:
        return open_file(place, synchronous=synchronous, busy_seconds=busy_seconds)

    connection = await trio.to_thread.run_sync(connect, limiter=limiter)
    store = SqliteStore(
        place,
        connection,
        limiter,
        busy_seconds=busy_seconds,
        settings=settings,
        fresher=Fresher(clock, random),
        monotonic=monotonic,
    )
    try:
        yield store
    finally:
        await store.aclose()


class SqliteStore(SqlStore):
    """A `Store` in a file; made by `open_sqlite_store`."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        limiter: trio.CapacityLimiter,
        *,
        busy_seconds: float,
        settings: Settings,
        fresher: Fresher,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(settings, fresher)
        self.path = path
        """Absolute."""
        self._connection = connection
        self._session = SqliteSession(connection)
        self._standing = Standing(path)
        self._limiter = limiter
        self._writes = GroupCommit(self._commit, limiter)
        self._busy_seconds = busy_seconds
        self._reading = trio.CapacityLimiter(READERS)
        self._readers: list[sqlite3.Connection] = []
        """Open, and not in use."""
        self._locks = ReplicaLocks(path.with_name(f"{path.name}.locks"), boot_id() if settings.replica_locks else "")
        self._monotonic = monotonic
        self._open_since = monotonic()
        self._closed = False

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    async def register(self, replica: Replica) -> None:
        await self._run(lambda session: ownership.register(session, self._locks, replica))

    async def unregister(self, replica_id: str) -> None:
        await self._run(lambda session: ownership.unregister(session, self._locks, replica_id))

    async def released_locks(self, replica_ids: Collection[str]) -> frozenset[str]:
        if self._monotonic() - self._open_since < self._settings.lock_trust_seconds:
            await self.ping()
            return frozenset()
        ids = list(replica_ids)
        return await self._run(lambda session: ownership.released_locks(session, self._locks, ids))

    async def aclose(self) -> None:
        """Close the file, and free the locks of replicas that are still registered. Closes even if cancelled (and then
        leaves the cancellation to the next checkpoint). Twice is fine."""
        self._closed = True
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
            await trio.to_thread.run_sync(self._close, limiter=self._limiter)
            await self._close_readers()

    def _close(self) -> None:
        self._locks.close()
        self._connection.close()

    def _open_reader(self) -> sqlite3.Connection:
        return open_reader(self.path, busy_seconds=self._busy_seconds)

    async def _close_readers(self) -> None:
        """When whoever still reads has put its connection back."""
        places = [object() for _ in range(READERS)]
        for place in places:
            await self._reading.acquire_on_behalf_of(place)
        while self._readers:
            self._readers.pop().close()
        for place in places:
            self._reading.release_on_behalf_of(place)

    async def _run(self, work: Callable[[Session], T], *, repeatable: bool = True) -> T:
        """One transaction that may write, in the next batch. Its errors in this package's words.

        A file is there or it is not: no commit leaves anybody in doubt, and nothing is run again here.
        """
        return await self._writes.run(lambda: self._carry_out(work, self._session))

    def _carry_out(self, work: Callable[[Session], T], session: SqliteSession) -> T:
        if self._closed:
            raise trio.ClosedResourceError("the store is closed")
        self._standing.check()
        with translated(self.path):
            return work(session)

    def _commit(self, batch: Sequence[Work[object]]) -> None:
        """One commit for all of a batch, in the thread of the writer."""
        if len(batch) == 1:
            batch[0].attempt()
            return
        try:
            with translated(self.path), self._session.group():
                for work in batch:
                    work.attempt()
                    if not self._connection.in_transaction:
                        raise StoreUnavailable(
                            f"the database {self.path} took a transaction back, for lack of something"
                        )
        except (StoreUnavailable, StoreUnusable, sqlite3.Error) as error:
            for work in batch:
                work.fail(error)

    async def _read(self, work: Callable[[Session], T]) -> T:
        """One transaction that only reads, in a thread of its own: it sees all that was committed before it began."""

        def read() -> T:
            if self._closed:
                raise trio.ClosedResourceError("the store is closed")
            reader = self._readers.pop() if self._readers else self._open_reader()
            try:
                return self._carry_out(work, SqliteSession(reader))
            finally:
                self._readers.append(reader)

        return await trio.to_thread.run_sync(read, limiter=self._reading)


def _absolute(path: str | Path) -> Path:
    """So that a later change of the working directory changes nothing."""
    return Path(path).absolute()
