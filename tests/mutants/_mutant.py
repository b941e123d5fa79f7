"""One deliberate breakage of the engine."""

from __future__ import annotations

import attrs


@attrs.frozen
class Mutant:
    """This text of that file, which stands there once, becomes that one; these tests have to see it."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    races: tuple[int, ...] = ()
    """The numbered races (`tests/races`) that it breaks."""
