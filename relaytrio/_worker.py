"""The worker: which chats this replica runs. Acquire, look, drain; what the heartbeat finds is compared here.

A run's transitions are its own (`_run.py`). Here are only the acquires, and the hand-over of chats that name this
replica but have no run here. Runs live in the shelter of a scope that a cancellation from outside does not reach at
once: it stops them first, so that they hand their chats over, and gives the shelter its deadline.

Must not know: how replicas are found dead, what a viewer is. Who calls: the engine, which owns `run`; hints (`look`);
the presence (`found_dead`, `cancel_all_runs`, `owned_looked`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from random import Random
from types import MappingProxyType

import trio

from ._bounded import within
from ._errors import ChatNotFound, ChatTaken, Interrupted, InvalidTransition, StoreUnavailable
from ._ownership import Workplace
from ._parts import PartLogs
from ._protocol.chat import Abandon, Acquire, Chat, FinishInterruption
from ._protocol.events import Episode
from ._run import Run
from ._seams import seam
from ._settings import Settings
from ._turn import Responder
from ._wakeup import Flag, Wakeup
from .stores._base import Candidate, Outcome, OwnedChat, Store

CANDIDATES = 100
"""Chats that one query for work gives; when all of them were there, it is asked again at once."""


class Worker:
    """The part of a replica that generates.

    `announce` is called, synchronously, after every committed transition of its runs with the chat as that left it, and
    never for a run that has lost its chat.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        store: Store,
        parts: PartLogs,
        responder: Responder,
        settings: Settings,
        announce: Callable[[Chat], None],
        random: Random,
        logger: logging.Logger | None = None,
    ) -> None:
        self._replica_id = replica_id
        self._store = store
        self._parts = parts
        self._settings = settings
        self._announce = announce
        self._logger = logger or logging.getLogger("relaytrio.worker")
        self._place = Workplace(
            store=store,
            parts=parts,
            responder=responder,
            settings=settings,
            announce=self._tell,
            ended=self._run_ended,
            random=random,
            logger=self._logger,
        )
        self._runs: dict[str, Run] = {}
        self._busy: set[str] = set()
        """Chats that are being acquired, or handed over without a run."""
        self._dead: frozenset[str] = frozenset()
        self._telling: str | None = None
        self._acquisition = trio.CancelScope()
        """Cancelled when the replica is being stopped."""
        self._wakeup = Wakeup()
        self._released = Flag()
        """Set whenever a chat is let go."""
        self._nursery: trio.Nursery | None = None
        """Where runs live; None while none may begin."""
        self._stopping = trio.CancelScope()
        """Cancelled when a run failed as none may: the others still hand their chats over."""
        self._failures: list[Exception] = []
        self._store_answers = True

    @property
    def runs(self) -> Mapping[str, Run]:
        """The runs that own a chat, by the chat's id."""
        return MappingProxyType(self._runs)

    @property
    def draining(self) -> bool:
        """Whether nothing is acquired any more."""
        return self._acquisition.cancel_called

    # ------------------------------------------------------------------------------------- what it is told

    def look(self, chat_id: str) -> None:
        """The chat may have changed: its run reads it; if there is none here, the worker looks for work."""
        if chat_id == self._telling:
            return  # by a transition of its own run, which knows
        run = self._runs.get(chat_id)
        if run is None:
            self._wakeup.set()
        else:
            run.look()

    def found_dead(self, replica_ids: frozenset[str]) -> None:
        """These replicas are dead now: what they own may be taken over."""
        if not replica_ids <= self._dead:
            self._logger.warning("found dead: %s", ", ".join(sorted(replica_ids - self._dead)))
            self._wakeup.set()
        self._dead = replica_ids

    def cancel_all_runs(self) -> None:
        """The chats may be others' by now: end all runs, and tell nobody."""
        for run in tuple(self._runs.values()):
            run.lose()

    def owned_looked(self, known: Collection[Run], owned: Sequence[OwnedChat]) -> None:
        """Compare what the store says that this replica owns with the runs that were there before it was asked.

        A run whose row is another's, or says `interrupting`, reads its chat itself, as it may have a transition under
        way. A chat that has no run is handed over with the run id that was read, which fences that.
        """
        rows = {row.run_id: row for row in owned}
        for run in known:
            row = rows.get(run.run_id)
            if row is None or row.status == "interrupting":
                run.look()
        running = {run.run_id for run in self._runs.values()}
        for row in owned:
            if row.run_id not in running and row.chat_id not in self._busy and self._nursery is not None:
                self._busy.add(row.chat_id)
                self._nursery.start_soon(self._guard, self._let_go, row)

    async def drain(self) -> None:
        """Acquire nothing more, give responders `grace_seconds` to finish, then cancel them. Returns when no chat is
        owned by a run here. Cancelled, what has begun goes on; twice is fine."""
        self._acquisition.cancel()
        for run in tuple(self._runs.values()):
            run.leave()
        with trio.move_on_after(self._settings.grace_seconds):
            await self._all_released()
        await seam("grace over, not stopped", replica_id=self._replica_id)
        self._stop_all()
        await self._all_released()

    async def _all_released(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._runs or self._busy:
            self._released.clear()
            await self._released.wait()

    def _stop_all(self) -> None:
        for run in tuple(self._runs.values()):
            run.stop()

    # ------------------------------------------------------------------------------------------ its tasks

    async def run(self) -> None:
        """Acquire chats and run them, until cancelled. Cancelled, it hands its chats over.

        It cannot end before its responders have: one that swallows `trio.Cancelled` for ever holds it up for ever. If
        the engine itself fails in a run, it hands the other chats over too, and raises that.
        """
        with self._stopping:
            await self._run()
        if self._failures:
            raise self._failures[0]

    async def _run(self) -> None:
        # The shield gets its deadline with the cancellation that it holds off (`_acquire_until_cancelled`).
        shelter = trio.CancelScope(shield=True)
        closing = trio.Event()
        async with trio.open_nursery() as nursery:
            with shelter:
                async with trio.open_nursery() as runs:
                    self._nursery = runs
                    nursery.start_soon(self._acquire_until_cancelled, shelter, closing)
                    await closing.wait()

    async def _guard(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await task(*args)
        except Exception as failure:
            # Told here too: while the replica stops, its cancellation is all that leaves `run`.
            self._logger.error("the engine failed in a run, this replica stops", exc_info=failure)
            self._failures.append(failure)
            self._stopping.cancel()

    async def _acquire_until_cancelled(self, shelter: trio.CancelScope, closing: trio.Event) -> None:
        try:
            with self._acquisition:
                await self._acquire_forever()
            await trio.sleep_forever()
        finally:
            self._acquisition.cancel()
            self._nursery = None
            self._stop_all()
            # A run needs two at most; what is left then is beyond help.
            shelter.deadline = trio.current_time() + 3 * self._settings.unwind_seconds
            closing.set()

    async def _acquire_forever(self) -> None:
        while True:
            free = self._settings.max_runs - len(self._runs)
            if free > 0 and await self._acquire_some(min(free, CANDIDATES)):
                continue
            with trio.move_on_after(self._settings.acquire_seconds):
                await self._wakeup.wait()
            await self._let_others_be_first()

    async def _let_others_be_first(self) -> None:
        """All workers hear of a chat at the same time: the more one has to do, the later it tries."""
        delay_seconds = min(len(self._runs) * self._settings.yield_seconds, self._settings.yield_max_seconds)
        if delay_seconds > 0:
            await trio.sleep(delay_seconds)

    async def _acquire_some(self, limit: int) -> bool:
        """Whether something was acquired and there may be more."""
        try:
            query = self._store.candidates(self._dead, limit)
            candidates = await within(self._settings.store_read_seconds, query)
            self._reached(None)
            if candidates:
                await seam("candidates read, not acquired", replica_id=self._replica_id)
            acquired = 0
            for candidate in candidates:
                await trio.lowlevel.checkpoint_if_cancelled()
                acquired += await self._acquire(candidate)
        except StoreUnavailable as error:
            self._reached(error)
            return False
        return acquired > 0 and len(candidates) == limit

    def _reached(self, error: StoreUnavailable | None) -> None:
        if self._store_answers and error is not None:
            self._logger.warning("the store does not answer, nothing is acquired meanwhile: %s", error)
        if error is None and not self._store_answers:
            self._logger.info("the store answers again")
        self._store_answers = error is None

    async def _acquire(self, candidate: Candidate) -> bool:
        """Make the chat this replica's. Losing the race for it is normal."""
        chat_id = candidate.chat_id
        if chat_id in self._runs or chat_id in self._busy or candidate.worker_id == self._replica_id:
            return False
        command = Acquire(worker_id=self._replica_id, run_id=self._place.new_id(), dead_worker_id=candidate.worker_id)
        outcome: Outcome | None = None
        self._busy.add(chat_id)
        try:
            # An acquire that was cut off may have had its effect: a chat without a run, until the next heartbeat.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._settings.unwind_seconds):
                outcome = await self._store.apply(chat_id, command)
                await seam("acquired, not begun", chat_id=chat_id, replica_id=self._replica_id)
        except (InvalidTransition, ChatNotFound):
            return False
        finally:
            self._not_busy(chat_id)
        if outcome is None:
            raise StoreUnavailable(f"the acquire of chat {chat_id} was not answered")
        self._begin(outcome.chat)
        return True

    def _begin(self, chat: Chat) -> None:
        """Synchronous, from the answer of the acquire on: the chat has a run, and its log is there before the hint.

        A run that begins while the replica is stopping starts no responder: it hands the chat over again.
        """
        run = self._runs[chat.id] = Run(self._place, chat, leaving=self.draining)
        self._tell(chat)
        assert self._nursery is not None, "chats are only acquired while runs can live"
        self._nursery.start_soon(self._guard, run.live, name=f"run {run.run_id} of chat {chat.id}")

    def _run_ended(self, chat_id: str, run_id: str) -> None:
        run = self._runs.get(chat_id)
        if run is not None and run.run_id == run_id:
            del self._runs[chat_id]
            # The chat may be everybody's, and there is room for another one.
            self._wakeup.set()
            self._released.set()

    def _not_busy(self, chat_id: str) -> None:
        self._busy.discard(chat_id)
        self._released.set()

    def _tell(self, chat: Chat) -> None:
        self._telling = chat.id
        try:
            self._announce(chat)
        finally:
            self._telling = None

    # ------------------------------------------------------------------------------- chats without a run

    async def _let_go(self, owned: OwnedChat) -> None:
        """A chat names this replica and has no run here, as when the answer to an acquire was lost: end that."""
        try:
            with trio.move_on_after(self._settings.unwind_seconds):
                await self._hand_over(owned)
        except (ChatTaken, ChatNotFound, InvalidTransition):
            pass  # it has ended by itself
        except StoreUnavailable as error:
            self._logger.warning("chat %s is not handed over yet: %s", owned.chat_id, error)
        finally:
            self._not_busy(owned.chat_id)
            self._wakeup.set()

    async def _hand_over(self, owned: OwnedChat) -> None:
        self._logger.info("chat %s names this replica, but has no run here: it is handed over", owned.chat_id)
        abandon = Abandon(run_id=owned.run_id, token=self._place.new_id())
        try:
            outcome = await self._store.apply(owned.chat_id, abandon)
        except Interrupted:
            finish = FinishInterruption(run_id=owned.run_id, token=self._place.new_id())
            outcome = await self._store.apply(owned.chat_id, finish)
            if outcome.answer.run_goes_on:
                self._make_empty_log(outcome.chat, owned.run_id)
                self._tell(outcome.chat)
                outcome = await self._store.apply(owned.chat_id, abandon)
        self._tell(outcome.chat)

    def _make_empty_log(self, chat: Chat, run_id: str) -> None:
        episode = Episode(chat.history_version, chat.generation_attempt, run_id)
        if self._parts.find(chat.id, episode) is None:  # else the store was set back, and the run has had it
            self._parts.make(chat.id, episode).seal()
