"""Transitions a second: whole turns, each of a send, an acquire and a finish, which is two messages in three commits.

Each caller has a chat of its own.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import attrs
import trio
from rich.table import Table

from relaytrio._protocol.chat import Acquire, FinishTurn, SendMessage
from relaytrio.stores import Store

from .places import ANSWER, EMPTY, QUESTION, Place, rounds

CALLERS = (1, 32)
SECONDS = 1.0
"""Of a round."""


@attrs.define
class Callers:
    """So many callers of one store."""

    name: str
    store: Store
    chat_ids: list[str]
    rates: list[float] = attrs.field(factory=list)

    async def run(self) -> None:
        """One round."""
        began = time.monotonic()
        done = 0

        async def call(chat_id: str) -> None:
            nonlocal done
            while time.monotonic() < began + SECONDS:
                run_id = secrets.token_hex(5)
                await self.store.apply(chat_id, SendMessage(content=QUESTION.content))
                await self.store.apply(chat_id, Acquire(worker_id="w", run_id=run_id))
                await self.store.apply(chat_id, FinishTurn(run_id=run_id, token=run_id, messages=(ANSWER,)))
                done += 3

        async with trio.open_nursery() as nursery:
            for chat_id in self.chat_ids:
                nursery.start_soon(call, chat_id)
        self.rates.append(done / (time.monotonic() - began))


async def measure(places: Sequence[Place]) -> Table:
    """All stores, with one caller and with many."""
    async with AsyncExitStack() as stack:
        cases: list[Callers] = []
        for place in places:
            store, _ = await stack.enter_async_context(place.opened())
            for count in CALLERS:
                chat_ids = [f"t{count}-{number}" for number in range(count)]
                for chat_id in chat_ids:
                    await store.create_chat(chat_id, EMPTY)
                cases.append(Callers(place.name, store, chat_ids))
        for _ in rounds("transitions"):
            for case in cases:
                await case.run()
    table = Table("store", "callers", "transitions a second", "from", "to")
    for case in cases:
        figures = (statistics.median(case.rates), min(case.rates), max(case.rates))
        table.add_row(case.name, str(len(case.chat_ids)), *(f"{figure:,.0f}" for figure in figures))
    return table
