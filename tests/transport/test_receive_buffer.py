"""What has come over a stream: nothing lost, doubled or out of order, and no more memory than it needs."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from relaytrio.transport._receive_buffer import KEPT, SMALL_BYTES, SMALL_READS, ReceiveBuffer

MOST = 6 * SMALL_BYTES


def fill(buffer: ReceiveBuffer, data: bytes) -> bytes:
    """Bring as much of it as there is space for; gives what is left."""
    space = buffer.space()
    count = min(len(space), len(data))
    space[:count] = data[:count]
    buffer.put(count)
    return data[count:]


@given(
    already=st.binary(max_size=10),
    steps=st.lists(st.tuples(st.integers(1, 3 * MOST), st.floats(0, 1)), max_size=20),
    most=st.sampled_from([1, 7, MOST]),
)
def test_all_bytes_come_out_in_order(already: bytes, steps: list[tuple[int, float]], most: int) -> None:
    """However much comes and is taken at once."""
    buffer = ReceiveBuffer(most, already)
    waiting = already
    count = 0
    for size, share in steps:
        size = min(size, 3 * most)
        data = bytes((count + number) % 251 for number in range(size))
        count += size
        waiting += data
        while data:
            data = fill(buffer, data)
        assert waiting == buffer.data[buffer.begin : buffer.end]
        assert len(waiting) == len(buffer)
        taken = int(len(waiting) * share)
        assert waiting[:taken] == buffer.take(taken)
        waiting = waiting[taken:]
    assert waiting == bytes(buffer.take(len(waiting)))
    assert 0 == len(buffer)


def test_much_is_asked_for_where_much_comes() -> None:
    """A connection of small frames has little memory."""
    buffer = ReceiveBuffer(MOST)
    for _ in range(5):
        fill(buffer, b"x" * (SMALL_BYTES - 1))
        buffer.take(SMALL_BYTES - 1)
    assert SMALL_BYTES == len(buffer.space()) == len(buffer.data)
    for asked in (4 * SMALL_BYTES, MOST, MOST):
        fill(buffer, b"x" * MOST)
        buffer.take(len(buffer))
        assert asked == len(buffer.space())


def test_what_once_came_much_is_not_kept_for_ever() -> None:
    """A connection that has small frames again, as an idle one has its heartbeats, comes to have little memory."""
    buffer = ReceiveBuffer(MOST)
    for _ in range(4):
        fill(buffer, b"x" * MOST)
    buffer.take(len(buffer))
    for read in range(SMALL_READS + 1):
        assert MOST <= len(buffer.data) or read == SMALL_READS
        fill(buffer, b"[]")
        assert b"[]" == bytes(buffer.take(2))
    assert SMALL_BYTES == len(buffer.space()) == len(buffer.data)


def test_what_a_large_frame_needed_is_given_back() -> None:
    """When all of it was taken, and not before; what was taken last holds until there is space for more."""
    buffer = ReceiveBuffer(MOST)
    left = large = bytes(range(256)) * (KEPT * MOST // 128)
    while left:
        left = fill(buffer, left)
    assert len(large) <= len(buffer.data)
    taken = buffer.take(len(large))
    assert large == taken
    buffer.space()
    assert MOST == len(buffer.data)


def test_memory_grows_seldom() -> None:
    """It is copied a few times while a large frame comes, and not with each read."""
    buffer = ReceiveBuffer(MOST)
    left, sizes = b"x" * (100 * MOST), set[int]()
    while left:
        left = fill(buffer, left)
        sizes.add(len(buffer.data))
    assert len(sizes) < 12
