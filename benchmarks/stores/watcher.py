"""A replica of its own with 10,000 viewers: `python -m benchmarks.stores.watcher URL` says when all have caught up, and
then answers each line with what it has used so far. Who calls: `idle.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import msgspec
import trio

import relaytrio
from relaytrio.stores._sqlite_session import SqliteSession

from .places import EMPTY
from .usage import WATCHED, Used

AT_ONCE = 32
"""That subscribe at the same time."""


async def respond(turn: relaytrio.Turn) -> None:
    """Nobody asks it."""


async def watch(url: str) -> None:
    """The replica: subscribes, says so, and then answers each line until there are no more."""
    counted = [0]
    with ExitStack() as stack:
        for session in _sessions():
            stack.enter_context(patch.object(session, "execute", _counting(session.execute, counted)))
        async with relaytrio.open_engine(url, responder=respond) as engine, trio.open_nursery() as nursery:
            numbers, watching = iter(range(WATCHED)), 0

            async def begin() -> None:
                nonlocal watching
                for number in numbers:
                    await engine.store.create_chat(f"i{number}", EMPTY)
                    await nursery.start(_view, engine, f"i{number}")
                    watching += 1

            async with trio.open_nursery() as starting:
                for _ in range(AT_ONCE):
                    starting.start_soon(begin)
            assert WATCHED == watching
            print("ready", flush=True)
            while await trio.to_thread.run_sync(sys.stdin.readline):
                used = Used(time.monotonic(), time.process_time(), counted[0])
                print(msgspec.json.encode(used).decode(), flush=True)
            nursery.cancel_scope.cancel()


async def _view(engine: relaytrio.Engine, chat_id: str, *, task_status: trio.TaskStatus[None]) -> None:
    async with engine.subscribe(chat_id) as subscription:
        async for event in subscription:
            if isinstance(event, relaytrio.CaughtUp):
                task_status.started()


def _sessions() -> list[Any]:
    try:
        from relaytrio.stores._postgres_session import PostgresSession
    except ImportError:
        return [SqliteSession]
    return [SqliteSession, PostgresSession]


def _counting(execute: Callable[..., Any], counted: list[int]) -> Callable[..., Any]:
    def counting(*arguments: Any) -> Any:
        counted[0] += 1
        return execute(*arguments)

    return counting


if __name__ == "__main__":
    trio.run(watch, sys.argv[1])
