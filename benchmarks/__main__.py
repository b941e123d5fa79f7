"""`python -m benchmarks [NAME ...]`: without a name, all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from . import fanout, races, stores, takeover

BENCHMARKS: dict[str, Callable[[], None]] = {
    "fanout": fanout.main,
    "races": races.main,
    "takeover": takeover.main,
    **stores.BENCHMARKS,
}


def main(names: Sequence[str]) -> int:
    """Run the named ones; 2 if there is no such name."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names or ("races", "stores"):
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
