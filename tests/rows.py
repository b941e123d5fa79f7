"""Rows for tests of part logs: of a known size, and telling their seq."""

from __future__ import annotations

from relaytrio._parts import PartLog
from relaytrio._protocol.burst import SEPARATOR, Burst, join
from relaytrio._protocol.events import Episode
from relaytrio._settings import Settings

CHAT = "chat"
EPISODE = Episode(57, 1, "p8r2dq7w3e")
NEXT = Episode(58, 1, "p8r2dq7w3e")
SETTINGS = Settings()
PLENTY = 64 * 1024
ROW_BYTES = 100
WEIGHT = ROW_BYTES + len(SEPARATOR)
"""What one row of `ROW_BYTES` counts."""


def row(seq: int, size: int = ROW_BYTES) -> bytes:
    """A row of about the size of real ones: no shorter than an envelope, and telling its seq."""
    return (b'{"seq":%d,"x":"' % seq).ljust(size - 2, b"x") + b'"}'


def rows(first_seq: int, last_seq: int) -> list[bytes]:
    return [row(seq) for seq in range(first_seq, last_seq + 1)]


def burst(first_seq: int, last_seq: int, *, truncated: bool = False) -> Burst:
    return join(EPISODE, first_seq, rows(first_seq, last_seq), truncated=truncated)


def has(log: PartLog) -> list[bytes]:
    """All rows that are there."""
    found = log.read(0, 10**9)
    return [] if found is None else found.split()
