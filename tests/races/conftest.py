"""Quiet replicas, for thousands of histories."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.races.stage")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Replicas that are found dead are everyday here: thousands of records would only cost time."""
    logger = logging.getLogger("relaytrio")
    before = logger.disabled, logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.disabled, logger.level = before
