"""The command line from outside, in this process: arguments in, exit status and one line out."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

import relaytrio.__main__ as entry
from relaytrio._engine import VERSION
from relaytrio._errors import EngineFailed
from relaytrio.cli._app import COMMANDS, run

LONG = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RELAYTRIO_SECRET", "RELAYTRIO_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], 'Unknown command "bogus"'),
        (["serve"], "--store"),
        (["serve", "--store", "memory://", "--nonsense"], "--nonsense"),
        (["serve", "--store", "memory://", "--listen", "nowhere"], "--listen is HOST:PORT"),
        (["serve", "--store", "memory://", "--listen", "0.0.0.0:0"], "needs a secret"),
        (["serve", "--store", "memory://", "--advertise", "http://example.org"], "needs a secret"),
        (["serve", "--store", "memory://", "--advertise", "example"], "--advertise is a URL"),
        (["serve", "--store", "memory://", "--secret-file", "/nowhere/secret"], "--secret-file /nowhere/secret"),
        (["serve", "--store", "memory://", "--pace", "fast"], "--pace"),
        (["serve", "--store", "memory://", "--pace", "-1"], "--pace"),
        (["serve", "--store", "nonsense://x", "--listen", "127.0.0.1:0"], "store"),
        (["send"], "--text"),
        (["send", "hello", "--url", "nowhere"], "--url is a URL"),
        (["tail"], "--chat"),
        (["tail", "chat", "--cursor", "not a cursor!"], "not a cursor"),
        (["demo", "--replicas", "0"], "--replicas"),
        (["demo", "--port", "65535"], "--port"),
        (["demo", "--store", "memory://"], "memory"),
    ],
)
def test_a_persons_mistake(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage gives status 2 and says on stderr what is wrong, without a traceback."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert last.startswith("relaytrio: ")
    assert said in last
    assert "Traceback" not in err
    assert out == ""


def test_a_secret_with_any_port_needs_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replica that others dial cannot have a port that nobody knows."""
    file = tmp_path / "secret"
    file.write_text(LONG)
    arguments = ["serve", "--store", "memory://", "--listen", "127.0.0.1:0", "--secret-file", str(file)]
    assert run(arguments) == 2
    assert "--advertise" in capsys.readouterr().err


def test_a_database_that_cannot_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that cannot be opened gives status 3."""
    file = tmp_path / "no database"
    file.write_text("this is no database, whatever its name may be; it is text")
    assert run(["serve", "--store", f"sqlite:///{file}", "--listen", "127.0.0.1:0"]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version alone."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{VERSION}\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Help names every command, and not the options that are for our own processes."""
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert run(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--store" in text
    assert "--exit-with-stdin" not in text
    assert "--stamp-times" not in text


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C gives 130 and no traceback."""

    async def interrupted() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    monkeypatch.setattr("relaytrio.cli._demo.demo", interrupted)
    assert run(["demo"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_engine_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed engine gives status 1, where it failed, and at the end one line that says why."""

    async def failing() -> None:
        await trio.lowlevel.checkpoint()
        raise EngineFailed("replica 1 failed") from ExceptionGroup("", [ValueError("why")])

    monkeypatch.setattr("relaytrio.cli._demo.demo", failing)
    assert run(["demo"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("Traceback" in line for line in lines)
    assert lines[-1] == "relaytrio: replica 1 failed: ValueError: why"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody has foreseen is not hidden."""

    async def broken() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("bug")

    monkeypatch.setattr("relaytrio.cli._demo.demo", broken)
    with pytest.raises(KeyError):
        run(["demo"])


@pytest.fixture
def without_cyclopts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were not installed."""
    ordinary = builtins.__import__

    def guarded(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and name.partition(".")[0] in ("cyclopts", "rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return ordinary(name, globals, locals, fromlist, level)

    monkeypatch.delitem(sys.modules, "relaytrio.cli._app")
    monkeypatch.setattr(builtins, "__import__", guarded)


@pytest.mark.usefixtures("without_cyclopts")
def test_without_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extra the command says, in one line, what to install."""
    assert entry.main() == 2
    assert capsys.readouterr().err == "relaytrio: the command line needs: pip install 'relaytrio[demo]'\n"
