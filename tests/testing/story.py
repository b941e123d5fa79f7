"""Valid streams, told step by step: what happens to a chat, and how one viewer of it is told."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from hypothesis import strategies as st

from relaytrio._protocol.events import (
    CaughtUp,
    ChatError,
    ChatStatus,
    Cursor,
    Degraded,
    Episode,
    ErrorEvent,
    Event,
    HistoryReset,
    Message,
    MessageEvent,
    MessagePart,
    MessageRef,
    PreviewReset,
    QueueUpdate,
    ResetReason,
    Retry,
    Status,
)
from relaytrio.testing import Reconnected

Stream = list[Event | Reconnected]


class Story:
    """Tells a valid stream: what happens to a chat, as one viewer of it is told."""

    def __init__(self) -> None:
        self.stream: Stream = []
        self.messages: list[Message] = []
        self.version = 0
        self.last_id = 0
        self.status: ChatStatus = "waiting"
        self.episode: Episode | None = None
        self.made = 0
        self.trouble: list[Event] = []
        self.seq = 0
        """What the viewer has of the episode."""

    @property
    def cursor(self) -> Cursor:
        ref = self.messages[-1].ref if self.messages else MessageRef(0, "")
        return Cursor(ref, self.episode, self.seq) if self.seq else Cursor(ref)

    def tell(self, kind: Callable[..., Event], **fields: object) -> Event:
        event = kind(**fields, cursor=str(self.cursor))
        self.stream.append(event)
        return event

    def add_message(self, role: str, text: str) -> None:
        self.last_id += 1 + self.version % 2
        number = self.last_id
        content = [{"type": "text", "text": text}]
        message = Message(
            id=number, stamp=f"s{number}", role=role, content=content, version=self.version, created_at="now"
        )
        self.messages.append(message)
        self.seq = 0
        self.tell(MessageEvent, message=message)

    def tell_status(self, status: ChatStatus, worker_id: str | None) -> None:
        self.status = status
        self.tell(Status, status=status, worker_id=worker_id, version=self.version)

    def tell_queue(self) -> None:
        self.tell(QueueUpdate, queue=())

    def open(self) -> None:
        self.tell_queue()
        self.tell_status(self.status, None if self.episode is None else "worker")
        for event in self.trouble:
            self.stream.append(attrs.evolve(event, cursor=str(self.cursor)))
        self.tell(CaughtUp)

    def ask(self) -> None:
        self.version += 1
        self.trouble.clear()
        self.add_message("user", f"question {self.version}")
        self.begin(Episode(self.version, 1, f"run{self.version}"))

    def begin(self, episode: Episode) -> None:
        self.version += 1
        self.episode, self.made, self.seq = episode, 0, 0
        self.tell_status("running", "worker")

    def add_parts(self, count: int = 1) -> None:
        self.made += count
        while self.seq < self.made:
            self.seq += 1
            part = {"type": "text", "text": f"{self.episode} {self.seq},"}
            self.tell(MessagePart, episode=self.episode, seq=self.seq, part=part)

    def lose_parts(self, count: int, reason: ResetReason = "truncated") -> None:
        self.made += count + 1
        self.seq += count
        self.tell(PreviewReset, reason=reason, first_seq=self.seq + 1)
        self.add_parts(0)

    def finish(self) -> None:
        self.version += 1
        self.episode = None
        self.add_message("assistant", f"answer {self.version}")
        self.tell_status("waiting", None)

    def commit(self) -> None:
        """A message in the middle of the turn: the run goes on."""
        assert self.episode is not None
        self.version += 1
        self.add_message("tool", f"result {self.version}")
        self.episode, self.made = Episode(self.version, 1, self.episode.run_id), 0
        self.tell_status("running", "worker")

    def end_preview(self, reason: ResetReason) -> None:
        if self.seq:
            self.seq = 0
            self.tell(PreviewReset, reason=reason, first_seq=1)

    def retry(self) -> None:
        failed = self.episode
        assert failed is not None
        self.version += 1
        self.tell_status("running", "worker")
        self.tell(Retry, attempt=1, delay_seconds=1.0, error="overloaded")
        self.end_preview("new_attempt")
        self.begin(attrs.evolve(failed, generation_attempt=failed.generation_attempt + 1))

    def lose_worker(self) -> None:
        lost = self.episode
        assert lost is not None
        self.version += 1
        self.tell_status("running", "another")
        self.end_preview("worker_lost")
        self.episode, self.made = Episode(lost.history_version, lost.generation_attempt + 1, f"run{self.version}"), 0

    def stop(self) -> None:
        self.version += 1
        self.tell_status("interrupting", "worker")
        self.version += 1
        self.tell_status("waiting", None)
        self.end_preview("nothing_kept")
        self.episode = None

    def fail(self) -> None:
        self.version += 1
        self.tell_status("error", None)
        error = self.tell(ErrorEvent, error=ChatError(kind="responder_failed", message="it failed"))
        self.trouble.append(error)
        self.end_preview("nothing_kept")
        self.episode = None

    def edit(self, keep: int) -> None:
        self.version += 1
        keep = min(keep, len(self.messages) - 1)
        del self.messages[keep:]
        self.trouble.clear()
        self.seq = 0
        self.tell(HistoryReset, after_id=self.messages[-1].id if self.messages else 0)
        self.add_message("user", f"edited {self.version}")
        self.begin(Episode(self.version, 1, f"run{self.version}"))

    def degrade(self) -> None:
        self.tell(Degraded, what="pubsub", ok=False, message="deaf", retrying=True)

    def come_back(self) -> None:
        self.stream.append(Reconnected())
        self.open()
        if self.episode is not None:
            self.add_parts(0)


def told(*steps: Callable[[Story], object]) -> Story:
    story = Story()
    story.open()
    for step in steps:
        step(story)
    return story


def parts(count: int) -> Callable[[Story], None]:
    return lambda story: story.add_parts(count)


def lost(count: int) -> Callable[[Story], None]:
    return lambda story: story.lose_parts(count)


BUSY_STEPS: list[Callable[[Story], object]] = [
    parts(1),
    parts(3),
    lost(2),
    Story.finish,
    Story.commit,
    Story.retry,
    Story.lose_worker,
    Story.stop,
    Story.fail,
    Story.degrade,
    Story.come_back,
    lambda story: story.edit(0),
    lambda story: story.edit(2),
]
IDLE_STEPS: list[Callable[[Story], object]] = [
    Story.ask,
    Story.ask,
    Story.ask,
    Story.degrade,
    Story.come_back,
    lambda story: story.edit(1) if story.messages else story.ask(),
]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    story = told()
    for _ in range(draw(st.integers(0, 25), label="steps")):
        draw(st.sampled_from(IDLE_STEPS if story.episode is None else BUSY_STEPS))(story)
    return story
