"""From a URL to a store. What a URL may say is decided here, and nothing else.

Who calls: the engine, the command line, and programs that share a store between engines.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import attrs

from .._errors import ConfigurationError
from .._settings import DEFAULTS, Settings
from ._base import Store
from ._fresh import utc_now
from ._postgres_place import PostgresPlace, parse_postgres_url
from ._sqlite_file import Synchronous
from .memory import MemoryStore
from .sqlite import open_sqlite_store


@attrs.frozen
class SqlitePlace:
    """What a `sqlite:` URL names."""

    path: str
    synchronous: Synchronous


@asynccontextmanager
async def open_store(
    url: str,
    *,
    settings: Settings = DEFAULTS,
    synchronous: Synchronous | None = None,
    clock: Callable[[], str] = utc_now,
    random: Random | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Store]:
    """The store that a URL names, closed with the context.

    `memory://` is a new store in this process's memory. `sqlite:///chat.db` is a file in the working directory,
    `sqlite:////var/lib/chat.db` one by its absolute path; a `?synchronous=FULL` (or the argument, which wins) makes it
    durable against the loss of power. Other characters in a path may be percent-encoded.
    `postgresql://user:password@host:5432/database` is a schema in that database, see `open_postgres_store`; it needs
    the extra `relaytrio[postgres]`.

    Raises `ConfigurationError` for any other URL, `StoreUnusable` and `StoreUnavailable` as `open_sqlite_store` and
    `open_postgres_store` do.
    """
    place = parse_url(url)
    if isinstance(place, PostgresPlace):
        open_postgres_store = _postgres()
        async with open_postgres_store(
            place, settings=settings, clock=clock, random=random, monotonic=monotonic
        ) as postgres_store:
            yield postgres_store
        return
    if place is None:
        store = MemoryStore(settings=settings, clock=clock, random=random)
        try:
            yield store
        finally:
            await store.aclose()
        return
    async with open_sqlite_store(
        place.path,
        settings=settings,
        synchronous=synchronous or place.synchronous,
        clock=clock,
        random=random,
        monotonic=monotonic,
    ) as sqlite_store:
        yield sqlite_store


def _postgres() -> Callable[..., AbstractAsyncContextManager[Store]]:
    """Imported when it is asked for: its driver is an extra."""
    try:
        from .postgres import open_postgres_store
    except ImportError as error:
        raise ConfigurationError("a store in PostgreSQL needs its driver: pip install 'relaytrio[postgres]'") from error
    return open_postgres_store


def parse_url(url: str) -> SqlitePlace | PostgresPlace | None:
    """What a store's URL names; None for memory. Raises `ConfigurationError`, which names no password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError("the store's url is malformed") from None
    match parts.scheme:
        case "memory":
            if url != "memory://":
                raise ConfigurationError(f"the store's url must be memory:// with nothing behind it: {_named(parts)}")
            return None
        case "sqlite":
            return _sqlite_place(parts)
        case "postgresql" | "postgres":
            return parse_postgres_url(url)
        case "":
            raise ConfigurationError(
                "the store's url has no scheme: expected memory://, sqlite:///path or postgresql://host/name"
            )
        case scheme:
            raise ConfigurationError(
                f"the store's url has the scheme {scheme}: expected memory://, sqlite:///path or postgresql://host/name"
            )


def _sqlite_place(parts: SplitResult) -> SqlitePlace:
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or not path or path.endswith("/") or parts.fragment or "\0" in path:
        raise ConfigurationError(
            f"the store's url must be sqlite:///relative.db or sqlite:////absolute.db: {_named(parts)}"
        )
    if path == ":memory:":
        raise ConfigurationError(f"the store's url {_named(parts)} names no file: use memory://")
    return SqlitePlace(path, _synchronous(parts))


def _synchronous(parts: SplitResult) -> Synchronous:
    chosen = "NORMAL"
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name != "synchronous":
            raise ConfigurationError(f"the store's url {_named(parts)} has an unknown option: {name}")
        chosen = value.upper()
    if chosen not in ("NORMAL", "FULL"):
        raise ConfigurationError(f"the store's url {_named(parts)}: synchronous must be NORMAL or FULL")
    return cast(Synchronous, chosen)


def _named(parts: SplitResult) -> str:
    """The url without user, password and options."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
