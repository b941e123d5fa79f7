"""Hints of one replica: who watches which chat, what is said to other replicas, and the poll that makes up for losses.

A hint only says "look": it is compared with `>` against what was read last, and never becomes an event. A replica's
own transitions wake its own subscriptions and worker directly, pubsub or not; to others a hint is sent after the
commit, and nobody waits for it. The poll compares with `!=`, since a store that was restored goes backwards.

Must not know: what a subscription or the worker does when it looks. Who calls: the engine, which owns `run`;
subscriptions (`watching`); the worker and the engine's own requests (`announce`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from typing import Literal, NoReturn, Protocol, TypeAlias

import trio

from ._bounded import within
from ._errors import PubSubUnavailable, StoreUnavailable
from ._protocol.chat import Chat
from ._protocol.retry import Backoff
from ._seams import seam
from ._settings import Settings
from ._wakeup import Wakeup
from .pubsub._base import Hint, PubSub
from .stores._base import Fingerprint, Store

Trouble: TypeAlias = Literal["pubsub", "relay", "store"]

POLL_CHATS = 500
"""Chats in one poll query: some databases bound the number of values in a statement."""


class Watcher(Protocol):
    """What this file knows of a subscription. All methods are synchronous."""

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What the last read said; None: not read to the end yet."""

    def hinted(self, snapshot_version: int) -> None:
        """The chat may have reached this version."""

    def look(self) -> None:
        """Read the store again, whatever was read before."""

    def tell(self, what: Trouble, ok: bool, message: str) -> None:
        """Something that serves the stream does not work, or works (again)."""

    def finish(self, ending: Exception) -> None:
        """The stream ends here, for that reason."""


class Hints:
    """The hints of one replica."""

    def __init__(
        self,
        store: Store,
        pubsub: PubSub | None,
        settings: Settings,
        *,
        look: Callable[[Hint], None],
        random: Callable[[], float],
        logger: logging.Logger,
    ) -> None:
        self._store = store
        self._pubsub = pubsub
        self._settings = settings
        self._wake_worker = look
        self._random = random
        self._logger = logger
        self._watchers: dict[str, dict[Watcher, None]] = {}
        self._unsent: dict[str, Hint] = {}
        self._sending = Wakeup()
        self._sends = True
        """The last hint could be sent."""
        self._watched = Wakeup()
        self._deaf: str | None = None
        """Why hints of others do not arrive for now."""

    def __len__(self) -> int:
        """How many subscriptions there are."""
        return sum(map(len, self._watchers.values()))

    def watching(self, chat_id: str, watcher: Watcher) -> AbstractContextManager[None]:
        """Hand the chat's hints to the watcher for as long as the context lasts."""
        return _Watching(self, chat_id, watcher)

    def _add(self, chat_id: str, watcher: Watcher) -> None:
        self._watchers.setdefault(chat_id, {})[watcher] = None
        self._watched.set()
        if self._deaf is not None:
            watcher.tell("pubsub", False, self._deaf)

    def _remove(self, chat_id: str, watcher: Watcher) -> None:
        del self._watchers[chat_id][watcher]
        if not self._watchers[chat_id]:
            del self._watchers[chat_id]

    def announce(self, chat: Chat) -> None:
        """A transition of this replica was committed: wake who is here, and let the others know."""
        self._say(Hint(chat.id, chat.snapshot_version, chat.status, chat.worker_id))

    def announce_deleted(self, chat_id: str) -> None:
        """This replica has deleted the chat."""
        self._say(Hint(chat_id, 0, "deleted", None))

    def finish_all(self, make_ending: Callable[[], Exception]) -> None:
        """End all streams of this replica, each with an exception of its own."""
        for watcher in self._all():
            watcher.finish(make_ending())

    async def flush(self) -> None:
        """Return when all hints were handed to the notifier (or it failed)."""
        while self._unsent and self._pubsub is not None:
            await self._send_one(self._pubsub)

    async def run(self) -> NoReturn:
        """Listen, send and poll, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poll)
            if self._pubsub is not None:
                nursery.start_soon(self._listen, self._pubsub)
                nursery.start_soon(self._send, self._pubsub)
            await trio.sleep_forever()

    def _say(self, hint: Hint) -> None:
        self._deliver(hint)
        if self._pubsub is not None:
            # One place a chat: while hints cannot be sent, memory does not grow.
            self._unsent[hint.chat_id] = hint
            self._sending.set()

    def _deliver(self, hint: Hint) -> None:
        for watcher in tuple(self._watchers.get(hint.chat_id, ())):
            if hint.status == "deleted":
                watcher.look()
            else:
                watcher.hinted(hint.snapshot_version)
        self._wake_worker(hint)

    def _all(self) -> list[Watcher]:
        return [watcher for watchers in self._watchers.values() for watcher in watchers]

    async def _send(self, pubsub: PubSub) -> NoReturn:
        while True:
            await self._sending.wait()
            while self._unsent:
                await self._send_one(pubsub)

    async def _send_one(self, pubsub: PubSub) -> None:
        hint = self._unsent.pop(next(iter(self._unsent)))
        await seam("hint taken, not published", chat_id=hint.chat_id)
        try:
            await pubsub.publish(hint)
        except PubSubUnavailable as error:
            # A hint may be lost: the others poll. It is told once, not for each of many.
            if self._sends:
                self._logger.warning("hints do not get through for now, other replicas poll meanwhile: %s", error)
            self._sends = False
        else:
            if not self._sends:
                self._logger.info("hints get through again")
            self._sends = True

    async def _listen(self, pubsub: PubSub) -> NoReturn:
        backoff = Backoff(self._settings.store_retry_seconds, self._settings.listen_retry_max_seconds)
        while True:
            try:
                await self._hear(pubsub, backoff)
                fault = "the notifier ended the connection"
            except PubSubUnavailable as error:
                fault = str(error)
            self._lose_hearing(fault)
            await trio.sleep(backoff.next_delay_seconds(self._random()))

    async def _hear(self, pubsub: PubSub, backoff: Backoff) -> None:
        async with pubsub.listen() as hints:
            self._hear_again()
            async for hint in hints:
                backoff.reset()
                self._deliver(hint)

    def _lose_hearing(self, fault: str) -> None:
        if self._deaf is None:
            self._logger.warning("no hints from other replicas, polling meanwhile: %s", fault)
        self._deaf = fault
        for watcher in self._all():
            watcher.tell("pubsub", False, fault)

    def _hear_again(self) -> None:
        """Whatever was said while nobody listened is lost: everybody looks."""
        if self._deaf is None:
            return
        self._deaf = None
        for watcher in self._all():
            watcher.tell("pubsub", True, "hints arrive again")
            watcher.look()

    async def _poll(self) -> NoReturn:
        answered = True
        while True:
            while not self._watchers:
                await self._watched.wait()
            await trio.sleep(self._settings.poll_seconds)
            try:
                await self._compare()
            except StoreUnavailable as error:
                answered = False
                for watcher in self._all():
                    watcher.tell("store", False, str(error))
            else:
                if not answered:
                    # Each looks for itself, and says that the store is back when its own read got through.
                    for watcher in self._all():
                        watcher.look()
                answered = True

    async def _compare(self) -> None:
        chat_ids = iter(tuple(self._watchers))
        while chunk := tuple(islice(chat_ids, POLL_CHATS)):
            stored = await within(self._settings.store_read_seconds, self._store.fingerprints(chunk))
            await seam("poll read, not compared")
            for chat_id in chunk:
                for watcher in tuple(self._watchers.get(chat_id, ())):
                    if watcher.fingerprint != stored.get(chat_id):
                        watcher.look()


class _Watching:
    """A watcher of a chat, for as long as the context lasts."""

    __slots__ = ("_chat_id", "_hints", "_watcher")

    def __init__(self, hints: Hints, chat_id: str, watcher: Watcher) -> None:
        self._hints = hints
        self._chat_id = chat_id
        self._watcher = watcher

    def __enter__(self) -> None:
        self._hints._add(self._chat_id, self._watcher)

    def __exit__(self, *details: object) -> None:
        self._hints._remove(self._chat_id, self._watcher)
