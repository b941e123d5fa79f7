"""One viewer: watch, merge and relay in one nursery.

- *watch* reads the store when something says "look", and lays what it read into a one-place slot: it never waits for
  the viewer, so a slow one delays no decision. A view is cumulative from its base; a newer one overwrites an older.
- *merge* decides, synchronously, what the viewer gets next (`_protocol/resume.py` knows the rules), and waits for
  nothing but the viewer.
- *relay* keeps the local copy of a remote episode's log filled.

Must not know: sockets, how a hint travels, how a leg is dialed. Who calls: the engine makes subscriptions; viewers
iterate over them; the ASGI app takes their `frames`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self, TypeAlias

import attrs
import trio

from ._bounded import within
from ._errors import ChatDeleted, ChatNotFound, StoreUnavailable, SubscriptionFailed
from ._hints import Hints, Trouble
from ._latest import Latest
from ._nursery import BodyNursery
from ._parts import PartLogs
from ._protocol import wire
from ._protocol.burst import Burst
from ._protocol.events import Cursor, Degraded, Episode, Event
from ._protocol.resume import Progress
from ._protocol.retry import Backoff
from ._relay import Relay, RelayParams, StatusNotification
from ._seams import seam
from ._settings import Settings
from ._wakeup import Wakeup
from .stores._base import Fingerprint, Store, View

ROOM_BURSTS = 2
"""One that the viewer is taking, and one so that it need not wait for the merge."""
EVENTS_PER_CHECKPOINT = 64
"""A viewer who works through a burst lets others run so often: a checkpoint costs as much as decoding ten events."""


@attrs.frozen
class Frame:
    """Events, ready to be sent: a JSON array in UTF-8, and the cursor after its last event."""

    data: bytes
    cursor: str


_Item: TypeAlias = tuple[str, Burst | tuple[Event, ...]]
"""What merge hands to the viewer: the cursor after it, and rows as they are in the log, or other events."""


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


class Subscription:
    """One viewer's stream of one chat: use it as an async context manager, and iterate over it.

    `async for event in subscription` gives decoded events; `subscription.frames()` gives the same as ready bytes. Use
    one of them, from one task. The stream ends with `ChatDeleted` when the chat is deleted, and with
    `ReplicaDraining` when the engine is left; otherwise it has no end: leave the context.

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
        self._decoded: Iterator[Event] = iter(())
        self._since_checkpoint = 0
        self._taking = False
        self._resources = ExitStack()
        self._nursery = BodyNursery(lambda: SubscriptionFailed(f"the subscription to chat {chat_id} failed"))

    async def __aenter__(self) -> Self:
        with ExitStack() as resources:
            # Hints first: nothing committed between the first read and the first hint is missed.
            resources.enter_context(self._replica.hints.watching(self.chat_id, self._watch))
            await seam("watching, not read", chat_id=self.chat_id, replica_id=self._replica.replica_id)
            first = await self._watch.read()
            await self._nursery.__aenter__()
            self._resources = resources.pop_all()
        self._nursery.start_soon(self._watch.run)
        self._nursery.start_soon(self._merge.run)
        if self._replica.relay is not None:
            self._nursery.start_soon(self._run_relay, self._replica.relay, first)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        with self._resources:
            self._watch.notifications.close()
            self._merge.received.close()
            return await self._nursery.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - it cancels its own tasks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. A checkpoint when it waits, and every 64 events."""
        for event in self._decoded:
            return await self._hand_over(event)
        while True:
            _, burst_or_events = await self._take()
            if isinstance(burst_or_events, Burst):
                self._decoded = iter(wire.decode_rows(burst_or_events))
            else:
                self._decoded = iter(burst_or_events)
            for event in self._decoded:
                return await self._hand_over(event)

    def frames(self) -> Frames:
        """The stream as ready frames."""
        return Frames(self)

    async def _hand_over(self, event: Event) -> Event:
        self._since_checkpoint += 1
        if self._since_checkpoint >= EVENTS_PER_CHECKPOINT:
            self._since_checkpoint = 0
            # Shielded: the event is already taken, and a cancelled viewer resumes from its cursor.
            await trio.lowlevel.cancel_shielded_checkpoint()
        self.cursor = event.cursor
        return event

    async def _take(self) -> _Item:
        self._nursery.check_entered()
        if self._taking:
            raise trio.BusyResourceError("another task is reading this subscription")
        self._taking = True
        try:
            item = await self._merge.received.receive()
        except trio.EndOfChannel:
            raise self._watch.ending or SubscriptionFailed("the stream ended") from None
        finally:
            self._taking = False
        self._since_checkpoint = 0
        return item

    async def _run_relay(self, relay: Relay, first: View) -> None:
        params = RelayParams(
            chat_id=self.chat_id,
            first_view=first,
            replica_id=self._replica.replica_id,
            notifications=self._watch.notifications,
            parts=self._replica.parts,
            headers=self._headers,
            look_again=self._watch.look_again,
            tell=self._watch.tell_relay,
            store=self._replica.store,
            logger=self._replica.logger,
        )
        async with relay.open(params):
            await trio.sleep_forever()


class Frames:
    """A subscription's stream as frames; an async iterator."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._frames: Iterator[Frame] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        """The next frame: at most `burst_bytes`, but for a single event that is larger. A checkpoint when it waits."""
        while True:
            for frame in self._frames:
                self._subscription.cursor = frame.cursor
                return frame
            cursor, burst_or_events = await self._subscription._take()
            if isinstance(burst_or_events, Burst):
                self._frames = iter([Frame(b"[%b]" % burst_or_events.rows, cursor)])
            else:
                self._frames = _framed(burst_or_events, self._subscription._replica.settings.burst_bytes)


def _framed(events: tuple[Event, ...], limit_bytes: int) -> Iterator[Frame]:
    rows: list[bytes] = []
    size, cursor = 0, ""
    for event in events:
        row = wire.encode_event(event)
        if rows and size + len(row) > limit_bytes:
            yield Frame(wire.encode_frame(rows), cursor)
            rows, size = [], 0
        rows.append(row)
        size, cursor = size + len(row) + 2, event.cursor
    yield Frame(wire.encode_frame(rows), cursor)


class _Watch:
    """Reads the store when something says "look", and never waits for the viewer."""

    def __init__(self, replica: ReplicaParts, chat_id: str, progress: Progress) -> None:
        self.notifications: Latest[StatusNotification] = Latest()
        self.fingerprint: Fingerprint | None = None
        self.ending: Exception | None = None
        """Why the stream ends."""
        self.view: View | None = None
        """The slot: the newest view that merge has not taken."""
        self.news = Wakeup()
        """Wakes merge."""
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
        self._reads_ended = 0
        self._read_ended = trio.Event()

    # What others say; all synchronous.

    def hinted(self, snapshot_version: int) -> None:
        if snapshot_version > self._seen:
            self._hinted = max(self._hinted, snapshot_version)
            self._wakeup.set()

    def look(self) -> None:
        self._forced = True
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

    async def look_again(self) -> None:
        """Return when a read that began after now has ended, well or badly; or after `look_again_seconds`."""
        enough = self._reads_ended + (2 if self._reading else 1)
        self.look()
        with trio.move_on_after(self._replica.settings.look_again_seconds):
            while self._reads_ended < enough:
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
            view = await within(
                self._replica.settings.store_read_seconds,
                self._replica.store.read_view(self._chat_id, self._progress.base),
            )
            await seam("view read, not laid down", chat_id=self._chat_id, replica_id=self._replica.replica_id)
        finally:
            self._reading = False
            self._reads_ended += 1
            self._read_ended.set()
            self._read_ended = trio.Event()
        self._lay_down(view)
        return view

    def _lay_down(self, view: View) -> None:
        self.view = view
        self._seen = view.chat.snapshot_version
        self._episode = view.chat.live_episode
        self.fingerprint = None if view.more else _fingerprint(view)
        self.notifications.put(StatusNotification.of(view.chat))
        self.news.set()


def _fingerprint(view: View) -> Fingerprint:
    last = view.messages[-1].stamp if view.messages else view.anchor.stamp
    return Fingerprint(view.chat.snapshot_version, last or "", view.chat.run_id)


class _Merge:
    """Decides what the viewer gets next, and waits for nothing but the viewer."""

    def __init__(self, replica: ReplicaParts, chat_id: str, progress: Progress, watch: _Watch) -> None:
        self._out, self.received = trio.open_memory_channel[_Item](ROOM_BURSTS)
        self._replica = replica
        self._chat_id = chat_id
        self._progress = progress
        self._watch = watch
        self._told: dict[Trouble, bool] = {}
        self._hold_until: float | None = None
        self._log_watched: Episode | None = None
        self._log_watch = ExitStack()

    async def run(self) -> None:
        """Send what is to be sent, until the stream ends."""
        with self._out, self._log_watch:
            while True:
                item = self._next()
                if item is not None:
                    await seam("taken, not sent", chat_id=self._chat_id, replica_id=self._replica.replica_id)
                    try:
                        await self._out.send(item)
                    except trio.BrokenResourceError:
                        return  # the viewer is leaving
                elif self._watch.ending is not None:
                    return
                else:
                    await self._wait()

    def _next(self) -> _Item | None:
        """What the viewer gets next, if there is anything. Synchronous: no state changes between two looks."""
        troubles = self._take_troubles()
        if troubles:
            return self._item(troubles)
        view = self._watch.view
        if view is not None and not self._progress.fits(view):
            self._watch.view = None
            self._watch.look()
        elif view is not None and not self._must_hold(view):
            events = self._take(view)
            if events:
                return self._item(tuple(events))
        return self._next_rows()

    def _take(self, view: View) -> list[Event]:
        self._watch.view = None
        self._hold_until = None
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
        if self._hold_until is None:
            self._hold_until = trio.current_time() + self._replica.settings.end_of_episode_seconds
        return trio.current_time() < self._hold_until

    def _next_rows(self) -> _Item | None:
        live = self._progress.live
        log = None if live is None else self._replica.parts.find(self._chat_id, live)
        burst = None if log is None else log.read(self._progress.seq, self._replica.settings.burst_bytes)
        if log is None or burst is None:
            return None
        if burst.truncated:
            # One thing at a time: the reset first, the rows with the next look.
            reset = self._progress.skip_lost(burst.first_seq, log.lost)
            return self._item((reset,))
        self._progress.take_rows(burst)
        return self._item(burst)

    def _take_troubles(self) -> tuple[Event, ...]:
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

    def _item(self, burst_or_events: Burst | tuple[Event, ...]) -> _Item:
        return (str(self._progress.cursor), burst_or_events)

    def _watch_log(self, episode: Episode | None) -> None:
        if episode == self._log_watched:
            return
        self._log_watch.close()
        self._log_watched = episode
        if episode is not None:
            watching = self._replica.parts.watching(self._chat_id, episode, self._watch.news.set)
            self._log_watch.enter_context(watching)

    async def _wait(self) -> None:
        if self._hold_until is None:
            await self._watch.news.wait()
            return
        with trio.move_on_at(self._hold_until):
            await self._watch.news.wait()
