"""What has come over a stream and has not been taken, in memory that is used again and again.

To append what comes to what is there, and to cut off what is taken, costs more than to read it where much comes: the
system gives fresh memory for each large piece, page by page. Must not know: streams, what the bytes say. Who calls:
`_stream_frames.py`.
"""

from __future__ import annotations

from typing import Final

SMALL_BYTES: Final = 4096
"""What is asked for at first: many connections never have more waiting."""
SMALL_READS: Final = 16
"""After so many in a row that brought less, so little is asked for again. An idle connection's heartbeats are such."""
KEPT: Final = 4
"""Times what is asked for: memory that is larger is given back when nothing waits in it."""


class ReceiveBuffer:
    """A queue of bytes. Those that wait are `data[begin:end]`; all methods are synchronous.

    `most_bytes` is the most that is asked for at once. So much is asked for only where so much comes.
    """

    __slots__ = ("_ask_bytes", "_most_bytes", "_small_reads", "_view", "begin", "data", "end")

    def __init__(self, most_bytes: int, came: bytes = b"") -> None:
        self._most_bytes = most_bytes
        self._ask_bytes = min(SMALL_BYTES, most_bytes)
        self._small_reads = 0
        self.data = bytearray(max(self._ask_bytes, len(came)))
        self.data[: len(came)] = came
        self._view = memoryview(self.data)
        self.begin = 0
        self.end = len(came)

    def __len__(self) -> int:
        return self.end - self.begin

    def space(self) -> memoryview:
        """Where what comes next is to be put, from its beginning on; see `put`. So many bytes are to be asked for.

        What waits may be moved: no place in `data` holds beyond this.
        """
        if self.begin == self.end:
            self.begin = self.end = 0
            if not self._ask_bytes <= len(self.data) <= KEPT * self._ask_bytes:
                self._take_memory(self._ask_bytes)
        elif len(self.data) - self.end < self._ask_bytes:
            self._make_space()
        return self._view[self.end : self.end + self._ask_bytes]

    def put(self, count: int) -> None:
        """So many bytes have come, and are in the space."""
        self.end += count
        if count < SMALL_BYTES:
            self._small_reads += 1
            if self._small_reads == SMALL_READS:
                self._ask_bytes = min(SMALL_BYTES, self._most_bytes)
        else:
            self._small_reads = 0
            if count == self._ask_bytes:
                self._ask_bytes = min(4 * count, self._most_bytes)

    def take(self, count: int, behind: int = 0) -> memoryview:
        """The next bytes, which wait no longer, nor do those that they are behind. There must be so many.

        The view holds until `space` is called.
        """
        begin = self.begin + behind
        self.begin = begin + count
        return self._view[begin : self.begin]

    def _make_space(self) -> None:
        """Move what waits to the beginning, of more memory if it needs it."""
        waiting = self._view[self.begin : self.end]
        needed = len(waiting) + self._ask_bytes
        if len(self.data) < needed:
            self._take_memory(max(needed, 2 * len(self.data)))
        self._view[: len(waiting)] = waiting
        self.begin, self.end = 0, len(waiting)

    def _take_memory(self, size: int) -> None:
        self.data = bytearray(size)
        self._view = memoryview(self.data)
