"""`pytest --thorough SECONDS`: explore histories for as long as it is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        type=float,
        default=None,
        metavar="SECONDS",
        help="explore random histories for so long, from a seed that is printed",
    )
    parser.addoption("--seed", type=int, default=None, help="the seed to begin with; a new one each time if not given")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Replicas that are found dead are everyday here: thousands of records would only cost time."""
    logger = logging.getLogger("relaytrio")
    before = logger.disabled, logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.disabled, logger.level = before
