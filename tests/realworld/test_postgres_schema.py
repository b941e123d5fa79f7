"""Two versions of the software on one PostgreSQL database, schemas of one's own, and those of others."""

from __future__ import annotations

from random import Random

import psycopg
import pytest
import trio

from relaytrio._errors import StoreUnusable
from relaytrio._protocol.chat import Create, SendMessage
from relaytrio.stores import _postgres_schema
from relaytrio.stores._sql_schema import Step
from relaytrio.stores.postgres import open_postgres_store
from tests.stores.golden_files import (
    AT,
    KEY,
    all_of,
    golden,
    load_postgres,
    postgres_schema,
    tell_story,
    text,
    told_in_memory,
)

pytestmark = pytest.mark.realworld
STEPS = _postgres_schema.STEPS
ADDITIVE = Step(
    ("ALTER TABLE chats ADD COLUMN flavour TEXT NOT NULL DEFAULT 'plain'", "CREATE TABLE news (id INTEGER)"),
    compatible_since=len(STEPS),
)
BREAKING = Step(("ALTER TABLE messages DROP COLUMN truncated",), compatible_since=len(STEPS) + 2)
STARTS = 6


def run(url: str, *statements: str) -> None:
    """As another client of the server."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def version(url: str) -> object:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT version, compatible_since FROM relaytrio.schema_version").fetchone()


async def test_the_schema_is_the_golden_one(postgres_url: str) -> None:
    """What the steps make is what was kept of the present version: a step that was released is not changed."""
    (*_, newest) = golden("postgres")
    assert f"postgres-{len(STEPS)}.sql" == newest.name
    load_postgres(newest, postgres_url)
    kept = postgres_schema(postgres_url)
    run(postgres_url, "DROP SCHEMA relaytrio CASCADE")
    async with open_postgres_store(postgres_url):
        pass
    assert kept == postgres_schema(postgres_url)


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1))
async def test_every_version_comes_along(postgres_url: str, number: int) -> None:
    """A database of each version is brought up to date, says what it said before, and goes on."""
    load_postgres(golden("postgres")[number - 1], postgres_url)
    async with open_postgres_store(postgres_url, clock=lambda: AT) as store:
        assert await told_in_memory() == await all_of(store)
        assert not (await store.apply("busy", SendMessage(content=text("queued")), KEY)).changed
        assert (await store.apply("idle", SendMessage(content=text("more")))).changed
        await store.create_chat("new", Create(messages=()))
        assert "new" == (await store.list_chats())[0].id
    migrated = postgres_schema(postgres_url)
    run(postgres_url, "DROP SCHEMA relaytrio CASCADE")
    async with open_postgres_store(postgres_url):
        pass
    assert postgres_schema(postgres_url) == migrated


async def test_a_rolling_upgrade(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an additive step, software of both versions works on the database: with connections from before it, whose
    statements were prepared for the older tables, with new ones, and when it is started again."""
    async with open_postgres_store(postgres_url, clock=lambda: AT, random=Random(7)) as older:
        for _ in range(10):
            await older.list_chats()
        with monkeypatch.context() as newer_software:
            newer_software.setattr(_postgres_schema, "STEPS", (*STEPS, ADDITIVE))
            async with open_postgres_store(postgres_url) as newer:
                await tell_story(older)
                async with trio.open_nursery() as nursery:
                    for _ in range(older.place.pool_size):
                        nursery.start_soon(older.list_chats)
                assert await told_in_memory() == await all_of(newer)
        async with open_postgres_store(postgres_url) as restarted:
            assert (await restarted.apply("idle", SendMessage(content=text("more")))).changed
            assert await all_of(older) == await all_of(restarted)
    assert (len(STEPS) + 1, len(STEPS)) == version(postgres_url)


async def test_after_an_incompatible_step_older_software_refuses(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started after it, or still running with a new connection: it says which version the database needs."""
    needs, has = len(STEPS) + 2, len(STEPS)
    words = rf"schema {needs}, .* knows {needs} or newer.* up to {has}: use a newer"
    async with open_postgres_store(postgres_url) as older:
        with monkeypatch.context() as newer_software:
            newer_software.setattr(_postgres_schema, "STEPS", (*STEPS, ADDITIVE, BREAKING))
            async with open_postgres_store(postgres_url):
                pass
        with pytest.raises(StoreUnusable, match=words):
            await older.ping()
        with pytest.raises(StoreUnusable, match=words):
            async with open_postgres_store(postgres_url):
                raise AssertionError("it was opened")
    assert (needs, needs) == version(postgres_url)


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
async def test_many_that_start_at_once(postgres_url: str, isolation: str) -> None:
    """One makes the tables, the others find them, whatever transactions are like in this database."""
    name = postgres_url.rpartition("/")[2]
    run(postgres_url, f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")

    async def start(number: int) -> None:
        async with open_postgres_store(postgres_url) as store:
            await store.create_chat(str(number), Create(messages=()))

    async with trio.open_nursery() as nursery:
        for number in range(STARTS):
            nursery.start_soon(start, number)
    async with open_postgres_store(postgres_url) as store:
        assert STARTS == len(await store.list_chats())


async def test_a_schema_of_another_program_is_left_alone(postgres_url: str) -> None:
    """`StoreUnusable` names the schema, and nothing is put into it."""
    run(postgres_url, "CREATE TABLE public.notes (id INTEGER)")
    with pytest.raises(StoreUnusable, match=r"schema public .* belongs to another program"):
        async with open_postgres_store(f"{postgres_url}?schema=public"):
            raise AssertionError("it was opened")
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert [("notes",)] == tables


async def test_a_database_that_cannot_hold_every_text_is_refused(postgres_url: str) -> None:
    """Otherwise it would be found out with the first word that it cannot hold."""
    name = f"{postgres_url.rpartition('/')[2]}_latin"
    run(postgres_url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        with pytest.raises(StoreUnusable, match="encoded as LATIN1"):
            async with open_postgres_store(postgres_url.rpartition("/")[0] + f"/{name}"):
                raise AssertionError("it was opened")
    finally:
        run(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_schema_may_be_there_already(postgres_url: str) -> None:
    """Made by who may make schemas, for a user who may not."""
    run(
        postgres_url,
        "CREATE SCHEMA mine",
        "DROP ROLE IF EXISTS relaytrio_user",
        "CREATE ROLE relaytrio_user LOGIN PASSWORD 'hunter2'",
        "GRANT ALL ON SCHEMA mine TO relaytrio_user",
    )
    url = postgres_url.partition("://")[0] + "://relaytrio_user:hunter2@" + postgres_url.rpartition("@")[2]
    try:
        async with open_postgres_store(f"{url}?schema=mine") as store:
            await store.create_chat("c", Create(messages=()))
            assert store.url.endswith("?schema=mine")
        with pytest.raises(StoreUnusable, match="permission denied"):
            async with open_postgres_store(f"{url}?schema=other"):
                raise AssertionError("it was opened")
    finally:
        run(postgres_url, "DROP OWNED BY relaytrio_user CASCADE", "DROP ROLE relaytrio_user")


async def test_a_schema_that_has_gone_is_no_empty_store(postgres_url: str) -> None:
    """Somebody dropped it under a running replica: a person has to act, and it is not made anew."""
    async with open_postgres_store(postgres_url) as store:
        await store.create_chat("c", Create(messages=()))
        run(postgres_url, "DROP SCHEMA relaytrio CASCADE")
        with pytest.raises(StoreUnusable):
            await store.read_chat("c")
        with pytest.raises(StoreUnusable):
            await store.create_chat("d", Create(messages=()))
