"""The contract of a `PubSub`: hints reach those who listen, a slow listener costs nothing, and every end is told.

Must not know: how a notifier works. A notifier may lose, double, delay and reorder hints in trouble; these tests run
where there is no trouble, and so a hint that never comes is a failure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from ..._errors import PubSubUnavailable
from ...pubsub import Hint, PubSub
from ...pubsub._base import HintStatus
from ._kit import cancel_after

CHATS = 50
CHANGES = 20
STEPS = 6
"""Of the scheduler, after each of which a reader is cancelled once."""
SAID: tuple[tuple[HintStatus, str | None], ...] = (
    ("running", None),
    ("running", "w"),
    ("interrupting", "w"),
    ("waiting", None),
    ("error", None),
)
"""Status and owner of a chat's changes, in turn."""


class PubSubContract(ABC):
    """Subclass it as `Test...`, and give `open`."""

    pytestmark = pytest.mark.trio
    patience_seconds = 10.0
    """How long a hint may take on the way."""

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[PubSub]:
        """A notifier that nobody has used before, closed with the context."""

    def open_again(self, pubsub: PubSub) -> AbstractAsyncContextManager[PubSub]:
        """Another connection to the same notifier, as another replica has. If there is no such thing: the same."""
        return nullcontext(pubsub)

    async def change(self, pubsub: PubSub, chat_id: str) -> Hint:
        """Let the chat change once more, tell it, and return the hint that has to arrive."""
        version = self.next_version(chat_id)
        hint = Hint(chat_id, version, *SAID[(version - 1) % len(SAID)])
        await pubsub.publish(hint)
        return hint

    async def delete(self, pubsub: PubSub, chat_id: str) -> None:
        """Delete the chat, and tell it."""
        await pubsub.publish(Hint(chat_id, self.next_version(chat_id), "deleted", None))

    def next_version(self, chat_id: str) -> int:
        """1, 2, 3... for each chat."""
        versions: dict[str, int] = self.__dict__.setdefault("_versions", {})
        versions[chat_id] = versions.get(chat_id, 0) + 1
        return versions[chat_id]

    async def heard(self, hints: AsyncIterator[Hint], wanted: Hint) -> Hint:
        """The hint, when it has arrived; others before it are passed over."""
        with trio.fail_after(self.patience_seconds):
            async for hint in hints:
                if (hint.chat_id, hint.snapshot_version) == (wanted.chat_id, wanted.snapshot_version):
                    return hint
        raise AssertionError(f"the iterator ended before {wanted}")

    async def test_a_change_is_heard_with_all_that_a_hint_says(self) -> None:
        """A hint arrives as it was sent: chat, version, status and owner."""
        async with self.open() as pubsub, pubsub.listen() as hints:
            for _ in SAID:
                sent = await self.change(pubsub, "a")
                assert sent == await self.heard(hints, sent)

    async def test_nothing_is_missed_from_the_entering_on(self) -> None:
        """The first change after `listen` was entered is heard, though nobody was reading yet."""
        async with self.open() as pubsub:
            await self.change(pubsub, "a")
            async with pubsub.listen() as hints:
                sent = await self.change(pubsub, "a")
                assert sent == await self.heard(hints, sent)

    async def test_every_listener_hears_every_chat(self) -> None:
        """A hint goes to all listeners, of all connections."""
        async with self.open() as pubsub, self.open_again(pubsub) as other:
            async with pubsub.listen() as first, pubsub.listen() as second, other.listen() as third:
                for sender, chat_id in ((pubsub, "a"), (other, "b")):
                    sent = await self.change(sender, chat_id)
                    for hints in (first, second, third):
                        assert sent == await self.heard(hints, sent)

    async def test_a_slow_listener_keeps_the_newest_of_each_chat(self) -> None:
        """What a listener has not read yet is replaced by what is newer, and whoever sends does not wait for it."""
        async with self.open() as pubsub, pubsub.listen() as hints, pubsub.listen() as others:
            for _ in range(CHANGES):
                with trio.fail_after(self.patience_seconds):
                    first = await self.change(pubsub, "a")
                await self.heard(others, first)
            last = await self.change(pubsub, "b")
            received: dict[str, list[int]] = {"a": [], "b": []}
            with trio.fail_after(self.patience_seconds):
                while first.snapshot_version not in received["a"] or last.snapshot_version not in received["b"]:
                    hint = await anext(hints)
                    received[hint.chat_id].append(hint.snapshot_version)
            assert sorted(set(received["a"])) == received["a"]
            assert len(received["a"]) < CHANGES, "all of them were kept"

    async def test_many_chats_at_once_are_all_heard(self) -> None:
        """Hints of different chats do not replace each other."""
        async with self.open() as pubsub, pubsub.listen() as hints:
            missing = {(await self.change(pubsub, f"chat-{number}")).chat_id for number in range(CHATS)}
            with trio.fail_after(self.patience_seconds):
                while missing:
                    missing.discard((await anext(hints)).chat_id)

    async def test_a_deletion_is_the_last_that_is_heard_of_a_chat(self) -> None:
        """`deleted` arrives, and a listener that reads late gets nothing older behind it."""
        async with self.open() as pubsub, pubsub.listen() as hints:
            await self.change(pubsub, "a")
            await self.delete(pubsub, "a")
            marker = await self.change(pubsub, "b")
            received: list[Hint] = []
            with trio.fail_after(self.patience_seconds):
                while not received or marker.chat_id not in {hint.chat_id for hint in received}:
                    received.append(await anext(hints))
            assert "deleted" == [hint.status for hint in received if hint.chat_id == "a"][-1]

    async def test_a_reader_that_gave_up_waiting_misses_nothing(self) -> None:
        """A cancelled read takes no hint with it."""
        async with self.open() as pubsub, pubsub.listen() as hints:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_one, hints)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            sent = await self.change(pubsub, "a")
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(hints)
            assert scope.cancelled_caught
            assert sent == await self.heard(hints, sent)

    async def test_a_read_that_is_cancelled_at_any_step(self) -> None:
        """However far it has come: it returns the hint, or leaves it to the next read."""
        async with self.open() as pubsub, pubsub.listen() as hints:
            for steps in range(STEPS):
                sent, taken = await self.change(pubsub, "a"), None
                async with trio.open_nursery() as nursery:
                    scope = trio.CancelScope()
                    nursery.start_soon(cancel_after, scope, steps)
                    with scope:
                        taken = await anext(hints)
                if taken is None or taken.snapshot_version < sent.snapshot_version:
                    assert sent == await self.heard(hints, sent)

    async def test_leaving_ends_only_that_listener(self) -> None:
        """The iterator of a context that was left ends; the others go on."""
        async with self.open() as pubsub, pubsub.listen() as stays:
            async with pubsub.listen() as leaves:
                pass
            sent = await self.change(pubsub, "a")
            assert sent == await self.heard(stays, sent)
            await self._assert_ended(leaves)

    async def test_listening_again_after_all_have_left(self) -> None:
        """A notifier whose listeners are all gone serves the next one."""
        async with self.open() as pubsub:
            for _ in range(3):
                async with pubsub.listen() as hints:
                    sent = await self.change(pubsub, "a")
                    assert sent == await self.heard(hints, sent)

    async def test_closing_ends_the_listeners(self) -> None:
        """A listener that waits is woken by `aclose`, and its iterator ends or raises `PubSubUnavailable`; for good."""
        async with self.open() as pubsub, pubsub.listen() as hints:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._assert_ended, hints)
                await wait_all_tasks_blocked()
                await pubsub.aclose()
            await self._assert_ended(hints)

    async def test_a_closed_notifier_says_so(self) -> None:
        """Use after closing is `trio.ClosedResourceError`; closing twice is fine."""
        async with self.open() as pubsub:
            await pubsub.aclose()
            await pubsub.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await pubsub.publish(Hint("a", 1, "running", None))
            with pytest.raises(trio.ClosedResourceError):
                async with pubsub.listen():
                    raise AssertionError("a closed pubsub was listened to")

    async def test_closing_works_when_cancelled(self) -> None:
        """A cancelled `aclose` has closed all the same."""
        async with self.open() as pubsub:
            with trio.CancelScope() as scope:
                scope.cancel()
                await pubsub.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await pubsub.publish(Hint("a", 1, "running", None))

    async def test_publish_and_read_are_checkpoints(self) -> None:
        """Whoever only publishes, or only reads what is there, lets others run and can be cancelled."""
        async with self.open() as pubsub, pubsub.listen() as hints:
            with assert_checkpoints():
                await pubsub.publish(Hint("a", 1, "running", None))
            await self.change(pubsub, "b")
            with assert_checkpoints():
                await anext(hints)

    async def test_the_caller_s_own_exception_leaves_as_it_is(self) -> None:
        """What is raised inside `listen` is not wrapped in a group."""
        own = LookupError("the caller's")
        with pytest.raises(LookupError) as caught:
            async with self.open() as pubsub, pubsub.listen():
                raise own
        assert own is caught.value

    async def _read_one(self, hints: AsyncIterator[Hint]) -> None:
        raise AssertionError(f"nobody has sent {await anext(hints)}")

    async def _assert_ended(self, hints: AsyncIterator[Hint]) -> None:
        with trio.fail_after(self.patience_seconds), pytest.raises((StopAsyncIteration, PubSubUnavailable)):
            while True:
                await anext(hints)
