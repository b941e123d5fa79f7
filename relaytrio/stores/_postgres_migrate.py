"""Brings the tables in a store's schema up to date, and refuses a schema that is another's or too new.

Several replicas that start at once take turns by an advisory lock: one takes the steps, the others find them taken.
Must not know: what the tables are for. Who calls: `postgres.py`, in a thread, once when a store is opened; and each new
connection looks whether it may still work (`check`).
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from .._errors import StoreUnusable
from ._postgres_place import PostgresPlace
from ._sql_schema import SchemaState, Step, state_after, steps_to_take

WAIT_SECONDS = 30.0
"""For other replicas that migrate, and for transactions that use a table which is changed."""
_LOCK_CLASS = 0x52547230
"""The first half of the key of the lock; the second is made of the schema's name. ("RTr0", as in a SQLite file.)"""

_ENCODINGS = ("UTF8", "SQL_ASCII")
"""Of a database that can hold any text; in the second it is bytes to the server."""
_VERSION_TABLE = """
    SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %s AND relname = 'schema_version'
"""


def check(connection: psycopg.Connection[Any], place: PostgresPlace, steps: tuple[Step, ...]) -> None:
    """Raises `StoreUnusable` if the schema is not there any more, or has become too new for this software."""
    if steps_to_take(place.url, _state(connection, place), steps):
        raise StoreUnusable(f"the schema {place.schema} of the database {place.url} has gone, or was set back")


def migrate(connection: psycopg.Connection[Any], place: PostgresPlace, steps: tuple[Step, ...]) -> None:
    """All steps that are missing, in one transaction. Raises `StoreUnusable` and `psycopg.Error`."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in _ENCODINGS:
        raise StoreUnusable(f"the database {place.url} is encoded as {encoding}, which is not for every text: use UTF8")
    if not steps_to_take(place.url, _state(connection, place), steps):
        return
    with connection.transaction():
        # Whatever the database's own default is: what the others did is to be seen when the lock was waited for.
        connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.execute(_setting("lock_timeout", WAIT_SECONDS))
        connection.execute(_setting("statement_timeout", 2 * WAIT_SECONDS))
        connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_LOCK_CLASS, place.schema])
        state = _state(connection, place)
        if state is None:
            _make_schema(connection, place)
        taken = steps_to_take(place.url, state, steps)
        connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(place.schema)))
        for step in taken:
            for statement in step.statements:
                connection.execute(statement.encode())
        if taken:
            _write(connection, state_after(state, taken))


def _setting(name: str, seconds: float) -> sql.Composed:
    return sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.Literal(str(round(1000 * seconds))))


def _state(connection: psycopg.Connection[Any], place: PostgresPlace) -> SchemaState | None:
    # Not to_regclass: it may remember from before the lock that there was no such table.
    if connection.execute(_VERSION_TABLE, [place.schema]).fetchone() is None:
        return None
    table = sql.Identifier(place.schema, "schema_version")
    found = connection.execute(sql.SQL("SELECT version, compatible_since FROM {}").format(table)).fetchone()
    return None if found is None else SchemaState(*found)


def _make_schema(connection: psycopg.Connection[Any], place: PostgresPlace) -> None:
    """It may be there already, made by somebody who may make schemas where the store's user may not."""
    schema = sql.Identifier(place.schema)
    known = connection.execute("SELECT oid FROM pg_namespace WHERE nspname = %s", [place.schema]).fetchone()
    if known is None:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    elif connection.execute("SELECT 1 FROM pg_class WHERE relnamespace = %s LIMIT 1", known).fetchone() is not None:
        raise StoreUnusable(f"the schema {place.schema} of the database {place.url} belongs to another program")
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL,"
            " compatible_since INTEGER NOT NULL)"
        ).format(sql.Identifier(place.schema, "schema_version"))
    )


def _write(connection: psycopg.Connection[Any], state: SchemaState | None) -> None:
    assert state is not None
    connection.execute(
        "INSERT INTO schema_version (id, version, compatible_since) VALUES (1, %s, %s) ON CONFLICT (id)"
        " DO UPDATE SET version = excluded.version, compatible_since = excluded.compatible_since",
        [state.version, state.compatible_since],
    )
