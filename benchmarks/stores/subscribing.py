"""How long it takes to subscribe with a cursor at the end, until `caught_up`: with a short history and with a long one.

It must not depend on the length.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import attrs
from rich.progress import track
from rich.table import Table

import relaytrio
from relaytrio._protocol.chat import Acquire, Commit, FinishTurn, SendMessage
from relaytrio._protocol.events import Cursor
from relaytrio.stores import Store

from .places import ANSWER, EMPTY, QUESTION, Place, console, rounds

LENGTHS = (10, 100_000)
AT_ONCE = 1000
"""Messages of one commit."""
SUBSCRIPTIONS = 50
"""In a round, one after the other."""


@attrs.define
class Viewer:
    """Subscribes to one chat, again and again."""

    name: str
    engine: relaytrio.Engine
    chat_id: str
    length: int
    cursor: Cursor
    seconds: list[float] = attrs.field(factory=list)

    async def run(self) -> None:
        """One round."""
        round_seconds = []
        for _ in range(SUBSCRIPTIONS):
            began = time.perf_counter()
            async with self.engine.subscribe(self.chat_id, cursor=self.cursor) as subscription:
                async for event in subscription:
                    assert not isinstance(event, relaytrio.MessageEvent)
                    if isinstance(event, relaytrio.CaughtUp):
                        round_seconds.append(time.perf_counter() - began)
                        break
        self.seconds.append(statistics.median(round_seconds))


async def _filled(store: Store, length: int) -> tuple[str, Cursor]:
    """A chat with so many messages, and a cursor at their end."""
    chat_id = f"s{length}"
    await store.create_chat(chat_id, EMPTY)
    await store.apply(chat_id, SendMessage(content=QUESTION.content))
    await store.apply(chat_id, Acquire(worker_id="w", run_id="r"))
    left = length - 2
    for number in track(range(-(-left // AT_ONCE)), "writing messages", console=console, transient=True):
        count = min(left, AT_ONCE)
        left -= count
        await store.apply(chat_id, Commit(run_id="r", token=f"c{number}", messages=(ANSWER,) * count))
    outcome = await store.apply(chat_id, FinishTurn(run_id="r", token="end", messages=(ANSWER,)))
    (last,) = outcome.answer.messages
    assert last.id == length
    return chat_id, Cursor(last)


async def measure(places: Sequence[Place]) -> Table:
    """All stores; both lengths in each round."""
    async with AsyncExitStack() as stack:
        cases = []
        for place in places:
            store, pubsub = await stack.enter_async_context(place.opened())
            engine = await stack.enter_async_context(relaytrio.open_engine(store, pubsub=pubsub))
            for length in LENGTHS:
                chat_id, cursor = await _filled(store, length)
                cases.append(Viewer(place.name, engine, chat_id, length, cursor))
        for _ in rounds("subscribing"):
            for case in cases:
                await case.run()
    table = Table("store", "messages", "subscribe until caught up, ms", "from", "to")
    for case in cases:
        figures = (statistics.median(case.seconds), min(case.seconds), max(case.seconds))
        table.add_row(case.name, f"{case.length:,}", *(f"{1000 * figure:.2f}" for figure in figures))
    return table
