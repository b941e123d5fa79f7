"""A cluster of real replica processes on this machine: started, killed, started again, and put away for certain.

Each replica is `python -m relaytrio serve` in a session of its own (the terminal's Ctrl-C reaches only the parent), in
one temporary folder with the secret, the logs and, unless told otherwise, the SQLite file. Nothing is left on any way
out: the processes are ended and reaped, the folder is removed. If the parent itself is killed, each replica sees the
end of a pipe that only the parent held open, and ends (`--exit-with-stdin`).

Must not know: what is asked of the replicas. Who calls: `_demo.py`, the check.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio

from ._options import STORE_VARIABLE
from ._ports import HOST, choose_ports
from ._status import NotDone

START_SECONDS = 60.0
"""How long a replica may take until it is ready: far more than it takes, on a machine that does much else."""
LOOK_SECONDS = 0.05
"""How often a starting replica is asked whether it is ready; it has no other way to tell us over a whole restart."""
GRACE_SECONDS = 30.0
"""How long a replica that was asked to end may take: its own grace for answers, and some."""
REAP_SECONDS = 10.0
"""How long the kernel may take to end a killed process."""
LOG_TAIL_BYTES = 2000


class ClusterFailed(NotDone):
    """A replica process ended, or was not ready in time; the text holds the end of its log."""


@attrs.frozen(kw_only=True)
class ReplicaSpec:
    """What one replica is to be."""

    number: int
    worker: bool = True
    """False: it serves viewers and generates nothing."""
    port: int = 0
    """0: a free port."""
    own_listener: bool = False
    """Viewers and peers have a listener for themselves, on another free port."""


class ReplicaProcess:
    """One replica: running, or killed. Made by `open_cluster`."""

    def __init__(
        self,
        spec: ReplicaSpec,
        command: Sequence[str],
        url: str,
        viewers_url: str,
        log: Path,
        lifeline: int,
        http: httpx.AsyncClient,
        environment: Mapping[str, str],
    ) -> None:
        self.spec = spec
        self.number = spec.number
        self.url = url
        """The same after a restart."""
        self.viewers_url = viewers_url
        """Where viewers watch, and peers dial: the same, or their own listener."""
        self.replica_id = ""
        """New at each start."""
        self.log = log
        self._command = command
        self._environment = {**os.environ, **environment}
        self._lifeline = lifeline
        self._http = http
        self._process: trio.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None while it does not run."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def ended(self) -> int:
        """Wait for the end of the process that runs now, and give its exit status (negative: the signal)."""
        if self._process is None:
            await trio.lowlevel.checkpoint()
            return 0
        return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until nothing of it is left."""
        self.signal(signal.SIGKILL)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REAP_SECONDS):
            await self.ended()

    async def terminate(self, *, grace_seconds: float = GRACE_SECONDS) -> int:
        """SIGTERM, wait for its end, and give the exit status; killed if it takes longer."""
        self.signal(signal.SIGTERM)
        with trio.move_on_after(grace_seconds):
            return await self.ended()
        await self.kill()
        return await self.ended()

    def signal(self, number: int) -> None:
        """Send a signal if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def start_again(self) -> None:
        """Start it on the same port; returns when it is ready. Raises `ClusterFailed`; does nothing if it runs."""
        if self.pid is None:
            await self.spawn()
        await self.until_ready()

    async def spawn(self) -> None:
        """Start the process, without waiting until it is ready."""
        with _appending(self.log) as log:
            self._process = await trio.lowlevel.open_process(
                self._command,
                stdin=self._lifeline,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
            )

    async def until_ready(self) -> None:
        """Wait until it answers requests. Raises `ClusterFailed`, after killing it if it took too long."""
        with trio.move_on_after(START_SECONDS):
            while not await self._is_ready():
                if self.pid is None:
                    raise ClusterFailed(f"replica {self.number} ended at once: {self.log_tail()}")
                await trio.sleep(LOOK_SECONDS)
            self.replica_id = str((await self.health())["replica_id"])
            return
        await self.kill()
        raise ClusterFailed(f"replica {self.number} was not ready after {START_SECONDS:g} s: {self.log_tail()}")

    async def health(self) -> dict[str, Any]:
        """What it says of itself (`GET /healthz`). Raises `httpx.HTTPError`."""
        answer = await self._http.get(f"{self.url}/healthz")
        answer.raise_for_status()
        health: dict[str, Any] = answer.json()
        return health

    def log_tail(self) -> str:
        """The last that it wrote."""
        try:
            return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip() or "it wrote nothing"
        except OSError:
            return "it has no log"

    async def _is_ready(self) -> bool:
        try:
            return (await self._http.get(f"{self.url}/readyz")).status_code == 200
        except httpx.HTTPError:
            return False


class Cluster:
    """Replica processes that share a store. Made by `open_cluster`."""

    def __init__(self, folder: Path, store_url: str) -> None:
        self.folder = folder
        """Temporary, for this user's eyes only."""
        self.store_url = store_url
        self.replicas: list[ReplicaProcess] = []
        self._grace = trio.CancelScope(shield=True)

    @property
    def urls(self) -> list[str]:
        """Where the replicas are, whether they run or not."""
        return [replica.url for replica in self.replicas]

    def hurry(self) -> None:
        """Leave out, at the end, the time in which replicas may end by themselves."""
        self._grace.cancel()

    async def _start(self) -> None:
        for replica in self.replicas:
            await replica.spawn()
        for replica in self.replicas:
            await replica.until_ready()

    async def _end(self, grace_seconds: float) -> None:
        """End all processes: asked first, then killed. Only its own deadlines end it, not a cancellation."""
        for replica in self.replicas:
            replica.signal(signal.SIGTERM)
        with self._grace:
            self._grace.deadline = trio.current_time() + grace_seconds
            for replica in self.replicas:
                await replica.ended()
        for replica in self.replicas:
            await replica.kill()


@asynccontextmanager
async def open_cluster(
    specs: Sequence[ReplicaSpec],
    *,
    store_url: str | None = None,
    serve_options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    log_dir: Path | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> AsyncIterator[Cluster]:
    """Replica processes on loopback, all ready; ended and cleared away when the context is left, however it is left.

    `store_url` is a database that they share, else a SQLite file in the folder. `serve_options` go to each of them, and
    `environment` is added to what they have of this process. Logs are `replica-N.log` in `log_dir`, else in the folder,
    which is removed. At the end they have `grace_seconds` to hand their chats over. Raises `ClusterFailed`, and
    `NotDone` where a port is taken.
    """
    ports = choose_ports([spec.port for spec in specs] + [0 for spec in specs if spec.own_listener])
    viewers_ports = iter(ports[len(specs) :])
    with _temporary_folder() as folder, _lifeline() as lifeline:
        cluster = Cluster(folder, store_url or f"sqlite:///{folder / 'chat.db'}")
        secret = _secret_file(folder)
        # By the environment: the command line is everybody's to read on this machine, and the URL may hold a password.
        environment = {**(environment or {}), STORE_VARIABLE: cluster.store_url}
        # Straight to loopback: no proxy of the environment has a part in it.
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as http:
            for spec, port in zip(specs, ports, strict=False):
                url = f"http://{HOST}:{port}"
                viewers_url = f"http://{HOST}:{next(viewers_ports)}" if spec.own_listener else url
                command = _command(spec, url, viewers_url, secret, serve_options)
                log = (log_dir or folder) / f"replica-{spec.number}.log"
                process = ReplicaProcess(spec, command, url, viewers_url, log, lifeline, http, environment)
                cluster.replicas.append(process)
            try:
                await cluster._start()
                yield cluster
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + grace_seconds + 2 * REAP_SECONDS):
                    await cluster._end(grace_seconds)


def _command(spec: ReplicaSpec, url: str, viewers_url: str, secret: Path, options: Sequence[str]) -> list[str]:
    # `-m` would let files of the folder in which this process happens to stand shadow modules, unless it imports from
    # there itself.
    python = [sys.executable] if sys.path[0] in ("", os.getcwd()) else [sys.executable, "-P"]
    command = [*python, "-m", "relaytrio", "serve"]
    command += ["--listen", url.removeprefix("http://"), "--advertise", viewers_url]
    command += ["--viewers", viewers_url.removeprefix("http://")] if spec.own_listener else []
    command += ["--secret-file", str(secret), "--exit-with-stdin"]
    return [*command, *([] if spec.worker else ["--no-worker"]), *options]


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="relaytrio-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _lifeline() -> Iterator[int]:
    """The end of a pipe for the replicas' stdin. This process alone holds the other end, and the kernel closes it."""
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


def _secret_file(folder: Path) -> Path:
    file = folder / "secret"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secrets.token_urlsafe(32))
    return file


@contextmanager
def _appending(log: Path) -> Iterator[Any]:
    with log.open("ab") as opened:
        yield opened
