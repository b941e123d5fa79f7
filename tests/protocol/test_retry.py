"""Delays between tries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaytrio._protocol.retry import Backoff, Budget


def test_delays_double_up_to_the_largest() -> None:
    """The bound of the delay doubles with each failure and stays at the maximum."""
    backoff = Backoff(first_seconds=0.5, max_seconds=15.0)
    bounds = [backoff.next_delay_seconds(1.0) for _ in range(7)]
    assert bounds == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert backoff.failures == 7


def test_a_success_starts_anew() -> None:
    """After a reset the next failure waits for the first delay again."""
    backoff = Backoff(first_seconds=0.5, max_seconds=15.0, failures=9)
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next_delay_seconds(1.0) == 0.5


@pytest.mark.parametrize("failures", [61, 1_100, 10**9])
def test_a_long_outage_does_not_overflow(failures: int) -> None:
    """However many tries failed in a row, the delay is a finite number."""
    assert Backoff(first_seconds=0.5, max_seconds=15.0, failures=failures).next_delay_seconds(1.0) == 15.0


@given(
    first=st.floats(0.001, 1e6),
    largest=st.floats(0.001, 1e6),
    failures=st.integers(0, 5_000),
    random=st.floats(0, 1, exclude_max=True),
)
def test_jitter_is_full(first: float, largest: float, failures: int, random: float) -> None:
    """A delay is the random share of its bound, and never longer than the maximum."""
    bound = Backoff(first, largest, failures).next_delay_seconds(1.0)
    assert Backoff(first, largest, failures).next_delay_seconds(random) == bound * random
    assert 0 < bound <= largest


@given(tries=st.integers(0, 50))
def test_a_budget_is_spent_once(tries: int) -> None:
    """Exactly as many tries as there were, and none after that."""
    budget = Budget(tries)
    spent = [budget.spend() for _ in range(tries + 3)]
    assert spent == [True] * tries + [False] * 3
    assert budget.used == tries
