"""Transactions that wait for their turn share one commit, and each still succeeds or fails alone."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._errors import ChatBusy, ChatNotFound, StoreUnavailable
from relaytrio._protocol.chat import Create, NewMessage, SendMessage
from relaytrio.stores import SqliteStore, open_sqlite_store
from relaytrio.stores._group_commit import MOST_WORKS, GroupCommit, Work

TEXT = [{"type": "text", "text": "q"}]
ASKED = Create(messages=(NewMessage(role="user", content=TEXT),))


@attrs.define
class Bench:
    """A group commit whose batches wait for the test."""

    batches: list[int] = attrs.field(factory=list)
    """How many works each had."""
    going_on: threading.Event = attrs.field(factory=threading.Event)
    done: list[object] = attrs.field(factory=list)

    def make(self) -> GroupCommit:
        return GroupCommit(self.commit, trio.CapacityLimiter(1))

    def commit(self, batch: Sequence[Work[object]]) -> None:
        self.batches.append(len(batch))
        assert self.going_on.wait(30)
        for work in batch:
            work.attempt()

    async def run(self, commits: GroupCommit, name: object) -> None:
        assert name == await commits.run(lambda: name)
        self.done.append(name)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.going_on.set()


async def test_who_comes_alone_is_a_batch_of_one(bench: Bench) -> None:
    """Nothing is waited for."""
    bench.going_on.set()
    commits = bench.make()
    for name in range(3):
        await bench.run(commits, name)
    assert [1, 1, 1] == bench.batches


async def test_who_comes_meanwhile_shares_the_next(bench: Bench) -> None:
    """However many they are, in the order in which they came."""
    commits = bench.make()
    async with trio.open_nursery() as nursery:
        for name in range(20):
            nursery.start_soon(bench.run, commits, name)
            await wait_all_tasks_blocked()
        bench.going_on.set()
    assert [1, 19] == bench.batches
    assert 0 == bench.done[0]
    assert set(range(20)) == set(bench.done)


async def test_a_batch_has_a_bound(bench: Bench) -> None:
    """The first of it waits for the last."""
    commits = bench.make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.run, commits, "first")
        await wait_all_tasks_blocked()
        for name in range(MOST_WORKS + 1):
            nursery.start_soon(bench.run, commits, name)
        await wait_all_tasks_blocked()
        bench.going_on.set()
    assert [1, MOST_WORKS, 1] == bench.batches


async def test_who_is_cancelled_while_waiting_has_no_effect(bench: Bench) -> None:
    """And whoever waits behind it is not forgotten."""
    commits, second = bench.make(), trio.CancelScope()

    async def leave() -> None:
        with second:
            await bench.run(commits, "second")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.run, commits, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(leave)
        await wait_all_tasks_blocked()
        nursery.start_soon(bench.run, commits, "third")
        await wait_all_tasks_blocked()
        second.cancel()
        await wait_all_tasks_blocked()
        bench.going_on.set()
    assert ["first", "third"] == bench.done
    assert [1, 1] == bench.batches


async def test_who_is_cancelled_as_it_comes_to_lead_hands_the_lead_on(bench: Bench) -> None:
    """In the instant between the end of one batch and the beginning of the next."""
    bench.going_on.set()
    commits = bench.make()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bench.run(commits, "cancelled")
    assert [] == bench.batches
    await bench.run(commits, "next")
    assert ["next"] == bench.done


async def test_whose_batch_has_begun_gets_its_result(bench: Bench) -> None:
    """A thread cannot be cancelled: what it did is told, and the cancellation comes after that."""
    commits = bench.make()
    async with trio.open_nursery() as nursery:
        for name in ("leads", "follows"):
            nursery.start_soon(bench.run, commits, name)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        bench.going_on.set()
    assert "leads" in bench.done or "follows" in bench.done


# ------------------------------------------------------------------------------------------ in a store


@contextmanager
def held(path: Path) -> Iterator[Callable[[], None]]:
    """Another process holds the file; what the test calls lets it go."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def let_go() -> None:
            other.execute("ROLLBACK")

        yield let_go


async def commits_of(store: SqliteStore, path: Path, *works: Callable[[], object]) -> int:
    """Run all of them while the writer is held, and count the commits that they took after that."""
    commits: list[str] = []
    with held(path) as let_go:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.heartbeat, "nobody", 0)
            await wait_all_tasks_blocked()
            for work in works:
                nursery.start_soon(work)  # type: ignore[arg-type]
            await wait_all_tasks_blocked()
            store._connection.set_trace_callback(
                lambda statement: commits.append(statement) if statement == "COMMIT" else None
            )
            let_go()
    store._connection.set_trace_callback(None)
    return len(commits) - 1  # the first one is the heartbeat's


async def test_transitions_share_a_commit_and_fail_alone(tmp_path: Path) -> None:
    """A refusal takes back what it had done, and nothing of its neighbours."""
    path = tmp_path / "chat.db"
    refused: list[type[Exception]] = []

    async with open_sqlite_store(path, busy_seconds=30.0) as store:
        await store.create_chat("c", ASKED)

        async def send() -> None:
            await store.apply("c", SendMessage(content=TEXT))

        async def refuse(chat_id: str, error: type[Exception]) -> None:
            with pytest.raises(error):
                await store.apply(chat_id, SendMessage(content=TEXT, when_busy="reject"))
            refused.append(error)

        async def refuse_busy() -> None:
            await refuse("c", ChatBusy)

        async def refuse_unknown() -> None:
            await refuse("unknown", ChatNotFound)

        assert 1 == await commits_of(store, path, send, refuse_busy, send, refuse_unknown, send)
        assert {ChatBusy, ChatNotFound} == set(refused)
        assert 4 == (await store.read_chat("c")).snapshot_version
        assert 3 == len(await store.read_queue("c"))


async def test_a_commit_that_fails_fails_all_of_its_batch(tmp_path: Path) -> None:
    """Nothing of it is there, each caller is told by an error of its own, and the next batch works."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path, busy_seconds=0.0) as store:
        await store.create_chat("c", ASKED)

        with held(path):
            works: list[Work[object]] = [
                Work(lambda: store._session.execute("UPDATE chats SET status = 'error'")) for _ in range(3)
            ]
            await trio.to_thread.run_sync(store._commit, works)
            for work in works:
                with pytest.raises(StoreUnavailable, match="cannot be used for now"):
                    work.result()
        assert "running" == (await store.read_chat("c")).status
        assert (await store.apply("c", SendMessage(content=TEXT))).changed


async def test_a_transaction_that_the_database_took_back_fails_all(tmp_path: Path) -> None:
    """A full disk, say: SQLite gives up all of the transaction, with what others had done in it."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path) as store:
        await store.create_chat("c", ASKED)
        works: list[Work[object]] = [
            Work(lambda: store._session.execute("UPDATE chats SET status = 'error'")),
            Work(lambda: store._session.execute("ROLLBACK")),
            Work(lambda: store._session.execute("UPDATE chats SET status = 'error'")),
        ]
        await trio.to_thread.run_sync(store._commit, works)
        for work in works:
            with pytest.raises(StoreUnavailable):
                work.result()
        assert "running" == (await store.read_chat("c")).status


async def test_reads_go_on_beside_a_writer(tmp_path: Path) -> None:
    """They see what was committed before, and wait for nobody."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path, busy_seconds=30.0) as store:
        await store.create_chat("c", ASKED)
        with held(path) as let_go:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.apply, "c", SendMessage(content=TEXT))
                await wait_all_tasks_blocked()
                assert 1 == (await store.read_chat("c")).snapshot_version
                let_go()
        assert 2 == (await store.read_chat("c")).snapshot_version
