"""Many at once: viewers of one chat, and chats between two replicas, at the pace at which tokens come.

The worker notes on the board how far it is, with the clock that all processes share, so that nobody has to decode a
part to know how long it took.
"""

from __future__ import annotations

import time

import attrs
import trio

from relaytrio._parts import PartLogs
from relaytrio.transport.pool import LegPool

from ._processes import Stage, cpu_seconds, one_round
from ._profile import sampling
from ._replicas import (
    SETTINGS,
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

READY, BEGAN = 0, 1
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


def main(report: Report) -> None:
    """Viewers, then chats."""
    _viewers(report)
    _chats(report)
    _thousand_chats(report)


def _viewers(report: Report) -> None:
    viewers, apart_viewers, seconds = (200, 50, 1.0) if report.quick else (1000, 200, 3.0)
    together: list[Found] = []
    apart: list[Found] = []
    for _ in report.each_round(f"{viewers} viewers of one chat"):
        together.append(play(1, viewers, seconds))
        apart.append(play(1, apart_viewers, seconds, shared_legs=False))
    report.add(
        row(
            f"{viewers} viewers of one chat: sockets between A and B",
            "sockets",
            [found.sockets for found in together],
            targets=(at_most(1),),
        )
    )
    report.add(
        row(
            f"{viewers} viewers of one chat: B's CPU",
            "us/delivery",
            [found.there_cpu / found.deliveries * 1e6 for found in together],
            {"leg per viewer": [found.there_cpu / found.deliveries * 1e6 for found in apart]},
            targets=(at_most(0.01, of="leg per viewer"),),
            note=f"a leg per viewer is measured with {apart_viewers} viewers",
        )
    )
    report.add(
        row(
            f"{viewers} viewers of one chat: A's cores",
            "cores per 50,000 deliveries/s",
            [found.here_cpu / found.deliveries * 50_000 for found in together],
            {"leg per viewer": [found.here_cpu / found.deliveries * 50_000 for found in apart]},
            targets=(at_most(0.5),),
            note=together[-1].profile,
        )
    )


def _chats(report: Report) -> None:
    chats, seconds = (50, 1.0) if report.quick else (200, 3.0)
    shared: list[Found] = []
    apart: list[Found] = []
    for _ in report.each_round(f"{chats} chats"):
        shared.append(play(chats, 1, seconds))
        apart.append(play(chats, 1, seconds, shared_legs=False))
    name = f"{chats} chats at {RATE} parts/s"
    report.add(
        row(
            f"{name}: receiver's CPU",
            "us/part",
            [found.here_cpu / found.deliveries * 1e6 for found in shared],
            {"connection per chat": [found.here_cpu / found.deliveries * 1e6 for found in apart]},
            targets=(at_most(0.35, of="connection per chat"),),
            note=shared[-1].profile,
        )
    )
    report.add(
        row(
            f"{name}: p99",
            "ms",
            [percentile(found.latencies, 0.99) * 1000 for found in shared],
            {"connection per chat": [percentile(found.latencies, 0.99) * 1000 for found in apart]},
            targets=(at_most(0.6, of="connection per chat"),),
        )
    )


def _thousand_chats(report: Report) -> None:
    chats, seconds = (200, 1.0) if report.quick else (1000, 3.0)
    found = [play(chats, 1, seconds) for _ in report.each_round(f"{chats} chats through one replica")]
    reached = [one.deliveries / one.seconds for one in found]
    report.add(row(f"{chats} chats at {RATE} parts/s: reached", "parts/s", reached, note=found[-1].profile))
    p99 = [percentile(one.latencies, 0.99) * 1000 for one in found]
    report.add(row(f"{chats} chats at {RATE} parts/s: p99", "ms", p99))


def play(chats: int, viewers: int, seconds: float, *, rate: float = RATE, shared_legs: bool = True) -> Found:
    """So many viewers of each of so many chats, for so long."""
    with one_round() as director:
        parts_each = int(seconds * rate)
        worker = director.start(pace, chats, rate, parts_each)
        port = worker.hear()
        found: Found = director.start(show, port, worker.pid, chats, viewers, rate, parts_each, shared_legs).hear()
        return found


# ----------------------------------------------------------------------------------------------- roles


def pace(stage: Stage, chats: int, rate: float, parts_each: int) -> None:
    """B: appends a part to each chat's log `rate` times a second, the chats spread evenly over the time between."""
    rows = [token_rows(episode_of(number), 1, parts_each) for number in range(chats)]

    async def main() -> None:
        parts = PartLogs(SETTINGS)
        logs = [parts.make(chat_name(number), episode_of(number)) for number in range(chats)]
        async with serving_parts(parts) as server:
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
    stage: Stage, port: int, worker_pid: int, chats: int, viewers: int, rate: float, parts_each: int, shared_legs: bool
) -> None:
    """A: so many subscriptions; says what it found."""

    async def main() -> None:
        store = await store_of(port, chats)
        latencies: list[float] = []
        ready = 0
        all_ready = trio.Event()

        async def watch(number: int) -> None:
            nonlocal ready
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
                        return

        async with front(store, shared_legs=shared_legs) as engine:
            async with trio.open_nursery() as nursery:
                for number in range(chats):
                    for _ in range(viewers):
                        nursery.start_soon(watch, number)
                await all_ready.wait()
                await trio.sleep(0.2)
                while engine.stats().legs < chats * viewers:  # noqa: ASYNC110
                    await trio.sleep(0.05)
                await trio.sleep(0.2)
                pool = engine.relay.config.dialer  # type: ignore[union-attr]
                sockets = pool.connections if isinstance(pool, LegPool) else engine.stats().legs
                stage.board[READY] = 1
                await stage.until(BEGAN)
                await trio.sleep(max(0.0, stage.board[BEGAN] - time.monotonic() - 0.001))
                here, there = time.process_time(), cpu_seconds(worker_pid)
                profile = sampling()
                next(profile)
            ended = time.monotonic()
            here, there = time.process_time() - here, cpu_seconds(worker_pid) - there
            stage.say(
                Found(
                    deliveries=chats * viewers * parts_each,
                    seconds=ended - stage.board[BEGAN],
                    here_cpu=here,
                    there_cpu=there,
                    latencies=latencies[:: max(1, len(latencies) // 20_000)],
                    sockets=sockets,
                    profile=next(profile),
                )
            )

    trio.run(main)
