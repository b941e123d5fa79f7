"""The side of a subscription that decides, synchronously, what the viewer gets next, when the viewer asks for it.

It has no task and no queue of its own; `_protocol/resume.py` knows the rules. Must not know: when the store is read
(`_watch.py`), who brings rows into a log. Who calls: the subscription.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self, TypeAlias

import trio

from ._frames import Item, Taken
from ._held import Held
from ._hints import Trouble
from ._parts import PartLog
from ._protocol.events import Degraded, Episode, Event
from ._protocol.resume import Progress
from ._seams import seam
from ._watch import ReplicaParts, Watch
from .stores._base import View

WatchingLog: TypeAlias = Callable[[str, Episode], AbstractContextManager[None]]
"""Watches the log of that chat's episode, for as long as the context lasts."""


class Merge:
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

    def __init__(self, replica: ReplicaParts, chat_id: str, progress: Progress, watch: Watch) -> None:
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
            if self.hold_until is None:
                await self._watch.news.wait()
            else:
                with trio.move_on_at(self.hold_until):
                    await self._watch.news.wait()
            waited = True
        if not waited:
            # Shielded: it is already taken, and a cancelled viewer resumes from its cursor.
            await trio.lowlevel.cancel_shielded_checkpoint()
        return self._progress.cursor_text, taken

    def next(self) -> Taken | None:
        """What the viewer gets next, if there is anything. Synchronous: no state changes between two looks."""
        if self._watch.troubles and (troubles := self._take_troubles()):
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
