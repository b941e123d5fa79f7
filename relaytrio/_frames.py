"""A subscription's stream for those who take what came together: by the burst, as events or as ready frames.

Must not know: what comes next, and when (`_subscription.py`). Who calls: `Subscription`, whose `bursts` and `frames`
these are; servers, which send frames.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain
from typing import Self, TypeAlias

from msgspec import Struct

from ._protocol import wire
from ._protocol.burst import Burst
from ._protocol.events import Event

MADE_TOGETHER = 64
"""Parts, for who takes them one by one."""
Taken: TypeAlias = Burst | tuple[Event, ...]
"""What a viewer gets next: rows as they are in the log, or other events."""
Item: TypeAlias = tuple[str, Taken]
"""The cursor after it, and that."""
Take: TypeAlias = Callable[[], Awaitable[Item]]
Had: TypeAlias = Callable[[str], None]
"""Told the cursor of what the viewer has been given."""
GiveBack: TypeAlias = Callable[[tuple[Event, ...]], None]
"""These were taken, and come next: whoever goes on reading, and in whatever way, has them."""


class Frame(Struct, frozen=True, gc=False):
    """Events, ready to be sent: a JSON array in UTF-8, and the cursor after its last event."""

    data: bytes
    cursor: str


class Bursts:
    """A subscription's stream as lists of events; an async iterator."""

    def __init__(self, take: Take, had: Had) -> None:
        self._take = take
        self._had = had

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        """All that is there for the viewer now, at least one event and at most `burst_bytes` of parts. A checkpoint."""
        cursor, taken = await self._take()
        events = decoded(taken)
        self._had(cursor)
        return events


class Frames:
    """A subscription's stream as frames; an async iterator."""

    def __init__(self, take: Take, give_back: GiveBack, had: Had, limit_bytes: int) -> None:
        self._take = take
        self._give_back = give_back
        self._had = had
        self._limit_bytes = limit_bytes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        """The next frame: at most `burst_bytes` of rows, or a single larger one. A checkpoint."""
        cursor, taken = await self._take()
        if isinstance(taken, Burst):
            frame = Frame(b"[%b]" % taken.rows, cursor)
        else:
            frame, left = _first_frame(taken, self._limit_bytes)
            self._give_back(left)
        self._had(frame.cursor)
        return frame


def decoded(taken: Taken) -> Sequence[Event]:
    """The events that were taken."""
    return wire.decode_rows(taken) if isinstance(taken, Burst) else taken


def one_by_one(taken: Taken) -> Iterator[Event]:
    """The events that were taken, made as they are asked for."""
    if not isinstance(taken, Burst):
        return iter(taken)
    if taken.count <= MADE_TOGETHER:
        return iter(wire.decode_rows(taken))
    return chain.from_iterable(wire.decode_rows_by(MADE_TOGETHER, taken))


def framed(events: tuple[Event, ...], limit_bytes: int) -> Iterator[Frame]:
    """The events as frames of at most `limit_bytes` each, but for a single event that is larger."""
    while events:
        frame, events = _first_frame(events, limit_bytes)
        yield frame


def _first_frame(events: tuple[Event, ...], limit_bytes: int) -> tuple[Frame, tuple[Event, ...]]:
    """As many events as fit, at least one, and those that are left."""
    rows: list[bytes] = []
    size = 0
    for event in events:
        row = wire.encode_event(event)
        if rows and size + len(row) > limit_bytes:
            break
        rows.append(row)
        size += len(row) + 2
    count = len(rows)
    return Frame(wire.encode_frame(rows), events[count - 1].cursor), events[count:]
