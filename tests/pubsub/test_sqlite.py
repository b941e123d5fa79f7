"""The SQLite pubsub hears whatever any connection commits, and looks only while somebody listens.

The clock is virtual: it moves while a thread works, so no deadline is set here. The contract, which sets some, is in
tests/realworld/test_sqlite_pubsub.py.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._errors import PubSubUnavailable
from relaytrio._protocol.chat import Acquire, Create, FinishTurn, NewMessage
from relaytrio.pubsub import Hint, PubSub, open_sqlite_pubsub
from relaytrio.pubsub import sqlite as module
from relaytrio.stores import Store, open_sqlite_store

TEXT = [{"type": "text", "text": "q"}]
ASKED = Create(messages=(NewMessage(role="user", content=TEXT),))


@asynccontextmanager
async def open_both(path: Path) -> AsyncIterator[tuple[Store, PubSub]]:
    async with open_sqlite_store(path) as store, open_sqlite_pubsub(path) as pubsub:
        yield store, pubsub


async def hint_of(hints: AsyncIterator[Hint], version: int) -> Hint:
    """The first of this version or a later one."""
    async for hint in hints:
        if hint.snapshot_version >= version:
            return hint
    raise AssertionError("the hints have ended")


async def test_every_transition_is_heard(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With the status and the owner that it left."""
    async with open_both(tmp_path / "chat.db") as (store, pubsub), pubsub.listen() as hints:
        await store.create_chat("c", ASKED)
        assert Hint("c", 1, "running", None) == await hint_of(hints, 1)
        await store.apply("c", Acquire(worker_id="w", run_id="r"))
        assert Hint("c", 2, "running", "w") == await hint_of(hints, 2)
        await store.apply("c", FinishTurn(run_id="r", token="t"))
        assert Hint("c", 3, "waiting", None) == await hint_of(hints, 3)
        await store.delete_chat("c")
        assert Hint("c", 4, "deleted", None) == await hint_of(hints, 4)


async def test_more_changes_than_one_query_gives(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is taken by the next looks, though nobody commits any more."""
    monkeypatch.setattr(module, "MOST_CHANGES", 2)
    async with open_both(tmp_path / "chat.db") as (store, pubsub), pubsub.listen() as hints:
        for number in range(7):
            await store.create_chat(str(number), ASKED)
        missing = {str(number) for number in range(7)}
        while missing:
            missing.discard((await anext(hints)).chat_id)


async def test_nobody_looks_while_nobody_listens(tmp_path: Path, autojump_clock: MockClock) -> None:
    """No poll before the first listener and none after the last: an hour passes in one jump."""
    looks = 0

    def count(self: object) -> bool:
        nonlocal looks
        looks += 1
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Reader, "has_news", count)
        async with open_both(tmp_path / "chat.db") as (_, pubsub):
            await trio.sleep(3600)
            assert 0 == looks
            async with pubsub.listen(), pubsub.listen():
                await trio.sleep(60)
            seen = looks
            assert 1 <= seen < 60 * 60
            await trio.sleep(3600)
            assert looks <= seen + 1


async def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Listeners get `PubSubUnavailable`, and the next one tries the file again."""
    path = tmp_path / "chat.db"
    async with open_both(path) as (store, pubsub):
        async with pubsub.listen() as first, pubsub.listen() as second:
            with closing(sqlite3.connect(path)) as vandal:
                vandal.execute("ALTER TABLE changes RENAME TO gone")
            for hints in (first, second):
                with pytest.raises(PubSubUnavailable, match=r"chat\.db"):
                    await anext(hints)
        with pytest.raises(PubSubUnavailable, match=r"chat\.db"):
            async with pubsub.listen():
                raise AssertionError("it was listened to")
        with closing(sqlite3.connect(path)) as vandal:
            vandal.execute("ALTER TABLE gone RENAME TO changes")
        async with pubsub.listen() as hints:
            await store.create_chat("c", ASKED)
            assert "c" == (await anext(hints)).chat_id


async def test_a_missing_file_is_told_and_not_made(tmp_path: Path) -> None:
    """A pubsub makes no database."""
    async with open_sqlite_pubsub(tmp_path / "chat.db") as pubsub:
        with pytest.raises(PubSubUnavailable, match=r"chat\.db"):
            async with pubsub.listen():
                raise AssertionError("it was listened to")
    assert [] == os.listdir(tmp_path)


async def test_a_file_that_was_set_back_is_heard_again(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database restored from an older copy counts its changes from there."""
    path = tmp_path / "chat.db"
    noticed = trio.Event()
    take = module._Reader.take

    def take_and_tell(reader: module._Reader) -> list[Hint]:
        hints = take(reader)
        if reader._last_change == 2:
            trio.from_thread.run_sync(noticed.set)
        return hints

    async with open_both(path) as (store, pubsub), pubsub.listen() as hints:
        for number in range(5):
            await store.create_chat(str(number), ASKED)
        while (await anext(hints)).chat_id != "4":
            pass
        monkeypatch.setattr(module._Reader, "take", take_and_tell)
        with closing(sqlite3.connect(path)) as restored, restored:
            restored.execute("DELETE FROM chats WHERE changed > 2")
            restored.execute("UPDATE changes SET last = 2")
        await noticed.wait()
        await store.create_chat("after", ASKED)
        assert "after" == (await anext(hints)).chat_id


async def test_a_cancelled_listener_leaves_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Cancelled while it enters or reads: nothing but the cancellation leaves, and no connection stays open."""
    path = tmp_path / "chat.db"
    async with open_sqlite_store(path):
        for steps in range(6):
            with trio.CancelScope() as scope:
                async with open_sqlite_pubsub(path) as pubsub, trio.open_nursery() as nursery:

                    async def listen(pubsub: PubSub) -> None:
                        async with pubsub.listen() as hints:
                            await anext(hints)

                    nursery.start_soon(listen, pubsub)
                    for _ in range(steps):
                        await wait_all_tasks_blocked()
                    scope.cancel()
            assert scope.cancelled_caught
    assert ["chat.db"] == os.listdir(tmp_path)


async def test_closing_while_a_listener_enters_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener is told, and what was opened for it is closed."""
    path = tmp_path / "chat.db"
    may_open = threading.Event()
    up_to_date = module._up_to_date

    def open_late(reader: module._Reader | None, path: Path) -> module._Reader:
        assert may_open.wait(30)
        return up_to_date(reader, path)

    async def listen(pubsub: PubSub) -> None:
        with pytest.raises(trio.ClosedResourceError):
            async with pubsub.listen():
                raise AssertionError("it was listened to")

    monkeypatch.setattr(module, "_up_to_date", open_late)
    async with open_both(path) as (_, pubsub), trio.open_nursery() as nursery:
        nursery.start_soon(listen, pubsub)
        await wait_all_tasks_blocked()
        await pubsub.aclose()
        may_open.set()
    assert ["chat.db"] == os.listdir(tmp_path)
