"""The SQLite store keeps the contract, survives its end, and uses an index for everything that it asks."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from random import Random

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._errors import ChatNotFound, StoreUnavailable, StoreUnusable
from relaytrio._protocol.chat import Acquire, Chat, Create, EditMessage, FinishTurn, NewMessage, SendMessage
from relaytrio._protocol.events import NO_MESSAGE, Message, MessageRef, QueueEntry
from relaytrio._settings import DEFAULTS, Settings
from relaytrio.stores import IdempotencyKey, Replica, SqliteStore, Store, open_sqlite_store
from relaytrio.stores._sqlite_schema import CHANGED_SINCE, LAST_CHANGE
from relaytrio.testing.contracts import StoreContract

TEXT = [{"type": "text", "text": "q"}]
ASKED = Create(messages=(NewMessage(role="user", content=TEXT),))
KEY = IdempotencyKey(scope="c", key="k", request_hash="h")


class TestContract(StoreContract):
    """The store contract, with a second connection to the same file."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "chat.db"

    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Store]:
        async with open_sqlite_store(self.path, settings=settings) as store:
            yield store

    def open_again(self, store: Store, settings: Settings) -> AbstractAsyncContextManager[Store]:
        return self.open(settings)


async def test_everything_survives_the_end_of_the_store(tmp_path: Path) -> None:
    """What was written is there when the file is opened again: chats, messages, queue, keys."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path) as store:
        await store.create_chat("c", ASKED)
        first = await store.apply("c", SendMessage(content=TEXT), KEY)
        view = await store.read_view("c", NO_MESSAGE)
    async with open_sqlite_store(path) as store:
        assert view == await store.read_view("c", NO_MESSAGE)
        repeat = await store.apply("c", SendMessage(content=TEXT), KEY)
        assert (False, first.answer) == (repeat.changed, repeat.answer)


async def test_clock_and_stamps_are_injected(tmp_path: Path) -> None:
    """Two stores with the same clock and the same random numbers write the same."""
    outcomes = []
    for name in ("a.db", "b.db"):
        async with open_sqlite_store(
            tmp_path / name, clock=lambda: "2026-01-02T03:04:05.000006Z", random=Random(7)
        ) as store:
            outcomes.append(await store.create_chat("c", ASKED))
    assert outcomes[0] == outcomes[1]
    assert "2026-01-02T03:04:05.000006Z" == outcomes[0].chat.updated_at


async def test_a_key_is_forgotten_after_its_time(tmp_path: Path) -> None:
    """A repeat within the hours is a repeat, one after them is a new request; old keys are removed."""
    now = ["2026-01-01T00:00:00Z"]
    settings = attrs.evolve(DEFAULTS, idempotency_hours=2.0)
    async with open_sqlite_store(tmp_path / "chat.db", settings=settings, clock=lambda: now[0]) as store:
        await store.create_chat("c", ASKED)
        await store.apply("c", SendMessage(content=TEXT), attrs.evolve(KEY, key="older"))
        await store.apply("c", SendMessage(content=TEXT), KEY)
        now[0] = "2026-01-01T01:59:59Z"
        assert not (await store.apply("c", SendMessage(content=TEXT), KEY)).changed
        now[0] = "2026-01-01T02:00:00Z"
        assert (await store.apply("c", SendMessage(content=TEXT), KEY)).changed
        assert [("k",)] == store._connection.execute("SELECT key FROM idempotency").fetchall()


async def test_deletions_are_forgotten_after_a_day(tmp_path: Path) -> None:
    """The list of deleted chats does not grow for ever."""
    now = ["2026-01-01T00:00:00Z"]
    async with open_sqlite_store(tmp_path / "chat.db", clock=lambda: now[0]) as store:
        for chat_id, at in (
            ("a", "2026-01-01T00:00:00Z"),
            ("b", "2026-01-01T12:00:00Z"),
            ("c", "2026-01-02T00:00:00Z"),
        ):
            now[0] = at
            await store.create_chat(chat_id, ASKED)
            await store.delete_chat(chat_id)
        assert [("b",), ("c",)] == store._connection.execute("SELECT chat_id FROM deletions").fetchall()


async def test_durability_is_a_choice(tmp_path: Path) -> None:
    """`synchronous` is what was asked for, the log is a write-ahead log, and foreign keys are watched."""
    for synchronous, expected in (("NORMAL", 1), ("FULL", 2)):
        async with open_sqlite_store(tmp_path / "chat.db", synchronous=synchronous) as store:  # type: ignore[arg-type]
            pragmas = [
                store._connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("synchronous", "journal_mode", "foreign_keys")
            ]
            assert [expected, "wal", 1] == pragmas


async def test_the_tables_have_the_fields_of_the_values(tmp_path: Path) -> None:
    """A field that a value gets later needs a migration, and does not go missing."""
    async with open_sqlite_store(tmp_path / "chat.db") as store:
        for kind, table, more in (
            (Chat, "chats", {"seq", "changed"}),
            (Message, "messages", {"chat_id"}),
            (QueueEntry, "queue", {"chat_id", "position"}),
            (Replica, "replicas", set[str]()),
        ):
            columns = {row[1] for row in store._connection.execute(f"PRAGMA table_info({table})")}
            assert {field.name for field in attrs.fields(kind)} | more == columns


async def test_every_question_has_its_index(tmp_path: Path) -> None:
    """No statement of a transition or a read goes through a whole table, however large it is."""
    statements: set[str] = set()
    async with open_sqlite_store(
        tmp_path / "chat.db", settings=attrs.evolve(DEFAULTS, lock_trust_seconds=0.0)
    ) as store:
        for connection in await connections(store):
            connection.set_trace_callback(statements.add)
        await _use(store)
        for connection in await connections(store):
            connection.set_trace_callback(None)
        plans = {
            statement: [row[3] for row in store._connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
            for statement in statements
            if statement.lstrip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))
        }
        for statement in (CHANGED_SINCE, LAST_CHANGE):
            explained = store._connection.execute(f"EXPLAIN QUERY PLAN {statement}", {"since": 1, "limit": 1})
            plans[statement] = [row[3] for row in explained]
    scans = {step for plan in plans.values() for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step}
    allowed = {
        "SCAN json_each VIRTUAL TABLE INDEX 1:",  # the argument
        "SCAN changes",  # one row
        "SCAN replicas",  # all of them are asked for
        "SCAN replicas USING COVERING INDEX sqlite_autoindex_replicas_1",
        "SCAN chats USING COVERING INDEX chats_active",  # the candidates, oldest first
        "SCAN chats",  # the newest chats, by the order of their creation, up to the limit
    }
    assert len(plans) > 20
    assert scans <= allowed


async def connections(store: SqliteStore) -> list[sqlite3.Connection]:
    """The writer's, and the one reader that calls one after the other need."""
    await store.ping()
    return [store._connection, *store._readers]


async def _use(store: SqliteStore) -> None:
    """Everything that a store can be asked."""
    await store.create_chat("c", ASKED, KEY)
    await store.apply("c", SendMessage(content=TEXT), KEY)
    await store.apply("c", Acquire(worker_id="w", run_id="r"))
    await store.apply("c", FinishTurn(run_id="r", token="t"))
    await store.apply("c", EditMessage(message_id=1, content=TEXT))
    await store.read_view("c", MessageRef(1, None))
    await store.read_chat("c")
    await store.read_queue("c")
    await store.list_chats()
    await store.list_chats(before="c")
    await store.list_messages("c")
    await store.fingerprints(["c"])
    await store.candidates(["w"])
    await store.owned_by("w")
    await store.register(Replica(id="w", address=None, version="1"))
    await store.heartbeat("w", 1)
    await store.replicas()
    await store.released_locks(["w"])
    await store.unregister("w")
    await store.ping()
    await store.delete_chat("c")


async def test_a_file_that_others_keep_locked_is_unavailable(tmp_path: Path) -> None:
    """A write that cannot get the lock in time changes nothing and may be tried again; reads go on."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path, busy_seconds=0.0) as store:
        await store.create_chat("c", ASKED)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match=re.escape(str(path))):
                await store.apply("c", SendMessage(content=TEXT))
            assert 1 == (await store.read_chat("c")).snapshot_version
            other.execute("ROLLBACK")
        assert (await store.apply("c", SendMessage(content=TEXT))).changed


async def test_a_cancelled_caller_waits_for_its_transaction(tmp_path: Path) -> None:
    """A transaction that has begun ends, and its caller learns how; one that waits for its turn has no effect."""
    path = tmp_path / "chat.db"
    answers: list[int] = []

    async def send() -> None:
        answers.append((await store.apply("c", SendMessage(content=TEXT))).answer.snapshot_version)

    async with open_sqlite_store(path, busy_seconds=30.0) as store:
        await store.create_chat("c", ASKED)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await wait_all_tasks_blocked()
                nursery.start_soon(send)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                    await wait_all_tasks_blocked()
                    assert [] == answers
                    other.execute("ROLLBACK")
        assert [2] == answers
        assert 2 == (await store.read_chat("c")).snapshot_version


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE chats SET status = 'sleeping'",
        "UPDATE chats SET snapshot_version = 'x'",
        "UPDATE chats SET last_answer = '{'",
    ],
)
async def test_a_row_that_was_never_written_here_is_not_believed(tmp_path: Path, damage: str) -> None:
    """A damaged row is a person's to look at, and names the file."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path) as store:
        await store.create_chat("c", ASKED)
        store._connection.execute(damage)
        with pytest.raises(StoreUnusable, match=re.escape(str(path))):
            await store.read_chat("c")
        with pytest.raises(ChatNotFound):
            await store.read_chat("other")


async def test_the_next_transaction_works_after_a_failed_one(tmp_path: Path) -> None:
    """An error in the middle of a transaction takes all of it back, and leaves none open."""
    async with open_sqlite_store(tmp_path / "chat.db") as store:
        await store.create_chat("c", ASKED)
        before = await store.read_view("c", NO_MESSAGE)
        store._connection.execute("CREATE TRIGGER fault BEFORE INSERT ON queue BEGIN SELECT RAISE(ABORT, 'fault'); END")
        with pytest.raises(sqlite3.IntegrityError, match="fault"):
            await store.apply("c", SendMessage(content=TEXT), KEY)
        assert before == await store.read_view("c", NO_MESSAGE)
        store._connection.execute("DROP TRIGGER fault")
        assert (await store.apply("c", SendMessage(content=TEXT), attrs.evolve(KEY, request_hash="new"))).changed


async def test_a_view_is_of_one_moment(tmp_path: Path) -> None:
    """What another process commits in the middle of a read is not seen by its rest."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path) as store:
        await store.create_chat("c", ASKED)
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:

            def interfere(statement: str) -> None:
                if "FROM queue" in statement:
                    other.execute("INSERT INTO queue VALUES ('c', 0, 1, '[]', 0)")

            _, reader = await connections(store)
            reader.set_trace_callback(interfere)
            assert () == (await store.read_view("c", NO_MESSAGE)).queue
            reader.set_trace_callback(None)
        assert 1 == len(await store.read_queue("c"))


async def test_the_caller_s_own_exception_leaves_as_it_is(tmp_path: Path) -> None:
    """What is raised inside the context is not wrapped, and the file is closed."""
    with pytest.raises(LookupError, match="the caller's"):
        async with open_sqlite_store(tmp_path / "chat.db") as store:
            raise LookupError("the caller's")
    with pytest.raises(trio.ClosedResourceError):
        await store.ping()
