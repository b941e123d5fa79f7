"""A viewer on a plain socket: its frames go from the fan-out straight into the system's buffer.

Nobody waits here while the socket takes what it is given. When it does not, the rest of the frame is the only thing
that may follow, and a task waits for the socket until it has gone out; meanwhile the viewer takes nothing, and what
it misses comes in one burst after that. A rest that nobody took in time is never followed by another byte.

The connection's own task reads, and in the end says why it ends: one task for an idle viewer, beside those of its
subscription. No lock: whatever is sent is sent in one synchronous stretch, if nothing is unsent.

Must not know: TLS (`_viewer_stream.py`), HTTP, when a frame is due. Who calls: the viewer listener.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, NoReturn

import trio

from .._errors import SubscriptionFailed
from .._parts import PartLogs
from .._protocol.events import Episode
from .._settings import Settings
from .._subscription import Pulled, Subscription
from ._abreast import Abreast, Follower
from ._fanout import FanOut
from ._server_frames import HEARTBEAT_FRAME, SharedFrames, close_frame
from ._timers import Timer, Timers
from ._viewer import CLOSE_SECONDS, FAILED, GOING_AWAY, Ending, leave
from ._viewer_says import Left, Pinged, ViewerSays

RECEIVE_BYTES: Final = 4096
_LINGER_NOT: Final = struct.pack("ii", 1, 0)

_logger = logging.getLogger("relaytrio.http")


class Hall:
    """What the viewers of one listener share, and the tasks that serve them all."""

    def __init__(
        self, parts: PartLogs, settings: Settings, drain_started: trio.Event, random: Callable[[], float]
    ) -> None:
        self.settings = settings
        self._parts = parts
        self._companies: dict[tuple[str, Episode], Abreast] = {}
        self.fanout = FanOut()
        self.timers = Timers()
        self.frames = SharedFrames(settings.burst_bytes)
        self.viewers: set[SocketViewer] = set()
        self._drain_started = drain_started
        self._random = random

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve those who are there, until cancelled."""
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self.fanout.run)
            self.nursery.start_soon(self.timers.run)
            task_status.started()
            await self._drain_started.wait()
            for viewer in tuple(self.viewers):
                self._send_off(viewer)
            await trio.sleep_forever()

    def enter(self, viewer: SocketViewer) -> None:
        """It is served from now on."""
        self.viewers.add(viewer)
        if self._drain_started.is_set():
            self._send_off(viewer)

    @contextmanager
    def following(self, follower: Follower, chat_id: str, episode: Episode) -> Iterator[Abreast]:
        """Follow a log for as long as the context lasts. All who do so are woken by one watch."""
        key = (chat_id, episode)
        company = self._companies.get(key)
        if company is None:
            company = self._companies[key] = Abreast(*key, self._parts, self.fanout, self.frames)
            company.watch.enter_context(self._parts.watching(*key, company.wake))
        company.followers.add(follower)
        try:
            yield company
        finally:
            company.followers.discard(follower)
            if not company.followers:
                company.watch.close()
                del self._companies[key]

    def _send_off(self, viewer: SocketViewer) -> None:
        stay_seconds, ending = leave(self._random, self.settings)
        self.timers.at(trio.current_time() + stay_seconds, partial(viewer.end, ending))


class SocketViewer:
    """Serves one subscription to one socket."""

    __slots__ = (
        "_beat",
        "_company",
        "_due",
        "_ending",
        "_gone",
        "_hall",
        "_hold",
        "_opened",
        "_pong",
        "_pulled",
        "_raw",
        "_reading",
        "_rest_over",
        "_says",
        "_send",
        "_sent_at",
        "_settings",
        "_standing",
        "_unsent",
    )

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._settings = hall.settings
        self._says = ViewerSays(hall.settings)
        self._opened = False
        """Whether the socket is its own, and not closed yet."""
        self._reading = trio.CancelScope()
        self._pulled: Pulled | None = None
        """None: not yet, or not any more, to be given anything."""
        self._due = False
        """Whether the fan-out has it on its list."""
        self._unsent: memoryview | None = None
        """The rest of a frame: nothing else may be sent."""
        self._pong = b""
        """The answer to the last ping that came while something was unsent."""
        self._rest_over: trio.Event | None = None
        """Set when nothing is unsent any more, or never will be sent, if somebody waits for that."""
        self._company: Abreast | None = None
        """Those who follow the same log."""
        self._standing = False
        """Whether the company feeds it: it takes nothing by itself then."""
        self._ending: Ending | None = None
        self._gone = False
        self._sent_at = 0.0
        self._beat: Timer | None = None
        self._hold: Timer | None = None

    # ------------------------------------------------------------------------------- its own task

    async def serve(
        self,
        subscription: Subscription,
        upgrade: Callable[[], tuple[socket.socket, bytes, bytes]],
        *,
        beside: Callable[[], Awaitable[Ending]] | None = None,
    ) -> None:
        """Carry the stream until it ends or the viewer is gone.

        Enters the subscription, and lets out what it raises then: nothing was sent yet. After that raises nothing of
        this package's. `upgrade` gives the non-blocking socket, which is closed here, what opens the WebSocket, and
        what the viewer said before that. `beside` runs beside the stream, and ends it with what it returns.
        """
        pulled = subscription.pulled(self.wake, self._follow)
        try:
            async with subscription:
                raw, accept, trailing = upgrade()
                self._open(raw, accept, pulled)
                try:
                    await (self._read(trailing) if beside is None else self._read_beside(trailing, beside))
                finally:
                    self._shut()
        except SubscriptionFailed as failed:
            _logger.error("a stream failed", exc_info=failed)
            self.end(FAILED)
        if self._ending is not None and not self._gone:
            await self._finish(self._ending)

    def _open(self, raw: socket.socket, accept: bytes, pulled: Pulled) -> None:
        self._raw = raw
        self._opened = True
        self._send = raw.send
        self._write(accept)
        self._pulled = pulled
        self._hall.enter(self)
        self._sent_at = trio.current_time()
        self._beat_at(self._sent_at + self._settings.application_heartbeat_seconds)
        self.wake()

    def _shut(self) -> None:
        """Nothing of the stream is sent any more."""
        self._fall_out()
        self._pulled = None
        self._hall.viewers.discard(self)
        for timer in (self._beat, self._hold):
            if timer is not None:
                timer.cancel()

    async def _read_beside(self, trailing: bytes, beside: Callable[[], Awaitable[Ending]]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with, beside)
            await self._read(trailing)
            nursery.cancel_scope.cancel()

    async def _end_with(self, beside: Callable[[], Awaitable[Ending]]) -> None:
        self.end(await beside())

    async def _read(self, trailing: bytes) -> None:
        """Take what the viewer says, until it is gone, silent for too long, or an ending was laid down."""
        with self._reading:
            self._heard()
            if trailing:
                self._take(trailing)
            while not self._gone and self._ending is None:
                self._take(await self._receive())
        if self._reading.cancelled_caught and not self._gone:
            self.end(Ending.silent(self._settings))

    def _heard(self) -> None:
        self._reading.deadline = trio.current_time() + self._settings.silence_seconds

    async def _receive(self) -> bytes:
        """What came; nothing when the viewer is gone."""
        try:
            while True:
                # Not by a socket of Trio's: while it waits, its frames take a kilobyte for each idle viewer.
                await trio.lowlevel.wait_readable(self._raw)
                with suppress(BlockingIOError):
                    return self._raw.recv(RECEIVE_BYTES)
        except (OSError, trio.ClosedResourceError):
            return b""

    def _take(self, data: bytes) -> None:
        if not data:
            self._gone = True
            return
        for said in self._says.take(data):
            if isinstance(said, Ending):
                self.end(said)
            elif isinstance(said, Left):
                self._answer(said.answer)
                self._gone = True
            elif isinstance(said, Pinged):
                self._answer(said.answer)
            self._heard()
            if self._gone or self._ending is not None:
                return

    def _answer(self, frame: bytes) -> None:
        """Between two frames, or after the one that is under way. Of several pings the last one is answered."""
        if self._unsent is None:
            self._write(frame)
        else:
            self._pong = frame

    async def _finish(self, ending: Ending) -> None:
        """Say why it ends, if that can be said, and wait for the viewer's answer, for a bounded time."""
        if self._unsent is not None:
            self._rest_over = trio.Event()
            await self._rest_over.wait()
        if not self._gone:
            self._write(close_frame(ending))
        with trio.move_on_after(CLOSE_SECONDS):
            while not self._gone:
                data = await self._receive()
                self._gone = not data or any(isinstance(said, Left) for said in self._says.take(data))

    def close(self) -> None:
        """Close the socket. Twice is fine. One who is left without an ending is told to come again, if it can be."""
        if not self._opened:
            return
        self._opened = False
        if not self._gone and self._ending is None and self._unsent is None:
            self._write(close_frame(Ending(GOING_AWAY)))
        self._gone = True
        trio.lowlevel.notify_closing(self._raw)
        self._raw.close()

    # ------------------------------------------------------------------- synchronous, by anybody

    def wake(self) -> None:
        """There is news for it."""
        if not self._due:
            self._due = True
            self._hall.fanout.add(self)

    def end(self, ending: Ending) -> None:
        """The stream ends, for this reason or one that was given before."""
        self._ending = self._ending or ending
        self._reading.cancel()

    @contextmanager
    def _follow(self, chat_id: str, episode: Episode) -> Iterator[None]:
        with self._hall.following(self, chat_id, episode) as self._company:
            try:
                yield
            finally:
                self._company = None

    def step(self, now: float, room: int) -> int:
        """Send what is next in the stream, if there is anything."""
        self._due = False
        self._fall_out()
        pulled = self._pulled
        if pulled is not None and self._unsent is None and self._ending is None:
            try:
                self._send_next(pulled, now)
            except Exception as failure:  # it ends one stream, not all that are carried here
                _logger.error("a stream failed", exc_info=failure)
                self.end(FAILED)
        return 1

    def _send_next(self, pulled: Pulled, now: float) -> None:
        taken = pulled.next()
        if taken is not None:
            self._sent_at = now
            self._write(self._hall.frames.of(taken))
        if pulled.more and taken is not None:
            self.wake()
        elif self._unsent is None and not self._stand(pulled) and taken is None:
            self._wait(pulled)

    def _stand(self, pulled: Pulled) -> bool:
        """Go on with those who have the same of the log, if there is nothing but rows to come."""
        if self._company is None or pulled.look_at is not None or pulled.ending is not None:
            return False
        seq = pulled.has_all_rows
        self._standing = seq is not None and self._company.stand(self, self._send, seq)
        return self._standing

    def _fall_out(self) -> None:
        """Go on alone, from what it has had with the others."""
        if self._standing and self._company is not None and self._pulled is not None:
            self._standing = False
            self._sent_at = max(self._sent_at, self._company.sent_at)
            self._pulled.had(self._company.leave(self))

    def fell_out(self, had_seq: int, frame: bytes, sent: int | None) -> None:
        """See `Follower`."""
        self._standing = False
        if self._pulled is not None:
            self._pulled.had(had_seq)
        if sent is None:
            self._lose()
        else:
            self._wait_for_socket(frame, sent)

    def _wait(self, pulled: Pulled) -> None:
        if pulled.ending is not None:
            self.end(Ending.of(pulled.ending))
        elif pulled.look_at is not None:
            if self._hold is not None:
                self._hold.cancel()
            self._hold = self._hall.timers.at(pulled.look_at, self.wake)

    def _beat_at(self, moment: float) -> None:
        self._beat = self._hall.timers.at(moment, self._keep_alive)

    def _keep_alive(self) -> None:
        """Say that the connection lives, if nothing else was sent for so long."""
        now, pause = trio.current_time(), self._settings.application_heartbeat_seconds
        if self._standing and self._company is not None:
            self._sent_at = max(self._sent_at, self._company.sent_at)
        if self._sent_at + pause <= now and self._unsent is None and self._ending is None:
            self._sent_at = now
            self._write(HEARTBEAT_FRAME)
        due = self._sent_at + pause
        self._beat_at(due if due > now else now + pause)

    def _write(self, frame: bytes) -> None:
        """Send it, as far as the socket takes it at once. Nothing may be unsent."""
        try:
            sent = self._send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose()
            return
        if sent != len(frame):
            self._wait_for_socket(frame, sent)

    def _wait_for_socket(self, frame: bytes, sent: int) -> None:
        """Nothing but the rest may be sent now, by the company neither."""
        self._fall_out()
        self._unsent = memoryview(frame)[sent:]
        self._hall.nursery.start_soon(self._send_rest)

    # ------------------------------------------------------------- a task while the socket is full

    async def _send_rest(self) -> None:
        """Send the rest of a frame as the viewer takes it; one who takes nothing for too long is cut."""
        with trio.CancelScope() as patience, suppress(OSError, trio.ClosedResourceError):
            while self._unsent is not None:
                patience.deadline = trio.current_time() + self._settings.stalled_send_seconds
                await trio.lowlevel.wait_writable(self._raw)
                self._send_more(self._unsent)
        if self._unsent is not None:
            self._lose()
        elif self._pong:
            pong, self._pong = self._pong, b""
            self._write(pong)
        if self._rest_over is not None and (self._unsent is None or self._gone):
            self._rest_over.set()
        self.wake()

    def _send_more(self, rest: memoryview) -> None:
        with suppress(BlockingIOError):
            sent = self._send(rest)
            self._unsent = rest[sent:] if sent < len(rest) else None

    def _lose(self) -> None:
        """Not another byte: what the system still holds for the viewer is dropped with the connection."""
        with suppress(OSError):
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._gone = True
        self._reading.cancel()
