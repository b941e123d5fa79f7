"""Rows and bursts: cut, join, trim, gap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relaytrio._protocol.burst import SEPARATOR, Burst, count_rows, is_gap, join, rows_from, rows_that_fit, unknown_rows
from relaytrio._protocol.events import Episode

EPISODE = Episode(57, 1, "p8r2dq7w3e")
ROWS = st.lists(st.integers().map(lambda number: b'{"n":%d}' % number), max_size=20)


@given(rows=ROWS, first_seq=st.integers(1, 1000), truncated=st.booleans())
def test_what_is_joined_splits_into_the_same_rows(rows: list[bytes], first_seq: int, truncated: bool) -> None:
    """Joining and splitting are each other's opposite, for no rows too."""
    burst = join(EPISODE, first_seq, rows, truncated=truncated)
    assert burst.split() == rows
    assert burst.rows == SEPARATOR.join(rows)
    assert burst.count == len(rows)
    assert burst.last_seq == first_seq + len(rows) - 1
    assert (burst.episode, burst.first_seq, burst.truncated) == (EPISODE, first_seq, truncated)


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=20), limit=st.integers(-10, 400))
def test_as_many_rows_as_fit(sizes: list[int], limit: int) -> None:
    """What fits is within the limit, one more would not be, and the first row goes if one has to."""
    rows = [b"x" * size for size in sizes]
    fitting = max(count for count in range(len(rows) + 1) if not count or len(SEPARATOR.join(rows[:count])) <= limit)
    assert SEPARATOR.join(rows[:fitting]) == rows_that_fit(SEPARATOR.join(rows), limit, at_least_one=False)
    assert SEPARATOR.join(rows[: max(1, fitting)]) == rows_that_fit(SEPARATOR.join(rows), limit)


@given(rows=ROWS.filter(bool), data=st.data())
def test_rows_are_counted_and_passed_over(rows: list[bytes], data: st.DataObject) -> None:
    """Without any of them being looked at."""
    number = data.draw(st.integers(0, len(rows) - 1))
    rest = rows_from(SEPARATOR.join(rows), number)
    assert SEPARATOR.join(rows[number:]) == rest
    assert len(rows) - number == count_rows(rest)


@given(rows=ROWS, limit=st.integers(0, 60), repeats=st.lists(st.integers(0, 20), max_size=10))
def test_cut_joined_and_trimmed_again_is_the_same(rows: list[bytes], limit: int, repeats: list[int]) -> None:
    """A copy that takes overlapping bursts, each cut at the limit, holds every row once and in order."""
    copy: list[bytes] = []
    while len(copy) < len(rows):
        start = max(0, len(copy) - (repeats.pop() if repeats else 0))
        cut = rows_that_fit(SEPARATOR.join(rows[start:]), limit)
        burst = Burst(EPISODE, start + 1, count_rows(cut), cut)
        assert not is_gap(burst, len(copy))
        if burst.last_seq > len(copy):
            copy += unknown_rows(burst, len(copy)).split(SEPARATOR)
        assert copy == rows[: len(copy)]
    assert copy == rows


@given(rows=ROWS.filter(bool), first_seq=st.integers(1, 30), data=st.data())
def test_what_is_known_is_trimmed_by_its_number(rows: list[bytes], first_seq: int, data: st.DataObject) -> None:
    """Exactly the rows with a greater seq than the last one known are left."""
    last_seq = data.draw(st.integers(0, first_seq + len(rows) - 2))
    burst = join(EPISODE, first_seq, rows)
    expected = [row for seq, row in enumerate(rows, first_seq) if seq > last_seq]
    assert unknown_rows(burst, last_seq) == SEPARATOR.join(expected)


def test_a_gap_is_noticed() -> None:
    """Rows are missing exactly if the burst begins beyond the next seq."""
    burst = join(EPISODE, 5, [b"{}", b"{}"])
    assert [is_gap(burst, last_seq) for last_seq in (0, 3, 4, 5, 6, 9)] == [True, True, False, False, False, False]


def test_a_log_that_lost_its_beginning_is_no_gap() -> None:
    """A burst that says that nothing older is left is not asked for again."""
    assert not is_gap(Burst(EPISODE, 5, 1, b"{}", truncated=True), 0)
