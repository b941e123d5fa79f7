"""The peers: how the same events travel where each is a JSON text in a frame of its own.

`base` is trio-websocket, `asyncio` the `websockets` package with orjson, which may be absent. Both ends are told
whether events are objects there (encoded when they are sent, decoded when they come), or ready text. Roles: see
`_processes.py`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import trio
from trio_websocket import WebSocketRequest, open_websocket_url, serve_websocket

from ._processes import Stage
from ._replicas import episode_of, token_rows

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

BOUND = 1 << 22


def has_asyncio() -> bool:
    """Whether that peer can be had here."""
    return find_spec("websockets") is not None and find_spec("orjson") is not None


def _events(total: int, objects: bool) -> Sequence[Any]:
    texts = [row.decode() for row in token_rows(episode_of(0), 1, total)]
    return [json.loads(text) for text in texts] if objects else texts


def base_sender(stage: Stage, total: int, objects: bool) -> None:
    """Says its port, and sends all events to whoever connects."""
    events = _events(total, objects)

    async def send(request: WebSocketRequest) -> None:
        connection = await request.accept()
        for event in events:
            await connection.send_message(json.dumps(event) if objects else event)
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, send, "127.0.0.1", 0, None)
            stage.say(server.port)

    trio.run(main)


def base_receiver(stage: Stage, port: int, total: int, objects: bool) -> None:
    """Says how many events a second came."""

    async def main() -> None:
        async with open_websocket_url(f"ws://127.0.0.1:{port}", receive_buffer_size=64 * 1024) as connection:
            await connection.get_message()
            began = time.perf_counter()
            for _ in range(total - 1):
                text = await connection.get_message()
                if objects:
                    json.loads(text)
            stage.say((total - 1) / (time.perf_counter() - began))

    trio.run(main)


def asyncio_sender(stage: Stage, total: int, objects: bool) -> None:
    """Says its port, and sends all events to whoever connects."""
    import orjson
    from websockets.asyncio.server import serve

    events = _events(total, objects)

    async def send(connection: ServerConnection) -> None:
        for event in events:
            await connection.send(orjson.dumps(event).decode() if objects else event)
        await asyncio.Event().wait()

    async def main() -> None:
        async with serve(send, "127.0.0.1", 0, compression=None) as server:
            stage.say(next(iter(server.sockets)).getsockname()[1])
            await server.serve_forever()

    asyncio.run(main())


def asyncio_receiver(stage: Stage, port: int, total: int, objects: bool) -> None:
    """Says how many events a second came."""
    import orjson
    from websockets.asyncio.client import connect

    async def main() -> None:
        url = f"ws://127.0.0.1:{port}"
        async with connect(url, compression=None, max_size=BOUND) as connection:
            await connection.recv()
            began = time.perf_counter()
            for _ in range(total - 1):
                text = await connection.recv()
                if objects:
                    orjson.loads(text)
            stage.say((total - 1) / (time.perf_counter() - began))

    asyncio.run(main())


def hop_sender(stage: Stage, rate: float, total: int) -> None:
    """One bare hop: each event is sent when it is made, and says when."""

    async def send(request: WebSocketRequest) -> None:
        connection = await request.accept()
        begins = trio.current_time() + 0.1
        for number in range(total):
            await trio.sleep_until(begins + int(number / rate * 1000) / 1000)
            await connection.send_message(json.dumps({"type": "text", "text": str(time.monotonic_ns())}))
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, send, "127.0.0.1", 0, None)
            stage.say(server.port)

    trio.run(main)


def hop_receiver(stage: Stage, port: int, total: int) -> None:
    """Says how long each event took, in seconds."""

    async def main() -> None:
        taken: list[float] = []
        async with open_websocket_url(f"ws://127.0.0.1:{port}", receive_buffer_size=64 * 1024) as connection:
            for _ in range(total):
                event = json.loads(await connection.get_message())
                taken.append((time.monotonic_ns() - int(event["text"])) / 1e9)
        stage.say(taken)

    trio.run(main)
