"""What carries the same rows with less: Redis pub/sub, pipelined; and the floors, a raw socket and a raw Trio stream.

The floors send rows in chunks of 64 KiB and count line feeds: nobody can be faster who sends these bytes from one
process to another. Redis gets one PUBLISH a row, many in one send. Roles: see `_processes.py`.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio

from ._processes import Stage
from ._replicas import episode_of, free_port, token_rows

CHUNK_BYTES = 64 * 1024
PIPELINED = 256
CHANNEL = b"chat"
_MESSAGE = b"$7\r\nmessage\r\n"


def has_redis() -> bool:
    """Whether that peer can be had here."""
    return shutil.which("redis-server") is not None


@contextmanager
def redis_server() -> Iterator[int]:
    """A server that keeps nothing, on a spare port; gives the port."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    # A subscriber that is slower for a moment is not cut: the publisher waits for answers.
    options += ["--client-output-buffer-limit", "pubsub 0 0 0"]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_it_listens(port)
        yield port
    finally:
        server.kill()
        server.wait()


def _until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def redis_subscriber(stage: Stage, port: int, total: int) -> None:
    """Says that it listens, then how many rows a second came."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(_command(b"SUBSCRIBE", CHANNEL))
        connection.recv(4096)
        stage.say("listening")
        stage.say(_count(connection, _MESSAGE, total))


def redis_publisher(stage: Stage, port: int, total: int) -> None:
    """Publishes all rows, and waits for the answers of each lot of them."""
    commands = [_command(b"PUBLISH", CHANNEL, row) for row in token_rows(episode_of(0), 1, total)]
    lots = [commands[begin : begin + PIPELINED] for begin in range(0, total, PIPELINED)]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for lot in lots:
            connection.sendall(b"".join(lot))
            answers = 0
            while answers < len(lot):
                answers += connection.recv(CHUNK_BYTES).count(b"\n")
    stage.say("published")


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(words), b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))


def socket_sender(stage: Stage, total: int) -> None:
    """Says its port, and sends all rows to whoever connects."""
    chunks = _chunks(total)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stage.say(listening.getsockname()[1])
        connection, _ = listening.accept()
        for chunk in chunks:
            connection.sendall(chunk)
        connection.recv(1)


def socket_receiver(stage: Stage, port: int, total: int) -> None:
    """Says how many rows a second came."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        stage.say(_count(connection, b"\n", total))


def stream_sender(stage: Stage, total: int) -> None:
    """The same over a Trio stream."""
    chunks = _chunks(total)

    async def send(stream: trio.SocketStream) -> None:
        for chunk in chunks:
            await stream.send_all(chunk)
        await stream.receive_some(1)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, send, 0, host="127.0.0.1"))
            stage.say(listener.socket.getsockname()[1])

    trio.run(main)


def stream_receiver(stage: Stage, port: int, total: int) -> None:
    """The same over a Trio stream."""

    async def main() -> None:
        came, began = 0, 0.0
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            while came < total:
                came += (await stream.receive_some(CHUNK_BYTES)).count(b"\n")
                began = began or time.perf_counter()
        stage.say(total / (time.perf_counter() - began))

    trio.run(main)


def _chunks(total: int) -> list[bytes]:
    rows = b"\n".join(token_rows(episode_of(0), 1, total)) + b"\n"
    return [rows[begin : begin + CHUNK_BYTES] for begin in range(0, len(rows), CHUNK_BYTES)]


def _count(connection: socket.socket, mark: bytes, total: int) -> float:
    """How many marks a second came, until all have; one may be cut in two."""
    came, rest, began = 0, b"", 0.0
    while came < total:
        data = rest + connection.recv(CHUNK_BYTES)
        began = began or time.perf_counter()
        came += data.count(mark)
        rest = data[-len(mark) + 1 :] if len(mark) > 1 else b""
    return total / (time.perf_counter() - began)
