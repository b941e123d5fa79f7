"""Does text of a running answer stand in the store? A look at all text of its tables, in one read transaction.

A running answer exists in memory only: where its text were in a table before its end, nothing would have had to be
relayed. Blocks on the database: called in a thread by the conductor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import msgspec

from ..stores._open import SqlitePlace
from ..stores._postgres_place import PostgresPlace
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


def look(
    place: SqlitePlace | PostgresPlace, chat_id: str, turn: int, version: int, wanted: Sequence[str]
) -> TableLook | None:
    """Where any of the wanted texts stands; None if the answer was over by then.

    The chat's row and the tables are read in one transaction, so that the message that the answer becomes is never
    taken for a leak. Raises `sqlite3.Error` or `psycopg.Error`.
    """
    with _sqlite(place) if isinstance(place, SqlitePlace) else _postgres(place) as tables:
        running = f"SELECT id, history_version FROM {tables.quoted('chats')} WHERE status = 'running'"
        if (chat_id, version) not in [tuple(row) for row in tables.ask(running)]:
            return None
        return TableLook(turn=turn, needles=len(wanted), found=sorted(set(_found(tables, wanted))))


@attrs.frozen
class _Tables:
    """A database in the middle of a read transaction."""

    ask: Callable[[str], Any]
    """Gives a cursor, as DB-API 2.0 knows it, which can be iterated over."""
    names: Sequence[str]
    quoted: Callable[[str], str]


@contextmanager
def _sqlite(place: SqlitePlace) -> Iterator[_Tables]:
    uri = f"{Path(place.path).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)) as database:
        database.execute("BEGIN")
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        yield _Tables(database.execute, [str(name) for (name,) in found], _quoted)


@contextmanager
def _postgres(place: PostgresPlace) -> Iterator[_Tables]:
    import psycopg  # not at the top: the driver is an extra

    from ..stores._postgres_session import connect, conninfo_of

    with closing(connect(conninfo_of(place))) as database:

        def ask(statement: str, *values: object) -> psycopg.Cursor[Any]:
            return database.execute(statement.encode(), values or None)

        ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        found = ask("SELECT tablename FROM pg_tables WHERE schemaname = %s", place.schema)
        names = [str(name) for (name,) in found]
        yield _Tables(ask, names, lambda name: f"{_quoted(place.schema)}.{_quoted(name)}")


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _found(tables: _Tables, wanted: Sequence[str]) -> Iterator[str]:
    for table in tables.names:
        rows = tables.ask(f"SELECT * FROM {tables.quoted(table)}")
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
