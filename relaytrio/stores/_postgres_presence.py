"""The locks of a store's replicas, kept: a task that notices the loss of their session at once, and takes them again.

An idle session has nothing to say but that it ends, so its socket is watched. Must not know: what is in the session
(`_postgres_locks.py`), what a free lock means to others. Who calls: `PostgresStore`, which runs its task.
"""

from __future__ import annotations

import os
import select
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import NoReturn, ParamSpec, TypeAlias, TypeVar

import psycopg
import trio

from .._errors import StoreUnavailable
from .._protocol.retry import Backoff
from .._wakeup import Wakeup
from ._postgres_errors import TryAgain, translated
from ._postgres_locks import ReplicaLocks
from ._postgres_pool import Deadlines

Disclaim: TypeAlias = Callable[[Collection[str]], Awaitable[None]]
P = ParamSpec("P")
T = TypeVar("T")
RETRY_SECONDS = 0.1
RETRY_MAX_SECONDS = 1.0
"""Well within the time that others wait before they believe a free lock over a new session of theirs."""
DISCLAIM_AFTER_SECONDS = 0.1
"""Usually a lock is taken again sooner. Less than lies between two looks of others: the second finds no claim."""


class Presence:
    """`ReplicaLocks` for tasks. Methods raise `TryAgain` when the server cannot be reached, and others as it does."""

    def __init__(self, locks: ReplicaLocks, *, place: str, deadlines: Deadlines, random: Callable[[], float]) -> None:
        self._locks = locks
        self._place = place
        self._deadlines = deadlines
        self._random = random
        self._thread = trio.CapacityLimiter(1)
        self._used = Wakeup()

    async def take(self, replica_id: str) -> str:
        """What names the replica's lock, which is held from now on; empty if it cannot be had."""
        return await self._call(self._locks.take, replica_id)

    async def renewed(self, replica_id: str) -> str | None:
        """What names the replica's lock, once it is certain that it is held; empty if it is not, and None if nobody
        has taken it here."""

        def renew() -> str | None:
            self._locks.renew()
            return self._locks.name_of(replica_id)

        return await self._call(renew)

    async def release(self, replica_id: str) -> None:
        """Free the replica's lock, if it is held here."""
        await self._call(self._locks.release, replica_id)

    async def released(self, replica_ids: Collection[str], *, trust_seconds: float) -> frozenset[str]:
        """See `Store.released_locks`."""
        return await self._call(self._locks.released, replica_ids, trust_seconds=trust_seconds)

    async def close(self) -> None:
        await trio.to_thread.run_sync(self._locks.close, limiter=self._thread)

    async def watch(self, disclaim: Disclaim) -> NoReturn:
        """Take the locks again whenever their session was lost, until cancelled. `disclaim` says in the rows of these
        replicas that they hold none, over whatever other connections there are."""
        while True:
            socket = await self._socket()
            if socket is None:
                await self._used.wait()
            elif await self._has_news(socket):
                await self._take_again(disclaim)

    async def _socket(self) -> int | None:
        """A descriptor of the session's socket that stays what it is, whoever closes the session."""
        async with self._thread:
            session = self._locks.session
            with suppress(psycopg.Error, OSError):
                return None if session is None else os.dup(session.connection.fileno())
        return None

    async def _has_news(self, socket: int) -> bool:
        """Whether the server says something to nobody. What is an answer has been read when its asker is done."""
        try:
            await trio.lowlevel.wait_readable(socket)
            async with self._thread:
                return _is_readable(socket)
        finally:
            os.close(socket)

    async def _take_again(self, disclaim: Disclaim) -> None:
        """And where that takes long (the server is there, but gives no connection), have nobody find them dead."""
        late = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._disclaim_if_late, disclaim, late)
            await self._until_done(self._locks.renew)
            nursery.cancel_scope.cancel()
        if late.is_set():
            # That may have been written after the lock was taken again, and claimed.
            await self._until_done(self._locks.claim)

    async def _disclaim_if_late(self, disclaim: Disclaim, late: trio.Event) -> None:
        await trio.sleep(DISCLAIM_AFTER_SECONDS)
        late.set()
        # All of them, and not those alone of which it is known by now that they are lost: to find that may take longer.
        await disclaim(self._locks.wanted)

    async def _until_done(self, function: Callable[[], None]) -> None:
        backoff = Backoff(RETRY_SECONDS, RETRY_MAX_SECONDS)
        while True:
            try:
                return await self._call(function)
            except (TryAgain, StoreUnavailable):  # the latter had its time: a row that somebody else has locked
                await trio.sleep(backoff.next_delay_seconds(self._random()))

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def in_thread() -> T:
            with translated(self._place):
                session = self._locks.opened()
                if session is None:
                    return function(*args, **kwargs)
                with self._deadlines.watched(session.connection):
                    return function(*args, **kwargs)

        try:
            return await trio.to_thread.run_sync(in_thread, limiter=self._thread)
        finally:
            self._used.set()


def _is_readable(socket: int) -> bool:
    """Not by `select`, which takes no descriptor beyond 1023: a replica with many viewers has them."""
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))
