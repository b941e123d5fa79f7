"""A small model of a chat, as a person would keep it on paper: which questions, which queue, does it go on.

Follows the transitions that were committed, one after the other, by rules of its own: what a store should hold can be
told without asking the code that writes it. Answers are not modelled, but for the places that they take. Pure. Who
calls: `ClusterMachine`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from .._protocol.chat import (
    Abandon,
    Acquire,
    Command,
    Commit,
    Create,
    DeleteQueued,
    EditMessage,
    Fail,
    FinishInterruption,
    FinishTurn,
    Interrupt,
    PromoteQueued,
    SendMessage,
)
from .._protocol.events import ChatStatus, Content


@attrs.define
class _Waiting:
    id: int
    content: Content
    urgent: bool


@attrs.define
class ChatModel:
    """What a chat should hold."""

    status: ChatStatus = "waiting"
    owned: bool = False
    history: list[tuple[int, Content | None]] = attrs.field(factory=list)
    """Ids, and what the questions say; None for what a responder says."""
    _queue: list[_Waiting] = attrs.field(factory=list)
    _queued: int = 0

    @property
    def questions(self) -> list[Content]:
        """Of the history, in order."""
        return [content for _, content in self.history if content is not None]

    @property
    def queue(self) -> list[Content]:
        """What waits, in order."""
        return [waiting.content for waiting in self._queue]

    def follow(self, command: Create | Command, message_ids: Sequence[int]) -> None:
        """A transition that changed something, and the ids of the messages that it brought, in order."""
        ids = list(message_ids)
        match command:
            case Create(messages=messages):
                self.history = [
                    (id, message.content if message.role == "user" else None)
                    for id, message in zip(ids, messages, strict=True)
                ]
                self.status = "running" if messages and messages[-1].role == "user" else "waiting"
            case SendMessage():
                self._send(command, ids)
            case EditMessage(message_id=first, content=content):
                self.history = [entry for entry in self.history if entry[0] < first]
                self._queue.clear()
                self.history.append((ids.pop(), content))
                self.status, self.owned = "running", False
            case DeleteQueued(queued_id=queued_id):
                self._take(queued_id)
            case PromoteQueued(queued_id=queued_id):
                self._promote(queued_id, ids)
            case Interrupt() if self.owned:
                self.status = "interrupting"
            case Interrupt():
                self._end_turn(ids)
            case Acquire():
                self.owned = True
            case Commit():
                self._answer(ids)
            case FinishTurn() | FinishInterruption():
                promoted = [ids.pop()] if self._queue else []
                self._answer(ids)
                self._end_turn(promoted)
            case Fail():
                self._answer(ids)
                self.status, self.owned = "error", False
            case Abandon():
                self.owned = False
            case _:
                pass  # attempts

    def _send(self, command: SendMessage, ids: list[int]) -> None:
        urgent = command.when_busy == "interrupt"
        if self.status in ("waiting", "error") and not self._queue:
            self.history.append((ids.pop(), command.content))
            self.status = "running"
        elif self.status == "error":
            self._next(ids)  # whoever waited longer goes first
            self._wait(command.content, urgent=False)
        elif not urgent:
            self._wait(command.content, urgent=False)
        elif self.owned:
            self._wait(command.content, urgent=True)
            self.status = "interrupting"
        else:
            self._wait(command.content, urgent=True, first=True)
            self._next(ids)

    def _promote(self, queued_id: int, ids: list[int]) -> None:
        entry = self._take(queued_id)
        entry.urgent = True
        self._queue.insert(0, entry)
        if self.owned:
            self.status = "interrupting"
        else:
            self._next(ids)

    def _wait(self, content: Content, *, urgent: bool, first: bool = False) -> None:
        self._queued += 1
        place = len(self._queue)
        if first:
            place = 0
        elif urgent:
            place = sum(waiting.urgent for waiting in self._queue)
        self._queue.insert(place, _Waiting(self._queued, content, urgent))

    def _take(self, queued_id: int) -> _Waiting:
        (entry,) = [waiting for waiting in self._queue if waiting.id == queued_id]
        self._queue.remove(entry)
        return entry

    def _next(self, ids: list[int]) -> None:
        self.history.append((ids.pop(), self._queue.pop(0).content))
        self.status = "running"

    def _end_turn(self, ids: list[int]) -> None:
        if self._queue:
            self._next(ids)
        else:
            self.status, self.owned = "waiting", False

    def _answer(self, ids: list[int]) -> None:
        self.history += [(id, None) for id in ids]
