"""Many callers in several processes on a few chats: whatever they ask of a store at once, it is as if one after the
other; and the checker that says so finds a store that is broken on purpose.

A few seconds for each database by default; `pytest tests/realworld/store_races --thorough SECONDS` races for so long.
"""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from .faults import FAULTS
from .playing import Played, open_drivers, play

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(0)]
SECONDS = 1.5
STEPS, FAULT_STEPS = 40, 6
"""Of each caller in a round, at least: a slow machine makes no smaller net."""
ROUND_SECONDS = 10.0
"""The most that is played before it is checked."""
FAULT_SECONDS = 0.3
FAULT_ROUNDS = 20
"""How often a planted fault is looked for: hardly any race is lost in each round."""


@pytest.fixture(scope="session")
def drivers() -> Iterator[list[subprocess.Popen[str]]]:
    """The processes, for all tests: they take longer to start than to race."""
    with open_drivers() as processes:
        yield processes


class StoreRaces(ABC):
    """For each database the same."""

    @abstractmethod
    @pytest.fixture
    def url(self) -> str:
        """Of an empty store."""

    async def test_nothing_is_lost_in_races(
        self,
        url: str,
        drivers: list[subprocess.Popen[str]],
        tmp_path: Path,
        request: pytest.FixtureRequest,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Sends, edits, promotions, interruptions, take-overs and what runs do, by 4 processes of 8 callers each: all
        that they were told is true of chats that change in one order."""
        thorough = request.config.getoption("--thorough")
        seed = request.config.getoption("--seed")
        left = SECONDS if thorough is None else thorough
        seed = time.time_ns() % 1_000_000_000 if seed is None else seed
        total = Played()
        while left > 0:
            played = await play(url, drivers, tmp_path, seconds=min(left, ROUND_SECONDS), least_steps=STEPS, seed=seed)
            assert [] == played.violations[:10], f"seed {seed}"
            total.add(played)
            left -= ROUND_SECONDS
            seed += 1
        if thorough is not None:
            with capsys.disabled():
                print(f"\n{type(self).__name__}, {thorough:g} s: {total}")
        assert total.counts["changes"] > 100
        for refusal in ("ChatTaken", "InvalidTransition", "IdempotencyConflict", "ChatBusy"):
            assert total.counts[refusal] > 0, total

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_broken_store_is_found(
        self, url: str, drivers: list[subprocess.Popen[str]], tmp_path: Path, fault: str
    ) -> None:
        """Each planted fault is found, by the rule that it breaks."""
        found: set[str] = set()
        for seed in range(FAULT_ROUNDS):
            played = await play(
                url, drivers, tmp_path, seconds=FAULT_SECONDS, least_steps=FAULT_STEPS, seed=seed, fault=fault
            )
            found |= played.rules
            if FAULTS[fault].found_by in found:
                return
        pytest.fail(f"{FAULTS[fault].found_by} was not found to be broken, only {found}")


class TestSqlite(StoreRaces):
    """On one file."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/chat.db"


class TestPostgres(StoreRaces):
    """On a real server."""

    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url
