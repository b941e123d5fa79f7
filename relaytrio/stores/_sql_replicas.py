"""An SQL store's statements on replicas and on what they own.

Must not know: threads, cancellation, locks, which database it is. Who calls: `SqlStore`, in a thread, and the
transactions of each database that have to do with its locks.
"""

from __future__ import annotations

from ._base import Candidate, OwnedChat, Replica
from ._sql_rows import columns, from_row, names, places, to_row
from ._sql_session import Session

_CANDIDATES = """
    SELECT id, status, worker_id FROM chats
    WHERE status IN ('running', 'interrupting') AND (
        worker_id IS NULL
        OR worker_id {among_ids}
        OR NOT EXISTS (SELECT 1 FROM replicas WHERE replicas.id = chats.worker_id)
    )
    ORDER BY changed LIMIT :limit
"""
_OWNED = "SELECT id, run_id, status, snapshot_version FROM chats WHERE worker_id = :replica_id"
_WRITE = f"""
    INSERT INTO replicas ({columns(Replica)}) VALUES ({places(Replica)})
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in names(Replica) if name != "id")}
"""
_BEAT = "UPDATE replicas SET heartbeat = heartbeat + 1, load = :load WHERE id = :replica_id"
_READ = f"SELECT {columns(Replica)} FROM replicas"

# ----------------------------------------------------------------------------------- whole transactions


def candidates(session: Session, dead: list[str], limit: int) -> list[Candidate]:
    with session.transaction("one"):
        rows = session.execute(_CANDIDATES, {"ids": session.listed(dead), "limit": limit})
        return [from_row(Candidate, row) for row in rows]


def owned_by(session: Session, replica_id: str) -> list[OwnedChat]:
    with session.transaction("one"):
        return [from_row(OwnedChat, row) for row in session.execute(_OWNED, {"replica_id": replica_id})]


def heartbeat(session: Session, replica_id: str, load: int) -> bool:
    with session.transaction("write"):
        return session.execute(_BEAT, {"replica_id": replica_id, "load": load}).rowcount == 1


def replicas(session: Session) -> list[Replica]:
    with session.transaction("one"):
        return [from_row(Replica, row) for row in session.execute(_READ)]


# ------------------------------------------------------------------------------ statements of some other


def write_replica(session: Session, replica: Replica) -> None:
    """Inside a transaction that writes."""
    session.execute(_WRITE, to_row(replica))


def delete_replica(session: Session, replica_id: str) -> None:
    """Inside a transaction that writes. One that is not there is fine."""
    session.execute("DELETE FROM replicas WHERE id = :replica_id", {"replica_id": replica_id})
