"""A replica among the others: its row, its heartbeat, and who of the others is dead.

A heartbeat is a counter: only whether it moves says something, and no clock of one machine is compared with another's.
Must not know: what a run does. Who calls: the engine, which owns `registered` and `run`; it tells the worker.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import attrs
import trio

from ._bounded import within
from ._errors import StoreError, StoreUnavailable
from ._seams import seam
from ._settings import Settings
from ._worker import Worker
from .stores._base import Replica, Store

BURIED_AFTER = 10
"""Rows are removed of replicas that have been dead ten times as long as it takes to find them dead: else every crash
would leave one for ever. Whoever comes back after that finds its row gone, and registers anew."""


@attrs.define
class _Pulse:
    """A replica's counter, and for how long it has been seen not to move."""

    heartbeat: int
    still_seconds: float = 0.0


class DeathWatch:
    """Who is dead, by the counters. Pure: the instants come in, of the observer's own monotonic clock.

    Only time in which the observer's reads succeeded counts: not that of an outage, and, as no step between two reads
    counts for more than `longest_step_seconds`, not that in which the observer itself stood still.
    """

    def __init__(self, own_id: str, *, dead_after_seconds: float, longest_step_seconds: float) -> None:
        self._own_id = own_id
        self._dead_after_seconds = dead_after_seconds
        self._longest_step_seconds = longest_step_seconds
        self._pulses: dict[str, _Pulse] = {}
        self._read_at: float | None = None
        """When the last read had ended; None if it failed."""

    def looked(self, replicas: Sequence[Replica], *, began: float, ended: float) -> None:
        """A read that began and ended at these instants (in seconds) gave all rows."""
        step_seconds = 0.0 if self._read_at is None else min(began - self._read_at, self._longest_step_seconds)
        self._read_at = ended
        self._pulses = {
            replica.id: self._pulse(replica, step_seconds) for replica in replicas if replica.id != self._own_id
        }

    def look_failed(self) -> None:
        """A read failed: the time from the last one to the next does not count."""
        self._read_at = None

    @property
    def dead(self) -> frozenset[str]:
        """Those whose counters have stood still for too long."""
        return self._still_for(self._dead_after_seconds)

    @property
    def long_dead(self) -> frozenset[str]:
        """Those whose rows can go."""
        return self._still_for(BURIED_AFTER * self._dead_after_seconds)

    def _pulse(self, replica: Replica, step_seconds: float) -> _Pulse:
        known = self._pulses.get(replica.id)
        if known is None or known.heartbeat != replica.heartbeat:
            return _Pulse(replica.heartbeat)
        return _Pulse(replica.heartbeat, known.still_seconds + step_seconds)

    def _still_for(self, seconds: float) -> frozenset[str]:
        return frozenset(replica_id for replica_id, pulse in self._pulses.items() if pulse.still_seconds >= seconds)


class Presence:
    """One replica's presence, with a worker or without."""

    def __init__(
        self,
        *,
        replica: Replica,
        store: Store,
        worker: Worker | None,
        settings: Settings,
        logger: logging.Logger | None = None,
    ) -> None:
        self._replica = replica
        self._store = store
        self._worker = worker
        self._settings = settings
        self._logger = logger or logging.getLogger("relaytrio.presence")
        self._deaths = DeathWatch(
            replica.id,
            dead_after_seconds=settings.dead_after_seconds,
            longest_step_seconds=settings.heartbeat_seconds,
        )

    @asynccontextmanager
    async def registered(self) -> AsyncIterator[None]:
        """The replica's row, for as long as the context lasts. Raises `StoreUnavailable` on the way in only."""
        await self._store.register(self._replica)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._settings.unwind_seconds) as scope:
                await self._unregister()
            if scope.cancelled_caught:
                self._logger.warning("the row of this replica stays: the store did not answer in time")

    async def _unregister(self) -> None:
        try:
            await self._store.unregister(self._replica.id)
        except StoreError as error:
            # Unusable too: what the replica ends with is what made it end.
            self._logger.warning("the row of this replica stays, others will find it dead: %s", error)

    async def run(self) -> NoReturn:
        """The heartbeat, and for a worker the look at the others', until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat_forever)
            if self._worker is not None:
                nursery.start_soon(self._watch_others, self._worker)
            await trio.sleep_forever()

    # ----------------------------------------------------------------------------------------- heartbeat

    async def _beat_forever(self) -> NoReturn:
        while True:
            with trio.move_on_after(self._settings.outage_seconds) as outage:
                await self._get_a_beat_through()
            if outage.cancelled_caught and self._worker is not None:
                self._logger.error(
                    "the store was out of reach for %g s: all runs of this replica end", self._settings.outage_seconds
                )
                self._worker.cancel_all_runs()

    async def _get_a_beat_through(self) -> None:
        while True:
            await trio.sleep(self._settings.heartbeat_seconds)
            try:
                return await within(self._settings.store_read_seconds, self._beat())
            except StoreUnavailable as error:
                self._logger.warning("a heartbeat was missed: %s", error)

    async def _beat(self) -> None:
        load = 0 if self._worker is None else len(self._worker.runs)
        if not await self._store.heartbeat(self._replica.id, load):
            await self._register_anew()
        if self._worker is not None:
            known = tuple(self._worker.runs.values())
            owned = await self._store.owned_by(self._replica.id)
            await seam("owned chats read, not compared", replica_id=self._replica.id)
            self._worker.owned_looked(known, owned)

    async def _register_anew(self) -> None:
        self._logger.warning("this replica was taken for dead and its row is gone: its runs end, it registers anew")
        if self._worker is not None:
            self._worker.cancel_all_runs()
        await self._store.register(self._replica)

    # ---------------------------------------------------------------------------------------- the others

    async def _watch_others(self, worker: Worker) -> NoReturn:
        while True:
            try:
                worker.found_dead(await within(self._settings.store_read_seconds, self._look_at_others()))
            except StoreUnavailable:
                # Told by the heartbeat. Time passes for nobody until a read succeeds.
                self._deaths.look_failed()
            await trio.sleep(self._settings.death_look_seconds)

    async def _look_at_others(self) -> frozenset[str]:
        began = trio.current_time()
        replicas = await self._store.replicas()
        self._deaths.looked(replicas, began=began, ended=trio.current_time())
        for replica_id in self._deaths.long_dead:
            await self._store.unregister(replica_id)
        locked = [replica.id for replica in replicas if replica.lock and replica.id != self._replica.id]
        return self._deaths.dead | await self._free_at_two_looks(locked)

    async def _free_at_two_looks(self, replica_ids: Sequence[str]) -> frozenset[str]:
        """One look might come between a lock that was lost and the same lock taken again."""
        free = await self._store.released_locks(replica_ids) if replica_ids else frozenset()
        if not free:
            return free
        await trio.sleep(self._settings.lock_look_seconds)
        return free & await self._store.released_locks(free)
