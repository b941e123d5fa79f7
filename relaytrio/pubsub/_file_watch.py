"""When may a SQLite file have been written? As the operating system tells it, or every so often.

On Linux, inotify tells of every write to the write-ahead log, and nothing is done while there is none. It tells too
early: the commit that was written can be read only when its writer has also moved the log's end, in shared memory,
after a flush to disk with `synchronous=FULL`. So after each write a few looks follow, at growing distances; and a slow
look remains, for what inotify does not see (a network file system, a queue of it that overflowed).

Elsewhere, or where the system has no watch left to give, it is a look every 20 ms.

Must not know: SQLite, hints. Who calls: `SqlitePubSub`.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import trio

POLL_SECONDS = 0.02
"""How late a hint may be without inotify. Fifty looks a second took 2 % of one core of a small virtual machine while
nothing happened, nearly all of it for waking the process up; the look itself is 7 microseconds."""
SLOW_POLL_SECONDS = 1.0
"""With inotify: for what it does not see."""
LOOKS_AFTER_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
"""After a write, until its commit can be read: each counted from the look before."""

_MODIFIED, _MOVED_TO, _CREATED = 0x2, 0x80, 0x100
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, getattr(os, "O_CLOEXEC", 0)
_EVENT = struct.Struct("iIII")


class FileWatch(Protocol):
    """One waiter."""

    async def wait(self) -> None:
        """Return when the file may have been written since the last return, at once or a moment ago. A checkpoint."""

    def saw_news(self) -> None:
        """The last write was read: no more looks for it."""

    def close(self) -> None:
        """Nobody waits any more."""


def watch_file(path: Path) -> FileWatch:
    """A watch of that database. Its folder has to be there."""
    if sys.platform == "linux":
        try:
            return _Notified(path)
        except OSError:
            pass  # the system's limit of watches: every user of this machine shares it
    return Polling(POLL_SECONDS)


class Polling:
    """A look every so often."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def wait(self) -> None:
        await trio.sleep(self._seconds)

    def saw_news(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Notified:
    """A look after every write, for a moment, and a slow one. Raises `OSError` where there is no such thing."""

    def __init__(self, path: Path) -> None:
        # The log comes and goes with its users: it is found by its name in the folder.
        self._names = {os.fsencode(path.name + "-wal"), os.fsencode(path.name)}
        self._looks: Iterator[float] = iter(())
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _checked(libc.inotify_init1(_NONBLOCK | _CLOEXEC))
        try:
            events = ctypes.c_uint32(_MODIFIED | _MOVED_TO | _CREATED)
            _checked(libc.inotify_add_watch(self._fd, os.fsencode(path.parent), events))
        except BaseException:
            os.close(self._fd)
            raise

    async def wait(self) -> None:
        look_after = next(self._looks, math.inf)
        with trio.move_on_after(min(look_after, SLOW_POLL_SECONDS)):
            while not self._was_written():
                await trio.lowlevel.wait_readable(self._fd)
            self._looks = iter(LOOKS_AFTER_SECONDS)
            await trio.lowlevel.checkpoint()

    def saw_news(self) -> None:
        self._looks = iter(())

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)

    def _was_written(self) -> bool:
        """Take what inotify has told so far."""
        try:
            told = os.read(self._fd, 64 * 1024)
        except BlockingIOError:
            return False
        return any(name in self._names or not name for name in _names(told))


def _names(told: bytes) -> Iterator[bytes]:
    """The names in inotify's events; an empty one is a queue that overflowed."""
    at = 0
    while at < len(told):
        _, _, _, length = _EVENT.unpack_from(told, at)
        at += _EVENT.size
        yield told[at : at + length].rstrip(b"\0")
        at += length


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
