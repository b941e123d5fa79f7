"""A schema of a run's own in a PostgreSQL database that was given: empty when the run begins, gone when it ends.

What a database holds already is not touched by it, and no worker of another cluster takes the run's chats. Where the
run is killed, or the database is away at the end, the schema stays, and its name says of what it is.

Must not know: what a run does. Who calls: `_check.py`, `_demo.py`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import trio

from .._errors import ConfigurationError, StoreError, StoreUnavailable
from ..stores._open import parse_url
from ..stores._postgres_place import PostgresPlace
from ._output import fault

if TYPE_CHECKING:
    import psycopg

DROP_SECONDS = 20.0
"""For the server to notice the end of killed replicas, whose transactions hold the tables, and to drop these."""
CONNECT_SECONDS = 10.0
"""More than libpq waits for one address."""


def names_schema(url: str) -> bool:
    """Whether a `postgresql:` URL says which schema is meant."""
    return any(name == "schema" for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True))


@asynccontextmanager
async def open_own_schema(url: str, *, purpose: str) -> AsyncIterator[str]:
    """The URL of a new schema in the database of this URL, which is dropped with all that is in it.

    Dropped even if cancelled, within some seconds; if that fails, a line on stderr names what is left. Raises
    `ConfigurationError`, `StoreUnusable`, and `StoreUnavailable` if the schema cannot be made now.
    """
    schema = f"relaytrio_{purpose}_{secrets.token_hex(6)}"
    own = _with_schema(url, schema)
    place = parse_url(own)
    assert isinstance(place, PostgresPlace)
    await _execute(place, "CREATE SCHEMA {}")
    try:
        yield own
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + DROP_SECONDS + CONNECT_SECONDS) as patience:
            await _drop(place)
        if patience.cancelled_caught:
            fault(f"the schema {schema} is left behind: the database {place.url} did not answer in time")


async def _drop(place: PostgresPlace) -> None:
    try:
        await _execute(place, "DROP SCHEMA {} CASCADE")
    except StoreError as error:
        fault(f"the schema {place.schema} is left behind: {error}")


def _with_schema(url: str, schema: str) -> str:
    """The last one that a URL names counts; all else in it stays as it was written."""
    return f"{url}{'&' if '?' in url else '?'}schema={schema}"


async def _execute(place: PostgresPlace, statement: str) -> None:
    await trio.to_thread.run_sync(_driver(), place, statement, abandon_on_cancel=True)


def _driver() -> Callable[[PostgresPlace, str], None]:
    """Imported when it is asked for: the driver is an extra."""
    try:
        from psycopg import sql

        from ..stores._postgres_errors import TryAgain, translated
        from ..stores._postgres_session import connect, conninfo_of
    except ImportError as error:
        raise ConfigurationError("a store in PostgreSQL needs its driver: pip install 'relaytrio[postgres]'") from error

    def execute(place: PostgresPlace, statement: str) -> None:
        try:
            with translated(place.url), connect(conninfo_of(place)) as connection:
                _bound(connection)
                connection.execute(sql.SQL(statement).format(sql.Identifier(place.schema)))
        except TryAgain as trouble:
            raise StoreUnavailable(f"the database {place.url} cannot be reached: {trouble}") from trouble

    return execute


def _bound(connection: psycopg.Connection[Any]) -> None:
    for name in ("lock_timeout", "statement_timeout"):
        connection.execute("SELECT set_config(%s, %s, false)", [name, str(round(1000 * DROP_SECONDS))])
