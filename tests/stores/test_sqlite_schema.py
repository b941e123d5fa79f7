"""Two versions of the software on one SQLite file: the rule of `_sql_schema.py`, kept from the first version on."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from relaytrio._errors import StoreUnusable
from relaytrio._protocol.chat import SendMessage
from relaytrio.stores import _sqlite_schema, open_sqlite_store
from relaytrio.stores._sql_schema import SchemaState, Step, state_after, steps_to_take
from tests.stores.golden_files import (
    AT,
    KEY,
    all_of,
    golden,
    load_sqlite,
    sqlite_schema,
    tell_story,
    text,
    told_in_memory,
)

STEPS = _sqlite_schema.STEPS
ADDITIVE = Step(
    ("ALTER TABLE chats ADD COLUMN flavour TEXT NOT NULL DEFAULT 'plain'", "CREATE TABLE news (id INTEGER)"),
    compatible_since=len(STEPS),
)
BREAKING = Step(("ALTER TABLE messages DROP COLUMN truncated",), compatible_since=len(STEPS) + 2)


async def test_the_schema_is_the_golden_one(tmp_path: Path) -> None:
    """What the steps make is what was kept of the present version: a step that was released is not changed."""
    (*_, newest) = golden("sqlite")
    assert f"sqlite-{len(STEPS)}.sql" == newest.name
    load_sqlite(newest, tmp_path / "golden.db")
    async with open_sqlite_store(tmp_path / "new.db"):
        pass
    assert sqlite_schema(tmp_path / "golden.db") == sqlite_schema(tmp_path / "new.db")


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1))
async def test_every_version_comes_along(tmp_path: Path, number: int) -> None:
    """A file of each version is brought up to date, says what it said before, and goes on."""
    path = tmp_path / "chat.db"
    load_sqlite(golden("sqlite")[number - 1], path)
    async with open_sqlite_store(path, clock=lambda: AT) as store:
        assert await told_in_memory() == await all_of(store)
        assert not (await store.apply("busy", SendMessage(content=text("queued")), KEY)).changed
        assert (await store.apply("idle", SendMessage(content=text("more")))).changed
    async with open_sqlite_store(tmp_path / "new.db"):
        pass
    assert sqlite_schema(tmp_path / "new.db") == sqlite_schema(path)


async def test_a_rolling_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an additive step, software of both versions works on the file, opened before it or after."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path, clock=lambda: AT, random=Random(7)) as older:
        await older.ping()
        with monkeypatch.context() as newer_software:
            newer_software.setattr(_sqlite_schema, "STEPS", (*STEPS, ADDITIVE))
            async with open_sqlite_store(path) as newer:
                await tell_story(older)
                assert await told_in_memory() == await all_of(newer)
        async with open_sqlite_store(path) as restarted:
            assert (await restarted.apply("idle", SendMessage(content=text("more")))).changed
            assert await all_of(older) == await all_of(restarted)
    with closing(sqlite3.connect(path)) as connection:
        assert (len(STEPS) + 1,) == connection.execute("PRAGMA user_version").fetchone()


async def test_after_an_incompatible_step_older_software_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which version the file needs and which it has, and leaves the file as it is."""
    path = tmp_path / "chat.db"
    with monkeypatch.context() as newer_software:
        newer_software.setattr(_sqlite_schema, "STEPS", (*STEPS, ADDITIVE, BREAKING))
        async with open_sqlite_store(path):
            pass
    before = path.read_bytes()
    needs, has = len(STEPS) + 2, len(STEPS)
    with pytest.raises(StoreUnusable, match=rf"schema {needs}, .* knows {needs} or newer.* up to {has}: use a newer"):
        async with open_sqlite_store(path):
            raise AssertionError("it was opened")
    assert before == path.read_bytes()


@pytest.mark.parametrize(
    ("state", "taken"),
    [(None, [1, 2]), ((1, 1), [2]), ((2, 1), []), ((3, 2), []), ((9, 1), [])],
)
def test_which_steps_are_taken(state: tuple[int, int] | None, taken: Sequence[int]) -> None:
    """Those that are missing, of software that knows two; none where the schema is newer and still compatible."""
    steps = tuple(Step((str(number),), compatible_since=number) for number in (1, 2))
    found = None if state is None else SchemaState(*state)
    assert [str(number) for number in taken] == [step.statements[0] for step in steps_to_take("here", found, steps)]
    expected = SchemaState(2, 2) if taken else found
    assert expected == state_after(found, steps_to_take("here", found, steps))


def test_steps_only_go_forwards() -> None:
    """No step makes an older version compatible again."""
    since = [step.compatible_since for step in STEPS]
    assert sorted(since) == since
    assert all(step.compatible_since <= number for number, step in enumerate(STEPS, 1))
