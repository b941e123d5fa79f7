"""A real pgbouncer in front of a PostgreSQL of the tests, from the system's package.

Must not know: what goes through. Who calls: tests of what poolers do to sessions, by the fixture in tests/conftest.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import psycopg

from tests.postgres_server import PATIENCE_SECONDS, PostgresServer, free_port

PoolMode: TypeAlias = Literal["session", "transaction"]


def find_pgbouncer() -> Path | None:
    """The program; None: it is not installed."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return None if found is None else Path(found)


@contextmanager
def open_pgbouncer(server: PostgresServer, mode: PoolMode, *, sessions: int = 20) -> Iterator[str]:
    """The URL of the server's first database through a pool of so many sessions for each user and database."""
    program = find_pgbouncer()
    assert program is not None
    home = server.home
    port = free_port()
    folder = home.folder / f"pgbouncer-{port}"
    folder.mkdir()
    (folder / "users.txt").write_text(f'"postgres" "{home.password}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host=127.0.0.1 port={server.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {folder}/users.txt
        pool_mode = {mode}
        default_pool_size = {sessions}
        max_client_conn = 500
        """.replace("        ", "")
    )
    home.hand_over(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, folder / "pgbouncer.ini"], stdout=log, stderr=log, start_new_session=True, **home.how()
        )
    home.tell_guard(f"+{process.pid}")
    try:
        url = server.url().replace(f":{server.port}/", f":{port}/")
        _wait_until_ready(url, process, folder / "log")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
        home.tell_guard(f"-{process.pid}")


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            try:
                process.wait(0.01)  # the pause between two tries
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"pgbouncer has ended: {log.read_text()}") from None
        return
