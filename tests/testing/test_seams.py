"""A stop at a seam that there is not is refused at once."""

from __future__ import annotations

from typing import Any

import pytest

from relaytrio.testing import watch_seams


def test_a_seam_that_there_is_not() -> None:
    """Nobody would ever come there, and the test would wait for ever: so it is told, with the names that there are."""
    misspelt: Any = "sealed, not comitted"
    with watch_seams() as seams, pytest.raises(ValueError, match=r"'sealed, not comitted'.*'sealed, not committed'"):
        seams.stop(misspelt)
