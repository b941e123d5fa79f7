"""The oracle of a viewer's stream: which invariant do its events break, and where.

It knows what a viewer can know: nothing but the events. A violation names one of

- ORDER: messages arrive by id, each once between two history resets, and before the parts that build on them;
- CONTIGUOUS: within an episode parts arrive as seq 1, 2, 3..., and another episode only when the preview has ended;
- SUPERSEDED: no part of an episode after the message that it led to, or after its failure was announced;
- CATCH_UP: the cursor of every event names exactly what the viewer has then, so that resuming is exact;
- GRAMMAR: the order within what is sent first, `caught_up` once for each subscription, the end of a preview told once.

Must not know: how the events came about. Who calls: tests, and programs that embed the engine, in theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NoReturn, TypeAlias

import attrs

from .._errors import InvalidCursor
from .._protocol.events import (
    CaughtUp,
    Cursor,
    Degraded,
    Episode,
    ErrorEvent,
    Event,
    HistoryReset,
    Message,
    MessageEvent,
    MessagePart,
    PreviewReset,
    QueueUpdate,
    Retry,
    Status,
)
from ._display import Reconnected, one_line

Invariant: TypeAlias = Literal["ORDER", "CONTIGUOUS", "SUPERSEDED", "CATCH_UP", "GRAMMAR"]
_HISTORY = 1
_RANKS: dict[type[object], int] = {
    HistoryReset: _HISTORY,
    MessageEvent: _HISTORY,
    QueueUpdate: 2,
    Status: 3,
    ErrorEvent: 4,
    Retry: 5,
    PreviewReset: 6,
    CaughtUp: 7,
}
"""The order of what is sent until the viewer has caught up; only history comes in several events."""
_BEFORE_THE_END = (Degraded, ErrorEvent, Retry, PreviewReset, MessagePart)
"""What may stand between the event that says that no episode is live and the end of the preview. (Not so a part; but
what is wrong with that is said elsewhere, and better.)"""


class InvariantViolation(AssertionError):
    """A stream that must not be. Its text ends with the shortest history that shows it, one event a line."""

    def __init__(self, invariant: Invariant, explanation: str, history: Sequence[str]) -> None:
        super().__init__("\n  ".join([f"{invariant}: {explanation}", *history]))
        self.invariant = invariant
        self.explanation = explanation
        self.history = tuple(history)


def check_stream(events: Iterable[Event | Reconnected], *, start: Cursor | str | None = None) -> StreamChecker:
    """Raise `InvariantViolation` at the first event that breaks an invariant; otherwise return the counts.

    `start` is the cursor that the viewer came with (`after_message_id` is `Cursor(MessageRef(id, None))`), None if it
    had nothing. Where it came back, a `Reconnected` stands between the events of the two subscriptions. The stream may
    end anywhere. A `cursor` that is none, such as an empty one in events made by hand, is passed over.
    """
    checker = StreamChecker(start)
    for event in events:
        checker.feed(event)
    return checker


@attrs.frozen
class _Seen:
    """One event in its place."""

    number: int
    what: Event | Reconnected

    def __str__(self) -> str:
        return f"#{self.number} {one_line(self.what)}"


@attrs.frozen
class _Preview:
    """The parts that the viewer has of an answer in progress."""

    episode: Episode | None
    """None without parts, or when only a reset has told of it, in a cursor that is none."""
    seq: int
    last: _Seen | None
    """What the viewer knows it from: its last part, a reset, or its own cursor."""
    sent: bool = False
    """Whether a part of it came in this subscription."""


_NO_PREVIEW = _Preview(None, 0, None)


class StreamChecker:
    """`check_stream` for events that come one by one, in memory that grows with the chat's messages only."""

    def __init__(self, start: Cursor | str | None = None) -> None:
        self.parts = 0
        self.messages = 0
        self.reconnects = 0
        self.resets: Counter[str] = Counter()
        """How many resets of each reason; a history reset counts as `history`."""
        self.cursor = Cursor() if start is None else _parsed(start)
        """What the viewer has, as its last event says."""
        self._now = self._began = _Seen(0, Reconnected(self.cursor))
        self._history: dict[int, _Seen] = {}
        """What the viewer was sent of the messages that it has, by id."""
        self._base_id = 0
        self._unknown_up_to = 0
        """The viewer brought with it messages up to this id: which of them are live is not known here."""
        self._version = 0
        self._over: dict[Episode, _Seen] = {}
        """What announced the failure of each episode that failed."""
        self._preview = _NO_PREVIEW
        self._ended_by = self._now
        """What ended the last preview."""
        self._begin(self.cursor)

    # ------------------------------------------------------------------------------------- what is fed

    def feed(self, event: Event | Reconnected) -> None:
        """Take the next event. Raises `InvariantViolation`; after that the checker is of no more use."""
        if isinstance(event, Reconnected):
            self.reconnect(event.cursor)
            return
        self._now = _Seen(self._now.number + 1, event)
        self._check_beginning(event)
        self._check_end_is_told(event)
        self._take(event)
        self._check_cursor(event.cursor)

    def reconnect(self, cursor: Cursor | str | None = None) -> None:
        """The viewer came back with this cursor: it may be an older one. None: with that of its last event."""
        self.reconnects += 1
        came_with = self.cursor if cursor is None else _parsed(cursor)
        self._now = _Seen(self._now.number + 1, Reconnected(came_with))
        self._begin(came_with)

    def _begin(self, cursor: Cursor) -> None:
        """A subscription begins."""
        self.cursor, self._began = cursor, self._now
        self._silent: _Seen | None = self._now
        """What says that no episode is live, so that no part may come."""
        self._must_end: _Seen | None = None
        """The same, until the end of the preview has been told."""
        self._rank = 0
        self._first: dict[type[object], _Seen] = {}
        """The first of each type of event in this subscription."""
        self._preview = _NO_PREVIEW
        if cursor.episode is not None and cursor.seq:
            self._preview = _Preview(cursor.episode, cursor.seq, self._now)
        if cursor.message.id not in self._history:
            self._history.clear()
            self._unknown_up_to = cursor.message.id
        self._cut_history(cursor.message.id)

    # ----------------------------------------------------------------------------- each event by itself

    def _take(self, event: Event) -> None:
        match event:
            case MessageEvent():
                self._take_message(event.message)
            case MessagePart():
                self._take_part(event)
            case Status():
                self._take_status(event)
            case ErrorEvent() | Retry():
                self._silence(self._now)
            case PreviewReset(reason="truncated" | "gap"):
                self._restart_preview(event)
            case PreviewReset():
                self._take_preview_reset(event)
            case HistoryReset():
                self._take_history_reset(event)
            case _:
                pass

    def _take_message(self, message: Message) -> None:
        if message.id <= self._base_id:
            before = self._history.get(message.id) or self._last_message
            self._fail("ORDER", f"message {message.id} came after message {self._base_id}", before)
        episode = self._preview.episode
        if episode is None or message.version > episode.history_version:
            self._end_preview()
        elif self._preview.sent:
            told = f"message {message.id} came after a part of an episode that goes on from it"
            self._fail("ORDER", told, self._preview.last)
        self.messages += 1
        self._base_id = message.id
        self._history[message.id] = self._now
        self._silent = self._now  # the status of the same view says whether anything goes on

    def _take_part(self, event: MessagePart) -> None:
        self._check_not_superseded(event.episode)
        preview = self._preview
        if preview.episode not in (None, event.episode):
            told = f"a part of {event.episode}, but nothing has ended the preview of {preview.episode}"
            self._fail("CONTIGUOUS", told, preview.last)
        if event.seq != preview.seq + 1:
            fault = "it came again or out of order" if event.seq <= preview.seq else "parts are missing before it"
            told = f"part {event.seq} where part {preview.seq + 1} was due: {fault}"
            self._fail("CONTIGUOUS", told, preview.last or self._ended_by)
        self.parts += 1
        self._preview = _Preview(event.episode, event.seq, self._now, sent=True)

    def _check_not_superseded(self, episode: Episode) -> None:
        if episode in self._over:
            self._fail("SUPERSEDED", f"a part of {episode}, whose end was announced", self._over[episode])
        last = self._last_message.what
        if isinstance(last, MessageEvent) and last.message.version > episode.history_version:
            told = f"a part of {episode} after a message of version {last.message.version}"
            self._fail("SUPERSEDED", told, self._last_message)
        if self._silent is not None:
            self._fail(
                "SUPERSEDED", f"a part of {episode}, but no status since says that an episode is live", self._silent
            )

    def _take_status(self, event: Status) -> None:
        if event.version < self._version:
            self._over.clear()  # the store was set back: an episode may live again
        self._version = event.version
        live = event.status in ("running", "interrupting") and event.worker_id is not None
        self._silence(None if live else self._now)

    def _take_preview_reset(self, event: PreviewReset) -> None:
        if not self._preview.seq:
            self._fail("GRAMMAR", "a preview reset, but the viewer has no preview", self._ended_by)
        self.resets[event.reason] += 1
        if self._preview.episode is not None:
            self._over[self._preview.episode] = self._now
        self._end_preview()

    def _restart_preview(self, event: PreviewReset) -> None:
        preview = self._preview
        if self._silent is not None:
            self._fail("SUPERSEDED", "a preview is to go on, but no episode is live", self._silent)
        if event.first_seq <= preview.seq + 1:
            told = f"a preview is to go on at part {event.first_seq}, but nothing was lost before it"
            self._fail("CONTIGUOUS", told, preview.last or self._ended_by)
        self.resets[event.reason] += 1
        # Nothing but its cursor says of which episode it speaks.
        named = _cursor_or_none(event.cursor)
        episode = named.episode if preview.episode is None and named is not None else preview.episode
        self._preview = _Preview(episode, event.first_seq - 1, self._now, sent=preview.sent)

    def _take_history_reset(self, event: HistoryReset) -> None:
        if event.after_id >= self._base_id:
            told = f"a history reset to message {event.after_id} takes nothing back after message {self._base_id}"
            self._fail("ORDER", told, self._last_message)
        if event.after_id > self._unknown_up_to and event.after_id not in self._history:
            told = f"a history reset to message {event.after_id}, which the viewer never had"
            self._fail("ORDER", told, self._last_message)
        self.resets["history"] += 1
        self._cut_history(event.after_id)
        self._over.clear()  # the store may have been set back: an episode may live again
        self._end_preview()
        self._silent = self._now

    # ------------------------------------------------------------------------------ between the events

    def _check_beginning(self, event: Event) -> None:
        """Until `caught_up`: history, queue, status, error, retry, preview reset, each but history once."""
        kind, caught_up = type(event), self._first.get(CaughtUp)
        if caught_up is not None and kind is CaughtUp:
            self._fail("GRAMMAR", "caught_up came again in one subscription", caught_up)
        if caught_up is not None or kind is Degraded:
            return
        if kind is MessagePart or (isinstance(event, PreviewReset) and event.reason in ("truncated", "gap")):
            self._fail("GRAMMAR", "something of an episode came before caught_up", self._began)
        rank = _RANKS[kind]
        if rank < self._rank or (rank == self._rank and kind in self._first and rank > _HISTORY):
            *_, latest = self._first.values()
            self._fail("GRAMMAR", f"{event.type} came too late, or again, before caught_up", self._began, latest)
        if kind is CaughtUp and not (Status in self._first and QueueUpdate in self._first):
            self._fail("GRAMMAR", "caught_up came before the status and the queue", self._began)
        self._rank = rank
        self._first.setdefault(kind, self._now)

    def _check_end_is_told(self, event: Event) -> None:
        """Once no episode is live, what follows of the same view is the end of the preview, if there is one."""
        if self._must_end is None or isinstance(event, _BEFORE_THE_END):
            return
        told = f"no episode is live, but nothing has ended the preview of {self._preview.episode}"
        self._fail("GRAMMAR", told, self._preview.last, self._must_end)

    def _check_cursor(self, text: str) -> None:
        cursor = _cursor_or_none(text)
        if cursor is None:
            return
        had = (self._base_id, self._preview.episode, self._preview.seq)
        if (cursor.message.id, cursor.episode, cursor.seq) != had:
            parts = f"parts up to {had[2]} of {had[1]}" if had[2] else "no part"
            told = f"the cursor {text} names something else than the viewer has: message {had[0]} and {parts}"
            self._fail("CATCH_UP", told, self._last_message, self._preview.last)
        self.cursor = cursor

    def _silence(self, by: _Seen | None) -> None:
        self._silent = by
        self._must_end = by if self._preview.seq else None

    def _end_preview(self) -> None:
        if self._preview.seq:
            self._ended_by = self._now
        self._preview, self._must_end = _NO_PREVIEW, None

    @property
    def _last_message(self) -> _Seen:
        return self._history.get(self._base_id, self._began)

    def _cut_history(self, after_id: int) -> None:
        self._history = {id: seen for id, seen in self._history.items() if id <= after_id}
        self._base_id = after_id
        self._unknown_up_to = min(self._unknown_up_to, after_id)

    def _fail(self, invariant: Invariant, explanation: str, *causes: _Seen | None) -> NoReturn:
        shown = {seen.number: seen for seen in (*causes, self._now) if seen is not None}
        raise InvariantViolation(invariant, explanation, [str(shown[number]) for number in sorted(shown)])


def _parsed(cursor: Cursor | str) -> Cursor:
    return Cursor.parse(cursor) if isinstance(cursor, str) else cursor


def _cursor_or_none(text: str) -> Cursor | None:
    try:
        return Cursor.parse(text)
    except InvalidCursor:
        return None
