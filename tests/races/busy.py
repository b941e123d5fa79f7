"""A worker with its heartbeat, people who get in its way, and what must hold of their chat in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal, TypeAlias

import trio

from relaytrio._errors import RelaytrioError, RetryableError
from relaytrio._presence import Presence
from relaytrio._protocol.chat import EditMessage, Interrupt, PromoteQueued, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._turn import Turn
from relaytrio.stores._base import Replica
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import Seam
from tests.workshop import HERE, Workshop, open_workshop, text

Deed: TypeAlias = Literal["Stop", "interrupting message", "edit", "promote"]
DEEDS: tuple[Deed, ...] = ("Stop", "interrupting message", "edit", "promote")
TRANSITIONS = ("Commit", "FinishTurn", "RecordRetry", "BeginAttempt", "Fail")
PLACES: tuple[Seam, ...] = ("sealed, not committed", "committed, not told")
FIRST = "hello"


class Answers:
    """Answers each question with `re <question>.`; the first one in the way that leads to a transition."""

    def __init__(self, transition: str) -> None:
        self._transition = transition
        self.turns: list[Turn] = []

    async def __call__(self, turn: Turn) -> None:
        self.turns.append(turn)
        question = [message.content[0]["text"] for message in turn.messages if message.role == "user"][-1]
        await turn.send(text(f"re {question}."))
        if question == FIRST:
            await self._go_on(turn)

    async def _go_on(self, turn: Turn) -> None:
        match self._transition:
            case "Commit":
                await turn.commit()
                await turn.send(text("more."))
                await trio.sleep_forever()
            case "RecordRetry" | "BeginAttempt" if turn.attempt == 1:
                raise RetryableError("later", 1)
            case "Fail":
                raise ValueError("broken")
            case _:
                pass


@asynccontextmanager
async def open_busy_workshop(responder: Callable[[Turn], Awaitable[None]]) -> AsyncIterator[Workshop]:
    """A worker with its heartbeat. There is no other that it would let be first."""
    async with open_workshop(responder, acquire_seconds=3.0, retry_seconds=1.0, yield_seconds=0.0) as shop:
        replica = Replica(id=HERE, address=None, version="1")
        presence = Presence(replica=replica, store=shop.store, worker=shop.worker, settings=shop.settings)
        shop.nursery.start_soon(presence.run)
        yield shop


async def do(shop: Workshop, deed: Deed, *, hint: bool, saying: str = "now") -> None:
    """What a person does; it may be refused."""
    with suppress(RelaytrioError):
        match deed:
            case "Stop":
                await shop.apply(Interrupt(), hint=hint)
            case "interrupting message":
                await shop.apply(SendMessage(content=user_message(saying).content, when_busy="interrupt"), hint=hint)
            case "edit":
                await shop.apply(EditMessage(message_id=1, content=user_message("rather").content), hint=hint)
            case "promote":
                queue = await MemoryStore.read_queue(shop.store, "c")
                if queue:
                    await shop.apply(PromoteQueued(queued_id=queue[-1].id), hint=hint)


async def questions(shop: Workshop) -> list[str]:
    """The texts of the user's messages that are there, in the history or in the queue."""
    history = [message.content[0]["text"] for message in await shop.messages() if message.role == "user"]
    return history + [entry.content[0]["text"] for entry in await MemoryStore.read_queue(shop.store, "c")]


async def check_in_the_end(shop: Workshop, *deeds: Deed) -> None:
    """Never stranded, lost, doubled or interrupting for ever, and each transition was told once."""
    chat, queue = await shop.chat(), await MemoryStore.read_queue(shop.store, "c")
    assert chat.status in ("waiting", "error")
    assert (None, None, {}) == (chat.worker_id, chat.run_id, dict(shop.worker.runs))
    assert chat.status == "waiting" or "Fail" in shop.store.names()
    assert chat.status == "error" or () == queue
    asked = await questions(shop)
    assert len(set(asked)) == len(asked)
    if "interrupting message" in deeds:
        assert "edit" in deeds or not {"now", "and now"}.isdisjoint(asked)
    if "edit" in deeds:
        assert "rather" in asked
        assert FIRST not in asked
    else:
        assert "waits" in asked
    assert all(log.sealed for log in shop.parts._logs.values())
    await _check_answers(shop, *deeds)
    told = [seen.snapshot_version for seen in shop.announced]
    assert sorted(set(told)) == told
    shop.check_announced()


async def _check_answers(shop: Workshop, *deeds: Deed) -> None:
    """No piece of an answer is there twice, and each stands below its own question."""
    question, said = "", ""
    for message in await shop.messages():
        if message.role == "user":
            question, said = message.content[0]["text"], ""
        else:
            said += "".join(part["text"] for part in message.content)
            assert said in (f"re {question}.", f"re {question}.more.")
    if (await shop.chat()).status == "waiting" and "Stop" not in deeds:
        assert said.startswith(f"re {question}."), "the last question was not answered"
