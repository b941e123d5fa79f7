"""From a URL to a store, or to an error that says what is wrong with the URL."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest

from relaytrio._errors import ConfigurationError
from relaytrio.stores import MemoryStore, SqliteStore, open_store
from relaytrio.stores._open import SqlitePlace, parse_url
from relaytrio.stores._postgres_place import POOL_SIZE, PostgresPlace


async def test_memory_is_new_each_time() -> None:
    """Two stores of `memory://` have nothing to do with each other."""
    async with open_store("memory://") as first, open_store("memory://") as second:
        assert isinstance(first, MemoryStore)
        assert first is not second
        assert "memory://" == first.url


async def test_sqlite_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its absolute path, or in the working directory; the options count."""
    monkeypatch.chdir(tmp_path)
    for url in (f"sqlite:///{tmp_path}/a.db?synchronous=full", "sqlite:///a.db?synchronous=FULL"):
        async with open_store(url) as store:
            assert isinstance(store, SqliteStore)
            assert (tmp_path / "a.db", f"sqlite:///{tmp_path}/a.db") == (store.path, store.url)
            assert (2,) == store._connection.execute("PRAGMA synchronous").fetchone()


async def test_the_argument_outranks_the_url(tmp_path: Path) -> None:
    """What the program says counts more than what its configuration says."""
    async with open_store(f"sqlite:///{tmp_path}/a.db?synchronous=full", synchronous="NORMAL") as store:
        assert isinstance(store, SqliteStore)
        assert (1,) == store._connection.execute("PRAGMA synchronous").fetchone()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("memory://", None),
        ("sqlite:///relative.db", SqlitePlace("relative.db", "NORMAL")),
        ("sqlite:////var/lib/chat.db", SqlitePlace("/var/lib/chat.db", "NORMAL")),
        ("sqlite:///my%20chats%3F.db", SqlitePlace("my chats?.db", "NORMAL")),
    ],
)
def test_what_urls_name(url: str, place: SqlitePlace | None) -> None:
    """Three slashes for a relative path, four for an absolute one."""
    assert place == parse_url(url)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (
            "postgresql://me:hunter2@host:5433/db",
            PostgresPlace("postgresql://me:hunter2@host:5433/db", "relaytrio", POOL_SIZE, "postgresql://host:5433/db"),
        ),
        (
            "postgres://me:hunter2@one,two:1/db?schema=mine&sslmode=require&pool_size=3&password=hunter2",
            PostgresPlace(
                "postgresql://me:hunter2@one,two:1/db?sslmode=require&password=hunter2",
                "mine",
                3,
                "postgresql://one,two:1/db?schema=mine",
            ),
        ),
        (
            "postgresql:///db?host=/run/postgresql&options=-c%20geqo%3Doff&schema=mine",
            PostgresPlace(
                "postgresql:///db?host=/run/postgresql&options=-c%20geqo%3Doff",
                "mine",
                POOL_SIZE,
                "postgresql:///db?schema=mine",
            ),
        ),
        (
            "postgresql://me:hunter2%40%25@[::1]:5433/db?password=hunter2+%2B",
            PostgresPlace(
                "postgresql://me:hunter2%40%25@[::1]:5433/db?password=hunter2+%2B",
                "relaytrio",
                POOL_SIZE,
                "postgresql://[::1]:5433/db",
            ),
        ),
    ],
)
def test_what_postgresql_urls_name(url: str, place: PostgresPlace) -> None:
    """Our options are taken out, libpq's stay as they were written, and no text that is shown has a password."""
    assert place == parse_url(url)
    assert "hunter2" not in repr(place)


@pytest.mark.parametrize("character", ["#", "?", "/", "@"])
@pytest.mark.parametrize("url", ["postgresql://me:hun{}ter2@host/db", "postgresql:me:hun{}ter2@host/db"])
def test_a_password_that_is_not_encoded_is_not_told(url: str, character: str) -> None:
    """What is before its special character looks like a host and a port, and what is behind it like anything else."""
    with pytest.raises(ConfigurationError, match=r"a password, .* are written %2F %3F %23 %40 and %25") as caught:
        parse_url(url.format(character))
    assert "hun" not in str(caught.value)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@host/db?no_such_option=1", "postgresql://me:hunter%2@host/db"]
)
async def test_what_only_libpq_refuses_is_said_without_its_words(url: str) -> None:
    """They would hold the password."""
    with pytest.raises(ConfigurationError, match="none that PostgreSQL's library understands") as caught:
        async with open_store(url):
            raise AssertionError("it was opened")
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


async def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is an extra; without it, the error says which."""
    monkeypatch.setitem(sys.modules, "relaytrio.stores.postgres", None)
    with pytest.raises(ConfigurationError, match=r"relaytrio\[postgres\]"):
        async with open_store("postgresql://host/db"):
            raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("", "no scheme"),
        ("chat.db", "no scheme"),
        ("mysql://me:hunter2@host/db", "mysql"),
        ("postgresql://me:hunter2@host/db?schema=pg_mine", "schema must be"),
        ("postgresql://me:hunter2@host/db?schema=a;b", "schema must be"),
        ("postgresql://me:hunter2@host/db?schema=", "schema must be"),
        ("postgresql://me:hunter2@host/db?schema=" + 64 * "a", "schema must be"),
        ("postgresql://me:hunter2@host/db?pool_size=0", "pool_size must be"),
        ("postgresql://me:hunter2@host/db?pool_size=many", "pool_size must be"),
        ("postgresql://me:hunt#er2@host/db", "%23"),
        ("memory://name", "memory://name"),
        ("memory:", "memory://"),
        ("sqlite://", "sqlite:///relative.db"),
        ("sqlite:///", "sqlite:///relative.db"),
        ("sqlite://me:hunter2@host/chat.db", "sqlite://host/chat.db"),
        ("sqlite:///chats/", "sqlite:///chats/"),
        ("sqlite:///chat.db#part", "sqlite:///chat.db"),
        ("sqlite:///:memory:", "use memory://"),
        ("sqlite:///chat.db?synchronous=OFF", "synchronous must be NORMAL or FULL"),
        ("sqlite:///chat.db?synchronous=", "synchronous must be NORMAL or FULL"),
        ("sqlite:///chat.db?mode=ro", "unknown option: mode"),
        ("sqlite:///chat%00.db", "sqlite:///relative.db"),
        ("sqlite://[/chat.db", "malformed"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, named: str) -> None:
    """One error that names what is wrong, and never a password."""
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url)
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)
