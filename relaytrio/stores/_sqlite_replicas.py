"""The SQLite store's transactions on replicas that take, free or judge a lock: each function is a whole one.

Must not know: threads, cancellation, when to believe a free lock. Who calls: `SqliteStore`, in its thread.
"""

from __future__ import annotations

import attrs

from . import _sql_replicas as rows
from ._base import Replica
from ._sql_session import Session
from ._sqlite_locks import ReplicaLocks

_LOCKED = "SELECT id, lock FROM replicas WHERE lock <> '' AND id {among_ids}"


def register(session: Session, locks: ReplicaLocks, replica: Replica) -> None:
    with session.transaction("write"):
        rows.write_replica(session, attrs.evolve(replica, lock=locks.take(replica.id)))
        locks.sweep([replica_id for (replica_id,) in session.execute("SELECT id FROM replicas")])


def unregister(session: Session, locks: ReplicaLocks, replica_id: str) -> None:
    with session.transaction("write"):
        rows.delete_replica(session, replica_id)
        locks.release(replica_id)


def released_locks(session: Session, locks: ReplicaLocks, replica_ids: list[str]) -> frozenset[str]:
    with session.transaction("one"):
        found = session.execute(_LOCKED, {"ids": session.listed(replica_ids)}).fetchall()
    return frozenset(replica_id for replica_id, lock in found if locks.is_released(replica_id, lock))
