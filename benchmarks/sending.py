"""How fast one responder can send: `turn.send` one by one, and `turn.send_many`. One process, nobody watches."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

import relaytrio
from relaytrio import Turn, open_engine

from ._processes import Stage, one_round
from ._report import Report, at_least, row

BATCH = 64


def main(report: Report) -> None:
    """Both ways."""
    total = 25_600 if report.quick else 102_400
    singly: list[float] = []
    many: list[float] = []
    for _ in report.each_round("one responder"):
        for role, figures in (send_singly, singly), (send_many, many):
            with one_round() as director:
                figures.append(director.start(role, total).hear())
    report.add(row("turn.send, one by one", "parts/s", singly, targets=(at_least(150_000),)))
    report.add(row("turn.send_many, 64 at once", "parts/s", many, targets=(at_least(500_000),)))


def send_singly(stage: Stage, total: int) -> None:
    """Says how many parts a second."""

    async def send(turn: Turn) -> None:
        for _ in range(total):
            await turn.send({"type": "text", "text": " token"})

    stage.say(total / trio.run(_seconds, send))


def send_many(stage: Stage, total: int) -> None:
    """Says how many parts a second."""

    async def send(turn: Turn) -> None:
        for _ in range(total // BATCH):
            await turn.send_many([{"type": "text", "text": " token"} for _ in range(BATCH)])

    stage.say(total / trio.run(_seconds, send))


async def _seconds(send: Callable[[Turn], Awaitable[None]]) -> float:
    done = trio.Event()
    taken: list[float] = []
    async with open_engine("memory://", responder=partial(_respond, send, taken, done)) as engine:
        await engine.create_chat([relaytrio.user_message("Go.")])
        await done.wait()
    return taken[0]


async def _respond(send: Callable[[Turn], Awaitable[None]], taken: list[float], done: trio.Event, turn: Turn) -> None:
    began = time.perf_counter()
    await send(turn)
    taken.append(time.perf_counter() - began)
    done.set()
