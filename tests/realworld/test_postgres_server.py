"""The PostgreSQL of the tests: it does what other tests ask of it, and leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.realworld

PROGRAM = """
import sys
from tests.postgres_server import find_binaries, open_postgres_home

with open_postgres_home(find_binaries()) as home:
    server = home.server("one")
    server.start()
    print(home.folder, server.url(), flush=True)
    sys.stdin.read()
"""


def value(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def change(url: str, command: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(command.encode())


def processes_in(folder: str) -> list[str]:
    """The command lines that name the folder, where the system tells; one that only waits to be reaped has none."""
    lines = [_command_line(entry) for entry in Path("/proc").glob("[0-9]*/cmdline")]
    return [line for line in lines if folder in line]


def _command_line(entry: Path) -> str:
    try:
        return entry.read_bytes().decode(errors="replace")
    except OSError:
        return ""  # it has just ended


def test_a_database_of_its_own(postgres_url: str) -> None:
    """It is empty, and its user may make what it likes."""
    assert 0 == value(postgres_url, "SELECT count(*) FROM pg_stat_user_tables")
    change(postgres_url, "CREATE SCHEMA s; CREATE TABLE s.t AS SELECT 7 AS n")
    assert 7 == value(postgres_url, "SELECT n FROM s.t")


def test_stopped_killed_and_restarted(postgres_server: PostgresServer) -> None:
    """What was committed is there again after each, at the same address."""
    url = postgres_server.url()
    change(url, "CREATE TABLE t AS SELECT 1 AS n")
    for end in (postgres_server.stop, postgres_server.kill, lambda: postgres_server.stop("immediate")):
        end()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        postgres_server.start()
        assert 1 == value(url, "SELECT n FROM t")


def test_read_only_and_back(postgres_server: PostgresServer) -> None:
    """New connections cannot write, until they can."""
    postgres_server.set_read_only(True)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        change(postgres_server.url(), "CREATE TABLE t AS SELECT 1 AS n")
    postgres_server.set_read_only(False)
    change(postgres_server.url(), "CREATE TABLE t AS SELECT 1 AS n")


def test_a_standby_that_is_promoted_lacks_the_last(postgres_server: PostgresServer) -> None:
    """It has what it received, nothing of what came after it stopped following, and can be written to."""
    url = postgres_server.url()
    change(url, "CREATE TABLE t AS SELECT 1 AS n")
    standby = postgres_server.standby("standby")
    standby.stop_following()
    change(url, "INSERT INTO t VALUES (2)")
    postgres_server.kill()
    standby.promote()
    assert 1 == value(standby.url(), "SELECT max(n) FROM t")
    change(standby.url(), "INSERT INTO t VALUES (3)")
    standby.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("postgres_home")  # there are binaries
def test_nothing_is_left_of_a_killed_run(number: signal.Signals) -> None:
    """Server and folder go, whatever ended the process that had them."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        folder, url = process.stdout.readline().split()
        assert 1 == value(url, "SELECT 1")
        process.send_signal(number)
        process.wait(30)
        while Path(folder).exists() or processes_in(folder):
            time.sleep(0.01)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
