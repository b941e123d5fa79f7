"""One viewer: watch, merge and relay.

- *watch* reads the store when something says "look", and lays what it read into a one-place slot: it never waits for
  the viewer, so a slow one delays no decision. A view is cumulative from its base; a newer one overwrites an older.
- *merge* decides, synchronously, what the viewer gets next (`_protocol/resume.py` knows the rules), when the viewer
  asks for it: it has no task and no queue of its own.
- *relay* keeps the local copy of a remote episode's log filled. It is there while the chat runs elsewhere, and for
  `idle_leg_seconds` after that.

Must not know: sockets, how a hint travels, how a leg is dialed. Who calls: the engine makes subscriptions; viewers
iterate over them; the ASGI app takes their `frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

import trio

from ._errors import SubscriptionFailed
from ._frames import Bursts, Frames, Item, Taken, one_by_one
from ._held import Held
from ._latest import Latest
from ._merge import Merge, WatchingLog
from ._nursery import BodyNursery
from ._protocol.events import Cursor, Event
from ._protocol.resume import Progress
from ._relay import Relay, RelayParams, StatusNotification
from ._seams import seam
from ._wakeup import Announced
from ._watch import ReplicaParts, Watch
from .stores._base import View

EVENTS_PER_CHECKPOINT = 64
"""A viewer who works through a burst lets others run so often: a checkpoint costs as much as decoding ten events."""


class Subscription:
    """One viewer's stream of one chat: use it as an async context manager, and iterate over it.

    `async for event in subscription` gives decoded events, `subscription.bursts()` the same by the burst, and
    `subscription.frames()` as ready bytes; each goes on where the last one was left. Read from one task.

    The stream ends with `ChatDeleted` when the chat is deleted, and with `ReplicaDraining` when the engine is left;
    otherwise it has no end: leave the context.

    Entering reads the store once, and raises `ChatNotFound` or `StoreUnavailable`. An exception of the body leaves as
    it is; if a task of the engine fails, the body is cancelled and `SubscriptionFailed` is raised, with its cause.
    """

    def __init__(self, replica: ReplicaParts, chat_id: str, cursor: Cursor, headers: Mapping[str, str]) -> None:
        self.chat_id = chat_id
        self.cursor = str(cursor)
        """What the viewer has had so far: any replica goes on from there."""
        self._replica = replica
        self._headers = headers
        self._progress = Progress.start(cursor)
        self._watch = Watch(replica, chat_id, self._progress)
        self._merge = Merge(replica, chat_id, self._progress, self._watch)
        self._left: Iterator[Event] = iter(())
        """What was taken, and has not been given yet."""
        self._since_checkpoint = 0
        self._taking = False
        self._resources = Held()
        self._nursery = BodyNursery(self._failed)

    async def __aenter__(self) -> Self:
        with Held() as resources:
            # Hints first: nothing committed between the first read and the first hint is missed.
            resources.enter_context(self._replica.hints.watching(self.chat_id, self._watch))
            resources.enter_context(self._merge)
            await seam("watching, not read", chat_id=self.chat_id, replica_id=self._replica.replica_id)
            self._watch.begin()
            first = await self._watch.read()
            await self._nursery.__aenter__()
            self._resources = resources.pop_all()
        self._watch.run_relay = self._start_relay
        self._start_relay(first)
        self._nursery.start_soon(self._watch.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        with self._resources:
            self._watch.close()
            return await self._nursery.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - it cancels its own tasks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. A checkpoint when it waits, and every 64 events."""
        while True:
            for event in self._left:
                self._since_checkpoint += 1
                if self._since_checkpoint >= EVENTS_PER_CHECKPOINT:
                    self._since_checkpoint = 0
                    # Shielded: the event is already taken, and a cancelled viewer resumes from its cursor.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                self.cursor = event.cursor
                return event
            _, taken = await self._take()
            self._left = one_by_one(taken)

    def bursts(self) -> Bursts:
        """The stream as lists of events: whatever is there when it is asked for comes at once."""
        return Bursts(self._take, self._had)

    def frames(self) -> Frames:
        """The stream as ready frames."""
        return Frames(self._take, self._give_back, self._had, self._replica.settings.burst_bytes)

    def pulled(self, news: Callable[[], None], watching: WatchingLog | None = None) -> Pulled:
        """The stream for whoever does not wait for it. `news`, synchronous, is called when to look for more.

        With `watching` it is not called when the live episode's log changes: the context that this gives watches it.
        Once, before the subscription is entered; it cannot be iterated over then.
        """
        self._merge.watching = watching or self._merge.watching
        self._watch.news = Announced(news)
        return Pulled(self._merge, self._watch, self._progress)

    async def _take(self) -> Item:
        self._nursery.check_entered()
        if self._taking:
            raise trio.BusyResourceError("another task is reading this subscription")
        self._taking = True
        try:
            left = tuple(self._left)
            if left:
                # What whoever read before has left. Shielded: it is already taken.
                await trio.lowlevel.cancel_shielded_checkpoint()
                item: Item = left[-1].cursor, left
            else:
                item = await self._merge.take()
        finally:
            self._taking = False
        self._since_checkpoint = 0
        return item

    def _give_back(self, events: tuple[Event, ...]) -> None:
        self._left = iter(events)

    def _had(self, cursor: str) -> None:
        self.cursor = cursor

    def _failed(self) -> SubscriptionFailed:
        return SubscriptionFailed(f"the subscription to chat {self.chat_id} failed")

    def _start_relay(self, view: View) -> None:
        """If the chat runs elsewhere, and nobody follows it yet."""
        relay = self._replica.relay
        if relay is not None and self._watch.notifications is None and self._runs_elsewhere(view):
            self._watch.notifications = Latest()
            self._nursery.start_soon(self._run_relay, relay, view, self._watch.notifications)

    def _runs_elsewhere(self, view: View) -> bool:
        return view.chat.status in ("running", "interrupting") and view.chat.worker_id not in (
            None,
            self._replica.replica_id,
        )

    async def _run_relay(self, relay: Relay, first: View, notifications: Latest[StatusNotification]) -> None:
        params = RelayParams(
            chat_id=self.chat_id,
            first_view=first,
            replica_id=self._replica.replica_id,
            notifications=notifications,
            parts=self._replica.parts,
            headers=self._headers,
            look_again=self._watch.look_again,
            tell=self._watch.tell_relay,
            store=self._replica.store,
            logger=self._replica.logger,
        )
        async with relay.open(params):
            await self._until_unneeded()
            self._watch.notifications = None  # a view that comes while it is being left starts another

    async def _until_unneeded(self) -> None:
        """Return when the chat has not run elsewhere for `idle_leg_seconds`."""
        watch = self._watch
        while True:
            while self._runs_elsewhere(watch.last_view):
                await watch.viewed.wait()
            with trio.move_on_after(self._replica.settings.idle_leg_seconds):
                while not self._runs_elsewhere(watch.last_view):
                    await watch.viewed.wait()
            if not self._runs_elsewhere(watch.last_view):
                return


class Pulled:
    """A subscription's stream for whoever takes it when told that there is news. All of it is synchronous."""

    def __init__(self, merge: Merge, watch: Watch, progress: Progress) -> None:
        self._merge = merge
        self._watch = watch
        self._progress = progress

    def next(self) -> Taken | None:
        """What the viewer gets next; None: nothing for now. What was given counts as had."""
        return self._merge.next()

    @property
    def more(self) -> bool:
        """Whether to ask again at once: there may be more, and no news of it."""
        return self._watch.view is not None or self._merge.has_rows

    @property
    def has_all_rows(self) -> int | None:
        """The seq up to which the viewer has the live episode, if that is all that its log has; None: it is not."""
        return self._progress.seq if self._merge.has_all_rows else None

    def had(self, seq: int) -> None:
        """The viewer has had the live episode's rows up to this seq, in another way."""
        self._progress.seq = seq

    @property
    def look_at(self) -> float | None:
        """When to look again though no news came, in Trio's time."""
        return self._merge.hold_until

    @property
    def ending(self) -> Exception | None:
        """Why nothing more will come, once `next` has given all there was."""
        return self._watch.ending
