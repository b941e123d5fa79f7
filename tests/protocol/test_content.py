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
    ("content", "fault"),
    [
        (None, "^content is a string, or a list"),
        (3, "^content is a string, or a list"),
        ([], "^content is a string, or a list"),
        ({}, "^content is a string, or a list"),
        (["text"], "^content: a part is a dict"),
        ([{"text": "no type"}], "^content: a part is a dict"),
        ([{"type": "x", "y": float("nan")}], "^content: a part holds no NaN"),
        ("\ud800", "^content: its strings are plain ones"),
    ],
)
def test_what_is_no_content_is_refused(content: Any, fault: str) -> None:
    """Nothing that a viewer could not be sent is stored, and its sender is told what is wrong with it."""
    with pytest.raises(InvalidContent, match=fault):
        normal_content(content, limit_bytes=LIMIT)


def test_content_over_the_limit_is_refused() -> None:
    """The limit counts bytes of JSON: exactly so many go, one more does not, and the sender is told both numbers."""
    fitting = "x" * (LIMIT - len('[{"type":"text","text":""}]'))
    assert [{"type": "text", "text": fitting}] == normal_content(fitting, limit_bytes=LIMIT)
    with pytest.raises(ContentTooLarge, match=f"has {LIMIT + 1} bytes of JSON; at most {LIMIT} "):
        normal_content(fitting + "x", limit_bytes=LIMIT)


def test_messages_come_as_objects_or_ready_made() -> None:
    """A mapping with role and content, the role being `user` if none is named; or a NewMessage with its marks."""
    assert user_message("hi") == new_message({"content": "hi"}, limit_bytes=LIMIT)
    for marks in ({"truncated": True}, {"interrupted": True}):
        made = NewMessage(role="assistant", content=[{"type": "text", "text": "hi"}], **marks)
        assert made == new_message(made, limit_bytes=LIMIT)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("hi", "^a message is an object like"),
        (3, "^a message is an object like"),
        ({"role": "robot", "content": "hi"}, "is one of user, assistant, system, tool$"),
        ({"role": "user"}, "^content is a string"),
        ({"role": []}, "is one of user, assistant, system, tool$"),
    ],
)
def test_what_is_no_message_is_refused(message: Any, fault: str) -> None:
    """The error is about the request, whatever was sent, and says what was expected."""
    with pytest.raises(InvalidContent, match=fault):
        new_message(message, limit_bytes=LIMIT)
