"""How fast histories of a simulated cluster are explored: two replicas, two viewers, ten steps each.

Counted by the CPU's time, of one core: what else the machine does matters less. A trace is distinct if the order of
its events is.
"""

from __future__ import annotations

import gc
import logging
import statistics
import time

import attrs
from rich.console import Console
from rich.table import Table

from relaytrio.testing import Schedule, random_history, run_history
from relaytrio.testing._simulated_legs import LegKind

from ._report import Report

HISTORIES = 60
"""In a round; the rounds of all kinds are interleaved."""


@attrs.define
class Kind:
    """One kind of history, and what was measured of it."""

    name: str
    legs: LegKind
    faults: bool
    rates: list[float] = attrs.field(factory=list)
    hours: list[float] = attrs.field(factory=list)
    traces: set[int] = attrs.field(factory=set)
    """Orders of events."""
    orders: set[Schedule] = attrs.field(factory=set)
    """Orders of tasks, as they were played."""
    count: int = 0

    def run(self, first_seed: int) -> None:
        """One round. Raises `ClusterViolation` if a history breaks an invariant."""
        # What a history leaves behind is found at the end of the round: looking for it all the time costs a tenth.
        gc.disable()
        began, virtual_seconds = time.process_time(), 0.0
        for seed in range(first_seed, first_seed + HISTORIES):
            history = random_history(seed, faults=self.faults)
            report = run_history(history, Schedule.random(seed), legs=self.legs)
            self.traces.add(report.fingerprint)
            self.orders.add(report.schedule)
            virtual_seconds += report.checked.virtual_seconds
        gc.collect()
        gc.enable()
        seconds = time.process_time() - began
        self.rates.append(HISTORIES / seconds)
        self.hours.append(virtual_seconds / 3600 / seconds)
        self.count += HISTORIES


def main(report: Report) -> None:
    """Measure, and print the table."""
    logging.getLogger("relaytrio").setLevel(logging.CRITICAL + 1)
    kinds = [
        Kind("legs in memory", "memory", faults=False),
        Kind("legs in memory, faults", "memory", faults=True),
        Kind("over trio-websocket", "websocket", faults=False),
        Kind("over trio-websocket, faults", "websocket", faults=True),
    ]
    for number in report.each_round("exploring"):
        for kind in kinds:
            kind.run(number * HISTORIES)
    table = Table(
        "histories", "a second", "from", "to", "virtual hours a second", "distinct schedules", "distinct traces"
    )
    for kind in kinds:
        figures = (statistics.median(kind.rates), min(kind.rates), max(kind.rates))
        hours = f"{statistics.median(kind.hours):.2f}"
        distinct = (f"{len(found)} of {kind.count}" for found in (kind.orders, kind.traces))
        table.add_row(kind.name, *(f"{figure:.0f}" for figure in figures), hours, *distinct)
    Console().print(table)
