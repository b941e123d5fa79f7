"""The PostgreSQL pubsub keeps the contract, and tells every trouble that a real server or network can make."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

import psycopg
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._errors import ConfigurationError, PubSubUnavailable
from relaytrio.pubsub import Hint, PubSub, derive_pubsub, postgres
from relaytrio.pubsub._postgres_connection import HintConnection, parse_url
from relaytrio.pubsub.postgres import MOST_PAYLOAD_BYTES, channel_of, open_postgres_pubsub
from relaytrio.stores import open_store
from relaytrio.testing.contracts import PubSubContract
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.realworld

PATIENCE_SECONDS = 20.0
OpenPooler: TypeAlias = Callable[..., AbstractContextManager[str]]
UUID = "0b1f3c5e-7a9d-4e2f-8c6b-1d3f5a7c9e0b"


class TestContract(PubSubContract):
    """The pubsub contract."""

    @pytest.fixture(autouse=True)
    def _place(self, postgres_url: str) -> None:
        self.url = postgres_url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[PubSub]:
        async with open_postgres_pubsub(self.url) as pubsub:
            yield pubsub

    def open_again(self, pubsub: PubSub) -> AbstractAsyncContextManager[PubSub]:
        return open_postgres_pubsub(self.url)


def hint(chat_id: str, version: int = 1) -> Hint:
    return Hint(chat_id, version, "running", UUID)


async def heard(hints: AsyncIterator[Hint], wanted: Hint) -> None:
    """Return when it has arrived."""
    with trio.fail_after(PATIENCE_SECONDS):
        async for arrived in hints:
            if arrived == wanted:
                return
    raise AssertionError(f"the iterator ended before {wanted}")


async def end_of(hints: AsyncIterator[Hint]) -> str:
    """Why they have ended."""
    with trio.fail_after(PATIENCE_SECONDS):
        try:
            async for _ in hints:
                pass
        except PubSubUnavailable as error:
            return str(error)
    return ""


async def ask(url: str, query: str, *values: object) -> list[tuple[object, ...]]:
    """What the database answers."""

    def run() -> list[tuple[object, ...]]:
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    return await trio.to_thread.run_sync(run)


LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'relaytrio hints'"


async def gone(url: str, what: str) -> None:
    """Return when the server has no such session any more."""
    with trio.fail_after(PATIENCE_SECONDS):
        while [(0,)] != await ask(url, f"SELECT count(*) {what}"):
            pass


class Proxy:
    """Between the pubsub and the server; what goes through it can be held back for ever, as by a dead network."""

    def __init__(self, url: str, nursery: trio.Nursery) -> None:
        self._server = urlsplit(url)
        self._nursery = nursery
        self._open = trio.Event()
        self.held: set[int] = set()
        """Of which connections, counted from 0, nothing goes through any more, in both directions."""
        self.connections = 0
        self.refuses = False
        self.refusal = trio.Event()
        """Of the next that it refuses; then there is another."""
        self.swallows = b"\xff" * 8
        """What has this in it is the first that does not go through any more."""

    async def start(self) -> str:
        """The URL that leads through it."""
        listeners: list[trio.SocketListener] = await self._nursery.start(
            partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1")
        )
        port = listeners[0].socket.getsockname()[1]
        credentials = self._server.netloc.rpartition("@")[0]
        return self._server._replace(netloc=f"{credentials}@127.0.0.1:{port}").geturl()

    async def _serve(self, client: trio.SocketStream) -> None:
        if self.refuses:
            self.refusal.set()
            self.refusal = trio.Event()
            return
        number, self.connections = self.connections, self.connections + 1
        server = await trio.open_tcp_stream(self._server.hostname or "", self._server.port or 5432)
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, number, client, server, nursery.cancel_scope)
            nursery.start_soon(self._carry, number, server, client, nursery.cancel_scope)

    async def _carry(
        self, number: int, source: trio.SocketStream, target: trio.SocketStream, over: trio.CancelScope
    ) -> None:
        try:
            async for data in source:
                if self.swallows in data:
                    self.held.add(number)
                if number in self.held:
                    await trio.sleep_forever()
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        over.cancel()


@asynccontextmanager
async def open_proxy(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    async with trio.open_nursery() as nursery:
        proxy = Proxy(url, nursery)
        yield proxy, await proxy.start()
        nursery.cancel_scope.cancel()


async def test_a_terminated_listener_is_told(postgres_url: str) -> None:
    """An administrator ends the session: the listener gets `PubSubUnavailable` at once, and can listen again."""
    async with open_postgres_pubsub(postgres_url) as pubsub:
        async with pubsub.listen() as first, pubsub.listen() as second:
            assert 2 == len(await ask(postgres_url, f"SELECT pg_terminate_backend(pid) {LISTENERS}"))
            assert "administrator command" in await end_of(first) + await end_of(second)
        async with pubsub.listen() as hints:
            await pubsub.publish(hint("a"))
            await heard(hints, hint("a"))


async def test_a_terminated_sender_is_replaced_unnoticed(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next hint goes out over a new connection at once; nobody is told."""
    monkeypatch.setattr(postgres, "RETRY_SECONDS", 2 * PATIENCE_SECONDS)
    monkeypatch.setattr(postgres, "RETRY_MAX_SECONDS", 2 * PATIENCE_SECONDS)
    async with open_postgres_pubsub(postgres_url, random=lambda: 1.0) as pubsub, pubsub.listen() as hints:
        for version in (1, 2, 3):
            await pubsub.publish(hint("a", version))
            await heard(hints, hint("a", version))
            await ask(postgres_url, f"SELECT pg_terminate_backend(pid) {OURS} AND query NOT LIKE 'LISTEN%'")


@pytest.mark.parametrize("end", [PostgresServer.stop, PostgresServer.kill])
async def test_a_restart_of_the_server(postgres_server: PostgresServer, end: Callable[[PostgresServer], None]) -> None:
    """Listeners are told, publishing too; entering fails until it is back, then hints are heard again."""
    async with open_postgres_pubsub(postgres_server.url()) as pubsub:
        async with pubsub.listen() as hints:
            await trio.to_thread.run_sync(end, postgres_server)
            assert "hints are not received any more" in await end_of(hints)
        with pytest.raises(PubSubUnavailable, match="cannot be received"):
            async with pubsub.listen():
                raise AssertionError("it was listened to")
        with pytest.raises(PubSubUnavailable, match="cannot be sent"), trio.fail_after(PATIENCE_SECONDS):
            while True:
                await pubsub.publish(hint("a"))
        await trio.to_thread.run_sync(postgres_server.start)
        async with pubsub.listen() as hints:
            await pubsub.publish(hint("b"))  # and says nothing: whoever heard itself can send
            await heard(hints, hint("b"))


async def test_what_could_not_be_sent_is_sent_later(postgres_url: str) -> None:
    """A replica alone is cut off from the database: the others hear of each chat the newest when it is back."""
    async with (
        open_proxy(postgres_url) as (proxy, url),
        open_postgres_pubsub(postgres_url) as other,
        open_postgres_pubsub(url) as pubsub,
        other.listen() as hints,
    ):
        proxy.refuses = True
        version = 0
        with pytest.raises(PubSubUnavailable, match="cannot be sent"), trio.fail_after(PATIENCE_SECONDS):
            while True:
                await pubsub.publish(hint("a", version := version + 1))
        for late in (version - 1, version + 2, version + 1):
            with pytest.raises(PubSubUnavailable, match="cannot be sent"):
                await pubsub.publish(hint("a", late))
        with trio.fail_after(PATIENCE_SECONDS):
            for _ in range(2):  # the first may have been on its way before the last hint
                await proxy.refusal.wait()
        proxy.refuses = False
        assert hint("a", version + 2) == await anext(hints)


async def test_whoever_hears_itself_can_send(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage: publishing raises no more, though the answer to the statement is still on its way."""
    monkeypatch.setattr(postgres, "SEND_SECONDS", 1.0)
    async with open_proxy(postgres_url) as (proxy, url), open_postgres_pubsub(url) as pubsub:
        proxy.refuses = True
        with pytest.raises(PubSubUnavailable, match="cannot be sent"), trio.fail_after(PATIENCE_SECONDS):
            while True:
                await pubsub.publish(hint("a"))
        proxy.swallows = b"count\x00"  # in the answer only
        proxy.refuses = False
        async with pubsub.listen():
            await pubsub.publish(hint("a"))


async def test_a_standby_hears_after_it_was_promoted(postgres_server: PostgresServer) -> None:
    """Of several hosts the primary is taken; a standby, which cannot listen, is no choice."""
    standby = await trio.to_thread.run_sync(postgres_server.standby, "standby")
    both = postgres_server.url().replace("127.0.0.1", f"127.0.0.1:{standby.port},127.0.0.1", 1)
    async with open_postgres_pubsub(both) as pubsub:
        async with pubsub.listen() as hints:
            await trio.to_thread.run_sync(postgres_server.kill)
            await end_of(hints)
        with pytest.raises(PubSubUnavailable):
            async with pubsub.listen():
                raise AssertionError("it was listened to")
        await trio.to_thread.run_sync(standby.promote)
        async with pubsub.listen() as hints:
            await pubsub.publish(hint("a"))
            await heard(hints, hint("a"))
    await trio.to_thread.run_sync(postgres_server.start)
    await trio.to_thread.run_sync(standby.close)


async def test_a_read_only_server_carries_hints(postgres_server: PostgresServer) -> None:
    """Hints write nothing."""
    await trio.to_thread.run_sync(postgres_server.set_read_only, True)
    async with open_postgres_pubsub(postgres_server.url()) as pubsub, pubsub.listen() as hints:
        await pubsub.publish(hint("a"))
        await heard(hints, hint("a"))


async def test_a_deaf_listener_is_found(postgres_url: str) -> None:
    """Nothing comes through its connection any more, and nothing says so: it is told within 15 s."""
    async with open_proxy(postgres_url) as (proxy, url), open_postgres_pubsub(url) as pubsub:
        async with pubsub.listen() as hints:
            began = trio.current_time()
            proxy.held.add(0)
            assert "was not heard" in await end_of(hints)
            assert 8.0 < trio.current_time() - began < 15.0
        async with pubsub.listen() as hints:
            await pubsub.publish(hint("a"))
            await heard(hints, hint("a"))


async def test_a_dead_network_is_found(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be sent either: the listener is told what is at fault, and leaving does not wait for the network."""
    monkeypatch.setattr(postgres, "PROBE_AFTER_SECONDS", 0.2)
    async with open_proxy(postgres_url) as (proxy, url):
        async with open_postgres_pubsub(url) as pubsub:
            async with pubsub.listen() as hints:
                proxy.held.update(range(1000))
                assert "no answer from the database" in await end_of(hints)
                began = trio.current_time()
            assert trio.current_time() - began < 1.0
        assert trio.current_time() - began < 8.0  # a try to connect ends in its own time


async def test_a_server_that_hangs_is_told(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and answers nothing more: entering fails, in its time."""
    monkeypatch.setattr(postgres, "SEND_SECONDS", 0.5)
    async with open_proxy(postgres_url) as (proxy, url), open_postgres_pubsub(url) as pubsub:
        proxy.swallows = b"LISTEN"
        with pytest.raises(PubSubUnavailable, match="no answer"), trio.fail_after(PATIENCE_SECONDS):
            async with pubsub.listen():
                raise AssertionError("it was listened to")


async def test_who_can_only_hear_is_not_deaf(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it sends gets lost, its probe too, and publishing says so; but what others send is heard all the while."""
    monkeypatch.setattr(postgres, "PROBE_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(postgres, "PROBE_SECONDS", 3.0)
    monkeypatch.setattr(postgres, "SEND_SECONDS", 0.5)
    probed: list[object] = []
    async with (
        open_proxy(postgres_url) as (proxy, url),
        open_postgres_pubsub(postgres_url) as other,
        open_postgres_pubsub(url) as pubsub,
        pubsub.listen() as hints,
    ):
        proxy.swallows = b"pg_notify"
        probe = pubsub._probe  # type: ignore[attr-defined]

        async def watched(*arguments: object) -> object:
            probed.append(await probe(*arguments))
            return probed[-1]

        monkeypatch.setattr(pubsub, "_probe", watched)
        version = 0
        with trio.fail_after(PATIENCE_SECONDS):
            while not probed:
                await other.publish(hint("a", version := version + 1))
                await heard(hints, hint("a", version))
                await trio.sleep(0.2)
        assert [None] == probed
        with pytest.raises(PubSubUnavailable, match="cannot be sent"):
            await pubsub.publish(hint("b"))


async def test_a_pooler_in_session_mode_carries_hints(postgres_server: PostgresServer, pgbouncer: OpenPooler) -> None:
    """It gives each client a session of its own for as long as it stays."""
    with pgbouncer(postgres_server, "session") as url:
        async with open_postgres_pubsub(url) as pubsub, pubsub.listen() as hints:
            await pubsub.publish(hint("a"))
            await heard(hints, hint("a"))


async def test_a_pooler_in_transaction_mode_is_found_out(
    postgres_server: PostgresServer, pgbouncer: OpenPooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody believes to listen through it, not even where sender and listener are given the same session.

    Sending through it works all the while, and who has a direct connection hears it.
    """
    monkeypatch.setattr(postgres, "PROBE_SECONDS", 2.0)
    with pgbouncer(postgres_server, "transaction", sessions=1) as url:
        async with open_postgres_pubsub(postgres_server.url()) as direct, direct.listen() as hints:
            async with open_postgres_pubsub(url) as pubsub:
                for version in (1, 2):
                    with pytest.raises(PubSubUnavailable, match="pooler in transaction mode"):
                        async with pubsub.listen():
                            raise AssertionError("it was listened to")
                    await pubsub.publish(hint("a", version))
                    await heard(hints, hint("a", version))


async def test_a_silent_listener_is_not_taken_for_a_deaf_one(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probe after probe is answered while no hint comes; those of one replica save the others theirs."""
    monkeypatch.setattr(postgres, "PROBE_AFTER_SECONDS", 0.02)
    probes = 0
    async with open_postgres_pubsub(postgres_url) as pubsub, pubsub.listen() as hints:
        ask_for_the_word = pubsub._probe  # type: ignore[attr-defined]

        async def count(*arguments: object) -> object:
            nonlocal probes
            probes += 1
            if probes == 20:
                await pubsub.publish(hint("a"))
            return await ask_for_the_word(*arguments)

        monkeypatch.setattr(pubsub, "_probe", count)
        await heard(hints, hint("a"))


async def test_hints_that_come_together_leave_together(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many hints take few statements, of each chat the newest is sent, and none of another chat is lost."""
    statements: list[bytes] = []
    execute = HintConnection.execute

    async def record(self: HintConnection, statement: bytes, *arguments: bytes) -> None:
        statements.append(statement)
        await execute(self, statement, *arguments)

    async with open_postgres_pubsub(postgres_url) as pubsub, pubsub.listen() as hints:
        monkeypatch.setattr(HintConnection, "execute", record)
        async with trio.open_nursery() as nursery:
            for version in range(1, 6):
                for number in range(500):
                    nursery.start_soon(pubsub.publish, hint(str(number), version))
        missing = {str(number) for number in range(500)}
        with trio.fail_after(PATIENCE_SECONDS):
            while missing:
                arrived = await anext(hints)
                if arrived.snapshot_version == 5:
                    missing.discard(arrived.chat_id)
    assert len(statements) <= 20


async def test_more_hints_than_one_statement_takes(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest follows by itself; when the pubsub is closed, before it is."""
    monkeypatch.setattr(postgres, "MOST_IN_A_STATEMENT", 3)
    async with open_postgres_pubsub(postgres_url) as other, other.listen() as hints:
        async with open_postgres_pubsub(postgres_url) as pubsub:
            for number in range(20):
                await pubsub.publish(hint(str(number)))
        await heard(hints, hint("19"))


async def test_what_cannot_be_sent_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is no server, the newest hints are kept, and no more than a bound."""
    monkeypatch.setattr(postgres, "MOST_CHATS", 3)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_pubsub("postgresql://postgres@127.0.0.1:1/none") as pubsub:
            with pytest.raises(PubSubUnavailable, match="cannot be sent"):
                for number in range(100_000):
                    last = number
                    await pubsub.publish(hint(str(number)))
            kept = list(pubsub._unsent)  # type: ignore[attr-defined]
    assert [str(last - 2), str(last - 1), str(last)] == kept


async def test_the_longest_payload(postgres_url: str) -> None:
    """PostgreSQL takes what we take; a longer one is told, and spoils no other."""
    empty = len(postgres._encode(hint("")))
    longest = hint("x" * (MOST_PAYLOAD_BYTES - empty))
    async with open_postgres_pubsub(postgres_url) as pubsub, pubsub.listen() as hints:
        with pytest.raises(PubSubUnavailable, match="8000 bytes"):
            await pubsub.publish(hint(longest.chat_id + "x"))
        await pubsub.publish(longest)
        await heard(hints, longest)
    assert empty < 200


async def test_ids_of_any_characters(postgres_url: str) -> None:
    """What is quoted somewhere on the way arrives as it was."""
    odd = hint("it's \\ \"{},[] \x00 \n \U0001f600 %s $1")
    async with open_postgres_pubsub(postgres_url) as pubsub, pubsub.listen() as hints:
        await pubsub.publish(odd)
        await heard(hints, odd)


async def test_clusters_in_one_database_do_not_hear_each_other(postgres_url: str) -> None:
    """The channel follows from the schema, whatever its name is."""
    schemas = ("relaytrio", "Other", 'it\'s "odd"', "x" * 63, "x" * 62 + "y")
    assert len(schemas) == len({channel_of(schema) for schema in schemas})
    for schema in schemas[1:]:
        async with (
            open_postgres_pubsub(postgres_url) as one,
            open_postgres_pubsub(postgres_url, schema=schema) as other,
            one.listen() as hints,
            other.listen() as others,
        ):
            await one.publish(hint("a", 1))
            await heard(hints, hint("a", 1))
            await other.publish(hint("a", 2))
            assert hint("a", 2) == await anext(others)
            await one.publish(hint("a", 3))
            assert hint("a", 3) == await anext(hints)


async def test_foreign_payloads_are_passed_over(postgres_url: str) -> None:
    """What another program, or a later version, says on the channel harms nobody; what we know of it is taken."""
    longer = '["a", 7, "running", null, "of a later version"]'
    deep = f'["a", 1, "running", null, {3900 * "["}{3900 * "]"}]'
    async with open_postgres_pubsub(postgres_url) as pubsub, pubsub.listen() as hints:
        for payload in (deep, "", "x", "[]", '["a", 1, "new status", null]', '{"a": 1}', longer):
            await ask(postgres_url, "SELECT pg_notify(%s, %s)", channel_of("relaytrio"), payload)
        assert Hint("a", 7, "running", None) == await anext(hints)


async def test_leaving_and_cancelling_leave_nothing(postgres_url: str) -> None:
    """Cancelled at whatever point of entering, reading or sending: no descriptor, thread or session stays."""

    async def use(steps: int) -> None:
        with trio.CancelScope() as scope:
            async with open_postgres_pubsub(postgres_url) as pubsub, trio.open_nursery() as nursery:

                async def listen() -> None:
                    async with pubsub.listen() as hints:
                        async for _ in hints:
                            pass

                nursery.start_soon(listen)
                nursery.start_soon(pubsub.publish, hint("a"))
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                if steps % 2:
                    await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask, postgres_url, "SELECT 1")  # Trio keeps threads for a while when they have worked
    await use(0)
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for steps in (*range(12), 20, 40, 80, 160, 320):
        await use(steps)
    assert descriptors == len(os.listdir("/proc/self/fd"))
    assert threads >= threading.active_count()
    await gone(postgres_url, OURS)


async def test_the_last_hints_are_sent_when_it_is_closed(postgres_url: str) -> None:
    """A replica that stops has told of the chats that it handed over, even if it was cancelled."""
    async with open_postgres_pubsub(postgres_url) as other, other.listen() as hints:
        for version in range(1, 6):
            with trio.CancelScope() as scope:
                async with open_postgres_pubsub(postgres_url) as pubsub:
                    await pubsub.publish(hint("a", version))
                    for _ in range(version - 1):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            await heard(hints, hint("a", version))


async def test_a_store_brings_its_own(postgres_url: str) -> None:
    """Stores of one schema share their hints, those of another do not hear them."""
    async with (
        open_store(postgres_url) as store,
        open_store(f"{postgres_url}?schema=other") as other,
        derive_pubsub(store) as one,
        derive_pubsub(store) as two,
        derive_pubsub(other) as three,
    ):
        assert one is not None
        assert two is not None
        assert three is not None
        async with two.listen() as hints, three.listen() as others:
            await one.publish(hint("a"))
            await heard(hints, hint("a"))
            await three.publish(hint("b"))
            assert hint("b") == await anext(others)


def test_nobody_loads_the_driver_without_need() -> None:
    """The package works where there is no PostgreSQL driver."""
    program = "import relaytrio, relaytrio.pubsub, relaytrio.stores, sys; print('psycopg' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "False\n" == done.stdout


async def test_a_url_that_is_none_is_refused() -> None:
    """With clear words, and without its password."""
    for url in ("sqlite:///chat.db", "postgresql://user:secret@[/x", "postgresql://host/x?nonsense=secret"):
        with pytest.raises(ConfigurationError) as caught:
            async with open_postgres_pubsub(url):
                raise AssertionError("it was opened")
        assert "secret" not in str(caught.value)


def test_a_url_for_other_purposes_serves() -> None:
    """What makes no sense for hints is not taken over from the store's url: a standby neither listens nor notifies."""
    parameters = parse_url("postgresql://one,two/x?target_session_attrs=prefer-standby&client_encoding=latin1&user=me")
    assert ("primary", "utf8", "me") == tuple(
        parameters[name] for name in ("target_session_attrs", "client_encoding", "user")
    )


async def test_how_long_a_hint_takes(postgres_url: str) -> None:
    """From publishing to hearing, from one replica to another, well under the poll that would find it else."""
    async with (
        open_postgres_pubsub(postgres_url) as one,
        open_postgres_pubsub(postgres_url) as other,
        other.listen() as hints,
    ):
        seconds: list[float] = []
        for version in range(1, 501):
            began = trio.current_time()
            await one.publish(hint("a", version))
            await heard(hints, hint("a", version))
            seconds.append(trio.current_time() - began)
    quantiles = statistics.quantiles(seconds, n=100)
    print(f"a hint took {quantiles[49] * 1000:.2f} ms (p50), {quantiles[98] * 1000:.2f} ms (p99)")
    assert quantiles[49] < 1.0
