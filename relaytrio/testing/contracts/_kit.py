"""What the tests of the store contract share. Who calls: `_store_writes.py`, `_store_reads.py`, `_store_owners.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, nullcontext

import attrs
import pytest
import trio

from ..._protocol.chat import Acquire, Chat, Create, NewMessage
from ..._protocol.events import NO_MESSAGE, Content, Message, MessageRef, QueueEntry
from ..._settings import Settings
from ...stores import Candidate, Fingerprint, OwnedChat, Store, View

LIMITS = Settings(page_messages=3, page_bytes=1000, queue_entries=3, lock_trust_seconds=0.0)
"""What a test can reach."""


class StoreTests(ABC):
    """What a store's author gives."""

    pytestmark = pytest.mark.trio

    @abstractmethod
    def open(self, settings: Settings) -> AbstractAsyncContextManager[Store]:
        """An empty store with these settings, closed with the context."""

    def open_again(self, store: Store, settings: Settings) -> AbstractAsyncContextManager[Store]:
        """The same database over another connection, as another replica has it. If there is no such thing: itself."""
        return nullcontext(store)


def text(content: str) -> Content:
    """Content of one text."""
    return [{"type": "text", "text": content}]


def user(content: str) -> NewMessage:
    """A message of the user."""
    return NewMessage(role="user", content=text(content))


def assistant(content: str) -> NewMessage:
    """A message of the assistant."""
    return NewMessage(role="assistant", content=text(content))


def asked(*contents: str) -> Create:
    """A chat that begins with these messages of the user, and so is running."""
    return Create(messages=tuple(user(content) for content in contents))


def texts(messages: Iterable[Message | QueueEntry]) -> list[str]:
    """What messages or queue entries say."""
    return [message.content[0]["text"] for message in messages]


async def cancel_after(scope: trio.CancelScope, steps: int) -> None:
    """Cancel it after so many steps of the scheduler."""
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def acquire(
    store: Store, chat_id: str, *, worker_id: str = "w", run_id: str = "r", dead: str | None = None
) -> None:
    """Let this worker's run own the chat."""
    await store.apply(chat_id, Acquire(worker_id=worker_id, run_id=run_id, dead_worker_id=dead))


async def live_messages(store: Store, chat_id: str) -> list[Message]:
    """All live messages, page by page."""
    messages: list[Message] = []
    while page := await store.list_messages(chat_id, after_id=messages[-1].id if messages else 0):
        messages.extend(page)
    return messages


@attrs.frozen
class Everything:
    """All that a store says of a chat and of who is to run it: what a refusal has to leave as it was."""

    chat: Chat
    queue: tuple[QueueEntry, ...]
    views: tuple[View, ...]
    """From nothing, from each message on, live or deleted, and from one that is not there."""
    fingerprint: Fingerprint
    candidates: tuple[Candidate, ...]
    owned: tuple[OwnedChat, ...]

    @classmethod
    async def of(cls, store: Store, chat_id: str) -> Everything:
        chat = await store.read_chat(chat_id)
        bases = [NO_MESSAGE, *(MessageRef(number, None) for number in range(1, chat.next_message_id + 1))]
        return cls(
            chat=chat,
            queue=await store.read_queue(chat_id),
            views=tuple([await store.read_view(chat_id, base) for base in bases]),
            fingerprint=(await store.fingerprints([chat_id]))[chat_id],
            candidates=tuple(await store.candidates({"dead"})),
            owned=tuple(await store.owned_by("w")),
        )
