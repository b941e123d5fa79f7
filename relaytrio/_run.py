"""`Run`: one ownership of a chat by this worker, from the acquire to the transition that ends it.

The supervisor is straight-line code: one turn after the other, each in as many attempts as it takes. The transitions
are its own; the responder, in a task beside it, only fills the turn's record and asks. Told to stop, it cancels the
responder, waits for a bounded time, and then ends the turn by a transition. A run that has lost its chat does nothing
more and tells nobody.

Must not know: which chats to acquire, who is dead, viewers. Who calls: the worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import trio

from ._errors import (
    AnswerTooLarge,
    ChatNotFound,
    ChatTaken,
    Interrupted,
    InvalidTransition,
    RetryableError,
    TurnOver,
)
from ._ownership import Ownership, StoreSilent, Workplace
from ._protocol.chat import (
    Abandon,
    Answer,
    BeginAttempt,
    Chat,
    Commit,
    Fail,
    FinishInterruption,
    FinishTurn,
    NewMessage,
    RecordRetry,
)
from ._protocol.events import NO_MESSAGE, ChatError, Message, RetryState
from ._protocol.retry import Backoff
from ._record import Record, Request
from ._seams import seam
from ._turn import CancelledBy, Turn
from ._wakeup import Wakeup

E = TypeVar("E", bound=Exception)

_TOLD_CHARACTERS = 200
"""What of a `RetryableError`'s message a viewer is told: a sentence, not a page."""
_LONGEST_DELAY_SECONDS = 24 * 60 * 60.0
"""What a responder may ask for at most before its next attempt: nobody looks at a preview for longer."""


class _HandOver(Exception):
    """The replica is stopping: the chat is to be abandoned."""


class _Responding:
    """A responder at work."""

    def __init__(self, turn: Turn, record: Record) -> None:
        self.turn = turn
        self.record = record
        self.scope = trio.CancelScope()
        self.deadline = math.inf
        """When it is cancelled, if it was not, and then when it is no longer waited for."""
        self.ended = False
        self.left_behind = False
        self.error: Exception | None = None
        self.finished: Answer | None = None
        """What the `finish` that it called came to."""

    def cancel(self, deadline: float, by: CancelledBy | None = None) -> None:
        if not self.ended and not self.scope.cancel_called:
            self.turn.cancelled_by = by
            self.deadline = deadline
            self.scope.cancel()


class Run:
    """One ownership of a chat. `live` is its task; the other methods are synchronous and may be called at any time."""

    def __init__(self, place: Workplace, chat: Chat, *, leaving: bool) -> None:
        self._place = place
        self._settings = place.settings
        self._own = Ownership(place, chat, changed=self._react, lost=self.lose)
        if chat.status == "interrupting":
            # What the former owner had generated is gone, and nothing will follow.
            self._own.log.seal()
        self._leaving = leaving
        """The replica is stopping: no responder is started any more."""
        self._stopping = False
        """And the one that is at work is cancelled."""
        self._life = trio.CancelScope()
        """All that the supervisor does; cancelled when the chat is lost."""
        self._idle = trio.CancelScope()
        """What the supervisor waits for while no responder is at work."""
        self._wakeup = Wakeup()
        self._attempt = 1
        self._responding: _Responding | None = None
        """The responder at work, or the last one. None: there is nothing of one that could be kept."""

    @property
    def chat_id(self) -> str:
        return self._own.chat.id

    @property
    def run_id(self) -> str:
        return self._own.run_id

    # ------------------------------------------------------------------------------- what others tell it

    def look(self) -> None:
        """The chat may have changed: read it."""
        self._own.look()

    def leave(self) -> None:
        """The replica is stopping: let the responder finish, start none. The chat is handed over after that."""
        self._leaving = True
        self._react()

    def stop(self) -> None:
        """The time is over: cancel the responder, and hand the chat over."""
        if not self._stopping:
            self._stopping = True
            # Once for the responder to end, once for the last transitions.
            self._life.deadline = trio.current_time() + 2 * self._settings.unwind_seconds
        self.leave()

    def lose(self) -> None:
        """The chat is not this run's any more: nothing follows, nobody is told."""
        self._own.end()
        self._life.cancel()
        if self._responding is not None:
            self._responding.record.close()
            self._responding.cancel(self._unwound_at(), "lost")

    def _react(self) -> None:
        """Cut off what has to end, by what is known of the chat and of the replica."""
        by: CancelledBy | None = "shutdown" if self._stopping else None
        if self._own.chat.status == "interrupting":
            by = "interrupt"
        if by is not None and self._responding is not None:
            self._responding.cancel(self._unwound_at(), by)
        if by is not None or self._leaving:
            self._idle.cancel()
        self._wakeup.set()

    def _unwound_at(self) -> float:
        return trio.current_time() + self._settings.unwind_seconds

    # ------------------------------------------------------------------------------------- the supervisor

    async def live(self) -> None:
        """The whole run. Outlives the ownership only for a responder that has not ended yet."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._own.watch)
            try:
                with self._life:
                    await self._supervise()
            finally:
                self.lose()  # nothing, if a transition has ended the ownership
            if self._responding is not None and not self._responding.left_behind:
                await self._attend(self._responding)

    async def _supervise(self) -> None:
        try:
            while await self._turn():
                pass
        except (ChatTaken, ChatNotFound) as loss:
            self._place.logger.info("run %s ends: %s", self.run_id, loss)
        except InvalidTransition as error:
            # Only a store that was set back gets here; the heartbeat's look finds the chat and hands it over.
            self._place.logger.warning("run %s gives up, the store does not know what it did: %s", self.run_id, error)
        except StoreSilent:
            self._place.logger.error(
                "run %s gives up chat %s: the store could not be reached for %g s; the chat goes on when it can",
                self.run_id,
                self.chat_id,
                self._settings.outage_seconds,
            )

    async def _turn(self) -> bool:
        """One turn. Whether the chat is still this run's, with another one."""
        try:
            try:
                return await self._generate()
            except _HandOver:
                return (await self._own.apply(Abandon)).run_goes_on
        except Interrupted:
            return (await self._own.apply(FinishInterruption, messages=self._at_hand())).run_goes_on

    async def _generate(self) -> bool:
        """Attempts, until one of them ends the turn."""
        self._attempt, self._responding = 1, None
        self._obey()
        takeovers = self._own.chat.takeovers
        if takeovers >= self._settings.takeovers:
            return await self._park("worker_lost", f"{takeovers} workers died while they answered this")
        while True:
            responding = await self._respond_once()
            if responding.finished is not None:
                return responding.finished.run_goes_on
            if responding.scope.cancel_called:
                self._leave_turn()
            error = responding.error
            if error is None or _only(error, AnswerTooLarge):
                return (await self._own.apply(FinishTurn, messages=self._at_hand())).run_goes_on
            retryable = _only(error, RetryableError)
            if retryable is None or self._attempt >= self._settings.attempts:
                return await self._fail(error)
            await self._prepare_again(retryable)

    async def _respond_once(self) -> _Responding:
        messages: tuple[Message, ...] = ()
        with self._obedient():
            messages = await self._own.history()
            await seam("history read, not answered", chat_id=self.chat_id, run_id=self.run_id)
        responding = self._start(messages)
        await self._attend(responding)
        return responding

    async def _prepare_again(self, error: RetryableError) -> None:
        """Record the failed attempt, wait, and begin the next one."""
        self._place.logger.info("run %s: attempt %d failed, another one follows", self.run_id, self._attempt)
        delay_seconds = self._delay_seconds(error)
        retry = RetryState(attempt=self._attempt, delay_seconds=delay_seconds, error=_told(error))
        await self._own.apply(RecordRetry, retry=retry)
        self._responding = None
        with self._obedient():
            await trio.sleep(delay_seconds)
        await self._own.apply(BeginAttempt)
        self._attempt += 1

    def _delay_seconds(self, error: RetryableError) -> float:
        told = error.retry_after_seconds
        if isinstance(told, int | float) and not math.isnan(told):
            return float(min(max(0.0, told), _LONGEST_DELAY_SECONDS))
        backoff = Backoff(self._settings.retry_seconds, self._settings.retry_max_seconds, self._attempt - 1)
        return backoff.next_delay_seconds(self._place.random.random())

    async def _fail(self, error: Exception) -> bool:
        self._place.logger.error("the responder failed on chat %s", self.chat_id, exc_info=error)
        message = f"the responder failed ({type(error).__name__})"
        retryable = _only(error, RetryableError)
        if retryable is not None:
            message = f"{self._attempt} attempts failed, the last one: {_told(retryable)}"
        return await self._park("responder_failed", message)

    async def _park(self, kind: str, message: str) -> bool:
        error = ChatError(kind=kind, message=message)
        return (await self._own.apply(Fail, error=error, messages=self._at_hand())).run_goes_on

    def _at_hand(self) -> tuple[NewMessage, ...]:
        """What was generated since the last commit."""
        return () if self._responding is None else self._responding.record.messages()

    def _obey(self) -> None:
        """Leave the turn here if it has to end."""
        if self._leaving or self._own.chat.status == "interrupting":
            self._leave_turn()

    def _leave_turn(self) -> NoReturn:
        if self._own.chat.status == "interrupting":
            raise Interrupted(f"chat {self.chat_id} is being interrupted")
        raise _HandOver

    @contextmanager
    def _obedient(self) -> Iterator[None]:
        """What is done in it is cut off, and the turn left, as soon as it has to end."""
        with trio.CancelScope() as self._idle:
            self._react()
            yield
        if self._idle.cancelled_caught:
            self._leave_turn()
        self._obey()

    # ------------------------------------------------------------------------------------- the responder

    def _start(self, messages: tuple[Message, ...]) -> _Responding:
        base = messages[-1].ref if messages else NO_MESSAGE
        record = Record(self._own.log, base, self._settings, self._wakeup.set)
        turn = Turn(
            chat_id=self.chat_id,
            messages=messages,
            attempt=self._attempt,
            record=record,
            answer_bytes=self._settings.answer_bytes,
        )
        self._responding = _Responding(turn, record)
        self._nursery.start_soon(self._respond, self._responding, name=f"responder of chat {self.chat_id}")
        return self._responding

    async def _respond(self, responding: _Responding) -> None:
        try:
            with responding.scope:
                await self._place.responder(responding.turn)
        except Exception as error:
            responding.error = error
        responding.ended = True
        self._wakeup.set()
        if responding.left_behind:
            self._place.logger.warning("the responder of chat %s has ended at last", self.chat_id)
        if responding.scope.cancel_called or responding.finished is not None:
            self._mention(responding.error)

    def _mention(self, error: Exception | None) -> None:
        """An error that changes nothing, because the turn was over or was to end: a fault all the same."""
        if error is not None and not _only(error, TurnOver) and not _only(error, RetryableError):
            self._place.logger.warning("the responder failed while it ended, on chat %s", self.chat_id, exc_info=error)

    async def _attend(self, responding: _Responding) -> None:
        """Carry out what the responder asks for, until it has ended, or had its time to end. Closes its record."""
        while responding.record.request is not None or not responding.ended:
            if responding.record.request is not None:
                await self._serve(responding, responding.record.request)
            elif await self._woken(responding.deadline) or responding.ended:
                continue
            elif responding.scope.cancel_called:
                self._leave_behind(responding)
                break
            else:  # it has finished its turn and does not return
                responding.cancel(self._unwound_at())
        responding.record.close()

    async def _woken(self, deadline: float) -> bool:
        with trio.move_on_at(deadline):
            await self._wakeup.wait()
            return True
        return False

    async def _serve(self, responding: _Responding, request: Request) -> None:
        if request.finishes:
            responding.finished = await self._own.apply(FinishTurn, messages=request.messages)
            responding.deadline = min(responding.deadline, self._unwound_at())
            responding.record.answer()
            responding.record.close()
            return
        answer = await self._own.apply(Commit, messages=request.messages)
        self._attempt = responding.turn.attempt = 1
        responding.record.reopen(self._own.log, answer.messages[-1])
        self._react()

    def _leave_behind(self, responding: _Responding) -> None:
        responding.left_behind = True
        self._place.logger.error(
            "the responder of chat %s has not ended %g s after it was cancelled: it swallows trio.Cancelled, blocks or "
            "shields itself. It is no longer waited for, and its sends raise TurnOver",
            self.chat_id,
            self._settings.unwind_seconds,
        )


def _only(error: Exception, kind: type[E]) -> E | None:
    """The error of that kind that this is: itself, or the first of a group that holds no others (a responder's own
    nursery wraps what leaves it)."""
    if isinstance(error, kind):
        return error
    if not isinstance(error, ExceptionGroup):
        return None
    leaves = [_only(inner, kind) for inner in error.exceptions]
    return leaves[0] if all(leaf is not None for leaf in leaves) else None


def _told(error: RetryableError) -> str:
    """Its message for viewers: one line that any database and any JSON can hold."""
    text = str(error).encode("utf-8", "replace").decode()
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:_TOLD_CHARACTERS]
