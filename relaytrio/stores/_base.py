"""The Store protocol: where chats live. One function is one whole transaction.

A store runs the pure decisions of `_protocol/chat.py` on the locked row and writes what they return, all or nothing.
It must not know hints, runs' tasks, or what a decision means. Who calls: the engine, the worker, subscriptions.

All methods are checkpoints and raise `StoreUnavailable` when the database cannot be reached for now. A cancelled
caller may or may not have had its effect; whoever must know asks again with the token or the idempotency key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

import attrs

from .._protocol.chat import Answer, Chat, Command, Create
from .._protocol.events import ChatStatus, Message, MessageRef, QueueEntry


@attrs.frozen(kw_only=True)
class IdempotencyKey:
    """A client's key for one request: a repeat gives the first answer, another content is refused."""

    scope: str
    """The chat's id; for create the principal that asked, else empty."""
    key: str
    request_hash: str
    """Of the method and content: two requests under one key must agree on it."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What a transition came to."""

    answer: Answer
    chat: Chat
    """The chat as the transaction left it. For an idempotent repeat: as it is now."""
    changed: bool
    """False for a no-op, and for a repeat."""


@attrs.frozen(kw_only=True)
class View:
    """What one read, in one transaction, says of a chat to a viewer whose last message is `base`."""

    chat: Chat
    queue: tuple[QueueEntry, ...]
    base: MessageRef
    """As it was asked for."""
    base_live: bool
    """The base is a live message with that stamp (a stamp of None fits any), or the viewer has nothing (id 0)."""
    anchor: MessageRef
    """What `messages` follow: the base with its stamp if it is live; if it is known (same stamp) but deleted, the last
    live message below it, or id 0; if it is unknown or of another stamp, `NO_MESSAGE`."""
    messages: tuple[Message, ...]
    """The first live messages after the anchor, by id; at most a page."""
    more: bool
    """There are live messages after the last of these."""


@attrs.frozen
class Fingerprint:
    """What a poll compares, with `!=`: a store that was restored goes backwards."""

    snapshot_version: int
    last_stamp: str
    """Of the chat's last live message; empty if it has none."""
    run_id: str | None


@attrs.frozen(kw_only=True)
class OwnedChat:
    """A chat that names a replica as its owner."""

    chat_id: str
    run_id: str
    status: ChatStatus
    snapshot_version: int


@attrs.frozen(kw_only=True)
class Candidate:
    """A chat that some worker may have to acquire."""

    chat_id: str
    status: ChatStatus
    worker_id: str | None
    """None: nobody's. Otherwise an owner that the caller named as dead."""


@attrs.frozen(kw_only=True)
class Replica:
    """A replica's row."""

    id: str
    address: str | None
    """What peers can dial; None if it has no address."""
    version: str
    """Of the software."""
    heartbeat: int = 0
    """A counter: only whether it moves says something."""
    lock: str = ""
    """What identifies the lock that it holds and the life of the server in which it was taken; empty: it holds none."""
    load: int = 0
    """Runs at the last heartbeat."""


class Store(Protocol):
    """A database of chats."""

    @property
    def url(self) -> str:
        """What it was opened with, without any password."""

    # transitions

    async def create_chat(self, chat_id: str, command: Create, key: IdempotencyKey | None = None) -> Outcome:
        """Make a chat. A repeated key gives the first chat.

        Raises `IdempotencyConflict`, `ChatNotFound` if the key's first chat was deleted since, and `InvalidTransition`
        if there is a chat of that id already.
        """

    async def apply(self, chat_id: str, command: Command, key: IdempotencyKey | None = None) -> Outcome:
        """Decide and write one transition, with its idempotency key, in one transaction.

        Raises what `decide` raises, `ChatNotFound`, and `IdempotencyConflict`; then nothing has changed, and the
        key is not kept.
        """

    async def delete_chat(self, chat_id: str) -> None:
        """Remove the chat with all it has. Raises `ChatNotFound`."""

    # reads

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        """What a viewer with that base is to be told. Raises `ChatNotFound`."""

    async def read_chat(self, chat_id: str) -> Chat:
        """The chat's row. Raises `ChatNotFound`."""

    async def read_queue(self, chat_id: str) -> tuple[QueueEntry, ...]:
        """The queue in order. Raises `ChatNotFound`."""

    async def list_chats(self, *, before: str | None = None, limit: int = 50) -> Sequence[Chat]:
        """Chats, newest first; `before` is the id of the last chat of the page before. Raises `ChatNotFound` for it."""

    async def list_messages(self, chat_id: str, *, after_id: int = 0, limit: int = 200) -> Sequence[Message]:
        """Live messages by id, at most `limit` and about a page of bytes. Raises `ChatNotFound`."""

    async def fingerprints(self, chat_ids: Collection[str]) -> Mapping[str, Fingerprint]:
        """Of those of the named chats that exist, in one query."""

    # ownership

    async def candidates(self, dead: Collection[str], limit: int = 100) -> Sequence[Candidate]:
        """Chats `running` without an owner, and those `running` or `interrupting` whose owner is one of `dead` or has
        no row; oldest change first."""

    async def owned_by(self, replica_id: str) -> Sequence[OwnedChat]:
        """All chats that name this replica as their owner."""

    async def register(self, replica: Replica) -> None:
        """Write the replica's row anew and take its lock, if the store has one to give (it fills in `lock`)."""

    async def heartbeat(self, replica_id: str, load: int) -> bool:
        """Count the replica's heartbeat up by one. False: its row is gone, it must register anew."""

    async def unregister(self, replica_id: str) -> None:
        """Remove the row and free the lock."""

    async def replicas(self) -> Sequence[Replica]:
        """All rows."""

    async def released_locks(self, replica_ids: Collection[str]) -> frozenset[str]:
        """Those of these whose rows name a lock that was taken in the present life of the server and is free now.
        Empty where the store cannot tell, or has held its own connection for less than `lock_trust_seconds`."""

    # itself

    async def ping(self) -> None:
        """Raise `StoreUnavailable` unless a read gets through."""

    async def aclose(self) -> None:
        """Close it. Twice is fine."""


StoreOrUrl: TypeAlias = Store | str
