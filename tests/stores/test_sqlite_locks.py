"""A free lock says that a replica's process is gone; and says it only where that is certain."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from relaytrio._settings import DEFAULTS
from relaytrio.stores import Replica, SqliteStore, open_sqlite_store
from relaytrio.stores._sqlite_locks import ReplicaLocks, boot_id

W = Replica(id="w", address=None, version="1")
X = Replica(id="x", address=None, version="1")


@asynccontextmanager
async def open_trusting(path: Path) -> AsyncIterator[SqliteStore]:
    """A store that believes its locks at once."""
    async with open_sqlite_store(path, settings=attrs.evolve(DEFAULTS, lock_trust_seconds=0.0)) as store:
        yield store


async def test_the_lock_of_a_closed_store_is_free(tmp_path: Path) -> None:
    """Held while the store that registered is open, free when it is not any more, though the row is there."""
    async with open_trusting(tmp_path / "chat.db") as observer:
        async with open_trusting(tmp_path / "chat.db") as store:
            await store.register(W)
            assert [f"flock:{boot_id()}"] == [row.lock for row in await observer.replicas()]
            assert frozenset() == await observer.released_locks(["w"])
        assert {"w"} == await observer.released_locks(["w", "x"])


async def test_a_young_store_does_not_judge(tmp_path: Path) -> None:
    """Before it has been open for `lock_trust_seconds`, nobody's lock is free."""
    now = [100.0]
    async with open_sqlite_store(tmp_path / "chat.db", monotonic=lambda: now[0]) as observer:
        async with open_trusting(tmp_path / "chat.db") as store:
            await store.register(W)
        now[0] = 100.0 + DEFAULTS.lock_trust_seconds - 0.1
        assert frozenset() == await observer.released_locks(["w"])
        now[0] = 100.0 + DEFAULTS.lock_trust_seconds
        assert {"w"} == await observer.released_locks(["w"])


async def test_a_lock_of_another_life_of_the_machine_says_nothing(tmp_path: Path) -> None:
    """Nor does a row that claims none: the heartbeat decides."""
    files = tmp_path / "chat.db.locks"
    files.mkdir()
    async with open_trusting(tmp_path / "chat.db") as store:
        for replica_id, lock in (("before", "flock:another boot"), ("none", ""), ("now", f"flock:{boot_id()}")):
            store._connection.execute("INSERT INTO replicas VALUES (?, NULL, '1', 0, ?, 0)", (replica_id, lock))
            (files / f"{replica_id}.lock").touch()
        assert {"now"} == await store.released_locks(["before", "none", "now"])


def test_where_the_boot_is_unknown_no_lock_is_claimed(tmp_path: Path) -> None:
    """Without a name for the life of the machine, a lock could be taken for one of an earlier life."""
    locks = ReplicaLocks(tmp_path / "locks", "")
    assert "" == locks.take("w")
    assert [] == os.listdir(tmp_path)


async def test_where_locks_cannot_be_made_none_is_claimed(tmp_path: Path) -> None:
    """A replica registers all the same."""
    (tmp_path / "chat.db.locks").write_text("in the way")
    async with open_trusting(tmp_path / "chat.db") as store:
        await store.register(W)
        assert [W] == list(await store.replicas())
        assert frozenset() == await store.released_locks(["w"])


async def test_a_lock_that_another_holds_is_not_claimed(tmp_path: Path) -> None:
    """Two that register under one id: the second does not say that it holds what the first holds."""
    async with open_trusting(tmp_path / "chat.db") as first, open_trusting(tmp_path / "chat.db") as second:
        await first.register(W)
        await second.register(W)
        assert [""] == [row.lock for row in await first.replicas()]


async def test_files_of_the_gone_are_swept(tmp_path: Path) -> None:
    """Whoever registers removes the files that have no row and no holder; unregistering removes its own."""
    directory = tmp_path / "chat.db.locks"
    async with open_trusting(tmp_path / "chat.db") as survivor:
        async with open_trusting(tmp_path / "chat.db") as store:
            await store.register(W)
        await survivor.unregister("w")
        assert ["w.lock"] == os.listdir(directory)
        await survivor.register(X)
        assert ["x.lock"] == os.listdir(directory)
        await survivor.unregister("x")
        assert [] == os.listdir(directory)


async def test_the_file_of_one_whose_row_was_removed_is_not_swept(tmp_path: Path) -> None:
    """It is alive, and will register anew: its lock must still be what others look at."""
    async with open_trusting(tmp_path / "chat.db") as store, open_trusting(tmp_path / "chat.db") as other:
        await store.register(W)
        store._connection.execute("DELETE FROM replicas")
        await other.register(X)
        await store.register(W)
        assert frozenset() == await other.released_locks(["w", "x"])


async def test_a_lock_whose_file_was_removed_says_nothing_and_is_taken_anew(tmp_path: Path) -> None:
    """Somebody cleaned up: its holder may well live. When it registers again, it locks the file that others look at."""
    async with open_trusting(tmp_path / "chat.db") as store, open_trusting(tmp_path / "chat.db") as other:
        await store.register(W)
        os.unlink(tmp_path / "chat.db.locks" / "w.lock")
        assert frozenset() == await other.released_locks(["w"])
        await store.register(W)
        assert ["w.lock"] == os.listdir(tmp_path / "chat.db.locks")
        assert frozenset() == await other.released_locks(["w"])


async def test_an_id_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    """Whatever the id, its file is in the directory of locks."""
    async with open_trusting(tmp_path / "chat.db") as store:
        for replica_id in ("../../w", "..", ".", "a/b", ""):
            await store.register(attrs.evolve(W, id=replica_id))
            assert frozenset() == await store.released_locks([replica_id])
        assert 5 == len(os.listdir(tmp_path / "chat.db.locks"))
    assert {"chat.db", "chat.db.locks"} == set(os.listdir(tmp_path))
