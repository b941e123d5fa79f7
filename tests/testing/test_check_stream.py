"""The oracle of a stream: valid streams pass, whatever their shape; a broken one is caught, with the right name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relaytrio._protocol.events import (
    CaughtUp,
    Cursor,
    Degraded,
    Episode,
    Event,
    HistoryReset,
    MessageEvent,
    MessagePart,
    MessageRef,
    PreviewReset,
    Retry,
    Status,
)
from relaytrio.testing import (
    Display,
    Invariant,
    InvariantViolation,
    Reconnected,
    StreamChecker,
    check_stream,
    one_line,
    text_of,
)
from tests.testing.story import Story, Stream, lost, parts, stories, told

INVARIANTS = {"ORDER", "CONTIGUOUS", "SUPERSEDED", "CATCH_UP", "GRAMMAR"}


def violation(stream: Iterable[Event | Reconnected], *, start: Cursor | None = None) -> InvariantViolation:
    with pytest.raises(InvariantViolation) as raised:
        check_stream(stream, start=start)
    return raised.value


# ------------------------------------------------------------------------------------------------ valid streams


@given(story=stories())
def test_valid_streams_pass(story: Story) -> None:
    """Whatever happens to a chat, told as it should be, is no violation; and everything was counted."""
    checker = check_stream(story.stream)
    assert checker.cursor == story.cursor
    assert checker.parts == sum(isinstance(event, MessagePart) for event in story.stream)
    assert checker.messages == sum(isinstance(event, MessageEvent) for event in story.stream)
    assert checker.reconnects == sum(isinstance(event, Reconnected) for event in story.stream)
    assert checker.resets.total() == sum(isinstance(event, PreviewReset | HistoryReset) for event in story.stream)


@given(story=stories(), where=st.integers(0))
def test_a_stream_may_end_anywhere(story: Story, where: int) -> None:
    """A socket that drops in the middle of anything is no violation."""
    check_stream(story.stream[: where % (len(story.stream) + 1)])


@given(story=stories())
def test_what_a_viewer_shows_is_the_history_and_the_preview(story: Story) -> None:
    """`text_of` gives what the chat has, and of the episode in progress the parts since the last loss."""
    shown = text_of(story.stream)
    assert [text for _, text in shown.history] == [message.content[0]["text"] for message in story.messages]
    assert shown.preview == "" or story.seq
    assert shown.preview.count(",") <= story.seq


def test_an_empty_stream_is_valid() -> None:
    """A viewer whose socket dropped before anything came has seen nothing wrong."""
    assert check_stream([]).parts == 0


def test_a_viewer_may_come_with_a_cursor() -> None:
    """What it had before is not sent again: parts go on after the cursor's, messages after its message."""
    story = told(Story.ask, parts(5))
    caught_up = next(index for index, event in enumerate(story.stream) if isinstance(event, MessagePart))
    middle = story.stream[caught_up + 2]
    assert isinstance(middle, MessagePart)
    again = Story()
    again.messages, again.version, again.episode, again.made = story.messages, story.version, story.episode, 5
    again.status, again.seq, again.last_id = "running", middle.seq, story.last_id
    again.come_back()
    again.finish()
    assert check_stream(again.stream[1:], start=Cursor.parse(middle.cursor)).parts == 2
    violation(again.stream[1:])


def test_a_viewer_may_come_with_a_message_id_only() -> None:
    """`after_message_id` has no stamp; what follows is checked from there."""
    story = told(Story.ask, Story.finish)
    story.come_back()
    again = story.stream[story.stream.index(Reconnected()) + 1 :]
    check_stream(again, start=Cursor(MessageRef(story.messages[-1].id, None)))


def test_a_viewer_may_come_back_with_an_older_cursor() -> None:
    """What it had since then is sent again, and that is no repeat."""
    story = told(Story.ask, Story.finish)
    first = story.stream[3]
    assert isinstance(first, MessageEvent)
    answer = next(event for event in reversed(story.stream) if isinstance(event, MessageEvent))
    ending = story.stream[-1]
    assert isinstance(ending, Status)
    opening = [attrs.evolve(event, cursor=answer.cursor) for event in (*story.stream[:1], ending, story.stream[2])]
    check_stream([*story.stream, Reconnected(first.cursor), answer, *opening])
    assert violation([*story.stream, Reconnected(), answer]).invariant == "ORDER"


def test_a_viewer_may_come_back_with_nothing() -> None:
    """One that has thrown everything away gets everything."""
    story = told(Story.ask, parts(2), Story.finish)
    again = told(Story.ask, parts(2), Story.finish)
    checker = check_stream([*story.stream, Reconnected(Cursor()), *again.stream])
    assert (checker.messages, checker.parts, checker.reconnects) == (4, 4, 1)


def test_a_restored_store_may_let_an_episode_live_again() -> None:
    """After a history reset, or when versions go backwards, what was over may go on."""
    story = told(Story.ask, parts(2))
    episode, question, version = story.episode, story.messages[0], story.version
    story.finish()
    story.messages = []
    story.tell(HistoryReset, after_id=0)
    story.messages = [question]
    story.tell(MessageEvent, message=question)
    story.version = version
    story.begin(episode or Episode(0, 0, ""))
    story.add_parts(3)
    story.retry()
    story.version = version - 2
    story.begin(episode or Episode(0, 0, ""))
    story.add_parts(1)
    check_stream(story.stream)


def test_a_viewer_who_missed_the_beginning_of_an_episode_is_told() -> None:
    """A log that lost its beginning restarts the preview of one who had nothing of it, at the first seq left."""
    checker = check_stream(told(Story.ask, lost(9), parts(2), Story.finish).stream)
    assert checker.resets == {"truncated": 1}
    assert checker.parts == 3


def test_events_made_by_hand_need_no_cursors() -> None:
    """Without cursors everything else is still checked."""
    story = told(Story.ask, lost(9), parts(2), Story.retry, parts(2), Story.finish)
    stream = bare(story.stream)
    assert check_stream(stream).cursor == Cursor()
    assert violation([*stream, stream[-2]]).invariant == "ORDER"


# ----------------------------------------------------------------------------------------------- broken streams


def named(story: Story, kind: type, number: int = 0) -> int:
    """Where the event of that type stands, the last one for -1."""
    return [index for index, event in enumerate(story.stream) if type(event) is kind][number]


def without(story: Story, index: int) -> Stream:
    return story.stream[:index] + story.stream[index + 1 :]


def moved(story: Story, index: int, to: int) -> Stream:
    stream = without(story, index)
    stream.insert(to, story.stream[index])
    return stream


def again(story: Story, index: int, at: int | None = None) -> Stream:
    at = index + 1 if at is None else at
    return [*story.stream[:at], story.stream[index], *story.stream[at:]]


def a_turn() -> Story:
    return told(Story.ask, parts(4), Story.finish)


def two_attempts() -> Story:
    return told(Story.ask, parts(3), Story.retry, parts(3), Story.finish)


def two_turns() -> Story:
    return told(Story.ask, parts(3), Story.finish, Story.ask, parts(2), Story.finish)


def an_edit() -> Story:
    return told(Story.ask, Story.finish, Story.ask, parts(3), lambda story: story.edit(2), parts(1))


def bare(stream: Stream) -> Stream:
    """The stream of a viewer whose events have no cursors."""
    return [event if isinstance(event, Reconnected) else attrs.evolve(event, cursor="") for event in stream]


def after_end(story: Story) -> int:
    return len(story.stream)


BROKEN: dict[str, tuple[Callable[[], Stream], Invariant]] = {
    "a part comes twice": (lambda: again(a_turn(), 7), "CONTIGUOUS"),
    "a part is missing": (lambda: without(a_turn(), 6), "CONTIGUOUS"),
    "the first part is missing": (lambda: without(a_turn(), 5), "CONTIGUOUS"),
    "two parts are swapped": (lambda: moved(a_turn(), 6, 7), "CONTIGUOUS"),
    "a part comes after the message that it led to": (lambda: moved(a_turn(), 8, 9), "SUPERSEDED"),
    "a part comes between the messages and the status of its view": (
        lambda: moved((story := two_turns()), named(story, MessagePart, 3), named(story, MessageEvent, 2) + 1),
        "SUPERSEDED",
    ),
    "a part comes right after a history reset": (
        lambda: again((story := an_edit()), named(story, MessagePart), named(story, HistoryReset) + 1),
        "SUPERSEDED",
    ),
    "a part comes when the chat waits": (lambda: again(a_turn(), 5, 11), "SUPERSEDED"),
    "a part of a former answer comes in the next": (
        lambda: again(two_turns(), 5, named(two_turns(), MessagePart, -1)),
        "SUPERSEDED",
    ),
    "a part of a former answer comes before the next one's": (
        lambda: again(two_turns(), 5, named(two_turns(), MessagePart, 3)),
        "SUPERSEDED",
    ),
    "a part comes after its failure was announced": (
        lambda: bare(moved(two_attempts(), named(two_attempts(), MessagePart, 2), named(two_attempts(), PreviewReset))),
        "SUPERSEDED",
    ),
    "a part comes between the failure and its reset": (
        lambda: bare(moved(two_attempts(), named(two_attempts(), MessagePart, 2), named(two_attempts(), Retry))),
        "SUPERSEDED",
    ),
    "a part of a failed attempt comes in the next": (
        lambda: again(two_attempts(), 6, named(two_attempts(), MessagePart, 4)),
        "SUPERSEDED",
    ),
    "a part of an older episode comes without a reset": (
        lambda: [
            *told(Story.ask, Story.retry, parts(1)).stream,
            MessagePart(episode=Episode(1, 1, "run1"), seq=1, part={"type": "text", "text": "old"}, cursor=""),
        ],
        "CONTIGUOUS",
    ),
    "nothing ends the preview of an attempt": (
        lambda: without(two_attempts(), named(two_attempts(), PreviewReset)),
        "GRAMMAR",
    ),
    "nothing ends the preview of a lost worker": (
        lambda: bare(
            without((story := told(Story.ask, parts(2), Story.lose_worker, parts(2))), named(story, PreviewReset))
        ),
        "CONTIGUOUS",
    ),
    "nothing ends the preview of a stopped answer": (
        lambda: moved(
            (story := told(Story.ask, parts(2), Story.stop, Story.ask)),
            named(story, PreviewReset),
            after_end(story) - 1,
        ),
        "GRAMMAR",
    ),
    "a preview is ended twice": (lambda: again(two_attempts(), named(two_attempts(), PreviewReset)), "GRAMMAR"),
    "a preview goes on although nothing is missing": (
        lambda: again((story := told(Story.ask, parts(2), lost(3))), named(story, PreviewReset)),
        "CONTIGUOUS",
    ),
    "parts after a loss do not begin where they were told to": (
        lambda: without((story := told(Story.ask, lost(3), parts(2))), named(story, MessagePart)),
        "CONTIGUOUS",
    ),
    "a loss is not told": (
        lambda: without((story := told(Story.ask, parts(2), lost(3))), named(story, PreviewReset)),
        "CONTIGUOUS",
    ),
    "a preview goes on although no episode is live": (
        lambda: [*a_turn().stream, PreviewReset(reason="gap", first_seq=9, cursor="")],
        "SUPERSEDED",
    ),
    "a message comes twice": (lambda: again(a_turn(), 9), "ORDER"),
    "an old message comes again": (lambda: again(two_turns(), 3, named(two_turns(), MessageEvent, 3)), "ORDER"),
    "messages are swapped": (
        lambda: bare(moved((story := two_turns()), named(story, MessageEvent), named(story, MessageEvent, 1))),
        "ORDER",
    ),
    "a message comes again over a reconnect": (
        lambda: [*(story := a_turn()).stream, Reconnected(), story.stream[9]],
        "ORDER",
    ),
    "a message comes after parts that go on from it": (lambda: bare(moved(a_turn(), 3, 5)), "ORDER"),
    "a message is missing": (lambda: without(a_turn(), 9), "CATCH_UP"),
    "a reset takes back nothing": (lambda: again(an_edit(), named(an_edit(), HistoryReset)), "ORDER"),
    "a reset to a message that never was": (
        lambda: [*told(Story.ask, Story.finish).stream, HistoryReset(after_id=3, cursor="")],
        "ORDER",
    ),
    "a message that a reset took back comes again": (
        lambda: again(an_edit(), named(an_edit(), MessageEvent, 2), after_end(an_edit())),
        "ORDER",
    ),
    "a part of what an edit took back comes again": (
        lambda: again(an_edit(), named(an_edit(), MessagePart), after_end(an_edit())),
        "SUPERSEDED",
    ),
    "caught_up comes twice": (lambda: again(a_turn(), 2), "GRAMMAR"),
    "caught_up comes never": (lambda: without(a_turn(), 2), "GRAMMAR"),
    "caught_up comes before the status": (lambda: moved(a_turn(), 2, 1), "GRAMMAR"),
    "caught_up comes before the queue": (lambda: without(a_turn(), 0), "GRAMMAR"),
    "the queue comes after the status": (lambda: moved(a_turn(), 0, 1), "GRAMMAR"),
    "the status comes twice before caught_up": (lambda: again(a_turn(), 1), "GRAMMAR"),
    "caught_up is missing after a reconnect": (
        lambda: without((story := told(Story.ask, Story.come_back, parts(1))), named(story, CaughtUp, -1)),
        "GRAMMAR",
    ),
    "a preview goes on before caught_up": (
        lambda: [PreviewReset(reason="truncated", first_seq=3, cursor="")],
        "GRAMMAR",
    ),
    "a part is sent again over a reconnect": (
        lambda: again((story := told(Story.ask, parts(2), Story.come_back)), 6, after_end(story)),
        "CONTIGUOUS",
    ),
    "a part is skipped by a reconnect": (
        lambda: without((story := told(Story.ask, parts(2), Story.come_back, parts(2))), named(story, MessagePart, 2)),
        "CONTIGUOUS",
    ),
    "a cursor names more than was sent": (
        lambda: [*told(Story.ask).stream, Degraded(what="relay", ok=True, message="", retrying=False, cursor="9-s9")],
        "CATCH_UP",
    ),
    "a cursor names fewer parts than were sent": (
        lambda: [*(story := told(Story.ask, parts(2))).stream, attrs.evolve(story.stream[1], cursor=str_before(story))],
        "CATCH_UP",
    ),
}


def str_before(story: Story) -> str:
    """The cursor of the last but one event."""
    event = story.stream[-2]
    assert not isinstance(event, Reconnected)
    return event.cursor


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_caught_by_name(name: str) -> None:
    """Each way to break a stream is found, and called what it is."""
    make, invariant = BROKEN[name]
    assert violation(make()).invariant == invariant


def _is_reset(stream: Stream) -> bool:
    """Whether no message has followed the last history reset."""
    kinds = [type(event) for event in stream if isinstance(event, HistoryReset | MessageEvent)]
    return kinds[-1:] == [HistoryReset]


def _mutations(stream: Stream) -> list[tuple[str, int, int]]:
    """Every single change of a stream that must be noticed."""
    found: list[tuple[str, int, int]] = []
    for index, event in enumerate(stream):
        follower = stream[index + 1] if index + 1 < len(stream) else None
        subscription = [at for at in range(index + 1, len(stream) + 1) if Reconnected() not in stream[index:at]]
        if isinstance(event, MessagePart | CaughtUp):
            found += [("repeat", index, at) for at in subscription]
        if isinstance(event, MessageEvent):
            # Right after a reset it is no repeat: nobody can tell it from a message that stands again.
            found += [("repeat", index, at) for at in subscription if not _is_reset(stream[index + 1 : at])]
        if isinstance(event, PreviewReset | HistoryReset):
            found.append(("repeat", index, index + 1))
        if isinstance(follower, MessagePart) and isinstance(event, MessagePart):
            found += [("drop", index, 0), ("swap", index, 0)]
        told_by_cursor = follower is not None and not isinstance(follower, MessageEvent | HistoryReset | Reconnected)
        if isinstance(event, MessageEvent | PreviewReset | HistoryReset) and told_by_cursor:
            found.append(("drop", index, 0))
        if isinstance(event, MessageEvent | HistoryReset) and isinstance(follower, MessageEvent):
            found.append(("swap", index, 0))
    return found


@given(story=stories(), data=st.data())
def test_a_single_change_of_a_valid_stream_is_caught(story: Story, data: st.DataObject) -> None:
    """Whatever is repeated, left out or swapped, and matters to a viewer, breaks an invariant."""
    mutations = _mutations(story.stream)
    assume(mutations)
    what, index, at = data.draw(st.sampled_from(mutations))
    if what == "repeat":
        stream = again(story, index, at)
    elif what == "drop":
        stream = without(story, index)
    else:
        stream = moved(story, index, index + 1)
    assert violation(stream).invariant in INVARIANTS


# ---------------------------------------------------------------------------------------------------- the report


def test_a_violation_prints_the_shortest_history() -> None:
    """One line for each event that it takes to see what is wrong, in order, numbered, and no more."""
    error = violation(again(a_turn(), 7))
    assert str(error).splitlines() == [
        "CONTIGUOUS: part 3 where part 4 was due: it came again or out of order",
        "  #8 message_part 1.1.run1 seq 3 '1.1.run1 3,'",
        "  #9 message_part 1.1.run1 seq 3 '1.1.run1 3,'",
    ]
    assert error.history == (
        "#8 message_part 1.1.run1 seq 3 '1.1.run1 3,'",
        "#9 message_part 1.1.run1 seq 3 '1.1.run1 3,'",
    )


def test_a_violation_names_what_went_before() -> None:
    """The message that an episode led to stands before the part that came too late."""
    assert violation(moved(a_turn(), 8, 9)).history == (
        "#9 message 4 assistant version 3 'answer 3'",
        "#10 message_part 1.1.run1 seq 4 '1.1.run1 4,'",
    )


def test_a_violation_is_an_assertion_that_failed() -> None:
    """pytest and Hypothesis take it for what it is."""
    assert isinstance(violation(again(a_turn(), 2)), AssertionError)


def test_a_checker_takes_events_one_by_one() -> None:
    """What was fed before the violation is counted, and the violation comes at its event."""
    checker = StreamChecker()
    story = a_turn()
    for event in story.stream:
        checker.feed(event)
    assert (checker.parts, checker.messages, checker.cursor) == (4, 2, story.cursor)
    with pytest.raises(InvariantViolation):
        checker.feed(story.stream[-2])


LONG = {"type": "text", "text": "x" * 1000}


@pytest.mark.parametrize("part", [LONG, {"type": "image", "data": "x" * 1000}])
def test_no_long_text_is_printed(part: dict[str, str]) -> None:
    """A report shows the beginning of a text, and of other parts nothing."""
    line = one_line(MessagePart(episode=Episode(1, 1, "a"), seq=1, part=part, cursor=""))
    assert len(line) < 70


@given(story=stories())
def test_every_event_has_a_line(story: Story) -> None:
    """One line each, beginning with its type."""
    for event in story.stream:
        line = one_line(event)
        assert line.split()[0] == event.type
        assert "\n" not in line


def test_what_a_viewer_shows_over_a_reconnect() -> None:
    """Text is shown once, whether the viewer came back with its last cursor or an older one."""
    story = told(Story.ask, parts(2))
    second, first = story.stream[-1], story.stream[-2]
    assert isinstance(first, MessagePart)
    assert isinstance(second, MessagePart)
    question = [("user", "question 1")]
    assert text_of([*story.stream, Reconnected()]) == Display(question, "1.1.run1 1,1.1.run1 2,")
    assert text_of([*story.stream, Reconnected(first.cursor), second]) == Display(question, "1.1.run1 1,1.1.run1 2,")
    assert text_of([*story.stream, Reconnected(Cursor())]) == Display([], "")
    assert (
        text_of([*story.stream, Reconnected(story.messages[-1].stamp.replace("s", "2-s")), first]).preview
        == "1.1.run1 1,"
    )
