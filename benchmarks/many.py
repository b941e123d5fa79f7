"""Many at once: viewers of one chat, and chats between two replicas, at the pace at which tokens come.

The viewers of one chat are sockets on the viewer listener, which another process reads, and beside them subscriptions
in the front replica's own process. Chats have one such subscription each. The worker notes on the board how far it is,
with the clock that all processes share, so that nobody has to decode a part to know how long it took.
"""

from __future__ import annotations

import gc
import selectors
import socket
import time

import attrs
import trio

from relaytrio import Engine
from relaytrio._parts import PartLogs
from relaytrio.transport.pool import LegPool
from relaytrio.transport.viewers import serve_viewers

from ._processes import Stage, cpu_seconds, one_round
from ._profile import sampling
from ._replicas import (
    SETTINGS,
    Legs,
    chat_name,
    episode_of,
    front,
    percentile,
    seq_of,
    serving_parts,
    store_of,
    token_rows,
)
from ._report import Report, at_most, row
from .fanout import open_viewer

READY, BEGAN, READ = 0, 1, 2
"""Places on the board: parts may be made; when they began to be; and who reads has all of them."""
CORES = "cores per 50,000 deliveries/s"
STOCK, OWN = "a connection for each, trio-websocket", "a connection for each, ours"
"""What one connection for all stands beside: as it was before there was one, and as it is with `shared_legs` off."""
RATE = 50
"""Parts a second of each chat."""


@attrs.frozen(kw_only=True)
class Found:
    """What the front replica measured."""

    deliveries: int
    seconds: float
    here_cpu: float
    """Seconds that A used meanwhile."""
    there_cpu: float
    """Seconds that B used meanwhile."""
    latencies: list[float]
    """In seconds, from the instant at which the part was due."""
    sockets: int
    profile: str

    @property
    def cores(self) -> float:
        """That A would use at a steady pace."""
        return self.here_cpu / self.deliveries * 50_000


def main(report: Report) -> None:
    """Viewers, then chats."""
    _viewers(report)
    _chats(report)
    _thousand_chats(report)


def _viewers(report: Report) -> None:
    viewers, apart_viewers, seconds = (200, 50, 1.0) if report.quick else (1000, 200, 3.0)
    together: list[Found] = []
    inside: list[Found] = []
    apart: list[Found] = []
    stock: list[Found] = []
    for _ in report.each_round(f"{viewers} viewers of one chat"):
        together.append(play_sockets(viewers, seconds))
        inside.append(play(1, viewers, seconds))
        apart.append(play(1, apart_viewers, seconds, legs="own"))
        stock.append(play(1, apart_viewers, seconds, legs="stock"))
    name = f"{viewers} viewers of one chat"
    report.add(
        row(
            f"{name}: sockets between A and B",
            "sockets",
            [found.sockets for found in together],
            targets=(at_most(1),),
        )
    )
    report.add(
        row(
            f"{name}: B's CPU",
            "us/delivery",
            [found.there_cpu / found.deliveries * 1e6 for found in together],
            {
                STOCK: [found.there_cpu / found.deliveries * 1e6 for found in stock],
                OWN: [found.there_cpu / found.deliveries * 1e6 for found in apart],
            },
            targets=(at_most(0.01, of=STOCK),),
            note=f"a connection for each is measured with {apart_viewers} viewers",
        )
    )
    report.add(
        row(
            f"{name}: A's cores",
            CORES,
            [found.cores for found in together],
            {STOCK: [found.cores for found in stock], OWN: [found.cores for found in apart]},
            targets=(at_most(0.5),),
            note=f"sockets on the viewer listener; a connection for each: in A's own process; {together[-1].profile}",
        )
    )
    report.add(
        row(
            f"{name}, subscriptions in A's process: A's cores",
            CORES,
            [found.cores for found in inside],
            {"sockets": [found.cores for found in together]},
            note=f"a task for each takes its frames, and nothing leaves the process; {inside[-1].profile}",
        )
    )


def _chats(report: Report) -> None:
    chats, seconds = (50, 1.0) if report.quick else (200, 3.0)
    shared: list[Found] = []
    apart: list[Found] = []
    stock: list[Found] = []
    for _ in report.each_round(f"{chats} chats"):
        shared.append(play(chats, 1, seconds))
        apart.append(play(chats, 1, seconds, legs="own"))
        stock.append(play(chats, 1, seconds, legs="stock"))
    name = f"{chats} chats at {RATE} parts/s"
    report.add(
        row(
            f"{name}: receiver's CPU",
            "us/part",
            [found.here_cpu / found.deliveries * 1e6 for found in shared],
            {
                STOCK: [found.here_cpu / found.deliveries * 1e6 for found in stock],
                OWN: [found.here_cpu / found.deliveries * 1e6 for found in apart],
            },
            targets=(at_most(0.35, of=STOCK),),
            note=shared[-1].profile,
        )
    )
    report.add(
        row(
            f"{name}: p99",
            "ms",
            [percentile(found.latencies, 0.99) * 1000 for found in shared],
            {
                STOCK: [percentile(found.latencies, 0.99) * 1000 for found in stock],
                OWN: [percentile(found.latencies, 0.99) * 1000 for found in apart],
            },
            targets=(at_most(0.6, of=STOCK),),
        )
    )


def _thousand_chats(report: Report) -> None:
    chats, seconds = (200, 1.0) if report.quick else (1000, 3.0)
    found = [play(chats, 1, seconds) for _ in report.each_round(f"{chats} chats through one replica")]
    reached = [one.deliveries / one.seconds for one in found]
    report.add(row(f"{chats} chats at {RATE} parts/s: reached", "parts/s", reached, note=found[-1].profile))
    p99 = [percentile(one.latencies, 0.99) * 1000 for one in found]
    report.add(row(f"{chats} chats at {RATE} parts/s: p99", "ms", p99))


def play(chats: int, viewers: int, seconds: float, *, rate: float = RATE, legs: Legs = "shared") -> Found:
    """So many viewers of each of so many chats, for so long."""
    with one_round() as director:
        parts_each = int(seconds * rate)
        worker = director.start(pace, chats, rate, parts_each, legs)
        port = worker.hear()
        found: Found = director.start(show, port, worker.pid, chats, viewers, rate, parts_each, legs).hear()
        return found


def play_sockets(viewers: int, seconds: float, *, rate: float = RATE) -> Found:
    """So many viewers of one chat on the viewer listener, for so long."""
    with one_round() as director:
        parts = int(seconds * rate)
        worker = director.start(pace, 1, rate, parts, "shared")
        port = worker.hear()
        server = director.start(serve, port, worker.pid, viewers, rate, parts)
        director.start(read, server.hear(), viewers, parts)
        found: Found = server.hear()
        return found


# ----------------------------------------------------------------------------------------------- roles


def pace(stage: Stage, chats: int, rate: float, parts_each: int, legs: Legs) -> None:
    """B: appends a part to each chat's log `rate` times a second, the chats spread evenly over the time between."""
    rows = [token_rows(episode_of(number), 1, parts_each) for number in range(chats)]

    async def main() -> None:
        parts = PartLogs(SETTINGS)
        logs = [parts.make(chat_name(number), episode_of(number)) for number in range(chats)]
        async with serving_parts(parts, legs=legs) as server:
            stage.say(server.port)
            await stage.until(READY)
            began = time.monotonic() + 0.2
            stage.board[BEGAN] = began
            due = 0
            while due < chats * parts_each:
                elapsed = time.monotonic() - began
                now_due = min(chats * parts_each, int(elapsed * chats * rate) + 1) if elapsed >= 0 else 0
                for number in range(due, now_due):
                    seq, chat = divmod(number, chats)
                    logs[chat].append((rows[chat][seq],))
                due = now_due
                await trio.sleep(max(0.001, began + due / (chats * rate) - time.monotonic()))
            await trio.sleep_forever()

    trio.run(main)


def show(
    stage: Stage, port: int, worker_pid: int, chats: int, viewers: int, rate: float, parts_each: int, legs: Legs
) -> None:
    """A: so many subscriptions; says what it found."""

    async def main() -> None:
        store = await store_of(port, chats)
        latencies: list[float] = []
        ready = done = 0
        all_ready, all_done, measured = trio.Event(), trio.Event(), trio.Event()

        async def watch(number: int) -> None:
            nonlocal ready, done
            had = 0
            async with engine.subscribe(chat_name(number)) as subscription:
                ready += 1
                if ready == chats * viewers:
                    all_ready.set()
                async for frame in subscription.frames():
                    now = time.monotonic()
                    if b'"type":"preview_reset"' in frame.data[:64]:
                        raise RuntimeError("parts were lost: the run is void")
                    seq = seq_of(frame.cursor)
                    began = stage.board[BEGAN]
                    due = (began + (earlier * chats + number) / (chats * rate) for earlier in range(had, seq))
                    latencies.extend([now - due_at for due_at in due])
                    had = seq
                    if seq == parts_each:
                        break
                done += 1
                if done == chats * viewers:
                    all_done.set()
                await measured.wait()  # leaving is not what is measured

        async with front(store, legs=legs) as engine:
            async with trio.open_nursery() as nursery:
                for number in range(chats):
                    for _ in range(viewers):
                        nursery.start_soon(watch, number)
                await all_ready.wait()
                sockets = await _settled(engine, chats * viewers)
                gc.collect()  # what was made when they came is not looked through again: it is not what is measured
                gc.freeze()
                measuring = _Measuring(worker_pid)
                await measuring.begin(stage)
                await all_done.wait()
                found = measuring.end(stage, chats * viewers * parts_each, sockets)
                measured.set()
            stage.say(attrs.evolve(found, latencies=latencies[:: max(1, len(latencies) // 20_000)]))

    trio.run(main)


def serve(stage: Stage, port: int, worker_pid: int, viewers: int, rate: float, parts: int) -> None:
    """A: the viewer listener, which says its port; then what it found."""

    async def main() -> None:
        async with front(await store_of(port, 1)) as engine, trio.open_nursery() as nursery:
            url: str = await nursery.start(serve_viewers, engine)
            stage.say(int(url.rpartition(":")[2]))
            sockets = await _settled(engine, viewers)
            measuring = _Measuring(worker_pid)
            await measuring.begin(stage)
            # Asked for a thousand times a second, it would cost more than what is measured.
            await trio.sleep(parts / rate)
            while not stage.board[READ]:  # noqa: ASYNC110
                await trio.sleep(0.02)
            stage.say(measuring.end(stage, viewers * parts, sockets))
            nursery.cancel_scope.cancel()

    trio.run(main)


def read(stage: Stage, port: int, viewers: int, parts: int) -> None:
    """The viewers: sockets that are read until each has had the last part. Nothing is decoded."""
    selector, buffer, last = selectors.DefaultSelector(), bytearray(1 << 16), b'-%d"}]' % parts
    opened = [open_viewer(port, f"/v1/chats/{chat_name(0)}/stream") for _ in range(viewers)]
    for viewer in opened:
        selector.register(viewer, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            reading = key.fileobj
            assert isinstance(reading, socket.socket)
            end = reading.recv_into(buffer)
            if not end or buffer.find(b'"type":"preview_reset"', 0, end) >= 0:
                raise RuntimeError("parts were lost: the run is void")
            if buffer.endswith(last, 0, end):
                selector.unregister(reading)
    stage.board[READ] = 1
    time.sleep(60)  # the sockets stay open: what their ends cost is not measured


async def _settled(engine: Engine, viewers: int) -> int:
    """Wait until all of them follow the worker; gives how many sockets there are to it."""
    while engine.stats().legs < viewers:  # noqa: ASYNC110
        await trio.sleep(0.05)
    await trio.sleep(0.4)
    pool = engine.relay.config.dialer  # type: ignore[union-attr]
    return pool.connections if isinstance(pool, LegPool) else engine.stats().legs


class _Measuring:
    """What this process and the worker's use, from the first part to the last."""

    def __init__(self, worker_pid: int) -> None:
        self._worker_pid = worker_pid
        self._profile = sampling()

    async def begin(self, stage: Stage) -> None:
        """Let the worker begin, and begin a moment before it does."""
        stage.board[READY] = 1
        await stage.until(BEGAN)
        await trio.sleep(max(0.0, stage.board[BEGAN] - time.monotonic() - 0.001))
        self._here, self._there = time.process_time(), cpu_seconds(self._worker_pid)
        next(self._profile)

    def end(self, stage: Stage, deliveries: int, sockets: int) -> Found:
        """All have been delivered."""
        return Found(
            deliveries=deliveries,
            seconds=time.monotonic() - stage.board[BEGAN],
            here_cpu=time.process_time() - self._here,
            there_cpu=cpu_seconds(self._worker_pid) - self._there,
            latencies=[],
            sockets=sockets,
            profile=next(self._profile),
        )
