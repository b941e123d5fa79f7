"""The connections that run a store's transactions: taken by a thread, used for one transaction, given back.

A connection that is not as it was when it was taken is closed; after one that was lost, so are all that wait, for they
lead to the same server. A server that says nothing at all, however alive its machine is, holds no thread for longer
than its `Deadlines` allow: the connection's socket is shut down under it.

Must not know: what a transaction does, who tries again. Who calls: `PostgresStore`, `run` in a thread.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import psycopg
import trio

from ._postgres_errors import TryAgain, translated
from ._postgres_session import PostgresSession
from ._sql_session import Session

T = TypeVar("T")
LOOK_SECONDS = 0.5
"""How often it is looked whether one takes too long."""


class Deadlines:
    """Connections in use by threads, and until when they may be."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._until: dict[psycopg.Connection[Any], float] = {}

    @contextmanager
    def watched(self, connection: psycopg.Connection[Any]) -> Iterator[None]:
        """For the thread that uses it."""
        self._until[connection] = time.monotonic() + self._seconds
        try:
            yield
        finally:
            with self._lock:  # not while its socket is being shut down: it may be another's by then
                del self._until[connection]

    async def watch(self) -> NoReturn:
        """End what takes too long, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            with self._lock:
                now = time.monotonic()
                for connection, until in self._until.copy().items():
                    if until <= now:
                        shut_down(connection)


class PostgresPool:
    """Connections to one database. `connect` makes a session, in a thread; it raises `psycopg.Error` and others."""

    def __init__(self, connect: Callable[[], PostgresSession], *, place: str, deadlines: Deadlines) -> None:
        self._connect = connect
        self._place = place
        self._deadlines = deadlines
        self._lock = threading.Lock()
        self._idle: list[PostgresSession] = []
        self._closed = False

    def run(self, work: Callable[[Session], T]) -> T:
        """One transaction. Raises what it does, and `TryAgain`, `StoreUnavailable`, `StoreUnusable`."""
        # That no other connection can be had says nothing against those that are there.
        with translated(self._place):
            session = self._take()
        try:
            with translated(self._place):
                try:
                    with self._deadlines.watched(session.connection):
                        return work(session)
                finally:
                    self._give_back(session)
        except TryAgain as trouble:
            if trouble.lost:
                self.close_idle()
            raise

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def close(self) -> None:
        """Close all; those in use, when their transaction has ended."""
        self._closed = True
        self.close_idle()

    def _take(self) -> PostgresSession:
        with self._lock:
            if self._closed:
                raise trio.ClosedResourceError("the store is closed")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, session: PostgresSession) -> None:
        with self._lock:
            if session.usable and not self._closed:
                self._idle.append(session)
                return
        session.close()


def shut_down(connection: psycopg.Connection[Any]) -> None:
    """End whatever a thread waits for on this connection, which is lost by it. Never waits."""
    with suppress(OSError, psycopg.Error):
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
