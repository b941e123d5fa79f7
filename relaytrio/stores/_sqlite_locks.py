"""What tells at once that a replica's process has died: a `flock` on one file per replica, freed by the kernel.

A lock names the boot of the machine in which it was taken: after a restart, or on another machine that sees the same
directory, it says nothing. Files are opened so that programs started by the replica do not inherit them (a forked copy
of the process does: then the lock outlives it, and the heartbeat decides). Where any of this does not work, no lock is
claimed and the heartbeat alone decides.

`take`, `sweep` and `release` are called while the database is locked for writing, so that no two processes make and
remove files at the same time. Must not know: rows. Who calls: `_sqlite_replicas.py`, `SqliteStore`.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

try:
    import fcntl
except ImportError:  # no such locks on this platform
    _LOCKS = False
else:
    _LOCKS = True

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SUFFIX = ".lock"


def boot_id() -> str:
    """What names the present life of this machine's kernel; empty where it cannot be told, or has no locks."""
    try:
        return _BOOT_ID.read_text().strip() if _LOCKS else ""
    except OSError:
        return ""


class ReplicaLocks:
    """The locks of the replicas of one database file, in a directory beside it; made when the first lock is taken."""

    def __init__(self, directory: Path, boot: str) -> None:
        self._directory = directory
        self._name = f"flock:{boot}" if boot else ""
        self._held: dict[str, int] = {}

    def take(self, replica_id: str) -> str:
        """Hold the replica's lock until `release` or `close`. What names it; empty if it cannot be had."""
        if not self._name:
            return ""
        if self._still_holds(replica_id):
            return self._name
        try:
            self._directory.mkdir(exist_ok=True)
            self._held[replica_id] = _locked(self._path(replica_id), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        except OSError:
            return ""
        return self._name

    def release(self, replica_id: str) -> None:
        """Free the lock and remove its file. One that is not held here is left alone."""
        descriptor = self._held.pop(replica_id, None)
        if descriptor is not None:
            self._path(replica_id).unlink(missing_ok=True)
            os.close(descriptor)

    def is_released(self, replica_id: str, lock: str) -> bool:
        """Whether this lock was taken in the present life of the machine and nobody holds it now."""
        if not self._name or lock != self._name:
            return False
        return _is_free(self._path(replica_id))

    def sweep(self, replica_ids: Collection[str]) -> None:
        """Remove the files that belong to none of these and are not locked."""
        kept = {self._path(replica_id).name for replica_id in replica_ids}
        for path in self._directory.glob(f"*{_SUFFIX}"):
            if path.name not in kept and _is_free(path):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Free all locks; their files stay, as the rows do."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _path(self, replica_id: str) -> Path:
        return self._directory / (quote(replica_id, safe="") + _SUFFIX)

    def _still_holds(self, replica_id: str) -> bool:
        """Whether the file that others would look at is the one that is locked here; if it is not, let that one go."""
        descriptor = self._held.get(replica_id)
        if descriptor is None:
            return False
        try:
            if os.path.samestat(os.fstat(descriptor), self._path(replica_id).stat()):
                return True
        except FileNotFoundError:
            pass
        os.close(self._held.pop(replica_id))
        return False


def _locked(path: Path, flags: int, kind: int) -> int:
    """A descriptor that holds the lock. Raises `OSError` if it cannot be had at once."""
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_free(path: Path) -> bool:
    """Whether the file is there and locked by nobody. One that is gone says nothing: its lock lives on without it."""
    try:
        os.close(_locked(path, os.O_RDONLY, fcntl.LOCK_SH))
    except OSError:
        return False
    return True
