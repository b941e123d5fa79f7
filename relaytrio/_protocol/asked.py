"""What a caller may ask with: which ids, keys and numbers a request holds that any database can look for.

What could not be in any of them is told before one is asked, so that all give the same answer, and none its driver's.
Pure. Who calls: the engine, and the transport, which asks the same of what comes over HTTP.
"""

from __future__ import annotations

import re

from .._errors import ChatNotFound, ConfigurationError, InvalidCursor, MessageNotFound
from .events import LARGEST_NUMBER

IDEMPOTENCY_KEY_CHARACTERS = 200
PRINCIPAL_BYTES = 2000
"""With its key it is one entry of an index, which in PostgreSQL has at most 2,704 bytes."""
LONGEST_LIST = 2**31 - 1
"""More than any answer holds, and a number for every database."""
_CHAT_ID = re.compile(r"[!-~]{1,200}")
_IDEMPOTENCY_KEY = re.compile(rf"[!-~]{{1,{IDEMPOTENCY_KEY_CHARACTERS}}}")


def checked_chat_id(text: str) -> str:
    """The id of a chat. One that no store could have is not looked up: `ChatNotFound`."""
    if not _CHAT_ID.fullmatch(text):
        raise ChatNotFound("no chat has such an id")
    return text


def is_idempotency_key(text: str) -> bool:
    """Whether it is one that a client may use, over HTTP and otherwise."""
    return _IDEMPOTENCY_KEY.fullmatch(text) is not None


def checked_idempotency_key(text: str) -> str:
    """The key. Raises `ConfigurationError`: the program that embeds the engine makes keys, or passes them on."""
    if not is_idempotency_key(text):
        raise ConfigurationError(f"idempotency_key has 1 to {IDEMPOTENCY_KEY_CHARACTERS} visible ASCII characters")
    return text


def checked_principal(text: str) -> str:
    """The principal whose keys are apart from those of others. Raises `ConfigurationError`."""
    try:
        fits = len(text.encode()) <= PRINCIPAL_BYTES
    except UnicodeEncodeError:  # lone surrogates
        fits = False
    if not fits or "\0" in text:
        raise ConfigurationError(f"principal has at most {PRINCIPAL_BYTES} bytes of UTF-8, and no NUL")
    return text


def checked_message_id(number: int) -> int:
    """The id of a message. Raises `MessageNotFound` for what was never one."""
    if not 0 < number <= LARGEST_NUMBER:
        raise MessageNotFound("no message has such an id")
    return number


def checked_after_id(number: int) -> int:
    """The message after which a stream begins, or 0. Raises `InvalidCursor`."""
    if not 0 <= number <= LARGEST_NUMBER:
        raise InvalidCursor("after_message_id: the id of a message, or 0")
    return number


def nearest_after_id(number: int) -> int:
    """The message after which a list begins: of those that could be, the one that gives the same list."""
    return max(0, min(number, LARGEST_NUMBER))


def checked_limit(number: int) -> int:
    """How long a list may be. Raises `ConfigurationError` for what is no length."""
    if number < 1:
        raise ConfigurationError(f"limit is at least 1, not {number}")
    return min(number, LONGEST_LIST)
