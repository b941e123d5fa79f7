"""How fast parts reach many viewers of one chat: from one process to the sockets of another.

Each contender is a server process that sends the same parts to so many sockets, a burst at a time; the next burst is
made when the last one has left for all. Another process reads. The contenders take turns, so that what else the
machine does meets them all; what counts is the ratio, per second of the server's own CPU, and beside it by the clock.
The servers are in `_fanout_servers.py`.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any, Final

import attrs

from ._report import Report, at_least, row

VIEWERS: Final = 100, 500
BURSTS: Final = {1: 1500, 64: 400}
"""Bursts in a round with a hundred viewers, by the parts in each; of more viewers fewer."""
NAIVE_BURSTS: Final = {1: 300, 64: 6}
TARGETS: Final = {("naive", 1): 6.0, ("naive", 64): 200.0, ("websockets", 1): 1.1, ("websockets", 64): 1.1}
KINDS: Final = {
    "own": "serve_viewers",
    "app": "ASGI app",
    "naive": "naive",
    "websockets": "websockets.broadcast",
    "floor": "one send a viewer",
}


@attrs.define
class Contender:
    """What was measured of one kind of server, in deliveries of a part to a viewer."""

    kind: str
    viewers: int
    parts: int
    by_cpu: list[float] = attrs.field(factory=list)
    by_clock: list[float] = attrs.field(factory=list)

    def run(self) -> None:
        """One round."""
        bursts = (NAIVE_BURSTS if self.kind in ("naive", "app") else BURSTS)[self.parts]
        bursts = max(2, bursts * VIEWERS[0] // self.viewers)
        arguments = [self.kind, str(self.viewers), str(self.parts), str(bursts)]
        with _python("benchmarks._fanout_servers", *arguments) as server:
            where = _told(server)
            with _python("benchmarks.fanout", str(where["port"]), where["path"], str(self.viewers)) as reader:
                read, made = _told(reader), _told(server)
        self.by_cpu.append(made["deliveries"] / made["cpu_seconds"])
        self.by_clock.append(made["deliveries"] / read["seconds"])


def main(report: Report) -> None:
    """Per second of the server's CPU, and of ours by the clock."""
    for viewers in VIEWERS:
        _to(report, viewers)


def _to(report: Report, viewers: int) -> None:
    kinds = [kind for kind in KINDS if kind != "websockets" or find_spec("websockets")]
    contenders = {(kind, parts): Contender(kind, viewers, parts) for parts in BURSTS for kind in kinds}
    for _ in report.each_round(f"fanning out to {viewers}"):
        for contender in contenders.values():
            contender.run()
    for parts in BURSTS:
        own = contenders["own", parts]
        peers = {KINDS[kind]: contenders[kind, parts].by_cpu for kind in kinds if kind != "own"}
        targets = [at_least(TARGETS[kind, parts], of=KINDS[kind]) for kind in kinds if (kind, parts) in TARGETS]
        name = f"fan-out to {viewers} viewers, {parts} a burst"
        note = f"by the clock {statistics.median(own.by_clock):,.0f} deliveries/s; the reader has the other core"
        report.add(row(name, "deliveries a CPU second", own.by_cpu, peers, targets=targets, note=note))


def _python(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of a process, which is JSON."""
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


def read(port: int, path: str, viewers: int) -> None:
    """The reading process: open the sockets, read until all have ended, and say how long that took."""
    selector = selectors.DefaultSelector()
    for _ in range(viewers):
        selector.register(open_viewer(port, path), selectors.EVENT_READ)
    first, buffer = 0.0, bytearray(1 << 20)
    while selector.get_map():
        for key, _ in selector.select():
            viewer = key.fileobj
            assert isinstance(viewer, socket.socket)
            if not viewer.recv_into(buffer):
                selector.unregister(viewer)
                viewer.close()
        # What comes before the first burst was sent is over by the time of the last viewer's.
        first = first or time.perf_counter()
    print(json.dumps({"seconds": time.perf_counter() - first}), flush=True)


def open_viewer(port: int, path: str) -> socket.socket:
    """A viewer's socket, with the answer to its upgrade read."""
    viewer = socket.create_connection(("127.0.0.1", port))
    viewer.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += viewer.recv(1 << 16)
    return viewer


if __name__ == "__main__":
    read(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
