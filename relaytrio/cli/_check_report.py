"""What a person, or a program, reads of a check. Pure but for the progress line. Who calls: `_check.py`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ._check_follow import Followed
from ._check_judge import Verdict
from ._check_plan import CheckPlan
from ._check_records import ANSWERED, RunRecord


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so much of all do not exceed; None where there is none."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


@attrs.frozen(kw_only=True)
class Totals:
    """The sums over all viewers."""

    parts_made: int
    delivered_live: int
    delivered_after_resume: int
    missing: int
    doubled: int
    out_of_order: int
    resets: Mapping[str, int]
    hung_viewers: int
    legs_opened: int
    parts_relayed: int
    cuts: int
    cuts_inside_answers: int
    resumes_after_end: int
    kills: int
    live_share: float
    part_latency_p50_seconds: float | None
    part_latency_p99_seconds: float | None
    first_part_after_resume_p50_seconds: float | None
    first_part_after_resume_p99_seconds: float | None


def totals_of(verdict: Verdict, run: RunRecord) -> Totals:
    """The sums of a verdict."""
    viewers = verdict.viewers
    latencies = [seconds for viewer in viewers for seconds in viewer.latencies]
    first_parts = [seconds for viewer in viewers for seconds in viewer.first_parts]
    return Totals(
        parts_made=verdict.parts_made,
        delivered_live=sum(viewer.live for viewer in viewers),
        delivered_after_resume=sum(viewer.resumed for viewer in viewers),
        missing=sum(len(viewer.missing) for viewer in viewers),
        doubled=sum(len(viewer.doubled) for viewer in viewers),
        out_of_order=sum(_out_of_order(viewer) for viewer in viewers),
        resets=dict(sum((viewer.resets for viewer in viewers), Counter())),
        hung_viewers=verdict.hung,
        legs_opened=verdict.legs_opened,
        parts_relayed=verdict.parts_relayed,
        cuts=sum(viewer.cuts for viewer in viewers),
        cuts_inside_answers=sum(viewer.cuts_inside for viewer in viewers),
        resumes_after_end=sum(viewer.resumes_after_end for viewer in viewers),
        kills=run.kills,
        live_share=verdict.live_share,
        part_latency_p50_seconds=percentile(latencies, 0.5),
        part_latency_p99_seconds=percentile(latencies, 0.99),
        first_part_after_resume_p50_seconds=percentile(first_parts, 0.5),
        first_part_after_resume_p99_seconds=percentile(first_parts, 0.99),
    )


def _out_of_order(viewer: Followed) -> int:
    return len(viewer.out_of_order) + len(viewer.late)


def report_lines(verdict: Verdict, run: RunRecord, plan: CheckPlan) -> Iterator[str]:
    """A line a viewer, the summary, and what was wrong."""
    for viewer in verdict.viewers:
        yield _viewer_line(viewer)
    for turn in run.turns:
        if turn.outcome != ANSWERED:
            yield f"turn {turn.number}: {turn.outcome}"
    yield from _summary(totals_of(verdict, run), len(run.turns))
    yield from (str(fault) for fault in verdict.faults)
    yield from (f"not tested: {shortfall}" for shortfall in verdict.shortfalls)
    words = {0: "it held", 1: "an invariant broke", 3: "it proves nothing"}
    yield f"{words[verdict.status]} (seed {plan.options.seed})"


def _viewer_line(viewer: Followed) -> str:
    return (
        f"viewer {viewer.number}: {viewer.live} parts live, {viewer.resumed} after a resume, "
        f"{len(viewer.missing)} missing, {len(viewer.doubled)} doubled, {_out_of_order(viewer)} out of order, "
        f"{viewer.cuts} cuts, {_resets(viewer.resets)}"
    )


def _summary(totals: Totals, turns: int) -> Iterator[str]:
    yield (
        f"{turns} turns, {totals.parts_made} parts made, {totals.delivered_live} delivered live, "
        f"{totals.delivered_after_resume} after a resume, {totals.missing} missing, {totals.doubled} doubled, "
        f"{totals.out_of_order} out of order"
    )
    yield (
        f"{totals.live_share:.1%} of what was made while a viewer was connected came live; "
        f"{totals.cuts} cuts, {totals.cuts_inside_answers} of them inside running answers; "
        f"{totals.resumes_after_end} resumes after an end"
    )
    yield (
        f"{totals.legs_opened} legs, {totals.parts_relayed} parts relayed; {totals.kills} kills; "
        f"{_resets(totals.resets)}; {totals.hung_viewers} viewers hung"
    )
    p50, p99 = _shown(totals.part_latency_p50_seconds), _shown(totals.part_latency_p99_seconds)
    yield f"part latency: p50 {p50}, p99 {p99}"
    p50, p99 = _shown(totals.first_part_after_resume_p50_seconds), _shown(totals.first_part_after_resume_p99_seconds)
    yield f"first part after a resume: p50 {p50}, p99 {p99}"


def _resets(resets: Mapping[str, int]) -> str:
    shown = ", ".join(f"{reason} {count}" for reason, count in sorted(resets.items()))
    return f"resets: {shown or 'none'}"


def _shown(seconds: float | None) -> str:
    return "none" if seconds is None else f"{seconds * 1000:.1f} ms"


def report_json(verdict: Verdict, run: RunRecord, plan: CheckPlan) -> dict[str, Any]:
    """The same for a program."""
    return {
        "status": verdict.status,
        "options": attrs.asdict(plan.options, filter=lambda field, _: field.name != "store"),  # may hold a password
        "totals": attrs.asdict(totals_of(verdict, run)),
        "turns": [
            {"number": turn.number, "name": turn.name, "parts": len(turn.tokens), "outcome": turn.outcome}
            for turn in run.turns
        ],
        "viewers": [_viewer_json(viewer) for viewer in verdict.viewers],
        "table_looks": [attrs.asdict(look) for look in run.looks],
        "faults": [attrs.asdict(fault) for fault in verdict.faults],
        "shortfalls": list(verdict.shortfalls),
    }


def _viewer_json(viewer: Followed) -> dict[str, Any]:
    return {
        "number": viewer.number,
        "delivered_live": viewer.live,
        "delivered_after_resume": viewer.resumed,
        "missing": len(viewer.missing),
        "doubled": len(viewer.doubled),
        "out_of_order": _out_of_order(viewer),
        "resets": dict(viewer.resets),
        "cuts": viewer.cuts,
        "cuts_inside_answers": viewer.cuts_inside,
        "resumes_after_end": viewer.resumes_after_end,
    }


class Progress:
    """One line on stderr that says how far it is, where a person sees it; a context manager."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._live is not None:
            self._live.update(Text(text), refresh=True)
