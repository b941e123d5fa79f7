"""Cursor + view -> what is still to be sent to a viewer; and when a preview ends.

`Progress` is what one viewer has. It takes views (what a read of the store says) and bursts (rows of the live
episode), in the order in which its owner decides to, and gives the events that follow. The rules it keeps:

- Order within a view: history reset, messages, queue, status, error, retry, preview reset.
- While a view says `more`, only its messages are given; all the rest counts from the read that reached the end.
- A preview (the parts seen of an episode) ends with the first of: a message of a later version, `preview_reset`,
  `history_reset`. An episode that ends without a message of its own always gives `preview_reset` with its reason.
- Rows are taken of the live episode only, each seq once.

Must not know: who reads the store or the log, and when; how anything is sent.
"""

from __future__ import annotations

from typing import Literal, Protocol

import attrs

from .burst import Burst
from .chat import Chat
from .events import (
    CaughtUp,
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
    Status,
)


class StoreView(Protocol):
    """What one read of the store says; see `stores.View`, which is one."""

    @property
    def chat(self) -> Chat: ...
    @property
    def queue(self) -> tuple[QueueEntry, ...]: ...
    @property
    def base(self) -> MessageRef: ...
    @property
    def base_live(self) -> bool: ...
    @property
    def anchor(self) -> MessageRef: ...
    @property
    def messages(self) -> tuple[Message, ...]: ...
    @property
    def more(self) -> bool: ...


@attrs.define
class Progress:
    """What one viewer has, and what it was told last."""

    base: MessageRef
    """Its last message."""
    episode: Episode | None
    """The episode whose parts it has or may take next."""
    seq: int
    """The last part that it has of it; 0: none."""
    live: Episode | None = None
    """The live episode of the last whole view that was taken: the only one whose rows are taken."""
    caught_up: bool = False
    _told: dict[str, object] = attrs.field(factory=dict)
    _prefix: tuple[MessageRef, Episode, str] | None = None
    """How the cursors of that episode's parts begin after that message."""

    @classmethod
    def start(cls, cursor: Cursor) -> Progress:
        """A viewer that comes with this cursor."""
        return cls(cursor.message, cursor.episode, cursor.seq)

    @property
    def cursor(self) -> Cursor:
        """What to resume from."""
        if self.episode is None or self.seq == 0:
            return Cursor(self.base)
        return Cursor(self.base, self.episode, self.seq)

    @property
    def cursor_text(self) -> str:
        """`str(cursor)`. From burst to burst only the seq changes."""
        base, episode = self.base, self.episode
        if episode is None or self.seq == 0:
            return str(self.cursor)
        prefix = self._prefix
        if prefix is None or prefix[0] is not base or prefix[1] is not episode:
            prefix = self._prefix = (base, episode, str(Cursor(base, episode)).removesuffix("0"))
        return f"{prefix[2]}{self.seq}"

    def fits(self, view: StoreView) -> bool:
        """Whether the view follows what this viewer has now; otherwise it has to be read again."""
        return view.base == self.base

    def ends_live_episode(self, view: StoreView) -> bool:
        """Whether the view says that the live episode is over, by anything but a history reset."""
        return self.live is not None and view.base_live and view.chat.live_episode != self.live

    def take(self, view: StoreView) -> list[Event]:
        """The events of a view that fits."""
        events: list[Event] = []
        if not view.base_live:
            self._end_preview()
            self.base = view.anchor
            events.append(HistoryReset(after_id=view.anchor.id, cursor=str(self.cursor)))
        self.base = view.anchor
        events.extend([self._take_message(message) for message in view.messages])
        if view.more:
            # Between two pages no episode is live for this viewer: no row may come before all its messages.
            self.live = None
            return events
        self._take_state(view.chat, view.queue, events)
        return events

    def skip_lost(self, first_seq: int, lost: Literal["truncated", "gap"]) -> PreviewReset:
        """The rows of the live episode before `first_seq` cannot be had: the viewer goes on there, and is told."""
        self.seq = first_seq - 1
        return PreviewReset(reason=lost, first_seq=first_seq, cursor=str(self.cursor))

    def take_rows(self, burst: Burst) -> None:
        """Count the rows of the live episode, which follow what the viewer has, as had."""
        self.seq = burst.last_seq

    def _take_message(self, message: Message) -> MessageEvent:
        self.base = message.ref
        if self.episode is not None and message.version > self.episode.history_version:
            self._end_preview()
        return MessageEvent(message=message, cursor=str(self.cursor))

    def _take_state(self, chat: Chat, queue: tuple[QueueEntry, ...], events: list[Event]) -> None:
        reason = self._why_preview_ends(chat)
        if self._is_news("queue", queue):
            events.append(QueueUpdate(queue=queue, cursor=str(self.cursor)))
        # In a store that was set back, one version can stand for two things.
        if self._is_news("status", (chat.status, chat.worker_id, chat.snapshot_version, chat.live_episode)):
            events.append(
                Status(
                    status=chat.status,
                    worker_id=chat.worker_id,
                    version=chat.snapshot_version,
                    cursor=str(self.cursor),
                )
            )
        self._take_trouble(chat, events)
        if reason is not None:
            self._end_preview()
            events.append(PreviewReset(reason=reason, first_seq=1, cursor=str(self.cursor)))
        self._follow(chat.live_episode)
        if not self.caught_up:
            self.caught_up = True
            events.append(CaughtUp(cursor=str(self.cursor)))

    def _take_trouble(self, chat: Chat, events: list[Event]) -> None:
        error = chat.last_error
        if self._is_news("error", error and (error, chat.history_version)) and error is not None:
            events.append(ErrorEvent(error=error, cursor=str(self.cursor)))
        retry = chat.retry_state
        news = self._is_news("retry", retry and (retry, chat.history_version, chat.generation_attempt))
        if news and retry is not None:
            events.append(
                Retry(
                    attempt=retry.attempt,
                    delay_seconds=retry.delay_seconds,
                    error=retry.error,
                    cursor=str(self.cursor),
                )
            )

    def _why_preview_ends(self, chat: Chat) -> ResetReason | None:
        """Why the parts that the viewer has are void, if they are and no message or history reset has said so."""
        live = chat.live_episode
        if self.episode is None or self.seq == 0 or live == self.episode:
            return None
        if live is not None and (live.run_id != self.episode.run_id or live < self.episode):
            return "worker_lost"
        if live is None and not chat.attempt_failed:
            return "nothing_kept"
        return "new_attempt" if chat.run_id == self.episode.run_id else "worker_lost"

    def _follow(self, live: Episode | None) -> None:
        self.live = live
        if live is not None and live != self.episode:
            self.episode, self.seq = live, 0

    def _end_preview(self) -> None:
        self.episode, self.seq = None, 0

    def _is_news(self, what: str, value: object) -> bool:
        """Whether the viewer was not told this before; from now on it was."""
        if what in self._told and self._told[what] == value:
            return False
        self._told[what] = value
        return True
