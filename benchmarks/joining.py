"""How soon a viewer has what it comes for: after a cut, in the middle of an answer, at a hand-over.

One real worker process (or two), with a front replica in another; its store and notifier are in memory, so that what
is measured is the engine, the link between the replicas, and one read of the store.
"""

from __future__ import annotations

import time

import trio

from relaytrio import Engine, MessagePart, open_engine
from relaytrio._frames import Frames
from relaytrio._parts import PartLogs
from relaytrio._protocol.chat import Abandon, Acquire
from relaytrio._protocol.events import Cursor, Episode
from relaytrio.pubsub._base import Hint
from relaytrio.pubsub.memory import MemoryPubSub
from relaytrio.stores import MemoryStore

from ._processes import Stage, one_round
from ._replicas import (
    OTHER_WORKER,
    SECRET,
    SETTINGS,
    WORKER,
    chat_name,
    episode_of,
    front,
    register,
    seq_of,
    serving_parts,
    store_of,
    token_rows,
)
from ._report import Report, at_most, row

PARTS = 10_000
LONG = 100_000


def main(report: Report) -> None:
    """Late joins and cuts, then hand-overs, then how much is sent again."""
    chats = 6 if report.quick else 24
    late: list[float] = []
    late_here: list[float] = []
    late_decoded: list[float] = []
    after_cut: list[float] = []
    elsewhere: list[float] = []
    handed: list[float] = []
    for _ in report.each_round("joins and hand-overs"):
        with one_round() as director:
            port = director.start(hold, WORKER, 3 * chats + 1, PARTS, 1).hear()
            found = director.start(join, port, chats).hear()
            late.append(found["late"])
            late_here.append(found["late here"])
            late_decoded.append(found["late decoded"])
            after_cut.append(found["cut"])
            elsewhere.append(found["elsewhere"])
        with one_round() as director:
            there = director.start(hold, WORKER, chats + 1, 10, 1).hear()
            other = director.start(hold, OTHER_WORKER, chats + 1, 10, 2).hear()
            handed.append(director.start(follow, there, other, chats).hear())
    report.add(
        row(
            "first part after a cut, p50",
            "ms",
            after_cut,
            {"another replica": elsewhere},
            targets=(at_most(2.0),),
            note="the same replica still has a copy; another one selects it anew, on an open link",
        )
    )
    report.add(
        row(
            f"late join of {PARTS:,} parts, p50",
            "ms",
            late,
            {"rows are here": late_here, "decoded": late_decoded},
            targets=(at_most(5.0),),
            note="frames, as a browser gets them, of rows that come over the link; beside it, those that an earlier "
            "viewer's leg has brought here; and the first again, with an object for each part",
        )
    )
    report.add(
        row(
            "hand-over on an open link, p50",
            "ms",
            handed,
            targets=(at_most(5.0),),
            note="from the hint's arrival on A to C's first part; B and C are processes, store and hints in A's memory",
        )
    )
    _resume(report)


def _resume(report: Report) -> None:
    shares: list[float] = []
    for _ in report.each_round("resume"):
        with one_round() as director:
            port = director.start(hold, WORKER, 1, LONG, 1).hear()
            rest, whole = director.start(resume, port).hear()
            shares.append(rest / whole)
    name = f"resume at part {LONG // 2:,} of {LONG:,}: bytes sent"
    report.add(row(name, "of the whole", shares, targets=(at_most(0.51),), note="seqs have one digit more at the end"))


# ----------------------------------------------------------------------------------------------- roles


def hold(stage: Stage, worker_id: str, chats: int, parts_each: int, attempt: int) -> None:
    """A worker whose answers are made: says its port. The chat 0 goes on for ever, so that the link stays open."""

    async def main() -> None:
        parts = PartLogs(SETTINGS)
        for number in range(chats):
            episode = _episode(number, attempt)
            log = parts.make(chat_name(number), episode)
            log.append(token_rows(episode, 1, parts_each))
            # What is handed over is sealed before that, by whoever lets go of it.
            if number and attempt == 1 and parts_each < PARTS:
                log.seal()
        async with serving_parts(parts, replica_id=worker_id) as server:
            stage.say(server.port)
            await trio.sleep_forever()

    trio.run(main)


def _episode(number: int, attempt: int) -> Episode:
    first = episode_of(number)
    return first if attempt == 1 else Episode(1, attempt, f"{first.run_id}b")


def join(stage: Stage, port: int, chats: int) -> None:
    """A: says the medians, in milliseconds, of late joins, and of first parts after a cut here and elsewhere."""
    found: dict[str, list[float]] = {"late": [], "late here": [], "late decoded": [], "cut": [], "elsewhere": []}

    async def main() -> None:
        async with front(await store_of(port, 3 * chats + 1)) as engine, engine.subscribe(chat_name(0)) as link:
            await _until_seq(link.frames(), 1)
            for number in range(1, chats + 1):
                found["late"].append(await _seconds_until(engine, number, "0-", PARTS))
                found["late here"].append(await _seconds_until(engine, number, "0-", PARTS))
                cursor = await _cursor_at(engine, number, PARTS // 2)
                found["cut"].append(await _seconds_until(engine, number, cursor, PARTS // 2 + 1))
                other = number + chats
                found["elsewhere"].append(await _seconds_until(engine, other, await _cursor_at(engine, other, 0), 1))
                found["late decoded"].append(await _seconds_decoding(engine, other + chats))
        stage.say({name: _middle(seconds) for name, seconds in found.items()})

    trio.run(main)


async def _cursor_at(engine: Engine, number: int, seq: int) -> str:
    """The cursor of a viewer that has had the parts up to that one."""
    [message] = await engine.list_messages(chat_name(number))
    return str(Cursor(message.ref, episode_of(number), seq) if seq else Cursor(message.ref))


async def _seconds_until(engine: Engine, number: int, cursor: str, seq: int) -> float:
    began = time.perf_counter()
    async with engine.subscribe(chat_name(number), cursor=cursor) as subscription:
        await _until_seq(subscription.frames(), seq)
        took = time.perf_counter() - began
    return took


async def _seconds_decoding(engine: Engine, number: int) -> float:
    began = time.perf_counter()
    async with engine.subscribe(chat_name(number), cursor="0-") as subscription:
        async for event in subscription:
            if isinstance(event, MessagePart) and event.seq == PARTS:
                break
        took = time.perf_counter() - began
    return took


async def _until_seq(frames: Frames, seq: int) -> int:
    """Take frames up to that part; how many bytes they had."""
    taken = 0
    async for frame in frames:
        if b'"type":"preview_reset"' in frame.data[:256]:
            raise RuntimeError("parts were lost: the run is void")
        taken += len(frame.data)
        if b'"type":"message_part"' in frame.data[:64] and seq_of(frame.cursor) >= seq:
            break
    return taken


def follow(stage: Stage, there: int, other: int, chats: int) -> None:
    """A: says the median of the milliseconds from the hint that names C to C's first part."""

    async def main() -> None:
        store, pubsub = await store_of(there, chats + 1), MemoryPubSub()
        await register(store, OTHER_WORKER, other)
        async with open_engine(store, pubsub=pubsub, secret=SECRET, settings=SETTINGS) as engine:
            await _move(store, 0)
            async with engine.subscribe(chat_name(0)) as link:
                await _until_seq(link.frames(), 1)
                taken = [await _hand_over(engine, store, pubsub, number) for number in range(1, chats + 1)]
        stage.say(_middle(taken))

    trio.run(main)


async def _hand_over(engine: Engine, store: MemoryStore, pubsub: MemoryPubSub, number: int) -> float:
    async with engine.subscribe(chat_name(number)) as subscription:
        frames = subscription.frames()
        await _until_seq(frames, 10)
        await trio.sleep(0.02)
        hint = await _move(store, number)
        began = time.perf_counter()
        await pubsub.publish(hint)
        async for frame in frames:
            if b'"type":"message_part"' in frame.data[:64]:
                break
        took = time.perf_counter() - began
    return took


async def _move(store: MemoryStore, number: int) -> Hint:
    """B lets go of the chat, and C takes it."""
    chat_id, episode = chat_name(number), _episode(number, 2)
    await store.apply(chat_id, Abandon(run_id=episode_of(number).run_id, token="t"))
    chat = (await store.apply(chat_id, Acquire(worker_id=OTHER_WORKER, run_id=episode.run_id))).chat
    assert chat.live_episode == episode
    return Hint(chat_id, chat.snapshot_version, chat.status, chat.worker_id)


def resume(stage: Stage, port: int) -> None:
    """A: says how many bytes a viewer gets that was cut in the middle, and one that had nothing."""

    async def main() -> None:
        async with front(await store_of(port, 1)) as engine:
            sent: list[int] = []
            for cursor in (await _cursor_at(engine, 0, LONG // 2), "0-"):
                async with engine.subscribe(chat_name(0), cursor=cursor) as subscription:
                    sent.append(await _until_seq(subscription.frames(), LONG))
            stage.say(sent)

    trio.run(main)


def _middle(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2] * 1000
