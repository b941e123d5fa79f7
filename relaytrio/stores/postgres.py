"""A store in a PostgreSQL database (14 or newer), for replicas on several machines. Needs `relaytrio[postgres]`.

Each call is one transaction, a synchronous piece that runs in one worker thread over one of a few connections. A call
that is cancelled while it waits for a connection, or between two tries, has no effect by that; one whose transaction
has begun waits for its end (some milliseconds; at most `transaction_seconds`, and the time to connect) and gives its
result, and the cancellation comes with the caller's next checkpoint. So a transaction is never left open.

Conflicts, lost connections, a server that restarts, a primary that another one has replaced: the transaction is tried
again, a few times within about a second, then it is `StoreUnavailable`. Where the connection was lost in the commit
itself, nobody knows whether it has happened: then only what cannot happen twice is tried again (a read, a run's
transition with its token, a request with its idempotency key), and for the rest `StoreUnavailable` means "perhaps".

All goes to a server that may be written to, reads too: a standby's past would look like a store that was set back.
Must not know: SQL. Who calls: `open_store`.
"""

from __future__ import annotations

import logging
import random as random_module
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from typing import TypeVar

import trio

from .._errors import StoreUnavailable
from .._nursery import BodyNursery
from .._settings import DEFAULTS, Settings
from . import _postgres_replicas as ownership
from . import _postgres_schema
from ._base import Replica
from ._fresh import Fresher, utc_now
from ._postgres_errors import TryAgain, translated
from ._postgres_locks import ReplicaLocks
from ._postgres_migrate import check, migrate
from ._postgres_place import PostgresPlace, parse_postgres_url
from ._postgres_pool import Deadlines, PostgresPool
from ._postgres_presence import Presence
from ._postgres_session import PostgresSession, connect, conninfo_of
from ._sql_schema import Step
from ._sql_session import Again, Session
from ._sql_store import SqlStore

T = TypeVar("T")
PAUSES_SECONDS = (0.0, 0.1, 0.3, 0.8)
"""Before the tries after the first, each with full jitter. The first costs nothing: what failed is most often a
connection that has died unused. A server that restarts is away for about a second."""
INSIST_SECONDS = 3.0
"""After so long there is no other try: each may take its time when the server says nothing at all."""
TRANSACTION_SECONDS = 10.0
"""The most that a server may hold a thread with one transaction. Longer than its own limit for a statement."""
CLOSE_SECONDS = 30.0
"""The most that closing waits for what is under way in the session of the locks."""


@asynccontextmanager
async def open_postgres_store(
    url: str | PostgresPlace,
    *,
    settings: Settings = DEFAULTS,
    transaction_seconds: float = TRANSACTION_SECONDS,
    clock: Callable[[], str] = utc_now,
    random: Random | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    logger: logging.Logger | None = None,
) -> AsyncIterator[PostgresStore]:
    """The store in this database: `postgresql://user:password@host:5432/name`, with libpq's options behind it.

    `?schema=` names the schema (`relaytrio`), which is made if it is not there, `?pool_size=` the number of connections
    (8) beside the one that holds the locks. `clock`, `random` and `monotonic` are as in `open_sqlite_store`.

    Raises `ConfigurationError` for a URL that cannot be understood, `StoreUnavailable` if the server cannot be reached
    or refuses the user, `StoreUnusable` if the schema is of a newer version or belongs to another program.
    """
    place = parse_postgres_url(url) if isinstance(url, str) else url
    conninfo = conninfo_of(place)
    steps = _postgres_schema.STEPS
    await trio.to_thread.run_sync(_migrated, conninfo, place, steps)
    deadlines = Deadlines(transaction_seconds)

    def new_session() -> PostgresSession:
        connection = connect(conninfo)
        try:
            with deadlines.watched(connection):
                check(connection, place, steps)
                return PostgresSession(connection, place.schema)
        except BaseException:
            connection.close()
            raise

    pool = PostgresPool(new_session, place=place.url, deadlines=deadlines)
    locks = ReplicaLocks(
        new_session,
        schema=place.schema,
        monotonic=monotonic,
        logger=logger or logging.getLogger("relaytrio.stores.postgres"),
    )
    presence = Presence(locks, place=place.url, deadlines=deadlines, random=random_module.random)
    store = PostgresStore(place, pool, presence, settings=settings, fresher=Fresher(clock, random))
    try:
        async with BodyNursery(lambda: StoreUnavailable(f"the watch over {place.url} failed")) as nursery:
            nursery.start_soon(deadlines.watch)
            nursery.start_soon(presence.watch, store.disclaim)
            yield store
    finally:
        await store.aclose()


class PostgresStore(SqlStore):
    """A `Store` in a PostgreSQL database; made by `open_postgres_store`, which runs its tasks."""

    def __init__(
        self,
        place: PostgresPlace,
        pool: PostgresPool,
        presence: Presence,
        *,
        settings: Settings,
        fresher: Fresher,
    ) -> None:
        super().__init__(settings, fresher)
        self.place = place
        self._pool = pool
        self._presence = presence
        self._limiter = trio.CapacityLimiter(place.pool_size)
        self._closed = False

    @property
    def url(self) -> str:
        return self.place.url

    async def register(self, replica: Replica) -> None:
        """Take the lock, then write the row. A lock that cannot be had is not claimed; the heartbeat counts then."""
        lock = await self._insist(partial(self._presence.take, replica.id)) if self._settings.replica_locks else ""
        row = Replica(
            id=replica.id,
            address=replica.address,
            version=replica.version,
            heartbeat=replica.heartbeat,
            lock=lock,
            load=replica.load,
        )
        await self._run(lambda session: ownership.register(session, row))

    async def heartbeat(self, replica_id: str, load: int) -> bool:
        """A lock whose session was lost is taken again before the heartbeat is counted; if it cannot be, the row does
        not claim it any more."""
        lock = await self._lock_of(replica_id)
        return await self._run(lambda session: ownership.heartbeat(session, replica_id, load, lock))

    async def unregister(self, replica_id: str) -> None:
        await self._run(lambda session: ownership.unregister(session, replica_id))
        if self._settings.replica_locks:
            await self._insist(partial(self._presence.release, replica_id))

    async def released_locks(self, replica_ids: Collection[str]) -> frozenset[str]:
        if not self._settings.replica_locks:
            await self.ping()
            return frozenset()
        trust_seconds = self._settings.lock_trust_seconds
        return await self._insist(partial(self._presence.released, list(replica_ids), trust_seconds=trust_seconds))

    async def disclaim(self, replica_ids: Collection[str]) -> None:
        """Have the rows of these replicas say that they hold no lock, if that can be written now."""
        with suppress(StoreUnavailable, trio.ClosedResourceError):
            await self._run(lambda session: ownership.disclaim(session, replica_ids))

    async def aclose(self) -> None:
        """Close all connections (those in use, when their transaction has ended), and free the locks of replicas that
        are still registered. Closes even if cancelled (and then leaves the cancellation to the next checkpoint). Twice
        is fine."""
        self._closed = True
        self._pool.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
            await self._presence.close()

    async def _lock_of(self, replica_id: str) -> str | None:
        if not self._settings.replica_locks:
            return None
        self._check_open()
        try:
            return await self._presence.renewed(replica_id)
        except (TryAgain, StoreUnavailable):
            return ""

    async def _run(self, work: Callable[[Session], T], *, repeatable: bool = True) -> T:
        def in_thread() -> Awaitable[T]:
            return trio.to_thread.run_sync(self._pool.run, work, limiter=self._limiter)

        return await self._insist(in_thread, repeatable=repeatable)

    async def _insist(self, ask: Callable[[], Awaitable[T]], *, repeatable: bool = True) -> T:
        """Ask until there is an answer, a few times."""
        pauses = iter(PAUSES_SECONDS)
        give_up_at = trio.current_time() + INSIST_SECONDS
        while True:
            self._check_open()
            try:
                return await ask()
            except Again:
                reason = "others were always first"
            except TryAgain as trouble:
                reason = str(trouble)
                if trouble.in_doubt and not repeatable:
                    raise self._unavailable(f"it is not known whether this was done: {reason}") from trouble
            pause = next(pauses, None)
            if pause is None or trio.current_time() > give_up_at:
                raise self._unavailable(reason)
            await trio.sleep(pause * random_module.random())

    def _unavailable(self, reason: str) -> StoreUnavailable:
        return StoreUnavailable(f"the database {self.place.url} cannot be used for now: {reason}")

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the store is closed")


def _migrated(conninfo: str, place: PostgresPlace, steps: tuple[Step, ...]) -> None:
    """Once, over a connection of its own. Raises `StoreUnusable`, and `StoreUnavailable` for all that may pass."""
    try:
        with translated(place.url), connect(conninfo) as connection:
            migrate(connection, place, steps)
    except TryAgain as trouble:
        raise StoreUnavailable(f"the database {place.url} cannot be reached: {trouble}") from trouble
