"""Part logs of this replica: append, extend from a burst, read from a cursor, wait, seal, forget.

Parts are addressed, not forwarded. A worker appends rows to the log of its episode; a relay extends the *copy* of a
remote episode's log; viewers and the parts endpoint read with a cursor and take everything since it at once. No reader
has a queue here, so a slow one costs nothing, and a late leg can write nothing but its own, older episode's log.

Must not know: chats' status, sockets, who a viewer is. Who calls: the worker (`make`), the relay (`filling`), the parts
endpoint and subscriptions (`find`, `watching`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, Literal, NoReturn, TypeAlias, TypeVar

import trio

from ._protocol.burst import SEPARATOR, Burst, count_rows, is_gap, rows_from, rows_that_fit, unknown_rows
from ._protocol.events import Episode
from ._settings import Settings
from ._wakeup import Flag, Wakeup

Key: TypeAlias = tuple[str, Episode]
Wake: TypeAlias = Callable[[], None]
Resting: TypeAlias = Callable[[], bool]

CHUNK_ROWS = 256
"""Rows that are kept together at most, of those that a worker appends at once: a reader may stand between any two, and
what is before it in its chunk has to be passed over."""


class PartLog:
    """The rows of one episode on this replica. All methods are synchronous.

    Made here (by the worker), it ends when it is sealed. A copy of a remote log also counts as ended while nobody
    fills it: nothing is to be waited for then.
    """

    def __init__(self, logs: PartLogs, chat_id: str, episode: Episode, *, made_here: bool) -> None:
        self.chat_id = chat_id
        self.episode = episode
        self.made_here = made_here
        self.sealed = False
        self.forgotten = False
        """No longer among this replica's logs: another one may have its place."""
        self.lost: Literal["truncated", "gap"] = "truncated"
        """Why the rows before `first_seq` are not here, for readers that have not had them."""
        self.last_seq = 0
        """The seq of the last row that ever came; 0 before the first."""
        self.size_bytes = 0
        self.left_alone = Flag()
        """Set when the last filler that was not resting has left the copy unsealed: the others must dial now."""
        self._fillers: list[Resting] = []
        self._logs = logs
        self._limit_bytes = logs.settings.part_log_bytes
        self._watchers = logs._watchers.setdefault((chat_id, episode), {})
        self._chunks: list[bytes] = []
        """Consecutive rows as they came together, joined by `SEPARATOR`: a burst is kept whole."""
        self._ends = array("q")
        """The seq of each chunk's last row."""
        self._ends_bytes = array("q")
        """How many bytes of rows, each with a separator, there ever were up to each chunk's end."""
        self._first_seq = 1
        self._bytes_ever = 0
        self._cached: tuple[int, int, int, Burst] | None = None

    @property
    def first_seq(self) -> int:
        """The seq of the first row that is still here; `last_seq + 1` if none is."""
        return self._first_seq

    @property
    def ended(self) -> bool:
        """Whether no more rows are to be expected: sealed, or a copy that nobody fills."""
        return self.sealed or (not self.made_here and not self._fillers)

    def append_row(self, row: bytes) -> None:
        """Add the next row. Raises `trio.ClosedResourceError` once it is sealed."""
        if self.sealed:
            raise self._closed()
        self._add(row, 1)

    def append(self, rows: Sequence[bytes]) -> None:
        """Add the next rows. Raises `trio.ClosedResourceError` once it is sealed."""
        if self.sealed:
            raise self._closed()
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[start : start + CHUNK_ROWS]
            self._add(SEPARATOR.join(chunk), len(chunk))

    def _closed(self) -> trio.ClosedResourceError:
        return trio.ClosedResourceError(f"the log of episode {self.episode} is sealed")

    def extend(self, burst: Burst, *, past_gap: bool = False) -> bool:
        """Add what is unknown of a burst to a copy. False, and nothing is added, if rows are missing before it.

        With `past_gap` the copy goes on from what is at hand, and its readers are told (`lost`). A copy that has ended
        takes nothing more: it may have been forgotten.
        """
        if self.ended:
            return True
        if burst.last_seq <= self.last_seq:
            return True
        if burst.first_seq == self.last_seq + 1:
            self._add(burst.rows, burst.count)
            return True
        gap = is_gap(burst, self.last_seq)
        if gap and not past_gap:
            return False
        if burst.first_seq > self.last_seq + 1:
            self._forget_chunks(len(self._chunks))
            self.lost = "gap" if gap else "truncated"
            self._first_seq = burst.first_seq
            self.last_seq = burst.first_seq - 1
        self._add(unknown_rows(burst, self.last_seq), burst.last_seq - self.last_seq)
        return True

    def seal(self, last_seq: int | None = None) -> bool:
        """No row will follow. False, and not sealed, if a copy has not got all rows up to `last_seq`."""
        if last_seq is not None and last_seq > self.last_seq:
            return False
        if not self.sealed:
            self.sealed = True
            self._logs._ended(self)
        return True

    def read(self, after_seq: int, limit_bytes: int) -> Burst | None:
        """Everything after `after_seq` that fits into `limit_bytes`, at least one row; None if there is nothing.

        A burst that does not begin at `after_seq + 1` says so (`truncated`): rows before it are gone, see `lost`.
        """
        if after_seq >= self.last_seq or not self._chunks:
            return None
        if self._cached is not None and self._cached[:3] == (after_seq, self.last_seq, limit_bytes):
            return self._cached[3]
        burst = self._cut(after_seq, limit_bytes)
        # Readers wake together and ask for the same rows: they are joined once.
        self._cached = (after_seq, self.last_seq, limit_bytes, burst)
        return burst

    def _cut(self, after_seq: int, limit_bytes: int) -> Burst:
        """Whole chunks as far as they fit, after the rest of the one in which the reader stands, if it is one."""
        if len(self._ends) > 1 and after_seq == self._ends[-2] and len(self._chunks[-1]) <= limit_bytes:
            # As nearly always: the reader has all but what came last.
            return Burst(self.episode, after_seq + 1, self.last_seq - after_seq, self._chunks[-1])
        first_seq = max(after_seq + 1, self._first_seq)
        truncated = first_seq > after_seq + 1
        chunk = bisect_left(self._ends, first_seq)
        begins_at = self._first_seq if chunk == 0 else self._ends[chunk - 1] + 1
        head = rows_from(self._chunks[chunk], first_seq - begins_at)
        if len(head) > limit_bytes:
            rows = rows_that_fit(head, limit_bytes)
            return Burst(self.episode, first_seq, count_rows(rows), rows, truncated)
        left_bytes = limit_bytes - len(head)
        fitting = bisect_right(self._ends_bytes, self._ends_bytes[chunk] + left_bytes)
        last_seq = self._ends[fitting - 1]
        pieces = [head, *self._chunks[chunk + 1 : fitting]]
        if fitting < len(self._chunks):
            left_bytes -= self._ends_bytes[fitting - 1] - self._ends_bytes[chunk] + len(SEPARATOR)
            rows = rows_that_fit(self._chunks[fitting], left_bytes, at_least_one=False)
            if rows:
                pieces.append(rows)
                last_seq += count_rows(rows)
        rows = pieces[0] if len(pieces) == 1 else SEPARATOR.join(pieces)
        return Burst(self.episode, first_seq, last_seq + 1 - first_seq, rows, truncated)

    def _add(self, rows: bytes, count: int) -> None:
        size_bytes = len(rows) + len(SEPARATOR)
        self.last_seq += count
        self._bytes_ever += size_bytes
        self._chunks.append(rows)
        self._ends.append(self.last_seq)
        self._ends_bytes.append(self._bytes_ever)
        self.size_bytes += size_bytes
        if self.size_bytes > self._limit_bytes:
            # A sixteenth more than needed: dropping a row for every row that comes would move the whole list.
            self._shrink_to(self._limit_bytes * 15 // 16)
        logs = self._logs
        logs.size_bytes += size_bytes
        if self.made_here:
            logs.rows_made += count
        else:
            logs.rows_copied += count
        if logs.size_bytes > logs._limit_bytes:
            logs._make_room()
        if self._watchers:
            self._wake()

    def _shrink_to(self, size_bytes: int) -> None:
        """Drop the oldest rows, but never the last one."""
        first_seq, excess = self._first_seq, self.size_bytes - size_bytes
        if excess > 0:
            forgotten_bytes = self._bytes_ever - self.size_bytes
            chunks = bisect_right(self._ends_bytes, forgotten_bytes + excess)
            self._forget_chunks(min(chunks, len(self._chunks) - 1))
            self._forget_some_rows(self.size_bytes - size_bytes)
        if self._first_seq > first_seq:
            self.lost = "truncated"

    def _forget_chunks(self, count: int) -> None:
        if not count:
            return
        self._first_seq = self._ends[count - 1] + 1
        self._count(self._bytes_ever - self.size_bytes - self._ends_bytes[count - 1])
        del self._chunks[:count], self._ends[:count], self._ends_bytes[:count]
        self._cached = None

    def _forget_some_rows(self, size_bytes: int) -> None:
        """The first rows of the first chunk, at least so many bytes with their separators; never all of them."""
        if size_bytes <= 0:
            return
        rows = self._chunks[0]
        cut = rows.find(SEPARATOR, max(0, size_bytes - len(SEPARATOR)))
        if cut < 0 and len(self._chunks) > 1:
            self._forget_chunks(1)
            return
        if cut < 0:
            cut = rows.rfind(SEPARATOR)
        if cut < 0:
            return
        kept = rows[cut + len(SEPARATOR) :]
        self._first_seq += count_rows(rows) - count_rows(kept)
        self._count(len(kept) - len(rows))
        self._chunks[0] = kept
        self._cached = None

    def _count(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self._logs.size_bytes += size_bytes

    def _wake(self) -> None:
        for wake in tuple(self._watchers.values()):
            wake()


class PartLogs:
    """All part logs of one replica, within their limits. Its methods are synchronous, but for `run`."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = trio.current_time) -> None:
        self.settings = settings
        self.size_bytes = 0
        self.rows_made = 0
        """Rows that were made here, ever."""
        self.rows_copied = 0
        """Rows that came over legs and were not known here before, ever."""
        self._limit_bytes = settings.part_logs_bytes
        self._clock = clock
        self._logs: dict[Key, PartLog] = {}
        self._ended_at: dict[Key, float] = {}
        """When each ended log ended, in that order; it is forgotten `sealed_log_seconds` later."""
        self._forgetting = Wakeup()
        self._watchers: dict[Key, dict[object, Wake]] = {}
        """Of each log that is here or watched."""
        self._chat_wakes: dict[str, dict[object, Callable[[Episode], None]]] = {}

    def __len__(self) -> int:
        return len(self._logs)

    @property
    def watched(self) -> list[Key]:
        """The logs that somebody watches, whether they are here or not."""
        return [key for key, watchers in self._watchers.items() if watchers]

    def find(self, chat_id: str, episode: Episode) -> PartLog | None:
        """The log of that episode, if there is one here."""
        return self._logs.get((chat_id, episode))

    def make(self, chat_id: str, episode: Episode) -> PartLog:
        """The log of an episode that this replica generates."""
        key = (chat_id, episode)
        if key in self._logs:
            raise ValueError(f"episode {episode} has a log here already")
        return self._new_log(key, made_here=True)

    @contextmanager
    def filling(self, chat_id: str, episode: Episode, resting: Resting = lambda: False) -> Iterator[PartLog]:
        """The copy of a remote episode's log, attended for as long as the context lasts. Several may fill one copy.

        `resting` says whether this filler has no leg and is waiting to dial again.
        """
        key = (chat_id, episode)
        log = self._logs.get(key) or self._new_log(key, made_here=False)
        log._fillers.append(resting)
        self._ended_at.pop(key, None)
        try:
            yield log
        finally:
            log._fillers.remove(resting)
            self._filler_left(log, rested=resting())

    def watching(self, chat_id: str, episode: Episode, wake: Wake) -> AbstractContextManager[None]:
        """Call `wake` for as long as the context lasts, whenever that log appears, grows, ends or is forgotten."""
        return _Membership(self._watchers, (chat_id, episode), wake, kept=self._logs)

    def watching_chat(self, chat_id: str, wake: Callable[[Episode], None]) -> AbstractContextManager[None]:
        """Call `wake` with the episode whenever a log of that chat appears."""
        return _Membership(self._chat_wakes, chat_id, wake, kept=())

    async def run(self) -> NoReturn:
        """Forget ended logs when their time has come. Costs nothing while there is none."""
        while True:
            while not self._ended_at:
                await self._forgetting.wait()
            first = next(iter(self._ended_at.values()))
            await trio.sleep_until(first + self.settings.sealed_log_seconds)
            self._forget_old()

    def _forget_old(self) -> None:
        now = self._clock()
        for key, ended_at in list(self._ended_at.items()):
            # The same sum as in `run`: one that rounds otherwise would have it wake, forget nothing, and wake again.
            if ended_at + self.settings.sealed_log_seconds > now:
                break
            self._forget(key)

    def _forget(self, key: Key) -> None:
        del self._ended_at[key]
        log = self._logs.pop(key)
        log.forgotten = True
        self.size_bytes -= log.size_bytes
        log._wake()
        # Whoever was woken may have left already, and others have come.
        if not log._watchers and self._watchers.get(key) is log._watchers:
            del self._watchers[key]

    def _new_log(self, key: Key, *, made_here: bool) -> PartLog:
        log = self._logs[key] = PartLog(self, *key, made_here=made_here)
        for wake in tuple(self._chat_wakes.get(log.chat_id, {}).values()):
            wake(log.episode)
        log._wake()
        return log

    def _filler_left(self, log: PartLog, *, rested: bool) -> None:
        if log.ended:
            self._ended(log)
        elif not rested and all(resting() for resting in log._fillers):
            # They lived on the leg of the one that left, whatever their own delays.
            log.left_alone.set()

    def _ended(self, log: PartLog) -> None:
        key = (log.chat_id, log.episode)
        if not log._fillers and self._logs.get(key) is log:
            self._ended_at.pop(key, None)
            self._ended_at[key] = self._clock()
            self._forgetting.set()
        log._wake()

    def _make_room(self) -> None:
        """Ended logs go first, the longest ended before the others; then the largest log loses its oldest rows."""
        target = self._limit_bytes * 15 // 16
        for key in list(self._ended_at):
            if self.size_bytes <= target:
                return
            self._forget(key)
        while self.size_bytes > target:
            largest = max(self._logs.values(), key=lambda log: log.size_bytes)
            before = largest.size_bytes
            largest._shrink_to(max(before - (self.size_bytes - target), before // 2))
            if largest.size_bytes == before:
                return


_K = TypeVar("_K")
_V = TypeVar("_V")


class _Membership(Generic[_K, _V]):
    """Be one of a group for as long as the context lasts; equal values are members each for itself.

    A group of nobody is forgotten, unless its key is among those that are kept.
    """

    __slots__ = ("_groups", "_kept", "_key", "_value")

    def __init__(self, groups: dict[_K, dict[object, _V]], key: _K, value: _V, *, kept: Container[_K]) -> None:
        self._groups = groups
        self._key = key
        self._value = value
        self._kept = kept

    def __enter__(self) -> None:
        self._groups.setdefault(self._key, {})[self] = self._value

    def __exit__(self, *details: object) -> None:
        members = self._groups[self._key]
        del members[self]
        if not members and self._key not in self._kept:
            del self._groups[self._key]
