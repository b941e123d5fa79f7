"""Each numbered race is run, and has a breakage of the engine that it would see."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import relay, viewer, worker
from tests.races.race import ORDERS, RACES

ROOT = Path(__file__).parents[2]
MUTANTS = (*relay.MUTANTS, *viewer.MUTANTS, *worker.MUTANTS)


def count_tests() -> Counter[int]:
    found = [
        int(number)
        for path in Path(__file__).parent.glob("test_*.py")
        for number in re.findall(r"^@race\((\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return Counter(found)


@pytest.mark.parametrize("number", RACES)
def test_every_race_has_tests_and_a_mutant(number: int) -> None:
    """A number without a test was never raced; one without a breakage may be raced in vain."""
    assert count_tests()[number] > 0
    assert [mutant.name for mutant in MUTANTS if number in mutant.races]
    assert ORDERS >= 20


def test_mutants_name_races_and_tests_that_there_are() -> None:
    """And apply: what they break stands in its file, once."""
    for mutant in MUTANTS:
        assert set(mutant.races) <= set(RACES), mutant.name
        assert 1 == (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old), mutant.name
        for test in mutant.tests.split():
            path, _, name = test.partition("::")
            assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8"), test
