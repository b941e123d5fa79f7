"""What a benchmark reports: rows of figures, each with its peers of the same run, their ratios, and its target.

A benchmark is a function that takes a `Report`, measures, and adds rows to it. Figures come as lists, one for each
round; a ratio is taken within a round, since what else the machine does hits both alike. Must not know: what is
measured, processes.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import attrs
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@attrs.frozen
class Spread:
    """The median of some rounds, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Of one figure a round."""
        return cls(statistics.median(figures), min(figures), max(figures))


@attrs.frozen
class Target:
    """What a row is to reach. Make it with `at_least` or `at_most`."""

    limit: float
    of: str | None
    """The peer whose multiple it is; None: a figure in the row's unit."""
    least: bool

    def text(self, unit: str) -> str:
        """As it stands in the table."""
        sign = "≥" if self.least else "≤"
        return f"{sign} {figure(self.limit)} {unit}" if self.of is None else f"{sign} {self.limit:g} x {self.of}"

    def held_by(self, ours: float, ratios: Mapping[str, Spread]) -> bool:
        """Whether the median reaches it."""
        reached = ours if self.of is None else ratios[self.of].median
        return reached >= self.limit if self.least else reached <= self.limit


def at_least(limit: float, of: str | None = None) -> Target:
    """More is better; with `of`, as a multiple of what that peer has in the same round."""
    return Target(limit, of, least=True)


def at_most(limit: float, of: str | None = None) -> Target:
    """Less is better."""
    return Target(limit, of, least=False)


@attrs.frozen(kw_only=True)
class Row:
    """One line of the table, one object of results.json. Make it with `row`."""

    benchmark: str
    name: str
    unit: str
    ours: Spread
    peers: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    """Ours divided by each peer's, round by round."""
    targets: Sequence[Target] = ()
    note: str = ""

    @property
    def held(self) -> bool | None:
        """Whether all targets are reached; None if there is none, and for one whose peer was left out."""
        known = [target for target in self.targets if target.of is None or target.of in self.ratios]
        if not known:
            return None
        return all(target.held_by(self.ours.median, self.ratios) for target in known)

    @property
    def target(self) -> str:
        """What is to be reached, in words."""
        return ", ".join(target.text(self.unit) for target in self.targets)

    def as_json(self) -> dict[str, Any]:
        """An object of results.json."""
        return {
            "benchmark": self.benchmark,
            "name": self.name,
            "unit": self.unit,
            "ours": _rounded(self.ours),
            "peers": {name: _rounded(spread) for name, spread in self.peers.items()},
            "ratio": {name: _rounded(spread) for name, spread in self.ratios.items()},
            "target": self.target,
            "held": self.held,
            "note": self.note,
        }


def row(
    name: str,
    unit: str,
    ours: Sequence[float],
    peers: Mapping[str, Sequence[float]] | None = None,
    *,
    targets: Sequence[Target] = (),
    note: str = "",
) -> Row:
    """A row from one figure a round, of ours and of each peer. `Report.add` says which benchmark it belongs to."""
    peers = peers or {}
    return Row(
        benchmark="",
        name=name,
        unit=unit,
        ours=Spread.of(ours),
        peers={peer: Spread.of(figures) for peer, figures in peers.items()},
        ratios={peer: Spread.of(_divided(ours, figures)) for peer, figures in peers.items()},
        targets=targets,
        note=note,
    )


Points: TypeAlias = Sequence[tuple[float, float]]


@attrs.frozen(kw_only=True)
class Curve:
    """How a cost grows: one line of a plot."""

    plot: str
    """The name of the plot's file; curves of one plot stand in it together."""
    label: str
    x: str
    y: str
    points: Points


@attrs.define
class Report:
    """Where a benchmark says what it found, and how it is to run."""

    quick: bool = False
    """A short run: a round of each is enough, and the long ends of curves are left out."""
    rows: list[Row] = attrs.field(factory=list)
    curves: list[Curve] = attrs.field(factory=list)
    _benchmark: str = ""
    _progress: Progress | None = None
    _console: Console = attrs.field(factory=lambda: Console(stderr=True))

    @property
    def rounds(self) -> int:
        """How often each thing is measured, interleaved with its peers."""
        return 1 if self.quick else 5

    def add(self, added: Row) -> None:
        """One row is measured."""
        self.rows.append(attrs.evolve(added, benchmark=self._benchmark))

    def add_curve(self, curve: Curve) -> None:
        """One curve is measured."""
        self.curves.append(curve)

    def each_round(self, what: str) -> Iterator[int]:
        """The numbers of the rounds, with a display of how far it is."""
        for number in range(self.rounds):
            self.step(f"{what}, round {number + 1} of {self.rounds}")
            yield number

    def step(self, text: str) -> None:
        """What is being done now."""
        if self._progress is None:
            # Not before: there are benchmarks with a display of their own.
            columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.add_task(self._benchmark, total=None)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], description=f"{self._benchmark}: {text}")

    @contextmanager
    def running(self, benchmark: str) -> Iterator[None]:
        """What is added meanwhile belongs to that benchmark."""
        self._benchmark = benchmark
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.stop()
            self._progress = None


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """The table on the terminal."""
    table = Table("benchmark", "what", "ours", "beside it", "ratio", "target", "held", title=machine())
    for shown in rows:
        peers = "\n".join(f"{name} {_span(spread)}" for name, spread in shown.peers.items())
        ratios = "\n".join(_span(spread) for spread in shown.ratios.values())
        held = {True: "yes", False: "NO", None: ""}[shown.held]
        ours = f"{_span(shown.ours)} {shown.unit}"
        table.add_row(shown.benchmark, shown.name, ours, peers, ratios, shown.target, held)
    console.print(table)
    for shown in rows:
        if shown.note:
            console.print(f"{shown.name}: {shown.note}", highlight=False, style="dim")


def save_rows(rows: Sequence[Row], path: Path = RESULTS / "results.json") -> list[dict[str, Any]]:
    """Put these rows into the file, in place of those that it has of the same names. Gives all that it has then."""
    path.parent.mkdir(exist_ok=True)
    kept: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {(shown.benchmark, shown.name): shown.as_json() for shown in rows}
    merged = [new.pop((old["benchmark"], old["name"]), old) for old in kept]
    merged.extend(new.values())
    path.write_text(json.dumps({"machine": machine(), "rows": merged}, indent=1, ensure_ascii=False) + "\n")
    return merged


def machine() -> str:
    """What it was measured on."""
    cores = _count_cores()
    return f"{cores} x {_processor()}, {platform.system()} {platform.release()}, Python {sys.version.split()[0]}"


def figure(number: float) -> str:
    """Three digits, and no more."""
    if abs(number) >= 100:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:.3g}"


def _span(spread: Spread) -> str:
    if spread.low == spread.high:
        return figure(spread.median)
    return f"{figure(spread.median)} ({figure(spread.low)} .. {figure(spread.high)})"


def _rounded(spread: Spread) -> dict[str, float]:
    return {name: float(f"{number:.4g}") for name, number in attrs.asdict(spread).items()}


def _divided(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
