"""One connection to an SQL database, as the shared transactions use it; what databases spell differently is named here.

Statements are written once: `:name` is a parameter, and `{name}` one of the words that each database has of its own.
They never hold a value. Must not know: what is stored. Who calls: `_sql_chats.py` and `_sql_replicas.py`, always in a
thread; `_sqlite_session.py` and `_postgres_session.py` fulfil it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import attrs

Kind: TypeAlias = Literal["one", "read", "write"]
"""`one`: a single statement that reads. `read`: several that see one state of the database. `write`: all or nothing."""


class Cursor(Protocol):
    """What a statement gives; both drivers have it."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...
    def close(self) -> None: ...


@attrs.frozen(kw_only=True)
class Words:
    """What databases spell differently."""

    lock: str
    """Behind a SELECT: keep others from writing these rows until the transaction ends."""
    skip_locked: str
    """Behind a SELECT in a DELETE: leave the rows out that another transaction is removing."""
    live: str
    """The condition that a message is not deleted, as the index of the live messages has it."""
    among_ids: str
    """Behind a column: its value is one of the parameter `:ids`, which `Session.listed` makes."""
    next_change: str
    """The number of this change among all of the store; `Session.count_change` came before it."""


class Session(ABC):
    """A connection that nobody else uses meanwhile."""

    words: ClassVar[Words]
    page: ClassVar[str]
    """Live messages of `:chat_id` after the id `:after_id`, in order, each with its weight in bytes as the first column
    and then its fields; as many as a page of `:most_messages` and `:most_bytes` can need, or more."""

    @abstractmethod
    def transaction(self, kind: Kind) -> AbstractContextManager[None]:
        """All of the body, or nothing: an exception takes it back."""

    @abstractmethod
    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Cursor:
        """One statement."""

    @abstractmethod
    def listed(self, ids: Iterable[str]) -> Any:
        """The value of the parameter `:ids`."""

    @abstractmethod
    def count_change(self) -> None:
        """A chat is about to be changed."""

    @abstractmethod
    def keep_deletion(self, chat_id: str, snapshot_version: int, now_seconds: float) -> None:
        """A chat was deleted, and would have had this version: for those who ask what has changed, if anybody does."""


class Again(Exception):
    """Another transaction got there first, and nothing was written: the same transaction has to be run again."""
