"""What a replica costs whose 10,000 viewers watch 10,000 chats in which nothing happens: its CPU, its queries and its
connections, and the CPU of the database's server. A worker looks for chats too, as in any replica.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import msgspec
import trio
from rich.progress import track
from rich.table import Table

from .places import ROUNDS, Place, console, program
from .usage import WATCHED, Used

ROUND_SECONDS = 10.0
"""One poll, two heartbeats, ten looks of the worker."""


@attrs.define
class Replica:
    """One that runs as a process of its own."""

    place: Place
    process: subprocess.Popen[str]
    shares: list[float] = attrs.field(factory=list)
    server_shares: list[float] = attrs.field(factory=list)
    rates: list[float] = attrs.field(factory=list)
    connections: int = 0
    _before: tuple[Used, float] | None = None

    def look(self) -> None:
        """The end of a round, and the beginning of the next."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        used, server = msgspec.json.decode(self.line(), type=Used), _server_cpu_seconds(self.place)
        if self._before is not None:
            before, server_before = self._before
            seconds = used.seconds - before.seconds
            self.shares.append((used.cpu_seconds - before.cpu_seconds) / seconds)
            self.server_shares.append((server - server_before) / seconds)
            self.rates.append((used.queries - before.queries) / seconds)
        self.connections = _connections(self.place, self.process.pid)
        self._before = used, server

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def _replica(place: Place) -> Iterator[Replica]:
    command, pipe = program("watcher", place.url), subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Replica(place, process)
        finally:
            process.kill()


def _connections(place: Place, pid: int) -> int:
    """To the server, as it counts them; to a file, as the process has it open."""
    if place.server is not None:
        return place.server_connections() - 1  # but for the one that asks
    path = place.url.removeprefix("sqlite:///").partition("?")[0]
    return [os.readlink(end) for end in Path(f"/proc/{pid}/fd").iterdir()].count(path)


def _server_cpu_seconds(place: Place) -> float:
    """Of the server and all its children, those that have ended too."""
    if place.server is None:
        return 0.0
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if path.parent.name == str(place.server.pid):
            ticks += sum(map(int, fields[11:15]))
        elif fields[1] == str(place.server.pid):
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


async def measure(places: Sequence[Place]) -> Table:
    """All stores at once: each has its own process, which has nothing to do."""
    with ExitStack() as stack:
        replicas = []
        for place in track(places, f"subscribing to {WATCHED:,} chats", console=console, transient=True):
            replica = stack.enter_context(_replica(place))
            assert "ready" == await trio.to_thread.run_sync(replica.line)
            replicas.append(replica)
        for replica in replicas:
            replica.look()
        for _ in track(range(ROUNDS), "idle", console=console, transient=True):
            await trio.sleep(ROUND_SECONDS)
            for replica in replicas:
                replica.look()
    table = Table("store", "CPU, %", "from", "to", "server's CPU, %", "queries a second", "connections")
    table.title = f"{WATCHED:,} idle chats watched; CPU of one core"
    for replica in replicas:
        shares = (statistics.median(replica.shares), min(replica.shares), max(replica.shares))
        server = statistics.median(replica.server_shares)
        table.add_row(
            replica.place.name,
            *(f"{100 * share:.2f}" for share in shares),
            f"{100 * server:.2f}" if replica.place.server is not None else "",
            f"{statistics.median(replica.rates):.1f}",
            str(replica.connections),
        )
    return table
