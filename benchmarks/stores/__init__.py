"""What the stores reach: `python -m benchmarks stores`, or one measurement: `python -m benchmarks stores.idle`.

Each store is measured as a replica has it, with its notifier; all rounds are interleaved. PostgreSQL is the server of
the tests, but for `fsync`, which is on here; where it is not installed it is left out, and the output says so. The
listener and the idle replica are processes of their own, on the same machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio
from rich.console import Console
from rich.table import Table

from . import hints, idle, subscribing, transitions
from .places import Place, open_places

Measure = Callable[[Sequence[Place]], Awaitable[Table]]
MEASURES: dict[str, Measure] = {
    "transitions": transitions.measure,
    "hints": hints.measure,
    "subscribe": subscribing.measure,
    "idle": idle.measure,
}


def main(*names: str) -> None:
    """Measure, and print a table for each measurement."""
    with open_places() as places:
        for name in names or MEASURES:
            Console().print(trio.run(MEASURES[name], places))


BENCHMARKS: dict[str, Callable[[], None]] = {
    "stores": main,
    **{f"stores.{name}": partial(main, name) for name in MEASURES},
}
