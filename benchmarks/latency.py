"""How long a token takes from the responder on B, which says when it sends, to a viewer's `async for` on A.

Beside it, in the same round, one bare hop: the same sender and receiver with nothing but trio-websocket between them.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

import relaytrio
from relaytrio import MessagePart, PreviewReset, open_engine

from . import _peers
from ._processes import Stage, one_round
from ._replicas import SECRET, SETTINGS, percentile, run_worker
from ._report import Report, Target, at_most, row

READY = 0


def main(report: Report) -> None:
    """At the pace of a token stream, of many, and of a flood."""
    # Of 300 parts, the worst three are what a percentile says: of the fewest, more are waited for.
    for rate, seconds, shares, target in (
        (100, 10.0, (0.5, 0.99), at_most(1.0, of="bare hop")),
        (1000, 3.0, (0.5, 0.99), at_most(1.0, of="bare hop")),
        (50_000, 3.0, (0.99,), at_most(2.0)),
    ):
        _at(report, rate, int(rate * (1.0 if report.quick else seconds)), shares, target)


def _at(report: Report, rate: int, total: int, shares: tuple[float, ...], target: Target) -> None:
    ours: list[list[float]] = []
    asgi: list[list[float]] = []
    hop: list[list[float]] = []
    for _ in report.each_round(f"{rate} parts/s"):
        ours.append(_ours(rate, total, False))
        asgi.append(_ours(rate, total, True))
        with one_round() as director:
            port = director.start(_peers.hop_sender, rate, total).hear()
            hop.append(director.start(_peers.hop_receiver, port, total).hear())
    for share in shares:
        peers = {
            "bare hop": [percentile(taken, share) * 1000 for taken in hop],
            "B behind Hypercorn": [percentile(taken, share) * 1000 for taken in asgi],
        }
        figures = [percentile(taken, share) * 1000 for taken in ours]
        targets = () if (rate, share) == (100, 0.5) else (target,)
        report.add(row(f"latency at {rate:,} parts/s, p{share * 100:g}", "ms", figures, peers, targets=targets))


def _ours(rate: int, total: int, asgi: bool) -> list[float]:
    with one_round() as director, TemporaryDirectory() as directory:
        store = f"sqlite:///{Path(directory) / 'chat.db'}"
        director.start(respond_at, store, rate, total, asgi).hear()
        taken: list[float] = director.start(watch, store, total).hear()
        return taken


def respond_at(stage: Stage, store: str, rate: float, total: int, asgi: bool) -> None:
    """B: a whole replica whose responder keeps a pace."""

    async def respond(turn: relaytrio.Turn) -> None:
        await stage.until(READY)
        begins = trio.current_time() + 0.1
        for number in range(total):
            # A clock that ticks a thousand times a second: nothing in Trio wakes more often.
            await trio.sleep_until(begins + int(number / rate * 1000) / 1000)
            await turn.send({"type": "text", "text": str(time.monotonic_ns())})
        await trio.sleep_forever()

    trio.run(run_worker, stage, store, respond, asgi)


def watch(stage: Stage, store: str, total: int) -> None:
    """A: says how long each part took, in seconds."""

    async def main() -> None:
        taken: list[float] = []
        async with open_engine(store, secret=SECRET, settings=SETTINGS) as engine:
            chat = await engine.create_chat([relaytrio.user_message("Go.")])
            async with engine.subscribe(chat.id) as subscription:
                async for event in subscription:
                    match event:
                        case MessagePart(part=part, seq=seq):
                            taken.append((time.monotonic_ns() - int(part["text"])) / 1e9)
                            if seq == total:
                                break
                        case PreviewReset():
                            raise RuntimeError("parts were lost: the run is void")
                        case relaytrio.Status(worker_id=worker_id) if worker_id is not None:
                            stage.board[READY] = 1
        stage.say(taken)

    trio.run(main)
