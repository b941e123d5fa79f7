"""A free lock in PostgreSQL says that a replica's process is gone; and says it only where that is certain."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import attrs
import psycopg
import pytest
import trio

from relaytrio._settings import DEFAULTS
from relaytrio.stores import Replica, _postgres_session
from relaytrio.stores._postgres_locks import ReplicaLocks
from relaytrio.stores._postgres_presence import _is_readable
from relaytrio.stores.postgres import PostgresStore, open_postgres_store
from tests.postgres_server import PostgresServer
from tests.realworld.tcp_proxy import open_proxy

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(120)]
PATIENCE_SECONDS = 60.0
TRUSTING = attrs.evolve(DEFAULTS, lock_trust_seconds=0.0)
W = Replica(id="w", address=None, version="1")
X = Replica(id="x", address=None, version="1")
HOLDERS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
WAITING = "SELECT pid FROM pg_locks WHERE locktype <> 'advisory' AND NOT granted"
KEYS = "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory'"

PROGRAM = """
import sys, trio
from relaytrio.stores import Replica, open_store

async def main():
    async with open_store(sys.argv[1]) as store:
        await store.register(Replica(id="w", address=None, version="1"))
        print("ready", flush=True)
        sys.stdin.readline()

trio.run(main)
"""


@asynccontextmanager
async def open_trusting(url: str) -> AsyncIterator[PostgresStore]:
    """A store that believes what it sees of locks at once."""
    async with open_postgres_store(url, settings=TRUSTING) as store:
        yield store


def ask(url: str, statement: str) -> list[object]:
    """The first column, as another client of the server sees it."""
    with psycopg.connect(url, autocommit=True) as connection:
        return [row[0] for row in connection.execute(statement.encode())]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what has no edge to wait on: it is in the server."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not await trio.to_thread.run_sync(condition):  # noqa: ASYNC110
            await trio.sleep(0.01)


@contextmanager
def registered(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has registered the replica `w`; killed if it has not ended by itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


# ---------------------------------------------------------------------------------------- what it says


async def test_a_killed_process_is_found_dead_at_once(postgres_url: str) -> None:
    """Its lock is held while it lives, stopped or not, and free when it is killed; its row is still there."""
    async with open_trusting(postgres_url) as observer:
        with registered(postgres_url) as process:
            assert frozenset() == await observer.released_locks(["w"])
            process.send_signal(signal.SIGSTOP)
            assert frozenset() == await observer.released_locks(["w"])
            process.kill()
            await until(lambda: not ask(postgres_url, HOLDERS))
            assert {"w"} == await observer.released_locks(["w", "x"])
        assert ["w"] == [row.id for row in await observer.replicas()]


async def test_the_lock_of_a_closed_store_is_free(postgres_url: str) -> None:
    """And the row names the lock, and the life of the server in which it was taken."""
    async with open_trusting(postgres_url) as observer:
        async with open_trusting(postgres_url) as store:
            await store.register(W)
            (row,) = await observer.replicas()
            assert row.lock.startswith("advisory:")
        await until(lambda: not ask(postgres_url, HOLDERS))
        assert {"w"} == await observer.released_locks(["w"])


async def test_a_young_session_does_not_judge(postgres_url: str) -> None:
    """Before it was held for `lock_trust_seconds`, nobody's lock is free; that begins anew with a new session."""
    now = [100.0]
    async with open_postgres_store(postgres_url, monotonic=lambda: now[0]) as observer:
        async with open_trusting(postgres_url) as store:
            await store.register(W)
        await until(lambda: not ask(postgres_url, HOLDERS))
        assert frozenset() == await observer.released_locks(["w"])
        now[0] += DEFAULTS.lock_trust_seconds - 0.1
        assert frozenset() == await observer.released_locks(["w"])
        now[0] += 0.1
        assert {"w"} == await observer.released_locks(["w"])
        ask(postgres_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'relaytrio'")
        assert frozenset() == await observer.released_locks(["w"])
        now[0] += DEFAULTS.lock_trust_seconds
        assert {"w"} == await observer.released_locks(["w"])


async def test_a_lock_that_another_holds_is_not_claimed(postgres_url: str) -> None:
    """Two that register under one id: the second does not say that it holds what the first holds."""
    async with open_trusting(postgres_url) as first, open_trusting(postgres_url) as second:
        await first.register(W)
        await second.register(W)
        assert [""] == [row.lock for row in await first.replicas()]


async def test_schemas_have_locks_of_their_own(postgres_url: str) -> None:
    """Two clusters in one database, with a replica of the same id each."""
    async with open_trusting(postgres_url) as one, open_trusting(f"{postgres_url}?schema=two") as two:
        await one.register(W)
        await two.register(W)
        assert [True, True] == [bool(row.lock) for store in (one, two) for row in await store.replicas()]
        await two.unregister("w")
        assert frozenset() == await one.released_locks(["w"])


# ------------------------------------------------------------------------------------ what it never says


async def test_a_restarted_server_calls_nobody_dead(postgres_server: PostgresServer) -> None:
    """Locks of an earlier life of the server are free and say nothing; their owners take them again by themselves."""
    url = postgres_server.url()
    async with open_trusting(url) as store, open_trusting(url) as observer:
        await store.register(W)
        (before,) = await store.replicas()
        await trio.to_thread.run_sync(postgres_server.restart)
        assert frozenset() == await observer.released_locks(["w"])
        # In between it may be withdrawn: whoever is late to take it again says first that it is not held.
        await until(lambda: ask(url, "SELECT lock FROM relaytrio.replicas") not in ([before.lock], [""]))
        assert 1 == len(ask(url, HOLDERS))
        assert frozenset() == await observer.released_locks(["w"])


async def test_a_dead_owner_stays_unknown_to_a_restarted_server(postgres_server: PostgresServer) -> None:
    """Who died before the restart is left to the heartbeat: nobody can tell it from one who is about to come back."""
    url = postgres_server.url()
    async with open_trusting(url) as observer:
        async with open_trusting(url) as store:
            await store.register(W)
        await trio.to_thread.run_sync(postgres_server.restart)
        assert frozenset() == await observer.released_locks(["w"])


async def test_after_a_crash_of_the_server_s_processes_owners_have_time(postgres_server: PostgresServer) -> None:
    """The postmaster lives on, so the life is the same, but all sessions are gone: locks are taken again long before
    anybody has held a session for long enough to judge."""
    url = postgres_server.url()
    async with open_trusting(url) as store, open_postgres_store(url) as observer:
        await store.register(W)
        (before,) = await store.replicas()
        (holder,) = ask(url, HOLDERS)
        os.kill(int(str(holder)), signal.SIGKILL)
        await until(lambda: _answers(url) and ask(url, HOLDERS) not in ([], [holder]))
        # While no lock could be had none was claimed; that it is again is written after it was taken.
        await until(lambda: [before.lock] == ask(url, "SELECT lock FROM relaytrio.replicas"))
        assert frozenset() == await observer.released_locks(["w"])


def _answers(url: str) -> bool:
    try:
        ask(url, "SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


async def test_a_lost_session_is_replaced_at_once(postgres_url: str) -> None:
    """An administrator ended it: the lock is taken again without waiting for the next heartbeat."""
    async with open_trusting(postgres_url) as store, open_trusting(postgres_url) as observer:
        await store.register(W)
        assert await observer.released_locks(["w"]) == frozenset()
        (holder,) = ask(postgres_url, HOLDERS)
        ask(postgres_url, f"SELECT pg_terminate_backend({holder})")
        await until(lambda: ask(postgres_url, HOLDERS) not in ([], [holder]))
        assert frozenset() == await observer.released_locks(["w"])


async def test_a_lock_that_cannot_be_taken_again_is_not_claimed(postgres_url: str, postgres_shared_url: str) -> None:
    """Its session was ended, and the server gives no new one: the other connections say so before anybody looks twice,
    for its replica lives."""
    allow = f"ALTER DATABASE {postgres_url.rpartition('/')[2]} WITH ALLOW_CONNECTIONS"

    def end_session() -> None:
        with psycopg.connect(postgres_shared_url, autocommit=True) as connection:
            connection.execute(f"{allow} false".encode())
            connection.execute("SELECT pg_terminate_backend(%s)", [holder])

    async with open_trusting(postgres_url) as store, open_trusting(postgres_url) as observer:
        await store.register(W)
        assert frozenset() == await observer.released_locks(["w"])
        await observer.ping()  # it has a connection for later
        (holder,) = ask(postgres_url, HOLDERS)
        await trio.to_thread.run_sync(end_session)
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                while [""] != [row.lock for row in await observer.replicas()]:  # noqa: ASYNC110 - it is in the server
                    await trio.sleep(0.01)
            assert frozenset() == await observer.released_locks(["w"])
        finally:
            with psycopg.connect(postgres_shared_url, autocommit=True) as connection:
                connection.execute(f"{allow} true".encode())
        with trio.fail_after(PATIENCE_SECONDS):
            while not all(row.lock for row in await store.replicas()):  # noqa: ASYNC110 - it is in the server
                await trio.sleep(0.01)


async def test_a_loss_that_takes_long_to_be_found_is_not_claimed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session has news and nobody has got to look at it yet: meanwhile no lock is claimed."""
    goes_on = threading.Event()
    renew = ReplicaLocks.renew

    def renew_late(locks: ReplicaLocks) -> None:
        goes_on.wait(PATIENCE_SECONDS)
        renew(locks)

    async with open_trusting(postgres_url) as store:
        await store.register(W)
        (before,) = await store.replicas()
        (holder,) = ask(postgres_url, HOLDERS)
        monkeypatch.setattr(ReplicaLocks, "renew", renew_late)
        try:
            ask(postgres_url, f"SELECT pg_terminate_backend({holder})")
            await until(lambda: [""] == ask(postgres_url, "SELECT lock FROM relaytrio.replicas"))
        finally:
            goes_on.set()
        await until(lambda: [before.lock] == ask(postgres_url, "SELECT lock FROM relaytrio.replicas"))


def test_a_session_is_watched_though_there_are_many_descriptors() -> None:
    """A replica with a thousand viewers has numbers for it that `select` does not take."""
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(limit, 2048), hard_limit), hard_limit))
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs, socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD, 1500)) as far:
            assert not _is_readable(far.fileno())
            theirs.send(b"x")
            assert _is_readable(far.fileno())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard_limit))


async def test_a_row_that_another_has_locked_stops_no_watch(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session was lost, and its lock is taken again, but the row cannot be written for now: there are other tries,
    and the store goes on."""
    monkeypatch.setattr(_postgres_session, "LOCK_SECONDS", 0.1)
    async with open_trusting(postgres_url) as store:
        await store.register(W)
        with psycopg.connect(postgres_url) as another:
            another.execute("UPDATE relaytrio.replicas SET lock = ''")
            another.commit()
            another.execute("SELECT FROM relaytrio.replicas FOR UPDATE")
            (holder,) = ask(postgres_url, HOLDERS)
            ask(postgres_url, f"SELECT pg_terminate_backend({holder})")
            await until(lambda: bool(ask(postgres_url, WAITING)))
            await until(lambda: not ask(postgres_url, WAITING))
            await store.ping()
        assert await store.heartbeat("w", 1)
        assert [True] == [bool(row.lock) for row in await store.replicas()]


async def test_a_session_that_the_server_still_believes_in_is_ended(postgres_url: str) -> None:
    """The connection was lost and the server was not told: the holder's new session ends the old one for its lock."""
    port = int(postgres_url.rpartition(":")[2].partition("/")[0])
    async with open_proxy(port) as proxy:
        async with open_trusting(postgres_url.replace(f":{port}/", f":{proxy.port}/")) as store:
            await store.register(W)
            (holder,) = ask(postgres_url, HOLDERS)
            await proxy.leave_clients()
            await until(lambda: ask(postgres_url, HOLDERS) not in ([], [holder]))
            assert await store.heartbeat("w", 0)
            assert [True] == [bool(row.lock) for row in await store.replicas()]


async def test_what_is_not_held_is_not_claimed(postgres_url: str) -> None:
    """A lock that was lost and cannot be had again: with the next heartbeat the row says so, and it says nothing."""
    async with open_trusting(postgres_url) as store, open_trusting(postgres_url) as observer:
        await store.register(W)
        key = ask(postgres_url, KEYS)
        (holder,) = ask(postgres_url, HOLDERS)
        with psycopg.connect(postgres_url, autocommit=True) as thief:

            def steal() -> None:
                thief.execute("SELECT pg_advisory_lock(%s)", key)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, steal)
                await until(lambda: bool(ask(postgres_url, "SELECT pid FROM pg_locks WHERE NOT granted")))
                ask(postgres_url, f"SELECT pg_terminate_backend({holder})")
            assert await store.heartbeat("w", 1)
            assert [""] == [row.lock for row in await store.replicas()]
        assert frozenset() == await observer.released_locks(["w"])
        assert await store.heartbeat("w", 1)
        assert [True] == [bool(row.lock) for row in await store.replicas()]


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_behind_a_pooler_no_lock_is_claimed_and_nobody_is_judged(
    postgres_server: PostgresServer, pgbouncer: Callable[..., AbstractContextManager[str]], mode: str
) -> None:
    """Its sessions are anybody's. What is held without one in between is still seen without one."""
    direct = postgres_server.url()
    with pgbouncer(postgres_server, mode) as pooled:
        async with open_trusting(pooled) as store, open_trusting(direct) as other:
            await store.register(W)
            await other.register(X)
            assert {"w": False, "x": True} == {row.id: bool(row.lock) for row in await store.replicas()}
            assert await store.heartbeat("w", 1)
            for observer in (store, other):
                assert frozenset() == await observer.released_locks(["w", "x"])
            await other.aclose()
            await until(lambda: not ask(direct, HOLDERS))
            assert frozenset() == await store.released_locks(["w", "x"])
