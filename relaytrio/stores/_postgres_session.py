"""A connection to PostgreSQL, for the transactions that all SQL stores share.

Two kinds of connections are told apart. Directly, a session is the connection's own: its timeouts and its search path
are set once, and statements are prepared. Behind a pooler, each transaction may be in another session: they are set in
each one, and nothing is prepared. The server's process, as the handshake names it and as the session itself does, tells
which it is: a pooler makes up the first.

Must not know: what is stored, threads, who tries again. Who calls: `_postgres_pool.py` and `_postgres_locks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import attrs
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from .._errors import ConfigurationError
from .._protocol.events import Message
from ._postgres_errors import TryAgain, said
from ._postgres_place import PostgresPlace
from ._sql_rows import columns
from ._sql_session import Kind, Session, Words

STATEMENT_SECONDS = 5.0
"""No statement takes more than some milliseconds; one that does is better ended than waited for."""
LOCK_SECONDS = 3.0
"""Transactions on one chat are one after the other; a thousand of them fit into this."""
CONNECTION = {
    "application_name": "relaytrio",
    "connect_timeout": "5",
    # A peer that is gone without a word is found within 11 s, whether or not something is on its way to it.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""What a connection has unless the URL says otherwise."""
_BEGIN = {
    "read": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "write": "BEGIN ISOLATION LEVEL READ COMMITTED",
}


def conninfo_of(place: PostgresPlace) -> str:
    """What libpq connects with: to a server that may be written to, whichever of the URL's hosts that is.

    Raises `ConfigurationError` if libpq does not understand the URL, without its words: they might hold a password.
    """
    try:
        named = {name: str(value) for name, value in conninfo_to_dict(place.conninfo).items()}
    except psycopg.Error:
        raise ConfigurationError(f"the store's url {place.url} is none that PostgreSQL's library understands") from None
    return make_conninfo(**(CONNECTION | named | {"target_session_attrs": "read-write", "client_encoding": "utf8"}))


def connect(conninfo: str) -> psycopg.Connection[Any]:
    """A connection on which each statement stands alone. Raises `psycopg.OperationalError`."""
    return psycopg.connect(conninfo, autocommit=True)


class PostgresSession(Session):
    """Writers of different chats go on beside each other."""

    words = Words(
        lock="FOR UPDATE",
        skip_locked="FOR UPDATE SKIP LOCKED",
        live="NOT deleted",
        among_ids="= ANY(:ids)",
        next_change="nextval('changes')",
    )
    # The whole result crosses the network, so the server cuts it off one message after the end of the page: that one is
    # the first that does not fit any more, or, where already the first was too heavy, the second.
    page = f"""
        SELECT weight, {columns(Message)} FROM (
            SELECT octet_length(content) AS weight, {columns(Message)},
                sum(octet_length(content)) OVER in_order AS weight_so_far, row_number() OVER in_order AS number
            FROM messages WHERE chat_id = :chat_id AND id > :after_id AND {{live}}
            WINDOW in_order AS (ORDER BY id ROWS UNBOUNDED PRECEDING)
            ORDER BY id LIMIT :most_messages + 1
        ) AS page WHERE weight_so_far - weight <= :most_bytes OR number = 2 ORDER BY id
    """

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        """Asks the server whose session this is; raises `psycopg.Error`."""
        self.connection = connection
        self.pid: int = connection.execute("SELECT pg_backend_pid()").fetchone()[0]  # type: ignore[index]
        self.own = connection.info.backend_pid == self.pid
        """Whether this connection, and no other, has this session of the server."""
        path = sql.SQL("SET {} search_path = {}").format
        settings = [
            path(sql.SQL("SESSION" if self.own else "LOCAL"), sql.Identifier(schema)),
            *_timeouts("SESSION" if self.own else "LOCAL"),
        ]
        prefix = sql.SQL("; ").join(settings).as_string(connection)
        if self.own:
            connection.execute(prefix.encode())
        else:
            connection.prepare_threshold = None
        self._begin = {kind: begin if self.own else f"{begin}; {prefix}" for kind, begin in _BEGIN.items()}

    @property
    def usable(self) -> bool:
        """Whether the connection is open, and in no transaction."""
        return self.connection.info.transaction_status == TransactionStatus.IDLE

    @contextmanager
    def transaction(self, kind: Kind) -> Iterator[None]:
        if kind == "one" and self.own:
            yield
            return
        self.connection.execute(self._begin["read" if kind == "one" else kind].encode())
        try:
            yield
        except BaseException:
            # What cannot be taken back over a lost connection, the server takes back.
            with suppress(psycopg.Error):
                self.connection.execute("ROLLBACK")
            raise
        self._commit(kind)

    def _commit(self, kind: Kind) -> None:
        try:
            self.connection.execute("COMMIT")
        except psycopg.Error as error:
            if kind == "write" and not self.usable:
                raise TryAgain(said(error), lost=True, in_doubt=True) from error
            raise

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> psycopg.Cursor[Any]:
        return self.connection.execute(_spelled(statement), parameters)

    def listed(self, ids: Iterable[str]) -> list[str]:
        return list(ids)

    def count_change(self) -> None:
        """A sequence counts as it is asked for the next number."""

    def keep_deletion(self, chat_id: str, snapshot_version: int, now_seconds: float) -> None:
        """Hints of deletions are sent, not looked for."""

    def close(self) -> None:
        """Never raises, and never waits."""
        self.connection.close()


def _timeouts(scope: str) -> list[sql.Composed]:
    setting = sql.SQL("SET {} {} = {}").format
    return [
        setting(sql.SQL(scope), sql.Identifier(name), sql.Literal(str(round(1000 * seconds))))
        for name, seconds in (("statement_timeout", STATEMENT_SECONDS), ("lock_timeout", LOCK_SECONDS))
    ]


@cache
def _spelled(statement: str) -> bytes:
    """Statements are few and constant, so this is done once for each."""
    return re.sub(r"(?<!:):([a-z_]+)", r"%(\1)s", statement.format_map(attrs.asdict(PostgresSession.words))).encode()
