"""One viewer of a check: a real client's stream, followed, cut, and written down.

What it sees is written as it comes (`_check_records.py`) and shown on the board that the conductor watches. The
stream connects again by itself; where, and when at the earliest, can be told it. Must not know: the plan, the judge.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from random import Random

import httpx
import trio

from .._client_stream import ChatStream
from .._errors import RelaytrioError
from .._protocol.events import (
    CaughtUp,
    Event,
    HistoryReset,
    Message,
    MessageEvent,
    MessagePart,
    PreviewReset,
    Status,
)
from .._settings import DEFAULTS
from ..client import ChatClient
from ..testing import InvariantViolation, StreamChecker
from ..transport.dialer import open_tcp_stream
from ._check_records import Connection, MessageSeen, PartSeen, ResetSeen, ViewerRecord
from ._status import NotDone
from ._transcript import text_of


class Board:
    """The newest that any viewer has seen of the chat."""

    def __init__(self) -> None:
        self.owner_id: str | None = None
        """The replica id of the worker that generates now."""
        self.seq = 0
        """The last part of the present turn that any viewer has seen."""
        self._status_version = 0
        self._turn_version = 0
        self._changed = trio.lowlevel.ParkingLot()

    def begin_turn(self, version: int) -> None:
        """A question entered the history with this version."""
        self._turn_version, self.seq = version, 0

    def status(self, event: Status) -> None:
        """A viewer was told the chat's status."""
        if event.version <= self._status_version:
            return
        self._status_version, self.owner_id = event.version, event.worker_id
        self._changed.unpark_all()

    def part(self, event: MessagePart) -> None:
        """A viewer got a part."""
        if event.episode.history_version == self._turn_version:
            self.seq = max(self.seq, event.seq)
            self._changed.unpark_all()

    def poke(self) -> None:
        """Something else has changed that those who watch the board should see."""
        self._changed.unpark_all()

    async def change(self) -> None:
        """Wait for news."""
        await self._changed.park()

    async def first_part(self) -> None:
        """Wait until any viewer has a part of the present turn."""
        while self.seq == 0:
            await self.change()
        await trio.lowlevel.checkpoint()


class Viewer:
    """A viewer, from the start of the check to its end."""

    def __init__(
        self, number: int, replicas: Mapping[str, int], board: Board, *, http: httpx.AsyncClient, seed: int
    ) -> None:
        self.record = ViewerRecord(number=number)
        self.settled_version = 0
        """The newest version that it knows of in which nothing was being generated."""
        self._board = board
        self._replica_at = {int(url.rpartition(":")[2]): number for url, number in replicas.items()}
        self._url_of = {number: url for url, number in replicas.items()}
        self._checker: StreamChecker | None = StreamChecker()
        self._settled = trio.lowlevel.ParkingLot()
        self._stream: ChatStream | None = None
        self._reconnects = -1
        self._index = -1
        """Of the connection that the events come from."""
        self._worker_id: str | None = None
        self._away: trio.Event | None = None
        random = Random(f"viewer:{seed}:{number}").random
        self._client = ChatClient(list(replicas), http=http, random=random, open_stream=self._open)

    # -------------------------------------------------------------------------------------- what it does

    async def watch(self, chat_id: str, replica: int) -> None:
        """Follow the chat until cancelled, at first on this replica."""
        async with self._client.stream(chat_id, prefer=self._url_of[replica]) as self._stream:
            try:
                async for event in self._stream:
                    self._take(event, self._stream.reconnects)
            except RelaytrioError as error:
                self.record.failure = f"{type(error).__name__}: {error}"
                self._settled.unpark_all()

    async def cut(self, replica: int, *, away_until: trio.Event | None = None) -> None:
        """Drop the socket, if there is one; it comes back to this replica, at once or not before that event."""
        if self._stream is None:
            await trio.lowlevel.checkpoint()
            return
        self._away = away_until
        self._stream.prefer(self._url_of[replica])
        if self._stream.url is not None and self.replica is not None:
            self.record.connections[-1].cut = True
        await self._stream.cut()

    @property
    def replica(self) -> int | None:
        """Where it is connected, if it is."""
        connections = self.record.connections
        return connections[-1].replica if connections and connections[-1].ended_at is None else None

    @property
    def place(self) -> str:
        """Who it is and where, for a person."""
        tries = len(self.record.connections)
        where = "not connected" if self.replica is None else f"connected to replica {self.replica}"
        return f"viewer {self.record.number} {where} after {tries} connections"

    @property
    def caught_up(self) -> bool:
        """Whether it has all that was stored when its connection began."""
        return self._index >= 0 and self.record.connections[self._index].caught_up_at is not None

    async def until_settled(self, version: int) -> None:
        """Wait until it knows that nothing is being generated, in this version or a later one, or has failed."""
        while self.settled_version < version and self.record.failure is None:
            await self._settled.park()
        await trio.lowlevel.checkpoint()

    async def until_caught_up(self) -> None:
        """Wait until it has all that was stored when it came. Raises `NotDone` if it cannot come at all."""
        while not self.caught_up:
            if self.record.failure is not None:
                raise NotDone(f"viewer {self.record.number}: {self.record.failure}")
            await self._settled.park()
        await trio.lowlevel.checkpoint()

    # ---------------------------------------------------------------------------------- its connections

    async def _open(self, host: str, port: int) -> trio.abc.Stream:
        """What the client calls for each connection."""
        if self._away is not None:
            await self._away.wait()
        connection = Connection(replica=self._replica_at[port], dialed_at=time.time())
        stream = await open_tcp_stream(host, port, stalled_seconds=DEFAULTS.stalled_send_seconds)
        self.record.connections.append(connection)
        return _Noted(stream, connection)

    def _begin_connection(self, reconnects: int) -> None:
        """The first event of another connection. All of the former's have been taken: a connection takes longer to
        make than a task that waits for nothing else takes to receive."""
        if self._reconnects >= 0 and self._checker is not None:
            self._checker.reconnect()
        self._reconnects, self._index = reconnects, len(self.record.connections) - 1

    # ---------------------------------------------------------------------------------------- its events

    def _take(self, event: Event, reconnects: int) -> None:
        if reconnects != self._reconnects:
            self._begin_connection(reconnects)
        self._check(event)
        match event:
            case MessagePart():
                self._part(event)
                self._board.part(event)
            case MessageEvent(message=message):
                self._message(message)
            case PreviewReset():
                self._reset(event.reason, event.first_seq)
            case HistoryReset():
                self._reset("history", event.after_id)
            case Status():
                self._status(event)
                self._board.status(event)
            case CaughtUp():
                self.record.connections[self._index].caught_up_at = time.time()
                self._settled.unpark_all()
            case _:
                pass

    def _check(self, event: Event) -> None:
        """A checker that has found a violation is of no more use; the judge has its own account."""
        if self._checker is not None:
            try:
                self._checker.feed(event)
            except InvariantViolation as violation:
                self.record.broken.append(str(violation))
                self._checker = None

    def _part(self, event: MessagePart) -> None:
        part = PartSeen(
            at=time.time(),
            connection=self._index,
            episode=event.episode,
            seq=event.seq,
            text=str(event.part.get("text")),
            sent_at=float(event.part.get("sent_at", 0.0)),
            worker_id=self._worker_id,
        )
        self.record.seen.append(part)

    def _message(self, message: Message) -> None:
        seen = MessageSeen(
            at=time.time(),
            connection=self._index,
            id=message.id,
            role=message.role,
            text=text_of(message.content),
            version=message.version,
        )
        self.record.seen.append(seen)

    def _reset(self, reason: str, first_seq: int) -> None:
        self.record.seen.append(ResetSeen(at=time.time(), connection=self._index, reason=reason, first_seq=first_seq))

    def _status(self, event: Status) -> None:
        self._worker_id = event.worker_id
        if event.status in ("waiting", "error"):
            self.settled_version = max(self.settled_version, event.version)
            self._settled.unpark_all()


class _Noted(trio.abc.Stream):
    """A stream whose end is written down."""

    def __init__(self, stream: trio.abc.Stream, connection: Connection) -> None:
        self._stream = stream
        self._connection = connection

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        if self._connection.ended_at is None:
            self._connection.ended_at = time.time()
        await self._stream.aclose()
