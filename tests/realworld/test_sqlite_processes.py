"""Several processes on one database file: no update is lost, hints cross over, the killed are found dead at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from relaytrio._protocol.chat import Create, NewMessage
from relaytrio._protocol.events import NO_MESSAGE
from relaytrio._settings import DEFAULTS
from relaytrio.pubsub import open_sqlite_pubsub
from relaytrio.stores import SqliteStore, open_sqlite_store

pytestmark = pytest.mark.realworld
SENDS = 200
STARTS = 6
PATIENCE_SECONDS = 45.0

PROGRAM = """
import subprocess, sys, trio
from relaytrio._protocol.chat import Create, NewMessage, SendMessage
from relaytrio.stores import Replica, open_sqlite_store

path, what, argument = sys.argv[1:]
TEXT = [{"type": "text", "text": argument}]

def say(word):
    print(word, flush=True)

async def main():
    if what == "start":
        say("ready")
        sys.stdin.readline()
    async with open_sqlite_store(path) as store:
        if what == "start":
            await store.create_chat(argument, Create(messages=()))
        if what == "send":
            say("ready")
            sys.stdin.readline()
            for _ in range(SENDS):
                await store.apply("c", SendMessage(content=TEXT, when_busy="interrupt"))
        if what == "register":
            await store.register(Replica(id=argument, address=None, version="1"))
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            say(child.pid)
            sys.stdin.readline()

trio.run(main)
""".replace("SENDS", str(SENDS))


@contextmanager
def running(path: Path, what: str, argument: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed if it has not ended by itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), what, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


async def said(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return (await trio.to_thread.run_sync(process.stdout.readline)).strip()


def go(process: subprocess.Popen[str]) -> None:
    """Let it go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


async def run_together(path: Path, what: str, arguments: list[str]) -> None:
    """Processes that begin at the same moment; all have to end well."""
    with ExitStack() as stack, trio.fail_after(PATIENCE_SECONDS):
        processes = [stack.enter_context(running(path, what, argument)) for argument in arguments]
        for process in processes:
            assert "ready" == await said(process)
        for process in processes:
            go(process)
        for process in processes:
            assert 0 == await trio.to_thread.run_sync(process.wait)


async def test_two_processes_lose_no_update(tmp_path: Path) -> None:
    """Each sends 200 messages to one chat: all are there, ids and versions without a gap."""
    settings = attrs.evolve(DEFAULTS, page_messages=3 * SENDS)
    async with open_sqlite_store(tmp_path / "chat.db", settings=settings) as store:
        await store.create_chat(
            "c", Create(messages=(NewMessage(role="user", content=[{"type": "text", "text": "q"}]),))
        )
        await run_together(tmp_path / "chat.db", "send", ["one", "two"])
        view = await store.read_view("c", NO_MESSAGE)
        numbers = list(range(1, 2 * SENDS + 2))
        assert numbers == [message.id for message in view.messages]
        assert numbers == [message.version for message in view.messages]
        assert 2 * SENDS + 1 == view.chat.snapshot_version
        senders = [message.content[0]["text"] for message in view.messages]
        assert [SENDS, SENDS] == [senders.count("one"), senders.count("two")]


async def test_many_processes_start_at_once_on_a_fresh_file(tmp_path: Path) -> None:
    """One makes the tables, none fails, and none makes them twice."""
    path = tmp_path / "chat.db"
    await run_together(path, "start", [str(number) for number in range(STARTS)])
    async with open_sqlite_store(path) as store:
        assert STARTS == len(await store.list_chats())


async def test_a_commit_is_heard_in_another_process(tmp_path: Path) -> None:
    """The file itself carries the hint."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path), open_sqlite_pubsub(path) as pubsub, pubsub.listen() as hints:
        with running(path, "start", "c") as process, trio.fail_after(PATIENCE_SECONDS):
            assert "ready" == await said(process)
            go(process)
            assert ("c", 1) == attrs.astuple(await anext(hints))[:2]
            assert 0 == await trio.to_thread.run_sync(process.wait)


@asynccontextmanager
async def observing(path: Path) -> AsyncIterator[SqliteStore]:
    """A store that believes a free lock at once."""
    async with open_sqlite_store(path, settings=attrs.evolve(DEFAULTS, lock_trust_seconds=0.0)) as store:
        yield store


async def test_a_killed_process_is_found_dead_at_once(tmp_path: Path) -> None:
    """Its lock is held while it lives and free when it is killed, though a child that it started lives on."""
    path = tmp_path / "chat.db"
    async with observing(path) as store:
        with running(path, "register", "w") as process, trio.fail_after(PATIENCE_SECONDS):
            child = int(await said(process))
            try:
                assert frozenset() == await store.released_locks(["w"])
                process.kill()
                await trio.to_thread.run_sync(process.wait)
                os.kill(child, 0)
                assert {"w"} == await store.released_locks(["w"])
            finally:
                os.kill(child, signal.SIGKILL)
        assert ["w"] == [replica.id for replica in await store.replicas()]


async def test_a_process_that_only_stands_still_is_not_dead(tmp_path: Path) -> None:
    """A stopped process holds its lock: that it does nothing is for the heartbeat to find out."""
    path = tmp_path / "chat.db"
    async with observing(path) as store:
        with running(path, "register", "w") as process, trio.fail_after(PATIENCE_SECONDS):
            child = int(await said(process))
            try:
                process.send_signal(signal.SIGSTOP)
                assert frozenset() == await store.released_locks(["w"])
            finally:
                os.kill(child, signal.SIGKILL)
