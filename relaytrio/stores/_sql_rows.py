"""Values to rows of an SQL store and back, with strict types: a row that this package never wrote is refused.

Must not know: which rows are read when. Who calls: `_sql_chats.py` and `_sql_replicas.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import attrs
import msgspec

from .._protocol.chat import Answer, Chat
from .._protocol.events import Message, QueueEntry
from ._base import Candidate, OwnedChat, Replica

T = TypeVar("T", bound=attrs.AttrsInstance)
KINDS: dict[type[Any], object] = {
    kind: msgspec.json.Decoder(kind) for kind in (Answer, Candidate, Chat, Message, OwnedChat, QueueEntry, Replica)
}
"""What rows are made of. Made known to msgspec here, where there is one thread: it keeps what it knows with the class,
half of it at first, and the process dies when another thread needs the same class in that moment."""
JSON = frozenset({"retry_state", "last_error", "last_answer", "content"})
"""Columns that hold JSON text."""
FLAGS = frozenset({"attempt_failed", "deleted", "interrupted", "truncated", "urgent"})
"""Columns that hold a truth value, which is 0 or 1 where a database has none."""


@cache
def names(kind: type[attrs.AttrsInstance]) -> tuple[str, ...]:
    """The columns of a value, in the order of its fields."""
    return tuple(field.name for field in attrs.fields(kind))


def columns(kind: type[attrs.AttrsInstance]) -> str:
    """The columns of a value, to select."""
    return ", ".join(names(kind))


def places(kind: type[attrs.AttrsInstance]) -> str:
    """The named parameters that `to_row` fills."""
    return ", ".join(f":{name}" for name in names(kind))


def to_row(value: attrs.AttrsInstance, **more: Any) -> dict[str, Any]:
    """Named parameters for a value; `more` are columns that it does not have itself."""
    row = {name: getattr(value, name) for name in names(type(value))}
    for name in _json_names(type(value)):
        row[name] = None if row[name] is None else to_json(row[name])
    return row | more


def to_json(value: object) -> str:
    """JSON text."""
    return msgspec.json.encode(value).decode()


def to_answer(text: str) -> Answer:
    """The answer kept under an idempotency key."""
    return msgspec.json.decode(text, type=Answer)


def from_row(kind: type[T], row: Sequence[Any]) -> T:
    """The value whose fields these are, in their order. Raises `msgspec.MsgspecError` for what `to_row` never made."""
    assert kind in KINDS, kind
    values = dict(zip(names(kind), row, strict=True))
    for name in _json_names(kind):
        if values[name] is not None:
            values[name] = msgspec.json.decode(values[name])
    for name in _flag_names(kind):
        # Anything but 0 and 1 stays what it is, and is refused as no bool.
        values[name] = bool(values[name]) if values[name] in (0, 1) else values[name]
    return msgspec.convert(values, kind)


@cache
def _json_names(kind: type[attrs.AttrsInstance]) -> tuple[str, ...]:
    return tuple(name for name in names(kind) if name in JSON)


@cache
def _flag_names(kind: type[attrs.AttrsInstance]) -> tuple[str, ...]:
    return tuple(name for name in names(kind) if name in FLAGS)
