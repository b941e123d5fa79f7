"""Whatever people and faults do to a cluster, in whatever order its tasks run: all invariants hold.

A modest number of histories by default; `pytest tests/races --thorough SECONDS` goes on for as long as it is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import attrs
import pytest
from hypothesis import HealthCheck, given, settings

from relaytrio.testing import (
    ClusterViolation,
    HistoryReport,
    Schedule,
    random_history,
    run_history,
    shrink,
)
from relaytrio.testing._history import History
from relaytrio.testing._simulated_legs import LegKind
from relaytrio.testing.strategies import histories, schedules

SHRINK_RUNS = 500


def explored(seed: int, *, faults: bool, legs: LegKind) -> HistoryReport:
    """Run the history of a seed; one that fails is shrunk, and told with all that it takes to see it again."""
    history, schedule = random_history(seed, faults=faults), Schedule.random(seed)
    try:
        return run_history(history, schedule, legs=legs)
    except ClusterViolation:
        smaller, order, violation = shrink(
            history,
            schedule,
            lambda history, schedule: run_history(history, schedule, legs=legs),
            most_runs=SHRINK_RUNS,
        )
    raise AssertionError(
        f"seed {seed}, faults={faults}, legs={legs!r}\n\nrun_history(\n    {smaller!r},\n    {order!r},\n    "
        f"legs={legs!r},\n)\n\n{violation}"
    )


def distinct(reports: Iterable[HistoryReport]) -> int:
    return len({report.fingerprint for report in reports})


@pytest.mark.parametrize(
    ("faults", "legs", "count"), [(False, "memory", 100), (True, "memory", 100), (True, "websocket", 25)]
)
def test_random_histories(faults: bool, legs: LegKind, count: int) -> None:
    """By seed: two replicas, two viewers, ten steps; nearly each of them is another interleaving."""
    reports = [explored(seed, faults=faults, legs=legs) for seed in range(count)]
    assert distinct(reports) >= 0.9 * count


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories(), schedule=schedules())
def test_drawn_histories(history: History, schedule: Schedule) -> None:
    """By Hypothesis: what fails is shrunk to the steps that it takes, first in, first out but where it matters."""
    run_history(history, schedule)


def test_a_history_is_the_same_each_time() -> None:
    """What was printed is enough to see it again: the same events at the same instants, whatever ran in between."""
    kinds: list[LegKind] = ["memory", "memory", "websocket"]
    for seed, legs in enumerate(kinds):
        history = random_history(seed)
        runs = [run_history(history, Schedule.random(seed), legs=legs, traced=True) for _ in range(2)]
        again = run_history(history, runs[0].schedule, legs=legs, traced=True)
        assert runs[0].trace == runs[1].trace == again.trace
        assert runs[0].fingerprint == again.fingerprint


def test_the_same_history_has_many_interleavings() -> None:
    """The order of tasks alone makes the difference."""
    history = attrs.evolve(random_history(11, faults=False), latency_seconds=0.0, store_latency_seconds=0.0)
    reports = [run_history(history, Schedule.random(seed)) for seed in range(30)]
    assert distinct(reports) >= 20


@pytest.mark.timeout(0)
def test_thorough(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """For as long as it is told: from a seed that is printed, a tenth over trio-websocket, half with faults."""
    seconds = request.config.getoption("--thorough", None)
    first = request.config.getoption("--seed", None)
    if first is None:
        first = 0 if seconds is None else time.time_ns() % 1_000_000_000
    with capsys.disabled():
        if seconds is not None:
            print(f"\nexploring for {seconds:g} s, from seed {first}")
    end = time.monotonic() + (0.5 if seconds is None else seconds)
    seed = first
    while time.monotonic() < end:
        explored(seed, faults=seed % 2 == 0, legs="websocket" if seed % 10 == 0 else "memory")
        seed += 1
    with capsys.disabled():
        if seconds is not None:
            print(f"{seed - first} histories, none of them broke an invariant")
    assert seed > first
