"""What a listener keeps while nobody reads."""

from __future__ import annotations

import pytest
import trio

from relaytrio._errors import PubSubUnavailable
from relaytrio.pubsub import Hint
from relaytrio.pubsub._listener import Listener


def hint(chat_id: str, version: int) -> Hint:
    return Hint(chat_id, version, "running", None)


async def test_one_hint_is_kept_for_each_chat() -> None:
    """The newest; an older one that comes late changes nothing."""
    listener = Listener()
    for version in (1, 3, 2):
        listener.put(hint("a", version))
    listener.put(hint("b", 1))
    listener.close()
    assert [hint("a", 3), hint("b", 1)] == [one async for one in listener]


async def test_the_end_of_a_chat_is_its_last_hint() -> None:
    """`deleted` replaces what is newer by its number, and is replaced by nothing."""
    deleted = Hint("a", 0, "deleted", None)
    listener = Listener()
    for one in (hint("a", 7), deleted, hint("a", 8)):
        listener.put(one)
    listener.close()
    assert [deleted] == [one async for one in listener]


async def test_memory_is_bounded() -> None:
    """Past the bound the chat that has waited longest is forgotten."""
    listener = Listener(most_chats=2)
    for chat_id in ("a", "b", "a", "c"):
        listener.put(hint(chat_id, 1))
    listener.close()
    assert ["b", "c"] == [one.chat_id async for one in listener]


async def test_a_failure_is_told_after_what_came_before_it() -> None:
    """And again, whenever the listener is asked."""
    listener = Listener()
    listener.put(hint("a", 1))
    listener.fail("the database is gone")
    listener.put(hint("b", 1))
    assert hint("a", 1) == await anext(listener)
    for _ in range(2):
        with pytest.raises(PubSubUnavailable, match="the database is gone"):
            await anext(listener)


async def test_an_ended_listener_can_be_cancelled() -> None:
    """Whoever asks it in a loop does not keep the others from running."""
    listener = Listener()
    listener.close()
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(listener, None)
    assert scope.cancelled_caught
