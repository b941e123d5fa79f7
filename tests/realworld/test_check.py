"""The check itself, for real: it passes where all is well, fails where not, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import attrs
import psycopg
import pytest
import trio

from relaytrio.cli import _check
from relaytrio.cli._check_judge import Verdict, judge
from relaytrio.cli._check_plan import CheckOptions, make_plan
from relaytrio.cli._check_records import PartSeen, RunRecord
from tests.postgres_server import free_port

pytestmark = pytest.mark.realworld

SMALL = ("--replicas", "2", "--viewers", "4", "--pace", "100")
KILLING = (
    "--replicas",
    "3",
    "--viewers",
    "4",
    "--pace",
    "100",
    "--turns",
    "5",
    "--kill",
    "worker",
    "--kill-every",
    "4",
)
OPTIONS = CheckOptions(replicas=2, viewers=4, pace=100, turns=1)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "relaytrio", "check", *options]


def environment(folder: Path) -> dict[str, str]:
    """Temporary folders are made in this one."""
    return {**os.environ, "TMPDIR": str(folder)}


def processes_in(folder: Path | str) -> list[int]:
    """The processes whose command line names something in this folder (or this text), where the system tells."""
    return list(command_lines_with(str(folder)))


def command_lines_with(text: str) -> dict[int, bytes]:
    """The command lines in which that stands, by their processes."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes()
        except OSError:
            continue  # it has just ended
        if text.encode() in arguments:
            found[int(entry.parent.name)] = arguments
    return found


def assert_nothing_left(folder: Path) -> None:
    assert [] == list(folder.iterdir())
    assert [] == processes_in(folder)


async def run_check(folder: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(50):
        return await trio.run_process(
            command(*options), capture_stdout=True, capture_stderr=True, check=False, env=environment(folder)
        )


async def test_it_holds(tmp_path: Path) -> None:
    """A short run on real processes and sockets holds, was a test, says so as JSON, and leaves nothing behind."""
    ended = await run_check(tmp_path, *SMALL, "--turns", "1", "--json")
    assert ended.returncode == 0, ended.stderr.decode()
    told = json.loads(ended.stdout)
    assert told["faults"] == told["shortfalls"] == []
    assert told["totals"]["legs_opened"] > 0
    assert told["totals"]["cuts_inside_answers"] >= 2
    assert ended.stderr == b""
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("options", [("--own-listener",), ("--settings", '{"shared_legs": false}')])
async def test_it_holds_on_other_ways_to_viewers_and_peers(options: tuple[str, ...], tmp_path: Path) -> None:
    """Where viewers have a listener of their own, and where each has a leg of its own."""
    ended = await run_check(tmp_path, *SMALL, "--turns", "1", "--json", *options)
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()
    told = json.loads(ended.stdout)
    assert told["faults"] == told["shortfalls"] == []
    assert told["totals"]["legs_opened"] > 0
    assert told["totals"]["cuts_inside_answers"] >= 2
    assert_nothing_left(tmp_path)


async def test_settings_that_there_are_not(tmp_path: Path) -> None:
    """They are refused before anything is started."""
    ended = await run_check(tmp_path, "--settings", '{"legs": 4}')
    assert (2, b"") == (ended.returncode, ended.stdout)
    assert b"there is no setting legs" in ended.stderr
    assert_nothing_left(tmp_path)


def schemas(url: str) -> list[str]:
    """Those of this package in a database."""
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'relaytrio%' ORDER BY 1")
        return [name for (name,) in found]


async def test_it_holds_on_postgres(postgres_url: str, tmp_path: Path) -> None:
    """Workers are killed in the middle of answers; it holds, the look into the tables too. Of what the database held
    nothing is touched, nothing is left in it, and no command line names its password."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE SCHEMA relaytrio")
    running = ("--store", postgres_url, *KILLING, "--json")
    told: list[subprocess.CompletedProcess[bytes]] = []

    async def check() -> None:
        told.append(await run_check(tmp_path, *running))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(check)
        await until(lambda folder: bool(told) or starting(folder), tmp_path)
        during = schemas(postgres_url)
        assert "relaytrio_check_" == during[-1][:16]
        # The check itself was told in this way, its replicas not. One that has not begun to run yet is still a copy.
        assert 1 == len(set(command_lines_with(postgres_url).values()))
    (ended,) = told
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()
    judged = json.loads(ended.stdout)
    assert judged["faults"] == judged["shortfalls"] == []
    assert judged["totals"]["kills"] > 0
    assert ended.stderr == b""
    assert ["relaytrio"] == schemas(postgres_url)
    assert_nothing_left(tmp_path)


async def test_a_database_that_is_away(tmp_path: Path) -> None:
    """A database that cannot be reached, or a schema that would be somebody else's, is told in one line."""
    for url, status in (
        (f"postgresql://somebody:hunter2@127.0.0.1:{free_port()}/chats", 3),
        ("postgresql://somebody:hunter2@127.0.0.1/chats?schema=relaytrio", 2),
    ):
        ended = await run_check(tmp_path, "--store", url)
        assert ended.returncode == status
        assert len(ended.stderr.decode().splitlines()) == 1
        assert b"hunter2" not in ended.stderr
        assert_nothing_left(tmp_path)


def without_a_part(run: RunRecord) -> RunRecord:
    """A part in the middle never reached the first viewer."""
    first = run.viewers[0]
    parts = [index for index, seen in enumerate(first.seen) if isinstance(seen, PartSeen)]
    seen = [one for index, one in enumerate(first.seen) if index != parts[len(parts) // 2]]
    return attrs.evolve(run, viewers=[attrs.evolve(first, seen=seen), *run.viewers[1:]])


def nothing_looked_at(run: RunRecord) -> RunRecord:
    """Nobody has looked into the store's tables."""
    return attrs.evolve(run, looks=[])


@pytest.mark.parametrize(
    ("plant", "status", "says"), [(without_a_part, 1, "missing: viewer 1"), (nothing_looked_at, 3, "not tested: ")]
)
async def test_a_planted_fault(
    plant: Callable[[RunRecord], RunRecord],
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real run with one thing taken out of what it wrote down fails, with the status and the line of that fault."""

    def judge_planted(run: RunRecord) -> Verdict:
        assert judge(run).status == 0
        return judge(plant(run))

    monkeypatch.setattr(_check, "judge", judge_planted)
    with trio.fail_after(50):
        assert await _check.check(replicas=2, viewers=4, turns=1, pace=100) == status
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--replicas", "1"), ("--viewers", "1"), ("--kill", "nobody"), ("--pace", "0")])
async def test_usage(options: tuple[str, str], tmp_path: Path) -> None:
    """Options that could never be a test end at once with status 2 and one line."""
    ended = await run_check(tmp_path, *options)
    assert ended.returncode == 2
    assert len(ended.stderr.decode().splitlines()) == 1
    assert options[0].lstrip("-") in ended.stderr.decode()
    assert ended.stdout == b""


async def test_out_of_time(tmp_path: Path) -> None:
    """A run that is not done within its time ends then, and proves nothing; nothing is left behind."""
    answering = sum(turn.seconds for turn in make_plan(OPTIONS).turns)
    ended = await run_check(tmp_path, *SMALL, "--turns", "1", "--seconds", str(answering + 0.01))
    assert ended.returncode == 3, ended.stdout
    assert b"Traceback" not in ended.stderr
    assert_nothing_left(tmp_path)


def starting(folder: Path) -> bool:
    """Whether the cluster is being started, or was."""
    return bool(processes_in(folder))


def answering(folder: Path) -> bool:
    """Whether an answer is being made."""
    for database in folder.glob("*/chat.db"):
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            try:
                return connection.execute("SELECT 1 FROM chats WHERE status = 'running'").fetchone() is not None
            except sqlite3.OperationalError:
                return False  # its tables are being made
    return False


async def until(moment: Callable[[Path], bool], folder: Path) -> None:
    with trio.fail_after(30):
        while not moment(folder):  # noqa: ASYNC110 - no event comes out of another process
            await trio.sleep(0.02)


@pytest.mark.parametrize("moment", [starting, answering])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 3)])
async def test_a_signal(moment: Callable[[Path], bool], number: int, status: int, tmp_path: Path) -> None:
    """Whatever ends it before its time, it ends promptly, never claims to have held, and leaves nothing behind."""
    running = command(*SMALL, "--turns", "20")
    process = await trio.lowlevel.open_process(running, stdout=subprocess.PIPE, env=environment(tmp_path))
    assert process.stdout is not None
    async with process.stdout:
        try:
            await until(moment, tmp_path)
            process.send_signal(number)
            with trio.fail_after(20):
                assert await process.wait() == status
        finally:
            process.kill()
    assert_nothing_left(tmp_path)


async def test_a_replica_that_dies(tmp_path: Path) -> None:
    """A replica that ends though the check has not killed it is a fault, whatever else comes of the run."""
    soon = '{"heartbeat_seconds": 0.5, "dead_after_seconds": 2.0}'
    running = command(*SMALL, "--turns", "2", "--settings", soon)
    process = await trio.lowlevel.open_process(running, stdout=subprocess.PIPE, env=environment(tmp_path))
    assert process.stdout is not None
    async with process.stdout:
        try:
            await until(answering, tmp_path)
            os.kill(processes_in(tmp_path)[0], signal.SIGKILL)
            with trio.fail_after(45):
                output = b"".join([chunk async for chunk in process.stdout])
                assert await process.wait() == 1
        finally:
            process.kill()
    assert b"ended by itself" in output
    assert_nothing_left(tmp_path)
