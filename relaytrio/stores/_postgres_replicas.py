"""The PostgreSQL store's transactions on replicas that write what is known of their locks: each is a whole one.

Must not know: how a lock is held. Who calls: `PostgresStore`, in a thread.
"""

from __future__ import annotations

from collections.abc import Collection

from . import _sql_replicas as rows
from ._base import Replica
from ._sql_session import Session

_BEAT = """
    UPDATE replicas SET heartbeat = heartbeat + 1, load = :load, lock = COALESCE(:lock, lock) WHERE id = :replica_id
"""
_DISCLAIM = "UPDATE replicas SET lock = '' WHERE id {among_ids}"


def register(session: Session, replica: Replica) -> None:
    with session.transaction("write"):
        rows.write_replica(session, replica)


def heartbeat(session: Session, replica_id: str, load: int, lock: str | None) -> bool:
    """A lock that is not held any more is not claimed any more. None: it is not known here."""
    with session.transaction("write"):
        beat = session.execute(_BEAT, {"replica_id": replica_id, "load": load, "lock": lock})
        return beat.rowcount == 1


def disclaim(session: Session, replica_ids: Collection[str]) -> None:
    """They hold no lock."""
    with session.transaction("write"):
        session.execute(_DISCLAIM, {"ids": session.listed(replica_ids)})


def unregister(session: Session, replica_id: str) -> None:
    with session.transaction("write"):
        rows.delete_replica(session, replica_id)
