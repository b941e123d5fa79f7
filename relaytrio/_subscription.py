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

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, TypeAlias

import attrs
import trio

from ._errors import ChatDeleted, ChatNotFound, StoreUnavailable, SubscriptionFailed
from ._frames import Bursts, Frames, Item, Taken, decoded
from ._held import Held
from ._hints import Hints, Trouble
from ._latest import Latest
from ._nursery import BodyNursery
from ._parts import PartLog, PartLogs
from ._protocol.events import Cursor, Degraded, Episode, Event
from ._protocol.resume import Progress
from ._protocol.retry import Backoff
from ._relay import Relay, RelayParams, StatusNotification
from ._seams import seam
from ._settings import Settings
from ._shared_reads import SharedReads
from ._wakeup import Announced, Wakeup
from .stores._base import Fingerprint, Store, View

EVENTS_PER_CHECKPOINT = 64
"""A viewer who works through a burst lets others run so often: a checkpoint costs as much as decoding ten events."""


WatchingLog: TypeAlias = Callable[[str, Episode], AbstractContextManager[None]]
"""Watches the log of that chat's episode, for as long as the context lasts."""


@attrs.frozen(kw_only=True)
class ReplicaParts:
    """What subscriptions of one replica share."""

    replica_id: str
    store: Store
    parts: PartLogs
    hints: Hints
    relay: Relay | None
    settings: Settings
    random: Callable[[], float]
    logger: logging.Logger
    reads: SharedReads = attrs.field(init=False)

    @reads.default
    def _own_reads(self) -> SharedReads:
        return SharedReads(self.store, self.settings.store_read_seconds)


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
        self._watch = _Watch(replica, chat_id, self._progress)
        self._merge = _Merge(replica, chat_id, self._progress, self._watch)
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
            self._left = iter(decoded(taken))

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
            item = await self._take_left() or await self._merge.take()
        finally:
            self._taking = False
        self._since_checkpoint = 0
        return item

    async def _take_left(self) -> Item | None:
        """What whoever read before has left. A checkpoint if there is anything."""
        left = tuple(self._left)
        if not left:
            return None
        # Shielded: it is already taken.
        await trio.lowlevel.cancel_shielded_checkpoint()
        return left[-1].cursor, left

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

    def __init__(self, merge: _Merge, watch: _Watch, progress: Progress) -> None:
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


class _Watch:
    """Reads the store when something says "look", and never waits for the viewer."""

    __slots__ = (
        "_chat_id",
        "_episode",
        "_forced",
        "_hinted",
        "_progress",
        "_read_ended",
        "_reading",
        "_reads_ended",
        "_replica",
        "_seen",
        "_since",
        "_wakeup",
        "closed",
        "ending",
        "fingerprint",
        "last_view",
        "news",
        "notifications",
        "over_since",
        "run_relay",
        "troubles",
        "view",
        "viewed",
    )

    def __init__(self, replica: ReplicaParts, chat_id: str, progress: Progress) -> None:
        self.notifications: Latest[StatusNotification] | None = None
        """Of the relay; None: there is none."""
        self.run_relay: Callable[[View], None] = lambda view: None
        """Called with every view."""
        self.last_view: View
        self.viewed = Wakeup()
        """Wakes who waits for the relay to be needed no more."""
        self.closed = False
        self.fingerprint: Fingerprint | None = None
        self.ending: Exception | None = None
        """Why the stream ends."""
        self.view: View | None = None
        """The slot: the newest view that merge has not taken."""
        self.over_since: float | None = None
        """When a view came that says that the live episode of the last one taken is over; a newer one does not extend
        it."""
        self.news = Wakeup()
        """Wakes the viewer."""
        self.troubles: dict[Trouble, tuple[bool, str]] = {}
        self._replica = replica
        self._chat_id = chat_id
        self._progress = progress
        self._wakeup = Wakeup()
        self._forced = False
        self._hinted = 0
        self._seen = 0
        self._episode: Episode | None = None
        self._reading = False
        self._since = 0
        """How many reads of this replica had begun at the last reason to look."""
        self._reads_ended = 0
        self._read_ended: trio.Event | None = None
        """Set at the end of a read, if somebody waits for that."""

    # What others say; all synchronous.

    def begin(self) -> None:
        """The first read is one that begins after now."""
        self._since = self._replica.reads.begun

    def hinted(self, snapshot_version: int) -> None:
        if snapshot_version > self._seen:
            self._hinted = max(self._hinted, snapshot_version)
            self._notice()

    def look(self) -> None:
        self._forced = True
        self._notice()

    def _notice(self) -> None:
        self.begin()
        self._wakeup.set()

    def episode_appeared(self, episode: Episode) -> None:
        """There is a log here of an episode that this viewer may not know of yet."""
        if episode != self._episode and (self._episode is None or not episode < self._episode):
            self.look()

    def tell(self, what: Trouble, ok: bool, message: str) -> None:
        self.troubles[what] = (ok, message)
        self.news.set()

    def tell_relay(self, ok: bool, message: str) -> None:
        self.tell("relay", ok, message)

    def finish(self, ending: Exception) -> None:
        self.ending = self.ending or ending
        self.news.set()

    def close(self) -> None:
        """The viewer leaves."""
        self.closed = True
        if self.notifications is not None:
            self.notifications.close()
        self.news.set()

    async def look_again(self) -> None:
        """Return when a read that began after now has ended, well or badly; or after `look_again_seconds`."""
        enough = self._reads_ended + (2 if self._reading else 1)
        self.look()
        with trio.move_on_after(self._replica.settings.look_again_seconds):
            while self._reads_ended < enough:
                if self._read_ended is None:
                    self._read_ended = trio.Event()
                await self._read_ended.wait()

    # Its own task.

    async def run(self) -> None:
        """Look whenever there is a reason to, until the chat is deleted."""
        settings = self._replica.settings
        backoff = Backoff(settings.store_retry_seconds, settings.store_retry_max_seconds)
        with self._replica.parts.watching_chat(self._chat_id, self.episode_appeared):
            while True:
                await self._wait_for_a_reason()
                try:
                    await self.read()
                except ChatNotFound:
                    self.finish(ChatDeleted(f"chat {self._chat_id} was deleted"))
                    return
                except StoreUnavailable as error:
                    self.tell("store", False, str(error))
                    self._forced = True
                    await self._pause(backoff.next_delay_seconds(self._replica.random()))
                else:
                    backoff.reset()
                    self.tell("store", True, "the store answers again")

    async def _pause(self, seconds: float) -> None:
        """Between two tries. Whoever says meanwhile that there is something to see ends it: the store may be back."""
        self._wakeup.clear()
        with trio.move_on_after(seconds):
            await self._wakeup.wait()

    async def _wait_for_a_reason(self) -> None:
        while not self._forced and self._hinted <= self._seen:
            await self._wakeup.wait()
        # A hint of a version that the store does not have (it was set back) is a reason for one look only.
        self._forced, self._hinted = False, 0

    async def read(self) -> View:
        """One read, from what the viewer has at this moment; its result goes to merge and to the relay."""
        self._reading = True
        try:
            view = await self._replica.reads.read(self._chat_id, self._progress.base, self._since)
            await seam("view read, not laid down", chat_id=self._chat_id, replica_id=self._replica.replica_id)
        finally:
            self._reading = False
            self._reads_ended += 1
            if self._read_ended is not None:
                self._read_ended.set()
                self._read_ended = None
        self._lay_down(view)
        return view

    def _lay_down(self, view: View) -> None:
        self.view = self.last_view = view
        if not self._progress.ends_live_episode(view):
            self.over_since = None
        elif self.over_since is None:
            self.over_since = trio.current_time()
        self._seen = view.chat.snapshot_version
        self._episode = view.chat.live_episode
        self.fingerprint = None if view.more else _fingerprint(view)
        if self.notifications is not None:
            self.notifications.put(StatusNotification.of(view.chat))
        self.run_relay(view)
        self.viewed.set()
        self.news.set()


def _fingerprint(view: View) -> Fingerprint:
    last = view.messages[-1].stamp if view.messages else view.anchor.stamp
    return Fingerprint(view.chat.snapshot_version, last or "", view.chat.run_id)


class _Merge:
    """Decides what the viewer gets next. A context manager, for what it watches."""

    __slots__ = (
        "_chat_id",
        "_log",
        "_log_of",
        "_log_watch",
        "_log_watched",
        "_progress",
        "_replica",
        "_told",
        "_watch",
        "hold_until",
        "watching",
    )

    def __init__(self, replica: ReplicaParts, chat_id: str, progress: Progress, watch: _Watch) -> None:
        self._replica = replica
        self._chat_id = chat_id
        self._progress = progress
        self._watch = watch
        self._told: dict[Trouble, bool] = {}
        self.watching: WatchingLog = self._watching
        self.hold_until: float | None = None
        """Until when a view waits for the last parts."""
        self._log: PartLog | None = None
        self._log_of: Episode | None = None
        self._log_watched: Episode | None = None
        self._log_watch = Held()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._log = None
        self._log_watch.close()

    async def take(self) -> Item:
        """What the viewer gets next. A checkpoint; cancelled, nothing was taken.

        Raises why the stream ends, and `trio.ClosedResourceError` when the viewer has left.
        """
        await seam("asked, not taken", chat_id=self._chat_id, replica_id=self._replica.replica_id)
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while (taken := self.next()) is None:
            if self._watch.closed:
                raise trio.ClosedResourceError("the subscription was left")
            if self._watch.ending is not None:
                raise self._watch.ending
            await self._wait()
            waited = True
        if not waited:
            # Shielded: it is already taken, and a cancelled viewer resumes from its cursor.
            await trio.lowlevel.cancel_shielded_checkpoint()
        return str(self._progress.cursor), taken

    def next(self) -> Taken | None:
        """What the viewer gets next, if there is anything. Synchronous: no state changes between two looks."""
        troubles = self._take_troubles()
        if troubles:
            return troubles
        view = self._watch.view
        if view is not None and not self._progress.fits(view):
            self._watch.view = None
            self._watch.look()
        elif view is not None and not self._must_hold(view):
            events = self._take(view)
            if events:
                return tuple(events)
        return self._next_rows()

    def _take(self, view: View) -> list[Event]:
        self._watch.view = self._watch.over_since = None
        self.hold_until = None
        events = self._progress.take(view)
        if view.more:
            self._watch.look()
        self._watch_log(self._progress.live)
        return events

    def _must_hold(self, view: View) -> bool:
        """The last parts go before the message that they led to, if they are here or on their way."""
        live = self._progress.live
        if live is None or not self._progress.ends_live_episode(view):
            return False
        log = self._replica.parts.find(self._chat_id, live)
        if log is None:
            return False
        if log.ended:
            return log.last_seq > self._progress.seq
        over_since = self._watch.over_since
        if over_since is None:
            return False
        self.hold_until = over_since + self._replica.settings.end_of_episode_seconds
        return trio.current_time() < self.hold_until

    def _next_rows(self) -> Taken | None:
        log = self._live_log()
        burst = None if log is None else log.read(self._progress.seq, self._replica.settings.burst_bytes)
        if log is None or burst is None:
            return None
        if burst.truncated:
            # One thing at a time: the reset first, the rows with the next look.
            reset = self._progress.skip_lost(burst.first_seq, log.lost)
            return (reset,)
        self._progress.take_rows(burst)
        return burst

    def _take_troubles(self) -> tuple[Event, ...]:
        if not self._watch.troubles:
            return ()
        events: list[Event] = []
        if self._progress.base.stamp is None:
            return ()  # before the first view the viewer's cursor is not whole: no event can carry it
        for what, (ok, message) in self._watch.troubles.items():
            if self._told.get(what, True) != ok:
                self._told[what] = ok
                events.append(
                    Degraded(what=what, ok=ok, message=message, retrying=not ok, cursor=str(self._progress.cursor))
                )
        self._watch.troubles.clear()
        return tuple(events)

    @property
    def has_rows(self) -> bool:
        """Whether the live episode has rows that the viewer has not."""
        log = self._live_log()
        return log is not None and log.last_seq > self._progress.seq

    @property
    def has_all_rows(self) -> bool:
        """Whether the live episode has a log here, and no row in it that the viewer has not."""
        log = self._live_log()
        return log is not None and log.last_seq == self._progress.seq

    def _live_log(self) -> PartLog | None:
        """The live episode's log, if there is one here. Looked up once: it is asked for with every burst."""
        live, log = self._progress.live, self._log
        if log is None or log.forgotten or live is not self._log_of:
            log = self._log = None if live is None else self._replica.parts.find(self._chat_id, live)
            self._log_of = live
        return log

    def _watching(self, chat_id: str, episode: Episode) -> AbstractContextManager[None]:
        return self._replica.parts.watching(chat_id, episode, self._watch.news.set)

    def _watch_log(self, episode: Episode | None) -> None:
        if episode == self._log_watched:
            return
        self._log_watch.close()
        self._log_watched = episode
        if episode is not None:
            self._log_watch.enter_context(self.watching(self._chat_id, episode))

    async def _wait(self) -> None:
        if self.hold_until is None:
            await self._watch.news.wait()
            return
        with trio.move_on_at(self.hold_until):
            await self._watch.news.wait()
