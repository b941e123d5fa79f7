"""Another process that listens: `python -m benchmarks.stores.listener URL` says a line for each hint that it hears,
with the instant. Who calls: `hints.py`.
"""

from __future__ import annotations

import sys
import time

import trio

from .places import Place


async def listen(url: str) -> None:
    """The other process, until it is killed."""
    async with Place("here", url).opened() as (_, pubsub), pubsub.listen() as hints:
        print("ready", flush=True)
        async for hint in hints:
            print(hint.chat_id, hint.snapshot_version, time.monotonic(), flush=True)


if __name__ == "__main__":
    trio.run(listen, sys.argv[1])
