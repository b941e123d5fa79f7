"""What a viewer would have on the screen after some events, and how an event reads in one line.

Believes every event and checks nothing: `_check_stream.py` does that. Who calls: tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import attrs

from .._protocol.events import (
    Content,
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

SHOWN_LETTERS = 20
"""Of a text, in one line: enough to recognise it."""


@attrs.frozen
class Reconnected:
    """Between the events of two subscriptions of one viewer: here it came back."""

    type: ClassVar[str] = "reconnected"
    cursor: Cursor | str | None = None
    """What it came back with; None: the cursor of its last event."""


@attrs.frozen
class Display:
    """What a viewer would show."""

    history: list[tuple[str, str]]
    """Role and text of each message."""
    preview: str
    """The text of the answer in progress; empty if there is none."""


def text_of(events: Iterable[Event | Reconnected]) -> Display:
    """What a viewer that had nothing would show after these events; parts that are no text show nothing."""
    screen = _Screen()
    for event in events:
        screen.take(event)
    history = [(message.role, _text(message.content)) for message in screen.messages]
    return Display(history, "".join(text for _, text in screen.parts))


class _Screen:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.parts: list[tuple[int, str]] = []
        self._episode: Episode | None = None
        self._cursor = ""

    def take(self, event: Event | Reconnected) -> None:
        match event:
            case MessageEvent(message=message):
                self.messages.append(message)
                if self._episode is not None and message.version > self._episode.history_version:
                    self.parts.clear()
            case MessagePart():
                self._episode = event.episode
                self.parts.append((event.seq, _text([event.part])))
            case PreviewReset():
                self.parts.clear()
            case HistoryReset(after_id=after_id):
                self._forget_after(after_id)
                self.parts.clear()
            case Reconnected():
                self._come_back(event.cursor)
            case _:
                pass
        if not isinstance(event, Reconnected):
            self._cursor = event.cursor

    def _come_back(self, with_cursor: Cursor | str | None) -> None:
        """What the cursor does not name will be sent again."""
        text = self._cursor if with_cursor is None else with_cursor
        cursor = Cursor.parse(text) if isinstance(text, str) else text
        self._forget_after(cursor.message.id)
        known = cursor.seq if cursor.episode == self._episode else 0
        self.parts = [part for part in self.parts if part[0] <= known]

    def _forget_after(self, message_id: int) -> None:
        self.messages = [message for message in self.messages if message.id <= message_id]


def _text(content: Content) -> str:
    return "".join(part["text"] for part in content if isinstance(part.get("text"), str))


def one_line(event: Event | Reconnected) -> str:
    """The event, without its cursor and with the beginning of its text only."""
    return f"{event.type} {_details(event)}".rstrip()


def _details(event: Event | Reconnected) -> str:
    match event:
        case MessageEvent(message=message):
            return f"{message.id} {message.role} version {message.version} {_shown(_text(message.content))}"
        case MessagePart():
            return f"{event.episode} seq {event.seq} {_shown(_text([event.part]))}"
        case Status():
            return f"{event.status} worker {event.worker_id} version {event.version}"
        case QueueUpdate(queue=queue):
            return f"of {len(queue)}"
        case ErrorEvent(error=error):
            return error.kind
        case Retry():
            return f"after attempt {event.attempt}"
        case PreviewReset():
            return f"{event.reason} first_seq {event.first_seq}"
        case HistoryReset():
            return f"after_id {event.after_id}"
        case Degraded():
            return f"{event.what} {'ok' if event.ok else 'not ok'}"
        case Reconnected(cursor=cursor):
            return f"with {'its last cursor' if cursor is None else cursor}"
        case _:
            return ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}...")
