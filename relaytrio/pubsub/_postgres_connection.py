"""A connection to PostgreSQL for hints: one statement at a time, or hearing what comes, and no thread that waits.

libpq's non-blocking calls do all but the connecting, so a cancelled wait ends at once, on whatever network. All errors
are `PubSubUnavailable` with the first line of what libpq or the server said. Must not know: what is sent. Who calls:
`postgres.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import psycopg
import trio
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from .._errors import ConfigurationError, PubSubUnavailable

Parameters: TypeAlias = dict[str, Any]

DEFAULTS: Parameters = {
    "application_name": "relaytrio hints",
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
}
"""What a connection is like unless the url says otherwise."""
ALWAYS: Parameters = {
    "target_session_attrs": "primary",  # a standby neither listens nor notifies: of several hosts take the other
    "client_encoding": "utf8",
}
"""And what the url has no say in."""


def parse_url(url: str) -> Parameters:
    """A url, or libpq's key=value string. Raises `ConfigurationError`, which names no password."""
    try:
        return DEFAULTS | conninfo_to_dict(url) | ALWAYS
    except psycopg.ProgrammingError:
        raise ConfigurationError("the pubsub's url is malformed") from None


class HintConnection:
    """Used by one task at a time; closed by whoever opened it."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._parting_words = ""
        connection.add_notice_handler(self._note)

    @classmethod
    async def open(cls, parameters: Parameters, limiter: trio.CapacityLimiter) -> HintConnection:
        """Connect, in a thread: at most 5 s for each address of the database, which no cancellation shortens."""
        connect = partial(psycopg.Connection.connect, autocommit=True, **parameters)
        with _translated():
            return cls(await trio.to_thread.run_sync(connect, limiter=limiter))

    async def execute(self, statement: bytes, *arguments: bytes) -> None:
        """Run a statement; what was heard before is forgotten.

        Failed or cancelled, it closes the connection: nobody knows then what will come over it.
        """
        try:
            with _translated():
                await self._execute(statement, arguments)
                # Not for us, but a pooler may have given us the session of one that listened: libpq keeps them all.
                self._notifications()
        except BaseException:
            self.close()
            raise

    async def hear(self) -> list[bytes]:
        """The payloads of notifications, when there are some."""
        pgconn = self._connection.pgconn
        try:
            with _translated():
                while not (payloads := self._notifications()):
                    await trio.lowlevel.wait_readable(pgconn.socket)
                    pgconn.consume_input()
        except PubSubUnavailable as error:
            raise PubSubUnavailable(self._parting_words or str(error)) from error
        return payloads

    def close(self) -> None:
        """Close it; does not wait. Twice is fine."""
        self._connection.close()

    async def _execute(self, statement: bytes, arguments: tuple[bytes, ...]) -> None:
        pgconn = self._connection.pgconn
        pgconn.send_query_params(statement, list(arguments))  # older drivers take no tuple
        while pgconn.flush():
            await trio.lowlevel.wait_writable(pgconn.socket)
        fault: str | None = None
        while True:
            while pgconn.is_busy():
                await trio.lowlevel.wait_readable(pgconn.socket)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                break
            if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                fault = result.get_error_message()
        if fault is not None:
            raise psycopg.OperationalError(fault)

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "FATAL":  # why the server ends a connection on which nothing was asked
            self._parting_words = notice.message_primary or ""

    def _notifications(self) -> list[bytes]:
        return [notification.extra for notification in iter(self._connection.pgconn.notifies, None)]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise PubSubUnavailable(str(error).strip().partition("\n")[0] or type(error).__name__) from error
