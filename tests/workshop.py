"""One worker on a store in memory that fails when a test says so, with the test in the parts of everybody else.

Time is virtual. Whatever a test does, two things are always checked: a log is sealed before a transition is asked for
that may end its episode, and the log of a new episode is there before its hint.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Literal, TypeAlias, TypeVar

import attrs
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._errors import StoreUnavailable, StoreUnusable
from relaytrio._parts import PartLog, PartLogs
from relaytrio._protocol.chat import Answer, Chat, Command, Create, EditMessage, Interrupt, RunCommand, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import Episode, Message
from relaytrio._settings import Settings
from relaytrio._turn import Responder, Turn
from relaytrio._worker import Worker
from relaytrio.stores._base import Candidate, IdempotencyKey, Outcome, OwnedChat, Replica
from relaytrio.stores.memory import MemoryStore

T = TypeVar("T")

HELLO = Create(messages=(user_message("hello"),))
"""A chat that wants an answer."""
HERE = "here"
THERE = "there"
Fault: TypeAlias = Literal["fail", "lose", "hang", "lose and hang", "break"]
"""Unreachable before it had an effect; the answer was lost after it had; no answer, before or after; unusable."""


class FaultyStore(MemoryStore):
    """A memory store whose operations (by a command's or a method's name) fail as planned, one fault a call."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings=settings, random=Random(1))
        self.plans: dict[str, deque[Fault]] = defaultdict(deque)
        self.down = False
        self.asked: list[Command] = []
        """Every command that reached the store or failed on its way."""
        self.committed: list[tuple[Command, Outcome]] = []
        """Those that changed something, in order."""
        self.before_apply: Callable[[str, Command], None] = lambda chat_id, command: None
        self.after_apply: Callable[[Command], None] = lambda command: None
        self.calls: dict[str, int] = defaultdict(int)

    def plan(self, operation: str, *faults: Fault) -> None:
        self.plans[operation].extend(faults)

    def names(self) -> list[str]:
        """What was committed, by the commands' names."""
        return [type(command).__name__ for command, _ in self.committed]

    async def _with_faults(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls[operation] += 1
        plan = self.plans[operation]
        fault = plan.popleft() if plan else ("fail" if self.down else None)
        if fault == "fail":
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("planned")
        if fault == "break":
            await trio.lowlevel.checkpoint()
            raise StoreUnusable("planned, for good")
        if fault == "hang":
            await trio.sleep_forever()
        result = await call()
        if fault == "lose":
            raise StoreUnavailable("planned, after its effect")
        if fault == "lose and hang":
            await trio.sleep_forever()
        return result

    async def apply(self, chat_id: str, command: Command, key: IdempotencyKey | None = None) -> Outcome:
        self.asked.append(command)
        self.before_apply(chat_id, command)

        async def call() -> Outcome:
            outcome = await MemoryStore.apply(self, chat_id, command, key)
            if outcome.changed:
                self.committed.append((command, outcome))
            self.after_apply(command)
            return outcome

        return await self._with_faults(type(command).__name__, call)

    async def read_chat(self, chat_id: str) -> Chat:
        return await self._with_faults("read_chat", lambda: MemoryStore.read_chat(self, chat_id))

    async def list_messages(self, chat_id: str, *, after_id: int = 0, limit: int = 200) -> Sequence[Message]:
        return await self._with_faults(
            "list_messages", lambda: MemoryStore.list_messages(self, chat_id, after_id=after_id, limit=limit)
        )

    async def candidates(self, dead: Collection[str], limit: int = 100) -> Sequence[Candidate]:
        return await self._with_faults("candidates", lambda: MemoryStore.candidates(self, dead, limit))

    async def owned_by(self, replica_id: str) -> Sequence[OwnedChat]:
        return await self._with_faults("owned_by", lambda: MemoryStore.owned_by(self, replica_id))

    async def heartbeat(self, replica_id: str, load: int) -> bool:
        return await self._with_faults("heartbeat", lambda: MemoryStore.heartbeat(self, replica_id, load))

    async def register(self, replica: Replica) -> None:
        return await self._with_faults("register", lambda: MemoryStore.register(self, replica))

    async def unregister(self, replica_id: str) -> None:
        return await self._with_faults("unregister", lambda: MemoryStore.unregister(self, replica_id))

    async def replicas(self) -> Sequence[Replica]:
        return await self._with_faults("replicas", lambda: MemoryStore.replicas(self))


@attrs.define
class Workshop:
    settings: Settings
    store: FaultyStore
    parts: PartLogs
    worker: Worker
    nursery: trio.Nursery
    announced: list[Chat] = attrs.field(factory=list)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """The worker's."""
    stopped: trio.Event = attrs.field(factory=trio.Event)
    """Set when the worker's task has ended."""

    async def run_worker(self) -> None:
        with self.scope:
            await self.worker.run()
        self.stopped.set()

    def announce(self, chat: Chat) -> None:
        """As the engine's does: the worker hears of its own transitions."""
        self.announced.append(chat)
        if chat.worker_id == HERE and chat.generation_attempt > 0:
            assert chat.run_id is not None
            episode = Episode(chat.history_version, chat.generation_attempt, chat.run_id)
            assert self.parts.find(chat.id, episode) is not None, "an episode was announced before its log was there"
        self.worker.look(chat.id)

    def expect_sealed(self, chat_id: str, command: Command) -> None:
        run = self.worker.runs.get(chat_id)
        if isinstance(command, RunCommand) and run is not None and run.run_id == command.run_id:
            assert run._own.log.sealed, f"{type(command).__name__} was asked for before the log was sealed"

    # what people do

    async def create(self, chat_id: str = "c", text: str = "hello") -> Chat:
        outcome = await self.store.create_chat(chat_id, Create(messages=(user_message(text),)))
        self.worker.look(chat_id)
        return outcome.chat

    async def apply(self, command: Command, chat_id: str = "c", *, hint: bool = True) -> Answer:
        outcome = await MemoryStore.apply(self.store, chat_id, command)
        if hint:
            self.worker.look(chat_id)
        return outcome.answer

    async def send(self, text: str, chat_id: str = "c", **options: Any) -> Answer:
        return await self.apply(SendMessage(content=user_message(text).content, **options), chat_id)

    async def interrupt(self, chat_id: str = "c", *, hint: bool = True) -> Answer:
        return await self.apply(Interrupt(), chat_id, hint=hint)

    # what there is

    async def chat(self, chat_id: str = "c") -> Chat:
        return await MemoryStore.read_chat(self.store, chat_id)

    async def messages(self, chat_id: str = "c") -> list[Message]:
        return list(await MemoryStore.list_messages(self.store, chat_id))

    async def answers(self, chat_id: str = "c") -> list[tuple[str, bool]]:
        """Text and `interrupted` of what the assistant said."""
        return [
            ("".join(part.get("text", "") for part in message.content), message.interrupted)
            for message in await self.messages(chat_id)
            if message.role == "assistant"
        ]

    def log(self, chat: Chat) -> PartLog:
        episode = chat.live_episode
        assert episode is not None
        log = self.parts.find(chat.id, episode)
        assert log is not None
        return log

    def check_announced(self) -> None:
        """Every transition of this worker was announced once, as it left the chat, and in order; nothing else was."""
        expected = [outcome.chat.snapshot_version for _, outcome in self.store.committed]
        assert expected == [chat.snapshot_version for chat in self.announced]


async def until_idle(seconds: float = 0.0) -> None:
    """Let everybody go on until all wait for something; with seconds, let so much time pass before."""
    if seconds:
        await trio.sleep(seconds)
    await wait_all_tasks_blocked()


async def no_responder(turn: object) -> None:
    await trio.lowlevel.checkpoint()
    raise AssertionError("no responder was to run")


@asynccontextmanager
async def open_workshop(
    responder: Responder, *, start: bool = True, store: FaultyStore | None = None, **settings: Any
) -> AsyncIterator[Workshop]:
    """A worker that is registered as `here` and, if `start`, is running."""
    chosen = Settings(**settings)
    if store is None:
        store = FaultyStore(chosen)
    parts = PartLogs(chosen)
    await store.register(Replica(id=HERE, address=None, version="1"))
    async with trio.open_nursery() as nursery:
        worker = Worker(
            replica_id=HERE,
            store=store,
            parts=parts,
            responder=responder,
            settings=chosen,
            announce=lambda chat: workshop.announce(chat),
            random=Random(2),
        )
        workshop = Workshop(chosen, store, parts, worker, nursery)
        store.before_apply = workshop.expect_sealed
        nursery.start_soon(parts.run)
        if start:
            nursery.start_soon(workshop.run_worker)
            await wait_all_tasks_blocked()
        yield workshop
        nursery.cancel_scope.cancel()


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def rows(log: PartLog) -> list[dict[str, Any]]:
    """All events in a log, as a viewer would read them."""
    burst = log.read(0, 1 << 30)
    return [] if burst is None else msgspec.json.decode(b"[" + burst.rows + b"]")


class Scripted:
    """A responder that a test leads: each call takes the next script, the last one again and again."""

    def __init__(self, *scripts: Any) -> None:
        self._scripts = list(scripts)
        self.turns: list[Turn] = []

    async def __call__(self, turn: Turn) -> None:
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        self.turns.append(turn)
        await script(turn)


def says(*parts: str, then: BaseException | None = None) -> Any:
    """Sends these texts, then raises or returns."""

    async def script(turn: Turn) -> None:
        for part in parts:
            await turn.send(text(part))
        if then is not None:
            raise then

    return script


def stays(*parts: str) -> Any:
    """Sends these texts and goes on for ever."""

    async def script(turn: Turn) -> None:
        await says(*parts)(turn)
        await trio.sleep_forever()

    return script


async def sleeps_a_second(turn: Turn) -> None:
    await trio.sleep(1)


def edit_of_first() -> EditMessage:
    return EditMessage(message_id=1, content=user_message("rather").content)


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]
