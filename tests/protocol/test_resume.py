"""What a viewer is still to be sent, and when a preview ends."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from relaytrio._protocol.burst import Burst
from relaytrio._protocol.chat import Chat
from relaytrio._protocol.events import (
    NO_MESSAGE,
    CaughtUp,
    ChatError,
    Cursor,
    Episode,
    ErrorEvent,
    Event,
    HistoryReset,
    Message,
    MessageEvent,
    MessageRef,
    PreviewReset,
    QueueEntry,
    QueueUpdate,
    ResetReason,
    Retry,
    RetryState,
    Status,
)
from relaytrio._protocol.resume import Progress

FIRST = Episode(1, 1, "runa")
RETRY = RetryState(attempt=1, delay_seconds=2.0, error="rate limit")


def message(id: int, *, version: int = 1, role: str = "user") -> Message:
    content = [{"type": "text", "text": str(id)}]
    return Message(id=id, stamp=f"s{id}", role=role, content=content, version=version, created_at="now")


@attrs.frozen(kw_only=True)
class SomeView:
    chat: Chat
    queue: tuple[QueueEntry, ...] = ()
    base: MessageRef = NO_MESSAGE
    base_live: bool = True
    anchor: MessageRef = NO_MESSAGE
    messages: tuple[Message, ...] = ()
    more: bool = False


def a_chat(**changes: Any) -> Chat:
    """A chat whose first turn is being answered by run `runa`."""
    values: dict[str, Any] = {
        "id": "c",
        "status": "running",
        "worker_id": "w",
        "run_id": "runa",
        "snapshot_version": 2,
        "history_version": 1,
        "generation_attempt": 1,
    }
    return Chat(**{**values, **changes})


def watching(seq: int = 3) -> Progress:
    """A viewer who has message 1 and the first parts of the answer."""
    progress = Progress.start(Cursor())
    progress.take(SomeView(chat=a_chat(), messages=(message(1),)))
    if seq:
        progress.take_rows(Burst(FIRST, 1, seq, b"rows"))
    return progress


def after_first(chat: Chat, *messages: Message, **changes: Any) -> SomeView:
    """What a read after message 1 says."""
    ref = MessageRef(1, "s1")
    return SomeView(**{"chat": chat, "base": ref, "anchor": ref, "messages": messages, **changes})


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


def test_the_first_view_gives_messages_state_and_caught_up_in_order() -> None:
    """Order within a view: messages, queue, status, error, retry; then caught_up, once."""
    chat = a_chat(retry_state=RETRY, attempt_failed=True, last_error=ChatError(kind="k", message="m"))
    events = Progress.start(Cursor()).take(SomeView(chat=chat, messages=(message(1), message(2))))
    assert [MessageEvent, MessageEvent, QueueUpdate, Status, ErrorEvent, Retry, CaughtUp] == kinds(events)
    assert {"2-s2"} == {event.cursor for event in events[1:]}


def test_the_events_say_what_the_view_says() -> None:
    """A viewer is told what the store holds, field by field, and gets a cursor with each event."""
    error = ChatError(kind="k", message="m")
    queue = (QueueEntry(id=7, content=[]),)
    chat = a_chat(retry_state=RETRY, attempt_failed=True, last_error=error)
    expected: list[Event] = [
        MessageEvent(message=message(1), cursor="1-s1"),
        QueueUpdate(queue=queue, cursor="1-s1"),
        Status(status="running", worker_id="w", version=2, cursor="1-s1"),
        ErrorEvent(error=error, cursor="1-s1"),
        Retry(attempt=1, delay_seconds=2.0, error="rate limit", cursor="1-s1"),
        CaughtUp(cursor="1-s1"),
    ]
    assert expected == Progress.start(Cursor()).take(SomeView(chat=chat, queue=queue, messages=(message(1),)))


def test_state_is_told_again_only_when_it_changes() -> None:
    """The same view twice gives nothing the second time."""
    progress = watching(seq=0)
    assert [] == progress.take(after_first(a_chat()))
    events = progress.take(after_first(a_chat(snapshot_version=3), queue=(QueueEntry(id=1, content=[]),)))
    assert [QueueUpdate, Status] == kinds(events)


def test_while_there_is_more_only_messages_are_given() -> None:
    """All the rest counts from the read that reached the end, and no row comes before."""
    progress = Progress.start(Cursor())
    events = progress.take(SomeView(chat=a_chat(), messages=(message(1),), more=True))
    assert [MessageEvent] == kinds(events)
    assert progress.live is None
    assert kinds(progress.take(after_first(a_chat(), message(2))))[-1] is CaughtUp
    assert FIRST == progress.live


def test_a_watching_viewer_that_fell_pages_behind_gets_no_row_between_them() -> None:
    """The episode it followed is not live for it any more as soon as a page says that more messages follow."""
    progress = watching()
    assert FIRST == progress.live
    later = a_chat(status="waiting", worker_id=None, run_id=None, snapshot_version=9, history_version=9)
    events = progress.take(after_first(later, message(2, version=3, role="assistant"), more=True))
    assert [MessageEvent] == kinds(events)
    assert progress.live is None


def test_a_view_fits_only_what_the_viewer_has_now() -> None:
    """A view read before the last messages were taken has to be read again."""
    progress = watching()
    assert progress.fits(after_first(a_chat()))
    assert not progress.fits(SomeView(chat=a_chat()))


def test_a_message_of_a_later_version_ends_the_preview() -> None:
    """The answer itself replaces its preview: no reset is needed."""
    progress = watching()
    done = a_chat(status="waiting", worker_id=None, run_id=None, snapshot_version=3, history_version=3)
    assert progress.ends_live_episode(after_first(done))
    events = progress.take(after_first(done, message(2, version=3, role="assistant")))
    assert [MessageEvent, Status] == kinds(events)
    assert "2-s2" == str(progress.cursor)


def test_a_message_of_an_earlier_version_leaves_the_preview() -> None:
    """A resumed viewer first gets the messages that its episode followed; its parts stay valid."""
    progress = Progress.start(Cursor(NO_MESSAGE, FIRST, 3))
    events = progress.take(SomeView(chat=a_chat(), messages=(message(1, version=1),)))
    assert PreviewReset not in kinds(events)
    assert "1-s1-1.1.runa-3" == str(progress.cursor)


@pytest.mark.parametrize(
    ("reason", "chat"),
    [
        ("worker_lost", a_chat(run_id="runb", generation_attempt=2)),
        ("worker_lost", a_chat(history_version=0)),
        ("new_attempt", a_chat(generation_attempt=2)),
        ("new_attempt", a_chat(retry_state=RETRY, attempt_failed=True)),
        ("new_attempt", a_chat(status="interrupting", attempt_failed=True)),
        ("worker_lost", a_chat(run_id="runb", retry_state=RETRY, attempt_failed=True)),
        ("nothing_kept", a_chat(worker_id=None, run_id=None)),
        ("nothing_kept", a_chat(status="waiting", worker_id=None, run_id=None)),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_an_episode_without_a_message_of_its_own_is_reset_with_its_reason(
    reason: ResetReason, chat: Chat, resumed: bool
) -> None:
    """Whoever saw parts of it is told why they are void, live and on resume."""
    progress = Progress.start(Cursor(MessageRef(1, "s1"), FIRST, 3)) if resumed else watching()
    resets = [event for event in progress.take(after_first(chat)) if isinstance(event, PreviewReset)]
    assert [PreviewReset(reason=reason, first_seq=1, cursor="1-s1")] == resets
    assert progress.live == chat.live_episode


def test_who_saw_no_part_is_told_no_reset() -> None:
    """A viewer without a preview has nothing to throw away."""
    progress = watching(seq=0)
    assert PreviewReset not in kinds(progress.take(after_first(a_chat(generation_attempt=2))))


def test_an_edit_resets_the_history_and_with_it_the_preview() -> None:
    """The base was deleted: what follows it is void, what stands now comes, and rows begin anew."""
    progress = watching()
    edited = a_chat(history_version=5, snapshot_version=6, run_id="runb")
    view = SomeView(chat=edited, base=MessageRef(1, "s1"), base_live=False, messages=(message(2, version=5),))
    assert not progress.ends_live_episode(view)
    events = progress.take(view)
    assert HistoryReset(after_id=0, cursor="0-") == events[0]
    assert [HistoryReset, MessageEvent, Status] == kinds(events)
    assert (Episode(5, 1, "runb"), 0) == (progress.live, progress.seq)


def test_rows_follow_from_the_cursor_if_it_names_the_live_episode() -> None:
    """A resumed viewer gets the rest of the episode, another one all of it."""
    resumed = Progress.start(Cursor(MessageRef(1, "s1"), FIRST, 3))
    resumed.take(after_first(a_chat()))
    assert 3 == resumed.seq
    late = Progress.start(Cursor(MessageRef(1, "s1")))
    late.take(after_first(a_chat()))
    assert 0 == late.seq


def test_the_cursor_s_text_is_that_of_the_cursor() -> None:
    """Whatever changes: the last message, the episode, how far its rows were had."""
    progress = Progress.start(Cursor())
    seen = set()
    for change in (
        lambda: progress.take(SomeView(chat=a_chat(), messages=(message(1),))),
        lambda: progress.take_rows(Burst(FIRST, 1, 3, b"rows")),
        lambda: progress.take_rows(Burst(FIRST, 4, 1, b"row")),
        lambda: progress.take(after_first(a_chat(), message(2), anchor=MessageRef(2, "s2"))),
        lambda: progress.take_rows(Burst(FIRST, 5, 1, b"row")),
        lambda: progress.take(
            after_first(a_chat(generation_attempt=2), base=MessageRef(2, "s2"), anchor=MessageRef(2, "s2"))
        ),
        lambda: progress.take_rows(Burst(Episode(1, 2, "runa"), 1, 5, b"rows")),
    ):
        change()
        assert str(progress.cursor) == progress.cursor_text
        seen.add(progress.cursor_text)
    assert 7 == len(seen)


def test_lost_rows_are_told_and_the_preview_goes_on_behind_them() -> None:
    """`truncated` and `gap` restart the preview at `first_seq`."""
    progress = watching()
    reset = progress.skip_lost(10, "truncated")
    assert PreviewReset(reason="truncated", first_seq=10, cursor="1-s1-1.1.runa-9") == reset
    progress.take_rows(Burst(FIRST, 10, 2, b"rows"))
    assert "1-s1-1.1.runa-11" == str(progress.cursor)


def test_an_error_that_is_gone_and_comes_back_is_told_again() -> None:
    """The error is state: it is told when it appears, and when it appears again."""
    progress = watching(seq=0)
    parked = a_chat(status="error", worker_id=None, run_id=None, last_error=ChatError(kind="k", message="m"))
    assert ErrorEvent in kinds(progress.take(after_first(parked)))
    assert ErrorEvent not in kinds(progress.take(after_first(parked)))
    progress.take(after_first(a_chat()))
    assert ErrorEvent in kinds(progress.take(after_first(parked)))


def test_a_retry_that_comes_while_watching_is_told_once() -> None:
    """A failed attempt is told when it is recorded, and not with every view that still holds it."""
    progress = watching(seq=0)
    failed = a_chat(retry_state=RETRY, attempt_failed=True)
    assert Retry in kinds(progress.take(after_first(failed)))
    assert [] == progress.take(after_first(failed))


@pytest.mark.parametrize("later", [{"generation_attempt": 2}, {"history_version": 9}])
def test_the_same_failure_of_another_attempt_is_told_again(later: dict[str, int]) -> None:
    """A retry belongs to its attempt: one that reads the same, of the next attempt or turn, is news."""
    progress = watching(seq=0)
    progress.take(after_first(a_chat(retry_state=RETRY, attempt_failed=True)))
    again = a_chat(retry_state=RETRY, attempt_failed=True, **later)
    assert Retry in kinds(progress.take(after_first(again)))


def test_the_same_error_of_another_turn_is_told_again() -> None:
    """An error belongs to its turn: one that reads the same is news, though no view between them was without one."""
    progress = watching(seq=0)
    parked = {"status": "error", "worker_id": None, "run_id": None, "last_error": ChatError(kind="k", message="m")}
    progress.take(after_first(a_chat(**parked)))
    again = a_chat(history_version=9, snapshot_version=9, **parked)
    assert [Status, ErrorEvent] == kinds(progress.take(after_first(again)))


def test_a_viewer_that_knows_an_id_only_learns_its_stamp() -> None:
    """`after_message_id` becomes a full cursor with the first view."""
    progress = Progress.start(Cursor(MessageRef(1, None)))
    view = SomeView(chat=a_chat(), base=MessageRef(1, None), anchor=MessageRef(1, "s1"))
    assert progress.fits(view)
    progress.take(view)
    assert "1-s1" == str(progress.cursor)
