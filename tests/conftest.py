"""No test waits for real time, but for those in tests/realworld: what must be waited for has an edge to wait on."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

REALWORLD = Path(__file__).parent / "realworld"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        type=float,
        default=None,
        metavar="SECONDS",
        help="explore random histories for so long, from a seed that is printed",
    )
    parser.addoption("--seed", type=int, default=None, help="the seed to begin with; a new one each time if not given")


def _virtual_only(wait: Callable[[float], Awaitable[None]], what: str) -> Callable[[float], Awaitable[None]]:
    async def guarded(when: float) -> None:
        # A sleep of 0 is only a checkpoint; pytest-trio makes one before every test.
        if when > 0 and not isinstance(trio.lowlevel.current_clock(), MockClock):
            raise AssertionError(f"{what} on the real clock: only tests/realworld may wait for time to pass")
        await wait(when)

    return guarded


@pytest.fixture(autouse=True)
def _no_real_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if REALWORLD in request.path.parents:
        return

    def sleep(seconds: float) -> None:
        raise AssertionError("time.sleep in a test: only tests/realworld may wait for time to pass")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(trio, "sleep", _virtual_only(trio.sleep, "trio.sleep"))
    monkeypatch.setattr(trio, "sleep_until", _virtual_only(trio.sleep_until, "trio.sleep_until"))
