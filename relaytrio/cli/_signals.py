"""Signals that ask a command to end: the first one asks, the second one insists.

Must not know what is ended. Who calls: the commands that own something which must be put away (`serve`, `demo`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from ._status import HELD, INTERRUPTED

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def status_after(number: int) -> int:
    """The exit status of a command that a signal ended: Ctrl-C is told apart, the others are an orderly end."""
    return INTERRUPTED if number == signal.SIGINT else HELD


async def first_signal(
    ask: Callable[[int], object], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Call `ask` with the number of the first signal. From then on another one ends the process at once.

    The kernel does that, so that it works whatever this process is doing then.
    """
    with trio.open_signal_receiver(*ENDING) as signals:
        task_status.started()
        number = await anext(signals)
    for ending in ENDING:
        signal.signal(ending, signal.SIG_DFL)
    ask(number)


async def two_signals(
    ask: Callable[[int], object],
    insist: Callable[[], object],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `ask` with the first signal's number, and `insist` at each that follows. Runs until cancelled."""
    with trio.open_signal_receiver(*ENDING) as signals:
        task_status.started()
        ask(await anext(signals))
        async for _ in signals:
            insist()
