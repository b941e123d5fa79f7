"""Every question has its index: no statement of the PostgreSQL store goes through a large table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import psycopg
import pytest
from psycopg import sql

from relaytrio._protocol.chat import Acquire, Chat, Create, EditMessage, FinishTurn, NewMessage, SendMessage
from relaytrio._protocol.events import Message, MessageRef, QueueEntry
from relaytrio._settings import DEFAULTS
from relaytrio.stores import IdempotencyKey, Replica
from relaytrio.stores._postgres_session import PostgresSession, _spelled
from relaytrio.stores.postgres import PostgresStore, open_postgres_store

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(180)]
CHATS = 100_000
MESSAGES = 10
"""In each chat: a million in all."""
TEXT = [{"type": "text", "text": "q"}]
ASKED = Create(messages=(NewMessage(role="user", content=TEXT),))
KEY = IdempotencyKey(scope="c5", key="k", request_hash="h")
LARGE = {"chats", "messages", "queue", "idempotency"}
FILL = f"""
    SET search_path = relaytrio;
    ALTER TABLE messages DROP CONSTRAINT messages_chat_id_fkey;
    INSERT INTO chats (changed, id, status, worker_id, run_id, snapshot_version, history_version, queue_version,
        turn_version, generation_attempt, attempt_failed, takeovers, next_message_id, next_queued_id, created_at,
        updated_at)
    SELECT nextval('changes'), 'c' || n, CASE WHEN n % 20 = 0 THEN 'running' ELSE 'waiting' END,
        CASE WHEN n % 20 = 0 AND n % 1000 <> 0 THEN 'w' || n % 7 END, CASE WHEN n % 20 = 0 THEN 'r' || n END,
        20, 20, 2, 20, 1, FALSE, 0, {MESSAGES + 1}, 2, '', ''
    FROM generate_series(1, {CHATS}) AS n;
    INSERT INTO messages (chat_id, id, stamp, role, content, version, deleted, interrupted, truncated, created_at)
    SELECT 'c' || n, m, 'abcde', 'user', '[{{"type":"text","text":"hello"}}]', m, m % 5 = 0, FALSE, FALSE, ''
    FROM generate_series(1, {CHATS}) AS n, generate_series(1, {MESSAGES}) AS m;
    INSERT INTO queue (chat_id, position, id, content, urgent)
    SELECT 'c' || n, 0, 1, '[]', FALSE FROM generate_series(20, {CHATS}, 20) AS n;
    INSERT INTO idempotency (for_create, scope, key, request_hash, chat_id, answer, until_seconds)
    SELECT FALSE, 'c' || n, 'k', 'h', 'c' || n, '{{}}', 4e9 FROM generate_series(1, {CHATS}) AS n;
    INSERT INTO replicas SELECT 'w' || n, NULL, '1', 0, '', 0 FROM generate_series(0, 6) AS n;
    ALTER TABLE messages ADD CONSTRAINT messages_chat_id_fkey FOREIGN KEY (chat_id) REFERENCES chats (id)
        ON DELETE CASCADE NOT VALID;
    ANALYZE chats, messages, queue, idempotency, replicas;
"""


async def use(store: PostgresStore) -> None:
    """Everything that a store can be asked."""
    await store.create_chat("new", ASKED, KEY)
    await store.apply("c5", SendMessage(content=TEXT), attrs.evolve(KEY, key="another"))
    await store.apply("c5", SendMessage(content=TEXT))
    await store.apply("c5", Acquire(worker_id="w", run_id="r"))
    await store.apply("c5", FinishTurn(run_id="r", token="t"))
    await store.apply("c5", EditMessage(message_id=1, content=TEXT))
    await store.read_view("c5", MessageRef(2, None))
    await store.read_view("c7", MessageRef(5, None))
    await store.read_chat("c5")
    await store.read_queue("c5")
    await store.list_chats()
    await store.list_chats(before="c5")
    await store.list_messages("c5")
    await store.fingerprints([f"c{number}" for number in range(100)])
    await store.candidates(["w1"])
    await store.owned_by("w1")
    await store.register(Replica(id="w", address=None, version="1"))
    await store.heartbeat("w", 1)
    await store.replicas()
    await store.released_locks(["w"])
    await store.unregister("w")
    await store.ping()
    await store.delete_chat("c7")


def scanned(plan: Mapping[str, Any]) -> Iterator[str]:
    """The tables that a plan goes through from end to end."""
    if plan["Node Type"] == "Seq Scan" or (plan["Node Type"].startswith("Index") and not _is_narrowed(plan)):
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from scanned(part)


def _is_narrowed(plan: Mapping[str, Any]) -> bool:
    """By a condition, or because the index is a small part of the table, or by a limit above it."""
    return "Index Cond" in plan or plan.get("Index Name") in {"chats_active", "chats_seq_key"}


async def test_no_statement_goes_through_a_large_table(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a million messages, whether a statement is planned for its values or, prepared, for any."""
    statements: dict[str, Mapping[str, Any] | None] = {}
    execute = PostgresSession.execute

    def noted(self: PostgresSession, statement: str, parameters: Mapping[str, Any] | None = None) -> Any:
        statements[statement] = parameters
        return execute(self, statement, parameters)

    async with open_postgres_store(postgres_url, settings=attrs.evolve(DEFAULTS, lock_trust_seconds=0.0)) as store:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            connection.execute(FILL.encode())
            monkeypatch.setattr(PostgresSession, "execute", noted)
            await use(store)
            connection.execute("SET search_path = relaytrio")
            found = {}
            for mode in ("force_custom_plan", "force_generic_plan"):
                connection.execute(f"SET plan_cache_mode = {mode}".encode())
                for statement, parameters in statements.items():
                    if statement.lstrip().startswith("SET"):
                        continue
                    plan = _plan(connection, statement, parameters)
                    found[mode, statement] = LARGE & set(scanned(plan))
    assert len(statements) > 25
    assert {} == {question: tables for question, tables in found.items() if tables}


def _plan(connection: psycopg.Connection[Any], statement: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of a prepared statement, as the mode of the session has it planned."""
    names = [name for name in parameters or () if f"%({name})s" in _spelled(statement).decode()]
    prepared = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", _spelled(statement).decode())
    connection.execute(b"PREPARE question AS " + prepared.encode())
    values = sql.SQL(", ").join(sql.Literal((parameters or {})[name]) for name in names)
    call = sql.SQL("question ({})").format(values) if names else sql.SQL("question")
    row = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE {}").format(call)).fetchone()
    connection.execute("DEALLOCATE question")
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


async def test_the_tables_have_the_fields_of_the_values(postgres_url: str) -> None:
    """A field that a value gets later needs a migration, and does not go missing."""
    async with open_postgres_store(postgres_url):
        pass
    with psycopg.connect(postgres_url) as connection:
        for kind, table, more in (
            (Chat, "chats", {"seq", "changed"}),
            (Message, "messages", {"chat_id"}),
            (QueueEntry, "queue", {"chat_id", "position"}),
            (Replica, "replicas", set[str]()),
        ):
            rows = connection.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table]
            )
            assert {field.name for field in attrs.fields(kind)} | more == {name for (name,) in rows}
