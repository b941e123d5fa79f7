"""What a message may contain."""

from __future__ import annotations

from typing import Any

import pytest

from relaytrio._errors import ContentTooLarge, InvalidContent
from relaytrio._protocol.chat import NewMessage
from relaytrio._protocol.content import new_message, normal_content, user_message

LIMIT = 100


def test_a_string_becomes_one_text() -> None:
    """Content has one form."""
    assert [{"type": "text", "text": "hi"}] == normal_content("hi", limit_bytes=LIMIT)
    assert NewMessage(role="user", content=[{"type": "text", "text": "hi"}]) == user_message("hi")


@pytest.mark.parametrize(
    "content", [None, 3, [], {}, ["text"], [{"text": "no type"}], [{"type": "x", "y": float("nan")}], "\ud800"]
)
def test_what_is_no_content_is_refused(content: Any) -> None:
    """Nothing that a viewer could not be sent is stored."""
    with pytest.raises(InvalidContent):
        normal_content(content, limit_bytes=LIMIT)


def test_content_over_the_limit_is_refused() -> None:
    """The limit counts bytes of JSON."""
    with pytest.raises(ContentTooLarge):
        normal_content("x" * LIMIT, limit_bytes=LIMIT)


def test_messages_come_as_objects_or_ready_made() -> None:
    """A mapping with role and content, the role being `user` if none is named; or a NewMessage with its marks."""
    assert user_message("hi") == new_message({"content": "hi"}, limit_bytes=LIMIT)
    made = NewMessage(role="assistant", content=[{"type": "text", "text": "hi"}], truncated=True)
    assert made == new_message(made, limit_bytes=LIMIT)


@pytest.mark.parametrize("message", ["hi", 3, {"role": "robot", "content": "hi"}, {"role": "user"}, {"role": []}])
def test_what_is_no_message_is_refused(message: Any) -> None:
    """The error is about the request, whatever was sent."""
    with pytest.raises(InvalidContent):
        new_message(message, limit_bytes=LIMIT)
