"""`Turn`: what a responder holds. The history it answers, and the means to send parts and to commit messages.

It decides nothing: parts go into the turn's record, and what changes the chat is asked of the run's supervisor. Must
not know: the store, episodes, runs. Who calls: responders, the embedding program's code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import trio

from ._protocol.chat import NewMessage
from ._protocol.content import new_message
from ._protocol.events import Content, Message, Part
from ._record import Record, Request

CancelledBy: TypeAlias = Literal["interrupt", "lost", "shutdown"]
MessageLike: TypeAlias = NewMessage | Mapping[str, Any]


class Turn:
    """One call of the responder.

    A responder that returns without `finish` is done: its parts since the last commit, adjacent texts joined, become
    the assistant's message. One that raises `RetryableError` is called again after a delay, any other exception fails
    the turn. One that is to stop is cancelled (`cancelled_by` says why) and has `Settings.unwind_seconds` to end; until
    then it may still send, commit and finish, in a scope shielded for less than that.
    """

    def __init__(
        self,
        *,
        chat_id: str,
        messages: tuple[Message, ...],
        attempt: int,
        record: Record,
        answer_bytes: int,
    ) -> None:
        self.chat_id = chat_id
        self.messages = messages
        """The live messages of the chat when this attempt began, in order."""
        self.attempt = attempt
        """From 1: how many attempts this run has made since the history changed. A commit sets it to 1 again."""
        self.cancelled_by: CancelledBy | None = None
        """Set before the responder is cancelled. `interrupt`: a person wants no more of it, and what was sent is kept.
        `lost`: the chat is not this replica's any more (or the store was silent for too long), nothing is kept.
        `shutdown`: the replica stops, and the turn begins again on another."""
        self._record = record
        self._answer_bytes = answer_bytes

    @property
    def partial(self) -> Content:
        """What was sent since the last commit, adjacent texts joined. A copy; costs as much as it is long."""
        return self._record.kept.content

    async def send(self, part: Part) -> None:
        """Send a part to all viewers: a JSON object with a string `type`; `{"type": "text", "text": ...}` for a token.

        A checkpoint; cancelled, nothing was sent. During a `commit` it waits for its end. Raises `InvalidPart`,
        `AnswerTooLarge` and `TurnOver`.
        """
        record = self._record
        await trio.lowlevel.checkpoint_if_cancelled()
        if record.request is not None or record.over:
            await record.settled()
        try:
            record.append_one(part)
        finally:
            # Others run when the part has left, and not before it: it is under way a turn of the loop earlier.
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def send_many(self, parts: Sequence[Part]) -> None:
        """Send these parts in this order, all of them or, if one is refused, none. Otherwise like `send`."""
        record = self._record
        await trio.lowlevel.checkpoint_if_cancelled()
        if not record.is_ready:
            await record.settled()
        try:
            record.append(parts)
        finally:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def commit(self, messages: Sequence[MessageLike] | None = None) -> None:
        """Store messages in the chat's history, and go on with the turn: a tool's call and result, say.

        None is what was sent since the last commit, as the assistant's message; `messages`, objects with `role`
        (`assistant` if left out) and `content`, replace it. Nothing to store is no commit. Returns when it is stored;
        cancelled, it is stored all the same. Raises `InvalidContent` and `ContentTooLarge` (then nothing has changed),
        and `TurnOver` if the run has lost its chat or has ended.
        """
        await self._record.ready()
        drafts = self._drafts(messages)
        if drafts:
            await self._record.ask(Request(messages=drafts, finishes=False))

    async def finish(self, messages: Sequence[MessageLike] | None = None) -> None:
        """End the turn, with messages as in `commit`; an empty list keeps nothing of what was sent since the last one.

        Returns when it is stored. The responder should return soon: it is cancelled `Settings.unwind_seconds` later.
        Raises as `commit` does.
        """
        await self._record.ready()
        await self._record.ask(Request(messages=self._drafts(messages), finishes=True))

    def _drafts(self, messages: Sequence[MessageLike] | None) -> tuple[NewMessage, ...]:
        if messages is None:
            return self._record.messages()
        return tuple(new_message(_by_assistant(message), limit_bytes=self._answer_bytes) for message in messages)


Responder: TypeAlias = Callable[[Turn], Awaitable[None]]
"""Produces an answer for a turn. The embedding program's."""


def _by_assistant(message: MessageLike) -> MessageLike:
    """With the role that a responder means when it names none."""
    return {"role": "assistant", **message} if isinstance(message, Mapping) else message
