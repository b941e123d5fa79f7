"""What a decision cannot make by itself: the instant, and random stamps. Both are injected, so tests are repeatable.

Must not know: what a decision does with them. Who calls: the stores, once in each transaction that writes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from random import Random

from .._protocol.chat import (
    Command,
    Commit,
    Create,
    EditMessage,
    Fail,
    FinishInterruption,
    FinishTurn,
    Fresh,
    SendMessage,
)

STAMP_CHARACTERS = 5
"""36**5: two messages of one id in two lives of a chat share a stamp once in sixty million."""
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_SECONDS_PER_HOUR = 3600.0


def utc_now() -> str:
    """The present instant as RFC 3339 in UTC, with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Fresher:
    """Gives each transaction its instant and its stamps."""

    def __init__(self, clock: Callable[[], str] = utc_now, random: Random | None = None) -> None:
        self._clock = clock
        self._random = Random() if random is None else random

    def fresh(self, command: Create | Command) -> Fresh:
        """One stamp for each message that the command brings, and one for an entry that it may promote."""
        return Fresh(at=self._clock(), stamps=tuple(self._stamp() for _ in range(_brings(command) + 1)))

    def now_seconds(self) -> float:
        """The same clock, in seconds, to count hours with."""
        return seconds_of(self._clock())

    def _stamp(self) -> str:
        return "".join(self._random.choices(_ALPHABET, k=STAMP_CHARACTERS))


def seconds_of(at: str) -> float:
    """An RFC 3339 instant in seconds since 1970."""
    return datetime.fromisoformat(at).timestamp()


def hours(count: float) -> float:
    """Hours in seconds."""
    return count * _SECONDS_PER_HOUR


def _brings(command: Create | Command) -> int:
    match command:
        case Create() | Commit() | FinishTurn() | FinishInterruption() | Fail():
            return len(command.messages)
        case SendMessage() | EditMessage():
            return 1
        case _:
            return 0
