"""Episodes, cursors and what events hold."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relaytrio import _errors
from relaytrio._protocol.events import (
    LARGEST_NUMBER,
    NO_MESSAGE,
    CaughtUp,
    Cursor,
    Episode,
    Message,
    MessageRef,
)

NAMES = "abcdefghijklmnopqrstuvwxyz0123456789"
NUMBERS = st.integers(0, LARGEST_NUMBER)
EPISODES = st.builds(Episode, NUMBERS, NUMBERS, st.text(NAMES, min_size=1, max_size=32))
REFS = st.builds(MessageRef, st.integers(1, LARGEST_NUMBER), st.text(NAMES, min_size=1, max_size=16))
CURSORS = st.builds(Cursor, REFS | st.just(NO_MESSAGE)) | st.builds(
    Cursor, REFS | st.just(NO_MESSAGE), EPISODES, NUMBERS
)


def test_a_cursor_reads_as_documented() -> None:
    """The text of a cursor is the one that the documentation shows."""
    episode = Episode(57, 1, "p8r2dq7w3e")
    assert str(Cursor(MessageRef(41, "k3x9q"), episode, 118)) == "41-k3x9q-57.1.p8r2dq7w3e-118"
    assert str(Cursor(MessageRef(41, "k3x9q"))) == "41-k3x9q"
    assert str(Cursor()) == "0-"


@given(cursor=CURSORS)
def test_a_cursor_survives_its_text(cursor: Cursor) -> None:
    """Any cursor that is given out can be resumed from, unchanged."""
    assert Cursor.parse(str(cursor)) == cursor


@given(text=st.text() | st.from_regex(r"\A[0-9]{1,20}-[a-z0-9]{0,3}(-[0-9]\.[0-9]\.[a-z]-[0-9]{1,20})?\Z"))
@example(text="41-k3x9q\n")
@example(text="٤١-k3x9q")
@example(text="041-k3x9q")
@example(text="41-k3x9q-57.1.p8r2dq7w3e")
@example(text="41-k3x9q-57.1.p8r2dq7w3e-0118")
@example(text="1" * 10_000 + "-a")
@example(text="\ud800")
@example(text="")
def test_any_text_is_a_cursor_or_invalid(text: str) -> None:
    """A text is either exactly one cursor's or refused with `InvalidCursor`, whatever it is."""
    try:
        cursor = Cursor.parse(text)
    except _errors.InvalidCursor:
        return
    assert str(cursor) == text


@pytest.mark.parametrize(
    "text",
    [
        "41-",
        "0-k3x9q",
        f"{LARGEST_NUMBER + 1}-k3x9q",
        f"41-k3x9q-{LARGEST_NUMBER + 1}.1.a-1",
        f"41-k3x9q-57.{LARGEST_NUMBER + 1}.a-1",
        f"41-k3x9q-57.1.a-{LARGEST_NUMBER + 1}",
    ],
)
def test_a_cursor_that_was_never_given_out_is_refused(text: str) -> None:
    """No number that a database cannot hold, no message without a stamp, no stamp without a message."""
    with pytest.raises(_errors.InvalidCursor, match="never given out"):
        Cursor.parse(text)


def test_what_is_no_cursor_is_told_where_to_find_one() -> None:
    """Whoever sends something else learns what was expected, without its own text in the answer."""
    with pytest.raises(_errors.InvalidCursor, match=r"^not a cursor: expected the text of an event's `cursor`$"):
        Cursor.parse("yesterday")


def test_a_message_known_by_id_alone_has_no_stamp_to_show() -> None:
    """A viewer's bare id is where to start from; as text it is no cursor to resume from."""
    assert str(Cursor(MessageRef(41, None))) == "41-"


@given(one=EPISODES, other=EPISODES)
def test_episodes_are_ordered_by_their_numbers(one: Episode, other: Episode) -> None:
    """History version first, then attempt; the run orders nothing."""
    assert (one < other) == (one.numbers < other.numbers)
    assert (one > other) == (other < one)


def test_episodes_are_equal_only_with_their_run() -> None:
    """The same numbers under another run are another episode, neither older nor newer."""
    one, other = Episode(57, 1, "a"), Episode(57, 1, "b")
    assert one != other
    assert not one < other
    assert not one > other
    assert one == Episode(57, 1, "a")
    assert len({one, other, Episode(57, 1, "a")}) == 2


def test_a_message_names_itself() -> None:
    """A message's identity is its id and its stamp."""
    message = Message(id=3, stamp="k3x9q", role="user", content=[], version=1, created_at="")
    assert message.ref == MessageRef(3, "k3x9q")


def test_values_are_frozen() -> None:
    """What is handed out cannot be changed by whoever got it."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        CaughtUp(cursor="0-").cursor = "1-a"  # type: ignore[misc]
