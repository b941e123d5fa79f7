"""The servers that `fanout` compares: a process each, which says where it listens, and then what it has done.

`python -m benchmarks._fanout_servers KIND VIEWERS PARTS BURSTS`
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

import relaytrio
from relaytrio._protocol.chat import Acquire
from relaytrio._protocol.events import Cursor, Episode, MessageRef
from relaytrio.testing import text_burst
from relaytrio.transport._listening import listen
from relaytrio.transport._serve import serve
from relaytrio.transport._viewers import Viewers

SETTLE_SECONDS: Final = 0.3
"""What a viewer gets first is not counted: it is sent within this time."""
TEXT: Final = "x" * 11
"""Makes a part event of about a hundred bytes."""


@attrs.frozen
class Load:
    """What is to be sent."""

    viewers: int
    parts: int
    bursts: int

    @property
    def deliveries(self) -> int:
        """Of a part to a viewer."""
        return self.viewers * self.parts * self.bursts

    def rows(self, episode: Episode, first_seq: int) -> list[bytes]:
        """One burst, encoded as a responder's parts are."""
        cursor = Cursor(MessageRef(1, "k3x9q"))
        return text_burst(episode, [TEXT] * self.parts, first_seq=first_seq, cursor=cursor).split()


def say(**facts: Any) -> None:
    """One line for the process that compares."""
    print(json.dumps(facts), flush=True)


def done(load: Load, began: float) -> None:
    """Say what was done since then."""
    say(deliveries=load.deliveries, cpu_seconds=time.process_time() - began)


# ------------------------------------------------------------------------------------------- relaytrio


async def send_bursts(
    engine: relaytrio.Engine, chat: relaytrio.Chat, load: Load, all_left: Callable[[], Awaitable[None]]
) -> None:
    """A worker that makes a burst when the last one has left for all."""
    while engine.stats().subscriptions < load.viewers:  # noqa: ASYNC110 - there is no event for it
        await trio.sleep(0.01)
    answer = (await engine.store.apply(chat.id, Acquire(worker_id="w", run_id="r"))).answer
    episode = Episode(answer.history_version, answer.generation_attempt, "r")
    log = engine.parts.make(chat.id, episode)
    engine._hints.announce(await engine.get_chat(chat.id))
    await trio.sleep(SETTLE_SECONDS)
    bursts = [load.rows(episode, 1 + number * load.parts) for number in range(load.bursts)]
    began = time.process_time()
    for rows in bursts:
        log.append(rows)
        await all_left()
    done(load, began)


async def own(load: Load) -> None:
    """`serve_viewers`, with a look at who still has something to send."""
    async with relaytrio.open_engine("memory://", relay=None) as engine, trio.open_nursery() as nursery:
        chat = await engine.create_chat([relaytrio.user_message("hi")])
        viewers = Viewers(engine, None, recheck_seconds=None, ssl_context=None, random=lambda: 0.5)
        hall = viewers._hall
        await nursery.start(viewers.run)
        listener = await listen("127.0.0.1", 0, engine.settings)
        nursery.start_soon(partial(trio.serve_listeners, viewers.serve, [listener], handler_nursery=nursery))
        say(port=listener.socket.getsockname()[1], path=f"/v1/chats/{chat.id}/stream")
        idle_tasks = len(hall.nursery.child_tasks)

        async def all_left() -> None:
            await trio.lowlevel.checkpoint()
            while hall.fanout._due or len(hall.nursery.child_tasks) > idle_tasks:  # noqa: ASYNC110 - one round of the loop at a time
                await trio.lowlevel.checkpoint()

        await send_bursts(engine, chat, load, all_left)
        nursery.cancel_scope.cancel()


async def app(load: Load) -> None:
    """The ASGI app; what it has sent is counted on its way to the server."""
    sent = 0
    async with relaytrio.open_engine("memory://", relay=None) as engine, trio.open_nursery() as nursery:
        chat = await engine.create_chat([relaytrio.user_message("hi")])
        served = engine.asgi_app()

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            async def counting(message: Any) -> None:
                nonlocal sent
                await send(message)
                sent += '"message_part"' in message.get("text", "")

            await served(scope, receive, counting)

        url = await nursery.start(partial(serve, engine, counted, shutdown=trio.Event()))
        say(port=int(url.rpartition(":")[2]), path=f"/v1/chats/{chat.id}/stream")
        frames = 0

        async def all_left() -> None:
            nonlocal frames
            frames += load.viewers
            while sent < frames:  # noqa: ASYNC110 - one round of the loop at a time
                await trio.lowlevel.checkpoint()

        await send_bursts(engine, chat, load, all_left)
        nursery.cancel_scope.cancel()


# ----------------------------------------------------------------------------------------------- others


async def naive(load: Load) -> None:
    """What one writes first: a channel for each viewer, whose task encodes each part and sends it as a message."""
    channels: list[trio.MemorySendChannel[dict[str, Any]]] = []
    sent = 0

    async def view(request: WebSocketRequest) -> None:
        nonlocal sent
        connection: WebSocketConnection = await request.accept()
        out, events = trio.open_memory_channel[dict[str, Any]](64)
        channels.append(out)
        try:
            async for event in events:
                await connection.send_message(json.dumps([event]))
                sent += 1
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        serving = partial(serve_websocket, view, "127.0.0.1", 0, None)
        server = await nursery.start(serving)
        say(port=server.port, path="/")
        while len(channels) < load.viewers:  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.01)
        await trio.sleep(SETTLE_SECONDS)
        row = json.loads(load.rows(Episode(1, 1, "p8r2dq7w3e"), 1)[0])
        began, expected = time.process_time(), 0
        for _ in range(load.bursts):
            for _ in range(load.parts):
                for channel in channels:
                    await channel.send(row)
            expected += load.viewers * load.parts
            while sent < expected:  # noqa: ASYNC110 - one round of the loop at a time
                await trio.lowlevel.checkpoint()
        done(load, began)
        nursery.cancel_scope.cancel()


async def websockets(load: Load) -> None:
    """`websockets.broadcast`: the payload is made once, a frame for each connection."""
    from websockets.asyncio.server import ServerConnection, broadcast
    from websockets.asyncio.server import serve as serve_asyncio

    connections: set[ServerConnection] = set()
    over = asyncio.Event()

    async def view(connection: ServerConnection) -> None:
        connections.add(connection)
        await over.wait()

    async with serve_asyncio(view, "127.0.0.1", 0, compression=None) as server:
        say(port=next(iter(server.sockets)).getsockname()[1], path="/")
        while len(connections) < load.viewers:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        await asyncio.sleep(SETTLE_SECONDS)
        episode = Episode(1, 1, "p8r2dq7w3e")
        payloads = [
            (b"[%b]" % b",\n".join(load.rows(episode, 1 + number * load.parts))).decode()
            for number in range(load.bursts)
        ]
        began = time.process_time()
        for payload in payloads:
            broadcast(connections, payload)
            await asyncio.sleep(0)
            while any(  # noqa: ASYNC110 - as above
                connection.transport.get_write_buffer_size() for connection in connections
            ):
                await asyncio.sleep(0)
        done(load, began)
        for connection in connections:
            connection.transport.abort()
        over.set()


async def floor(load: Load) -> None:
    """Nothing but the sends, of what a frame would be."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        say(port=listening.getsockname()[1], path="/")
        viewers = []
        for _ in range(load.viewers):
            viewers.append(listening.accept()[0])
            viewers[-1].recv(1 << 16)
            viewers[-1].sendall(b"\r\n\r\n")
    await trio.sleep(SETTLE_SECONDS)
    frame = b"[%b]\r\n" % b",\n".join(load.rows(Episode(1, 1, "p8r2dq7w3e"), 1))
    began = time.process_time()
    for _ in range(load.bursts):
        for viewer in viewers:
            viewer.send(frame)
    done(load, began)
    for viewer in viewers:
        viewer.close()


def main(kind: str, *numbers: str) -> None:
    """One server, to its end."""
    load = Load(*map(int, numbers))
    if kind == "websockets":
        asyncio.run(websockets(load))
    else:
        trio.run({"own": own, "app": app, "naive": naive, "floor": floor}[kind], load)


if __name__ == "__main__":
    main(*sys.argv[1:])
