"""What the replica of `watcher.py` tells `idle.py`."""

from __future__ import annotations

import attrs

WATCHED = 10_000


@attrs.frozen
class Used:
    """By a replica, since it was started."""

    seconds: float
    """When: on its clock."""
    cpu_seconds: float
    queries: int
    """Statements, without BEGIN and COMMIT; memory has none."""
