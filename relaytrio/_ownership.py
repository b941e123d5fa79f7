"""What a run asks of the store: its transitions, the history, and whether the chat is still its own.

Every transition is fenced by the run id and repeatable by its token, and is asked for again until the store answers.
What follows one (the new episode's log, then the hint) follows in the same synchronous stretch, and nothing follows for
a run that has lost its chat. Must not know: responders, why a transition is asked for. Who calls: `Run`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

import attrs
import trio

from ._errors import ChatNotFound, ChatTaken, StoreUnavailable
from ._parts import PartLog, PartLogs
from ._protocol.chat import Answer, Chat, Command, RecordRetry
from ._protocol.events import Episode, Message
from ._protocol.retry import Backoff
from ._seams import Seam, seam
from ._settings import Settings
from ._turn import Responder
from ._wakeup import Flag, Wakeup
from .stores._base import Outcome, Store

T = TypeVar("T")

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@attrs.frozen(kw_only=True)
class Workplace:
    """What all runs of a worker share."""

    store: Store
    parts: PartLogs
    responder: Responder
    settings: Settings
    announce: Callable[[Chat], None]
    """A transition was committed, and left this chat."""
    ended: Callable[[str, str], None]
    """The chat of this id is not owned any more by the run of this id. Called once or more."""
    random: Random
    logger: logging.Logger

    def new_id(self) -> str:
        """Ten random characters: a run id, or a token."""
        return "".join(self.random.choices(_ALPHABET, k=10))


class StoreSilent(Exception):
    """The store could not be reached for as long as a run goes on without it."""


class Ownership:
    """One run's hold on its chat."""

    def __init__(self, place: Workplace, chat: Chat, *, changed: Callable[[], None], lost: Callable[[], None]) -> None:
        assert chat.run_id is not None
        self.run_id = chat.run_id
        self.chat = chat
        """As it was last read, or as the last transition left it."""
        self.log = place.parts.make(chat.id, _episode(chat, chat.run_id))
        """Of the present episode. It is there before anybody hears of the episode."""
        self._place = place
        self._changed = changed
        self._lost = lost
        self._looking = Wakeup()
        self._watching = trio.CancelScope()
        self._transitions = 0
        """That were begun."""
        self._under_way = False
        self._settled = Flag()
        """Set when no transition is under way any more."""

    def look(self) -> None:
        """The chat may have changed: read it."""
        self._looking.set()

    def end(self) -> None:
        """The chat is not this run's any more. Twice is fine."""
        self.log.seal()
        self._watching.cancel()
        self._place.ended(self.chat.id, self.run_id)

    # --------------------------------------------------------------------------------------- transitions

    async def apply(self, kind: Callable[..., Command], **fields: Any) -> Answer:
        """Seal the log and carry out a transition; the ownership ends with it unless the answer says otherwise.

        Raises what the transition does, `ChatNotFound` and `StoreSilent`.
        """
        command = kind(run_id=self.run_id, token=self._place.new_id(), **fields)
        self.log.seal()
        self._transitions += 1
        self._under_way = True
        self._settled.clear()
        try:
            await self._pass("sealed, not committed", command)
            outcome = await self._insist(lambda: self._place.store.apply(self.chat.id, command))
            await self._pass("committed, not told", command)
        finally:
            self._under_way = False
            self._settled.set()
        return self._take(outcome, same_episode=kind is RecordRetry)

    async def _pass(self, name: Seam, command: Command) -> None:
        await seam(name, chat_id=self.chat.id, run_id=self.run_id, command=type(command).__name__)

    def _take(self, outcome: Outcome, *, same_episode: bool) -> Answer:
        """What follows a committed transition: the log of the new episode, and only then the hint."""
        answer, chat = outcome.answer, outcome.chat
        if answer.run_goes_on and chat.run_id != self.run_id:
            raise ChatTaken(f"chat {chat.id} was taken while the answer to a transition was lost")
        self.chat = chat
        if not answer.run_goes_on:
            self.end()
        elif not same_episode:
            self.log = self._new_log(_episode(answer, self.run_id))
        self._place.announce(chat)
        return answer

    def _new_log(self, episode: Episode) -> PartLog:
        if self._place.parts.find(self.chat.id, episode) is not None:
            # Only a store that was set back under this run gets here: viewers have seen other rows of that episode.
            raise ChatTaken(f"chat {self.chat.id} was set back to an episode that run {self.run_id} has had")
        return self._place.parts.make(self.chat.id, episode)

    # --------------------------------------------------------------------------------------------- reads

    async def history(self) -> tuple[Message, ...]:
        """What the present episode goes on from: all live messages in order.

        Raises `ChatNotFound`, `StoreSilent`, and `ChatTaken` if the history is another one already. Nothing fences a
        read, and rows that answer a newer history would carry a cursor past messages that their viewers never had.
        """
        messages: list[Message] = []
        while page := await self._insist(
            lambda: self._place.store.list_messages(self.chat.id, after_id=messages[-1].id if messages else 0)
        ):
            messages.extend(page)
        version = messages[-1].version if messages else 0
        if version != self.log.episode.history_version:
            raise ChatTaken(f"chat {self.chat.id} has another history than when its run {self.run_id} began to answer")
        return tuple(messages)

    async def watch(self) -> None:
        """Read the chat whenever somebody says that it may have changed: a Stop, or its loss. Until it ends."""
        with self._watching:
            while True:
                await self._looking.wait()
                while self._under_way:
                    await self._settled.wait()
                await self._look()

    async def _look(self) -> None:
        before = self._transitions
        chat = await self._read_chat()
        await seam("chat looked at, not compared", chat_id=self.chat.id, run_id=self.run_id)
        if self._transitions != before:
            # Read before or while a transition of this run changed it: that is no news of others.
            self._looking.set()
        elif chat is None or chat.run_id != self.run_id:
            self._place.logger.info("run %s ends: chat %s is not its own any more", self.run_id, self.chat.id)
            self._lost()
        else:
            self.chat = chat
            self._changed()

    async def _read_chat(self) -> Chat | None:
        backoff = self._backoff()
        while True:
            try:
                return await self._place.store.read_chat(self.chat.id)
            except ChatNotFound:
                return None
            except StoreUnavailable:
                await trio.sleep(backoff.next_delay_seconds(self._place.random.random()))

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until the store answers: a transition keeps its token, so asking twice changes nothing."""
        backoff = self._backoff()
        with trio.CancelScope(deadline=trio.current_time() + self._place.settings.outage_seconds):
            while True:
                try:
                    return await ask()
                except StoreUnavailable as error:
                    if backoff.failures == 0:
                        self._place.logger.warning("run %s waits for the store: %s", self.run_id, error)
                await trio.sleep(backoff.next_delay_seconds(self._place.random.random()))
        raise StoreSilent

    def _backoff(self) -> Backoff:
        return Backoff(self._place.settings.store_retry_seconds, self._place.settings.store_retry_max_seconds)


def _episode(numbers: Chat | Answer, run_id: str) -> Episode:
    return Episode(numbers.history_version, numbers.generation_attempt, run_id)
