"""What is written down of a race: for each request who asked what of which chat and when, and what came of it.

The instants are of the one monotonic clock that all processes of a machine share, so they may be compared. Pure. Who
calls: the callers, who write; and the checker, which reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import attrs
import msgspec

from relaytrio._protocol.chat import Answer, Chat, Command, Create
from relaytrio._protocol.events import ChatStatus, Message, QueueEntry
from relaytrio.stores import View

Came: TypeAlias = Literal["answer", "refusal", "view", "cancelled", "unavailable", "broke"]
"""`cancelled`: its caller left before it began, so nothing may have happened. `unavailable`: perhaps it has happened.
`broke`: it raised what a store never raises."""
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Create, *get_args(Command))}


@attrs.frozen(kw_only=True)
class After:
    """What the store said of the chat when the transaction had ended."""

    status: ChatStatus
    worker_id: str | None
    run_id: str | None
    snapshot_version: int
    history_version: int
    queue_version: int
    next_message_id: int
    next_queued_id: int

    @classmethod
    def of(cls, chat: Chat) -> After:
        return cls(**{field.name: getattr(chat, field.name) for field in attrs.fields(cls)})


@attrs.frozen(kw_only=True)
class Record:
    """One request."""

    who: str
    chat_id: str
    asked: float
    came_back: float
    kind: str
    """The name of the command's class, or `read`."""
    fields: dict[str, Any] = attrs.field(factory=dict)
    """The command's."""
    key: str | None = None
    request_hash: str | None = None
    came: Came
    answer: Answer | None = None
    changed: bool = False
    after: After | None = None
    view: View | None = None
    said: str = ""
    """The name of the refusal, or what broke."""

    @property
    def command(self) -> Any:
        return msgspec.convert(self.fields, KINDS[self.kind])


@attrs.frozen(kw_only=True)
class Final:
    """All that a store has of a chat when everybody has left it and its turns have ended."""

    chat: Chat
    queue: tuple[QueueEntry, ...]
    messages: tuple[Message, ...]


def fields_of(command: Create | Command) -> dict[str, Any]:
    """What `Record.command` makes the command of again."""
    fields: dict[str, Any] = msgspec.to_builtins(command)
    return fields


def write(path: Path, records: Iterable[Record]) -> None:
    """One line of JSON for each."""
    with path.open("wb") as file:
        for record in records:
            file.write(msgspec.json.encode(record) + b"\n")


def read(path: Path) -> list[Record]:
    """What `write` wrote."""
    decoder = msgspec.json.Decoder(Record)
    with path.open("rb") as file:
        return [decoder.decode(line) for line in file]
