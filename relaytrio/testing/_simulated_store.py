"""The database of a simulated cluster, and each replica's own way to it, which fails as it is told.

`Ledger` is a store in memory that remembers every transition that it committed, in order: what the oracle goes by.
`SimulatedStore` is what one life of a replica is given: it reaches the ledger, late or not at all.

Must not know: engines, viewers. Who calls: replicas of a simulated cluster; tests set the faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from random import Random
from typing import Literal, TypeAlias, TypeVar

import attrs
import trio

from .._errors import StoreUnavailable
from .._protocol.chat import Chat, Command, Create
from .._protocol.events import Message, MessageRef, QueueEntry
from .._settings import Settings
from .._wakeup import Flag
from ..stores._base import Candidate, Fingerprint, IdempotencyKey, Outcome, OwnedChat, Replica, Store, View
from ..stores._memory_record import Record
from ..stores.memory import MemoryBackup, MemoryStore

T = TypeVar("T")
Told: TypeAlias = tuple[str, int, str, str | None]
"""What a hint says of a chat: its id, version, status and worker."""
FaultOfStore: TypeAlias = Literal["fails", "hangs"]


class Crashed(BaseException):
    """Raised in what is left of a replica that has crashed, whatever it touches. Nobody outside gets to see it."""


@attrs.frozen
class Commit:
    """One transition that was committed."""

    at_seconds: float
    chat_id: str
    command: Create | Command
    before: Chat | None
    """None: there was no such chat."""
    outcome: Outcome

    def __str__(self) -> str:
        name = type(self.command).__name__
        chat = self.outcome.chat
        return f"{name} -> {chat.status} version {chat.snapshot_version} worker {chat.worker_id} run {chat.run_id}"


@attrs.frozen
class Backup:
    """An older copy of the database."""

    rows: MemoryBackup
    commits: tuple[Commit, ...]


class Ledger(MemoryStore):
    """A store in memory that remembers."""

    def __init__(self, *, settings: Settings, clock: Callable[[], str], random: Random) -> None:
        super().__init__(settings=settings, clock=clock, random=random)
        self.commits: list[Commit] = []
        """What led to the rows that are there, in order: without what a restore undid."""
        self.all_commits: list[Commit] = []
        self.restores = 0
        self.heard: Callable[[Commit], None] = lambda commit: None
        """Called with every commit, in its synchronous stretch."""

    def record(self, chat_id: str) -> Record | None:
        """All that there is of a chat, deleted messages too."""
        return self._records.get(chat_id)

    def chat_ids(self) -> list[str]:
        """Of all chats, in the order in which they were made."""
        return list(self._records)

    def take_backup(self) -> Backup:
        """A copy of the database as it is now."""
        return Backup(self.backup(), tuple(self.commits))

    def set_back(self, backup: Backup) -> None:
        """Be as that copy was: what was committed since is lost."""
        self.restore(backup.rows)
        self.commits = list(backup.commits)
        self.restores += 1

    def _create(self, chat_id: str, command: Create, key: IdempotencyKey | None) -> Outcome:
        return self._noted(chat_id, command, None, super()._create(chat_id, command, key))

    def _apply(self, chat_id: str, command: Command, key: IdempotencyKey | None) -> Outcome:
        before = self._record(chat_id).chat
        return self._noted(chat_id, command, before, super()._apply(chat_id, command, key))

    def _noted(self, chat_id: str, command: Create | Command, before: Chat | None, outcome: Outcome) -> Outcome:
        if outcome.changed:
            commit = Commit(trio.current_time(), chat_id, command, before, outcome)
            self.commits.append(commit)
            self.all_commits.append(commit)
            self.heard(commit)
        return outcome


class SimulatedStore:
    """A replica's way to the database, for one life of the replica. A `Store`."""

    def __init__(self, store: Store, random: Random) -> None:
        self.latency_seconds: tuple[float, float] = (0.0, 0.0)
        """The least and the most that the way takes, there and back each. Drawn for every call."""
        self.told: Counter[Told] = Counter()
        """What the answers to transitions said of chats, and how often: all that this replica may tell others."""
        self.was_disturbed = False
        """Whether a fault was ever set."""
        self._store = store
        self._random = random
        self._fault: FaultOfStore | None = None
        self._crashed = False
        self._answers_to_lose = 0
        self._changed = Flag()

    def set_fault(self, fault: FaultOfStore | None) -> None:
        """From now on every call fails at once, or hangs until this is called again (and then fails)."""
        self.was_disturbed = self.was_disturbed or fault is not None
        self._fault = fault
        self._changed.set()
        self._changed.clear()

    def lose_answers(self, count: int = 1) -> None:
        """The next so many transitions are committed, but their answers are lost: they raise `StoreUnavailable`."""
        self.was_disturbed = True
        self._answers_to_lose += count

    def crash(self) -> None:
        """The replica is no more: whatever of it still calls raises, without an effect."""
        self._crashed = True
        self.set_fault("fails")

    # the faults

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        await self._travel()
        answer = await call()
        await self._travel()
        return answer

    async def _commit(self, call: Callable[[], Awaitable[Outcome]]) -> Outcome:
        await self._travel()
        outcome = await call()
        if self._answers_to_lose:
            self._answers_to_lose -= 1
            raise StoreUnavailable("the answer was lost")
        await self._travel()
        chat = outcome.chat
        self.told[chat.id, chat.snapshot_version, chat.status, chat.worker_id] += 1
        return outcome

    async def _travel(self) -> None:
        self._check_alive()
        least, most = self.latency_seconds
        if most > 0:
            await trio.sleep(self._random.uniform(least, most))
        if self._fault == "hangs":
            await self._changed.wait()
            self._check_alive()
            raise StoreUnavailable("the connection was lost while it hung")
        self._check_alive()
        if self._fault == "fails":
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("it does not answer")

    def _check_alive(self) -> None:
        if self._crashed:
            raise Crashed

    # transitions

    @property
    def url(self) -> str:
        return self._store.url

    async def create_chat(self, chat_id: str, command: Create, key: IdempotencyKey | None = None) -> Outcome:
        return await self._commit(lambda: self._store.create_chat(chat_id, command, key))

    async def apply(self, chat_id: str, command: Command, key: IdempotencyKey | None = None) -> Outcome:
        return await self._commit(lambda: self._store.apply(chat_id, command, key))

    async def delete_chat(self, chat_id: str) -> None:
        await self._ask(lambda: self._store.delete_chat(chat_id))
        self.told[chat_id, 0, "deleted", None] += 1

    # reads

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        return await self._ask(lambda: self._store.read_view(chat_id, base))

    async def read_chat(self, chat_id: str) -> Chat:
        return await self._ask(lambda: self._store.read_chat(chat_id))

    async def read_queue(self, chat_id: str) -> tuple[QueueEntry, ...]:
        return await self._ask(lambda: self._store.read_queue(chat_id))

    async def list_chats(self, *, before: str | None = None, limit: int = 50) -> Sequence[Chat]:
        return await self._ask(lambda: self._store.list_chats(before=before, limit=limit))

    async def list_messages(self, chat_id: str, *, after_id: int = 0, limit: int = 200) -> Sequence[Message]:
        return await self._ask(lambda: self._store.list_messages(chat_id, after_id=after_id, limit=limit))

    async def fingerprints(self, chat_ids: Collection[str]) -> Mapping[str, Fingerprint]:
        return await self._ask(lambda: self._store.fingerprints(chat_ids))

    # ownership

    async def candidates(self, dead: Collection[str], limit: int = 100) -> Sequence[Candidate]:
        return await self._ask(lambda: self._store.candidates(dead, limit))

    async def owned_by(self, replica_id: str) -> Sequence[OwnedChat]:
        return await self._ask(lambda: self._store.owned_by(replica_id))

    async def register(self, replica: Replica) -> None:
        await self._ask(lambda: self._store.register(replica))

    async def heartbeat(self, replica_id: str, load: int) -> bool:
        return await self._ask(lambda: self._store.heartbeat(replica_id, load))

    async def unregister(self, replica_id: str) -> None:
        await self._ask(lambda: self._store.unregister(replica_id))

    async def replicas(self) -> Sequence[Replica]:
        return await self._ask(lambda: self._store.replicas())

    async def released_locks(self, replica_ids: Collection[str]) -> frozenset[str]:
        return await self._ask(lambda: self._store.released_locks(replica_ids))

    # itself

    async def ping(self) -> None:
        await self._ask(lambda: self._store.ping())

    async def aclose(self) -> None:
        """The database is the cluster's: it goes on for the others."""
        await trio.lowlevel.cancel_shielded_checkpoint()
