"""A run of Trio that a synchronous program leads: it goes on only while it is asked something, in the same thread.

Between two questions no task runs and no virtual time passes, so the caller may look at everything. Must not know: what
is asked. Who calls: `ClusterMachine`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import attrs
import trio
from trio.testing import MockClock

from ._schedules import Schedule, Scheduler, scheduled

STUCK_SECONDS = 60.0
"""Of real time: a run on virtual time waits for nothing outside of itself."""


@attrs.define
class _Question:
    ask: Callable[[], Awaitable[object]]
    answered: bool = False
    error: BaseException | None = None


Questions: TypeAlias = "trio.MemoryReceiveChannel[_Question]"


class SteppedRun:
    """One run, on a virtual clock of its own and with its tasks in that order.

    `main` is given what is asked, and has to `answer_all` of it. Always `end` it.
    """

    def __init__(self, main: Callable[[Questions, Scheduler], Awaitable[None]], schedule: Schedule) -> None:
        self._soon: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._ended: Any = None
        """How it ended."""
        self._context = ExitStack()
        scheduler = self._context.enter_context(scheduled(schedule))
        self._asking, asked = trio.open_memory_channel[_Question](1)
        trio.lowlevel.start_guest_run(
            main,
            asked,
            scheduler,
            run_sync_soon_threadsafe=self._soon.put,
            done_callback=self._done,
            clock=MockClock(autojump_threshold=0),
        )

    def call(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Let it go on until this is done. Raises what that raises, or what the run has ended with."""
        question = _Question(ask)
        if self._ended is None:
            self._asking.send_nowait(question)
            self._go_on(lambda: question.answered)
        if question.error is not None:
            raise question.error
        if not question.answered:
            self._ended.unwrap()
            raise RuntimeError("the run has ended")

    def end(self) -> None:
        """Ask nothing more, and let it come to its end. Raises what that is. Twice is fine."""
        try:
            if self._ended is None:
                self._asking.close()
                self._go_on(lambda: False)
        finally:
            self._context.close()
        self._ended.unwrap()

    def _done(self, ended: Any) -> None:
        self._ended = ended

    def _go_on(self, enough: Callable[[], bool]) -> None:
        while self._ended is None and not enough():
            try:
                step = self._soon.get(timeout=STUCK_SECONDS)
            except Empty:
                raise RuntimeError("the run waits for something that is not on virtual time") from None
            step()


async def answer_all(asked: Questions) -> None:
    """Do what is asked, one after the other, until nothing more is."""
    async for question in asked:
        try:
            await question.ask()
        except Exception as error:
            question.error = error
        question.answered = True
