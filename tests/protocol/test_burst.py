"""Rows and bursts: cut, join, trim, gap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relaytrio._protocol.burst import SEPARATOR, Burst, how_many_fit, is_gap, join, unknown_rows
from relaytrio._protocol.events import Episode

EPISODE = Episode(57, 1, "p8r2dq7w3e")
ROWS = st.lists(st.integers().map(lambda number: b'{"n":%d}' % number), max_size=20)
SIZES = st.lists(st.integers(1, 100), max_size=20)


@given(rows=ROWS, first_seq=st.integers(1, 1000), truncated=st.booleans())
def test_what_is_joined_splits_into_the_same_rows(rows: list[bytes], first_seq: int, truncated: bool) -> None:
    """Joining and splitting are each other's opposite, for no rows too."""
    burst = join(EPISODE, first_seq, rows, truncated=truncated)
    assert burst.split() == rows
    assert burst.rows == SEPARATOR.join(rows)
    assert burst.count == len(rows)
    assert burst.last_seq == first_seq + len(rows) - 1
    assert (burst.episode, burst.first_seq, burst.truncated) == (EPISODE, first_seq, truncated)


@given(sizes=SIZES, limit=st.integers(0, 400))
def test_as_many_rows_as_fit(sizes: list[int], limit: int) -> None:
    """What fits is within the limit, one more would not be, and the first row always goes."""
    fitting = how_many_fit(sizes, limit)

    def weight(count: int) -> int:
        return len(SEPARATOR.join(b"x" * size for size in sizes[:count]))

    assert min(1, len(sizes)) <= fitting <= len(sizes)
    assert fitting <= 1 or weight(fitting) <= limit
    assert fitting == len(sizes) or weight(fitting + 1) > limit


@given(rows=ROWS, limit=st.integers(0, 60), repeats=st.lists(st.integers(0, 20), max_size=10))
def test_cut_joined_and_trimmed_again_is_the_same(rows: list[bytes], limit: int, repeats: list[int]) -> None:
    """A copy that takes overlapping bursts, each cut at the limit, holds every row once and in order."""
    copy: list[bytes] = []
    while len(copy) < len(rows):
        start = max(0, len(copy) - (repeats.pop() if repeats else 0))
        fitting = how_many_fit([len(row) for row in rows[start:]], limit)
        burst = join(EPISODE, start + 1, rows[start : start + fitting])
        assert not is_gap(burst, len(copy))
        copy += unknown_rows(burst, len(copy))
        assert copy == rows[: len(copy)]
    assert copy == rows


@given(rows=ROWS, first_seq=st.integers(1, 30), last_seq=st.integers(0, 60))
def test_what_is_known_is_trimmed_by_its_number(rows: list[bytes], first_seq: int, last_seq: int) -> None:
    """Exactly the rows with a greater seq than the last one known are left."""
    burst = join(EPISODE, first_seq, rows)
    expected = [row for seq, row in enumerate(rows, first_seq) if seq > last_seq]
    assert unknown_rows(burst, last_seq) == expected


def test_a_gap_is_noticed() -> None:
    """Rows are missing exactly if the burst begins beyond the next seq."""
    burst = join(EPISODE, 5, [b"{}", b"{}"])
    assert [is_gap(burst, last_seq) for last_seq in (0, 3, 4, 5, 6, 9)] == [True, True, False, False, False, False]


def test_a_log_that_lost_its_beginning_is_no_gap() -> None:
    """A burst that says that nothing older is left is not asked for again."""
    assert not is_gap(Burst(EPISODE, 5, 1, b"{}", truncated=True), 0)
