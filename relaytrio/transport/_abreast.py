"""Viewers who are abreast: they have the same rows of one log, and get what follows in the same bytes.

A burst costs one look at the log and one frame, however many stand here, and each of them nothing but one send. Who
does not take a frame whole, or has news of its own (a message, a status, an end), falls out and goes on by itself, in
the viewer's own steps; when it has all that the log has, it may stand here again.

A large company is served in several steps, so that the other tasks of the process run between them: meanwhile it is
in two parts, those who have the burst under way and those who have not.

Must not know: sockets, what a viewer does by itself. Who calls: the fan-out (`step`), viewers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, TypeAlias

from .._parts import PartLog, PartLogs
from .._protocol.events import Episode
from ._fanout import FanOut
from ._server_frames import SharedFrames

Send: TypeAlias = Callable[[bytes], int]
"""A non-blocking send: how many bytes were taken. Raises `OSError`."""


class Follower(Protocol):
    """What this file knows of a viewer. All of it is synchronous."""

    def wake(self) -> None:
        """There is news for it, to be looked for in its own stream."""

    def fell_out(self, had_seq: int, frame: bytes, sent: int | None) -> None:
        """It has the rows up to `had_seq`, the last of them in this frame, of which so much went out (None: lost)."""


class Abreast:
    """Those who follow one log: some stand, the others go by themselves."""

    def __init__(self, chat_id: str, episode: Episode, parts: PartLogs, fanout: FanOut, frames: SharedFrames) -> None:
        self.sent_at = 0.0
        """When those who stand were last sent anything."""
        self.followers: set[Follower] = set()
        self.watch = ExitStack()
        """What wakes it."""
        self._chat_id = chat_id
        self._episode = episode
        self._parts = parts
        self._fanout = fanout
        self._frames = frames
        self._log: PartLog | None = None
        self._due = False
        self._news = False
        """Whether those who go by themselves are to be told of a change."""
        self._behind: dict[Follower, Send] = {}
        """Those who stand and have the rows up to `_seq`."""
        self._seq = 0
        self._ahead: dict[Follower, Send] = {}
        """Those who stand and have the burst under way too."""
        self._frame = b""
        """The burst under way; empty: none is."""
        self._next_seq = 0

    def __len__(self) -> int:
        """How many stand."""
        return len(self._behind) + len(self._ahead)

    def wake(self) -> None:
        """The log has changed: it grew, ended, or is another one."""
        self._news = True
        self._go_on()

    def _go_on(self) -> None:
        if not self._due:
            self._due = True
            self._fanout.add(self)

    def stand(self, follower: Follower, send: Send, had_seq: int) -> bool:
        """Let it stand with the others, if it has the same as they. Nothing of its stream may be left to be sent."""
        if not self:
            self._seq, self._frame = had_seq, b""
        if had_seq == self._seq and not self._frame:
            self._behind[follower] = send
        elif had_seq == self._next_seq and self._frame:
            self._ahead[follower] = send
        else:
            return False
        return True

    def leave(self, follower: Follower) -> int:
        """It goes on by itself, and has the rows up to what this gives."""
        if self._behind.pop(follower, None) is not None:
            return self._seq
        del self._ahead[follower]
        return self._next_seq

    def step(self, now: float, room: int) -> int:
        """Send what is next to at most `room` of those who stand; gives how many steps that was."""
        self._due = False
        if self._news:
            self._news = False
            for follower in tuple(self.followers):
                if follower not in self._behind and follower not in self._ahead:
                    follower.wake()
        if not self._frame and not self._begin(now):
            return 1
        steps = self._send(min(room, len(self._behind)))
        if not self._behind:
            self._behind, self._ahead, self._seq, self._frame = self._ahead, {}, self._next_seq, b""
        if self._frame or self._more:
            self._go_on()
        return steps

    def _begin(self, now: float) -> bool:
        """Take the next burst for those who stand, if there is one that follows what they have."""
        log = self._find() if self._behind else None
        burst = None if log is None else log.read(self._seq, self._parts.settings.burst_bytes)
        if burst is None:
            return False
        if burst.truncated:
            for follower in tuple(self._behind):
                follower.wake()  # each is told what it has lost
            return False
        self._frame, self._next_seq, self.sent_at = self._frames.of(burst), burst.last_seq, now
        return True

    def _send(self, count: int) -> int:
        behind, ahead, frame, size = self._behind, self._ahead, self._frame, len(self._frame)
        for _ in range(count):
            follower, send = behind.popitem()
            sent: int | None
            try:
                sent = send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = None
            if sent == size:
                ahead[follower] = send
            else:
                follower.fell_out(self._next_seq, frame, sent)
        return count or 1

    @property
    def _more(self) -> bool:
        log = self._log
        return log is not None and not log.forgotten and log.last_seq > self._seq

    def _find(self) -> PartLog | None:
        if self._log is None or self._log.forgotten:
            self._log = self._parts.find(self._chat_id, self._episode)
        return self._log
