"""How the cost grows: with viewers of a chat, chats of a replica, the size of a part, and the length of a history."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import trio

from relaytrio import user_message
from relaytrio._protocol.chat import Create
from relaytrio._protocol.events import Cursor
from relaytrio.stores import open_store

from . import many, relay
from ._processes import Stage, one_round
from ._replicas import SETTINGS, chat_name, front
from ._report import Curve, Report, at_most, row

DELIVERIES = 20_000
"""A second, of many viewers: each gets the fewer parts, the more there are."""
SUBSCRIPTIONS = 30


def main(report: Report) -> None:
    """All four."""
    _grow_viewers(report, (1, 10, 100) if report.quick else (1, 10, 100, 1000, 10_000))
    _grow_chats(report, (1, 10, 100) if report.quick else (1, 10, 100, 1000))
    _grow_parts(report, (20, 1024) if report.quick else (20, 100, 1024, 4096, 16 * 1024))
    _grow_history(report, (10, 1000) if report.quick else (10, 100, 1000, 10_000, 100_000))


def _grow_viewers(report: Report, counts: tuple[int, ...]) -> None:
    points = []
    for viewers in counts:
        report.step(f"{viewers} viewers of one chat")
        found = many.play(1, viewers, 2.0, rate=max(2, min(many.RATE, DELIVERIES // viewers)))
        points.append((float(viewers), (found.here_cpu + found.there_cpu) / found.deliveries * 1e6))
    report.add_curve(Curve(plot="viewers", label="", x="viewers of one chat", y="us of CPU a delivery", points=points))


def _grow_chats(report: Report, counts: tuple[int, ...]) -> None:
    points = []
    for chats in counts:
        report.step(f"{chats} chats")
        found = many.play(chats, 1, 2.0)
        points.append((float(chats), (found.here_cpu + found.there_cpu) / found.deliveries * 1e6))
    report.add_curve(Curve(plot="chats", label="", x="chats at 50 parts/s", y="us of CPU a part", points=points))


def _grow_parts(report: Report, sizes: tuple[int, ...]) -> None:
    points = []
    for size in sizes:
        report.step(f"parts of {size} bytes")
        total = max(4096, min(200_000, 100_000_000 // (size + 130))) // relay.BATCH * relay.BATCH
        with one_round() as director:
            port = director.start(relay.feed_rows, total, size).hear()
            rate = director.start(relay.take_frames, port, total).hear()
        points.append((float(size), rate * (size + 130) / 1e6))
    report.add_curve(Curve(plot="parts", label="", x="bytes of a part's text", y="MB/s of rows", points=points))


def _grow_history(report: Report, lengths: tuple[int, ...]) -> None:
    points = []
    for length in lengths:
        report.step(f"a history of {length} messages")
        with one_round() as director:
            points.append((float(length), director.start(subscribe, length).hear()))
    y = "ms to subscribe with a cursor"
    report.add_curve(Curve(plot="history", label="", x="messages before the cursor (SQLite)", y=y, points=points))
    name = f"subscribe with a cursor after {lengths[-1]:,} messages"
    beside = {f"after {lengths[0]}": [points[0][1]]}
    targets = (at_most(1.5, of=f"after {lengths[0]}"),)
    report.add(row(name, "ms", [points[-1][1]], beside, targets=targets, note="SQLite, p50"))


def subscribe(stage: Stage, length: int) -> None:
    """Says the median of the milliseconds until a viewer with a cursor at the end has caught up."""

    async def main() -> None:
        with TemporaryDirectory() as directory:
            async with open_store(f"sqlite:///{Path(directory) / 'chat.db'}", settings=SETTINGS) as store:
                message = user_message("A question of some words, as people ask them.")
                await store.create_chat(chat_name(0), Create(messages=(message,) * length))
                [last] = await store.list_messages(chat_name(0), after_id=length - 1, limit=1)
                taken = []
                async with front(store) as engine:
                    for _ in range(SUBSCRIPTIONS):
                        began = time.perf_counter()
                        async with engine.subscribe(chat_name(0), cursor=Cursor(last.ref)) as subscription:
                            async for event in subscription:
                                if event.type == "caught_up":
                                    break
                            taken.append(time.perf_counter() - began)
            stage.say(median(taken) * 1000)

    trio.run(main)
