"""A deploy: all replicas are restarted, one after the other, while answers run."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from relaytrio.cli._check_conduct import Conductor
from relaytrio.cli._check_judge import judge
from relaytrio.cli._check_plan import CheckOptions
from relaytrio.cli._check_records import ANSWERED, RunRecord
from relaytrio.cli._check_report import percentile
from tests.realworld.checked import parts_of, run_beside

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(400)]
EVERY_SECONDS = 5.0
SHORT_TURNS, THOROUGH_TURNS = 4, 36
"""Of three seconds or so each."""
WITHOUT_SECONDS = 2.0


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_nobody_feels_a_deploy(database: str, request: pytest.FixtureRequest) -> None:
    """No turn is lost, none finished twice, all viewers have what the store has; and while an answer runs, no viewer is
    without tokens for longer than it takes to come back elsewhere."""
    url = request.getfixturevalue("postgres_url") if database == "postgres" else None
    thorough = request.config.getoption("--thorough") is not None
    restarts: list[int] = []

    async def restart_one_after_the_other(conductor: Conductor) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                for replica in conductor.cluster.replicas:
                    await trio.sleep(EVERY_SECONDS)
                    nursery.start_soon(restart, conductor, replica.number - 1)

    async def restart(conductor: Conductor, index: int) -> None:
        restarts.append(await conductor.lives.restart(conductor.cluster.replicas[index]))
        conductor.board.poke()

    turns = THOROUGH_TURNS if thorough else SHORT_TURNS
    options = CheckOptions(replicas=3, viewers=6, turns=turns, pace=50, store=url)
    run = await run_beside(options, restart_one_after_the_other, cuts=False)
    assert [] == list(judge(run).faults)
    assert [ANSWERED] * turns == [turn.outcome for turn in run.turns]
    assert not run.out_of_time
    assert restarts
    assert {0} == set(restarts)
    without = longest_without(run)
    print(f"{len(restarts)} restarts; without tokens: p50 {percentile(without, 0.5)}, p99 {percentile(without, 0.99)}")
    if thorough:
        assert (percentile(without, 0.99) or 0.0) <= WITHOUT_SECONDS


def longest_without(run: RunRecord) -> list[float]:
    """Of each viewer and each answer, the longest time between two parts of it (of whichever attempt)."""
    found: list[float] = []
    for parts in parts_of(run):
        gaps: dict[int, float] = {}
        for before, after in pairwise(parts):
            version = after.episode.history_version
            if before.episode.history_version == version:
                gaps[version] = max(gaps.get(version, 0.0), after.at - before.at)
        found += gaps.values()
    return found
