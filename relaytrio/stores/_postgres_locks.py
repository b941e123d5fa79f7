"""What tells at once that a replica's process has died: an advisory lock in a session of its own, freed by the server.

A lock names the life of the server in which it was taken: what a restarted server, or another that took its place, has
free says nothing. No lock is claimed but in a session that is proved to be this connection's own: behind a pooler, the
lock would belong to whoever gets that session next. And nobody's lock is judged but over such a session, held unbroken
for a while: when a server has ended all its sessions and gone on, their owners had that long to take their locks again.

A session that was lost is replaced, and takes its locks again; one that the server still believes in, though nobody is
at its other end, is ended for that. Synchronous, used by one thread at a time. Must not know: threads, what a replica
does, which look at a free lock counts. Who calls: `_postgres_presence.py`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection

import psycopg

from ._postgres_session import PostgresSession

TERMINATE_SECONDS = 2.0
"""For the server to end a session: it does so at once, unless it is about to fail itself."""
_LIFE = "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"
_HELD = """
    SELECT (classid::bigint << 32) | objid::bigint, pid FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_CLAIMED = "SELECT id FROM replicas WHERE lock = :lock AND id {among_ids}"
_CLAIM = "UPDATE replicas SET lock = :lock WHERE id = :replica_id AND lock <> :lock"


class ReplicaLocks:
    """The locks of the replicas that one store has registered, and its look at those of others."""

    def __init__(
        self,
        connect: Callable[[], PostgresSession],
        *,
        schema: str,
        monotonic: Callable[[], float],
        logger: logging.Logger,
    ) -> None:
        self._connect = connect
        self._schema = schema
        self._monotonic = monotonic
        self._logger = logger
        self.session: PostgresSession | None = None
        """Its own connection; None: not opened yet, or lost."""
        self._pooled = False
        self._life = ""
        self._open_since = 0.0
        self._wanted: dict[str, None] = {}
        self._held: set[str] = set()
        self._former: set[int] = set()
        """Processes of the server that served sessions which were lost here."""

    def take(self, replica_id: str) -> str:
        """Hold the replica's lock until `release` or `close`. What names it; empty if it cannot be had.

        Raises `psycopg.Error` if the server cannot be reached.
        """
        self._wanted[replica_id] = None
        self.renew()
        return self.name_of(replica_id) or ""

    def name_of(self, replica_id: str) -> str | None:
        """What names the lock that is held now; empty if it could not be had, None if nobody has asked for it."""
        if replica_id not in self._wanted:
            return None
        return self._life if replica_id in self._held else ""

    @property
    def wanted(self) -> list[str]:
        """Replicas whose locks are held, or would be if there were a session. For any thread."""
        return list(self._wanted)

    def opened(self) -> PostgresSession | None:
        """The session, opened if there is none; None behind a pooler. Raises `psycopg.Error`."""
        if self.session is None and not self._pooled:
            self.session = self._open()
        return self.session

    def renew(self) -> None:
        """Have a session that answers, and hold in it all locks that were asked for. Raises `psycopg.Error`."""
        if self.session is not None and not _answers(self.session):
            self._logger.warning("the session for the locks of this process's replicas was lost")
            self._lose(self.session)
        session = self.opened()
        if session is not None:
            for replica_id in self._wanted.keys() - self._held:
                self._try_to_take(session, replica_id)

    def claim(self) -> None:
        """Have the rows of all replicas whose locks are held say so. Raises `psycopg.Error`."""
        for replica_id in tuple(self._held):
            if self.session is not None:
                self.session.execute(_CLAIM, {"lock": self._life, "replica_id": replica_id})

    def release(self, replica_id: str) -> None:
        """Free the lock. One that is not held here is left alone. Raises `psycopg.Error`: then it is free as well."""
        self._wanted.pop(replica_id, None)
        if replica_id in self._held and self.session is not None:
            self._held.discard(replica_id)
            self.session.execute("SELECT pg_advisory_unlock(:key)", {"key": self._key(replica_id)})

    def released(self, replica_ids: Collection[str], *, trust_seconds: float) -> frozenset[str]:
        """Those whose rows name a lock of the server's present life that nobody holds. Raises `psycopg.Error`."""
        self.renew()
        if self.session is None or self._monotonic() - self._open_since < trust_seconds:
            return frozenset()
        claims = {"lock": self._life, "ids": self.session.listed(replica_ids)}
        claimed = [replica_id for (replica_id,) in self.session.execute(_CLAIMED, claims)]
        held = {key for key, _ in self.session.execute(_HELD)} if claimed else set()
        return frozenset(replica_id for replica_id in claimed if self._key(replica_id) not in held)

    def close(self) -> None:
        """Free all locks, and take none any more."""
        self._wanted.clear()
        if self.session is not None:
            self._lose(self.session)

    def _open(self) -> PostgresSession | None:
        session = self._connect()
        try:
            if session.own:
                session.execute("SET idle_session_timeout = 0")
                ((life,),) = session.execute(_LIFE)
        except BaseException:
            session.close()
            raise
        if not session.own:
            self._pooled = True
            session.close()
            self._logger.warning(
                "a pooler is between here and the database: without locks, heartbeats tell who is dead"
            )
            return None
        self._life = f"advisory:{life}"
        self._open_since = self._monotonic()
        return session

    def _lose(self, session: PostgresSession) -> None:
        self.session = None
        self._held.clear()
        self._former.add(session.pid)
        session.close()

    def _try_to_take(self, session: PostgresSession, replica_id: str) -> None:
        key = self._key(replica_id)
        if not (_lock(session, key) or (self._end_former_holder(session, key) and _lock(session, key))):
            self._logger.warning(
                "the lock of replica %s is another's: its heartbeat alone tells that it lives", replica_id
            )
        elif _holder(session, key) != session.pid:
            self._logger.warning("the lock of replica %s is not where it was taken: nobody is told of it", replica_id)
        else:
            self._held.add(replica_id)
            session.execute(_CLAIM, {"lock": self._life, "replica_id": replica_id})

    def _end_former_holder(self, session: PostgresSession, key: int) -> bool:
        """End the session that holds the lock, if it was one of ours that was lost here and not yet there."""
        pid = _holder(session, key)
        if pid not in self._former:
            return False
        parameters = {"pid": pid, "wait": round(1000 * TERMINATE_SECONDS)}
        return bool(session.execute("SELECT pg_terminate_backend(:pid, :wait)", parameters).fetchone()[0])  # type: ignore[index]

    def _key(self, replica_id: str) -> int:
        """Half of the keys are negative, as the server's are."""
        digest = hashlib.sha256(f"{self._schema} {replica_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


def _answers(session: PostgresSession) -> bool:
    try:
        return session.execute("SELECT pg_backend_pid()").fetchone() == (session.pid,)
    except psycopg.Error:
        return False


def _lock(session: PostgresSession, key: int) -> bool:
    return session.execute("SELECT pg_try_advisory_lock(:key)", {"key": key}).fetchone() == (True,)


def _holder(session: PostgresSession, key: int) -> int | None:
    """The server's process that holds this lock."""
    return next((pid for held, pid in session.execute(_HELD) if held == key), None)
