"""A notifier that is broken on purpose is caught by the test of the contract that says what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from relaytrio.pubsub import Hint, MemoryPubSub, PubSub
from relaytrio.testing.contracts import PubSubContract


class NoOwner(MemoryPubSub):
    """Does not say who owns the chat."""

    def _deliver(self, hint: Hint) -> None:
        super()._deliver(attrs.evolve(hint, worker_id=None))


class KeepsAll(MemoryPubSub):
    """Keeps all that a slow listener has not read."""

    def __init__(self) -> None:
        super().__init__()
        self._sending: set[trio.MemorySendChannel[Hint]] = set()

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        sending, hints = trio.open_memory_channel[Hint](math.inf)
        with sending, hints:
            self._sending.add(sending)
            yield hints
            self._sending.remove(sending)

    def _deliver(self, hint: Hint) -> None:
        for sending in self._sending:
            sending.send_nowait(hint)


class WaitsForReaders(MemoryPubSub):
    """Does not send before the former hint was read."""

    async def publish(self, hint: Hint) -> None:
        while any(listener._hints for listener in self._listeners):  # noqa: ASYNC110 - nobody tells of it
            await trio.sleep(1)
        await super().publish(hint)


class LosesWhatItTook(MemoryPubSub):
    """Takes the hint, and then lets itself be cancelled."""

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        async with super().listen() as hints:
            yield _Late(hints)


@attrs.frozen
class _Late(AsyncIterator[Hint]):
    hints: AsyncIterator[Hint]

    async def __anext__(self) -> Hint:
        hint = await anext(self.hints)
        await trio.lowlevel.checkpoint()
        return hint


def contract_of(kind: type[MemoryPubSub]) -> PubSubContract:
    """The contract, for a notifier of that kind."""

    class Contract(PubSubContract):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[PubSub]:
            yield kind()

    return Contract()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (NoOwner, "test_a_change_is_heard_with_all_that_a_hint_says"),
        (KeepsAll, "test_a_slow_listener_keeps_the_newest_of_each_chat"),
        (WaitsForReaders, "test_a_slow_listener_keeps_the_newest_of_each_chat"),
        (LosesWhatItTook, "test_a_read_that_is_cancelled_at_any_step"),
    ],
)
async def test_a_broken_notifier_is_caught(kind: type[MemoryPubSub], name: str, autojump_clock: MockClock) -> None:
    """By that test; a notifier that is whole passes it."""
    await getattr(contract_of(MemoryPubSub), name)()
    with pytest.raises((AssertionError, trio.TooSlowError)):
        await getattr(contract_of(kind), name)()
