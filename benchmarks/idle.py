"""What a viewer costs who waits: memory of an idle subscription, and of a connection to the viewer listener."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from relaytrio.transport.viewers import serve_viewers

from ._processes import Stage, one_round
from ._replicas import chat_name, front, store_of
from ._report import Report, at_most, row
from .fanout import open_viewer

VIEWERS_PER_CHAT = 10
CONNECTIONS = 2000
"""At most: each takes a descriptor in two processes."""
WANTED = 0
"""A place on the board: so many connections are to be open."""


def main(report: Report) -> None:
    """Ten viewers of each chat, none of which runs."""
    viewers = 1000 if report.quick else 10_000
    _subscriptions(report, viewers)
    _connections(report, min(viewers, CONNECTIONS))


def _subscriptions(report: Report, viewers: int) -> None:
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


def _connections(report: Report, viewers: int) -> None:
    beyond: list[float] = []
    whole: list[float] = []
    resident: list[float] = []
    for _ in report.each_round(f"{viewers} idle connections"):
        with one_round() as director:
            subscription = director.start(wait, viewers, True).hear() / 1024
        for traced, figures in (True, whole), (False, resident):
            with one_round() as director:
                server = director.start(serve, viewers, traced)
                director.start(connect, server.hear(), viewers)
                figures.append(server.hear() / 1024)
        beyond.append(whole[-1] - subscription)
    report.add(
        row(
            "memory of an idle connection to the viewer listener, beyond its subscription",
            "KiB",
            beyond,
            {"with its subscription": whole, "resident": resident},
            targets=(at_most(8.0),),
            note=f"{viewers:,} of {viewers // VIEWERS_PER_CHAT:,} chats; resident: both, of the process",
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


def serve(stage: Stage, viewers: int, traced: bool) -> None:
    """Says the port of a viewer listener; and how many bytes each of so many connections takes."""

    async def main() -> None:
        chats = viewers // VIEWERS_PER_CHAT
        async with front(await store_of(1, chats, idle=True)) as engine, trio.open_nursery() as nursery:
            url: str = await nursery.start(serve_viewers, engine)
            stage.say(int(url.rpartition(":")[2]))

            async def opened(count: int) -> None:
                stage.board[WANTED] = count
                while engine.stats().subscriptions < count:  # noqa: ASYNC110
                    await trio.sleep(0.02)
                await trio.sleep(0.3)  # they have caught up
                gc.collect()

            await opened(VIEWERS_PER_CHAT)
            if traced:
                tracemalloc.start()
            before = _bytes(traced)
            await opened(viewers)
            stage.say((_bytes(traced) - before) / (viewers - VIEWERS_PER_CHAT))
            nursery.cancel_scope.cancel()

    trio.run(main)


def connect(stage: Stage, port: int, viewers: int) -> None:
    """The viewers, which keep what they get."""

    async def main() -> None:
        kept = []
        for number in range(viewers):
            while stage.board[WANTED] <= number:  # noqa: ASYNC110
                await trio.sleep(0.01)
            kept.append(open_viewer(port, f"/v1/chats/{chat_name(number // VIEWERS_PER_CHAT)}/stream"))
        await trio.sleep_forever()

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
