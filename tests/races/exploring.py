"""Random histories by seed, explored by two processes: half of them with faults, a third of what happens at a seam, a
tenth over the real trio-websocket, and two thirds over connections that all legs to a peer share.

A fifth is run without anybody at the seams: where somebody is, no row leaves in the step in which it is appended.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext

import attrs

from relaytrio.testing import (
    ClusterViolation,
    HistoryReport,
    Schedule,
    Seam,
    random_history,
    run_history,
    shrink,
    watch_seams,
)
from relaytrio.testing._simulated_legs import LegKind

PROCESSES = 2
AT_SEAMS = 0.35
CHUNK = 50
SHRINK_RUNS = 500


@attrs.define
class Explored:
    """What a number of histories came to."""

    histories: int = 0
    over_websocket: int = 0
    traces: set[int] = attrs.field(factory=set)
    """Fingerprints: of the order of all events."""
    passed: Counter[Seam] = attrs.field(factory=Counter)

    def add(self, other: Explored) -> None:
        """Count these too."""
        self.histories += other.histories
        self.over_websocket += other.over_websocket
        self.traces |= other.traces
        self.passed += other.passed


def legs_of(seed: int) -> LegKind:
    """A tenth over trio-websocket."""
    return "websocket" if seed % 10 == 0 else "memory"


def explore(seed: int) -> HistoryReport:
    """Run the history of a seed; one that fails is shrunk, and told with all that it takes to see it again."""
    history = random_history(seed, faults=seed % 2 == 1 or seed % 20 == 0, at_seams=AT_SEAMS)
    schedule, legs, shared = Schedule.random(seed), legs_of(seed), seed % 3 > 0
    try:
        return run_history(history, schedule, legs=legs, shared_legs=shared)
    except ClusterViolation:
        smaller, order, violation = shrink(
            history,
            schedule,
            lambda history, schedule: run_history(history, schedule, legs=legs, shared_legs=shared),
            most_runs=SHRINK_RUNS,
        )
    raise AssertionError(
        f"seed {seed}\n\nrun_history(\n    {smaller!r},\n    {order!r},\n    legs={legs!r},\n    "
        f"shared_legs={shared},\n)\n\n{violation}"
    )


def explore_chunk(first_seed: int) -> Explored:
    """`CHUNK` seeds in a row, in a process of their own."""
    logging.getLogger("relaytrio").setLevel(logging.CRITICAL + 1)
    # What a run leaves behind is found at the end of a chunk: looking for it all the time costs a tenth.
    gc.disable()
    explored = Explored()
    for seed in range(first_seed, first_seed + CHUNK):
        with watch_seams() if seed % 5 else nullcontext() as seams:
            explored.traces.add(explore(seed).fingerprint)
        if seams is not None:
            explored.passed += seams.passed
        explored.histories += 1
        explored.over_websocket += legs_of(seed) == "websocket"
    gc.collect()
    return explored


def explore_from(first_seed: int, count: int) -> Iterator[Explored]:
    """So many histories, by chunks as they are done. Raises `AssertionError` with the first that fails."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        try:
            yield from pool.map(explore_chunk, range(first_seed, first_seed + count, CHUNK))
        finally:
            pool.shutdown(cancel_futures=True)
