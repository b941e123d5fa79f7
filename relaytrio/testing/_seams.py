"""Seams in the hands of a test: count who passes, stop a task between two steps of the engine, act, let it go on.

Must not know: what stands on either side of a seam. Who calls: tests, histories that act at a seam.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import get_args

import attrs
import trio

from .. import _seams
from .._seams import Facts as Facts
from .._seams import Seam as Seam

SEAMS: tuple[Seam, ...] = get_args(Seam)
"""All there are."""


@attrs.frozen
class Passing:
    """A task at a seam."""

    seam: Seam
    facts: Facts
    """What is known there, by name: `chat_id`, `replica_id`, `command`..."""


class SeamStop:
    """One stop at a seam, armed from the moment it was made: use it as an async context manager.

    Entering waits until a task stands there, and gives its `Passing`; leaving lets it go on, and all that would have
    been stopped. A task that is cancelled while it stands there goes on with its cancellation.
    """

    def __init__(self, seams: Seams, seam: Seam, facts: Facts) -> None:
        self.seam = seam
        self._facts = facts
        self._seams = seams
        self._passing: Passing | None = None
        self._reached = trio.Event()
        self._released = trio.Event()

    @property
    def reached(self) -> bool:
        """Whether a task stands, or stood, there."""
        return self._reached.is_set()

    async def wait(self) -> Passing:
        """Return when a task stands there. A checkpoint."""
        await self._reached.wait()
        assert self._passing is not None
        return self._passing

    def release(self) -> None:
        """Let the task go on, or whoever would come. Twice is fine."""
        self._released.set()
        self._seams._stops.pop(self, None)

    async def __aenter__(self) -> Passing:
        return await self.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _fits(self, passing: Passing) -> bool:
        same = all(passing.facts.get(name) == value for name, value in self._facts.items())
        return self._passing is None and self.seam == passing.seam and same

    async def _hold(self, passing: Passing) -> None:
        self._passing = passing
        self._reached.set()
        await self._released.wait()


class Seams:
    """All seams of the engines in this process. Made by `watch_seams`."""

    def __init__(self) -> None:
        self.passed: Counter[Seam] = Counter()
        """How often each was passed."""
        self._stops: dict[SeamStop, None] = {}

    def stop(self, seam: Seam, **facts: object) -> SeamStop:
        """Stop the next task that comes to this seam with these facts; later ones pass. Armed at once.

        Raises `ValueError` for a seam that there is not: nobody would ever come there.
        """
        if seam not in SEAMS:
            raise ValueError(f"there is no seam {seam!r}; there are {', '.join(map(repr, SEAMS))}")
        stop = SeamStop(self, seam, facts)
        self._stops[stop] = None
        return stop

    async def _observe(self, seam: Seam, facts: Facts) -> None:
        self.passed[seam] += 1
        if self._stops:
            passing = Passing(seam, facts)
            for stop in tuple(self._stops):
                if stop._fits(passing):
                    await stop._hold(passing)


@contextmanager
def watch_seams() -> Iterator[Seams]:
    """Watch the seams of all engines in this process, for as long as the context lasts; then all stops are released.

    Contexts may be nested: each has counts and stops of its own. Around `trio.run`, or within it.
    """
    seams = Seams()
    observer = seams._observe
    _seams.observers = (*_seams.observers, observer)
    try:
        yield seams
    finally:
        _seams.observers = tuple(other for other in _seams.observers if other is not observer)
        for stop in tuple(seams._stops):
            stop.release()
