"""Does text of a running answer stand in the store? A look at all text of a SQLite file, in one read transaction.

A running answer exists in memory only: where its text were in a table before its end, nothing would have had to be
relayed. Blocks on the file: called in a thread by the conductor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from ._check_records import TableLook

SHORTEST_NEEDLE = 12
"""Letters of a token that are looked for: a shorter one might stand in a name or an id by accident."""
BUSY_SECONDS = 5.0


def needles(tokens: Sequence[str], earlier: Sequence[str]) -> list[str]:
    """Tokens that stand in none of the texts that the chat may hold already, as they are and as JSON has them."""
    known = "\n".join(earlier)
    pieces = {token.strip() for token in tokens}
    long = [piece for piece in sorted(pieces) if len(piece) >= SHORTEST_NEEDLE and piece not in known]
    return [form for piece in long for form in {piece, msgspec.json.encode(piece).decode()[1:-1]}]


def look(path: Path, chat_id: str, turn: int, version: int, wanted: Sequence[str]) -> TableLook | None:
    """Where any of the wanted texts stands; None if the answer was over by then. Raises `sqlite3.Error`.

    The chat's row and the tables are read in one transaction, so that the message that the answer becomes is never
    taken for a leak.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)) as database:
        database.execute("BEGIN")
        query = "SELECT 1 FROM chats WHERE id = ? AND status = 'running' AND history_version = ?"
        if database.execute(query, (chat_id, version)).fetchone() is None:
            return None
        return TableLook(turn=turn, needles=len(wanted), found=sorted(set(_found(database, wanted))))


def _found(database: sqlite3.Connection, wanted: Sequence[str]) -> Iterator[str]:
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        quoted = str(table).replace('"', '""')
        rows = database.execute(f'SELECT * FROM "{quoted}"')
        columns = [column[0] for column in rows.description]
        for row in rows:
            for column, value in zip(columns, row, strict=True):
                text = _text(value)
                if text and any(needle in text for needle in wanted):
                    yield f"{table}.{column}"


def _text(value: object) -> str:
    """Whatever could hold text, whatever the column says it holds."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
