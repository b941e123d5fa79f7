"""A store in this process's memory: for tests, simulated clusters and programs that need no history after their end.

Every method waits only in checkpoints: one before, in which a cancelled caller leaves without effect, and one after,
in which other tasks run but nobody is cancelled. What is between them is one synchronous stretch, and so atomic.
Several engines of one process may share one `MemoryStore`: to them it is the database of their cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import dropwhile, islice
from random import Random
from typing import TypeVar

import attrs
import trio

from .._errors import ChatNotFound, IdempotencyConflict, InvalidTransition
from .._protocol.chat import Answer, Chat, ChatState, Command, Create, EditMessage, Transition, create, decide
from .._protocol.events import Message, MessageRef, QueueEntry
from .._settings import DEFAULTS, Settings
from ._base import Candidate, Fingerprint, IdempotencyKey, Outcome, OwnedChat, Replica, View
from ._fresh import Fresher, hours, utc_now
from ._memory_record import Record, apart
from ._page import Known, start_of_page, take_page

T = TypeVar("T")
_LOCK = "memory"
"""What the row of a replica names that holds its lock: the life of this object is the life of the server."""


@attrs.frozen
class _KeptAnswer:
    """What an idempotency key was answered with."""

    request_hash: str
    chat_id: str
    answer: Answer
    until_seconds: float


@attrs.frozen
class MemoryBackup:
    """What a `MemoryStore` held at an instant. Made by `backup`, good for any number of `restore`s."""

    records: Mapping[str, Record] = attrs.field(repr=False)
    active: tuple[str, ...]
    answers: Mapping[tuple[bool, str, str], _KeptAnswer] = attrs.field(repr=False)
    replicas: Mapping[str, Replica]


class MemoryStore:
    """A `Store` in memory.

    `clock` gives the instant as RFC 3339 in UTC, `random` the stamps of messages; tests inject both. A replica holds
    its lock from `register` to `unregister` or `lose_lock`.
    """

    def __init__(
        self,
        *,
        settings: Settings = DEFAULTS,
        clock: Callable[[], str] = utc_now,
        random: Random | None = None,
    ) -> None:
        self._settings = settings
        self._fresher = Fresher(clock, random)
        self._records: dict[str, Record] = {}
        self._active: dict[str, None] = {}
        """Chats that are running or interrupting, in the order of their last change."""
        self._answers: dict[tuple[bool, str, str], _KeptAnswer] = {}
        """By (of a create, scope, key), in the order in which they were made."""
        self._replicas: dict[str, Replica] = {}
        self._locked: set[str] = set()
        self._closed = False

    @property
    def url(self) -> str:
        return "memory://"

    def lose_lock(self, replica_id: str) -> None:
        """Free a replica's lock and leave its row, as its sudden death would. For tests."""
        self._locked.discard(replica_id)

    def backup(self) -> MemoryBackup:
        """A copy of all rows as they are now. Synchronous."""
        return MemoryBackup(
            records={chat_id: record.copy() for chat_id, record in self._records.items()},
            active=tuple(self._active),
            answers=dict(self._answers),
            replicas=dict(self._replicas),
        )

    def restore(self, backup: MemoryBackup) -> None:
        """Set all rows back to an older copy, under whoever is using them. Synchronous.

        Locks belong to the connections that hold them, and stay as they are.
        """
        self._records = {chat_id: record.copy() for chat_id, record in backup.records.items()}
        self._active = dict.fromkeys(backup.active)
        self._answers = dict(backup.answers)
        self._replicas = dict(backup.replicas)

    # transitions

    async def create_chat(self, chat_id: str, command: Create, key: IdempotencyKey | None = None) -> Outcome:
        return await self._atomic(lambda: self._create(chat_id, command, key))

    async def apply(self, chat_id: str, command: Command, key: IdempotencyKey | None = None) -> Outcome:
        return await self._atomic(lambda: self._apply(chat_id, command, key))

    async def delete_chat(self, chat_id: str) -> None:
        await self._atomic(lambda: self._delete(chat_id))

    # reads

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        return await self._atomic(lambda: self._view(chat_id, base))

    async def read_chat(self, chat_id: str) -> Chat:
        return await self._atomic(lambda: self._record(chat_id).chat)

    async def read_queue(self, chat_id: str) -> tuple[QueueEntry, ...]:
        return await self._atomic(lambda: tuple(map(apart, self._record(chat_id).queue)))

    async def list_chats(self, *, before: str | None = None, limit: int = 50) -> Sequence[Chat]:
        return await self._atomic(lambda: self._list_chats(before, limit))

    async def list_messages(self, chat_id: str, *, after_id: int = 0, limit: int = 200) -> Sequence[Message]:
        return await self._atomic(lambda: self._list_messages(chat_id, after_id, limit))

    async def fingerprints(self, chat_ids: Collection[str]) -> Mapping[str, Fingerprint]:
        return await self._atomic(
            lambda: {chat_id: self._fingerprint(chat_id) for chat_id in chat_ids if chat_id in self._records}
        )

    # ownership

    async def candidates(self, dead: Collection[str], limit: int = 100) -> Sequence[Candidate]:
        return await self._atomic(lambda: list(islice(self._candidates(frozenset(dead)), limit)))

    async def owned_by(self, replica_id: str) -> Sequence[OwnedChat]:
        return await self._atomic(lambda: list(self._owned_by(replica_id)))

    async def register(self, replica: Replica) -> None:
        def write() -> None:
            self._replicas[replica.id] = attrs.evolve(replica, lock=_LOCK if self._settings.replica_locks else "")
            self._locked.add(replica.id)

        await self._atomic(write)

    async def heartbeat(self, replica_id: str, load: int) -> bool:
        return await self._atomic(lambda: self._heartbeat(replica_id, load))

    async def unregister(self, replica_id: str) -> None:
        def write() -> None:
            self._replicas.pop(replica_id, None)
            self._locked.discard(replica_id)

        await self._atomic(write)

    async def replicas(self) -> Sequence[Replica]:
        return await self._atomic(lambda: list(self._replicas.values()))

    async def released_locks(self, replica_ids: Collection[str]) -> frozenset[str]:
        """At once: there is no connection that would have to be held for a while before it can be trusted."""
        return await self._atomic(lambda: frozenset(replica_ids) & self._claimed() - self._locked)

    # itself

    async def ping(self) -> None:
        await self._atomic(lambda: None)

    async def aclose(self) -> None:
        """What is in it stays in memory as long as the object does, but nobody gets at it any more."""
        self._closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    # the synchronous stretches

    async def _atomic(self, stretch: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError("the store is closed")
        result = stretch()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    def _record(self, chat_id: str) -> Record:
        try:
            return self._records[chat_id]
        except KeyError:
            raise ChatNotFound(f"there is no chat {chat_id}") from None

    def _create(self, chat_id: str, command: Create, key: IdempotencyKey | None) -> Outcome:
        kept = self._kept(True, key)
        if kept is not None:
            return Outcome(answer=kept.answer, chat=self._record(kept.chat_id).chat, changed=False)
        if chat_id in self._records:
            raise InvalidTransition(f"there is a chat {chat_id} already")
        transition = create(chat_id, command, self._fresher.fresh(command))
        self._records[chat_id] = Record(transition.chat)
        return self._write(chat_id, transition, True, key)

    def _apply(self, chat_id: str, command: Command, key: IdempotencyKey | None) -> Outcome:
        record = self._record(chat_id)
        kept = self._kept(False, key)
        if kept is not None:
            return Outcome(answer=kept.answer, chat=record.chat, changed=False)
        transition = decide(
            ChatState(record.chat, record.queue),
            command,
            self._fresher.fresh(command),
            target=record.find(command.message_id) if isinstance(command, EditMessage) else None,
            queue_limit=self._settings.queue_entries,
        )
        return self._write(chat_id, transition, False, key)

    def _write(self, chat_id: str, transition: Transition, creates: bool, key: IdempotencyKey | None) -> Outcome:
        if transition.changed:
            self._records[chat_id].write(transition)
            self._active.pop(chat_id, None)
            if transition.chat.status in ("running", "interrupting"):
                self._active[chat_id] = None
        if key is not None:
            until = self._fresher.now_seconds() + hours(self._settings.idempotency_hours)
            kept = _KeptAnswer(key.request_hash, chat_id, transition.answer, until)
            self._answers[creates, key.scope, key.key] = kept
        return Outcome(answer=transition.answer, chat=transition.chat, changed=transition.changed)

    def _kept(self, creates: bool, key: IdempotencyKey | None) -> _KeptAnswer | None:
        if key is None:
            return None
        self._purge_answers(self._fresher.now_seconds())
        kept = self._answers.get((creates, key.scope, key.key))
        if kept is not None and kept.request_hash != key.request_hash:
            raise IdempotencyConflict("this idempotency key was used before, with another content")
        return kept

    def _purge_answers(self, now_seconds: float) -> None:
        """The oldest come first, so this ends at the first that is still to be kept."""
        while self._answers:
            oldest = next(iter(self._answers))
            if self._answers[oldest].until_seconds > now_seconds:
                return
            del self._answers[oldest]

    def _delete(self, chat_id: str) -> None:
        self._record(chat_id)
        del self._records[chat_id]
        self._active.pop(chat_id, None)
        for name in [name for name in self._answers if name[:2] == (False, chat_id)]:
            del self._answers[name]

    def _view(self, chat_id: str, base: MessageRef) -> View:
        record = self._record(chat_id)
        found = record.find(base.id)
        known = None if found is None else Known(found.stamp, found.deleted)
        start = start_of_page(base, known, record.last_live_below)
        messages, more = take_page(
            record.live_after(start.anchor.id),
            most_messages=self._settings.page_messages,
            most_bytes=self._settings.page_bytes,
        )
        return View(
            chat=record.chat,
            queue=tuple(map(apart, record.queue)),
            base=base,
            base_live=start.base_live,
            anchor=start.anchor,
            messages=tuple(map(apart, messages)),
            more=more,
        )

    def _list_chats(self, before: str | None, limit: int) -> list[Chat]:
        ids: Iterator[str] = reversed(self._records)
        if before is not None:
            self._record(before)
            ids = islice(dropwhile(lambda chat_id: chat_id != before, ids), 1, None)
        return [self._records[chat_id].chat for chat_id in islice(ids, limit)]

    def _list_messages(self, chat_id: str, after_id: int, limit: int) -> tuple[Message, ...]:
        after = self._record(chat_id).live_after(after_id)
        return tuple(map(apart, take_page(after, most_messages=limit, most_bytes=self._settings.page_bytes)[0]))

    def _fingerprint(self, chat_id: str) -> Fingerprint:
        record = self._records[chat_id]
        last = record.last_live_below(record.chat.next_message_id)
        return Fingerprint(record.chat.snapshot_version, "" if last is None else last.stamp or "", record.chat.run_id)

    def _candidates(self, dead: frozenset[str]) -> Iterator[Candidate]:
        for chat_id in self._active:
            chat = self._records[chat_id].chat
            if chat.worker_id is None or chat.worker_id in dead or chat.worker_id not in self._replicas:
                yield Candidate(chat_id=chat_id, status=chat.status, worker_id=chat.worker_id)

    def _owned_by(self, replica_id: str) -> Iterator[OwnedChat]:
        for chat_id in self._active:
            chat = self._records[chat_id].chat
            if chat.worker_id == replica_id and chat.run_id is not None:
                yield OwnedChat(
                    chat_id=chat_id, run_id=chat.run_id, status=chat.status, snapshot_version=chat.snapshot_version
                )

    def _claimed(self) -> frozenset[str]:
        return frozenset(replica.id for replica in self._replicas.values() if replica.lock)

    def _heartbeat(self, replica_id: str, load: int) -> bool:
        replica = self._replicas.get(replica_id)
        if replica is None:
            return False
        self._replicas[replica_id] = attrs.evolve(replica, heartbeat=replica.heartbeat + 1, load=load)
        return True
