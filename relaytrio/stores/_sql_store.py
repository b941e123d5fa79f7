"""A `Store` over an SQL database: each call is one transaction, a synchronous piece that runs in one worker thread.

Must not know: threads, which database it is. What is left to a database: how a transaction is run, and the locks of
replicas. Who calls: `SqliteStore` and `PostgresStore` are made from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from .._protocol.chat import Acquire, Chat, Command, Create, RunCommand
from .._protocol.events import Message, MessageRef, QueueEntry
from .._settings import Settings
from . import _sql_chats as chats
from . import _sql_replicas as ownership
from ._base import Candidate, Fingerprint, IdempotencyKey, Outcome, OwnedChat, Replica, View
from ._fresh import Fresher
from ._sql_session import Session

T = TypeVar("T")


class SqlStore(ABC):
    """All of a `Store` but what its database does in its own way."""

    def __init__(self, settings: Settings, fresher: Fresher) -> None:
        self._settings = settings
        self._context = chats.Context(settings, fresher)

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    async def _run(self, work: Callable[[Session], T], *, repeatable: bool = True) -> T:
        """Run one transaction. `repeatable`: it may be run again after one of which nobody knows whether it was
        committed, since the second changes nothing that the first has changed."""

    async def _read(self, work: Callable[[Session], T]) -> T:
        """Run one transaction that only reads."""
        return await self._run(work)

    # transitions

    async def create_chat(self, chat_id: str, command: Create, key: IdempotencyKey | None = None) -> Outcome:
        return await self._run(
            lambda session: chats.create_chat(session, self._context, chat_id, command, key),
            repeatable=key is not None,
        )

    async def apply(self, chat_id: str, command: Command, key: IdempotencyKey | None = None) -> Outcome:
        # A run's transition has its token, and a second acquire by the same run is a no-op.
        return await self._run(
            lambda session: chats.apply(session, self._context, chat_id, command, key),
            repeatable=key is not None or isinstance(command, RunCommand | Acquire),
        )

    async def delete_chat(self, chat_id: str) -> None:
        await self._run(lambda session: chats.delete_chat(session, self._context, chat_id), repeatable=False)

    # reads

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        return await self._read(lambda session: chats.read_view(session, self._context, chat_id, base))

    async def read_chat(self, chat_id: str) -> Chat:
        return await self._read(lambda session: chats.read_chat(session, chat_id))

    async def read_queue(self, chat_id: str) -> tuple[QueueEntry, ...]:
        return await self._read(lambda session: chats.read_queue(session, chat_id))

    async def list_chats(self, *, before: str | None = None, limit: int = 50) -> Sequence[Chat]:
        return await self._read(lambda session: chats.list_chats(session, before, limit))

    async def list_messages(self, chat_id: str, *, after_id: int = 0, limit: int = 200) -> Sequence[Message]:
        return await self._read(lambda session: chats.list_messages(session, self._context, chat_id, after_id, limit))

    async def fingerprints(self, chat_ids: Collection[str]) -> Mapping[str, Fingerprint]:
        ids = list(chat_ids)
        return await self._read(lambda session: chats.fingerprints(session, ids))

    # ownership

    async def candidates(self, dead: Collection[str], limit: int = 100) -> Sequence[Candidate]:
        ids = list(dead)
        return await self._read(lambda session: ownership.candidates(session, ids, limit))

    async def owned_by(self, replica_id: str) -> Sequence[OwnedChat]:
        return await self._read(lambda session: ownership.owned_by(session, replica_id))

    @abstractmethod
    async def register(self, replica: Replica) -> None: ...

    async def heartbeat(self, replica_id: str, load: int) -> bool:
        return await self._run(lambda session: ownership.heartbeat(session, replica_id, load))

    @abstractmethod
    async def unregister(self, replica_id: str) -> None: ...

    async def replicas(self) -> Sequence[Replica]:
        return await self._read(ownership.replicas)

    @abstractmethod
    async def released_locks(self, replica_ids: Collection[str]) -> frozenset[str]: ...

    # itself

    async def ping(self) -> None:
        await self._read(chats.ping)

    @abstractmethod
    async def aclose(self) -> None: ...
