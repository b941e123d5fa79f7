"""`python -m benchmarks [--quick] [NAME ...]`: without a name, all of them.

Prints a table, and puts the rows into `benchmarks/results/results.json` and the plots beside it; a quick run, whose
figures are worth less, keeps nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

OWN = ("relaytrio", "benchmarks", "tests")

try:
    from rich.console import Console

    from . import fanout, growth, idle, joining, latency, many, races, relay, sending, stores, takeover
    from ._plot import save_plots
    from ._report import Report, print_rows, save_rows
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing in OWN:
        raise
    print(f"the benchmarks need {missing}: pip install -e '.[bench]'", file=sys.stderr)
    sys.exit(2)


def _with_its_own_table(measure: Callable[[], None], _: Report) -> None:
    measure()


BENCHMARKS: dict[str, Callable[[Report], None]] = {
    "relay": relay.main,
    "sending": sending.main,
    "latency": latency.main,
    "many": many.main,
    "fanout": fanout.main,
    "joining": joining.main,
    "idle": idle.main,
    "growth": growth.main,
    "takeover": takeover.main,
    "races": races.main,
    **{name: partial(_with_its_own_table, measure) for name, measure in stores.BENCHMARKS.items()},
}
PARTS_OF_OTHERS = {name for name in stores.BENCHMARKS if "." in name}


def main(arguments: Sequence[str]) -> int:
    """Run the named ones; 2 if there is no such name. A target that was missed is in the table, and no failure."""
    names = [argument for argument in arguments if argument != "--quick"]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    report = Report(quick="--quick" in arguments)
    for name in names or [name for name in BENCHMARKS if name not in PARTS_OF_OTHERS]:
        with report.running(name):
            BENCHMARKS[name](report)
    if report.rows:
        print_rows(report.rows, Console())
    if not report.quick and (report.rows or report.curves):
        save_plots(report.curves, save_rows(report.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
