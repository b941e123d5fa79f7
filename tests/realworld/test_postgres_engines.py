"""Replicas that share one PostgreSQL database: asked here, answered there, stopped from anywhere, taken over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import attrs
import pytest
import trio

import relaytrio
from relaytrio._settings import DEFAULTS
from relaytrio.testing import check_stream
from tests.postgres_server import PostgresServer
from tests.scene import until

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(120)]
PATIENCE_SECONDS = 60.0
QUICK = attrs.evolve(DEFAULTS, acquire_seconds=0.1, poll_seconds=0.5, lock_trust_seconds=1.0)
open_replica = partial(relaytrio.open_engine, settings=QUICK)

PROGRAM = """
import sys, trio, relaytrio

async def stand_still(turn):
    await turn.send({"type": "text", "text": "begun"})
    print("begun", flush=True)
    await trio.sleep_forever()

async def main():
    async with relaytrio.open_engine(sys.argv[1], responder=stand_still):
        await trio.sleep_forever()

trio.run(main)
"""


@contextmanager
def standing_still(url: str) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own that says one word and no more."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


async def echo(turn: relaytrio.Turn) -> None:
    """Say what was asked; to go on for ever, until somebody stops it, is what `on and on` asks for."""
    asked = turn.messages[-1].content[0]["text"]
    await turn.send({"type": "text", "text": asked})
    if asked == "on and on":
        await trio.sleep_forever()


def answers(messages: object) -> list[tuple[str, str, bool]]:
    """Role, text and whether it was interrupted."""
    return [(one.role, one.content[0]["text"], one.interrupted) for one in messages]  # type: ignore[attr-defined]


async def talk(url: str) -> None:
    """Ask, and stop, at one replica what another one answers; both then say the same."""
    async with open_replica(url, responder=echo) as worker, open_replica(url) as front:
        chat = await front.create_chat([relaytrio.user_message("hello")])
        async with front.subscribe(chat.id) as subscription:
            events = await until(subscription, relaytrio.Status, status="waiting")
            await front.send_message(chat.id, "on and on")
            events += await until(subscription, relaytrio.Status, status="running")
            async with worker.subscribe(chat.id) as at_the_worker:
                await until(at_the_worker, relaytrio.MessagePart)
            await front.interrupt(chat.id)
            events += await until(subscription, relaytrio.Status, status="waiting")
        check_stream(events)
        for replica in (worker, front):
            assert [
                ("user", "hello", False),
                ("assistant", "hello", False),
                ("user", "on and on", False),
                ("assistant", "on and on", True),
            ] == answers(await replica.list_messages(chat.id))


async def test_two_replicas_share_a_database(postgres_url: str) -> None:
    """What one is asked the other answers, and a Stop comes through."""
    with trio.fail_after(PATIENCE_SECONDS):
        await talk(postgres_url)


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_two_replicas_behind_a_pooler(
    postgres_server: PostgresServer, pgbouncer: Callable[..., AbstractContextManager[str]], mode: str
) -> None:
    """The same through a pooler in either mode; hints may be lost there, and nothing else is."""
    with pgbouncer(postgres_server, mode) as url, trio.fail_after(PATIENCE_SECONDS):
        await talk(url)


async def test_a_leaving_worker_hands_its_chats_over(postgres_url: str) -> None:
    """Another replica acquires them at once, and its answer is the one that is kept."""

    async def stand_still(turn: relaytrio.Turn) -> None:
        begun.set()
        await trio.sleep_forever()

    begun = trio.Event()
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_replica(postgres_url) as front:
            chat = await front.create_chat([relaytrio.user_message("hello")])
            async with front.subscribe(chat.id) as subscription:
                async with open_replica(postgres_url, responder=stand_still):
                    await begun.wait()
                async with open_replica(postgres_url, responder=echo):
                    await until(subscription, relaytrio.Status, status="waiting")
            assert ("assistant", "hello", False) == answers(await front.list_messages(chat.id))[-1]
            assert 0 == (await front.get_chat(chat.id)).takeovers


async def test_a_killed_worker_s_chats_are_taken_over_by_its_lock(postgres_url: str) -> None:
    """Long before its heartbeat would be missed."""
    with standing_still(postgres_url) as process, trio.fail_after(PATIENCE_SECONDS):
        assert process.stdout is not None
        async with open_replica(postgres_url) as front:
            chat = await front.create_chat([relaytrio.user_message("hello")])
            assert "begun\n" == await trio.to_thread.run_sync(process.stdout.readline)
            async with open_replica(postgres_url, responder=echo), front.subscribe(chat.id) as subscription:
                process.kill()
                with trio.fail_after(DEFAULTS.dead_after_seconds / 2):
                    await until(subscription, relaytrio.Status, status="waiting")
            assert ("assistant", "hello", False) == answers(await front.list_messages(chat.id))[-1]
