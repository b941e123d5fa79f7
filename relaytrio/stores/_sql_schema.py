"""Two versions of the software on one database, as in a rolling upgrade: the rule, for every SQL store.

A schema has a version, the number of steps that it has had, and says since which version software is compatible with
it. Software brings its steps. It takes those that are missing, and works with a schema that has more steps than it
knows for as long as its own version is not older than `compatible_since`; else it refuses, and has changed nothing.

So a step is additive: new tables, new indexes, new columns with a default, which older software neither names nor
misses. What older software cannot live with (a column that goes, another meaning) is two releases: one that does
without it, and, when none older than that is running any more, one whose step raises `compatible_since`. A step that
was released is never changed: a new one follows it.

Pure. Who calls: the stores, when they open a database.
"""

from __future__ import annotations

import attrs

from .._errors import StoreUnusable


@attrs.frozen
class Step:
    """One step forwards."""

    statements: tuple[str, ...]
    compatible_since: int
    """The oldest version of the software that works with what this step leaves."""


@attrs.frozen
class SchemaState:
    """What a database says of its schema."""

    version: int
    compatible_since: int


def steps_to_take(place: str, state: SchemaState | None, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """What is missing; nothing where the schema is as new or newer. None is a database without tables.

    Raises `StoreUnusable` if this software is too old for the database.
    """
    if state is None:
        return steps
    if state.compatible_since > len(steps):
        raise StoreUnusable(
            f"the database {place} is of schema {state.version}, for software that knows {state.compatible_since} or"
            f" newer; this version knows up to {len(steps)}: use a newer one"
        )
    return steps[state.version :]


def state_after(state: SchemaState | None, taken: tuple[Step, ...]) -> SchemaState | None:
    """What the database says after these steps."""
    if not taken:
        return state
    return SchemaState((0 if state is None else state.version) + len(taken), taken[-1].compatible_since)
