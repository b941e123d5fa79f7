"""The rules are pure: what `_protocol/` may import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import relaytrio._protocol

FILES = sorted(Path(relaytrio._protocol.__file__).parent.glob("*.py"))
LIBRARIES = {"attrs", "msgspec"}
STANDARD = {"__future__", "bisect", "collections", "enum", "functools", "itertools", "math", "operator", "re", "typing"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_rules_import_nothing_that_acts(file: Path) -> None:
    """No Trio, clock, randomness, logging or I/O: only values, each other, and the errors."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= LIBRARIES | STANDARD
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert str(node.module).partition(".")[0] in LIBRARIES | STANDARD
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 or (node.level, node.module) == (2, "_errors")
