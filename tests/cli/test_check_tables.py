"""The look into the store's tables finds text of a running answer wherever it stands, and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relaytrio.cli._check_tables import look, needles
from relaytrio.stores._open import SqlitePlace

NEEDLE = "the quick brown fox"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A store's file, with the chat `c` running, in the middle of a turn of version 7."""
    path = tmp_path / "a store.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE chats (id TEXT, status TEXT, history_version INTEGER)")
        database.execute("CREATE TABLE other (number INTEGER, note)")
        database.execute("INSERT INTO chats VALUES ('c', 'running', 7)")
        database.commit()
        yield path


def put(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement, values)
        database.commit()


def test_nothing_there(file: Path) -> None:
    """A store without text of the answer is clean, and the look counts."""
    put(file, "INSERT INTO other VALUES (1, 'the quick')")
    found = look(SqlitePlace(str(file), "NORMAL"), "c", 3, 7, [NEEDLE])
    assert found is not None
    assert (found.turn, found.needles, list(found.found)) == (3, 1, [])


@pytest.mark.parametrize("value", [f"... {NEEDLE} ...", f"x{NEEDLE}".encode(), b"\xff" + NEEDLE.encode()])
def test_found_in_any_column(file: Path, value: object) -> None:
    """Text is found in any table and any column, whatever its declared type, in blobs too."""
    put(file, "INSERT INTO other VALUES (1, ?)", value)
    put(file, "INSERT INTO other VALUES (?, 'x')", value)
    found = look(SqlitePlace(str(file), "NORMAL"), "c", 3, 7, ["absent", NEEDLE])
    assert found is not None
    assert list(found.found) == ["other.note", "other.number"]


@pytest.mark.parametrize("statement", ["status = 'waiting'", "history_version = 9", "id = 'd'"])
def test_an_answer_that_is_over_is_not_looked_at(file: Path, statement: str) -> None:
    """Once the answer has ended its text belongs in the store: such a look does not count, and finds nothing."""
    put(file, f"UPDATE chats SET {statement}")
    put(file, "INSERT INTO other VALUES (1, ?)", NEEDLE)
    assert look(SqlitePlace(str(file), "NORMAL"), "c", 3, 7, [NEEDLE]) is None


def test_the_file_is_not_made(tmp_path: Path) -> None:
    """A file that is not there is an error, not a new empty store."""
    with pytest.raises(sqlite3.OperationalError):
        look(SqlitePlace(str(tmp_path / "none.db"), "NORMAL"), "c", 1, 1, [NEEDLE])
    assert [] == list(tmp_path.iterdir())


def test_needles() -> None:
    """Long tokens that no earlier text holds, as they are and as JSON has them."""
    tokens = [" short", " in an earlier answer", ' a "quoted" piece', " in an earlier answer"]
    assert set(needles(tokens, ["stood in an earlier answer.", "name"])) == {
        'a "quoted" piece',
        'a \\"quoted\\" piece',
    }
    assert needles(["plain and long enough"], []) == ["plain and long enough"]
    assert needles([], ["x"]) == []
