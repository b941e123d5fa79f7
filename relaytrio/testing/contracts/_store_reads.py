"""The store contract: what a read says, to whom, and how much of it at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import attrs
import pytest
import trio
from trio.testing import assert_checkpoints

from ..._errors import ChatNotFound
from ..._protocol.chat import Acquire, Create, EditMessage, FinishTurn, NewMessage, SendMessage
from ..._protocol.events import NO_MESSAGE, MessageRef
from ...stores import Fingerprint, Replica, Store, View
from ._kit import LIMITS, StoreTests, acquire, asked, assistant, live_messages, text, texts

Call: TypeAlias = Callable[[], Awaitable[object]]


class StoreReads(StoreTests):
    """Views, lists, fingerprints; and the store itself."""

    # ------------------------------------------------------------------------------------------- views

    async def test_a_view_from_nothing(self) -> None:
        """A viewer that has nothing gets all, with or without a stamp."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("1", "2"))
            for base in (NO_MESSAGE, MessageRef(0, None)):
                view = await store.read_view("c", base)
                assert (base, True, NO_MESSAGE) == (view.base, view.base_live, view.anchor)
                assert ["1", "2"] == texts(view.messages)

    async def test_a_view_from_a_live_message(self) -> None:
        """What follows it; a base without a stamp fits any and learns the stamp."""
        async with self.open(LIMITS) as store:
            refs = (await store.create_chat("c", asked("1", "2", "3"))).answer.messages
            for base in (refs[1], MessageRef(2, None)):
                view = await store.read_view("c", base)
                assert (base, True, refs[1]) == (view.base, view.base_live, view.anchor)
                assert ["3"] == texts(view.messages)
            assert () == (await store.read_view("c", refs[2])).messages

    async def test_a_view_from_a_deleted_message(self) -> None:
        """It continues from the last live message below the base, or from the beginning."""
        async with self.open(LIMITS) as store:
            refs = (await store.create_chat("c", asked("1", "2", "3"))).answer.messages
            await store.apply("c", EditMessage(message_id=2, content=text("two")))
            assert (False, refs[0], ["two"]) == _said(await store.read_view("c", refs[2]))
            assert (False, refs[0], ["two"]) == _said(await store.read_view("c", MessageRef(2, None)))
            await store.apply("c", EditMessage(message_id=1, content=text("one")))
            assert (False, NO_MESSAGE, ["one"]) == _said(await store.read_view("c", refs[2]))

    async def test_a_view_from_an_unknown_message(self) -> None:
        """An id that is not there, or another stamp (the store was set back): everything, from the beginning."""
        async with self.open(LIMITS) as store:
            refs = (await store.create_chat("c", asked("1", "2"))).answer.messages
            for base in (MessageRef(9, "abcde"), MessageRef(9, None), MessageRef(1, "-"), MessageRef(1, refs[1].stamp)):
                view = await store.read_view("c", base)
                assert (base, (False, NO_MESSAGE, ["1", "2"])) == (view.base, _said(view))

    async def test_a_deleted_message_of_another_stamp_is_unknown(self) -> None:
        """The stamp counts for deleted messages too."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("1", "2"))
            await store.apply("c", EditMessage(message_id=2, content=text("two")))
            assert (False, NO_MESSAGE, ["1", "two"]) == _said(await store.read_view("c", MessageRef(2, "-")))

    async def test_what_is_stored_is_nobodys_to_change(self) -> None:
        """Whoever gave content, or got it, may go on changing what they hold: what is stored stays as it is."""
        async with self.open(LIMITS) as store:
            held = [text("1"), text("2")]
            await store.create_chat("c", Create(messages=(NewMessage(role="user", content=held[0]),)))
            await store.apply("c", SendMessage(content=held[1]))
            for _ in range(2):
                for content in held:
                    content[0]["text"] = "changed"
                view = await store.read_view("c", NO_MESSAGE)
                messages, queue = await store.list_messages("c"), await store.read_queue("c")
                assert ["1", "1"] == texts([*view.messages, *messages])
                assert ["2", "2"] == texts([*view.queue, *queue])
                held = [message.content for message in (*view.messages, *messages)]
                held += [entry.content for entry in (*view.queue, *queue)]

    async def test_a_view_is_a_page(self) -> None:
        """At most so many messages, and `more` exactly when there are some after them."""
        async with self.open(LIMITS) as store:
            refs = (await store.create_chat("c", asked("1", "2", "3", "4"))).answer.messages
            for base, expected, more in ((NO_MESSAGE, ["1", "2", "3"], True), (refs[0], ["2", "3", "4"], False)):
                view = await store.read_view("c", base)
                assert (expected, more) == (texts(view.messages), view.more)

    async def test_deleted_messages_do_not_count_for_a_page(self) -> None:
        """A page is filled with live messages, and those that are deleted are not `more`."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("1", "2", "3", "4"))
            await store.apply("c", EditMessage(message_id=2, content=text("two")))
            view = await store.read_view("c", NO_MESSAGE)
            assert (["1", "two"], False) == (texts(view.messages), view.more)

    async def test_a_page_is_bounded_in_bytes(self) -> None:
        """It ends before the message that would make it too heavy, but holds at least one."""
        heavy = "x" * LIMITS.page_bytes
        async with self.open(LIMITS) as store:
            refs = (await store.create_chat("c", asked("1", heavy, "3"))).answer.messages
            for base, expected, more in (
                (NO_MESSAGE, ["1"], True),
                (refs[0], [heavy], True),
                (refs[1], ["3"], False),
            ):
                view = await store.read_view("c", base)
                assert (expected, more) == (texts(view.messages), view.more)
            assert [heavy] == texts(await store.list_messages("c", after_id=1))

    async def test_a_view_is_of_one_moment(self) -> None:
        """Chat, queue and messages of a view belong together, while others write."""

        async def write() -> None:
            for number in range(20):
                await store.apply("c", SendMessage(content=text(str(number))))
                await store.apply("c", Acquire(worker_id="w", run_id=f"r{number}"))
                await store.apply("c", SendMessage(content=text(f"{number}, queued")))
                for token in ("promotes", "ends"):
                    await store.apply("c", FinishTurn(run_id=f"r{number}", token=token))
            written.set()

        async def read(reader: Store) -> None:
            while not written.is_set():  # not until it is cancelled: what ignores that would read for ever
                view = await reader.read_view("c", NO_MESSAGE)
                assert view.chat.next_message_id - 1 == len(view.messages)
                assert view.chat.history_version == max((message.version for message in view.messages), default=0)
                promoted = [message.queued_id for message in view.messages if message.queued_id is not None]
                queued = [entry.id for entry in view.queue]
                assert list(range(1, view.chat.next_queued_id)) == promoted + queued

        written = trio.Event()
        settings = attrs.evolve(LIMITS, page_messages=100, page_bytes=2**20)
        async with self.open(settings) as store, self.open_again(store, settings) as other:
            await store.create_chat("c", Create(messages=()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, store)
                nursery.start_soon(read, other)
                nursery.start_soon(write)
            assert 40 == len(await live_messages(store, "c"))

    # ------------------------------------------------------------------------------------------- lists

    async def test_messages_are_listed_in_order(self) -> None:
        """Live ones only, after an id, at most `limit`."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("1", "2", "3", "4"))
            await store.apply("c", EditMessage(message_id=4, content=text("four")))
            assert ["1", "2"] == texts(await store.list_messages("c", limit=2))
            assert ["3", "four"] == texts(await store.list_messages("c", after_id=2))
            assert [] == list(await store.list_messages("c", after_id=5))

    async def test_chats_are_listed_newest_first(self) -> None:
        """By creation, whatever happens to them later; the next page begins after the last chat of the one before."""
        async with self.open(LIMITS) as store:
            for chat_id in ("b", "d", "a", "c"):
                await store.create_chat(chat_id, Create(messages=()))
            await store.apply("b", SendMessage(content=text("news")))
            first = await store.list_chats(limit=3)
            assert ["c", "a", "d"] == [chat.id for chat in first]
            assert [await store.read_chat("b")] == list(await store.list_chats(before="d", limit=3))
            with pytest.raises(ChatNotFound):
                await store.list_chats(before="unknown")

    async def test_fingerprints(self) -> None:
        """Version, stamp of the last live message, and run, of those named chats that exist."""
        async with self.open(LIMITS) as store:
            await store.create_chat("empty", Create(messages=()))
            await store.create_chat("c", asked("1", "2"))
            await store.create_chat("not asked for", asked("1"))
            edited = await store.apply("c", EditMessage(message_id=1, content=text("one")))
            await acquire(store, "c")
            expected = {
                "empty": Fingerprint(1, "", None),
                "c": Fingerprint(3, edited.answer.messages[0].stamp or "", "r"),
            }
            assert expected == await store.fingerprints(["empty", "c", "unknown"])
            assert {} == await store.fingerprints([])

    async def test_a_fingerprint_changes_with_its_chat(self) -> None:
        """Every transition is seen by comparing fingerprints."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"))
            seen = [(await store.fingerprints(["c"]))["c"]]
            await acquire(store, "c")
            seen.append((await store.fingerprints(["c"]))["c"])
            await store.apply("c", FinishTurn(run_id="r", token="t", messages=(assistant("a"),)))
            seen.append((await store.fingerprints(["c"]))["c"])
            assert 3 == len(set(seen))

    # ---------------------------------------------------------------------------------------- the store

    async def test_every_method_is_a_checkpoint(self) -> None:
        """Whatever is called lets other tasks run and can be cancelled."""
        async with self.open(LIMITS) as store:
            calls: Sequence[Call] = (
                lambda: store.create_chat("c", asked("q")),
                lambda: store.apply("c", SendMessage(content=text("x"))),
                lambda: store.register(Replica(id="w", address=None, version="1")),
                lambda: store.heartbeat("w", 0),
                *_reads(store),
                lambda: store.unregister("w"),
                lambda: store.delete_chat("c"),
            )
            for call in calls:
                with assert_checkpoints():
                    await call()

    async def test_whoever_is_cancelled_does_not_wait_for_a_read(self) -> None:
        """A read does not hide the cancellation of its caller."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"))
            for read in _reads(store):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await read()
                assert scope.cancelled_caught

    async def test_a_closed_store_says_so(self) -> None:
        """Use after closing is `trio.ClosedResourceError`; closing twice is fine."""
        async with self.open(LIMITS) as store:
            await store.aclose()
            await store.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await store.ping()
            with pytest.raises(trio.ClosedResourceError):
                await store.create_chat("c", Create(messages=()))

    async def test_closing_works_when_cancelled(self) -> None:
        """A cancelled `aclose` has closed all the same."""
        async with self.open(LIMITS) as store:
            with trio.CancelScope() as scope:
                scope.cancel()
                await store.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await store.ping()

    async def test_the_url_is_told(self) -> None:
        """A store says what it was opened with."""
        async with self.open(LIMITS) as store:
            assert "://" in store.url


def _said(view: View) -> tuple[bool, MessageRef, list[str]]:
    return view.base_live, view.anchor, texts(view.messages)


def _reads(store: Store) -> Sequence[Call]:
    """All of them, of the chat `c` and the replica `w`."""
    return (
        lambda: store.read_view("c", NO_MESSAGE),
        lambda: store.read_chat("c"),
        lambda: store.read_queue("c"),
        lambda: store.list_chats(),
        lambda: store.list_messages("c"),
        lambda: store.fingerprints(["c"]),
        lambda: store.candidates(()),
        lambda: store.owned_by("w"),
        lambda: store.replicas(),
        lambda: store.released_locks(["w"]),
        lambda: store.ping(),
    )
