"""Databases as each version of a schema has left them, kept as SQL in `golden/`, and the story that is told in them.

`python -m tests.stores.golden_files` writes those of the present version that are missing; one that is there is never
changed. `RELAYTRIO_TEST_POSTGRES` names the server for PostgreSQL's; without it the tests' own is started.
Who calls: the tests of migrations.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import trio
from psycopg import sql

from relaytrio._protocol.chat import (
    Acquire,
    Create,
    DeleteQueued,
    EditMessage,
    Fail,
    FinishTurn,
    Interrupt,
    NewMessage,
    RecordRetry,
    SendMessage,
)
from relaytrio._protocol.events import ChatError, Content, RetryState
from relaytrio.stores import (
    IdempotencyKey,
    MemoryStore,
    Replica,
    Store,
    _postgres_schema,
    _sqlite_schema,
    open_sqlite_store,
)
from relaytrio.stores.postgres import open_postgres_store
from relaytrio.testing.contracts._kit import Everything
from tests.postgres_server import find_binaries, fresh_database, open_postgres_home

FOLDER = Path(__file__).parent / "golden"
AT = "2026-01-02T03:04:05.000006Z"
CHATS = ("idle", "asked", "answered", "busy", "failed")
KEY = IdempotencyKey(scope="busy", key="k", request_hash="h")
TABLES = ("schema_version", "chats", "messages", "queue", "idempotency", "replicas")
"""Of PostgreSQL, in an order in which they can be filled."""


def text(content: str) -> Content:
    return [{"type": "text", "text": content}]


def user(content: str) -> NewMessage:
    return NewMessage(role="user", content=text(content))


async def tell_story(store: Store) -> None:
    """Something of all that a database can hold; told to two stores with one clock and the same random numbers, it
    leaves the same in both."""
    await store.create_chat("idle", Create(messages=()))
    for chat_id in CHATS[1:]:
        await store.create_chat(chat_id, Create(messages=(user("one"), user("two \u0000 'é' \U0001f984"))))
    for chat_id in CHATS[2:]:
        await store.apply(chat_id, Acquire(worker_id="w", run_id=f"run of {chat_id}"))
    answer = (NewMessage(role="assistant", content=text("three"), truncated=True),)
    await store.apply("answered", FinishTurn(run_id="run of answered", token="t", messages=answer))
    await store.apply("answered", EditMessage(message_id=2, content=text("deux")))
    retry = RetryState(attempt=1, delay_seconds=0.5, error="busy")
    await store.apply("busy", RecordRetry(run_id="run of busy", token="t", retry=retry))
    await store.apply("busy", SendMessage(content=text("queued")), KEY)
    await store.apply("busy", SendMessage(content=text("deleted")))
    await store.apply("busy", DeleteQueued(queued_id=2))
    await store.apply("busy", SendMessage(content=text("urgent"), when_busy="interrupt"))
    await store.apply("busy", Interrupt())
    error = ChatError(kind="responder_failed", message="it broke")
    await store.apply("failed", Fail(run_id="run of failed", token="t", error=error, messages=answer))
    await store.create_chat(
        "gone", Create(messages=(user("one"),)), IdempotencyKey(scope="ann", key="k", request_hash="h")
    )
    await store.delete_chat("gone")
    await store.register(Replica(id="other", address="http://10.0.0.5:8001", version="1", load=3))


async def told_in_memory() -> dict[str, Everything]:
    """What every database must say in which the story was told."""
    store = MemoryStore(clock=lambda: AT, random=Random(7))
    await tell_story(store)
    return await all_of(store)


async def all_of(store: Store) -> dict[str, Everything]:
    """All that a store says of the chats of the story."""
    return {chat_id: await Everything.of(store, chat_id) for chat_id in CHATS}


def golden(database: str) -> list[Path]:
    """The files of a database, oldest version first."""
    return sorted(FOLDER.glob(f"{database}-*.sql"), key=lambda path: int(path.stem.rpartition("-")[2]))


# ------------------------------------------------------------------------------------------------- SQLite


def load_sqlite(golden_file: Path, path: Path) -> None:
    """Make the database that the file tells of."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(golden_file.read_text())
        connection.execute("PRAGMA journal_mode = WAL")


def sqlite_schema(path: Path) -> list[Any]:
    """All that SQLite knows of a schema."""
    with closing(sqlite3.connect(path)) as connection:
        objects = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
        listed = [[" ".join(str(value).split()) for value in row] for row in objects]
        numbers = [connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")]
        compatible = connection.execute("SELECT * FROM compatibility").fetchall()
    return [*listed, numbers, compatible]


async def dump_sqlite() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.db"
        async with open_sqlite_store(path, clock=lambda: AT, random=Random(7)) as store:
            await tell_story(store)
        with closing(sqlite3.connect(path)) as connection:
            names = ("application_id", "user_version")
            numbers = [f"PRAGMA {name} = {connection.execute(f'PRAGMA {name}').fetchone()[0]};" for name in names]
            return "\n".join([*numbers, *connection.iterdump()]) + "\n"


# --------------------------------------------------------------------------------------------- PostgreSQL


def load_postgres(golden_file: Path, url: str) -> None:
    """Make the schema that the file tells of."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(golden_file.read_text().encode())


def postgres_schema(url: str) -> list[Any]:
    """All that the server knows of the schema `relaytrio`, but for numbers of its own."""
    columns = """
        SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name, is_identity
        FROM information_schema.columns WHERE table_schema = 'relaytrio' ORDER BY table_name, column_name
    """
    indexes = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'relaytrio' ORDER BY indexname"
    constraints = """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'relaytrio'::regnamespace AND contype <> 'n' ORDER BY conrelid::regclass::text, conname
    """
    sequences = "SELECT sequencename, data_type FROM pg_sequences WHERE schemaname = 'relaytrio' ORDER BY sequencename"
    version = "SELECT * FROM relaytrio.schema_version"
    with psycopg.connect(url, autocommit=True) as connection:
        return [
            connection.execute(query.encode()).fetchall()
            for query in (columns, indexes, constraints, sequences, version)
        ]


async def dump_postgres(url: str) -> str:
    async with open_postgres_store(url, clock=lambda: AT, random=Random(7)) as store:
        await tell_story(store)
    with psycopg.connect(url, autocommit=True) as connection:
        lines = [
            "CREATE SCHEMA relaytrio;",
            "SET search_path = relaytrio;",
            "CREATE TABLE schema_version (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL,",
            "    compatible_since INTEGER NOT NULL);",
            *(f"{statement.strip()};" for step in _postgres_schema.STEPS for statement in step.statements),
        ]
        for table in TABLES:
            lines += _inserts(connection, table)
        for sequence in ("changes", "chats_seq_seq"):
            row = connection.execute(f"SELECT last_value FROM relaytrio.{sequence}".encode()).fetchone()
            assert row is not None
            lines.append(f"SELECT setval('{sequence}', {row[0]});")
    return "\n".join(lines) + "\n"


def _inserts(connection: psycopg.Connection[Any], table: str) -> list[str]:
    """The rows of a table; the lock of a replica belongs to a life of the server that is over."""
    cursor = connection.execute(f"SELECT * FROM relaytrio.{table} ORDER BY 1, 2".encode())
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    insert = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({});")
    return [
        insert.format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(map(sql.Literal, row)),
        ).as_string(connection)
        for row in cursor
    ]


def _write(path: Path, make: Any, *arguments: str) -> None:
    if not path.exists():
        path.write_text(trio.run(make, *arguments))
        print(path)


def main() -> None:
    _write(FOLDER / f"sqlite-{len(_sqlite_schema.STEPS)}.sql", dump_sqlite)
    with ExitStack() as stack:
        url = os.environ.get("RELAYTRIO_TEST_POSTGRES", "")
        if not url:
            binaries = find_binaries()
            assert binaries is not None
            server = stack.enter_context(open_postgres_home(binaries)).server("golden")
            server.start()
            stack.callback(server.close)
            url = server.url()
        place = stack.enter_context(fresh_database(url))
        _write(FOLDER / f"postgres-{len(_postgres_schema.STEPS)}.sql", dump_postgres, place)


if __name__ == "__main__":
    main()
