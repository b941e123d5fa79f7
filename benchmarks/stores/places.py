"""The stores that are measured, and where they are. Who calls: all measurements."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from rich.console import Console
from rich.progress import track

from relaytrio._protocol.chat import Create, NewMessage
from relaytrio._protocol.events import Content
from relaytrio.pubsub._base import PubSub
from relaytrio.pubsub._derive import derive_pubsub
from relaytrio.stores import Store, open_store

if TYPE_CHECKING:
    from tests.postgres_server import PostgresServer

ROUNDS = 5
console = Console(stderr=True)
rounds = partial(track, range(ROUNDS), console=console, transient=True)


@attrs.frozen
class Place:
    """A store that may be opened."""

    name: str
    url: str
    server: PostgresServer | None = None

    @property
    def is_shared(self) -> bool:
        """Whether another process can have it open too."""
        return self.url != "memory://"

    def server_connections(self) -> int:
        """To PostgreSQL's database, this one too."""
        import psycopg  # an extra

        with psycopg.connect(self.url) as connection:
            row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            return int(row.fetchall()[0][0])

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Store, PubSub]]:
        """The store, and its notifier."""
        async with open_store(self.url) as store, derive_pubsub(store) as pubsub:
            assert pubsub is not None
            yield store, pubsub


@contextmanager
def open_places() -> Iterator[list[Place]]:
    """All that can be had here."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relaytrio-stores-")))
        places = [Place("memory", "memory://")]
        for synchronous in ("NORMAL", "FULL"):
            url = f"sqlite:///{folder / synchronous}.db?synchronous={synchronous}"
            places.append(Place(f"sqlite, {synchronous}", url))
        postgres = _postgres(stack)
        if postgres is None:
            console.print("PostgreSQL is left out: install relaytrio[test]", style="yellow")
        else:
            places.append(postgres)
        yield places


def _postgres(stack: ExitStack) -> Place | None:
    try:
        from tests.postgres_server import find_binaries, fresh_database, open_postgres_home
    except ImportError:
        return None
    binaries = find_binaries()
    if binaries is None:
        return None
    server = stack.enter_context(open_postgres_home(binaries)).server("stores")
    server.start()
    stack.callback(server.close)
    server.set_option("fsync", "on")
    return Place("postgres", stack.enter_context(fresh_database(server.url())), server)


def program(module: str, *arguments: str) -> list[str]:
    """The command that runs a part of this benchmark as a process of its own."""
    return [sys.executable, "-m", f"benchmarks.stores.{module}", *arguments]


def text(content: str) -> Content:
    return [{"type": "text", "text": content}]


QUESTION = NewMessage(role="user", content=text("What is a nursery, and what is it good for?"))
ANSWER = NewMessage(role="assistant", content=text("A place where tasks live together, and none outlives it. " * 8))
EMPTY = Create(messages=())
