"""What becomes of a transaction when PostgreSQL, or the way to it, fails: never twice, never half, never a secret."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import psycopg
import pytest
import trio

from relaytrio._errors import ChatBusy, StoreError, StoreUnavailable
from relaytrio._protocol.chat import Acquire, Commit, Create, FinishTurn, NewMessage, SendMessage
from relaytrio._protocol.events import NO_MESSAGE
from relaytrio._settings import DEFAULTS
from relaytrio.stores import IdempotencyKey, _postgres_session
from relaytrio.stores import postgres as postgres_store
from relaytrio.stores.postgres import PostgresStore, open_postgres_store
from tests.postgres_server import PostgresServer
from tests.realworld.tcp_proxy import TcpProxy, open_proxy

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(120)]
PATIENCE_SECONDS = 60.0
TEXT = [{"type": "text", "text": "the secret of the chat"}]
ASKED = Create(messages=(NewMessage(role="user", content=TEXT),))
SEND = SendMessage(content=TEXT)
ANSWER = (NewMessage(role="assistant", content=TEXT),)
KEY = IdempotencyKey(scope="c", key="k", request_hash="h")


def run(url: str, *statements: str) -> None:
    """As another client of the server."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def in_thread(function: Callable[..., object], *arguments: object) -> None:
    """What a server is told takes its time."""
    await trio.to_thread.run_sync(function, *arguments)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what has no edge to wait on: it is elsewhere."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


@asynccontextmanager
async def behind(server_url: str) -> AsyncIterator[tuple[PostgresStore, TcpProxy]]:
    """A store whose connections go through a proxy."""
    port = int(server_url.rpartition(":")[2].partition("/")[0])
    async with open_proxy(port) as proxy:
        url = server_url.replace(f":{port}/", f":{proxy.port}/")
        async with open_postgres_store(url, transaction_seconds=1.0) as store:
            yield store, proxy


# ------------------------------------------------------------------------------------- lost in the commit


@pytest.mark.parametrize("cut_before", [False, True])
async def test_a_run_s_transition_that_was_lost_in_the_commit_happens_once(postgres_url: str, cut_before: bool) -> None:
    """Whether the server has carried it out or not: the run has its answer, and the message is there once."""
    async with behind(postgres_url) as (store, proxy):
        await store.create_chat("c", ASKED)
        await store.apply("c", Acquire(worker_id="w", run_id="r"))
        proxy.cut_at, proxy.cut_before = b"COMMIT\0", cut_before
        outcome = await store.apply("c", Commit(run_id="r", token="t", messages=ANSWER))
        assert (1, "ok", 3) == (proxy.cuts, outcome.answer.done, outcome.answer.snapshot_version)
        assert (cut_before, outcome.chat) == (outcome.changed, await store.read_chat("c"))
        assert 2 == len(await store.list_messages("c"))


@pytest.mark.parametrize("cut_before", [False, True])
async def test_a_request_with_a_key_that_was_lost_in_the_commit_happens_once(
    postgres_url: str, cut_before: bool
) -> None:
    """And so does a create: the second time it is a repeat."""
    async with behind(postgres_url) as (store, proxy):
        proxy.cut_at, proxy.cut_before = b"COMMIT\0", cut_before
        made = await store.create_chat("c", Create(messages=()), attrs.evolve(KEY, scope="ann"))
        proxy.cut_at, proxy.cut_before = b"COMMIT\0", cut_before
        sent = await store.apply("c", SEND, KEY)
        assert (2, cut_before, cut_before) == (proxy.cuts, made.changed, sent.changed)
        assert (["c"], 2) == ([chat.id for chat in await store.list_chats()], sent.chat.snapshot_version)
        assert 1 == len(await store.list_messages("c"))


async def test_an_acquire_that_was_lost_in_the_commit_is_its_worker_s(postgres_url: str) -> None:
    """A worker that asks for the same run again has it, and nobody else has."""
    async with behind(postgres_url) as (store, proxy):
        await store.create_chat("c", ASKED)
        proxy.cut_at = b"COMMIT\0"
        outcome = await store.apply("c", Acquire(worker_id="w", run_id="r"))
        assert (1, "r", 1) == (proxy.cuts, outcome.chat.run_id, outcome.chat.generation_attempt)


@pytest.mark.parametrize("cut_before", [False, True])
async def test_what_could_happen_twice_is_not_tried_again(postgres_url: str, cut_before: bool) -> None:
    """Without a token or a key, a commit that was lost is told: nobody knows whether it happened."""
    async with behind(postgres_url) as (store, proxy):
        await store.create_chat("c", Create(messages=()))
        proxy.cut_at, proxy.cut_before = b"COMMIT\0", cut_before
        with pytest.raises(StoreUnavailable, match="not known whether"):
            await store.apply("c", SEND)
        assert (0 if cut_before else 1) == len(await store.list_messages("c"))
        proxy.cut_at = b"COMMIT\0"
        with pytest.raises(StoreUnavailable, match="not known whether"):
            await store.delete_chat("c")


@pytest.mark.parametrize("statement", [b"BEGIN", b"FOR UPDATE", b"UPDATE chats", b"INSERT INTO messages"])
async def test_what_was_lost_before_its_commit_is_tried_again(postgres_url: str, statement: bytes) -> None:
    """Then the server has taken it back, and any command can be run again; reads always can."""
    async with behind(postgres_url) as (store, proxy):
        await store.create_chat("c", Create(messages=()))
        proxy.cut_at = statement
        assert (await store.apply("c", SEND)).changed
        assert (1, 1) == (proxy.cuts, len(await store.list_messages("c")))


# ---------------------------------------------------------------------------------------------- conflicts


@pytest.mark.parametrize("state", ["40001", "40P01", "53200", "57P01", "25P04", "25006"])
async def test_a_transaction_that_the_server_took_back_is_tried_again(postgres_url: str, state: str) -> None:
    """A conflict, a deadlock, want of memory, an administrator, a limit of time, a demoted primary: once is nothing."""
    async with open_postgres_store(postgres_url) as store:
        await store.create_chat("c", Create(messages=()))
        run(
            postgres_url,
            "CREATE SEQUENCE public.tries",
            f"""
            CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('public.tries') < 3 THEN RAISE EXCEPTION 'failed' USING ERRCODE = '{state}'; END IF;
                RETURN NEW;
            END $$
            """,
            "CREATE TRIGGER fail BEFORE INSERT ON relaytrio.messages FOR EACH ROW EXECUTE FUNCTION public.fail()",
        )
        assert 2 == (await store.apply("c", SEND)).answer.snapshot_version
        assert 1 == len(await store.list_messages("c"))


async def test_tries_are_bounded(postgres_url: str) -> None:
    """What fails each time is unavailable, and nothing has changed."""
    async with open_postgres_store(postgres_url) as store:
        await store.create_chat("c", Create(messages=()))
        run(
            postgres_url,
            """
            CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN RAISE EXCEPTION 'failed' USING ERRCODE = '40001'; END $$
            """,
            "CREATE TRIGGER fail BEFORE INSERT ON relaytrio.messages FOR EACH ROW EXECUTE FUNCTION public.fail()",
        )
        with pytest.raises(StoreUnavailable, match="failed"):
            await store.apply("c", SEND)
        assert 1 == (await store.read_chat("c")).snapshot_version


async def test_a_fault_of_ours_says_nothing_of_the_row(postgres_url: str) -> None:
    """A violated constraint leaves as what it is, without the values that violate it; the next call works."""
    async with open_postgres_store(postgres_url) as store:
        await store.create_chat("c", Create(messages=()))
        run(postgres_url, "ALTER TABLE relaytrio.messages ADD CONSTRAINT never CHECK (id < 0) NOT VALID")
        with pytest.raises(psycopg.errors.CheckViolation, match="never") as caught:
            await store.apply("c", SEND)
        assert "secret" not in "".join(traceback.format_exception(caught.value))
        assert 1 == (await store.read_chat("c")).snapshot_version


async def test_a_lock_that_is_not_to_be_had_is_not_waited_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the chat's row for long: unavailable, and other chats go on."""
    monkeypatch.setattr(_postgres_session, "LOCK_SECONDS", 0.1)
    async with open_postgres_store(postgres_url) as store:
        for chat_id in ("c", "other"):
            await store.create_chat(chat_id, Create(messages=()))
        with psycopg.connect(postgres_url) as other:
            other.execute("SELECT 1 FROM relaytrio.chats WHERE id = 'c' FOR UPDATE")
            with pytest.raises(StoreUnavailable, match="lock timeout"):
                await store.apply("c", SEND)
            assert (await store.apply("other", SEND)).changed
        assert (await store.apply("c", SEND)).changed


async def test_a_cancelled_caller_waits_for_its_transaction(postgres_url: str) -> None:
    """A transaction that has begun ends, and its caller learns how; the cancellation comes after it."""
    answers: list[int] = []

    async def send() -> None:
        answers.append((await store.apply("c", SEND)).answer.snapshot_version)

    async with open_postgres_store(postgres_url) as store:
        await store.create_chat("c", Create(messages=()))
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("BEGIN")
            other.execute("SELECT 1 FROM relaytrio.chats WHERE id = 'c' FOR UPDATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await until(lambda: other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is not None)
                nursery.cancel_scope.cancel()
                other.execute("COMMIT")
        assert [2] == answers
        assert 2 == (await store.read_chat("c")).snapshot_version


# ------------------------------------------------------------------------------------- connections lost


async def test_connections_that_were_ended_are_replaced(postgres_url: str) -> None:
    """All connections that wait are dead: the next call needs one more try, whatever it is."""
    async with open_postgres_store(postgres_url) as store:
        await store.create_chat("c", Create(messages=()))
        async with trio.open_nursery() as nursery:
            for _ in range(store.place.pool_size):
                nursery.start_soon(store.read_view, "c", NO_MESSAGE)
        run(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'relaytrio' AND datname = current_database()",
        )
        assert (await store.apply("c", SEND)).changed
        assert 2 == (await store.read_chat("c")).snapshot_version


async def test_a_server_that_says_nothing_holds_nobody(postgres_url: str) -> None:
    """A transaction whose server stands still is cut off after its time, and told."""
    async with behind(postgres_url) as (store, proxy):
        await store.create_chat("c", Create(messages=()))
        await proxy.freeze()
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(StoreUnavailable):
            await store.read_chat("c")
        await proxy.thaw()
        assert (await store.apply("c", SEND)).changed


async def test_a_refused_user_is_told_without_the_password(postgres_url: str) -> None:
    """Whoever opens the store learns why it does not open."""
    wrong = postgres_url.replace("@", "hunter2@")
    with pytest.raises(StoreUnavailable, match="authentication failed") as caught:
        async with open_postgres_store(wrong):
            raise AssertionError("it was opened")
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in shown


async def test_the_caller_s_own_exception_leaves_as_it_is(postgres_url: str) -> None:
    """What is raised inside the context is not wrapped, and the store is closed."""
    with pytest.raises(LookupError, match="the caller's"):
        async with open_postgres_store(postgres_url) as store:
            raise LookupError("the caller's")
    with pytest.raises(trio.ClosedResourceError):
        await store.ping()


# -------------------------------------------------------------------------------- servers that come and go


async def test_a_restart_under_load_applies_nothing_twice(postgres_server: PostgresServer) -> None:
    """Senders with keys and a run with tokens go on through two restarts and a crash: each of theirs is there once."""
    settings = attrs.evolve(DEFAULTS, queue_entries=10_000, page_messages=10_000)
    stop = trio.Event()
    sent: set[str] = set()
    committed: list[str] = []
    told: set[str] = set()

    async def insist(ask: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await ask()
                return
            except StoreUnavailable as error:
                told.add(str(error))
                await trio.sleep(0.05)

    async def send(store: PostgresStore, sender: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = f"{sender}-{number}"
            command = SendMessage(content=[{"type": "text", "text": name}])
            await insist(partial(store.apply, "queued", command, attrs.evolve(KEY, scope="queued", key=name)))
            sent.add(name)

    async def commit(store: PostgresStore) -> None:
        while not stop.is_set():
            token = str(len(committed) + 1)
            message = NewMessage(role="assistant", content=[{"type": "text", "text": token}])
            await insist(partial(store.apply, "run", Commit(run_id="r", token=token, messages=(message,))))
            committed.append(token)
        await insist(partial(store.apply, "run", FinishTurn(run_id="r", token="end")))

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_store(postgres_server.url(), settings=settings) as store:
            await store.create_chat("queued", ASKED)
            await store.create_chat("run", ASKED)
            await store.apply("run", Acquire(worker_id="w", run_id="r"))
            async with trio.open_nursery() as nursery:
                for sender in range(4):
                    nursery.start_soon(send, store, sender)
                nursery.start_soon(commit, store)
                for end in (postgres_server.stop, postgres_server.kill, partial(postgres_server.stop, "immediate")):
                    enough = len(sent) + 50
                    await until(lambda: len(sent) >= enough)  # noqa: B023 - it is over before the next
                    await in_thread(end)
                    await in_thread(postgres_server.start)
                stop.set()
            queue = await store.read_queue("queued")
            view = await store.read_view("run", NO_MESSAGE)
    assert not any(postgres_server.home.password in text for text in told)
    assert sorted(sent) == sorted(entry.content[0]["text"] for entry in queue)
    assert list(range(1, len(sent) + 1)) == [entry.id for entry in queue]
    assert committed == [message.content[0]["text"] for message in view.messages[1:]]
    assert len(committed) + 3 == view.chat.snapshot_version


async def test_a_server_that_is_away_is_told(postgres_server: PostgresServer) -> None:
    """`StoreUnavailable`, soon, without a secret; and it goes on when the server is back."""
    async with open_postgres_store(postgres_server.url()) as store:
        await store.create_chat("c", Create(messages=()))
        await in_thread(postgres_server.stop)
        with trio.fail_after(PATIENCE_SECONDS):
            for call in (partial(store.read_chat, "c"), partial(store.apply, "c", SEND), store.ping):
                with pytest.raises(StoreUnavailable) as caught:
                    await call()
                assert postgres_server.home.password not in str(caught.value)
        await in_thread(postgres_server.start)
        assert (await store.apply("c", SEND)).changed


async def test_a_server_that_may_not_be_written_to_is_told(postgres_server: PostgresServer) -> None:
    """As after a disk has filled up: what writes is unavailable, until it may be written to again."""
    async with open_postgres_store(postgres_server.url()) as store:
        await store.create_chat("c", Create(messages=()))
        await in_thread(postgres_server.set_read_only, True)
        with pytest.raises(StoreUnavailable, match="read-only"):
            await store.apply("c", SEND)
        await in_thread(postgres_server.set_read_only, False)
        assert 2 == (await store.apply("c", SEND)).answer.snapshot_version


async def test_another_primary_takes_over(postgres_server: PostgresServer) -> None:
    """Of the hosts in the URL, the store follows the one that may be written to, for reads too."""
    standby = await trio.to_thread.run_sync(postgres_server.standby, "standby")
    one, two = f"127.0.0.1:{postgres_server.port}", f"127.0.0.1:{standby.port}"
    url = postgres_server.url().replace(one, f"{two},{one}")  # the standby comes first, and is passed by
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_store(url) as store:
            await store.create_chat("c", Create(messages=()))
            await in_thread(standby.stop_following)
            await store.apply("c", SEND)
            await in_thread(postgres_server.kill)
            with pytest.raises(StoreError):
                await store.read_chat("c")
            await in_thread(standby.promote)
            assert 1 == (await store.read_chat("c")).snapshot_version
            with pytest.raises(ChatBusy):
                await store.apply("c", SEND)
                await store.apply("c", SendMessage(content=TEXT, when_busy="reject"))
    await in_thread(standby.close)


def test_the_patience_of_a_try_fits_into_that_of_its_callers() -> None:
    """A read that hangs is given up before the engine counts it as failed twice."""
    assert _postgres_session.STATEMENT_SECONDS < postgres_store.TRANSACTION_SECONDS <= DEFAULTS.store_read_seconds
