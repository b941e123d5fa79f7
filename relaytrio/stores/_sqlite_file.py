"""Opens a database file, brings its tables up to date, and says in this package's words what went wrong with it.

Whatever makes a file unusable is found before anything is written: another program's database, a newer schema, a file
that is none, one that cannot be written. A missing or empty file is made a database, a missing directory is not made.
Must not know: what the rows mean. Who calls: `sqlite.py` and `pubsub/sqlite.py`, always in a thread.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from .._errors import StoreUnavailable, StoreUnusable
from . import _sqlite_schema
from ._sql_schema import SchemaState, state_after, steps_to_take
from ._sqlite_schema import APPLICATION_ID

Synchronous = Literal["NORMAL", "FULL"]
_WAL_PAUSE_SECONDS = 0.01
_FOR_NOW = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""What another try may get past: others hold the file, or the machine is short of something."""
_FOR_NOW_AT_OPENING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
"""A file that cannot even be opened for another reason is a person's to look at."""


def open_file(path: Path, *, synchronous: Synchronous, busy_seconds: float) -> sqlite3.Connection:
    """A connection to a database that is ready for use, made if it is not there.

    Raises `StoreUnusable`, and `StoreUnavailable` when other processes keep the file locked for `busy_seconds`.
    """
    _check_place(path)
    with translated(path, for_now=_FOR_NOW_AT_OPENING):
        connection = _connect(path, create=not path.exists(), busy_seconds=busy_seconds)
        try:
            with transaction(connection, "DEFERRED"):
                steps_to_take(str(path), _state(path, connection), _sqlite_schema.STEPS)
            _switch_to_wal(path, connection, busy_seconds)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            _migrate(path, connection)
        except BaseException:
            connection.close()
            raise
    return connection


def open_reader(path: Path, *, busy_seconds: float = 0.0) -> sqlite3.Connection:
    """A connection for reads of a database that a store has opened before. Readers hardly ever wait for a lock."""
    with translated(path):
        connection = _connect(path, create=False, busy_seconds=busy_seconds)
        try:
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
    return connection


class Standing:
    """Whether a database that is open is still the one at its path. SQLite does not look: in a file that was removed
    or replaced it goes on reading and writing what nobody will see again."""

    def __init__(self, path: Path) -> None:
        """For a database that was just opened; its write-ahead log stays for as long as it is."""
        self._path = path
        self._files = (str(path), f"{path}-wal")
        self._opened = self._found()

    def check(self) -> None:
        """Some microseconds. Raises `StoreUnusable`."""
        if self._found() != self._opened:
            raise StoreUnusable(f"the database {self._path}, or its -wal file, was removed or replaced while in use")

    def _found(self) -> list[tuple[int, int]]:
        try:
            return [(status.st_dev, status.st_ino) for status in map(os.stat, self._files)]
        except FileNotFoundError:
            return []


@contextmanager
def transaction(connection: sqlite3.Connection, kind: Literal["DEFERRED", "IMMEDIATE"]) -> Iterator[None]:
    """All of the body, or nothing. DEFERRED reads one state of the database; IMMEDIATE locks it for writing first."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def savepoint(connection: sqlite3.Connection) -> Iterator[None]:
    """The same within a transaction: all of the body, or nothing of it, and the transaction goes on.

    Some faults (a full disk, say) take the whole transaction back; then there is nothing to go back to.
    """
    connection.execute("SAVEPOINT work")
    try:
        yield
        connection.execute("RELEASE work")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO work")
            connection.execute("RELEASE work")
        raise


@contextmanager
def translated(path: Path, *, for_now: frozenset[int] = _FOR_NOW) -> Iterator[None]:
    """Errors of SQLite leave as `StoreUnavailable` (try again) or `StoreUnusable` (a person has to act).

    A violated constraint or a wrong call is a fault of this package and leaves as it is.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in for_now:
            raise StoreUnavailable(f"the database {path} cannot be used for now: {error}") from error
        raise StoreUnusable(f"the database {path} cannot be used: {error}") from error
    except msgspec.MsgspecError as error:
        raise StoreUnusable(f"the database {path} holds what was never written by this package: {error}") from error


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise StoreUnusable(f"the database {path} cannot be made: {path.parent} is no directory")
    if path.is_dir():
        raise StoreUnusable(f"the database {path} cannot be opened: it is a directory")
    # SQLite finds it out too, but leaves files beside it.
    if path.exists() and not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise StoreUnusable(f"the database {path} cannot be written")


def _connect(path: Path, *, create: bool, busy_seconds: float) -> sqlite3.Connection:
    """Used by one thread at a time, not by one thread: trio's threads come and go."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode={'rwc' if create else 'rw'}",
        uri=True,
        isolation_level=None,
        timeout=busy_seconds,
        check_same_thread=False,
    )


def _number(connection: sqlite3.Connection, statement: str) -> int:
    (number,) = connection.execute(statement).fetchone()
    return int(number)


def _state(path: Path, connection: sqlite3.Connection) -> SchemaState | None:
    """What the file says of its schema; None if it has no tables yet."""
    owner = _number(connection, "PRAGMA application_id")
    version = _number(connection, "PRAGMA user_version")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if owner != APPLICATION_ID and not (not tables and owner == version == 0):
        raise StoreUnusable(f"the database {path} belongs to another program")
    if version == 0:
        return None
    if "compatibility" not in tables:
        return SchemaState(version, compatible_since=version)
    return SchemaState(version, _number(connection, "SELECT since FROM compatibility"))


def _switch_to_wal(path: Path, connection: sqlite3.Connection, busy_seconds: float) -> None:
    """SQLite never waits for a lock in this one statement, whatever the connection's timeout; so it is done here."""
    give_up_at = time.monotonic() + busy_seconds
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up_at:
                raise
            time.sleep(_WAL_PAUSE_SECONDS)
        else:
            break
    if mode != "wal":
        raise StoreUnusable(f"the database {path} is where SQLite's write-ahead log does not work")


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    """The steps that are missing, in one transaction: of several processes that start at once, one takes them.

    Writes to the header in any case, and so fails here, not in the middle of somebody's request, if it cannot write.
    """
    with transaction(connection, "IMMEDIATE"):
        state = _state(path, connection)
        taken = steps_to_take(str(path), state, _sqlite_schema.STEPS)
        for step in taken:
            for statement in step.statements:
                connection.execute(statement)
        _write(connection, state_after(state, taken))


def _write(connection: sqlite3.Connection, state: SchemaState | None) -> None:
    assert state is not None
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {state.version}")
    connection.execute(
        "INSERT INTO compatibility (id, since) VALUES (1, :since) ON CONFLICT (id) DO UPDATE SET since = :since",
        {"since": state.compatible_since},
    )
