"""What a message may contain, and how it is brought into its one form. Who calls: the engine and turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .._errors import ContentTooLarge, InvalidContent
from .chat import ROLES, NewMessage
from .events import Content
from .wire import part_fault

_encode = msgspec.json.Encoder().encode


def normal_content(content: object, *, limit_bytes: int) -> Content:
    """Content as it is stored: a list of JSON objects with a `type`; a string becomes one text.

    Raises `InvalidContent`, and `ContentTooLarge` past `limit_bytes` of JSON.
    """
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise InvalidContent("content is a string, or a list of at least one JSON object with a string `type`")
    for part in parts:
        fault = part_fault(part, limit_bytes=limit_bytes)
        if fault is not None:
            raise InvalidContent(f"content: {fault}")
    try:
        size = len(_encode(parts))
    except (UnicodeEncodeError, TypeError):
        raise InvalidContent("content: its strings are plain ones, without lone surrogates") from None
    if size > limit_bytes:
        raise ContentTooLarge(f"content has {size} bytes of JSON; at most {limit_bytes} are accepted")
    return parts


def new_message(message: NewMessage | Mapping[str, Any], *, limit_bytes: int) -> NewMessage:
    """A message to be stored, from `{"role", "content"}` or from one that was made already.

    Raises `InvalidContent` and `ContentTooLarge`.
    """
    content: object
    if isinstance(message, NewMessage):
        role, content, flags = message.role, message.content, (message.interrupted, message.truncated)
    elif isinstance(message, Mapping):
        role, content, flags = message.get("role", "user"), message.get("content"), (False, False)
    else:
        raise InvalidContent('a message is an object like {"role": "user", "content": "..."}')
    if role not in ROLES:
        raise InvalidContent(f"the role of a message is one of {', '.join(ROLES)}")
    return NewMessage(
        role=role,
        content=normal_content(content, limit_bytes=limit_bytes),
        interrupted=flags[0],
        truncated=flags[1],
    )


def user_message(text: str) -> NewMessage:
    """A message of the user."""
    return NewMessage(role="user", content=[{"type": "text", "text": text}])
