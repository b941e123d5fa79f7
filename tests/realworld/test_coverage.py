"""The rules are tested whole: every branch of `_protocol/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]


def test_every_branch_of_the_rules_is_tested(tmp_path: Path) -> None:
    """The tests of the pure layer alone reach all of it."""
    environment = {**os.environ, "COVERAGE_FILE": str(tmp_path / "coverage")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/protocol"]
    options = ["--cov=relaytrio/_protocol", "--cov-branch", "--cov-fail-under=100", "--cov-report=term-missing"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert 0 == done.returncode, done.stdout[-3000:] + done.stderr[-1000:]
