"""The oracle of a stream against the real rules: what they send, whatever happens, breaks no invariant."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from relaytrio._errors import RequestError, RunError
from relaytrio._protocol import wire
from relaytrio._protocol.chat import (
    Abandon,
    Acquire,
    BeginAttempt,
    Chat,
    ChatState,
    Command,
    Commit,
    EditMessage,
    Fail,
    FinishInterruption,
    FinishTurn,
    Fresh,
    Interrupt,
    NewMessage,
    RecordRetry,
    RunCommand,
    SendMessage,
    decide,
)
from relaytrio._protocol.events import NO_MESSAGE, ChatError, Cursor, Episode, Event, Message, RetryState
from relaytrio._protocol.resume import Progress
from relaytrio.stores._base import View
from relaytrio.testing import Reconnected, check_stream, text_burst, text_of


class World:
    """A chat by the real rules, and a viewer of it by the real rules, with nothing in between."""

    def __init__(self) -> None:
        self.stream: list[Event | Reconnected] = []
        self.messages: list[Message] = []
        self.state = ChatState(Chat(id="chat", status="waiting"))
        self.progress = Progress.start(Cursor())
        self.made: dict[Episode, int] = {}
        self.runs = 0
        self.had = [Cursor()]
        """The cursors that the viewer may come back with."""

    def send(self, *events: Event) -> None:
        self.stream += events
        self.had += [Cursor.parse(event.cursor) for event in events]

    def acquire(self, worker_id: str) -> None:
        """A worker takes the chat, from its owner if there is one."""
        self.runs += 1
        dead = self.state.chat.worker_id
        self.do(Acquire(worker_id=worker_id, run_id=f"run{self.runs}", dead_worker_id=dead))

    def run(self, command: Any) -> None:
        """The chat's owner does something."""
        self.do(attrs.evolve(command, run_id=self.state.chat.run_id or "none", token=str(self.state.chat)))

    def do(self, command: Command) -> None:
        fresh = Fresh("now", tuple(f"s{self.state.chat.snapshot_version}x{number}" for number in range(3)))
        edited = getattr(command, "message_id", None)
        target = next((message for message in self.messages if message.id == edited), None)
        try:
            transition = decide(self.state, command, fresh, target=target)
        except (RequestError, RunError):
            return
        self.state = ChatState(transition.chat, transition.queue)
        if transition.deleted_from is not None:
            self.messages = [message for message in self.messages if message.id < transition.deleted_from]
        self.messages += transition.inserted

    def view(self, page: int) -> View:
        base = self.progress.base
        live = base.id == 0 or any(message.ref == base for message in self.messages)
        below = [message.ref for message in self.messages if message.id < base.id]
        anchor = base if live else (below[-1] if below else NO_MESSAGE)
        following = [message for message in self.messages if message.id > anchor.id]
        return View(
            chat=self.state.chat,
            queue=self.state.queue,
            base=base,
            base_live=live,
            anchor=anchor,
            messages=tuple(following[:page]),
            more=len(following) > page,
        )

    def look(self, page: int) -> None:
        self.send(*self.progress.take(self.view(page)))

    def make_parts(self, count: int) -> None:
        live = self.state.chat.live_episode
        if live is not None:
            self.made[live] = self.made.get(live, 0) + count

    def take_parts(self, first_left: int) -> None:
        """The viewer gets what was made; the log has lost what is before `first_left`."""
        live = self.progress.live
        made = 0 if live is None else self.made.get(live, 0)
        if live is None or made <= self.progress.seq:
            return
        if first_left > self.progress.seq + 1 and first_left <= made:
            self.send(self.progress.skip_lost(first_left, "gap"))
        burst = text_burst(
            live,
            [f"{seq}," for seq in range(self.progress.seq + 1, made + 1)],
            first_seq=self.progress.seq + 1,
            cursor=self.progress.cursor,
        )
        self.progress.take_rows(burst)
        self.send(*wire.decode_rows(burst))

    def watch(self, count: int) -> None:
        """Parts are made, and a viewer who is up to date gets them."""
        self.make_parts(count)
        self.look(9)
        self.take_parts(1)

    def come_back(self, older: int) -> None:
        """With its last cursor, or an older one."""
        del self.had[max(1, len(self.had) - older) :]
        self.progress = Progress.start(self.had[-1])
        self.stream.append(Reconnected(self.had[-1]))


TEXT = [{"type": "text", "text": "x"}]
ANSWER = (NewMessage(role="assistant", content=TEXT),)
RETRY = RetryState(attempt=1, delay_seconds=1.0, error="busy")
FAILURE = ChatError(kind="responder_failed", message="it failed")
NOBODY: dict[str, Any] = {"run_id": "", "token": ""}
COMMANDS: list[Command] = [
    SendMessage(content=TEXT),
    SendMessage(content=TEXT, when_busy="interrupt"),
    Interrupt(),
    *[EditMessage(content=TEXT, message_id=id) for id in (1, 2, 4, 7)],
]
RUN_COMMANDS: list[RunCommand] = [
    BeginAttempt(**NOBODY),
    RecordRetry(**NOBODY, retry=RETRY),
    Commit(**NOBODY, messages=ANSWER),
    FinishTurn(**NOBODY, messages=ANSWER),
    FinishTurn(**NOBODY),
    FinishInterruption(**NOBODY, messages=ANSWER),
    FinishInterruption(**NOBODY),
    Fail(**NOBODY, error=FAILURE, messages=ANSWER),
    Fail(**NOBODY, error=FAILURE),
    Abandon(**NOBODY),
]
STEPS = [
    st.tuples(st.just(World.do), st.sampled_from(COMMANDS)),
    st.tuples(st.just(World.acquire), st.sampled_from(["worker-a", "worker-b"])),
    st.tuples(st.just(World.run), st.sampled_from(RUN_COMMANDS)),
    st.tuples(st.just(World.look), st.integers(1, 3)),
    st.tuples(st.just(World.make_parts), st.integers(1, 3)),
    st.tuples(st.just(World.take_parts), st.integers(1, 6)),
    st.tuples(st.just(World.watch), st.integers(1, 3)),
    st.tuples(st.just(World.come_back), st.integers(0, 20)),
]


@given(steps=st.lists(st.one_of(STEPS), max_size=60))
@settings(max_examples=200)
def test_what_the_rules_send_passes(steps: list[tuple[object, object]]) -> None:
    """Any commands in any order, seen late, in pages, with losses and over reconnects with cursors old and new: the
    real rules of the chat and of resuming break no invariant, and the viewer has the history in the end."""
    world = World()
    world.do(SendMessage(content=TEXT))
    for step, argument in steps:
        step(world, argument)  # type: ignore[operator]
    for _ in range(2 + len(world.messages)):
        world.look(2)
    check_stream(world.stream)
    assert len(text_of(world.stream).history) == len(world.messages)
