"""One chat of the memory store: its messages by id, found by bisection as a database finds them by an index.

Must not know: transactions, keys, other chats. Who calls: `MemoryStore`, in its synchronous stretches.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TypeVar

import attrs
import msgspec

from .._protocol.chat import Chat, Transition
from .._protocol.events import Message, MessageRef, QueueEntry

_Item = TypeVar("_Item", Message, QueueEntry)


@attrs.define
class Record:
    """A chat with all it has."""

    chat: Chat
    queue: tuple[QueueEntry, ...] = ()
    messages: list[Message] = attrs.field(factory=list)
    """All, deleted ones too, by id."""
    sizes: dict[int, int] = attrs.field(factory=dict)
    """The weight of each in bytes."""

    def copy(self) -> Record:
        """Another one with the same content: what is in it is never changed, only replaced."""
        return Record(self.chat, self.queue, list(self.messages), dict(self.sizes))

    def find(self, message_id: int) -> Message | None:
        index = bisect_left(self.messages, message_id, key=_id_of)
        if index < len(self.messages) and self.messages[index].id == message_id:
            return self.messages[index]
        return None

    def last_live_below(self, message_id: int) -> MessageRef | None:
        for index in range(bisect_left(self.messages, message_id, key=_id_of) - 1, -1, -1):
            if not self.messages[index].deleted:
                return self.messages[index].ref
        return None

    def live_after(self, message_id: int) -> Iterator[tuple[Message, int]]:
        for index in range(bisect_right(self.messages, message_id, key=_id_of), len(self.messages)):
            message = self.messages[index]
            if not message.deleted:
                yield message, self.sizes[message.id]

    def write(self, transition: Transition) -> None:
        self.chat = transition.chat
        known = {entry.id for entry in self.queue}
        self.queue = tuple(entry if entry.id in known else apart(entry) for entry in transition.queue)
        if transition.deleted_from is not None:
            start = bisect_left(self.messages, transition.deleted_from, key=_id_of)
            self.messages[start:] = [attrs.evolve(message, deleted=True) for message in self.messages[start:]]
        for message in transition.inserted:
            self.messages.append(apart(message))
            self.sizes[message.id] = len(msgspec.json.encode(message.content))


def apart(item: _Item) -> _Item:
    """With a content of its own: whoever holds the other may change theirs, as with any database."""
    return attrs.evolve(item, content=msgspec.json.decode(msgspec.json.encode(item.content)))


def _id_of(message: Message) -> int:
    return message.id
