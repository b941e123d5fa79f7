"""`relaytrio demo`: a cluster on this machine with a page on each replica, until somebody ends it.

It decides what is started and said; processes and their end are `_cluster.py`. Opens nothing outside the machine.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

import trio
from cyclopts import Parameter

from ..stores._open import parse_url
from ..stores._postgres_place import PostgresPlace
from ._cluster import Cluster, ClusterFailed, ReplicaProcess, ReplicaSpec, open_cluster
from ._output import Output
from ._own_schema import names_schema, open_own_schema
from ._signals import status_after, two_signals
from ._status import HELD, UsageFault

GRACE_SECONDS = 3.0
"""At the end nobody waits for answers: the chats go with the folder."""
RESTART_SECONDS = 1.0
"""How long a replica that died stays away: long enough to see the others go on without it."""
MOST_REPLICAS = 50
STORE_HELP = (
    "URL of a database; else a SQLite file that goes at the end. In PostgreSQL the demo makes a schema of its own and "
    "drops it, unless the URL names one with ?schema=, which stays."
)


async def demo(
    *,
    replicas: Annotated[int, Parameter(help="How many replicas.")] = 3,
    port: Annotated[int, Parameter(help="Port of the first; the others follow. 0: free ones.")] = 0,
    store: Annotated[str | None, Parameter(help=STORE_HELP)] = None,
    pace: Annotated[float, Parameter(help="Tokens a second of an answer; 0: as fast as possible.")] = 40.0,
    browser: Annotated[bool, Parameter(help="Open the page in a browser, where there is a display.")] = True,
) -> int:
    """Run several replicas on this machine, with a web page on each, until Ctrl-C."""
    specs = _specs(replicas, port, store)
    run = _Demo(Output())
    async with trio.open_nursery() as nursery:
        await nursery.start(two_signals, run.ask, run.insist)
        with run.scope:
            await run.serve(specs, store, pace, browser)
        nursery.cancel_scope.cancel()
    return run.status


def _specs(replicas: int, port: int, store: str | None) -> list[ReplicaSpec]:
    if not 1 <= replicas <= MOST_REPLICAS:
        raise UsageFault(f"--replicas is 1 to {MOST_REPLICAS}, not {replicas}")
    if not (port == 0 or 1 <= port <= 65536 - replicas):
        raise UsageFault(f"--port is 0, or leaves room for {replicas} ports up to 65535, not {port}")
    if store is not None and store.startswith("memory:"):
        raise UsageFault("--store: replicas are processes of their own and cannot share a memory store")
    return [ReplicaSpec(number=number, port=port and port + number - 1) for number in range(1, replicas + 1)]


class _Demo:
    """One demo: the cluster, and who asked it to end."""

    def __init__(self, output: Output) -> None:
        self.scope = trio.CancelScope()
        self.status = HELD
        self._output = output
        self._cluster: Cluster | None = None

    def ask(self, number: int) -> None:
        """Somebody wants it to end."""
        self.status = status_after(number)
        self.scope.cancel()
        self._output.remark("ending the replicas")

    def insist(self) -> None:
        """Somebody wants it to end now."""
        if self._cluster is not None:
            self._cluster.hurry()

    async def serve(self, specs: list[ReplicaSpec], store: str | None, pace: float, browser: bool) -> None:
        """Run the cluster until cancelled."""
        options = ["--page", "--pace", str(pace)]
        # Before the cluster is there, cancelling ends it without grace: there is nothing yet to be handed over.
        async with (
            _store_url(store) as store_url,
            open_cluster(
                specs, store_url=store_url, serve_options=options, grace_seconds=GRACE_SECONDS
            ) as self._cluster,
        ):
            self._announce(self._cluster)
            async with trio.open_nursery() as nursery:
                for replica in self._cluster.replicas:
                    nursery.start_soon(self._keep_running, replica)
                if browser and has_display(sys.platform, os.environ):
                    nursery.start_soon(_open_browser, self._cluster.urls[0])

    def _announce(self, cluster: Cluster) -> None:
        where = cluster.store_url if not cluster.store_url.startswith("postgres") else "one PostgreSQL database"
        self._output.line(f"{len(cluster.replicas)} replicas are running; they share {where}")
        for replica in cluster.replicas:
            self._output.line(f"replica {replica.number}: {replica.url}/ (process {replica.pid})")
        self._output.line("Open a chat on one and follow it on another; kill any of them. Ctrl-C ends everything.")

    async def _keep_running(self, replica: ReplicaProcess) -> None:
        """Start the replica again whenever it dies."""
        while True:
            status = await replica.ended()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            self._output.remark(f"replica {replica.number} {how}; it is started again in {RESTART_SECONDS:g} s")
            await trio.sleep(RESTART_SECONDS)
            try:
                await replica.start_again()
            except ClusterFailed as error:
                self._output.remark(str(error), "red")
            else:
                self._output.remark(f"replica {replica.number} is back (process {replica.pid})")


@asynccontextmanager
async def _store_url(store: str | None) -> AsyncIterator[str | None]:
    """Where the cluster keeps its chats; None: in a file of its own."""
    if store is None or not isinstance(parse_url(store), PostgresPlace) or names_schema(store):
        yield store
        return
    async with open_own_schema(store, purpose="demo") as own:
        yield own


async def _open_browser(url: str) -> None:
    """A browser that takes its time, or none at all, disturbs nobody."""
    await trio.to_thread.run_sync(webbrowser.open, url, abandon_on_cancel=True)


def has_display(platform: str, environ: Mapping[str, str]) -> bool:
    """Whether a browser would have a window to open: without one, a text browser might take the terminal."""
    return platform == "darwin" or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))
