"""The side of a subscription that reads the store when something says "look".

It lays what it read into a one-place slot, and never waits for the viewer, so a slow one delays no decision. A view is
cumulative from its base; a newer one overwrites an older.

Must not know: what the viewer gets of it, and when (`_merge.py`). Who calls: the subscription.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import trio

from ._errors import ChatDeleted, ChatNotFound, StoreUnavailable
from ._hints import Hints, Trouble
from ._latest import Latest
from ._parts import PartLogs
from ._protocol.events import Episode
from ._protocol.resume import Progress
from ._protocol.retry import Backoff
from ._relay import Relay, StatusNotification
from ._seams import seam
from ._settings import Settings
from ._shared_reads import SharedReads
from ._wakeup import Wakeup
from .stores._base import Fingerprint, Store, View


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


class Watch:
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
