"""What a viewer costs who waits: memory of an idle subscription, beyond its socket."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from ._processes import Stage, one_round
from ._replicas import chat_name, front, store_of
from ._report import Report, at_most, row

VIEWERS_PER_CHAT = 10


def main(report: Report) -> None:
    """Ten viewers of each chat, none of which runs."""
    viewers = 1000 if report.quick else 10_000
    allocated: list[float] = []
    resident: list[float] = []
    for _ in report.each_round(f"{viewers} idle viewers"):
        for traced, figures in (True, allocated), (False, resident):
            with one_round() as director:
                figures.append(director.start(wait, viewers, traced).hear() / 1024)
    report.add(
        row(
            "memory of an idle subscription",
            "KiB",
            allocated,
            {"resident": resident},
            targets=(at_most(10.0),),
            note=f"{viewers:,} of {viewers // VIEWERS_PER_CHAT:,} chats; beside it, of the process",
        )
    )


def wait(stage: Stage, viewers: int, traced: bool) -> None:
    """Says how many bytes each of so many subscriptions takes when it has caught up."""

    async def main() -> None:
        chats = viewers // VIEWERS_PER_CHAT
        async with front(await store_of(1, chats, idle=True)) as engine, trio.open_nursery() as nursery:
            waiting = trio.Semaphore(0)

            async def watch(number: int) -> None:
                async with engine.subscribe(chat_name(number)) as subscription:
                    async for event in subscription:
                        if event.type == "caught_up":
                            waiting.release()

            await _start(nursery, watch, waiting, 0, VIEWERS_PER_CHAT)  # what is there once, is there
            gc.collect()
            if traced:
                tracemalloc.start()
            before = _bytes(traced)
            for number in range(1, chats):
                await _start(nursery, watch, waiting, number, VIEWERS_PER_CHAT)
            gc.collect()
            stage.say((_bytes(traced) - before) / (viewers - VIEWERS_PER_CHAT))
            nursery.cancel_scope.cancel()

    trio.run(main)


async def _start(
    nursery: trio.Nursery, watch: Callable[[int], Awaitable[None]], waiting: trio.Semaphore, number: int, count: int
) -> None:
    for _ in range(count):
        nursery.start_soon(watch, number)
    for _ in range(count):
        await waiting.acquire()


def _bytes(traced: bool) -> int:
    if traced:
        return tracemalloc.get_traced_memory()[0]
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
