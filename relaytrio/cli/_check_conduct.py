"""The run of a check: questions are asked, answers awaited, viewers watched, all of it written down.

One turn after the other: ask, disturb while the answer runs, wait until the store has its end, wait (not for ever)
until each viewer has it too. It decides what is written into the `RunRecord`. Must not know: what is made of that.
Who calls: `_check.py`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import trio

from .._errors import RelaytrioError, StoreUnavailable
from .._protocol.chat import Chat
from .._protocol.events import Message
from ..client import ChatClient
from ..stores._open import SqlitePlace
from ..stores._postgres_place import PostgresPlace
from ._check_disturb import Disturber
from ._check_plan import SETTLED_SECONDS, START_SECONDS, CheckPlan, TurnPlan, needed_cuts
from ._check_records import (
    ANSWERED,
    NEVER_ENDED,
    UNFINISHED,
    ReplicaCounts,
    RunRecord,
    StoredMessage,
    TableLook,
    TurnRecord,
)
from ._check_report import Progress
from ._check_tables import look, needles
from ._check_viewer import Board, Viewer
from ._cluster import Cluster, ReplicaProcess
from ._status import NotDone
from ._transcript import text_of

LOOK_SECONDS = 0.1
"""How often the store is asked whether the answer has ended."""
COUNT_SECONDS = 0.5
"""How often the replicas are asked for their counts: what a killed one relayed after that is not known."""
PAGE_MESSAGES = 200


class Conductor:
    """One run. `record` tells at any time what is known by then."""

    def __init__(
        self,
        plan: CheckPlan,
        cluster: Cluster,
        place: SqlitePlace | PostgresPlace,
        http: httpx.AsyncClient,
        *,
        progress: Progress,
        beside: Callable[[Conductor], Awaitable[None]] | None = None,
    ) -> None:
        """`beside` runs while questions are asked, and does to the cluster, or to its database, what it likes."""
        options = plan.options
        self.viewers: list[Viewer] = []
        self.turns: list[TurnRecord] = []
        self._plan = plan
        self.cluster = cluster
        self._place = place
        self._progress = progress
        self._beside = beside
        self._client = ChatClient(cluster.urls, http=http)
        self.board = Board()
        replicas = {replica.viewers_url: replica.number for replica in cluster.replicas}
        for number in range(1, options.viewers + 1):
            self.viewers.append(Viewer(number, replicas, self.board, http=http, seed=options.seed))
        self._disturber = Disturber(cluster, self.viewers, self.board, options)
        self.lives = self._disturber.lives
        self._counts: dict[str, ReplicaCounts] = {}
        self._looks: list[TableLook] = []
        self._died: dict[int, str] = {}
        self._stored: list[StoredMessage] | None = None

    def record(self, *, out_of_time: bool) -> RunRecord:
        """All that was written down."""
        return RunRecord(
            viewers=[viewer.record for viewer in self.viewers],
            planned_turns=len(self._plan.turns),
            needed_cuts=needed_cuts(self._plan.options),
            turns=self.turns,
            stored=self._stored,
            replica_of=self.lives.number_of,
            counts=self._counts,
            looks=self._looks,
            kill=self._plan.options.kill,
            kills=self.lives.kills,
            died=list(self._died.values()),
            out_of_time=out_of_time,
        )

    async def run(self) -> None:
        """Carry out the plan. Raises `NotDone` and what the client raises, unless replicas that died are to blame."""
        try:
            await self._run()
        except* RelaytrioError:
            self._note_deaths()
            if not self._died:
                raise

    async def _run(self) -> None:
        chat = await self._client.create_chat([])
        async with trio.open_nursery() as nursery:
            for index, viewer in enumerate(self.viewers):
                nursery.start_soon(viewer.watch, chat.id, index % len(self.cluster.replicas) + 1)
            await self._until_watching()
            async with trio.open_nursery() as beside:
                beside.start_soon(self._count_again_and_again)
                if self._plan.options.kill is not None:
                    beside.start_soon(self._disturber.kill_again_and_again)
                if self._beside is not None:
                    beside.start_soon(self._beside, self)
                await self._ask_all(chat.id)
                beside.cancel_scope.cancel()
            await self._count()
            self._stored = await self._read_stored(chat.id)
            nursery.cancel_scope.cancel()
        if self._plan.place is not None:
            await self._client.delete_chat(chat.id)

    async def _until_watching(self) -> None:
        with trio.move_on_after(START_SECONDS):
            for viewer in self.viewers:
                await viewer.until_caught_up()
            return
        late = ", ".join(viewer.place for viewer in self.viewers if not viewer.caught_up)
        logs = "; ".join(f"replica {replica.number}: {replica.log_tail()}" for replica in self.cluster.replicas)
        raise NotDone(f"after {START_SECONDS:g} s these viewers are still not connected: {late}; {logs}")

    # ---------------------------------------------------------------------------------------------- turns

    async def _ask_all(self, chat_id: str) -> None:
        for turn in self._plan.turns:
            if not await self._ask(chat_id, turn):
                return

    async def _ask(self, chat_id: str, turn: TurnPlan) -> bool:
        """One turn; whether another one may follow."""
        await self._disturber.until_two_serve()
        sent = await self._client.send_message(chat_id, turn.name)
        version = sent.snapshot_version
        self._write(turn, version, UNFINISHED)
        self.board.begin_turn(version)
        ended = trio.Event()
        chat = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._disturber.disturb, turn, ended)
            nursery.start_soon(self._look_into_tables, chat_id, turn, version)
            with trio.move_on_after(self._plan.turn_seconds):
                chat = await self._until_ended(chat_id, version)
            ended.set()
            nursery.cancel_scope.cancel()
        self._write(turn, version, _outcome(chat))
        if chat is not None:
            await self._until_settled(turn, chat.snapshot_version)
        return chat is not None

    async def _until_ended(self, chat_id: str, version: int) -> Chat:
        """The chat, when nothing is being generated any more. A database that is away is waited for, as the turn is."""
        while True:
            with suppress(StoreUnavailable):
                chat = await self._client.get_chat(chat_id)
                if chat.snapshot_version > version and chat.status in ("waiting", "error"):
                    return chat
                self._show(chat)
            await trio.sleep(LOOK_SECONDS)

    def _write(self, turn: TurnPlan, version: int, outcome: str) -> None:
        """Note the turn, or what became of it."""
        record = TurnRecord(
            number=turn.number,
            name=turn.name,
            tokens=turn.tokens,
            version=version,
            outcome=outcome,
            ended_at=time.time(),
        )
        self.turns[turn.number - 1 :] = [record]

    def _show(self, chat: Chat) -> None:
        turn, owner = len(self.turns), self.lives.number_of.get(chat.worker_id or "")
        self._progress.show(
            f"turn {turn} of {len(self._plan.turns)}: {chat.status}"
            f"{'' if owner is None else f' on replica {owner}'}, part {self.board.seq}; "
            f"{sum(len(viewer.record.seen) for viewer in self.viewers)} events at {len(self.viewers)} viewers"
        )

    async def _until_settled(self, turn: TurnPlan, version: int) -> None:
        """Wait until all viewers have seen the end, but not for ever: who has not by then hangs."""
        with trio.move_on_after(SETTLED_SECONDS):
            for viewer in self.viewers:
                await viewer.until_settled(version)
        for viewer in self.viewers:
            if viewer.settled_version < version and viewer.record.failure is None:
                viewer.record.hung.append(turn.number)

    async def _look_into_tables(self, chat_id: str, turn: TurnPlan, version: int) -> None:
        """In the middle of the answer: is any of it in the store?"""
        await self.board.first_part()
        await trio.sleep(turn.look_after_seconds)
        asked = [text for earlier in self._plan.turns[: turn.number - 1] for text in (earlier.name, *_whole(earlier))]
        wanted = needles(turn.tokens[: self.board.seq], [*asked, turn.name])
        looked = await trio.to_thread.run_sync(
            look, self._place, chat_id, turn.number, version, wanted, abandon_on_cancel=True
        )
        if looked is not None:
            self._looks.append(looked)

    # --------------------------------------------------------------------------- what the replicas say

    async def _count_again_and_again(self) -> None:
        while True:
            await self._count()
            await trio.sleep(COUNT_SECONDS)

    async def _count(self) -> None:
        """Each replica's counts, and whether one is gone."""
        async with trio.open_nursery() as nursery:
            for replica in self.cluster.replicas:
                if replica.number in self.lives.up:
                    nursery.start_soon(self._count_one, replica)
        self._note_deaths()

    def _note_deaths(self) -> None:
        """Write down which replicas are gone though nobody killed them."""
        for replica in self.lives.died():
            self._died.setdefault(replica.number, f"replica {replica.number} ended by itself: {replica.log_tail()}")
            self.board.poke()

    async def _count_one(self, replica: ReplicaProcess) -> None:
        try:
            health = await replica.health()
        except httpx.HTTPError:
            return  # it is being killed; what it said before stands
        stats = health["stats"]
        self._counts[health["replica_id"]] = ReplicaCounts(
            legs_opened=stats["legs_opened"], parts_relayed=stats["parts_relayed"]
        )

    async def _read_stored(self, chat_id: str) -> list[StoredMessage]:
        stored: list[StoredMessage] = []
        while True:
            page = await self._client.list_messages(
                chat_id, after_id=stored[-1].id if stored else 0, limit=PAGE_MESSAGES
            )
            if not page:
                return stored
            stored += map(_stored, page)


def _outcome(chat: Chat | None) -> str:
    if chat is None:
        return NEVER_ENDED
    return ANSWERED if chat.last_error is None else chat.last_error.kind


def _whole(turn: TurnPlan) -> tuple[str]:
    return ("".join(turn.tokens),)


def _stored(message: Message) -> StoredMessage:
    return StoredMessage(
        id=message.id, role=message.role, text=text_of(message.content), interrupted=message.interrupted
    )
