"""`open_engine`: one replica, wired. What a Trio program embeds.

It decides nothing itself: requests become commands of `_protocol/chat.py` that the store carries out, and after each
commit the hint is announced. Imports every room below it; no room knows it, but for the ASGI app.
"""

from __future__ import annotations

import hashlib
import logging
import random as random_module
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import trio

from ._errors import ConfigurationError, EngineFailed, ReplicaDraining
from ._hints import Hints
from ._nursery import BodyNursery
from ._parts import PartLogs
from ._presence import Presence
from ._protocol.asked import (
    checked_after_id,
    checked_chat_id,
    checked_idempotency_key,
    checked_limit,
    checked_message_id,
    checked_principal,
    nearest_after_id,
)
from ._protocol.chat import (
    Answer,
    Chat,
    Command,
    Create,
    DeleteQueued,
    EditMessage,
    Interrupt,
    NewMessage,
    PromoteQueued,
    SendMessage,
    WhenBusy,
)
from ._protocol.content import new_message, normal_content
from ._protocol.events import Content, Cursor, Episode, Message, MessageRef, QueueEntry
from ._relay import MultiReplicaRelay, Relay, RelayConfig
from ._seams import seam
from ._settings import DEFAULTS, Settings
from ._subscription import Subscription
from ._turn import Responder
from ._watch import ReplicaParts
from ._worker import Worker
from .pubsub import derive_pubsub
from .pubsub._base import Hint, PubSub
from .stores import open_store
from .stores._base import IdempotencyKey, Outcome, Replica, Store, StoreOrUrl
from .transport.dialer import WebSocketDialer
from .transport.pool import open_leg_pool

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from .transport.asgi import Authorize

VERSION: Final = "0.1.0"
FLUSH_SECONDS = 1.0
"""How long a replica that ends tries to send its last hints; the others would find out by polling."""


class _Derived:
    """The mark of an argument that is derived from the others."""

    def __repr__(self) -> str:
        return "<derived>"


DERIVED: Final = _Derived()


@attrs.frozen(kw_only=True)
class Stats:
    """What a replica is doing."""

    subscriptions: int
    runs: int
    legs: int
    """Open now, from here to other replicas."""
    legs_opened: int
    parts_made: int
    parts_relayed: int
    """Rows that came over legs and were not known here before."""


class Engine:
    """One replica of a chat backend. Made by `open_engine`.

    All requests raise `StoreUnavailable` while the database cannot be reached; they may be repeated then (with the
    same idempotency key, where there is one). All are checkpoints.
    """

    def __init__(
        self,
        *,
        store: Store,
        pubsub: PubSub | None,
        responder: Responder | None,
        address: str | None,
        secret: bytes | None,
        settings: Settings,
        random: random_module.Random,
    ) -> None:
        self.replica_id = str(uuid.UUID(int=random.getrandbits(128), version=4))
        """New at every start."""
        self.settings = settings
        self.store = store
        self.address = address
        self.secret = secret
        self.parts = PartLogs(settings)
        self.relay: Relay | None = None
        self.drain_started = trio.Event()
        """Set when the replica begins to stop: viewers are told to go elsewhere."""
        self._random = random
        self._logger = logging.getLogger("relaytrio")
        self._hints = Hints(store, pubsub, settings, look=self._wake_worker, random=random.random, logger=self._logger)
        self._worker = None if responder is None else self._make_worker(responder)
        replica = Replica(id=self.replica_id, address=address, version=VERSION)
        self._presence = Presence(
            replica=replica, store=store, worker=self._worker, settings=settings, logger=self._logger
        )

    def _make_worker(self, responder: Responder) -> Worker:
        return Worker(
            replica_id=self.replica_id,
            store=self.store,
            parts=self.parts,
            responder=responder,
            settings=self.settings,
            announce=self._hints.announce,
            random=self._random,
        )

    def _wake_worker(self, hint: Hint) -> None:
        """A chat that somebody else runs is no business of our worker."""
        if self._worker is not None and (hint.worker_id is None or hint.chat_id in self._worker.runs):
            self._worker.look(hint.chat_id)

    @property
    def draining(self) -> bool:
        """Whether the replica is being stopped."""
        return self.drain_started.is_set()

    # ------------------------------------------------------------------------------------------ chats

    async def create_chat(
        self,
        messages: Sequence[NewMessage | Mapping[str, Any]] = (),
        *,
        idempotency_key: str | None = None,
        principal: str = "",
    ) -> Chat:
        """A new chat with these messages; a worker answers if they end with one of the user.

        A repeated `idempotency_key` of the same `principal` gives the first chat. Raises `InvalidContent`,
        `ContentTooLarge`, `IdempotencyConflict`, and `ConfigurationError` for a key that HTTP would refuse.
        """
        limit = self.settings.message_bytes
        command = Create(messages=tuple(new_message(message, limit_bytes=limit) for message in messages))
        chat_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        key = self._key(checked_principal(principal), idempotency_key, command)
        return self._announced(await self.store.create_chat(chat_id, command, key)).chat

    async def get_chat(self, chat_id: str) -> Chat:
        """The chat's row. Raises `ChatNotFound`."""
        return await self.store.read_chat(checked_chat_id(chat_id))

    async def list_chats(self, *, before: str | None = None, limit: int = 50) -> Sequence[Chat]:
        """A page of chats, newest first; `before` is the last id of the page before. Raises `ChatNotFound` for it."""
        last = None if before is None else checked_chat_id(before)
        return await self.store.list_chats(before=last, limit=checked_limit(limit))

    async def delete_chat(self, chat_id: str) -> None:
        """Remove the chat; its viewers' streams end. Raises `ChatNotFound`."""
        await self.store.delete_chat(checked_chat_id(chat_id))
        self._hints.announce_deleted(chat_id)

    async def list_messages(self, chat_id: str, *, after_id: int = 0, limit: int = 200) -> Sequence[Message]:
        """Live messages in order. Raises `ChatNotFound`."""
        chat_id, after_id = checked_chat_id(chat_id), nearest_after_id(after_id)
        return await self.store.list_messages(chat_id, after_id=after_id, limit=checked_limit(limit))

    # --------------------------------------------------------------------------------------- commands

    async def send_message(
        self,
        chat_id: str,
        content: str | Content,
        *,
        when_busy: WhenBusy = "queue",
        idempotency_key: str | None = None,
    ) -> Answer:
        """Send a message of the user.

        While the chat is busy, `when_busy` decides: `queue` lets it wait, `interrupt` stops the answer for it, and
        `reject` raises `ChatBusy`. Raises `InvalidContent`, `ContentTooLarge`, `ChatNotFound`, `QueueFull`,
        `IdempotencyConflict`.
        """
        if when_busy not in ("queue", "interrupt", "reject"):
            raise ConfigurationError(f"when_busy is queue, interrupt or reject, not {when_busy!r}")
        command = SendMessage(content=self._content(content), when_busy=when_busy)
        return await self._apply(chat_id, command, idempotency_key)

    async def edit_message(
        self, chat_id: str, message_id: int, content: str | Content, *, idempotency_key: str | None = None
    ) -> Answer:
        """Replace a message of the user; it and all later ones are deleted, the queue too, and the answer is new.

        Raises `InvalidContent`, `ContentTooLarge`, `ChatNotFound`, `MessageNotFound`, `NotEditable`,
        `IdempotencyConflict`.
        """
        command = EditMessage(message_id=checked_message_id(message_id), content=self._content(content))
        return await self._apply(chat_id, command, idempotency_key)

    async def interrupt(self, chat_id: str, *, of: Episode | None = None) -> Answer:
        """Stop the answer; the queue goes on afterwards. From any replica.

        With `of`, only if that episode belongs to the present turn: a Stop that comes late stops nothing. What it
        did is in `Answer.done`: `interrupting`, `ok` (at once) or `nothing`. Raises `ChatNotFound`.
        """
        return await self._apply(chat_id, Interrupt(of=of))

    async def list_queue(self, chat_id: str) -> tuple[QueueEntry, ...]:
        """The messages that wait, in order. Raises `ChatNotFound`."""
        return await self.store.read_queue(checked_chat_id(chat_id))

    async def delete_queued(self, chat_id: str, queued_id: int) -> Answer:
        """Take a message out of the queue. Raises `ChatNotFound`, `QueuedMessageNotFound`."""
        return await self._apply(chat_id, DeleteQueued(queued_id=queued_id))

    async def promote_queued(self, chat_id: str, queued_id: int) -> Answer:
        """Stop the answer for a message that waits. Raises `ChatNotFound`, `QueuedMessageNotFound`."""
        return await self._apply(chat_id, PromoteQueued(queued_id=queued_id))

    # ---------------------------------------------------------------------------------------- viewers

    def subscribe(
        self,
        chat_id: str,
        *,
        cursor: str | Cursor | None = None,
        after_message_id: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Subscription:
        """One viewer's stream: an async context manager, see `Subscription`.

        It goes on after `cursor` (of any replica), else after the message `after_message_id`, else it begins with the
        first message. `headers` are the viewer's; the dialer forwards those that it was told to. Raises
        `InvalidCursor`, `ChatNotFound` for what cannot be an id (for other chats that are not there, entering it does),
        and `ReplicaDraining` while the replica is being stopped.
        """
        if self.draining:
            raise ReplicaDraining(self._random.random() * self.settings.drain_jitter_seconds)
        if isinstance(cursor, str):
            cursor = Cursor.parse(cursor)
        if cursor is None:
            after = checked_after_id(after_message_id or 0)
            cursor = Cursor(MessageRef(after, None)) if after else Cursor()
        return Subscription(self._shared, checked_chat_id(chat_id), cursor, headers or {})

    @cached_property
    def _shared(self) -> ReplicaParts:
        return ReplicaParts(
            replica_id=self.replica_id,
            store=self.store,
            parts=self.parts,
            hints=self._hints,
            relay=self.relay,
            settings=self.settings,
            random=self._random.random,
            logger=self._logger,
        )

    def asgi_app(self, *, authorize: Authorize | None = None) -> Starlette:
        """The HTTP surface, to mount or to serve. `authorize` is asked before any request is served or upgraded.

        Needs the extra `server`.
        """
        try:
            from .transport.asgi import make_asgi_app
        except ModuleNotFoundError as error:
            raise ConfigurationError("asgi_app needs: pip install 'relaytrio[server]'") from error
        return make_asgi_app(self, authorize=authorize)

    # ----------------------------------------------------------------------------------------- itself

    async def drain(self) -> None:
        """Prepare to stop: no new viewers or runs, viewers are told to go elsewhere, and responders get their grace.

        Returns when no chat is owned by this replica any more. The replica still serves reads.
        """
        self.drain_started.set()
        if self._worker is not None:
            await self._worker.drain()
        else:
            await trio.lowlevel.checkpoint()

    def stats(self) -> Stats:
        """What the replica is doing now."""
        counts = self.relay.counts if isinstance(self.relay, MultiReplicaRelay) else None
        return Stats(
            subscriptions=len(self._hints),
            runs=0 if self._worker is None else len(self._worker.runs),
            legs=0 if counts is None else counts.open,
            legs_opened=0 if counts is None else counts.opened,
            parts_made=self.parts.rows_made,
            parts_relayed=self.parts.rows_copied,
        )

    def _content(self, content: str | Content) -> Content:
        return normal_content(content, limit_bytes=self.settings.message_bytes)

    async def _apply(self, chat_id: str, command: Command, idempotency_key: str | None = None) -> Answer:
        key = self._key(checked_chat_id(chat_id), idempotency_key, command)
        outcome = await self.store.apply(chat_id, command, key)
        await seam("request committed, not told", chat_id=chat_id, command=type(command).__name__)
        return self._announced(outcome).answer

    def _announced(self, outcome: Outcome) -> Outcome:
        """After every commit. A repeat is announced too: the first answer may have been lost with its hint."""
        self._hints.announce(outcome.chat)
        return outcome

    def _key(self, scope: str, key: str | None, command: object) -> IdempotencyKey | None:
        if key is None:
            return None
        content = msgspec.json.encode([type(command).__name__, command])
        key = checked_idempotency_key(key)
        return IdempotencyKey(scope=scope, key=key, request_hash=hashlib.sha256(content).hexdigest())


@asynccontextmanager
async def open_engine(
    store: StoreOrUrl,
    *,
    pubsub: PubSub | _Derived | None = DERIVED,
    responder: Responder | None = None,
    relay: Relay | _Derived | None = DERIVED,
    address: str | None = None,
    secret: str | bytes | None = None,
    settings: Settings = DEFAULTS,
    random: random_module.Random | None = None,
) -> AsyncIterator[Engine]:
    """One replica, for as long as the context lasts.

    `store` is a URL (`memory://`, `sqlite:///path`, `postgresql://...`) or a Store, which is not closed here then.
    `pubsub` is derived from the store; None is none: the replica polls. Without a `responder` it only serves. The
    `relay` is a `MultiReplicaRelay` when there is a `secret` (the same in the whole cluster), else none. `address` is
    what other replicas dial. `random` makes ids, stamps and jitter repeatable in tests.

    Leaving it stops what this replica generates and hands the chats over at once; `engine.drain()` before that gives
    answers time to finish. Raises `ConfigurationError` and `StoreUnusable`; a failed task of the engine cancels the
    body and raises `EngineFailed`. An exception of the body leaves as it is.
    """
    key = _secret(secret)
    async with AsyncExitStack() as stack:
        if isinstance(store, str):
            store = await stack.enter_async_context(open_store(store, settings=settings))
        if isinstance(pubsub, _Derived):
            pubsub = await stack.enter_async_context(derive_pubsub(store))
        engine = Engine(
            store=store,
            pubsub=pubsub,
            responder=responder,
            address=address,
            secret=key,
            settings=settings,
            random=random or random_module.Random(),
        )
        engine.relay = await _default_relay(engine, stack) if isinstance(relay, _Derived) else relay
        async with _running(engine):
            yield engine


@asynccontextmanager
async def _running(engine: Engine) -> AsyncIterator[None]:
    """The engine's tasks. The worker ends first: its last transitions are announced by what ends after it."""

    def failed() -> EngineFailed:
        return EngineFailed(f"replica {engine.replica_id} failed")

    async with BodyNursery(failed) as outer:
        outer.start_soon(engine._hints.run)
        outer.start_soon(engine.parts.run)
        async with engine._presence.registered():
            try:
                async with BodyNursery(failed) as inner:
                    inner.start_soon(engine._presence.run)
                    if engine._worker is not None:
                        inner.start_soon(engine._worker.run)
                    yield
            finally:
                engine._hints.finish_all(lambda: ReplicaDraining(0.0))
                with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH_SECONDS):
                    await engine._hints.flush()


def _secret(secret: str | bytes | None) -> bytes | None:
    key = secret.encode() if isinstance(secret, str) else secret
    if key is not None and len(key) < 16:
        raise ConfigurationError("secret: at least 16 bytes, the same on all replicas")
    return key


async def _default_relay(engine: Engine, stack: AsyncExitStack) -> Relay | None:
    """Where legs to a peer share one connection, the pool of them lasts as long as the stack."""
    if engine.secret is None:
        return None
    dialer = WebSocketDialer(
        resolve=_Addresses(engine.store).resolve,
        replica_id=lambda: engine.replica_id,
        secret=engine.secret,
        settings=engine.settings,
    )
    shared = engine.settings.shared_legs
    pool = await stack.enter_async_context(open_leg_pool(dialer, engine.settings)) if shared else None
    return MultiReplicaRelay(RelayConfig(dialer=pool or dialer, settings=engine.settings, random=engine._random.random))


class _Addresses:
    """Where replicas can be dialed, as they wrote it into the store. An id has one address for its whole life."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, str | None] = {}

    async def resolve(self, replica_id: str) -> str | None:
        """The address, or None."""
        if replica_id not in self._known:
            self._known = {replica.id: replica.address for replica in await self._store.replicas()}
        return self._known.get(replica_id)
