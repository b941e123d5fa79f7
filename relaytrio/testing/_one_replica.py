"""A whole replica on virtual time: to test one's own responder.

The real engine, worker and subscription on a store in memory; ids and jitter come from a seed. Run it under
`trio.testing.MockClock` (pytest-trio's `autojump_clock`): hours of retries cost no time.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs

from .._engine import Engine, open_engine
from .._protocol.chat import WhenBusy
from .._protocol.content import user_message
from .._protocol.events import ChatStatus, Event, Message, MessageEvent, MessagePart, Status
from .._settings import DEFAULTS, Settings
from .._turn import Responder
from ..stores.memory import MemoryStore
from ._check_stream import check_stream


@attrs.frozen
class Reply:
    """What a viewer saw of one turn, from the question to the end of the answer."""

    chat_id: str
    status: ChatStatus
    """`waiting` after an answer, `error` when the turn failed."""
    events: Sequence[Event]
    """All events in order; they have passed `check_stream`."""

    @property
    def messages(self) -> list[Message]:
        """The messages that the responder made."""
        return [e.message for e in self.events if isinstance(e, MessageEvent) and e.message.role != "user"]

    @property
    def text(self) -> str:
        """The text of these messages."""
        parts = [part for message in self.messages for part in message.content]
        return "".join(part["text"] for part in parts if part["type"] == "text")

    @property
    def parts(self) -> list[MessagePart]:
        """The parts as they were seen live, of all attempts."""
        return [event for event in self.events if isinstance(event, MessagePart)]


@asynccontextmanager
async def open_test_engine(
    responder: Responder, *, seed: int = 0, settings: Settings = DEFAULTS
) -> AsyncIterator[Engine]:
    """One replica on a store in memory; the same `seed` gives the same ids, stamps and jitter."""
    store = MemoryStore(settings=settings, random=random.Random(seed))
    async with open_engine(store, responder=responder, settings=settings, random=random.Random(seed + 1)) as engine:
        yield engine


async def ask(
    engine_or_responder: Engine | Responder,
    text: str,
    *,
    chat_id: str | None = None,
    when_busy: WhenBusy = "queue",
    seed: int = 0,
) -> Reply:
    """Send a message of the user and watch until its turn has ended.

    With a responder alone, a replica is made for this one question. Without `chat_id`, the question begins a new
    chat. Raises `InvariantViolation` if what the viewer saw breaks an invariant.
    """
    if isinstance(engine_or_responder, Engine):
        return await _ask(engine_or_responder, text, chat_id, when_busy)
    async with open_test_engine(engine_or_responder, seed=seed) as engine:
        return await _ask(engine, text, chat_id, when_busy)


async def _ask(engine: Engine, text: str, chat_id: str | None, when_busy: WhenBusy) -> Reply:
    if chat_id is None:
        chat = await engine.create_chat([user_message(text)])
        return await _watch(engine, chat.id, None, chat.snapshot_version)
    before = await engine.list_messages(chat_id)
    answer = await engine.send_message(chat_id, text, when_busy=when_busy)
    return await _watch(engine, chat_id, before[-1].id if before else None, answer.snapshot_version)


async def _watch(engine: Engine, chat_id: str, after_message_id: int | None, version: int) -> Reply:
    events: list[Event] = []
    status: ChatStatus = "running"
    async with engine.subscribe(chat_id, after_message_id=after_message_id) as subscription:
        while status not in ("waiting", "error"):
            event = await subscription.__anext__()
            events.append(event)
            if isinstance(event, Status) and event.version >= version:
                status = event.status
    check_stream(events)
    return Reply(chat_id, status, events)
