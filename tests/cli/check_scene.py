"""A run of a check, written by hand: three viewers, two turns, nothing wrong. Tests plant their faults in it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from relaytrio._protocol.events import Episode
from relaytrio.cli._check_records import (
    ANSWERED,
    Connection,
    MessageSeen,
    PartSeen,
    ReplicaCounts,
    ResetSeen,
    RunRecord,
    Seen,
    StoredMessage,
    TableLook,
    TurnRecord,
    ViewerRecord,
)

PARTS = 40
GAP = 0.1
ON_ITS_WAY = 0.002
WORKER = "life-of-1"
STARTS = {1: 100.0, 2: 200.0}


def episode(turn: int, attempt: int = 1, run_id: str = "run0") -> Episode:
    return Episode(10 * turn, attempt, run_id)


def token(turn: int, seq: int) -> str:
    return f"t{turn}p{seq} "


def sent_at(turn: int, seq: int) -> float:
    return STARTS[turn] + GAP * seq


def turn_record(number: int, outcome: str = ANSWERED) -> TurnRecord:
    return TurnRecord(
        number=number,
        name=f"name{number}",
        tokens=[token(number, seq) for seq in range(1, PARTS + 1)],
        version=10 * number,
        outcome=outcome,
        ended_at=sent_at(number, PARTS) + GAP,
    )


def part(turn: int, seq: int, at: float, connection: int, of: Episode | None = None) -> PartSeen:
    return PartSeen(
        at=at,
        connection=connection,
        episode=of or episode(turn),
        seq=seq,
        text=token(turn, seq),
        sent_at=sent_at(turn, seq),
        worker_id=WORKER,
    )


def answer(turn: int, at: float, connection: int) -> MessageSeen:
    text = "".join(turn_record(turn).tokens)
    return MessageSeen(at=at, connection=connection, id=2 * turn, role="assistant", text=text, version=10 * turn + 2)


def question(turn: int, at: float, connection: int) -> MessageSeen:
    return MessageSeen(
        at=at, connection=connection, id=2 * turn - 1, role="user", text=f"name{turn}", version=10 * turn
    )


def reset(reason: str, first_seq: int, at: float, connection: int) -> ResetSeen:
    return ResetSeen(at=at, connection=connection, reason=reason, first_seq=first_seq)


def viewer(number: int, stays: Sequence[tuple[int, float, float | None]]) -> ViewerRecord:
    """A viewer that was on these replicas from then until then, and got what was made in between when it came back."""
    record = ViewerRecord(number=number)
    for replica, begin, end in stays:
        record.connections.append(
            Connection(replica=replica, dialed_at=begin - 0.01, caught_up_at=begin, ended_at=end, cut=end is not None)
        )
    made: list[tuple[float, Seen]] = []
    for turn in STARTS:
        made.append((STARTS[turn], question(turn, 0, 0)))
        made += [(sent_at(turn, seq), part(turn, seq, 0, 0)) for seq in range(1, PARTS + 1)]
        made.append((sent_at(turn, PARTS) + GAP, answer(turn, 0, 0)))
    for when, seen in made:
        index, at = _arrival(record.connections, when)
        if isinstance(seen, MessageSeen) and at != when + ON_ITS_WAY:
            at -= 2 * ON_ITS_WAY  # messages come before `caught_up`
        record.seen.append(attrs.evolve(seen, at=at, connection=index))
    _drop_answered(record)
    return record


def _arrival(connections: Sequence[Connection], when: float) -> tuple[int, float]:
    for index, connection in enumerate(connections):
        assert connection.caught_up_at is not None
        if connection.ended_at is None or when + ON_ITS_WAY <= connection.ended_at:
            return index, max(when, connection.caught_up_at) + ON_ITS_WAY
    raise AssertionError("the last stay lasts until the end")


def _drop_answered(record: ViewerRecord) -> None:
    """Who comes back after the end gets the message, and no part of what led to it."""
    for message in [seen for seen in record.seen if isinstance(seen, MessageSeen) and seen.role == "assistant"]:
        caught_up_at = record.connections[message.connection].caught_up_at
        assert caught_up_at is not None
        if message.at < caught_up_at:
            record.seen = [
                seen
                for seen in record.seen
                if not isinstance(seen, PartSeen)
                or seen.connection != message.connection
                or seen.episode.history_version != message.version - 2
            ]


def good_run() -> RunRecord:
    """Viewer 1 stays where the answers are made, 2 elsewhere, both with a cut; 3 misses the end of the first answer."""
    viewers = [
        viewer(1, [(1, 90.0, 101.05), (1, 101.5, 202.05), (2, 202.5, None)]),
        viewer(2, [(2, 90.0, 102.05), (2, 102.5, 203.05), (1, 203.2, None)]),
        viewer(3, [(2, 90.0, 103.05), (3, 150.0, None)]),
    ]
    stored = []
    for turn in STARTS:
        stored.append(StoredMessage(id=2 * turn - 1, role="user", text=f"name{turn}", interrupted=False))
        text = "".join(turn_record(turn).tokens)
        stored.append(StoredMessage(id=2 * turn, role="assistant", text=text, interrupted=False))
    return RunRecord(
        viewers=viewers,
        planned_turns=2,
        needed_cuts=2,
        turns=[turn_record(1), turn_record(2)],
        stored=stored,
        replica_of={WORKER: 1, "life-of-2": 2, "life-of-3": 3},
        counts={"life-of-2": ReplicaCounts(legs_opened=3, parts_relayed=200)},
        looks=[TableLook(turn=1, needles=5, found=[])],
    )
