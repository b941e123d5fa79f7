"""One connection for each peer, however many chats are followed there, and one select for each of their episodes.

A `Dialer` that shares what it opens. All subscriptions of this replica that follow an episode extend the same copy of
its log, so it is sent here once: whoever of them waits takes the next burst, and lays it down in the same step, so that
bursts never overtake each other. An end goes to all, after the bursts before it. A dial that others wait for already
waits with them; who leaves takes nothing away from the others, and a connection that nobody uses any more is kept for
`idle_leg_seconds`.

The connection is made without any viewer's headers. Each viewer was authorised by this replica, and each select carries
a grant. Must not know: logs, when to dial, when to give up. Who calls: the relay; `open_engine` opens it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NoReturn, Protocol

import trio

from .._dialer import DialRequest, Leg, LegEnd
from .._errors import DialError, EngineFailed
from .._nursery import BodyNursery
from .._protocol.burst import Burst
from .._protocol.events import Episode
from .._protocol.peer_wire import Bundle, Ended, Heartbeat, LegBurst, Release, Select
from .._seams import seam
from .._settings import Settings
from .._wakeup import Flag, Wakeup
from ._connection import FrameConnection, Incoming, send_control, unless_idle
from ._shared_leg import SharedLeg, Stream
from ._tasks import ConnectionLost, TaskFailed, run_until_lost


class PeerOpener(Protocol):
    """What opens connections to other replicas: `WebSocketDialer`."""

    def connect(self, worker_id: str) -> AbstractAsyncContextManager[FrameConnection]:
        """An open connection, for as long as the context lasts. Entering raises a `DialError`."""

    def select_grant(self, worker_id: str, chat_id: str) -> str:
        """For one select on it."""


@asynccontextmanager
async def open_leg_pool(opener: PeerOpener, settings: Settings) -> AsyncIterator[LegPool]:
    """A pool, for as long as the context lasts; then its connections are closed. Raises `EngineFailed`."""
    async with BodyNursery(lambda: EngineFailed("the pool of legs failed")) as nursery:
        yield LegPool(opener, settings, nursery.start_soon)


class LegPool:
    """A `Dialer` whose legs share connections. Made by `open_leg_pool`."""

    def __init__(self, opener: PeerOpener, settings: Settings, start_soon: Callable[..., None]) -> None:
        self._opener = opener
        self._settings = settings
        self._start_soon = start_soon
        self._peers: dict[str, _Peer] = {}

    @property
    def connections(self) -> int:
        """Open to other replicas, or being opened."""
        return len(self._peers)

    @property
    def selects(self) -> int:
        """Episodes that are sent here."""
        return sum(len(peer.streams) for peer in self._peers.values())

    @asynccontextmanager
    async def dial(self, request: DialRequest) -> AsyncIterator[Leg]:
        """See `Dialer`. Returns at once where there is a connection to that replica already."""
        peer = self._peer(request.worker_id)
        peer.enter()
        try:
            await peer.until_open()
            leg = SharedLeg(peer, request)
            try:
                yield leg
            finally:
                leg.close()
        finally:
            peer.leave()

    def _peer(self, worker_id: str) -> _Peer:
        peer = self._peers.get(worker_id)
        if peer is None:
            peer = self._peers[worker_id] = _Peer(worker_id, self._opener, self._settings, self._forget)
            self._start_soon(peer.run)
        return peer

    def _forget(self, peer: _Peer) -> None:
        """Whoever dials from now on gets another connection."""
        if self._peers.get(peer.worker_id) is peer:
            del self._peers[peer.worker_id]


class _Peer:
    """The connection to one replica, from the first dial to its loss. All methods but `run` and the waits are
    synchronous."""

    def __init__(self, worker_id: str, opener: PeerOpener, settings: Settings, forget: Callable[[_Peer], None]) -> None:
        self.worker_id = worker_id
        self.streams: dict[int, Stream] = {}
        """By the number that the endpoint knows them by."""
        self.lost: str | None = None
        """Why it is of no more use."""
        self._episodes: dict[tuple[str, Episode], Stream] = {}
        self._opener = opener
        self._settings = settings
        self._forget = forget
        self._scope = trio.CancelScope()
        self._users = 0
        self._is_open = False
        self._failure: DialError | None = None
        self._decided = Flag()
        """It is open, or will not be."""
        self._unused = Wakeup()
        self._used = Flag()
        self._to_send: deque[Select | Release] = deque()
        self._sending = Wakeup()
        self._last_number = 0

    # ------------------------------------------------------------------------------------------ its users

    def enter(self) -> None:
        """One more dial is about to use it."""
        self._users += 1
        self._used.set()

    def leave(self) -> None:
        """One less. An attempt to connect that nobody waits for any more is given up."""
        self._users -= 1
        if self._users:
            return
        self._used.clear()
        self._unused.set()
        if not self._is_open:
            self._forget(self)
            self._scope.cancel()

    async def until_open(self) -> None:
        """Return when it is open. Raises a `DialError`. A checkpoint."""
        await self._decided.wait()
        failure = self._failure
        if failure is not None:
            # Several may wait: each gets an error of its own.
            raise type(failure)(failure.worker_id, failure.reason) from failure.__cause__

    def stream(self, chat_id: str, episode: Episode, after_seq: int) -> Stream:
        """What brings the rows of that episode after `after_seq`: selected now, unless it brings them already."""
        stream = self._episodes.get((chat_id, episode))
        if stream is None:
            self._last_number += 1
            stream = Stream(self, self._last_number, chat_id, episode)
            self.streams[stream.number] = self._episodes[chat_id, episode] = stream
        elif after_seq >= stream.taken_seq:
            return stream
        stream.begin(after_seq)
        grant = self._opener.select_grant(self.worker_id, chat_id)
        self._send(Select(stream.number, chat_id, episode, after_seq, grant, bundles=True))
        return stream

    def drop(self, stream: Stream, *, release: bool) -> None:
        """Nothing more comes of it, or of what comes nothing is wanted."""
        if self.streams.pop(stream.number, None) is None:
            return
        del self._episodes[stream.chat_id, stream.episode]
        if release and self.lost is None:
            self._send(Release(stream.number))

    def _send(self, frame: Select | Release) -> None:
        self._to_send.append(frame)
        self._sending.set()

    # ------------------------------------------------------------------------------------- the connection

    async def run(self) -> None:
        """Connect, and carry frames until the connection is lost or nobody has needed it for a while."""
        reason = "the replica is being stopped"
        try:
            with self._scope:
                reason = await self._carry()
        except DialError as failure:
            self._failure = failure
        finally:
            self._forget(self)
            self.lost = reason
            self._decided.set()
            for stream in self.streams.values():
                stream.lose(reason)

    async def _carry(self) -> str:
        try:
            async with self._opener.connect(self.worker_id) as connection:
                self._is_open = True
                self._decided.set()
                incoming = Incoming(connection, self._settings)
                return await run_until_lost(
                    lambda: self._read(incoming),
                    incoming.until_silent,
                    lambda: self._write(connection),
                    self._until_unused,
                )
        except TaskFailed as failed:
            return f"its connection failed: {type(failed.__cause__).__name__}"

    async def _read(self, incoming: Incoming) -> NoReturn:
        while True:
            match await incoming.next():
                case LegBurst(number, burst):
                    await seam("rows came, not laid down", worker_id=self.worker_id)
                    self._bring(number, burst)
                case Bundle(bursts):
                    await seam("rows came, not laid down", worker_id=self.worker_id)
                    for of_leg in bursts:
                        self._bring(of_leg.leg, of_leg.burst)
                case Ended(number, episode, reason, last_seq, owner_id):
                    stream = self._stream(number, episode)
                    if stream is not None:
                        stream.end(LegEnd(episode, reason, last_seq, owner_id))
                case Heartbeat() | None:
                    pass
                case _:
                    raise ConnectionLost("it sent a frame that is not its to send")

    def _bring(self, number: int, burst: Burst) -> None:
        stream = self._stream(number, burst.episode)
        if stream is not None:
            stream.put(burst)

    def _stream(self, number: int, episode: Episode) -> Stream | None:
        """None: it was released meanwhile."""
        stream = self.streams.get(number)
        return stream if stream is not None and stream.episode == episode else None

    async def _write(self, connection: FrameConnection) -> NoReturn:
        while True:
            while not self._to_send:
                if await unless_idle(self._sending.wait, self._settings) is not None:
                    await send_control(connection, Heartbeat(), self._settings)
            await send_control(connection, self._to_send.popleft(), self._settings)

    async def _until_unused(self) -> NoReturn:
        while True:
            while self._users:
                await self._unused.wait()
            with trio.move_on_after(self._settings.idle_leg_seconds):
                await self._used.wait()
            if not self._users:
                self._forget(self)
                raise ConnectionLost("nobody needed it any more")
