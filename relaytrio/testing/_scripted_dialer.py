"""A dialer that a test drives: each dial is completed, failed, left hanging, fed or dropped when the test says so.

Decides nothing by itself and never sleeps: whatever is not done by the test does not happen. It keeps the contract of
`relaytrio._dialer`, but for a dial that was told to ignore its cancellation. Who calls: the relay on one side, a test
on the other; both run in one Trio loop.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from .._dialer import DialRequest, Leg, LegEnd
from .._errors import DialError, LegLost
from .._protocol import wire
from .._protocol.burst import Burst, join
from .._protocol.events import Cursor, Episode
from .._protocol.peer_wire import EndReason
from .._seams import seam
from .._settings import Settings
from .._wakeup import Wakeup

NOTHING = Cursor()


@attrs.frozen
class Selection:
    """What the relay asked of a leg."""

    episode: Episode
    after_seq: int


def text_burst(
    episode: Episode, texts: Sequence[str], *, first_seq: int = 1, cursor: Cursor = NOTHING, truncated: bool = False
) -> Burst:
    """The burst of a part `{"type": "text", ...}` for each text, in real rows.

    `cursor` names the last message of the history that the episode goes on from; its episode is of no account.
    """
    prefix = wire.cursor_prefix(cursor.message, episode)
    limit_bytes = Settings().part_bytes
    rows = [
        wire.encode_part_row(episode, seq, prefix, {"type": "text", "text": text}, limit_bytes=limit_bytes)
        for seq, text in enumerate(texts, first_seq)
    ]
    return join(episode, first_seq, rows, truncated=truncated)


class ScriptedDialer:
    """A `Dialer` whose dials wait for the test.

    `on_dial`, if given, is called with each dial at once, in the task of the relay that dials; it may complete or fail
    it. With `stubborn`, every dial ignores its cancellation (see `ScriptedDial.ignore_cancellation`). With `lays_down`,
    a burst before which nothing waits is offered to the relay in the step in which it is fed (`DialRequest.lay_down`).
    """

    def __init__(
        self,
        on_dial: Callable[[ScriptedDial], object] | None = None,
        *,
        stubborn: bool = False,
        lays_down: bool = False,
    ) -> None:
        self.dials: list[ScriptedDial] = []
        """All that there were, in the order in which the relay dialed."""
        self._on_dial = on_dial
        self._stubborn = stubborn
        self._lays_down = lays_down
        self._announce, self._announced = trio.open_memory_channel["ScriptedDial"](math.inf)

    def dial(self, request: DialRequest) -> AbstractAsyncContextManager[Leg]:
        """For the relay: a leg, as soon as the test completes the dial."""
        return self._dial(request)

    @asynccontextmanager
    async def _dial(self, request: DialRequest) -> AsyncIterator[Leg]:
        await trio.lowlevel.checkpoint()
        dial = ScriptedDial(request, stubborn=self._stubborn, lays_down=self._lays_down)
        self.dials.append(dial)
        self._announce.send_nowait(dial)
        if self._on_dial is not None:
            self._on_dial(dial)
        if dial.pending:
            await dial._until_decided()
        leg = dial._outcome()
        try:
            yield _FarEnd(leg)
        finally:
            leg.closed.set()

    async def next_dial(self) -> ScriptedDial:
        """The next dial that was not returned yet, in the order of dialing, whatever has become of it since.

        Waits until the relay dials. A checkpoint.
        """
        return await self._announced.receive()

    async def no_dial(self) -> None:
        """Let all tasks run until they wait, then raise `AssertionError` if a dial came that was not returned yet."""
        await wait_all_tasks_blocked()
        count = self._announced.statistics().current_buffer_used
        if count:
            raise AssertionError(f"expected no dial, there is {_listed(self.dials[-count:])}")

    @property
    def pending_dials(self) -> list[ScriptedDial]:
        """Those that the relay is waiting for."""
        return [dial for dial in self.dials if dial.pending]

    @property
    def open_legs(self) -> list[ScriptedLeg]:
        """Those that the relay has not left."""
        return [dial.leg for dial in self.dials if dial.leg is not None and dial.open]

    def assert_quiet(self) -> None:
        """Raise `AssertionError` if a dial is pending or a leg is open."""
        busy = [dial for dial in self.dials if dial.pending or dial.open]
        if busy:
            raise AssertionError(f"expected no pending dial and no open leg, there is {_listed(busy)}")


class ScriptedDial:
    """One attempt of the relay to open a leg, in the hands of the test. Left alone, it hangs."""

    def __init__(self, request: DialRequest, *, stubborn: bool = False, lays_down: bool = False) -> None:
        self.request = request
        self._lays_down = lays_down
        self.leg: ScriptedLeg | None = None
        """What `complete` gave."""
        self.error: DialError | None = None
        """What `fail` was called with."""
        self.cancelled = False
        """Whether the relay gave it up before it was completed or failed."""
        self._stubborn = stubborn
        self._waiter: trio.lowlevel.Task | None = None
        self._gone = False
        """Whether there is nobody any more to whom it could give a leg."""

    def __repr__(self) -> str:
        return f"<dial of {self.worker_id} for chat {self.request.chat_id}: {self.state}>"

    @property
    def worker_id(self) -> str:
        """The replica that is dialed."""
        return self.request.worker_id

    @property
    def state(self) -> str:
        """`pending`, `open`, `closed`, `failed` or `cancelled`."""
        if self.leg is not None:
            return "closed" if self.leg.closed.is_set() else "open"
        if self.error is not None and not self._gone:
            return "failed"
        return "cancelled" if self.cancelled else "pending"

    @property
    def pending(self) -> bool:
        """Whether the relay is waiting for it."""
        return self.state == "pending"

    @property
    def open(self) -> bool:
        """Whether it gave a leg that the relay has not left."""
        return self.state == "open"

    @property
    def closed(self) -> bool:
        """Whether it gave a leg that the relay has left."""
        return self.state == "closed"

    def ignore_cancellation(self) -> None:
        """Be a connection attempt that cannot be stopped: given up by the relay, it still ends when the test says so.

        What it comes to is then handed to a relay that was cancelled long ago. Until then, whoever waits for the end
        of the relay waits.
        """
        self._stubborn = True

    def complete(self) -> ScriptedLeg:
        """The dial succeeds. Of one that was cancelled (and is not stubborn), the leg is closed from the start."""
        self._decide()
        self.leg = ScriptedLeg(self.request, lays_down=self._lays_down)
        if self._gone:
            self.leg.closed.set()
        return self.leg

    def fail(self, error: DialError | None = None) -> None:
        """The dial fails with this error. Of one that was cancelled (and is not stubborn), nobody hears of it."""
        self._decide()
        self.error = error or DialError(self.worker_id, "this dial was told to fail")

    def _decide(self) -> None:
        if self.leg is not None or self.error is not None:
            raise ValueError(f"already decided: {self!r}")
        if self._waiter is not None:
            trio.lowlevel.reschedule(self._waiter)
            self._waiter = None

    async def _until_decided(self) -> None:
        self._waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _outcome(self) -> ScriptedLeg:
        if self.error is not None:
            raise self.error
        if self.leg is None:
            raise ValueError(f"woken by somebody else than the test: {self!r}")
        return self.leg

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self.cancelled = True
        if self._stubborn:
            return trio.lowlevel.Abort.FAILED
        self._waiter, self._gone = None, True
        return trio.lowlevel.Abort.SUCCEEDED


class ScriptedLeg:
    """The worker's end of a leg, in the hands of the test.

    What is fed waits in an unbounded queue until the relay takes it; after the relay has left, it goes nowhere.
    """

    def __init__(self, request: DialRequest, *, lays_down: bool = False) -> None:
        self.request = request
        self._lay_down = request.lay_down if lays_down else None
        self.selections: list[Selection] = []
        """All that the relay asked for, in order."""
        self.closed = trio.Event()
        """Set when the relay has left the leg."""
        self._announce, self._announced = trio.open_memory_channel[Selection](math.inf)
        self._items: deque[Burst | LegEnd] = deque()
        self._news = Wakeup()
        self._over: str | None = None
        """Why the relay will find the connection gone."""
        self._dropped = False
        self._sent: dict[Episode, int] = {}

    async def selected(self) -> Selection:
        """The next selection that was not returned yet. Waits until the relay selects. A checkpoint."""
        return await self._announced.receive()

    def feed(self, item: Burst | LegEnd) -> None:
        """Send this. Raises `trio.ClosedResourceError` after `drop` or `hang_up`."""
        if self._over:
            raise trio.ClosedResourceError("the test has ended this leg")
        if isinstance(item, Burst):
            self._sent[item.episode] = item.last_seq
        if not self.closed.is_set() and not self._is_laid_down(item):
            self._items.append(item)
            self._news.set()

    def _is_laid_down(self, item: Burst | LegEnd) -> bool:
        if self._lay_down is None or self._items or not isinstance(item, Burst):
            return False
        return wire.are_parts(item) and self._lay_down(item)

    def feed_parts(
        self,
        episode: Episode,
        texts: Sequence[str],
        *,
        first_seq: int | None = None,
        cursor: Cursor = NOTHING,
        truncated: bool = False,
    ) -> Burst:
        """Send a part for each text, in one burst of real rows, and return the burst.

        Without `first_seq` they go on from what was sent of that episode since it was selected. For `cursor` see
        `text_burst`.
        """
        first = self._sent.get(episode, 0) + 1 if first_seq is None else first_seq
        burst = text_burst(episode, texts, first_seq=first, cursor=cursor, truncated=truncated)
        self.feed(burst)
        return burst

    def end(
        self, reason: EndReason, last_seq: int, owner_id: str | None = None, *, episode: Episode | None = None
    ) -> None:
        """Send the end of an episode: of the one that was selected last, unless another is named."""
        if episode is None:
            if not self.selections:
                raise ValueError("nothing was selected on this leg: name the episode that ends")
            episode = self.selections[-1].episode
        self.feed(LegEnd(episode, reason, last_seq, owner_id))

    def drop(self) -> None:
        """The connection is lost: the relay gets what was fed before, then `LegLost`; a select gets it at once."""
        self._end_connection("the connection was lost")
        self._dropped = True

    def hang_up(self) -> None:
        """The peer closes: the relay gets what was fed before, then the iteration just ends."""
        self._end_connection("the peer has closed the connection")

    def _end_connection(self, why: str) -> None:
        self._over = why
        self._news.set()

    def _select(self, selection: Selection) -> None:
        if self._over:
            raise LegLost(self.request.worker_id, self._over)
        self.selections.append(selection)
        self._sent[selection.episode] = selection.after_seq
        self._announce.send_nowait(selection)

    async def _next(self) -> Burst | LegEnd:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._items:
            if self._over:
                await trio.lowlevel.checkpoint()
                raise LegLost(self.request.worker_id, self._over) if self._dropped else StopAsyncIteration
            await self._news.wait()
        if isinstance(self._items[0], Burst):
            await seam("rows came, not laid down", chat_id=self.request.chat_id, worker_id=self.request.worker_id)
        item = self._items.popleft()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return item


class _FarEnd:
    """The relay's end of a leg."""

    def __init__(self, leg: ScriptedLeg) -> None:
        self._leg = leg

    async def select(self, episode: Episode, after_seq: int) -> None:
        await trio.lowlevel.checkpoint()
        self._leg._select(Selection(episode, after_seq))

    def __aiter__(self) -> AsyncIterator[Burst | LegEnd]:
        return self

    async def __anext__(self) -> Burst | LegEnd:
        return await self._leg._next()


def _listed(dials: Sequence[ScriptedDial]) -> str:
    return ", ".join(map(repr, dials))
