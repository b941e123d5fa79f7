"""A flood: as many parts a second as go from one replica to a viewer on another.

`rows`: appended to a log on B, taken as ready frames from a subscription on A. Then the public way: four responders on
B send for four chats of one SQLite file, and viewers on A take frames, or decoded events. A producer stays within half
a log of its reader; a run in which anything was lost is void.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

import relaytrio
from relaytrio import Engine, MessagePart, PreviewReset, open_engine
from relaytrio._parts import PartLogs

from . import _floors, _peers
from ._processes import Stage, one_round
from ._replicas import (
    SECRET,
    SETTINGS,
    chat_name,
    episode_of,
    front,
    run_worker,
    seq_of,
    serving_parts,
    store_of,
    token_rows,
)
from ._report import Report, at_least, row

READY, READ = 0, 1
"""Places on the board: the viewers are there; and how far each of them is."""
BATCH = 64
CHATS = 4


def window_rows(row_bytes: int) -> int:
    """How far a producer may be ahead of its slowest reader: half a log."""
    return SETTINGS.part_log_bytes // 2 // row_bytes


def main(report: Report) -> None:
    """All floods."""
    _rows(report)
    _public(report)


def _rows(report: Report) -> None:
    ours: list[float] = []
    peers = _no_figures() | {"raw Trio stream": [], "raw socket": []}
    if _floors.has_redis():
        peers["Redis pub/sub"] = []
    total, peer_total = (100_000, 10_000) if report.quick else (600_000, 40_000)
    for _ in report.each_round("rows in, frames out"):
        ours.append(_play(feed_rows, take_frames, total))
        peers["base"].append(_play(_peers.base_sender, _peers.base_receiver, peer_total, False))
        if "asyncio" in peers:
            peers["asyncio"].append(_play(_peers.asyncio_sender, _peers.asyncio_receiver, peer_total, False))
        peers["raw Trio stream"].append(_play(_floors.stream_sender, _floors.stream_receiver, total))
        peers["raw socket"].append(_play(_floors.socket_sender, _floors.socket_receiver, total))
        if "Redis pub/sub" in peers:
            peers["Redis pub/sub"].append(_play_redis(peer_total))
    targets = at_least(1_000_000), at_least(30, of="base"), at_least(10, of="asyncio")
    note = (
        "Nobody decodes, peers neither: base is trio-websocket, asyncio is websockets, one ready JSON text a frame. "
        "Redis gets a PUBLISH a row, 256 in one send. "
        "Go's shape is left out: there is no Go toolchain with coder/websocket here."
    )
    report.add(row("relay flood, rows in, frames out", "parts/s", ours, peers, targets=targets, note=note))


def _public(report: Report) -> None:
    frames: list[float] = []
    asgi: list[float] = []
    decoded: list[float] = []
    peers = _no_figures()
    total, peer_total = (40_000, 10_000) if report.quick else (200_000, 40_000)
    for _ in report.each_round("through the public way"):
        frames.append(_play_public(total, False, False))
        asgi.append(_play_public(total, False, True))
        decoded.append(_play_public(total, True, False))
        peers["base"].append(_play(_peers.base_sender, _peers.base_receiver, peer_total, True))
        if "asyncio" in peers:
            peers["asyncio"].append(_play(_peers.asyncio_sender, _peers.asyncio_receiver, peer_total, True))
    note = "4 responders of one process, 4 chats, send_many of 64; peers encode and decode, in one connection"
    targets = (at_least(400_000),)
    report.add(row("relay flood, send_many to frames", "parts/s", frames, peers, targets=targets, note=note))
    report.add(row("relay flood, send_many to events", "parts/s", decoded, peers, targets=targets))
    report.add(row("relay flood, B behind Hypercorn", "parts/s", asgi, peers, note="the ASGI app serves the peers"))


def _no_figures() -> dict[str, list[float]]:
    return {"base": [], "asyncio": []} if _peers.has_asyncio() else {"base": []}


def _play(sender: object, receiver: object, total: int, *objects: bool) -> float:
    with one_round() as director:
        port = director.start(sender, total, *objects).hear()  # type: ignore[arg-type]
        return float(director.start(receiver, port, total, *objects).hear())  # type: ignore[arg-type]


def _play_redis(total: int) -> float:
    with one_round() as director, _floors.redis_server() as port:
        subscriber = director.start(_floors.redis_subscriber, port, total)
        subscriber.hear()
        director.start(_floors.redis_publisher, port, total).hear()
        return float(subscriber.hear())


def _play_public(total: int, decoded: bool, asgi: bool) -> float:
    with one_round() as director, TemporaryDirectory() as directory:
        store = f"sqlite:///{Path(directory) / 'chat.db'}"
        director.start(respond_many, store, total, asgi).hear()
        return float(director.start(take_public, store, total, decoded).hear())


# ----------------------------------------------------------------------------------------------- roles


def feed_rows(stage: Stage, total: int, text_bytes: int = 6) -> None:
    """B: says its port, and appends rows to a log while its reader keeps up."""
    rows = token_rows(episode_of(0), 1, total, "x" * text_bytes)
    window = window_rows(len(rows[-1]))

    async def main() -> None:
        parts = PartLogs(SETTINGS)
        log = parts.make(chat_name(0), episode_of(0))
        async with serving_parts(parts) as server:
            stage.say(server.port)
            await stage.until(READY)
            made = 0
            while made < total:
                if made - stage.board[READ] > window:
                    await trio.sleep(0.0002)
                    continue
                log.append(rows[made : made + BATCH])
                made += BATCH
                await trio.lowlevel.checkpoint()
            await trio.sleep_forever()

    trio.run(main)


def take_frames(stage: Stage, port: int, total: int) -> None:
    """A: says how many parts a second came out of a subscription's frames."""

    async def main() -> None:
        async with front(await store_of(port, 1)) as engine:
            first_at, first, last = await _take_frames(stage, engine, chat_name(0), READ, total)
            stage.say((total - first) / (last - first_at))

    trio.run(main)


async def _take_frames(stage: Stage, engine: Engine, chat_id: str, place: int, total: int) -> tuple[float, int, float]:
    """When the first parts came, how many those were, and when the last came."""
    first_at, first = 0.0, 0
    async with engine.subscribe(chat_id) as subscription:
        stage.board[READY] = 1
        async for frame in subscription.frames():
            if b'"type":"preview_reset"' in frame.data[:4096]:
                raise RuntimeError("parts were lost: the run is void")
            seq = seq_of(frame.cursor)
            stage.board[place] = seq
            if seq and not first:
                first_at, first = time.perf_counter(), seq
            if seq == total:
                break
    return first_at, first, time.perf_counter()


async def _take_events(stage: Stage, engine: Engine, chat_id: str, place: int, total: int) -> tuple[float, int, float]:
    first_at = 0.0
    async with engine.subscribe(chat_id) as subscription:
        stage.board[READY] = 1
        async for event in subscription:
            match event:
                case MessagePart(seq=seq):
                    if seq == 1:
                        first_at = time.perf_counter()
                    if not seq % 1024:
                        stage.board[place] = seq
                    if seq == total:
                        break
                case PreviewReset():
                    raise RuntimeError("parts were lost: the run is void")
    return first_at, 1, time.perf_counter()


def respond_many(stage: Stage, store: str, total: int, asgi: bool) -> None:
    """B: a whole replica whose responders flood."""
    texts = [{"type": "text", "text": " token"}] * BATCH
    window = window_rows(len(token_rows(episode_of(0), total, 1)[0]) + 8)

    async def respond(turn: relaytrio.Turn) -> None:
        place = READ + int(turn.messages[-1].content[0]["text"])
        await stage.until(READY)
        made = 0
        while made < total:
            if made - stage.board[place] > window:
                await trio.sleep(0.0002)
                continue
            await turn.send_many(texts)
            made += BATCH
        await trio.sleep_forever()

    trio.run(run_worker, stage, store, respond, asgi)


def take_public(stage: Stage, store: str, total: int, decoded: bool) -> None:
    """A: a whole replica that asks, and shows what comes; says how many parts a second came, of all chats."""
    found: list[tuple[float, int, float]] = []

    async def watch(engine: Engine, number: int) -> None:
        chat = await engine.create_chat([relaytrio.user_message(str(number))])
        take = _take_events if decoded else _take_frames
        found.append(await take(stage, engine, chat.id, READ + number, total))

    async def main() -> None:
        async with open_engine(store, secret=SECRET, settings=SETTINGS) as engine:
            async with trio.open_nursery() as nursery:
                for number in range(CHATS):
                    nursery.start_soon(watch, engine, number)
            began = min(first_at for first_at, _, _ in found)
            ended = max(last for _, _, last in found)
            stage.say((CHATS * total - sum(first for _, first, _ in found)) / (ended - began))

    trio.run(main)
