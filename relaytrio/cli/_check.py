"""`relaytrio check`: a cluster of this version on this machine, made to suffer, and what its viewers had of it.

It decides the order: plan, cluster, run, verdict; and that it ends in time and leaves nothing behind, whatever the
cluster does. The plan is `_check_plan.py`, the run `_check_conduct.py`, the verdict `_check_judge.py`.
"""

from __future__ import annotations

import json as json_module
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
import trio
from cyclopts import Parameter
from rich.console import Console

from ..stores._open import parse_url
from ..stores._postgres_place import PostgresPlace
from ._check_conduct import Conductor
from ._check_judge import judge
from ._check_plan import CheckOptions, CheckPlan, Kill, make_plan
from ._check_records import RunRecord
from ._check_report import Progress, report_json, report_lines
from ._cluster import Cluster, ReplicaSpec, open_cluster
from ._options import read_settings
from ._output import Output
from ._own_schema import open_own_schema
from ._signals import status_after, two_signals
from ._status import HELD, NOT_DONE, NotDone

GRACE_SECONDS = 3.0
"""At the end no answer is running: this is for what a replica does anyway."""
STORE_HELP = (
    "URL of a database; else a SQLite file that goes at the end. In PostgreSQL the check makes a schema of its own and "
    "drops it; from a SQLite file it removes its chat."
)


async def check(
    *,
    replicas: Annotated[int, Parameter(help="How many replicas.")] = 3,
    viewers: Annotated[int, Parameter(help="How many viewers, spread over the replicas.")] = 6,
    turns: Annotated[int, Parameter(help="How many questions, one after the other.")] = 5,
    seed: Annotated[int, Parameter(help="Another number: other questions, cuts and places.")] = 0,
    pace: Annotated[float, Parameter(help="Tokens a second of an answer.")] = 200.0,
    seconds: Annotated[float | None, Parameter(help="Upper bound of the whole run.")] = None,
    kill: Annotated[Kill | None, Parameter(help="Kill a replica that only serves, or whichever generates.")] = None,
    kill_every: Annotated[float | None, Parameter(help="Seconds between kills.  [default: 5]")] = None,
    json: Annotated[bool, Parameter(help="The result as JSON on stdout.", negative="")] = False,
    store: Annotated[str | None, Parameter(help=STORE_HELP)] = None,
    own_listener: Annotated[bool, Parameter(help="Viewers have a listener of their own.", negative="")] = False,
    settings: Annotated[str, Parameter(help="Settings of each replica, as JSON, as those of serve.")] = "{}",
) -> int:
    """Start replicas, cut viewers' sockets in the middle of answers, and compare what they had with what was made.

    Exit status: 0 it held; 1 an invariant broke; 2 usage; 3 it could not be carried out, or proves nothing.
    """
    options = CheckOptions(
        replicas=replicas,
        viewers=viewers,
        turns=turns,
        seed=seed,
        pace=pace,
        seconds=seconds,
        kill=kill,
        kill_every=kill_every,
        store=store,
        own_listener=own_listener,
        settings=settings,
    )
    read_settings(settings)
    run = _Check(Output(), json)
    async with trio.open_nursery() as nursery:
        await nursery.start(two_signals, run.ask, run.insist)
        with run.scope:
            await run.carry_out(options)
        nursery.cancel_scope.cancel()
    if run.asked is not None:
        return _cut_short(run.asked)
    return run.status


class _Check:
    """One check: how far it is, and who asked it to end."""

    def __init__(self, output: Output, json: bool) -> None:
        self.scope = trio.CancelScope()
        self.status = NOT_DONE
        self.asked: int | None = None
        """The signal with which somebody asked."""
        self._output = output
        self._json = json
        self._cluster: Cluster | None = None

    def ask(self, number: int) -> None:
        """Somebody wants it to end: nobody waits for an orderly end of the replicas then."""
        self.asked = number
        self.scope.cancel()
        self.insist()

    def insist(self) -> None:
        """Somebody wants it to end now."""
        if self._cluster is not None:
            self._cluster.hurry()

    async def carry_out(self, options: CheckOptions) -> None:
        """All of it. Raises `UsageFault`, `NotDone` and others that have an exit status."""
        plan = await trio.to_thread.run_sync(make_plan, options, abandon_on_cancel=True)
        with Progress(Console(stderr=True)) as progress:
            progress.show("starting the replicas")
            record = await self._run(plan, progress)
        verdict = judge(record)
        self.status = verdict.status
        if self._json:
            self._output.line(json_module.dumps(report_json(verdict, record, plan)))
        else:
            for line in report_lines(verdict, record, plan):
                self._output.line(line)

    async def _run(self, plan: CheckPlan, progress: Progress) -> RunRecord:
        """Carry out the plan within its time, and give what was written down."""
        conductor = None
        async with _store_url(plan) as store_url:
            with trio.move_on_after(plan.seconds) as scope:
                async with (
                    open_cluster(
                        _specs(plan.options),
                        store_url=store_url,
                        serve_options=_serve_options(plan.options),
                        grace_seconds=GRACE_SECONDS,
                    ) as self._cluster,
                    httpx.AsyncClient(trust_env=False, timeout=10.0) as http,
                ):
                    place = parse_url(self._cluster.store_url)
                    assert place is not None, "replicas cannot share a memory store"
                    conductor = Conductor(plan, self._cluster, place, http, progress=progress)
                    await conductor.run()
        if conductor is None:
            raise NotDone(f"the cluster was not ready after {plan.seconds:g} s")
        return conductor.record(out_of_time=scope.cancelled_caught)


def _cut_short(number: int) -> int:
    """The exit status after a signal: what was not done proves nothing, however orderly it ended."""
    status = status_after(number)
    if status == HELD:
        raise NotDone("a signal ended it before it was done")
    return status


def _specs(options: CheckOptions) -> list[ReplicaSpec]:
    """Where viewers' replicas are killed, the last one only serves."""
    numbers = range(1, options.replicas + 1)
    return [
        ReplicaSpec(
            number=number,
            worker=options.kill != "viewer" or number < numbers[-1],
            own_listener=options.own_listener,
        )
        for number in numbers
    ]


def _serve_options(options: CheckOptions) -> list[str]:
    pace = ["--pace", repr(options.pace), "--seed", str(options.seed), "--stamp-times"]
    return [*pace, "--settings", options.settings]


@asynccontextmanager
async def _store_url(plan: CheckPlan) -> AsyncIterator[str | None]:
    """Where the cluster keeps its chats; None: in a file of its own."""
    store = plan.options.store
    if store is None or not isinstance(plan.place, PostgresPlace):
        yield store
        return
    async with open_own_schema(store, purpose="check") as own:
        yield own
