"""Which worker to follow: the dial as a child scope, retry, hand-over.

All that exists for a target (a worker's replica) lives in the target's cancel scope: the dial, the leg, the wait to
try again, and the attendance of the copies that it fills. A new target cancels that scope and starts a child of its
own, at once; the dial does not wait until the old leg has finished closing. What a late leg still brings belongs to
its own episode's log: it cannot reach a viewer who has moved on.

Must not know: messages, the queue, what a status means beyond "runs there", viewers. Who calls: a subscription, with
`MultiReplicaRelay.open`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from typing import Protocol

import attrs
import trio

from ._dialer import Dialer, DialRequest, Leg, LegEnd
from ._errors import BadReplicaAddress, DialError, DialRefused, LegLost, ReplicaNotFound
from ._latest import Latest
from ._parts import PartLog, PartLogs
from ._protocol.burst import Burst
from ._protocol.chat import Chat
from ._protocol.events import ChatStatus, Episode
from ._protocol.retry import Backoff
from ._protocol.wire import are_parts
from ._seams import Seam, seam
from ._settings import Settings
from .stores._base import Store, View

FAILURES_TOLD = 3
"""A single failed dial is everyday (a replica restarts); so many in a row are told to the viewer."""


@attrs.frozen
class StatusNotification:
    """Where a chat runs, as a read of the store saw it."""

    status: ChatStatus
    worker_id: str | None
    episode: Episode | None
    """The live episode, if there is one."""
    snapshot_version: int

    @classmethod
    def of(cls, chat: Chat) -> StatusNotification:
        """What a chat's row says of it."""
        return cls(chat.status, chat.worker_id, chat.live_episode, chat.snapshot_version)


@attrs.frozen(kw_only=True)
class RelayParams:
    """What a relay is given for one subscription."""

    chat_id: str
    first_view: View
    """The one that says that the chat runs elsewhere."""
    replica_id: str
    """This replica: a chat that runs here needs no leg."""
    notifications: Latest[StatusNotification]
    """Where the chat runs from now on; the newest replaces the older. Closed by the engine, by nobody else."""
    parts: PartLogs
    """Where rows go."""
    headers: Mapping[str, str] = attrs.field(repr=False)
    """The viewer's."""
    look_again: Callable[[], Awaitable[None]]
    """Returns when a fresh read of the store has ended, well or badly, or after `look_again_seconds`."""
    tell: Callable[[bool, str], None]
    """Tell the viewer that the relay does not work (False, why) or works again (True)."""
    store: Store
    logger: logging.Logger


class Relay(Protocol):
    """Anything that keeps the local copies of remote episodes' logs filled."""

    def open(self, params: RelayParams) -> AbstractAsyncContextManager[None]:
        """Work for one subscription for as long as the context lasts.

        It is opened when the chat begins to run elsewhere, and left when it has not for `idle_leg_seconds`, or with the
        subscription.
        """


@attrs.define
class RelayCounts:
    """How many legs there are and were, over all subscriptions of a relay."""

    open: int = 0
    opened: int = 0
    dials: int = 0


@attrs.frozen(kw_only=True)
class RelayConfig:
    """How `MultiReplicaRelay` reaches other replicas."""

    dialer: Dialer
    settings: Settings = Settings()
    random: Callable[[], float] = random.random
    """Evenly from [0, 1), for the jitter of retries."""


class MultiReplicaRelay:
    """The relay that dials the replica which owns a chat."""

    def __init__(self, config: RelayConfig) -> None:
        self.config = config
        self.counts = RelayCounts()

    @asynccontextmanager
    async def open(self, params: RelayParams) -> AsyncIterator[None]:
        """Follow the chat's worker from its first view on."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_Following(self.config, self.counts, params, nursery).run)
            yield
            nursery.cancel_scope.cancel()


class _Target:
    """One worker that is being followed, and the scope of all that exists for it."""

    def __init__(self, params: RelayParams, worker_id: str, backoff: Backoff, grace_seconds: float) -> None:
        self.worker_id = worker_id
        self.scope = trio.CancelScope()
        self.leaving = False
        self.retry = backoff
        self.resting = False
        """Waiting to dial again: what comes meanwhile comes by others' legs."""
        self.version = 0
        self.changes = 0
        """Counts what a wait on behalf of the wanted episode must not outlive; see `until_changed`."""
        self.episode: Episode | None = None
        self._waiting = trio.CancelScope()
        self._params = params
        self._grace_seconds = grace_seconds
        """How long a viewer waits for the last rows of an episode that is over."""
        self._attended: dict[Episode, tuple[PartLog, ExitStack]] = {}
        self.wanted: PartLog | None = None
        """The copy of the wanted episode."""
        self._over_at: dict[Episode, float] = {}
        """When each attended episode but the wanted one was followed by another."""

    def want(self, notification: StatusNotification) -> None:
        """The chat (still, or again) runs at this worker."""
        self.version = notification.snapshot_version
        if self.leaving:
            self.leaving, self.scope.deadline = False, float("inf")
        if notification.episode == self.episode:
            return
        former, self.episode, self.wanted = self.episode, notification.episode, None
        if former is not None:
            self._over_at[former] = trio.current_time()
        if self.episode is not None:
            self.retry.reset()
            self.wanted = self._attend(self.episode)
            self._leave_the_old()
        self._change()

    def leave(self) -> None:
        """The chat runs here no more: what is under way may bring the end of its episode, for a moment."""
        if self.leaving:
            return
        self.leaving = True
        if self.is_done:
            self.scope.cancel()
        else:
            self.scope.deadline = trio.current_time() + self._grace_seconds
        self._change()

    @property
    def is_done(self) -> bool:
        """Nothing is wanted that is not here."""
        return self.wanted is None or self.wanted.sealed

    @property
    def copy(self) -> PartLog | None:
        """The copy that is to be filled, if there is one."""
        return None if self.wanted is None or self.wanted.sealed else self.wanted

    def attended(self, episode: Episode) -> PartLog | None:
        """The copy of that episode, if it is one that this target fills."""
        found = self._attended.get(episode)
        return None if found is None else found[0]

    def until_changed(self, since: int) -> trio.CancelScope:
        """A scope that is cancelled by the first change after the count of changes was `since`."""
        self._waiting = trio.CancelScope()
        if self.changes != since:
            self._waiting.cancel()
        return self._waiting

    async def seam(self, name: Seam) -> None:
        """Let a test act here."""
        params = self._params
        await seam(name, chat_id=params.chat_id, replica_id=params.replica_id, worker_id=self.worker_id)

    def leave_all_but(self, *kept: Episode | None) -> None:
        """Stop to attend the copies of other episodes."""
        for episode in [episode for episode in self._attended if episode not in kept]:
            self._over_at.pop(episode, None)
            copy, stack = self._attended.pop(episode)
            if copy is self.wanted:
                self.wanted = None
            stack.close()

    def _leave_the_old(self) -> None:
        """Nobody waits any more for what is over for so long; what followed fast may all still be on its way."""
        since = trio.current_time() - self._grace_seconds
        self.leave_all_but(self.episode, *(former for former, over_at in self._over_at.items() if over_at > since))

    def _attend(self, episode: Episode) -> PartLog:
        self._over_at.pop(episode, None)
        if episode not in self._attended:
            stack = ExitStack()
            copy = stack.enter_context(self._params.parts.filling(self._params.chat_id, episode, self._is_resting))
            self._attended[episode] = (copy, stack)
        return self._attended[episode][0]

    def _is_resting(self) -> bool:
        return self.resting

    def _change(self) -> None:
        self.changes += 1
        self._waiting.cancel()


class _NotOwner(Exception):
    """The peer says that the chat is not its own: only a reason to look again."""


class _Following:
    """One subscription's relay."""

    def __init__(self, config: RelayConfig, counts: RelayCounts, params: RelayParams, nursery: trio.Nursery) -> None:
        self._settings = config.settings
        self._dialer = config.dialer
        self._random = config.random
        self._counts = counts
        self._params = params
        self._nursery = nursery
        self._told = False
        self._target: _Target | None = None

    async def run(self) -> None:
        """Turn to wherever the chat runs, for as long as the notifications last."""
        self._turn_to(StatusNotification.of(self._params.first_view.chat))
        while True:
            try:
                notification = await self._params.notifications.get()
            except trio.EndOfChannel:
                # No more news: what is followed goes on being followed until the subscription ends.
                return
            self._turn_to(notification)

    def _turn_to(self, notification: StatusNotification) -> None:
        worker_id = self._remote_worker(notification)
        target = self._target
        if target is not None and target.worker_id != worker_id:
            self._tell_again("the chat has moved on")
        if worker_id is None:
            if target is not None:
                target.leave()
        elif target is None or target.worker_id != worker_id or target.scope.cancel_called:
            if target is not None:
                target.scope.cancel()
            target = self._target = _Target(
                self._params, worker_id, self._backoff(), self._settings.end_of_episode_seconds
            )
            target.want(notification)
            self._nursery.start_soon(self._follow, target)
        else:
            target.want(notification)

    def _remote_worker(self, notification: StatusNotification) -> str | None:
        if notification.status not in ("running", "interrupting"):
            return None
        return None if notification.worker_id == self._params.replica_id else notification.worker_id

    def _backoff(self) -> Backoff:
        return Backoff(self._settings.dial_retry_seconds, self._settings.dial_retry_max_seconds)

    async def _follow(self, target: _Target) -> None:
        """Keep the copies of the target worker's episodes filled for as long as the target stands.

        Runs inside `target.scope`: superseding a target is cancelling that scope, and with it goes whatever this
        function was doing - dialing, selecting, reading or waiting to try again.
        """
        try:
            with target.scope:
                await self._keep_filled(target)
        finally:
            target.leave_all_but()
            target.scope.cancel()  # who returns here later starts anew

    async def _keep_filled(self, target: _Target) -> None:
        refusals, disowned_version = 0, 0
        while not target.leaving:
            if target.is_done:
                await self._wait_until_wanted(target)
                continue
            try:
                await self._fill_over_one_leg(target)
                refusals = 0
            except DialRefused as refusal:
                refusals += 1
                await self._after_refusal(target, refusal, refusals)
            except _NotOwner:
                refusals = 0
                since = target.changes
                await self._look_again()
                # One immediate dial for each version of the chat that still names this worker.
                if target.version <= disowned_version:
                    await self._wait_to_retry(target, self._next_delay(target), since)
                disowned_version = target.version
            except DialError as error:
                refusals = 0  # only those in a row count: a leg may have been good for long before it was lost
                await self._after_failure(target, error)

    async def _wait_until_wanted(self, target: _Target) -> None:
        since = target.changes
        target.leave_all_but(target.episode)
        with target.until_changed(since):
            await trio.sleep_forever()

    async def _fill_over_one_leg(self, target: _Target) -> None:
        """Dial, and fill the wanted copies until nothing was wanted for a while. Raises how the leg failed."""
        filling = _Filling(self._settings, target, self._look_again, self._row_came)
        request = DialRequest(self._params.chat_id, target.worker_id, self._params.headers, filling.lay_down)
        await target.seam("about to dial")
        self._counts.dials += 1
        async with self._dialer.dial(request) as leg:
            self._counts.opened += 1
            self._counts.open += 1
            try:
                await target.seam("dialed, not selected")
                await filling.run(leg)
            finally:
                self._counts.open -= 1

    async def _after_failure(self, target: _Target, error: DialError) -> None:
        self._note(target, error)
        if target.leaving:
            return  # no time for another try: without its filler the copy counts as ended, and nobody waits for it
        since = target.changes
        await target.seam("leg lost, not resting")
        await self._wait_to_retry(target, self._next_delay(target), since)
        await target.seam("rested, not looked again")
        await self._look_again()

    async def _after_refusal(self, target: _Target, refusal: DialRefused, refusals: int) -> None:
        """Once more with a fresh grant, then at the slowest pace: a refusal does not pass by itself."""
        if refusals > 1:
            self._note(target, refusal)
            await self._wait_to_retry(target, self._settings.dial_retry_max_seconds, target.changes)
        await self._look_again()

    async def _look_again(self) -> None:
        """Look, and turn to what was seen before anything else is done: the next dial is to whom the chat names now."""
        await self._params.look_again()
        with suppress(trio.WouldBlock):
            self._turn_to(self._params.notifications.get_nowait())
        await trio.lowlevel.checkpoint_if_cancelled()

    def _next_delay(self, target: _Target) -> float:
        return target.retry.next_delay_seconds(self._random())

    async def _wait_to_retry(self, target: _Target, delay_seconds: float, since: int) -> None:
        """Wait, unless something else is wanted since then, or the last other filler of the copy leaves it to us."""
        copy = target.copy
        if copy is None:
            return
        copy.left_alone.clear()
        target.resting = True  # and still so if it is cancelled here: who never filled leaves nobody alone
        with target.until_changed(since) as scope:
            scope.deadline = trio.current_time() + delay_seconds
            await copy.left_alone.wait()
        target.resting = False

    def _note(self, target: _Target, error: DialError) -> None:
        """One dial or leg failed: log it, and tell the viewer what does not pass by itself or has lasted."""
        self._params.logger.info(
            "chat %s: no parts from its worker for now, dialing again: %s", self._params.chat_id, error
        )
        lasting = isinstance(error, DialRefused | ReplicaNotFound | BadReplicaAddress)
        if (lasting or target.retry.failures + 1 >= FAILURES_TOLD) and not self._told:
            self._told = True
            self._params.tell(False, str(error))

    def _row_came(self) -> None:
        self._tell_again("parts arrive again")

    def _tell_again(self, message: str) -> None:
        """Take back what the viewer was told, if it was told anything."""
        if self._told:
            self._told = False
            self._params.tell(True, message)


class _Filling:
    """What happens on one open leg: select the wanted episode, extend its copy, wait a while for the next."""

    _leg: Leg

    def __init__(
        self,
        settings: Settings,
        target: _Target,
        look_again: Callable[[], Awaitable[None]],
        row_came: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._target = target
        self._look_again = look_again
        self._row_came = row_came
        self._selected: Episode | None = None
        self._selected_after = 0
        self._asked_again = False
        self._healthy = False
        """It was told that this leg is healthy, and a failure would be its end."""

    def lay_down(self, burst: Burst) -> bool:
        """Take a burst, certainly of parts, if it is nothing but the next rows of the wanted episode. False: it is for
        `run` to decide of."""
        copy = self._target.wanted
        # What is wanted may be another episode than what was selected: nobody has turned to it yet.
        selected = self._selected
        if copy is None or not (copy.episode is selected or copy.episode == selected):
            return False
        follows = burst.episode == selected and burst.first_seq <= copy.last_seq + 1 and not copy.sealed
        if follows:
            if not self._healthy:
                self._note_health(burst)
            copy.extend(burst)
        return follows

    async def run(self, leg: Leg) -> None:
        """Return when no episode was wanted for `idle_leg_seconds`, or the chat has left and all is here.

        Raises a `DialError` or `_NotOwner` when the leg ends otherwise.
        """
        self._leg = leg
        target = self._target
        while True:
            since = target.changes
            copy = target.copy
            if copy is not None and copy.episode != self._selected:
                self._asked_again = False
                await self._select(copy)
            with target.until_changed(since) as reading:
                await self._read(reading)
            if target.changes == since or (target.leaving and target.is_done):
                return

    async def _select(self, copy: PartLog) -> None:
        self._selected, self._selected_after = copy.episode, copy.last_seq
        await self._leg.select(copy.episode, copy.last_seq)
        await self._target.seam("selected, nothing read")

    async def _read(self, reading: trio.CancelScope) -> None:
        """Take what comes, for as long as something is wanted, and `idle_leg_seconds` longer."""
        self._mind_the_end(reading)
        try:
            async for item in self._leg:
                if isinstance(item, Burst):
                    await self._extend(item)
                else:
                    await self._end(item)
                self._mind_the_end(reading)
        except LegLost:
            if not self._target.is_done:
                raise
        if not self._target.is_done:
            raise LegLost(self._target.worker_id, "the leg ended in the middle of an episode")

    def _mind_the_end(self, reading: trio.CancelScope) -> None:
        if not self._target.is_done:
            return
        if self._target.leaving:
            self._target.scope.cancel()
        elif reading.deadline == float("inf"):
            reading.deadline = trio.current_time() + self._settings.idle_leg_seconds

    async def _extend(self, burst: Burst) -> None:
        copy = self._target.attended(burst.episode)
        if copy is not None and burst.last_seq > copy.last_seq and not are_parts(burst):
            raise LegLost(self._target.worker_id, "the peer sent something else than parts")
        self._note_health(burst)
        if copy is None or copy.extend(burst):
            return
        if self._asked_again or burst.episode != self._selected:
            copy.extend(burst, past_gap=True)
        else:
            self._asked_again = True
            await self._select(copy)

    def _note_health(self, burst: Burst) -> None:
        """A row beyond what was selected says that this leg is healthy, known here or not."""
        if not self._healthy and burst.episode == self._selected and burst.last_seq > self._selected_after:
            self._healthy = True
            self._target.retry.reset()
            self._row_came()

    async def _end(self, end: LegEnd) -> None:
        copy = self._target.attended(end.episode)
        if copy is None or end.episode != self._target.episode:
            if copy is not None and end.reason == "sealed":
                copy.seal(end.last_seq)
            return
        if end.reason == "not_owner":
            raise _NotOwner
        if end.reason == "refused":
            raise DialRefused(self._target.worker_id, "the peer did not accept the grant")
        if end.reason == "beyond" or not copy.seal(end.last_seq if end.reason == "sealed" else None):
            raise LegLost(self._target.worker_id, "the peer's log and its copy here do not fit")
        if end.reason == "over":
            await self._look_again()
