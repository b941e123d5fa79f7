"""What a check says: a line a viewer, sums, what was wrong, and the same as JSON."""

from __future__ import annotations

import json
from io import StringIO

import attrs
import pytest
from rich.console import Console

from relaytrio.cli._check_judge import judge
from relaytrio.cli._check_plan import CheckOptions, CheckPlan
from relaytrio.cli._check_records import RunRecord
from relaytrio.cli._check_report import Progress, percentile, report_json, report_lines
from tests.cli.check_scene import good_run

PLAN = CheckPlan(options=CheckOptions(seed=17), turns=(), seconds=1.0, place=None)


def lines_of(run: RunRecord) -> list[str]:
    return list(report_lines(judge(run), run, PLAN))


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([3.0], 0.5, 3.0), ([3.0], 0.99, 3.0), ([4, 1, 2, 3], 0.5, 2), (range(1, 101), 0.99, 99)],
)
def test_percentile(values: list[float], share: float, expected: float | None) -> None:
    """The smallest value that so much of all do not exceed."""
    assert percentile(values, share) == expected


def test_lines_of_a_good_run() -> None:
    """A line a viewer, then the sums, then that it held, with the seed to repeat it."""
    lines = lines_of(good_run())
    assert lines[0].startswith(
        "viewer 1: 72 parts live, 8 after a resume, 0 missing, 0 doubled, 0 out of order, 2 cuts"
    )
    assert lines[3].startswith("2 turns, 80 parts made, ")
    assert lines[-1] == "it held (seed 17)"
    assert not any("not tested" in line for line in lines)
    assert "part latency: p50 2.0 ms, p99 2.0 ms" in lines


def test_lines_of_a_fault() -> None:
    """A fault has a line with its kind and its viewer."""
    run = good_run()
    run.viewers[1].hung.append(2)
    lines = lines_of(run)
    assert "hung: viewer 2 turn 2 has not seen the end that the store has" in lines
    assert lines[-1] == "an invariant broke (seed 17)"


def test_lines_of_a_shortfall() -> None:
    """What was not tested is said as such."""
    lines = lines_of(attrs.evolve(good_run(), looks=[]))
    assert "not tested: the store's tables were not seen while an answer was running" in lines
    assert lines[-1] == "it proves nothing (seed 17)"


def test_nothing_arrived() -> None:
    """Sums over nothing are said too."""
    lines = lines_of(attrs.evolve(good_run(), viewers=[], turns=[], stored=[]))
    assert "part latency: p50 none, p99 none" in lines


def test_json() -> None:
    """A program gets the same: one object that JSON can hold."""
    run = good_run()
    run.viewers[1].hung.append(2)
    told = json.loads(json.dumps(report_json(judge(run), run, PLAN)))
    assert told["status"] == 1
    assert told["totals"]["parts_made"] == 80
    assert told["totals"]["hung_viewers"] == 1
    assert told["options"]["seed"] == 17
    assert [viewer["number"] for viewer in told["viewers"]] == [1, 2, 3]
    assert told["faults"] == [
        {"kind": "hung", "text": "has not seen the end that the store has", "viewer": 2, "turn": 2}
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_a_person(terminal: bool) -> None:
    """The progress line appears on a terminal only, and is taken away at the end."""
    file = StringIO()
    with Progress(Console(file=file, force_terminal=terminal, width=80)) as progress:
        progress.show("turn 1 of 5")
    assert ("turn 1 of 5" in file.getvalue()) == terminal
