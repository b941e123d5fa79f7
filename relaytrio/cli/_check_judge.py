"""Whether it held, and whether it was really tested: from what a run wrote down to a verdict.

Pure. Two questions, apart from each other: *faults* are what an invariant of the engine forbids (exit 1); *shortfalls*
are what the run would have needed to prove anything (exit 3). Who calls: `_check.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from .._protocol.events import Episode
from ._check_follow import Followed, Made, follow, gather_made
from ._check_records import (
    ANSWERED,
    NEVER_ENDED,
    UNFINISHED,
    WORKER_LOST,
    RunRecord,
    StoredMessage,
    TurnRecord,
    ViewerRecord,
)
from ._status import BROKEN, HELD, NOT_DONE

LIVE_SHARE = 0.95
"""Of the parts made while a viewer was connected, this much must have come live: else resuming was tested instead."""
SHOWN = 3
"""Examples in a line."""


@attrs.frozen(kw_only=True)
class Fault:
    """An invariant that broke."""

    kind: str
    text: str
    viewer: int | None = None
    turn: int | None = None

    def __str__(self) -> str:
        where = [f"viewer {self.viewer}"] if self.viewer is not None else []
        where += [f"turn {self.turn}"] if self.turn is not None else []
        return f"{self.kind}: {' '.join([*where, self.text])}"


@attrs.frozen(kw_only=True)
class Verdict:
    """What came of it."""

    viewers: Sequence[Followed]
    hung: int
    """Viewers that had not seen the end of some turn in time."""
    parts_made: int
    legs_opened: int
    parts_relayed: int
    faults: Sequence[Fault]
    shortfalls: Sequence[str]
    """Why it proves nothing."""

    @property
    def status(self) -> int:
        """The exit status."""
        if self.faults:
            return BROKEN
        return NOT_DONE if self.shortfalls else HELD

    @property
    def live_share(self) -> float:
        """Of the parts made while a viewer was connected, those that came live."""
        due = sum(viewer.due_live for viewer in self.viewers)
        return sum(viewer.came_live for viewer in self.viewers) / due if due else 0.0


def judge(run: RunRecord) -> Verdict:
    """The verdict on a run."""
    made = gather_made(run.viewers, run.turns, out_of_time=run.out_of_time)
    followed = [follow(viewer, made, run.replica_of) for viewer in run.viewers]
    verdict = Verdict(
        viewers=followed,
        hung=sum(bool(viewer.hung) for viewer in run.viewers),
        parts_made=sum(len(times) for times in made.sent_at.values()),
        legs_opened=sum(counts.legs_opened for counts in run.counts.values()),
        parts_relayed=sum(counts.parts_relayed for counts in run.counts.values()),
        faults=[*_faults(run, followed)],
        shortfalls=[],
    )
    return attrs.evolve(verdict, shortfalls=[*_shortfalls(run, verdict, made)])


# ------------------------------------------------------------------------------------------------ faults


def _faults(run: RunRecord, followed: Sequence[Followed]) -> Iterator[Fault]:
    for text in run.died:
        yield Fault(kind="replica died", text=text)
    for turn in run.turns:
        yield from _turn_faults(turn, run.kill)
    if run.stored is not None:
        yield from _store_faults(run)
    for viewer, had in zip(run.viewers, followed, strict=True):
        yield from _viewer_faults(viewer, had)
        # A viewer that hangs, or whose stream failed, lacks the rest: that is said already.
        if run.stored is not None and not viewer.hung and viewer.failure is None:
            yield from _history_faults(had, run.stored)


def _turn_faults(turn: TurnRecord, kill: str | None) -> Iterator[Fault]:
    if turn.outcome == NEVER_ENDED:
        yield Fault(kind="never ended", turn=turn.number, text="the store has no end of the answer")
    elif turn.outcome not in (ANSWERED, UNFINISHED) and not (turn.outcome == WORKER_LOST and kill == "worker"):
        yield Fault(kind="failed", turn=turn.number, text=f"ended in error: {turn.outcome}")


def _store_faults(run: RunRecord) -> Iterator[Fault]:
    """The store holds each question, and behind it what the responder made of it."""
    assert run.stored is not None
    rest = list(run.stored)
    for turn in run.turns:
        if turn.outcome in (NEVER_ENDED, UNFINISHED):
            return
        question = rest.pop(0) if rest else None
        if question is None or (question.role, question.text) != ("user", turn.name):
            yield Fault(kind="store differs", turn=turn.number, text="the question is not where it belongs")
            return
        reply = rest.pop(0) if rest and rest[0].role == "assistant" else None
        if not _is_answer(reply, turn):
            yield Fault(kind="store differs", turn=turn.number, text="the answer is not what the responder made")
    if rest:
        yield Fault(kind="store differs", text=f"{len(rest)} messages more than were asked for")


def _is_answer(reply: StoredMessage | None, turn: TurnRecord) -> bool:
    whole = "".join(turn.tokens)
    if turn.outcome == ANSWERED:
        return reply is not None and reply.text == whole and not reply.interrupted
    return reply is None or (reply.interrupted and whole.startswith(reply.text))


def _viewer_faults(viewer: ViewerRecord, had: Followed) -> Iterator[Fault]:
    kinds = {
        "missing": had.missing,
        "doubled": had.doubled,
        "out of order": had.out_of_order,
        "after the end": had.late,
        "not what was made": had.strange,
    }
    for kind, where in kinds.items():
        if where:
            yield Fault(kind=kind, viewer=viewer.number, text=_listed(where))
    if had.messages_again:
        yield Fault(kind="message doubled", viewer=viewer.number, text=f"ids {had.messages_again[:SHOWN]}")
    for text in viewer.broken:
        yield Fault(kind="stream broken", viewer=viewer.number, text=text)
    for turn in viewer.hung:
        yield Fault(kind="hung", viewer=viewer.number, turn=turn, text="has not seen the end that the store has")
    if viewer.failure is not None:
        yield Fault(kind="stream failed", viewer=viewer.number, text=viewer.failure)


def _history_faults(had: Followed, stored: Sequence[StoredMessage]) -> Iterator[Fault]:
    theirs = {message.id: (message.role, message.text) for message in stored}
    ours = {message.id: (message.role, message.text) for message in had.history.values()}
    different = sorted(id for id in {*theirs, *ours} if theirs.get(id) != ours.get(id))
    if different:
        text = f"its messages {different[:SHOWN]} are not the store's"
        yield Fault(kind="history differs", viewer=had.number, text=text)


def _listed(where: Sequence[tuple[Episode, int]]) -> str:
    shown = ", ".join(f"{seq} of {episode}" for episode, seq in where[:SHOWN])
    return f"{len(where)} parts: {shown}{', ...' if len(where) > SHOWN else ''}"


# -------------------------------------------------------------------------------------------- shortfalls


def _shortfalls(run: RunRecord, verdict: Verdict, made: Made) -> Iterator[str]:
    done = sum(turn.outcome not in (NEVER_ENDED, UNFINISHED) for turn in run.turns)
    if run.out_of_time or done < run.planned_turns:
        yield f"{done} of {run.planned_turns} turns were done in time"
    if run.stored is None:
        yield "the store's messages could not be read"
    yield from _unwatched(run, verdict)
    yield from _without_legs(run, verdict)
    cuts = sum(viewer.cuts_inside for viewer in verdict.viewers)
    if cuts < run.needed_cuts:
        yield f"{cuts} cuts inside running answers, {run.needed_cuts} are needed"
    if verdict.live_share < LIVE_SHARE:
        yield f"{verdict.live_share:.1%} of the parts made while a viewer was connected came live, not {LIVE_SHARE:.0%}"
    yield from _looks(run)
    if run.kill is not None and not run.kills:
        yield "nothing was killed"


def _unwatched(run: RunRecord, verdict: Verdict) -> Iterator[str]:
    """In every turn a viewer had live parts where the answer was made, and another one elsewhere."""
    for turn in run.turns:
        if turn.outcome != ANSWERED:
            continue
        ways = {way for viewer in verdict.viewers for way in viewer.live_at.get(turn.number, ())}
        if 0 not in ways:
            yield f"turn {turn.number}: no viewer had live parts on the replica that made them"
        if 1 not in ways:
            yield f"turn {turn.number}: no viewer had live parts on another replica"


def _without_legs(run: RunRecord, verdict: Verdict) -> Iterator[str]:
    """Remote parts came over legs, as the replicas' own counts say. Those of a killed life are not all known."""
    remote: set[tuple[int, Episode, int]] = set()
    for viewer in verdict.viewers:
        remote |= viewer.remote
    if not verdict.legs_opened or not verdict.parts_relayed:
        yield "no replica has opened a leg and relayed parts over it"
    elif not run.kills and verdict.parts_relayed < len(remote):
        yield f"{len(remote)} parts were seen elsewhere than they were made, but only {verdict.parts_relayed} relayed"


def _looks(run: RunRecord) -> Iterator[str]:
    if not any(look.needles for look in run.looks):
        yield "the store's tables were not seen while an answer was running"
    for look in run.looks:
        if look.found:
            yield f"turn {look.turn}: text of a running answer stands in the store: {', '.join(look.found)}"
