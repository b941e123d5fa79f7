"""A run of the check with something beside it that the command does not know: outages of the database, deploys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import httpx
import trio
from rich.console import Console

from relaytrio.cli._check_conduct import Conductor
from relaytrio.cli._check_plan import CheckOptions, make_plan
from relaytrio.cli._check_records import PartSeen, RunRecord
from relaytrio.cli._check_report import Progress
from relaytrio.cli._cluster import ReplicaSpec, open_cluster
from relaytrio.stores._open import parse_url


async def run_beside(
    options: CheckOptions, beside: Callable[[Conductor], Awaitable[None]], *, cuts: bool = True
) -> RunRecord:
    """What was written down. Without `cuts`, no viewer's socket is cut but by what happens."""
    plan = await trio.to_thread.run_sync(make_plan, options)
    if not cuts:
        plan = attrs.evolve(plan, turns=tuple(attrs.evolve(turn, cuts=()) for turn in plan.turns))
    specs = [ReplicaSpec(number=number) for number in range(1, options.replicas + 1)]
    serve_options = ["--pace", repr(options.pace), "--seed", str(options.seed), "--stamp-times"]
    conductor = None
    with trio.move_on_after(plan.seconds) as scope, Progress(Console(quiet=True)) as progress:
        async with (
            open_cluster(specs, store_url=options.store, serve_options=serve_options, grace_seconds=3.0) as cluster,
            httpx.AsyncClient(trust_env=False, timeout=10.0) as http,
        ):
            place = parse_url(cluster.store_url)
            assert place is not None
            conductor = Conductor(plan, cluster, place, http, progress=progress, beside=beside)
            await conductor.run()
    assert conductor is not None, "the cluster was not ready"
    return conductor.record(out_of_time=scope.cancelled_caught)


def parts_of(run: RunRecord) -> list[list[PartSeen]]:
    """The parts that each viewer has had, in order."""
    return [[seen for seen in viewer.seen if isinstance(seen, PartSeen)] for viewer in run.viewers]
