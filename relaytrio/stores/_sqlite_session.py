"""A connection to a database file, for the transactions that all SQL stores share.

Must not know: what is stored, but for the two tables that only SQLite needs. Who calls: `SqliteStore`, in its thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import attrs

from .._protocol.events import Message
from ._fresh import hours
from ._sql_rows import columns, to_json
from ._sql_session import Kind, Session, Words
from ._sqlite_file import savepoint, transaction

DELETIONS_KEPT_HOURS = 24.0
"""No notifier that is alive is so far behind."""


class SqliteSession(Session):
    """Writers are one after the other, so nothing has to be locked row by row."""

    words = Words(
        lock="",
        skip_locked="",
        live="deleted = 0",
        among_ids="IN (SELECT value FROM json_each(:ids))",
        next_change="(SELECT last FROM changes)",
    )
    # Read row by row: what is past the page is never taken into memory.
    page = f"""
        SELECT length(CAST(content AS BLOB)), {columns(Message)} FROM messages
        WHERE chat_id = :chat_id AND id > :after_id AND {{live}} ORDER BY id
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._grouped = False

    @contextmanager
    def group(self) -> Iterator[None]:
        """All transactions of the body share one commit at its end; each is still taken back alone if it fails."""
        with transaction(self._connection, "IMMEDIATE"):
            self._grouped = True
            try:
                yield
            finally:
                self._grouped = False

    def transaction(self, kind: Kind) -> AbstractContextManager[None]:
        if kind == "one" or (self._grouped and kind == "read"):
            return nullcontext()
        if self._grouped:
            return savepoint(self._connection)
        return transaction(self._connection, "IMMEDIATE" if kind == "write" else "DEFERRED")

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> sqlite3.Cursor:
        return self._connection.execute(_spelled(statement), parameters or {})

    def listed(self, ids: Iterable[str]) -> str:
        return to_json(list(ids))

    def count_change(self) -> None:
        self._connection.execute("UPDATE changes SET last = last + 1")

    def keep_deletion(self, chat_id: str, snapshot_version: int, now_seconds: float) -> None:
        self.count_change()
        self._connection.execute("DELETE FROM deletions WHERE until_seconds <= ?", (now_seconds,))
        self._connection.execute(
            "INSERT INTO deletions (changed, chat_id, snapshot_version, until_seconds)"
            " VALUES ((SELECT last FROM changes), ?, ?, ?)",
            (chat_id, snapshot_version, now_seconds + hours(DELETIONS_KEPT_HOURS)),
        )


@cache
def _spelled(statement: str) -> str:
    """Statements are few and constant, so this is done once for each."""
    return statement.format_map(attrs.asdict(SqliteSession.words))
