"""Races, from the start of the processes to the verdict: rounds of load on fresh chats, settled and checked one by one.

Who calls: the tests beside it.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
import msgspec

from relaytrio._protocol.chat import (
    Acquire,
    Command,
    Create,
    FinishInterruption,
    FinishTurn,
    NewMessage,
    SendMessage,
)
from relaytrio._protocol.events import Message
from relaytrio.stores import Store, open_store

from .callers import Asker, text
from .driver import Job
from .records import Final, Record, read
from .replay import replay
from .rules import Rule, Violation, histories, judge

ROOT = Path(__file__).parents[3]
PROCESSES = 4
THREADS = 2
"""With a loop each, in each process: eight in all. The stores have threads of their own behind them."""
CALLERS = 4
"""In each loop."""
CHATS = 4
MOST_TURNS = 60
"""That a settled chat may take: more than a queue can hold."""


@attrs.define
class Played:
    """What rounds came to."""

    counts: Counter[str] = attrs.field(factory=Counter)
    """Of each refusal, and of everything else that came of a request."""
    violations: list[Violation] = attrs.field(factory=list)

    def add(self, other: Played) -> None:
        """Count these too."""
        self.counts += other.counts
        self.violations += other.violations

    @property
    def rules(self) -> set[Rule]:
        """Those that were broken."""
        return {violation.rule for violation in self.violations}

    @property
    def operations(self) -> int:
        return self.counts["answer"] + self.counts["refusal"] + self.counts["view"] + self.counts["cancelled"]

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.most_common())
        return f"{self.operations} operations ({counts}), {len(self.violations)} violations"


@contextmanager
def open_drivers() -> Iterator[list[subprocess.Popen[str]]]:
    """The processes that race, waiting for jobs; killed with the context if they have not ended by then."""
    processes: list[subprocess.Popen[str]] = []
    try:
        for number in range(PROCESSES):
            command = [sys.executable, "-m", "tests.realworld.store_races.driver", f"p{number}"]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True))
        for process in processes:
            assert "ready" == _line_of(process)
        yield processes
        for process in processes:
            process.communicate()
            assert 0 == process.returncode
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for end in (process.stdin, process.stdout):
                if end is not None:
                    end.close()


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def play(
    url: str,
    drivers: list[subprocess.Popen[str]],
    folder: Path,
    *,
    seconds: float,
    least_steps: int,
    seed: int,
    fault: str | None = None,
) -> Played:
    """One round of load on fresh chats, and what the checker finds."""
    records: list[Record] = []
    async with open_store(url) as store:
        asker = Asker("settler", store, records.append)
        chats = tuple(f"c{secrets.token_hex(3)}{number}" for number in range(CHATS))
        for chat_id in chats:
            await asker.ask(chat_id, Create(messages=(NewMessage(role="user", content=text(f"{chat_id}.first")),)))
        job = Job(
            url=url,
            chats=chats,
            threads=THREADS,
            callers=CALLERS,
            seconds=seconds,
            least_steps=least_steps,
            seed=seed,
            fault=fault,
            path="",
        )
        # A thread would not make it shorter: there is nothing to be done until they are through.
        records += _race(job, drivers, folder)
        finals = {chat_id: await _settled(asker, store, chat_id) for chat_id in chats}
    return checked(records, finals)


def _race(job: Job, drivers: list[subprocess.Popen[str]], folder: Path) -> list[Record]:
    paths = [folder / f"{job.chats[0]}-{number}.jsonl" for number in range(len(drivers))]
    for process, path in zip(drivers, paths, strict=True):
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(attrs.evolve(job, path=str(path))).decode() + "\n")
        process.stdin.flush()
    for process in drivers:
        if _line_of(process) != "done":
            raise AssertionError(f"{process.args!r} ended with {process.wait()}")
    records = [record for path in paths for record in read(path)]
    for path in paths:
        path.unlink()
    return records


async def _settled(asker: Asker, store: Store, chat_id: str) -> Final:
    """Take the chat from whoever has it, and end its turns until it waits."""
    for turn in range(MOST_TURNS):
        chat = await store.read_chat(chat_id)
        if chat.status == "waiting":
            break
        name = f"{chat_id}.s{turn}"
        command: Command = Acquire(worker_id="settler", run_id=name, dead_worker_id=chat.worker_id)
        if chat.status == "error":
            command = SendMessage(content=text(name))
        elif chat.worker_id == "settler" and chat.run_id is not None:
            finish = FinishTurn if chat.status == "running" else FinishInterruption
            command = finish(run_id=chat.run_id, token=name)
        await asker.ask(chat_id, command)
    return await _final(store, chat_id)


async def _final(store: Store, chat_id: str) -> Final:
    messages: list[Message] = []
    while page := await store.list_messages(chat_id, after_id=messages[-1].id if messages else 0):
        messages.extend(page)
    return Final(chat=await store.read_chat(chat_id), queue=await store.read_queue(chat_id), messages=tuple(messages))


def checked(records: list[Record], finals: Mapping[str, Final]) -> Played:
    """All rules, on all chats."""
    played = Played(Counter(record.came for record in records))
    played.counts += Counter(record.said for record in records if record.came == "refusal")
    played.counts["changes"] = sum(record.changed for record in records)
    for history in histories(records, finals):
        played.violations += judge(history)
        played.violations += replay(history)
    return played
