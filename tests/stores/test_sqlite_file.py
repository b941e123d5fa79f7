"""Which files become the database of a store, and which are left alone."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from relaytrio._errors import StoreUnavailable, StoreUnusable
from relaytrio._protocol.chat import Create
from relaytrio.stores import open_sqlite_store
from relaytrio.stores._sqlite_schema import APPLICATION_ID, STEPS

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o777)
    yield path
    path.chmod(0o777)
    shutil.rmtree(path)


@contextmanager
def not_root() -> Iterator[None]:
    """Permissions count, even where the tests are run by root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def permit(path: Path, mode: int) -> None:
    """Set the permissions."""
    path.chmod(mode)


def _newer_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE chats (id TEXT)")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")


def _other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE chats (id TEXT)")


def _other_program_without_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 7")


def _no_database(path: Path) -> None:
    path.write_bytes(b"these are my notes, and no database at all\n" * 100)


def _torn_database(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4080)


@pytest.mark.parametrize(
    "make", [_newer_schema, _other_program, _other_program_without_tables, _no_database, _torn_database]
)
async def test_a_file_of_another_kind_is_left_alone(place: Path, make: Callable[[Path], None]) -> None:
    """`StoreUnusable` names the file, which is the same to the last byte, with nothing beside it."""
    path = place / "chat.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match=re.escape(str(path))):
        async with open_sqlite_store(path):
            raise AssertionError("it was opened")
    assert before == path.read_bytes()
    assert ["chat.db"] == os.listdir(place)


async def test_a_newer_schema_says_what_to_do(place: Path) -> None:
    """The text names both numbers."""
    _newer_schema(place / "chat.db")
    with pytest.raises(StoreUnusable, match=rf"schema {len(STEPS) + 1}.*up to {len(STEPS)}.*newer"):
        async with open_sqlite_store(place / "chat.db"):
            raise AssertionError("it was opened")


async def test_a_missing_directory_is_not_made(place: Path) -> None:
    """A mistyped path does not become a new database."""
    path = place / "nowhere" / "chat.db"
    with pytest.raises(StoreUnusable, match=re.escape(str(path))):
        async with open_sqlite_store(path):
            raise AssertionError("it was opened")
    assert [] == os.listdir(place)


async def test_a_directory_is_no_database(place: Path) -> None:
    """And nothing is put into it."""
    with pytest.raises(StoreUnusable, match="is a directory"):
        async with open_sqlite_store(place):
            raise AssertionError("it was opened")
    assert [] == os.listdir(place)


async def test_a_read_only_file_is_refused_at_once(place: Path) -> None:
    """Not at the first write, in the middle of somebody's request; and it stays as it was."""
    path = place / "chat.db"
    async with open_sqlite_store(path):
        pass
    permit(path, 0o444)
    before = path.read_bytes()
    with not_root(), pytest.raises(StoreUnusable, match=re.escape(str(path))):
        async with open_sqlite_store(path):
            raise AssertionError("it was opened")
    assert before == path.read_bytes()
    assert ["chat.db"] == os.listdir(place)


async def test_a_read_only_directory_is_refused_at_once(place: Path) -> None:
    """Whether the database is there already or would have to be made."""
    path = place / "chat.db"
    permit(place, 0o555)
    with not_root(), pytest.raises(StoreUnusable, match=re.escape(str(path))):
        async with open_sqlite_store(path):
            raise AssertionError("it was opened")
    assert [] == os.listdir(place)
    permit(place, 0o777)
    async with open_sqlite_store(path):
        pass
    permit(path, 0o666)
    permit(place, 0o555)
    with not_root(), pytest.raises(StoreUnusable, match=re.escape(str(path))):
        async with open_sqlite_store(path):
            raise AssertionError("it was opened")


async def test_a_missing_or_empty_file_becomes_a_database(place: Path) -> None:
    """The ways in which people begin."""
    (place / "empty.db").touch()
    for name in ("empty.db", "missing.db"):
        async with open_sqlite_store(place / name) as store:
            await store.create_chat("c", Create(messages=()))
        async with open_sqlite_store(place / name) as store:
            assert "c" == (await store.read_chat("c")).id


async def test_a_path_may_have_any_characters(place: Path) -> None:
    """What has a meaning in a URL has none in a path."""
    path = place / "my chats? 100% #1 'é'.db"
    async with open_sqlite_store(path) as store:
        await store.ping()
    assert path.exists()


async def test_many_that_start_at_once_on_a_fresh_file(place: Path) -> None:
    """One makes the tables, the others find them."""

    async def start(number: int) -> None:
        async with open_sqlite_store(place / "chat.db", busy_seconds=30.0) as store:
            await store.create_chat(str(number), Create(messages=()))

    # The first switches the file to its log before the others come: that switch waits in real time.
    async with open_sqlite_store(place / "chat.db"):
        pass
    with closing(sqlite3.connect(place / "chat.db")) as connection:
        connection.execute("PRAGMA user_version = 0")
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if not name.startswith("sqlite_"):
                connection.execute(f"DROP TABLE {name}")
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(start, number)
    async with open_sqlite_store(place / "chat.db") as store:
        assert 6 == len(await store.list_chats())


@pytest.mark.parametrize("end", ["", "-wal"])
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_was_removed_takes_no_messages(place: Path, end: str, replaced: bool) -> None:
    """SQLite would go on with a file that nobody finds again: what was answered with success would be lost."""
    async with open_sqlite_store(place / "chat.db") as store:
        await store.create_chat("c", Create(messages=()))
        await store.ping()
        if replaced:
            (place / "new").touch()
            (place / "new").rename(place / f"chat.db{end}")
        else:
            (place / f"chat.db{end}").unlink()
        for request in (store.create_chat("d", Create(messages=())), store.read_chat("c"), store.heartbeat("w", 0)):
            with pytest.raises(StoreUnusable, match="removed or replaced while in use"):
                await request


async def test_a_file_that_is_locked_while_it_is_opened_is_unavailable(place: Path) -> None:
    """Others that keep it locked are no fault of the file: try again."""
    path = place / "chat.db"
    async with open_sqlite_store(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=re.escape(str(path))):
            async with open_sqlite_store(path, busy_seconds=0.0):
                raise AssertionError("it was opened")
