"""Seams: named places between two steps of the engine at which a test can stop it, and act.

A seam stands beside a wait that is there anyway, on the side where nothing is decided yet or all is told: a task that
is held there has waited longer, and one that is cancelled there was cancelled in that wait. So it opens no state that
the engine does not have without it. Without a test it does nothing and is not a checkpoint.

Must not know: what is done there (`testing/_seams.py`). Who calls: the engine, wherever an order of two things matters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeAlias

Seam: TypeAlias = Literal[
    # a viewer
    "watching, not read",
    "view read, not laid down",
    "asked, not taken",
    "poll read, not compared",
    # its relay
    "about to dial",
    "dialed, not selected",
    "selected, nothing read",
    "rows came, not laid down",
    "leg lost, not resting",
    "rested, not looked again",
    # the peer
    "chat looked up, not answered",
    "frame taken, not sent",
    # a request
    "request committed, not told",
    "hint taken, not published",
    # a worker
    "candidates read, not acquired",
    "acquired, not begun",
    "history read, not answered",
    "sealed, not committed",
    "committed, not told",
    "chat looked at, not compared",
    "owned chats read, not compared",
    "grace over, not stopped",
]

Facts: TypeAlias = Mapping[str, object]
"""What is known where a task stands, as each seam has it: `chat_id`, `replica_id`, `worker_id`, `command` (a name)."""
Observer: TypeAlias = Callable[[Seam, Facts], Awaitable[None]]
"""Is awaited by every task that passes a seam. May wait; may not raise but for what its wait raises."""

observers: tuple[Observer, ...] = ()
"""Those of tests; none in production."""


async def seam(name: Seam, **facts: object) -> None:
    """Let tests act here. A checkpoint only if one of them waits."""
    for observer in observers:
        await observer(name, facts)
