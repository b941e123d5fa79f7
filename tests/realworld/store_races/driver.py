"""One of the processes that race: `python -m tests.realworld.store_races.driver NAME` reads a job a line, and answers
each with a line when it is done. Each of its threads runs a loop of its own, with a store and several callers.

Who calls: `playing.py`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from random import Random

import attrs
import msgspec
import trio

from relaytrio.stores import open_store

from .callers import Asker, Caller, Known
from .faults import FAULTS
from .records import Record, write


@attrs.frozen(kw_only=True)
class Job:
    """What a process is told to do."""

    url: str
    chats: tuple[str, ...]
    threads: int
    callers: int
    """In each thread."""
    seconds: float
    least_steps: int
    """Of each caller, however long they take."""
    seed: int
    fault: str | None
    """Of `FAULTS`: how the store is broken meanwhile."""
    path: str
    """Where the records go."""


async def race(job: Job, name: str, records: list[Record]) -> None:
    """All callers of one loop, until the time is over."""
    known: defaultdict[str, Known] = defaultdict(Known)

    async def call(number: int) -> None:
        random = Random(f"{job.seed} {name} {number}")
        caller = Caller(Asker(f"{name}.{number}", store, records.append), random, known)
        steps = 0
        while time.monotonic() < end or steps < job.least_steps:
            await caller.step(job.chats)
            steps += 1

    async with open_store(job.url) as store:
        end = time.monotonic() + job.seconds
        async with trio.open_nursery() as nursery:
            for number in range(job.callers):
                nursery.start_soon(call, number)


def do(job: Job, name: str) -> None:
    """One job. A thread that fails ends the process."""
    records: list[Record] = []
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            trio.run(race, job, f"{name}{number}", records)
        except BaseException as error:
            failed.append(error)
            raise

    with ExitStack() as stack:
        if job.fault is not None:
            stack.enter_context(FAULTS[job.fault].planted())
        threads = [threading.Thread(target=run, args=[number]) for number in range(job.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise SystemExit(1)
    write(Path(job.path), records)


def main(name: str) -> None:
    """Jobs, until there are no more."""
    print("ready", flush=True)
    for line in sys.stdin:
        do(msgspec.json.decode(line, type=Job), name)
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
