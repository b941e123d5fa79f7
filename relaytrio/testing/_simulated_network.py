"""The network of a simulated cluster: connections between nodes, in memory and on virtual time.

What is sent over one connection arrives in order; of two connections, either may be the faster one. A link between two
nodes can be cut: what is sent meanwhile arrives when it is whole again, as TCP sends it anew, and who connects waits.
A connection can be reset, which both ends notice at once, or go half-open, which nobody notices: what is sent is taken
and vanishes. A side that does not read lets the other wait.

Must not know: what is sent, replicas. Who calls: the dialers and endpoints of a simulated cluster; tests set faults.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TypeAlias

import trio

from .._wakeup import Flag, Wakeup
from ..transport._connection import PromptConnection

ROOM_BYTES = 128 * 1024
"""What one direction of a connection holds before its sender waits: the buffers of two operating systems."""

Accept: TypeAlias = Callable[["End"], None]


class Network:
    """Nodes are numbers. `latency_seconds` is drawn for everything that is sent."""

    def __init__(self, random: Random) -> None:
        self.latency_seconds: tuple[float, float] = (0.0, 0.0)
        """The least and the most that one way takes."""
        self.was_disturbed = False
        """Whether a fault was ever set."""
        self.dialing = 0
        """Connections that somebody is waiting for now."""
        self.dialed = 0
        """Attempts to connect, ever."""
        self._random = random
        self._listening: dict[int, Accept] = {}
        self._cut: set[frozenset[int]] = set()
        self._mended = Flag()
        self._connections: dict[_Connection, None] = {}

    # ------------------------------------------------------------------------------------------ faults

    def partition(self, one: int, other: int) -> None:
        """Cut the link between two nodes until `heal`."""
        self.was_disturbed = True
        self._cut.add(frozenset((one, other)))

    def heal(self) -> None:
        """Mend all links. Connections that were reset or are half-open stay so."""
        self._cut.clear()
        self._mended.set()
        self._mended.clear()
        for connection in self._connections:
            connection.look()

    def drop(self, one: int, other: int) -> None:
        """Reset the present connections between two nodes."""
        self.was_disturbed = True
        for connection in self._between(one, other):
            connection.reset()

    def half_open(self, one: int, other: int) -> None:
        """From now on all that is sent over the present connections between two nodes vanishes."""
        self.was_disturbed = True
        for connection in self._between(one, other):
            connection.vanishing = True

    # ---------------------------------------------------------------------------------------- its users

    @property
    def connections(self) -> int:
        """How many are open at one end at least."""
        return len(self._connections)

    def is_cut(self, link: frozenset[int]) -> bool:
        """Whether nothing gets over that link for now."""
        return link in self._cut

    def latency(self) -> float:
        """What the next thing takes."""
        least, most = self.latency_seconds
        return self._random.uniform(least, most) if most > 0 else 0.0

    def listen(self, node: int, accept: Accept) -> None:
        """Call `accept` with our end of every connection to that node, until `leave`."""
        self._listening[node] = accept

    def leave(self, node: int, *, silently: bool = False) -> None:
        """The node's process ends, and its connections with it. Silently: the machine does, and tells nobody."""
        self._listening.pop(node, None)
        for connection in [connection for connection in self._connections if node in connection.link]:
            if silently or self.is_cut(connection.link):
                connection.vanishing = True
            else:
                connection.reset()

    async def connect(self, source: int, target: int) -> End:
        """A connection. Waits while the link is cut; raises `OSError` if nobody listens there."""
        link = frozenset((source, target))
        self.dialed += 1
        with self._counted():
            await trio.sleep(self.latency())
            while self.is_cut(link):
                await self._mended.wait()
            if target not in self._listening:
                raise ConnectionRefusedError(f"nobody listens at node {target}")
            connection = _Connection(self, link)
            self._connections[connection] = None
            self._listening[target](connection.far)
            return connection.near

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.dialing += 1
        try:
            yield
        finally:
            self.dialing -= 1

    def _between(self, one: int, other: int) -> list[_Connection]:
        return [connection for connection in self._connections if connection.link == {one, other}]

    def _forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)


class _Connection:
    """Two ends, and a way each."""

    def __init__(self, network: Network, link: frozenset[int]) -> None:
        self.network = network
        self.link = link
        self.vanishing = False
        self.is_reset = False
        there, back = _Way(self), _Way(self)
        self.near = End(self, there, back)
        self.far = End(self, back, there)

    @property
    def tells(self) -> bool:
        """Whether one end can notice what the other one does."""
        return not self.vanishing and not self.network.is_cut(self.link)

    def reset(self) -> None:
        self.is_reset = True
        self.look()

    def look(self) -> None:
        for end in (self.near, self.far):
            end.out.look()

    def left(self) -> None:
        if self.near.closed and self.far.closed:
            self.network._forget(self)


class _Way:
    """One direction of a connection."""

    def __init__(self, connection: _Connection) -> None:
        self.connection = connection
        self.room = Wakeup()
        """For the sender."""
        self.news = Wakeup()
        """For the receiver."""
        self._items: deque[tuple[float, bytes | None]] = deque()
        self._size_bytes = 0
        self._last_at = 0.0

    @property
    def is_full(self) -> bool:
        return self._size_bytes >= ROOM_BYTES

    def look(self) -> None:
        """Something has changed for both sides."""
        self.room.set()
        self.news.set()

    def put(self, item: bytes | None) -> None:
        """Send this, or the end."""
        self._size_bytes += 0 if item is None else len(item)
        if self.connection.vanishing:
            return
        self._last_at = max(self._last_at, trio.current_time() + self.connection.network.latency())
        self._items.append((self._last_at, item))
        self.news.set()

    def take(self) -> tuple[bytes | None] | float:
        """What has arrived, or the instant before which nothing does."""
        if not self._items or not self.connection.tells:
            return float("inf")
        at, item = self._items[0]
        if at > trio.current_time():
            return at
        if item is not None:  # the end is there for good
            self._items.popleft()
            self._size_bytes -= len(item)
            self.room.set()
        return (item,)


class End:
    """One end of a connection. One task sends and one receives."""

    def __init__(self, connection: _Connection, out: _Way, way_in: _Way) -> None:
        self.closed = False
        self.out = out
        self._in = way_in
        self._connection = connection

    async def send(self, item: bytes) -> None:
        """Waits while there is no room. Raises `trio.BrokenResourceError` and `trio.ClosedResourceError`."""
        await trio.lowlevel.checkpoint()
        while not self.send_now(item):
            await self.out.room.wait()

    def send_now(self, item: bytes) -> bool:
        """False: there is no room. Raises as `send` does."""
        self._check()
        if self.out.is_full:
            return False
        if self._other.closed and self._connection.tells:
            raise trio.BrokenResourceError("the other end is closed")
        self.out.put(item)
        return True

    async def receive(self) -> bytes | None:
        """The next item; None: the other end was closed. Raises as `send` does."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check()
            found = self._in.take()
            if isinstance(found, tuple):
                await trio.lowlevel.cancel_shielded_checkpoint()
                return found[0]
            with trio.move_on_at(found):
                await self._in.news.wait()

    def close(self) -> None:
        """At once, without waiting for anybody. Twice is fine."""
        if not self.closed:
            self.closed = True
            self.out.put(None)
            self._in.look()
            self.out.look()
            self._connection.left()

    @property
    def _other(self) -> End:
        return self._connection.far if self is self._connection.near else self._connection.near

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this end is closed")
        if self._connection.is_reset:
            raise trio.BrokenResourceError("the connection was reset")


class FrameEnd(PromptConnection):
    """An end that carries whole frames. A `FrameConnection`."""

    def __init__(self, end: End) -> None:
        self._end = end
        self._rest: bytes | None = None
        self._is_sending = False
        self._given = bytearray()
        """What the last view is of."""

    async def receive(self) -> str | memoryview:
        """See `FrameConnection`. Whoever keeps a view beyond the next call finds nothing of its frame there."""
        self._given[:] = b"\xfe" * len(self._given)
        item = await self._end.receive()
        if item is None:
            raise trio.EndOfChannel
        if item[:1] == b"t":
            return item[1:].decode()
        self._given = bytearray(item)
        return memoryview(self._given)[1:]

    async def send(self, frame: str | bytes) -> None:
        """See `FrameConnection`."""
        await self._send(_marked(frame))

    @property
    def is_free(self) -> bool:
        """See `PromptConnection`."""
        return self._rest is None and not self._is_sending

    def send_now(self, frame: str | bytes) -> bool:
        """See `PromptConnection`."""
        item = _marked(frame)
        if self._end.send_now(item):
            return True
        self._rest = item
        return False

    async def flush(self) -> None:
        """See `PromptConnection`."""
        rest, self._rest = self._rest, None
        if rest is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._send(rest)

    async def _send(self, item: bytes) -> None:
        self._is_sending = True
        await self._end.send(item)
        self._is_sending = False

    async def aclose_forcefully(self) -> None:
        """See `FrameConnection`."""
        self._end.close()
        await trio.lowlevel.cancel_shielded_checkpoint()


def _marked(frame: str | bytes) -> bytes:
    return b"t" + frame.encode() if isinstance(frame, str) else b"b" + frame


class StreamEnd(trio.abc.Stream):
    """An end that carries bytes."""

    def __init__(self, end: End) -> None:
        self._end = end
        self._rest = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._end.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._rest:
            await trio.lowlevel.checkpoint()
        data = self._rest or await self._end.receive() or b""
        cut = len(data) if max_bytes is None else max_bytes
        self._rest = data[cut:]
        return data[:cut]

    async def aclose(self) -> None:
        self._end.close()
        await trio.lowlevel.checkpoint()
