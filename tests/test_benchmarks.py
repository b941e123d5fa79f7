"""`python -m benchmarks`, as far as it is seen without measuring anything."""

from __future__ import annotations

import runpy
import sys

import pytest


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and not by a traceback."""
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delitem(sys.modules, "rich.console", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks", run_name="__main__")
    assert 2 == ended.value.code
    assert "the benchmarks need rich: pip install -e '.[bench]'\n" == capsys.readouterr().err
