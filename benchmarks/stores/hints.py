"""How long a hint takes: from the answer to a transition until it is heard in another process (for memory: by another
listener). SQLite's may be heard before the answer is: that is 0. One at a time, after a pause.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import attrs
import trio
from rich.table import Table

from relaytrio._protocol.chat import SendMessage
from relaytrio.pubsub._base import Hint, PubSub
from relaytrio.stores import Store

from .places import EMPTY, QUESTION, Place, program, rounds

HINTS = 200
"""In a round."""
PAUSE_SECONDS = 0.01
"""At most."""
PATIENCE_SECONDS = 10.0


@attrs.define
class Speaker:
    """Commits on one store, and asks a listener when it heard of it."""

    name: str
    store: Store
    pubsub: PubSub
    heard: Callable[[str, int], Awaitable[float]]
    """When the listener has heard of this version of this chat."""
    latencies: list[float] = attrs.field(factory=list)
    medians: list[float] = attrs.field(factory=list)

    async def run(self, number: int) -> None:
        """One round, on a chat of its own."""
        chat_id, random = f"h{number}", Random(number)
        await self.store.create_chat(chat_id, EMPTY)
        latencies = []
        for _ in range(HINTS):
            await trio.sleep(random.random() * PAUSE_SECONDS)
            # Nobody owns the chat: an interrupting send enters the history at once.
            outcome = await self.store.apply(chat_id, SendMessage(content=QUESTION.content, when_busy="interrupt"))
            answered = time.monotonic()
            chat = outcome.chat
            await self.pubsub.publish(Hint(chat.id, chat.snapshot_version, chat.status, chat.worker_id))
            with trio.fail_after(PATIENCE_SECONDS):
                latencies.append(max(0.0, await self.heard(chat_id, chat.snapshot_version) - answered))
        self.latencies += latencies
        self.medians.append(statistics.median(latencies))


@asynccontextmanager
async def _listener_beside(pubsub: PubSub) -> AsyncIterator[Callable[[str, int], Awaitable[float]]]:
    async with pubsub.listen() as hints:

        async def heard(chat_id: str, version: int) -> float:
            while True:
                hint = await anext(hints)
                if (hint.chat_id, hint.snapshot_version) == (chat_id, version):
                    return time.monotonic()

        yield heard


@asynccontextmanager
async def _listener_process(url: str) -> AsyncIterator[Callable[[str, int], Awaitable[float]]]:
    process = await trio.lowlevel.open_process(program("listener", url), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = _lines(process.stdout)
    try:
        assert "ready" == await anext(lines)

        async def heard(chat_id: str, version: int) -> float:
            while True:
                said = (await anext(lines)).split()
                if said[:2] == [chat_id, str(version)]:
                    return float(said[2])

        yield heard
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE_SECONDS):
            await process.wait()


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    rest = b""
    while chunk := await stream.receive_some():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode()


async def measure(places: Sequence[Place]) -> Table:
    """All stores."""
    async with AsyncExitStack() as stack:
        cases = []
        for place in places:
            store, pubsub = await stack.enter_async_context(place.opened())
            listener = _listener_process(place.url) if place.is_shared else _listener_beside(pubsub)
            cases.append(Speaker(place.name, store, pubsub, await stack.enter_async_context(listener)))
        for number in rounds("hints"):
            for case in cases:
                await case.run(number)
    table = Table("store", "hint heard after, p50 ms", "p99 ms", "rounds' p50 from", "to")
    for case in cases:
        p99 = statistics.quantiles(case.latencies, n=100)[98]
        figures = (statistics.median(case.medians), p99, min(case.medians), max(case.medians))
        table.add_row(case.name, *(f"{1000 * figure:.2f}" for figure in figures))
    return table
