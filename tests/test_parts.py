"""Part logs: what they hold, what they trim, and what they lose, as the section on them in the design promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from relaytrio._parts import PartLog, PartLogs
from relaytrio._protocol.burst import SEPARATOR, Burst
from relaytrio._protocol.events import Episode
from tests.rows import CHAT, EPISODE, PLENTY, ROW_BYTES, SETTINGS, WEIGHT, burst, has, row, rows


def sized(*, log: int = 10**9, logs: int = 10**9) -> PartLogs:
    """Logs with room for so many rows each, and altogether."""
    settings = attrs.evolve(SETTINGS, part_log_bytes=log * WEIGHT, part_logs_bytes=logs * WEIGHT)
    return PartLogs(settings, clock=lambda: 0.0)


@pytest.fixture
def logs() -> PartLogs:
    return PartLogs(SETTINGS, clock=lambda: 0.0)


@pytest.fixture
def log(logs: PartLogs) -> PartLog:
    return logs.make(CHAT, EPISODE)


@pytest.fixture
def copy(logs: PartLogs) -> Iterator[PartLog]:
    with logs.filling(CHAT, EPISODE) as copy:
        yield copy


# ---------------------------------------------------------------------------------------------- a log made here


def test_a_log_is_there_before_its_first_row(logs: PartLogs) -> None:
    """An episode's log can be found, empty and not ended, as soon as it is made."""
    assert logs.find(CHAT, EPISODE) is None
    log = logs.make(CHAT, EPISODE)
    assert logs.find(CHAT, EPISODE) is log
    assert (log.first_seq, log.last_seq, log.ended, log.read(0, PLENTY)) == (1, 0, False, None)


def test_an_episode_has_one_log(logs: PartLogs) -> None:
    """Nothing can be made in the place of a log that is there; another run or chat has its own."""
    logs.make(CHAT, EPISODE)
    with pytest.raises(ValueError, match="has a log here already"):
        logs.make(CHAT, EPISODE)
    logs.make(CHAT, Episode(57, 1, "another"))
    logs.make("another", EPISODE)
    assert len(logs) == 3


def test_readers_take_everything_since_their_cursor_at_once(log: PartLog) -> None:
    """One read gives all rows after the cursor, however they came."""
    log.append(rows(1, 2))
    log.append(rows(3, 7))
    assert log.read(0, PLENTY) == burst(1, 7)
    assert log.read(5, PLENTY) == burst(6, 7)
    assert log.read(7, PLENTY) is None
    assert log.read(99, PLENTY) is None


def test_a_read_is_limited_but_gives_one_row_at_least(log: PartLog) -> None:
    """What does not fit comes with the next read; a row that is larger than the limit comes alone."""
    log.append(rows(1, 5))
    assert log.read(0, 2 * WEIGHT) == burst(1, 2)
    assert log.read(0, 2 * WEIGHT - len(SEPARATOR)) == burst(1, 2)
    assert log.read(2, 2 * WEIGHT - len(SEPARATOR) - 1) == burst(3, 3)
    assert log.read(3, 1) == burst(4, 4)


def test_the_same_read_after_more_rows_is_not_the_old_one(log: PartLog) -> None:
    """What was joined for one reader serves others only while it is all that there is."""
    log.append(rows(1, 1))
    assert log.read(0, PLENTY) is log.read(0, PLENTY)
    log.append(rows(2, 2))
    assert log.read(0, PLENTY) == burst(1, 2)
    assert log.read(0, 1) == burst(1, 1)


def test_seal_ends_a_log(log: PartLog) -> None:
    """After the seal no row is taken, and all that are there can still be read. Twice is fine."""
    log.append(rows(1, 3))
    assert log.seal()
    assert log.ended
    with pytest.raises(trio.ClosedResourceError):
        log.append(rows(4, 4))
    assert has(log) == rows(1, 3)
    assert log.seal()


# ------------------------------------------------------------------------------------------------------ a copy


def test_a_copy_is_attended_while_one_fills_it(logs: PartLogs) -> None:
    """A copy has ended while nobody fills it; several may fill one copy, and it is attended until the last leaves."""
    with logs.filling(CHAT, EPISODE) as copy:
        assert not copy.ended
        with logs.filling(CHAT, EPISODE) as same:
            assert same is copy
        assert not copy.ended
    assert copy.ended
    assert not copy.sealed
    with logs.filling(CHAT, EPISODE) as again:
        assert again is copy
        assert not copy.ended


def test_a_filler_that_fails_leaves_too(logs: PartLogs) -> None:
    """However filling ends, the copy is not attended after it."""

    class Failure(Exception):
        pass

    with pytest.raises(Failure), logs.filling(CHAT, EPISODE) as copy:
        raise Failure
    assert copy.ended


def test_what_is_known_is_trimmed(copy: PartLog) -> None:
    """A burst adds only the rows that the copy does not have; one of old rows adds nothing."""
    assert copy.extend(burst(1, 4))
    assert copy.extend(burst(3, 6))
    assert copy.extend(burst(2, 5))
    assert copy.extend(burst(1, 6))
    assert has(copy) == rows(1, 6)


def test_a_burst_of_nothing_adds_nothing(copy: PartLog) -> None:
    """Wherever it says that it begins."""
    copy.extend(burst(1, 2))
    for first_seq in (1, 2, 3):
        assert copy.extend(Burst(EPISODE, first_seq, 0, b'{"type":"status"}'))
    copy.extend(burst(3, 3))
    assert has(copy) == rows(1, 3)


def test_a_gap_adds_nothing(copy: PartLog) -> None:
    """A burst that begins beyond the next row is not taken, at the beginning of an episode too: it is to be selected
    again."""
    assert not copy.extend(burst(2, 3))
    assert copy.extend(burst(1, 2))
    assert not copy.extend(burst(4, 5))
    assert has(copy) == rows(1, 2)
    assert copy.last_seq == 2


def test_past_a_gap_the_copy_goes_on_from_what_is_at_hand(copy: PartLog) -> None:
    """Told to, a copy goes on after a gap, and a reader that missed rows learns of it, and why."""
    copy.extend(burst(1, 2))
    assert copy.extend(burst(5, 6), past_gap=True)
    assert copy.read(2, PLENTY) == burst(5, 6, truncated=True)
    assert copy.lost == "gap"
    assert copy.extend(burst(7, 7))
    assert copy.read(4, PLENTY) == burst(5, 7)
    assert copy.read(6, PLENTY) == burst(7, 7)


def test_past_gap_means_nothing_where_there_is_none(copy: PartLog) -> None:
    """Rows that follow are added to those that are there."""
    copy.extend(burst(1, 2), past_gap=True)
    copy.extend(burst(2, 4), past_gap=True)
    assert has(copy) == rows(1, 4)


def test_a_log_that_lost_its_beginning_is_no_gap(copy: PartLog) -> None:
    """The first burst of such a log says so, and is taken; the copy's readers are told `truncated`."""
    assert copy.extend(burst(100, 102, truncated=True))
    assert (copy.first_seq, copy.last_seq, copy.lost) == (100, 102, "truncated")
    assert copy.read(0, PLENTY) == burst(100, 102, truncated=True)
    assert copy.extend(burst(103, 103))
    assert copy.read(99, PLENTY) == burst(100, 103)


def test_a_truncated_burst_that_overlaps_is_trimmed(copy: PartLog) -> None:
    """Rows that are there stay, whatever another reader of the worker's log has missed."""
    copy.extend(burst(1, 5))
    assert copy.extend(burst(4, 7, truncated=True))
    assert has(copy) == rows(1, 7)


def test_truncation_goes_from_copy_to_copy(log: PartLog) -> None:
    """What one log has lost, the copy that is filled from it has lost too, and says so."""
    log.append(rows(1, 9))
    log._shrink_to(log.size_bytes * 5 // 9)
    taken = log.read(0, PLENTY)
    assert taken == burst(5, 9, truncated=True)
    with PartLogs(SETTINGS, clock=lambda: 0.0).filling(CHAT, EPISODE) as copy:
        assert copy.extend(taken)
        assert copy.read(3, PLENTY) == taken


def test_what_was_joined_for_a_reader_goes_with_its_rows(log: PartLog) -> None:
    """A reader that asks again after the oldest rows went is told so, and they are kept nowhere."""
    log.append(rows(1, 9))
    assert log.read(0, PLENTY) == burst(1, 9)
    log._shrink_to(log.size_bytes * 5 // 9)
    assert log.read(0, PLENTY) == burst(5, 9, truncated=True)


def test_a_copy_is_sealed_when_it_has_all(copy: PartLog) -> None:
    """The end of the remote log seals a copy that has all its rows, and no other."""
    copy.extend(burst(1, 3))
    assert not copy.seal(4)
    assert not copy.sealed
    assert copy.seal(3)
    assert copy.sealed


def test_a_sealed_copy_takes_nothing_more(copy: PartLog) -> None:
    """A late burst changes nothing, and is no reason to select again."""
    copy.extend(burst(1, 3))
    copy.seal(3)
    assert copy.extend(burst(2, 5))
    assert copy.extend(burst(9, 9))
    assert copy.extend(burst(9, 9), past_gap=True)
    assert has(copy) == rows(1, 3)


def test_an_unattended_copy_takes_nothing_more(logs: PartLogs) -> None:
    """Without its filler a copy counts as sealed: a late leg adds no rows, and none that nobody would take away."""
    with logs.filling(CHAT, EPISODE) as copy:
        copy.extend(burst(1, 3))
    assert copy.extend(burst(4, 5))
    assert has(copy) == rows(1, 3)
    assert logs.size_bytes == 3 * WEIGHT


@given(
    last_seq=st.integers(1, 30),
    cuts=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12), st.booleans()), max_size=30),
)
def test_any_bursts_give_the_exact_concatenation_or_a_told_gap(
    last_seq: int, cuts: list[tuple[int, int, bool]]
) -> None:
    """Overlapping, doubled, cut, reordered bursts: a copy has each row once and in order from its first one on, and a
    reader that follows it gets exactly these, with each loss told."""
    with PartLogs(SETTINGS, clock=lambda: 0.0).filling(CHAT, EPISODE) as copy:
        seen: list[int] = []
        losses = told = 0
        for first_seq, more, past_gap in cuts:
            before = copy.last_seq
            taken = burst(first_seq, min(first_seq + more, last_seq))
            if not taken.count:
                continue
            fits = copy.extend(taken, past_gap=past_gap)
            assert fits == (past_gap or first_seq <= before + 1)
            assert copy.last_seq == (max(before, taken.last_seq) if fits else before)
            assert has(copy) == rows(copy.first_seq, copy.last_seq)
            losses += fits and first_seq > before + 1
            found = copy.read(seen[-1] if seen else 0, PLENTY)
            if found is not None:
                assert found.split() == rows(found.first_seq, found.last_seq)
                assert found.truncated == (found.first_seq > (seen[-1] if seen else 0) + 1)
                told += found.truncated
                seen += range(found.first_seq, found.last_seq + 1)
        assert told == losses
        assert copy.lost == "gap" or not losses
        assert losses or has(copy) == rows(1, copy.last_seq)
        assert seen == sorted(set(seen))


@given(
    steps=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), max_size=40),
    room=st.integers(1, 15),
    limit=st.integers(1, 6),
)
def test_a_reader_of_a_limited_log_gets_every_row_or_is_told(
    steps: list[tuple[int, int]], room: int, limit: int
) -> None:
    """However slowly it reads, the rows a reader gets and those it is told it has lost are all that there were."""
    log = sized(log=room).make(CHAT, EPISODE)
    cursor = 0
    for count, reads in steps:
        log.append(rows(log.last_seq + 1, log.last_seq + count))
        assert log.size_bytes <= max(room, 1) * WEIGHT
        for _ in range(reads):
            found = log.read(cursor, limit * WEIGHT)
            if found is None:
                assert cursor == log.last_seq
                continue
            assert found.truncated == (found.first_seq > cursor + 1)
            assert found.truncated or found.first_seq == cursor + 1
            assert 1 <= found.count <= limit
            assert found.split() == rows(found.first_seq, found.last_seq)
            cursor = found.last_seq


# ------------------------------------------------------------------------------------------------------ limits


def test_a_full_log_loses_its_oldest_rows() -> None:
    """Past its limit an episode's log keeps its newest rows, and a reader that missed some is told the first left."""
    log = sized(log=16).make(CHAT, EPISODE)
    log.append(rows(1, 16))
    assert log.first_seq == 1
    log.append(rows(17, 17))
    assert (log.first_seq, log.last_seq) == (3, 17)
    assert log.read(1, PLENTY) == burst(3, 17, truncated=True)
    assert log.read(2, PLENTY) == burst(3, 17)
    assert log.lost == "truncated"


def test_rows_lost_after_a_gap_were_truncated() -> None:
    """A reader is told the reason of the latest loss."""
    with sized(log=16).filling(CHAT, EPISODE) as copy:
        copy.extend(burst(5, 6), past_gap=True)
        copy.extend(burst(7, 30))
        assert copy.lost == "truncated"


def test_a_row_that_is_larger_than_the_limit_is_kept() -> None:
    """The last row never goes: whoever is up to date misses nothing."""
    log = sized(log=1).make(CHAT, EPISODE)
    log.append([row(1, 10 * ROW_BYTES)])
    assert log.read(0, PLENTY) is not None
    log.append([row(2, 10 * ROW_BYTES)])
    assert (log.first_seq, log.last_seq) == (2, 2)


def test_a_full_replica_forgets_ended_logs_first() -> None:
    """The longest ended goes first, and a log that is being made keeps all its rows."""
    logs = sized(logs=32)
    ended = [logs.make(f"ended {number}", EPISODE) for number in range(3)]
    for log in ended:
        log.append(rows(1, 10))
    for log in (ended[1], ended[0], ended[2]):
        log.seal()
    live = logs.make("live", EPISODE)
    live.append(rows(1, 3))
    assert logs.find("ended 1", EPISODE) is None
    assert logs.find("ended 0", EPISODE) is ended[0]
    assert logs.find("ended 2", EPISODE) is ended[2]
    assert has(live) == rows(1, 3)
    assert logs.size_bytes == 23 * WEIGHT


def test_an_unattended_copy_goes_as_a_sealed_log_does() -> None:
    """A copy that nobody fills counts as sealed here too; one that is filled, sealed or not, does not go."""
    logs = sized(logs=32)
    with logs.filling("attended", EPISODE) as attended:
        attended.extend(burst(1, 10))
        attended.seal()
        with logs.filling("unattended", EPISODE) as unattended:
            unattended.extend(burst(1, 10))
        logs.make("live", EPISODE).append(rows(1, 13))
        assert logs.find("attended", EPISODE) is attended
        assert logs.find("unattended", EPISODE) is None


def test_a_full_replica_shortens_the_largest_log() -> None:
    """With nothing ended, the largest log loses its oldest rows, and small ones lose nothing."""
    logs = sized(logs=32)
    small, large = logs.make("small", EPISODE), logs.make("large", EPISODE)
    small.append(rows(1, 5))
    large.append(rows(1, 28))
    assert logs.size_bytes == 30 * WEIGHT
    assert has(small) == rows(1, 5)
    assert large.read(0, PLENTY) == burst(4, 28, truncated=True)
    assert large.lost == "truncated"


def test_no_log_makes_room_alone() -> None:
    """One that must shrink by more than half gives half, and then whichever is the largest by now gives the rest."""
    logs = sized(logs=32)
    one, other = logs.make("one", EPISODE), logs.make("other", EPISODE)
    one.append(rows(1, 20))
    other.append(rows(1, 40))
    assert has(other) == rows(21, 40)
    assert has(one) == rows(11, 20)


def test_no_more_ended_logs_go_than_need_be() -> None:
    """As soon as there is room enough, what is left of the ended logs stays for those who still read them."""
    logs = sized(logs=32)
    for name, count in (("first", 3), ("second", 5)):
        log = logs.make(name, EPISODE)
        log.append(rows(1, count))
        log.seal()
    logs.make("live", EPISODE).append(rows(1, 25))
    assert logs.find("first", EPISODE) is None
    assert logs.find("second", EPISODE) is not None
    assert logs.size_bytes == 30 * WEIGHT


def test_more_logs_than_there_is_room_for_keep_their_last_rows() -> None:
    """Where even one row of each is too much, each keeps that one, and there is no endless search for more room."""
    logs = sized(logs=4)
    made = [logs.make(f"chat {number}", EPISODE) for number in range(10)]
    for log in made:
        log.append(rows(1, 3))
    assert [has(log) for log in made] == [rows(3, 3)] * 10


@given(
    actions=st.lists(
        st.tuples(
            st.integers(0, 5), st.sampled_from(["append", "append", "extend", "seal", "leave"]), st.integers(1, 9)
        ),
        max_size=60,
    )
)
def test_the_size_is_that_of_the_rows(actions: list[tuple[int, str, int]]) -> None:
    """Whatever happens, the logs know what they hold, and hold no more than the limit while a log has more than its
    last row."""
    logs = sized(log=12, logs=32)
    with ExitStack() as stack:
        filling: dict[int, ExitStack] = {}
        for number, action, count in actions:
            log = logs.find(str(number), EPISODE)
            if action == "extend" or (log is not None and not log.made_here):
                if action == "leave" and number in filling:
                    filling.pop(number).close()
                elif action == "seal" and log is not None:
                    log.seal()
                elif log is None or not log.made_here:
                    if number not in filling:
                        filling[number] = stack.enter_context(ExitStack())
                        filling[number].enter_context(logs.filling(str(number), EPISODE))
                    copy = logs.find(str(number), EPISODE)
                    assert copy is not None
                    copy.extend(burst(copy.last_seq + 1, copy.last_seq + count))
            elif log is None:
                logs.make(str(number), EPISODE)
            elif action == "seal":
                log.seal()
            elif not log.sealed:
                log.append(rows(log.last_seq + 1, log.last_seq + count))
            kept = [len(has(log)) for log in logs._logs.values()]
            assert logs.size_bytes == sum(kept) * WEIGHT
            assert sum(kept) <= 32
            assert max(kept, default=0) <= 12


def test_rows_are_counted_where_they_come_from() -> None:
    """An operator sees how many rows were made here, and how many came over legs and were new."""
    logs = sized()
    log = logs.make("made", EPISODE)
    log.append(rows(1, 2))
    log.append(rows(3, 3))
    with logs.filling("copied", EPISODE) as copy:
        copy.extend(burst(1, 4))
        copy.extend(burst(3, 6))
    assert (3, 6) == (logs.rows_made, logs.rows_copied)


def test_ten_thousand_readers_cost_no_queue() -> None:
    """Readers share what was joined for the first of them: memory does not grow with their number."""
    log = sized().make(CHAT, EPISODE)
    log.append(rows(1, 100))
    found = {id(log.read(0, PLENTY)) for _ in range(10_000)}
    assert len(found) == 1


@given(data=st.data())
def test_a_log_is_its_rows_however_they_came(data: st.DataObject) -> None:
    """Chunks are nowhere to be seen: what is read fits, nothing that would have fitted is missing, and the oldest rows
    go first, no more of them than need be."""
    logs = PartLogs(SETTINGS, clock=lambda: 0.0)
    log, first_seq = logs.make(CHAT, EPISODE), 1
    model: list[bytes] = []
    for _ in range(data.draw(st.integers(1, 12))):
        sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
        came = [b'{"n":"%b"}' % (b"x" * size) for size in sizes]
        log.append(came)
        model += came
        if data.draw(st.booleans()):
            keep_bytes = data.draw(st.integers(0, log.size_bytes + 5))
            log._shrink_to(keep_bytes)
            while len(model) > 1 and sum(len(row) + 2 for row in model) > keep_bytes:
                first_seq += 1
                del model[0]
        assert (first_seq, first_seq + len(model) - 1) == (log.first_seq, log.last_seq)
        assert sum(len(row) + 2 for row in model) == log.size_bytes == logs.size_bytes
        after_seq, limit_bytes = data.draw(st.integers(0, log.last_seq)), data.draw(st.integers(0, 120))
        rest = model[max(0, after_seq + 1 - first_seq) :]
        fitting = max(
            [1, *(count for count in range(len(rest) + 1) if len(SEPARATOR.join(rest[:count])) <= limit_bytes)]
        )
        burst = log.read(after_seq, limit_bytes)
        assert (burst is None) == (not rest)
        if burst is not None:
            assert rest[:fitting] == burst.split()
            assert (max(after_seq + 1, first_seq), len(rest[:fitting])) == (burst.first_seq, burst.count)
            assert (after_seq + 1 < first_seq) == burst.truncated
