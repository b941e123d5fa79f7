"""A viewer of a simulated cluster: it watches one chat through one replica at a time, and can be cut, moved and slow.

What it is sent passes the oracle of a stream at once, over all its reconnects, and makes up what it would show. It
comes back by itself, with its cursor, to the next replica that is up.

Must not know: stores, networks. Who calls: tests, over their cluster; the oracle of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from .._errors import ChatDeleted, ChatNotFound, ReplicaDraining, StoreUnavailable, SubscriptionFailed
from .._protocol.events import (
    CaughtUp,
    ChatError,
    ChatStatus,
    Cursor,
    Episode,
    ErrorEvent,
    Event,
    MessageEvent,
    MessageRef,
    QueueEntry,
    QueueUpdate,
    Status,
)
from ._check_stream import InvariantViolation, StreamChecker
from ._display import Reconnected, _Screen

if TYPE_CHECKING:
    from ._simulated_replica import SimulatedReplica

RETURN_SECONDS = 0.5
"""How long a viewer that has lost its replica waits before it tries the next."""


@attrs.define
class Shown:
    """What a viewer knows of its chat."""

    screen: _Screen = attrs.field(factory=_Screen)
    queue: tuple[QueueEntry, ...] = ()
    status: ChatStatus | None = None
    version: int = 0
    error: ChatError | None = None

    def take(self, event: Event) -> None:
        """Believe an event."""
        self.screen.take(event)
        match event:
            case QueueUpdate():
                self.queue = event.queue
            case Status():
                self.status, self.version = event.status, event.version
                # What is wrong now is told after this, unless it was told before.
                self.error = self.error if event.status == "error" else None
            case ErrorEvent():
                self.error = event.error
            case _:
                pass

    @property
    def episode(self) -> Episode | None:
        """Of the last part that came."""
        return self.screen._episode

    @property
    def preview(self) -> list[str]:
        """The parts of the answer in progress."""
        return [text for _, text in self.screen.parts]


class ScriptedViewer:
    """One viewer of one chat. Its methods are synchronous, but for `until`."""

    def __init__(
        self,
        number: int,
        chat_id: str,
        *,
        nursery: trio.Nursery,
        note: Callable[[ScriptedViewer, Event | Reconnected | str], None],
        blame: Callable[[BaseException], None],
        start: Cursor | None,
    ) -> None:
        self.number = number
        self.chat_id = chat_id
        self.events: list[Event | Reconnected] = []
        """All that it was sent, over all its subscriptions."""
        self.shown = Shown()
        self.slow_seconds = 0.0
        """How long it takes over each event."""
        self.comes_back = True
        """Whether it connects again by itself when it has lost its replica."""
        self.left = False
        """Whether it has left for good."""
        self.was_slow = False
        """Whether it ever took its time."""
        self.ended: Exception | None = None
        """Why it will get nothing more: its chat was deleted."""
        self.short_previews: list[tuple[str, str]] = []
        """Of messages that came while it watched: the preview that they ended, if it was another text, and
        that in words."""
        self.start = start or Cursor()
        """What it came with."""
        self._cursor: str | Cursor | None = start
        self._had: list[Event] = []
        """What made up what it shows."""
        self._checker = StreamChecker(start)
        self._nursery = nursery
        self._note = note
        self._blame = blame
        self._caught_up = False
        self._replica: SimulatedReplica | None = None
        self._connection: trio.CancelScope | None = None
        self._news = trio.Event()

    def __str__(self) -> str:
        return f"viewer {self.number}"

    @property
    def connected(self) -> bool:
        """Whether it has a replica that serves it, as far as it knows."""
        return self._connection is not None

    @property
    def cursor(self) -> str | Cursor | None:
        """What it would come back with."""
        return self._cursor

    # -------------------------------------------------------------------------------- what the test does

    def connect(self, replica: SimulatedReplica, *, events_back: int = 0) -> None:
        """Watch through this replica from now on, as it is or as it was so many events ago. What it had is cut."""
        self.cut()
        self._replica = replica
        if 0 < events_back < len(self._had):
            self._go_back(events_back)
        self._open()

    def cut(self) -> None:
        """Lose the connection, and stay away until `connect`."""
        connection, self._connection = self._connection, None
        self._replica = None
        if connection is not None:
            connection.cancel()
            self._note(self, "cut")

    def leave(self) -> None:
        """Leave for good."""
        self.cut()
        self.left = True

    async def until(self, what: Callable[[Shown], bool]) -> None:
        """Return when it shows this. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not what(self.shown):
            await self._news.wait()

    # ---------------------------------------------------------------------------------- its connections

    def _go_back(self, events: int) -> None:
        del self._had[-events:]
        self.shown, self._cursor = Shown(), self._had[-1].cursor
        for event in self._had:
            self.shown.take(event)

    def _open(self) -> None:
        replica = self._replica
        if replica is None or not replica.up:
            self._lost()
            return
        if self.events:
            self._reconnect()
        self._caught_up = False
        self._connection = trio.CancelScope()
        replica.start_soon(self._watch, replica, self._connection)

    def _reconnect(self) -> None:
        came_back = Reconnected(self._cursor or Cursor())
        self.events.append(came_back)
        self._checker.reconnect(came_back.cursor)
        self._note(self, came_back)

    async def _watch(self, replica: SimulatedReplica, connection: trio.CancelScope) -> None:
        try:
            with connection:
                await self._receive(replica, connection)
        except (ChatDeleted, ChatNotFound) as error:
            if connection is self._connection:
                self.ended = error
        except (StoreUnavailable, ReplicaDraining):
            pass
        except SubscriptionFailed as error:
            self._blame(error)
        finally:
            if connection is self._connection:
                self._connection = None
                self._note(self, "lost")
                self._lost()

    async def _receive(self, replica: SimulatedReplica, connection: trio.CancelScope) -> None:
        async with replica.engine.subscribe(self.chat_id, cursor=self._cursor) as subscription:
            async for event in subscription:
                if self.slow_seconds:
                    self.was_slow = True
                    await trio.sleep(self.slow_seconds)
                if connection is not self._connection:
                    return
                self._take(event)

    def _lost(self) -> None:
        if self.comes_back and not self.left and self.ended is None and self._replica is not None:
            self._nursery.start_soon(self._come_back, self._replica)

    async def _come_back(self, former: SimulatedReplica) -> None:
        await trio.sleep(RETURN_SECONDS)
        if self._replica is former and self._connection is None and not self.left:
            self._replica = former.next_up()
            self._open()

    # ----------------------------------------------------------------------------------- what it is sent

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self._had.append(event)
        self._note(self, event)
        try:
            self._checker.feed(event)
        except InvariantViolation as violation:
            self._blame(violation)
        self._caught_up = self._caught_up or isinstance(event, CaughtUp)
        if isinstance(event, MessageEvent) and event.message.role == "assistant" and self._caught_up:
            self._compare(event)
        self.shown.take(event)
        self._cursor = event.cursor
        self._news.set()
        self._news = trio.Event()

    def _compare(self, event: MessageEvent) -> None:
        """A preview that ends with its message ends complete, where nothing was in its way."""
        text = "".join(part["text"] for part in event.message.content)
        preview = "".join(self.shown.preview)
        if preview and preview != text:
            told = f"{self} showed {preview!r} when message {event.message.id} came: {text!r}"
            self.short_previews.append((preview, told))


def start_after(message_id: int | None) -> Cursor | None:
    """What a viewer comes with that knows the id of its last message only."""
    return None if message_id is None else Cursor(MessageRef(message_id, None))
