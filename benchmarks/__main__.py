"""`python -m benchmarks [--quick] [NAME ...]`: without a name, all of them.

Prints a table, and puts the rows into `benchmarks/results/results.json` and the plots beside it; a quick run, whose
figures are worth less, keeps nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from . import fanout, growth, idle, joining, latency, many, races, relay, sending, stores, takeover
from ._plot import save_plots
from ._report import Report, print_rows, save_rows


def _alone(main: Callable[[], None]) -> Callable[[Report], None]:
    """One that prints its own table and has no rows."""
    return lambda report: main()


BENCHMARKS: dict[str, Callable[[Report], None]] = {
    "relay": relay.main,
    "sending": sending.main,
    "latency": latency.main,
    "many": many.main,
    "joining": joining.main,
    "idle": idle.main,
    "growth": growth.main,
    "races": races.main,
    "fanout": _alone(fanout.main),
    "takeover": _alone(takeover.main),
    **{name: _alone(main) for name, main in stores.BENCHMARKS.items()},
}
ALL = tuple(name for name in BENCHMARKS if "." not in name)
"""The rest are parts of these."""


def main(arguments: Sequence[str]) -> int:
    """Run the named ones; 2 if there is no such name. A target that was missed is in the table, and no failure."""
    names = [argument for argument in arguments if argument != "--quick"]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    report = Report(quick="--quick" in arguments)
    for name in names or ALL:
        with report.running(name):
            BENCHMARKS[name](report)
    if report.rows:
        print_rows(report.rows, Console())
    if not report.quick:
        save_plots(report.curves, save_rows(report.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
