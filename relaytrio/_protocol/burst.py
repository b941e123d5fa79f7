"""Rows and bursts: cut, join, trim what is known, notice a gap. Nothing here decodes a row.

A row is one encoded part event, exactly as a viewer gets it. JSON as we write it has no raw newline, so rows joined
by `,\\n` are counted and cut without decoding, and `[` + joined rows + `]` is a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from .events import Episode

SEPARATOR = b",\n"


@attrs.frozen
class Burst:
    """Consecutive rows of one episode that travel together."""

    episode: Episode
    first_seq: int
    count: int
    rows: bytes
    """`count` rows, joined by `SEPARATOR`."""
    truncated: bool = False
    """The log that it comes from has lost the rows before `first_seq`: that is no gap."""

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1

    def split(self) -> list[bytes]:
        """The single rows."""
        return self.rows.split(SEPARATOR) if self.count else []


def join(episode: Episode, first_seq: int, rows: Sequence[bytes], *, truncated: bool = False) -> Burst:
    """The burst of consecutive rows that begins at `first_seq`."""
    return Burst(episode, first_seq, len(rows), SEPARATOR.join(rows), truncated)


def how_many_fit(sizes: Sequence[int], limit_bytes: int) -> int:
    """How many of the first rows of these sizes fit into one burst of `limit_bytes`: at least one, if there is one."""
    total = -len(SEPARATOR)
    for number, size in enumerate(sizes):
        total += size + len(SEPARATOR)
        if total > limit_bytes and number:
            return number
    return len(sizes)


def is_gap(burst: Burst, last_seq: int) -> bool:
    """Whether rows are missing between a copy that ends at `last_seq` and this burst."""
    return burst.first_seq > last_seq + 1 and not burst.truncated


def unknown_rows(burst: Burst, last_seq: int) -> list[bytes]:
    """The rows of the burst beyond `last_seq`: whatever is sent twice is trimmed by its number."""
    known = last_seq + 1 - burst.first_seq
    return burst.split()[known:] if known > 0 else burst.split()
