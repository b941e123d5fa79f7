"""The SQLite store's transactions on replicas and on what they own: each function is a whole one.

Must not know: threads, cancellation, when to believe a free lock. Who calls: `SqliteStore`, in its thread.
"""

from __future__ import annotations

import sqlite3

import attrs

from ._base import Candidate, OwnedChat, Replica
from ._sqlite_file import transaction
from ._sqlite_locks import ReplicaLocks
from ._sqlite_rows import columns, from_row, places, to_json, to_row

_CANDIDATES = """
    SELECT id, status, worker_id FROM chats
    WHERE status IN ('running', 'interrupting') AND (
        worker_id IS NULL
        OR worker_id IN (SELECT value FROM json_each(?))
        OR NOT EXISTS (SELECT 1 FROM replicas WHERE replicas.id = chats.worker_id)
    )
    ORDER BY changed LIMIT ?
"""
_OWNED = "SELECT id, run_id, status, snapshot_version FROM chats WHERE worker_id = ?"
_REGISTER = f"INSERT OR REPLACE INTO replicas ({columns(Replica)}) VALUES ({places(Replica)})"
_LOCKED = "SELECT id, lock FROM replicas WHERE lock <> '' AND id IN (SELECT value FROM json_each(?))"


def candidates(connection: sqlite3.Connection, dead: list[str], limit: int) -> list[Candidate]:
    return [from_row(Candidate, row) for row in connection.execute(_CANDIDATES, (to_json(dead), limit))]


def owned_by(connection: sqlite3.Connection, replica_id: str) -> list[OwnedChat]:
    return [from_row(OwnedChat, row) for row in connection.execute(_OWNED, (replica_id,))]


def register(connection: sqlite3.Connection, locks: ReplicaLocks, replica: Replica) -> None:
    with transaction(connection, "IMMEDIATE"):
        lock = locks.take(replica.id)
        connection.execute(_REGISTER, to_row(attrs.evolve(replica, lock=lock)))
        locks.sweep([replica_id for (replica_id,) in connection.execute("SELECT id FROM replicas")])


def heartbeat(connection: sqlite3.Connection, replica_id: str, load: int) -> bool:
    with transaction(connection, "IMMEDIATE"):
        written = connection.execute(
            "UPDATE replicas SET heartbeat = heartbeat + 1, load = ? WHERE id = ?", (load, replica_id)
        )
        return written.rowcount == 1


def unregister(connection: sqlite3.Connection, locks: ReplicaLocks, replica_id: str) -> None:
    with transaction(connection, "IMMEDIATE"):
        connection.execute("DELETE FROM replicas WHERE id = ?", (replica_id,))
        locks.release(replica_id)


def replicas(connection: sqlite3.Connection) -> list[Replica]:
    return [from_row(Replica, row) for row in connection.execute(f"SELECT {columns(Replica)} FROM replicas")]


def released_locks(connection: sqlite3.Connection, locks: ReplicaLocks, replica_ids: list[str]) -> frozenset[str]:
    rows = connection.execute(_LOCKED, (to_json(replica_ids),)).fetchall()
    return frozenset(replica_id for replica_id, lock in rows if locks.is_released(replica_id, lock))
