"""One replica that only views, with the test in the parts of everybody else: user, worker, peers, network.

Time is virtual, the store is in memory, and every dial is scripted, so that a test decides who finishes when.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from relaytrio._hints import Hints
from relaytrio._parts import PartLog, PartLogs
from relaytrio._protocol.chat import Acquire, Answer, Command, Create, FinishTurn, NewMessage, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import Cursor, Episode, Event, MessagePart, MessageRef
from relaytrio._relay import MultiReplicaRelay, Relay, RelayConfig
from relaytrio._settings import Settings
from relaytrio._subscription import Subscription
from relaytrio._watch import ReplicaParts
from relaytrio.pubsub._base import PubSub
from relaytrio.stores._base import Outcome, Store
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import ScriptedDialer, ScriptedLeg, text_burst

HERE = "here"
THERE = "there"
ELSEWHERE = "elsewhere"
LAYS_DOWN = False
"""Whether scripted legs offer their bursts to the relay at once. A test sets it before it opens a scene."""


def assistant(text: str) -> NewMessage:
    return NewMessage(role="assistant", content=[{"type": "text", "text": text}])


@attrs.define
class Scene:
    store: Store
    memory: MemoryStore
    parts: PartLogs
    hints: Hints
    dialer: ScriptedDialer
    relay: MultiReplicaRelay
    replica: ReplicaParts
    chat_id: str = "c"
    runs: int = 0
    last: MessageRef = MessageRef(0, "")
    """The last message of the history."""
    begun_after: dict[Episode, Cursor] = attrs.field(factory=dict)
    """The last message of the history that each episode goes on from: its rows' cursors name it."""
    announcing: bool = True
    """Whether transitions are announced to this replica: False is a pubsub that loses every hint."""

    def subscribe(
        self, cursor: str | Cursor = "0-", *, after_message_id: int | None = None, relay: bool = True, **headers: str
    ) -> Subscription:
        start = Cursor.parse(cursor) if isinstance(cursor, str) else cursor
        if after_message_id is not None:
            start = Cursor(MessageRef(after_message_id, None))
        replica = self.replica if relay else attrs.evolve(self.replica, relay=None)
        return Subscription(replica, self.chat_id, start, headers)

    async def create(self, text: str = "hello") -> None:
        self._announce(await self.memory.create_chat(self.chat_id, Create(messages=(user_message(text),))))

    async def apply(self, command: Command) -> Answer:
        outcome = await self.memory.apply(self.chat_id, command)
        self._announce(outcome)
        return outcome.answer

    async def send(self, text: str, **options: Any) -> Answer:
        return await self.apply(SendMessage(content=user_message(text).content, **options))

    def _announce(self, outcome: Outcome) -> None:
        if outcome.answer.messages:
            self.last = outcome.answer.messages[-1]
        if self.announcing:
            self.hints.announce(outcome.chat)

    async def acquire(self, worker_id: str = THERE, *, dead: str | None = None, log: bool = True) -> Episode:
        """A worker acquires the chat; if it is this replica's, its log is made before anybody hears of it."""
        self.runs += 1
        run_id = f"run{self.runs}"
        announcing, self.announcing = self.announcing, False
        await self.apply(Acquire(worker_id=worker_id, run_id=run_id, dead_worker_id=dead))
        self.announcing = announcing
        episode = await self.live_episode()
        if worker_id == HERE and log:
            self.parts.make(self.chat_id, episode)
        if announcing:
            self.hints.announce(await self.memory.read_chat(self.chat_id))
        return episode

    async def live_episode(self) -> Episode:
        episode = (await self.memory.read_chat(self.chat_id)).live_episode
        assert episode is not None
        self.begun_after.setdefault(episode, Cursor(self.last))
        return episode

    async def finish(self, text: str | None = None) -> Answer:
        """The present run finishes its turn with this answer."""
        messages = () if text is None else (assistant(text),)
        return await self.apply(FinishTurn(run_id=f"run{self.runs}", token=f"finish{self.runs}", messages=messages))

    def log(self, episode: Episode) -> PartLog:
        log = self.parts.find(self.chat_id, episode)
        assert log is not None
        return log

    def make_parts(self, episode: Episode, *texts: str) -> None:
        """The worker on this replica sends parts."""
        log = self.log(episode)
        cursor = self.begun_after[episode]
        log.append(text_burst(episode, texts, first_seq=log.last_seq + 1, cursor=cursor).split())

    def feed(self, leg: ScriptedLeg, episode: Episode, texts: Sequence[str], *, first_seq: int | None = None) -> None:
        """The worker's replica sends parts over a leg."""
        leg.feed_parts(episode, texts, first_seq=first_seq, cursor=self.begun_after.get(episode, Cursor()))


@asynccontextmanager
async def open_scene(
    *,
    pubsub: PubSub | None = None,
    wrap_store: Callable[[MemoryStore], Store] = lambda store: store,
    relay: Relay | None = None,
    create: bool = True,
    **settings: Any,
) -> AsyncIterator[Scene]:
    """A replica with one chat `c` that holds a message of the user and is running, owned by nobody."""
    chosen = Settings(**settings)
    memory, parts, dialer = MemoryStore(settings=chosen), PartLogs(chosen), ScriptedDialer(lays_down=LAYS_DOWN)
    store = wrap_store(memory)
    logger = logging.getLogger("relaytrio")
    hints = Hints(store, pubsub, chosen, look=lambda hint: None, random=lambda: 0.5, logger=logger)
    own = MultiReplicaRelay(RelayConfig(dialer=dialer, settings=chosen, random=lambda: 0.999))
    replica = ReplicaParts(
        replica_id=HERE,
        store=store,
        parts=parts,
        hints=hints,
        relay=relay or own,
        settings=chosen,
        random=lambda: 0.5,
        logger=logger,
    )
    scene = Scene(store=store, memory=memory, parts=parts, hints=hints, dialer=dialer, relay=own, replica=replica)
    if create:
        await scene.create()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hints.run)
        nursery.start_soon(parts.run)
        yield scene
        nursery.cancel_scope.cancel()


async def until(subscription: Subscription, kind: type[Event], **fields: object) -> list[Event]:
    """All events up to the first one of that kind with these fields."""
    events: list[Event] = []
    async for event in subscription:
        events.append(event)
        if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items()):
            return events
    raise AssertionError("the stream ended")


async def at_hand(subscription: Subscription, seconds: float = 0.0) -> list[Event]:
    """All events that come without time passing (or within that virtual time)."""
    events: list[Event] = []
    with trio.move_on_after(seconds + 1e-6):
        while True:
            events.append(await subscription.__anext__())
    return events


def texts(events: Iterable[Event]) -> list[str]:
    """The texts of the parts among the events."""
    return [event.part["text"] for event in events if isinstance(event, MessagePart)]


def seqs(events: Iterable[Event]) -> list[int]:
    """The numbers of the parts among the events."""
    return [event.seq for event in events if isinstance(event, MessagePart)]


def kinds(events: Sequence[Event]) -> list[str]:
    """The types of the events in order."""
    return [event.type for event in events]
