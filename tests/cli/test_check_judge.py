"""The judge of a check sees every kind of fault, and every way in which a run proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from relaytrio.cli._check_judge import Verdict, judge
from relaytrio.cli._check_records import (
    NEVER_ENDED,
    UNFINISHED,
    WORKER_LOST,
    MessageSeen,
    PartSeen,
    ReplicaCounts,
    RunRecord,
    Seen,
    StoredMessage,
    TableLook,
    ViewerRecord,
)
from relaytrio.cli._status import BROKEN, HELD, NOT_DONE
from tests.cli.check_scene import PARTS, STARTS, answer, episode, good_run, part, reset, sent_at, turn_record, viewer


def kinds(verdict: Verdict) -> list[str]:
    """The faults, each kind once."""
    return sorted({fault.kind for fault in verdict.faults})


def find(viewer: ViewerRecord, turn: int, seq: int) -> int:
    """Where a part stands in what a viewer saw."""
    return next(
        index
        for index, seen in enumerate(viewer.seen)
        if isinstance(seen, PartSeen) and (seen.episode, seen.seq) == (episode(turn), seq)
    )


def find_message(viewer: ViewerRecord, id: int) -> int:
    return next(index for index, seen in enumerate(viewer.seen) if isinstance(seen, MessageSeen) and seen.id == id)


# ----------------------------------------------------------------------------------------- nothing wrong


def test_a_good_run_holds() -> None:
    """Where each viewer has all that was made, and the run was a test, it held."""
    verdict = judge(good_run())
    assert [] == verdict.faults
    assert [] == verdict.shortfalls
    assert verdict.status == HELD
    assert verdict.live_share == 1.0
    assert verdict.parts_made == 2 * PARTS


def test_sums_of_a_viewer() -> None:
    """Live is what came over the connection that was there when it was made; the rest came after a resume."""
    first, _, third = judge(good_run()).viewers
    assert (first.live, first.resumed) == (2 * PARTS - 8, 8)
    assert (first.cuts, first.cuts_inside) == (2, 2)
    assert first.first_parts == pytest.approx([0.012, 0.012])
    assert max(first.latencies) == pytest.approx(0.002)
    assert (third.live, third.resumed, third.resumes_after_end) == (30 + PARTS, 0, 1)


# ------------------------------------------------------------------------------------------------- parts


def lose(run: RunRecord) -> None:
    del run.viewers[0].seen[find(run.viewers[0], 1, 20)]


def lose_the_end(run: RunRecord) -> None:
    for seq in (PARTS, PARTS - 1):
        del run.viewers[1].seen[find(run.viewers[1], 1, seq)]


def lose_the_beginning(run: RunRecord) -> None:
    del run.viewers[2].seen[find(run.viewers[2], 1, 1)]


def lose_all(run: RunRecord) -> None:
    seen = run.viewers[2].seen
    seen[:] = [one for one in seen if not (isinstance(one, PartSeen) and one.episode == episode(2))]


@pytest.mark.parametrize(("plant", "count"), [(lose, 1), (lose_the_end, 2), (lose_the_beginning, 1), (lose_all, PARTS)])
def test_missing(plant: Callable[[RunRecord], None], count: int) -> None:
    """A part absent in the middle, at the beginning, or at the end for who stayed connected, is missing."""
    run = good_run()
    plant(run)
    verdict = judge(run)
    assert kinds(verdict) == ["missing"]
    assert verdict.status == BROKEN
    assert sum(len(viewer.missing) for viewer in verdict.viewers) == count


def test_told_gaps_are_not_missing() -> None:
    """Parts that a `preview_reset` says are lost are not missing."""
    for reason in ("gap", "truncated"):
        run = good_run()
        seen = run.viewers[0].seen
        at = find(run.viewers[0], 1, 20)
        seen[at] = reset(reason, 21, sent_at(1, 20), 1)
        verdict = judge(run)
        assert [] == verdict.faults
        assert verdict.viewers[0].resets == {reason: 1}


def test_a_gap_beyond_what_was_told_is_missing() -> None:
    """A reset excuses the parts up to the one it names, no more."""
    run = good_run()
    seen = run.viewers[0].seen
    at = find(run.viewers[0], 1, 20)
    seen[at : at + 2] = [reset("gap", 21, sent_at(1, 20), 1)]
    assert judge(run).viewers[0].missing == [(episode(1), 21)]


def test_who_came_shortly_before_the_end_may_miss_it() -> None:
    """The end waits 200 ms for the last parts: a viewer that has just come may get the message instead of them."""
    run = good_run()
    late = viewer(2, [(2, 90.0, 103.05), (2, 103.2, 203.05), (1, 203.2, None)])
    last = find(late, 1, PARTS)
    del late.seen[last - 3 : last + 1]
    assert judge(attrs.evolve(run, viewers=[run.viewers[0], late, run.viewers[2]])).viewers[1].missing == []


def test_doubled() -> None:
    """A part that comes again, at once or much later, is doubled."""
    for distance in (1, 10):
        run = good_run()
        at = find(run.viewers[0], 1, 20)
        run.viewers[0].seen.insert(at + distance, run.viewers[0].seen[at])
        verdict = judge(run)
        assert kinds(verdict) == ["doubled"]
        assert len(verdict.viewers[0].doubled) == 1


def test_doubled_after_a_resume() -> None:
    """A cut does not excuse what comes twice."""
    run = good_run()
    at = find(run.viewers[0], 1, 11)
    run.viewers[0].seen.insert(at, part(1, 10, 101.502, 1))
    assert kinds(judge(run)) == ["doubled"]


def test_out_of_order() -> None:
    """Two parts that changed places are out of order, and not missing."""
    run = good_run()
    seen = run.viewers[0].seen
    at = find(run.viewers[0], 1, 20)
    seen[at], seen[at + 1] = seen[at + 1], seen[at]
    verdict = judge(run)
    assert kinds(verdict) == ["out of order"]
    assert verdict.viewers[0].out_of_order == [(episode(1), 20)]


def test_another_episode_without_a_reset() -> None:
    """A part of another episode, while nothing has ended the preview, is out of order."""
    run = good_run()
    at = find(run.viewers[0], 1, 20)
    run.viewers[0].seen.insert(at, part(1, 1, sent_at(1, 20), 1, episode(1, 0, "old0")))
    assert "out of order" in kinds(judge(run))


def test_part_after_its_message() -> None:
    """After the message that an episode led to, no part of it may come."""
    run = good_run()
    first = run.viewers[0]
    last = first.seen.pop(find(first, 1, PARTS))
    first.seen.insert(find_message(first, 2) + 1, last)
    assert "after the end" in kinds(judge(run))


def test_part_after_a_resume_after_the_end() -> None:
    """Who comes back after the end gets the message and no part, not even one that it lacks."""
    run = good_run()
    third = run.viewers[2]
    third.seen.insert(find_message(third, 2) + 1, part(1, 31, 150.002, 1))
    verdict = judge(run)
    assert kinds(verdict) == ["after the end"]
    assert verdict.viewers[2].late == [(episode(1), 31)]


def test_part_after_a_reset_that_took_it_back() -> None:
    """After `worker_lost` no part of that episode may come."""
    run = good_run()
    at = find(run.viewers[0], 1, 20)
    run.viewers[0].seen.insert(at, reset("worker_lost", 1, sent_at(1, 20), 1))
    assert "after the end" in kinds(judge(run))


def second_attempt(seen: Seen) -> Seen:
    """The same, but the first turn's parts are those of its second attempt."""
    if isinstance(seen, PartSeen) and seen.episode == episode(1):
        return attrs.evolve(seen, episode=episode(1, 2))
    return seen


def test_a_lost_worker_is_no_fault() -> None:
    """Another run of the same turn after `worker_lost` begins with part 1 again: nothing is doubled or missing."""
    run = good_run()
    for number, viewer_record in enumerate(run.viewers[:2]):
        lost = [part(1, seq, sent_at(1, seq) - 6, 0, episode(1, 1, "dead0")) for seq in range(1, 11 - number)]
        lost = [attrs.evolve(one, sent_at=one.sent_at - 6) for one in lost]
        at = find(viewer_record, 1, 1)
        again = [
            attrs.evolve(seen, episode=episode(1, 2))
            if isinstance(seen, PartSeen) and seen.episode == episode(1)
            else seen
            for seen in viewer_record.seen
        ]
        viewer_record.seen[:] = [*again[:at], *lost, reset("worker_lost", 1, 99.0, 0), *again[at:]]
    third = run.viewers[2]
    third.seen[:] = [
        attrs.evolve(seen, episode=episode(1, 2)) if isinstance(seen, PartSeen) and seen.episode == episode(1) else seen
        for seen in third.seen
    ]
    verdict = judge(run)
    assert [] == verdict.faults
    assert verdict.parts_made == 2 * PARTS + 10


def test_other_text_than_was_made() -> None:
    """A part whose text is not the one that the responder makes is told."""
    run = good_run()
    at = find(run.viewers[0], 1, 20)
    run.viewers[0].seen[at] = attrs.evolve(part(1, 20, sent_at(1, 20), 1), text="x")
    assert "not what was made" in kinds(judge(run))


@pytest.mark.parametrize("strange", [part(1, PARTS, 100.0, 0, episode(3)), attrs.evolve(part(1, 1, 100.0, 0), seq=99)])
def test_part_that_nobody_asked_for(strange: PartSeen) -> None:
    """A part of no turn, or one beyond the end of the answer, is told."""
    run = good_run()
    run.viewers[0].seen.append(strange)
    assert "not what was made" in kinds(judge(run))


# ---------------------------------------------------------------------------------------------- messages


def test_message_differs_from_what_was_made() -> None:
    """The store's answer is compared with the recomputed one."""
    run = good_run()
    assert run.stored is not None
    stored = [attrs.evolve(message, text=message.text + "!") if message.id == 2 else message for message in run.stored]
    assert "store differs" in kinds(judge(attrs.evolve(run, stored=stored)))


def test_answer_marked_as_interrupted() -> None:
    """An answer that nobody stopped is whole and not marked."""
    run = good_run()
    assert run.stored is not None
    stored = [attrs.evolve(message, interrupted=message.id == 4) for message in run.stored]
    assert kinds(judge(attrs.evolve(run, stored=stored))) == ["store differs"]


@pytest.mark.parametrize("keep", [slice(0, 3), slice(1, 4), slice(0, 0)])
def test_store_lacks_a_message(keep: slice) -> None:
    """A question or an answer that the store does not have is told."""
    run = good_run()
    assert run.stored is not None
    assert "store differs" in kinds(judge(attrs.evolve(run, stored=run.stored[keep])))


def test_store_has_too_many_messages() -> None:
    """A second answer to the same question is told."""
    run = good_run()
    assert run.stored is not None
    more = StoredMessage(id=5, role="assistant", text="again", interrupted=False)
    assert "store differs" in kinds(judge(attrs.evolve(run, stored=[*run.stored, more])))


def other_text(viewer: ViewerRecord) -> None:
    at = find_message(viewer, 2)
    viewer.seen[at] = attrs.evolve(answer(1, 104.2, 1), text="x")


def no_message(viewer: ViewerRecord) -> None:
    del viewer.seen[find_message(viewer, 4)]


def taken_back(viewer: ViewerRecord) -> None:
    viewer.seen.append(reset("history", 2, 300.0, 1))


@pytest.mark.parametrize("plant", [other_text, no_message, taken_back])
def test_history_differs_from_the_store(plant: Callable[[ViewerRecord], None]) -> None:
    """What a viewer ends up with is the store's history, message by message."""
    run = good_run()
    plant(run.viewers[0])
    assert kinds(judge(run)) == ["history differs"]


def test_message_doubled() -> None:
    """A message comes once."""
    run = good_run()
    run.viewers[0].seen.append(answer(2, 300.0, 2))
    assert kinds(judge(run)) == ["message doubled"]


# ------------------------------------------------------------------------------------- what was noted live


def test_hung_viewer() -> None:
    """A viewer that had not seen the end in time hangs; that it lacks the rest is not said twice."""
    run = good_run()
    run.viewers[0].hung.append(2)
    no_message(run.viewers[0])
    verdict = judge(run)
    assert kinds(verdict) == ["hung"]
    assert verdict.hung == 1
    assert verdict.status == BROKEN


def test_failed_stream() -> None:
    """A stream that ended for good is told."""
    run = good_run()
    run.viewers[0].failure = "WireError: not of this protocol"
    assert kinds(judge(run)) == ["stream failed"]


def test_broken_stream() -> None:
    """What the stream's checker found is told as it is."""
    run = good_run()
    run.viewers[0].broken.append("CATCH_UP: the cursor names something else")
    assert kinds(judge(run)) == ["stream broken"]
    assert "CATCH_UP" in str(judge(run).faults[0])


def test_turn_that_never_ended() -> None:
    """A chat that is stranded in the middle of an answer is told; the store is not asked for more of it."""
    run = good_run()
    assert run.stored is not None
    run = attrs.evolve(run, turns=[turn_record(1), turn_record(2, NEVER_ENDED)], stored=run.stored[:3])
    assert "never ended" in kinds(judge(run))
    assert "store differs" not in kinds(judge(run))


def test_time_was_over_in_the_middle_of_a_turn() -> None:
    """What the check did not wait for is no fault of the engine: neither a turn without an end, nor parts of one that
    was being asked for."""
    run = good_run()
    for viewer_record in run.viewers:
        viewer_record.seen[:] = viewer_record.seen[: find(viewer_record, 2, 20)]
    run = attrs.evolve(run, turns=[turn_record(1), turn_record(2, UNFINISHED)], stored=None, out_of_time=True)
    assert [] == judge(run).faults
    assert "1 of 2 turns were done in time" in judge(run).shortfalls
    run = attrs.evolve(run, turns=[turn_record(1)])
    assert [] == judge(run).faults
    assert kinds(judge(attrs.evolve(run, out_of_time=False))) == ["not what was made"]


def test_turn_that_failed() -> None:
    """An answer that ended in an error is a fault."""
    run = attrs.evolve(good_run(), turns=[turn_record(1), turn_record(2, "responder_failed")])
    assert "failed" in kinds(judge(run))


def parked_run() -> RunRecord:
    """The second turn was parked: no answer in the store, and `worker_lost` for who saw parts of it."""
    run = good_run()
    assert run.stored is not None
    for viewer_record in run.viewers:
        at = find_message(viewer_record, 4)
        viewer_record.seen[at] = reset("worker_lost", 1, 205.0, len(viewer_record.connections) - 1)
    return attrs.evolve(run, turns=[turn_record(1), turn_record(2, WORKER_LOST)], stored=run.stored[:3])


def test_parked_turn() -> None:
    """A turn parked as `worker_lost` counts as ended where workers are killed, and only there."""
    parked = parked_run()
    assert [] == judge(attrs.evolve(parked, kill="worker", kills=3)).faults
    assert kinds(judge(parked)) == ["failed"]
    assert kinds(judge(attrs.evolve(parked, kill="viewer", kills=3))) == ["failed"]


def test_replica_that_died() -> None:
    """A replica that ended though nobody killed it is a fault."""
    assert kinds(judge(attrs.evolve(good_run(), died=["replica 2 ended by itself"]))) == ["replica died"]


def test_all_viewers_are_judged() -> None:
    """A fault at the last of the viewers counts like one at the first, and is told with the viewer's number."""
    run = good_run()
    del run.viewers[2].seen[find(run.viewers[2], 2, 20)]
    (fault,) = judge(run).faults
    assert (fault.kind, fault.viewer) == ("missing", 3)
    assert "20 of 20.1.run0" in str(fault)


# -------------------------------------------------------------------------------------------- shortfalls


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"needed_cuts": 6}, "5 cuts inside running answers, 6 are needed"),
        ({"planned_turns": 3}, "2 of 3 turns"),
        ({"out_of_time": True}, "2 of 2 turns were done in time"),
        ({"stored": None}, "could not be read"),
        ({"counts": {}}, "no replica has opened a leg"),
        ({"counts": {"life-of-2": ReplicaCounts(legs_opened=3, parts_relayed=20)}}, "only 20 relayed"),
        ({"looks": []}, "not seen while an answer was running"),
        ({"looks": [TableLook(turn=1, needles=0, found=[])]}, "not seen while an answer was running"),
        ({"looks": [TableLook(turn=1, needles=5, found=["chats.x"])]}, "stands in the store: chats.x"),
        ({"kill": "viewer"}, "nothing was killed"),
        ({"replica_of": {"life-of-2": 2}}, "no viewer had live parts on the replica that made them"),
    ],
)
def test_shortfall(changes: dict[str, Any], says: str) -> None:
    """What was not really tested is not passed: exit 3, and why."""
    verdict = judge(attrs.evolve(good_run(), **changes))
    assert [] == verdict.faults
    assert any(says in shortfall for shortfall in verdict.shortfalls), verdict.shortfalls
    assert verdict.status == NOT_DONE


def test_faults_outrank_shortfalls() -> None:
    """A run that shows a fault has shown it, however little else it shows."""
    run = good_run()
    run.viewers[0].hung.append(1)
    assert judge(attrs.evolve(run, looks=[])).status == BROKEN


def test_counts_of_killed_replicas_are_not_complete() -> None:
    """What a killed replica relayed last is not known: fewer relayed parts than were seen are no shortfall then."""
    few = {"life-of-2": ReplicaCounts(legs_opened=3, parts_relayed=20)}
    assert [] == judge(attrs.evolve(good_run(), counts=few, kill="viewer", kills=1)).shortfalls


@pytest.mark.parametrize(("replica", "says"), [(1, "on another replica"), (2, "on the replica that made them")])
def test_all_viewers_in_one_place(replica: int, says: str) -> None:
    """Each turn needs a viewer where the answer is made and one elsewhere, with live parts."""
    run = good_run()
    for viewer_record in run.viewers:
        for connection in viewer_record.connections:
            connection.replica = replica
    shortfalls = judge(run).shortfalls
    assert [f"turn {turn}: no viewer had live parts {says}" for turn in STARTS] == [
        shortfall for shortfall in shortfalls if shortfall.startswith("turn")
    ]


def test_cuts_outside_answers_do_not_count() -> None:
    """A socket that is cut while nothing is generated tests nothing that matters here."""
    run = good_run()
    for viewer_record in run.viewers:
        for connection in viewer_record.connections:
            if connection.cut:
                connection.ended_at = 150.0
    assert "0 cuts inside running answers, 2 are needed" in judge(run).shortfalls


def test_connections_lost_by_themselves_are_no_cuts() -> None:
    """Only what the check has cut counts as a cut."""
    run = good_run()
    for viewer_record in run.viewers:
        for connection in viewer_record.connections:
            connection.cut = False
    assert "0 cuts inside running answers, 2 are needed" in judge(run).shortfalls


def test_parts_that_only_come_after_resumes() -> None:
    """Where less than 95 % of what was made while connected came live, resuming was tested and not relaying."""
    run = good_run()
    second = run.viewers[1]
    for index, seen in enumerate(second.seen):
        if isinstance(seen, PartSeen) and seen.connection == 0:
            second.seen[index] = attrs.evolve(seen, at=102.5, connection=1)
    verdict = judge(run)
    assert verdict.live_share < 0.95
    assert [] == verdict.faults
    assert any("came live, not 95%" in shortfall for shortfall in verdict.shortfalls)


def test_no_parts_at_all() -> None:
    """A run in which nothing arrived proves nothing, and does not divide by zero."""
    empty = attrs.evolve(good_run(), viewers=[], turns=[], stored=[])
    assert judge(empty).status == NOT_DONE
    assert judge(empty).live_share == 0.0
