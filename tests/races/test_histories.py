"""Whatever people and faults do to a cluster, in whatever order its tasks run: all invariants hold.

Five thousand histories by default; `pytest tests/races --thorough SECONDS` goes on for as long as it is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import attrs
import pytest
from hypothesis import HealthCheck, given, settings

from relaytrio.testing import (
    HistoryReport,
    Schedule,
    random_history,
    run_history,
)
from relaytrio.testing._history import History
from relaytrio.testing._seams import SEAMS
from relaytrio.testing._simulated_legs import LegKind
from relaytrio.testing.strategies import histories, schedules
from tests.races.exploring import Explored, explore, explore_from

HISTORIES = 5000
LEAST_PASSES = 20
"""Of each seam."""


def distinct(reports: Iterable[HistoryReport]) -> int:
    return len({report.fingerprint for report in reports})


@pytest.mark.timeout(600)
def test_random_histories() -> None:
    """By seed: two replicas, two viewers, ten steps. Nearly each is another interleaving, a tenth of them is over the
    real trio-websocket, and nobody can say that a seam was not there to be passed."""
    explored = Explored()
    for chunk in explore_from(0, HISTORIES):
        explored.add(chunk)
    assert HISTORIES == explored.histories
    assert explored.over_websocket >= HISTORIES // 10
    assert len(explored.traces) >= 0.8 * HISTORIES
    assert [] == [(name, explored.passed[name]) for name in SEAMS if explored.passed[name] < LEAST_PASSES]


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
        explore(seed)
        seed += 1
    with capsys.disabled():
        if seconds is not None:
            print(f"{seed - first} histories, none of them broke an invariant")
    assert seed > first
