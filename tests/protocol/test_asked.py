"""What a request may hold is decided before any database is asked."""

from __future__ import annotations

import pytest

from relaytrio._errors import ChatNotFound, ConfigurationError, InvalidCursor, MessageNotFound
from relaytrio._protocol.asked import (
    IDEMPOTENCY_KEY_CHARACTERS,
    LONGEST_LIST,
    PRINCIPAL_BYTES,
    checked_after_id,
    checked_chat_id,
    checked_idempotency_key,
    checked_limit,
    checked_message_id,
    checked_principal,
    nearest_after_id,
)
from relaytrio._protocol.events import LARGEST_NUMBER

NO_NAMES = ["", "a\0b", "\ud800", "a b", "a\n", "\N{SNOWMAN}", 201 * "a"]


@pytest.mark.parametrize("text", NO_NAMES)
def test_what_is_no_id_and_no_key(text: str) -> None:
    """Some databases could not even look for it."""
    with pytest.raises(ChatNotFound):
        checked_chat_id(text)
    with pytest.raises(ConfigurationError, match="idempotency_key"):
        checked_idempotency_key(text)


def test_what_is_an_id_and_a_key() -> None:
    """All that is visible in ASCII, quotes too."""
    for text in ("'\"\\%/~", IDEMPOTENCY_KEY_CHARACTERS * "!"):
        assert (text, text) == (checked_chat_id(text), checked_idempotency_key(text))


@pytest.mark.parametrize("text", ["a\0b", "\ud800", (PRINCIPAL_BYTES + 1) * "a", PRINCIPAL_BYTES * "\N{SNOWMAN}"])
def test_what_is_no_principal(text: str) -> None:
    """It is kept with its keys, in an index."""
    with pytest.raises(ConfigurationError, match="principal"):
        checked_principal(text)


def test_a_principal_is_any_other_text() -> None:
    """Or none."""
    for text in ("", "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS} \N{SNOWMAN}", PRINCIPAL_BYTES * "a"):
        assert text == checked_principal(text)


def test_numbers() -> None:
    """From the first message's to the largest that a database holds; a list is as long as it may be."""
    for number in (1, LARGEST_NUMBER):
        assert (number, number) == (checked_message_id(number), checked_after_id(number))
        assert min(number, LONGEST_LIST) == checked_limit(number)
    assert (0, 0, 7, LARGEST_NUMBER) == (checked_after_id(0), *map(nearest_after_id, (-5, 7, LARGEST_NUMBER + 1)))
    for number in (-1, LARGEST_NUMBER + 1):
        with pytest.raises(MessageNotFound):
            checked_message_id(number)
        with pytest.raises(InvalidCursor):
            checked_after_id(number)
    for number in (0, -1):
        with pytest.raises(ConfigurationError, match="limit"):
            checked_limit(number)
