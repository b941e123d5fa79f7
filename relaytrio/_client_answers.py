"""What a client makes of a replica's answers: values of this package, or its exceptions.

Pure. Who calls: `ChatClient` and its streams. Must not know: how an answer was got, whether it is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import attrs
import msgspec

from ._errors import NotAllowed, RelaytrioError, RequestFailed
from ._protocol.chat import Chat
from ._protocol.events import ChatError, Message, QueueEntry, RetryState
from .transport._problems import exception_of

_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class Accepted:
    """What a request did."""

    done: Literal["sent", "queued", "edited", "deleted", "promoted", "interrupting", "nothing", "ok"]
    """As in the engine's own answers. `nothing`: there was nothing to do."""
    snapshot_version: int
    """The version that shows it: wait for a status of this version."""
    message: Message | None = None
    """What entered the history."""
    queued: QueueEntry | None = None
    """What waits now."""


def chat_of(body: Any) -> Chat:
    """A chat. What a replica does not tell of one has its default; its queue is asked for by `list_queue`."""
    return Chat(
        id=body["id"],
        status=body["status"],
        worker_id=body["worker_id"],
        snapshot_version=body["snapshot_version"],
        last_error=None if body["last_error"] is None else ChatError(**_known(ChatError, body["last_error"])),
        retry_state=None if body["retry"] is None else RetryState(**_known(RetryState, body["retry"])),
        created_at=body["created_at"],
        updated_at=body["updated_at"],
    )


def chats_of(body: Any) -> tuple[Chat, ...]:
    """A page of chats."""
    return tuple(chat_of(chat) for chat in body["chats"])


def message_of(body: Any) -> Message:
    """A message. Its stamp is known to streams only."""
    return Message(**{**_known(Message, body), "stamp": ""})


def messages_of(body: Any) -> tuple[Message, ...]:
    """A page of messages."""
    return tuple(message_of(message) for message in body["messages"])


def queue_of(body: Any) -> tuple[QueueEntry, ...]:
    """The queue in order."""
    return tuple(QueueEntry(**_known(QueueEntry, entry)) for entry in body["queue"])


def accepted_of(body: Any) -> Accepted:
    """What a request did."""
    message, queued = body.get("message"), body.get("queued")
    return Accepted(
        done=body["done"],
        snapshot_version=body["snapshot_version"],
        message=None if message is None else message_of(message),
        queued=None if queued is None else QueueEntry(**_known(QueueEntry, queued)),
    )


def nothing_of(body: Any) -> None:
    """The answer has no body."""


def _known(kind: type[Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that this version knows."""
    return {field.name: body[field.name] for field in attrs.fields(kind) if field.name in body}


def decoded(status: int, data: bytes, make: Callable[[Any], _T]) -> _T:
    """The value of a good answer. Raises `RequestFailed` if it is not one of this protocol."""
    try:
        return make(msgspec.json.decode(data) if data else None)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RequestFailed(f"HTTP {status} with a body that is not of this protocol", status) from None


def refusal_of(status: int, data: bytes, headers: Mapping[str, str]) -> RelaytrioError:
    """The exception that a refusal stands for; the replica's own one, if it says so."""
    try:
        body = msgspec.json.decode(data)
    except ValueError:
        body = None
    known = exception_of(body, retry_after_of(headers) or 0.0)
    if known is not None:
        return known
    if status in (401, 403):
        return NotAllowed(f"refused with HTTP {status}")
    detail = body.get("detail") or body.get("title") if isinstance(body, dict) else None
    return RequestFailed(f"HTTP {status}" + (f": {detail}" if isinstance(detail, str) else ""), status)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """The seconds of a `Retry-After`; its other form, a date, is left alone: clocks differ."""
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else None
