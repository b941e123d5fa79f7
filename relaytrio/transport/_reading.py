"""What a request says, checked: its body, its parameters, its headers. Raises problems, and reads no more than it must.

Who calls: the handlers of the routes. Must not know: what a request is for.
"""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import Final, TypeVar

import msgspec
import trio
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from .._errors import InvalidCursor
from .._protocol.asked import IDEMPOTENCY_KEY_CHARACTERS, checked_chat_id, is_idempotency_key
from .._protocol.events import LARGEST_NUMBER, Cursor, MessageRef
from .._settings import Settings
from ._problems import BodyTooLarge, BodyTooSlow, MalformedRequest, UnsupportedMediaType

LARGEST_PAGE: Final = 200
"""Of the chats or messages that one answer lists."""

_T = TypeVar("_T")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


async def read_body(
    request: Request, decoder: msgspec.json.Decoder[_T], settings: Settings, *, empty: _T | None = None
) -> _T:
    """The body, decoded. `empty` stands for no body at all, where that is allowed."""
    try:
        with trio.fail_after(settings.silence_seconds):
            body = await _read(request, settings.client_frame_bytes)
    except trio.TooSlowError:
        raise BodyTooSlow(f"the whole body is to come within {settings.silence_seconds:g} s") from None
    except ClientDisconnect:
        raise MalformedRequest("the body did not come to its end") from None
    if not body and empty is not None:
        return empty
    if not _is_json(request):
        raise UnsupportedMediaType("send the body as application/json")
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, other fields; nested too deep
        raise MalformedRequest(f"the body: {_told(error)}") from None


async def _read(request: Request, limit_bytes: int) -> bytes:
    """All of it, unless it is or says that it is too large: then no more of it is read."""
    too_large = BodyTooLarge(f"a body has at most {limit_bytes} bytes")
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said[:20]) > limit_bytes:
        raise too_large
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit_bytes:
                raise too_large
    return bytes(body)


def _is_json(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


def _told(error: Exception) -> str:
    """What the decoder says of the form; never a value."""
    if isinstance(error, msgspec.ValidationError) and not str(error).startswith("Invalid enum value"):
        return str(error)
    return "it is no JSON of the form that is needed here"


def idempotency_key(request: Request) -> str | None:
    """The `Idempotency-Key`, if there is one."""
    key = request.headers.get("idempotency-key")
    if key is not None and not is_idempotency_key(key):
        raise MalformedRequest(
            f"Idempotency-Key: 1 to {IDEMPOTENCY_KEY_CHARACTERS} visible ASCII characters, the same at every repeat"
        )
    return key


def chat_id_of(connection: HTTPConnection) -> str:
    """The chat that the path names."""
    return checked_chat_id(connection.path_params["chat_id"])


def path_number(connection: HTTPConnection, name: str) -> int | None:
    """The number that the path names; None if it is no number that was ever given out."""
    return _number(connection.path_params[name])


def query_number(request: Request, name: str, default: int, *, least: int, most: int = LARGEST_NUMBER) -> int:
    """A number from the query."""
    text = request.query_params.get(name)
    if text is None:
        return default
    number = _number(text)
    if number is None or not least <= number <= most:
        raise MalformedRequest(f"{name}: a number from {least} to {most}")
    return number


def position_of(connection: HTTPConnection) -> Cursor:
    """Where a viewer's stream begins: `Last-Event-ID` outranks `cursor`, which outranks `after_message_id`.

    What is outranked is not looked at: a browser repeats the address of its first attempt. Raises `InvalidCursor`.
    """
    text = connection.headers.get("last-event-id", connection.query_params.get("cursor"))
    if text is not None:
        return Cursor.parse(text)
    after = connection.query_params.get("after_message_id")
    if after is None:
        return Cursor()
    number = _number(after)
    if number is None:
        raise InvalidCursor("after_message_id: the id of a message, or 0")
    return Cursor(MessageRef(number, None)) if number else Cursor()


def _number(text: str) -> int | None:
    if not _NUMBER.fullmatch(text) or int(text) > LARGEST_NUMBER:
        return None
    return int(text)
