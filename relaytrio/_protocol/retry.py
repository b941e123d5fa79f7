"""Delays between tries: doubling, full jitter, reset. The random number comes in.

Full jitter (a delay drawn evenly from 0 to the doubled bound) is the form that spreads clients best after a common
failure: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import attrs


@attrs.define
class Backoff:
    """How long to wait before the next try; counts the tries that failed in a row."""

    first_seconds: float
    max_seconds: float
    failures: int = 0

    def next_delay_seconds(self, random: float) -> float:
        """The delay after one more failure, for a `random` number evenly drawn from [0, 1)."""
        # The exponent is bounded: 2.0 ** 1100 would overflow after a long outage.
        bound = min(self.max_seconds, self.first_seconds * 2.0 ** min(self.failures, 60))
        self.failures += 1
        return bound * random

    def reset(self) -> None:
        """It worked: the next failure starts again from the first delay."""
        self.failures = 0


@attrs.define
class Budget:
    """A bounded number of tries."""

    tries: int
    used: int = 0

    def spend(self) -> bool:
        """Use one try; False if there was none left."""
        if self.used >= self.tries:
            return False
        self.used += 1
        return True
