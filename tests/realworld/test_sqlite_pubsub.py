"""The SQLite pubsub keeps the contract, on the real clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from relaytrio._protocol.chat import Create, NewMessage, SendMessage
from relaytrio.pubsub import Hint, PubSub, open_sqlite_pubsub
from relaytrio.pubsub import sqlite as module
from relaytrio.pubsub._file_watch import Polling
from relaytrio.stores import open_sqlite_store
from relaytrio.testing.contracts import PubSubContract

pytestmark = pytest.mark.realworld
TEXT = [{"type": "text", "text": "q"}]
POLL_SECONDS = 0.002
ASKED = Create(messages=(NewMessage(role="user", content=TEXT),))


class TestContract(PubSubContract):
    """The pubsub contract, as the system tells of writes; a change is a transition, and nothing is published."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "chat.db"
        self.known: set[str] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[PubSub]:
        async with (
            open_sqlite_store(self.path) as self.store,
            open_sqlite_pubsub(self.path) as pubsub,
        ):
            yield pubsub

    def open_again(self, pubsub: PubSub) -> AbstractAsyncContextManager[PubSub]:
        return open_sqlite_pubsub(self.path)

    async def change(self, pubsub: PubSub, chat_id: str) -> Hint:
        if chat_id not in self.known:
            self.known.add(chat_id)
            chat = (await self.store.create_chat(chat_id, ASKED)).chat
        else:
            chat = (await self.store.apply(chat_id, SendMessage(content=TEXT, when_busy="interrupt"))).chat
        return Hint(chat_id, chat.snapshot_version, chat.status, chat.worker_id)

    async def delete(self, pubsub: PubSub, chat_id: str) -> None:
        await self.store.delete_chat(chat_id)


class TestPollingContract(TestContract):
    """The same where the system does not tell of writes."""

    @pytest.fixture(autouse=True)
    def _no_watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "watch_file", lambda path: Polling(POLL_SECONDS))
