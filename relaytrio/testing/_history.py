"""Histories: what people and faults do to a cluster, as values that can be drawn, printed, repeated and shrunk.

`run_history` carries one out, from an empty cluster to its check, in a run of Trio of its own. Everything that it needs
is in the history and the schedule: the same two give the same run.

Must not know: how histories are drawn (`strategies.py`, `_explore.py`). Who calls: race tests.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeAlias

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from .._errors import RelaytrioError
from .._protocol.chat import Answer, WhenBusy
from .._relay import MultiReplicaRelay, Relay, RelayConfig
from .._settings import Settings
from ..transport._tasks import background
from ._check_cluster import STEP_SECONDS, ClusterReport, ClusterViolation, check_cluster
from ._schedules import Schedule, scheduled, virtual_clock
from ._scripted_answers import AnswerPlan
from ._seams import Seam, watch_seams
from ._simulated_cluster import ALL_HINTS, SimulatedCluster, open_simulated_cluster
from ._simulated_legs import LegKind
from ._simulated_pubsub import HintFaults
from ._simulated_replica import SimulatedReplica
from ._simulated_store import Backup, Ledger

EXPLORING = Settings(
    sealed_log_seconds=1.0,
    poll_seconds=5.0,
    look_again_seconds=1.0,
    store_retry_max_seconds=3.0,
    dial_retry_max_seconds=4.0,
    connect_seconds=2.0,
    handshake_seconds=3.0,
    idle_leg_seconds=1.0,
    acquire_seconds=2.0,
    heartbeat_seconds=4.0,
    dead_after_seconds=12.0,
    outage_seconds=20.0,
    unwind_seconds=2.0,
    grace_seconds=5.0,
    retry_max_seconds=4.0,
    application_heartbeat_seconds=5.0,
    silence_seconds=15.0,
    stalled_send_seconds=5.0,
)
"""What race tests run with: the same waits in about the same order as by default, in a third of the steps."""
LONGEST_WAIT_SECONDS = 2.0
LONGEST_STAND_SECONDS = 0.5
LONGEST_REQUEST_SECONDS = 600.0
"""The most that requests which are still under way in the end may take once all faults have ended."""

HowBroken: TypeAlias = Literal["crash", "crash silently", "stop", "restart", "pause", "resume"]
HowOut: TypeAlias = Literal["fails", "hangs", "works", "lose answer"]


@attrs.frozen(kw_only=True)
class Send:
    """A person sends a message, and repeats the request until it is answered."""

    chat: int = 0
    replica: int = 0
    when_busy: WhenBusy = "queue"
    plan: AnswerPlan = AnswerPlan()


@attrs.frozen(kw_only=True)
class Edit:
    """A person replaces a question that the history holds, counted from the last; nothing if there is none."""

    chat: int = 0
    replica: int = 0
    from_last: int = 0
    plan: AnswerPlan = AnswerPlan()


@attrs.frozen(kw_only=True)
class Stop:
    """A person presses Stop: for whatever is running, or for the episode that a viewer sees."""

    chat: int = 0
    replica: int = 0
    of_viewer: int | None = None


@attrs.frozen(kw_only=True)
class Promote:
    """A person wants the entry of the queue at this place at once."""

    chat: int = 0
    replica: int = 0
    place: int = 0


@attrs.frozen(kw_only=True)
class Unqueue:
    """A person deletes the entry of the queue at this place."""

    chat: int = 0
    replica: int = 0
    place: int = 0


@attrs.frozen(kw_only=True)
class Watch:
    """A viewer goes to this replica, whole or with the cursor of an event that it had so many events before."""

    viewer: int
    replica: int
    events_back: int = 0


@attrs.frozen(kw_only=True)
class Slow:
    """A viewer takes so long over each event from now on."""

    viewer: int
    seconds: float


@attrs.frozen(kw_only=True)
class Break:
    """Something happens to a replica."""

    replica: int
    how: HowBroken


@attrs.frozen(kw_only=True)
class Unplug:
    """Something happens between two replicas."""

    one: int
    other: int
    how: Literal["partition", "drop", "half-open"]


@attrs.frozen(kw_only=True)
class Mend:
    """All links are whole again."""


@attrs.frozen(kw_only=True)
class Outage:
    """A replica's way to the database fails, hangs, works again, or loses the answer to the next commit."""

    replica: int
    how: HowOut


@attrs.frozen(kw_only=True)
class SetBack:
    """The database is set back to what it was before so many operations."""

    operations: int = 1


@attrs.frozen(kw_only=True)
class Silence:
    """The notifier fails, or works again."""

    down: bool = True


Operation: TypeAlias = (
    Send | Edit | Stop | Promote | Unqueue | Watch | Slow | Break | Unplug | Mend | Outage | SetBack | Silence
)


@attrs.frozen(kw_only=True)
class Step:
    """One operation, and how long after the one before it is begun. Nobody waits for its end."""

    after_seconds: float = 0.0
    at: Seam | None = None
    """If given, it waits until a task of the engine passes there, at most `LONGEST_WAIT_SECONDS`; and the task stands
    still while it is carried out, at most `LONGEST_STAND_SECONDS`: whatever is held there is overtaken by it."""
    do: Operation


@attrs.frozen(kw_only=True)
class History:
    """What is done to a cluster. Numbers of chats, viewers and replicas that are not there are taken modulo."""

    steps: tuple[Step, ...]
    replicas: int = 2
    chats: int = 1
    viewers: tuple[int, ...] = (0, 1)
    """The replica through which each viewer begins to watch. The chat of viewer n is n modulo chats."""
    hints: HintFaults | None = ALL_HINTS
    latency_seconds: float = 0.0
    """The most that anything takes between two replicas."""
    store_latency_seconds: float = 0.0
    """The most that the way to the database takes, there and back each."""
    seed: int = 0
    """Of ids, jitter, latencies and hints."""


@attrs.frozen(kw_only=True)
class HistoryReport:
    """What came of a history."""

    checked: ClusterReport
    fingerprint: int
    """Of the order of all events: two runs with the same one are the same interleaving."""
    schedule: Schedule
    """As it was played."""
    trace: tuple[str, ...]
    """All that happened, one event a line; empty unless asked for."""


def run_history(
    history: History,
    schedule: Schedule | None = None,
    *,
    legs: LegKind = "memory",
    shared_legs: bool = True,
    settings: Settings = EXPLORING,
    relay: Callable[[RelayConfig], Relay] = MultiReplicaRelay,
    ledger: type[Ledger] = Ledger,
    traced: bool = False,
) -> HistoryReport:
    """Carry out a history on a new cluster, and check it. Not to be called inside of Trio.

    Without a `schedule` it is first in, first out. `settings`, `relay` and `ledger` are the cluster's. Raises
    `ClusterViolation`.
    """
    with scheduled(schedule or Schedule()) as scheduler:

        async def main() -> HistoryReport:
            async with open_simulated_cluster(
                replicas=history.replicas,
                seed=history.seed,
                schedule=scheduler,
                legs=legs,
                shared_legs=shared_legs,
                settings=settings,
                hints=history.hints,
                relay=relay,
                ledger=ledger,
            ) as cluster:
                await Stage(cluster, history).play()
                checked = await check_cluster(cluster)
                return HistoryReport(
                    checked=checked,
                    fingerprint=cluster.fingerprint(),
                    schedule=scheduler.as_played(),
                    trace=tuple(cluster.history()) if traced else (),
                )

        return trio.run(main, clock=virtual_clock())


class Stage:
    """A cluster, and where its history has got to."""

    def __init__(self, cluster: SimulatedCluster, history: History) -> None:
        self._cluster = cluster
        self._history = history
        self._chats: list[str] = []
        self._backups: list[Backup] = []
        self._questions = 0

    async def play(self) -> None:
        """All of it."""
        await self.set()
        needs_backups = any(isinstance(step.do, SetBack) for step in self._history.steps)
        async with background() as nursery:
            for step in self._history.steps:
                await trio.sleep(step.after_seconds)
                if step.at is None:
                    self.begin(step.do, nursery, backup=needs_backups)
                else:
                    await self._begin_at(step.at, step.do, nursery, backup=needs_backups)
            await wait_all_tasks_blocked()  # all have been begun
            await self.come_to_rest(nursery)

    def begin(self, operation: Operation, nursery: trio.Nursery, *, backup: bool) -> None:
        """Have it carried out in a task of its own. With `backup`, the database can be set back to before it."""
        self._note(_said(operation), backup=backup)
        nursery.start_soon(self._do, operation)

    def _note(self, said: str, *, backup: bool) -> None:
        if backup:
            self._backups.append(self._cluster.take_backup())
        self._cluster.note("", said)

    async def come_to_rest(self, nursery: trio.Nursery) -> None:
        """End all faults. Requests that are still under way are waited for."""
        await self._cluster.heal()
        with trio.move_on_after(LONGEST_REQUEST_SECONDS):
            await self._all_done(nursery)
            return
        told = f"a request was not answered {LONGEST_REQUEST_SECONDS:g} s after all faults had ended"
        raise ClusterViolation("NEVER_HANGS", told, self._cluster.history())

    async def _all_done(self, nursery: trio.Nursery) -> None:
        for task in tuple(nursery.child_tasks):
            while task in nursery.child_tasks:  # noqa: ASYNC110 - a task has no event for its end
                await trio.sleep(STEP_SECONDS)

    async def set(self) -> None:
        """Make the chats, and let viewers come."""
        cluster, history = self._cluster, self._history
        for _ in range(self._history.chats):
            self._chats.append((await cluster.create_chat()).id)
        cluster.network.latency_seconds = (0.0, history.latency_seconds)
        cluster.store_latency_seconds = (0.0, history.store_latency_seconds)
        for replica in cluster.replicas:
            replica.store.latency_seconds = cluster.store_latency_seconds
        for number, replica_number in enumerate(self._history.viewers):
            cluster.viewer(replica_number % len(cluster.replicas), self._chat(number))

    async def _begin_at(self, name: Seam, operation: Operation, nursery: trio.Nursery, *, backup: bool) -> None:
        """Begin it while a task stands at that seam, and let the task go on when it is done."""
        with watch_seams() as seams:
            stop = seams.stop(name)
            with trio.move_on_after(LONGEST_WAIT_SECONDS):
                await stop.wait()
            self._note(f"{_said(operation)} at {name!r}" if stop.reached else _said(operation), backup=backup)
            done = trio.Event()
            nursery.start_soon(self._do_and_tell, operation, done)
            if stop.reached:
                with trio.move_on_after(LONGEST_STAND_SECONDS):
                    await done.wait()

    async def _do_and_tell(self, operation: Operation, done: trio.Event) -> None:
        await self._do(operation)
        done.set()

    async def _do(self, operation: Operation) -> None:
        with suppress(RelaytrioError):  # a request that was refused
            await self._carry_out(operation)

    async def _carry_out(self, operation: Operation) -> None:
        match operation:
            case Send() | Edit():
                await self._say(operation)
            case Stop():
                await self._stop(operation)
            case Promote() | Unqueue():
                await self._touch_queue(operation)
            case Break():
                await self._break(self._replica(operation.replica), operation.how)
            case _:
                self._happen(operation)
                await trio.lowlevel.checkpoint()

    async def _say(self, operation: Send | Edit) -> None:
        self._questions += 1
        text = f"q{self._questions}"
        self._cluster.answers.plans[text] = operation.plan
        chat_id, replica = self._chat(operation.chat), self._replica(operation.replica).number
        if isinstance(operation, Send):
            await self._cluster.send(chat_id, text, replica=replica, when_busy=operation.when_busy, insist=True)
            return
        record = self._cluster.ledger.record(chat_id)
        asked = [] if record is None else [m.id for m in record.messages if m.role == "user" and not m.deleted]
        if asked:
            message_id = asked[-1 - operation.from_last % len(asked)]
            await self._cluster.edit(chat_id, message_id, text, replica=replica)

    async def _stop(self, operation: Stop) -> None:
        chat_id, episode = self._chat(operation.chat), None
        if operation.of_viewer is not None and self._cluster.viewers:
            viewer = self._cluster.viewers[operation.of_viewer % len(self._cluster.viewers)]
            chat_id, episode = viewer.chat_id, viewer.shown.episode
        await self._replica(operation.replica).call(lambda engine: engine.interrupt(chat_id, of=episode))

    async def _touch_queue(self, operation: Promote | Unqueue) -> None:
        chat_id = self._chat(operation.chat)
        record = self._cluster.ledger.record(chat_id)
        if record is None or not record.queue:
            return
        queued_id = record.queue[operation.place % len(record.queue)].id

        async def request(engine: object) -> Answer:
            chosen = self._replica(operation.replica).engine
            if isinstance(operation, Promote):
                return await chosen.promote_queued(chat_id, queued_id)
            return await chosen.delete_queued(chat_id, queued_id)

        await self._replica(operation.replica).call(request)

    async def _break(self, replica: SimulatedReplica, how: str) -> None:
        match how:
            case "pause":
                replica.pause()
            case "resume":
                replica.resume()
            case "stop":
                await replica.stop()
            case "restart":
                await replica.restart()
            case _:
                await replica.crash(silently=how == "crash silently")

    def _happen(self, operation: Operation) -> None:
        cluster = self._cluster
        match operation:
            case Watch():
                self._watch(operation)
            case Slow(viewer=number, seconds=seconds) if cluster.viewers:
                cluster.viewers[number % len(cluster.viewers)].slow_seconds = seconds
            case Unplug():
                self._unplug(operation)
            case Mend():
                cluster.network.heal()
            case Outage(replica=number, how="lose answer"):
                self._replica(number).store.lose_answers()
            case Outage(replica=number, how="works"):
                self._replica(number).store.set_fault(None)
            case Outage(replica=number, how="fails" | "hangs" as how):
                self._replica(number).store.set_fault(how)
            case SetBack(operations=operations) if self._backups:
                cluster.set_back(self._backups[max(0, len(self._backups) - 1 - operations)])
            case Silence(down=down):
                cluster.pubsub.set_down(down)
            case _:
                pass

    def _watch(self, operation: Watch) -> None:
        if not self._cluster.viewers:
            return
        viewer = self._cluster.viewers[operation.viewer % len(self._cluster.viewers)]
        viewer.connect(self._replica(operation.replica), events_back=operation.events_back)

    def _unplug(self, operation: Unplug) -> None:
        network, one, other = self._cluster.network, operation.one, operation.other
        one, other = self._replica(one).number, self._replica(other).number
        match operation.how:
            case "partition":
                network.partition(one, other)
            case "drop":
                network.drop(one, other)
            case _:
                network.half_open(one, other)

    def _chat(self, number: int) -> str:
        return self._chats[number % len(self._chats)]

    def _replica(self, number: int) -> SimulatedReplica:
        return self._cluster.replicas[number % len(self._cluster.replicas)]


def _said(operation: Operation) -> str:
    """The operation, without what is as usual."""
    fields = [
        f"{field.name}={getattr(operation, field.name)!r}"
        for field in attrs.fields(type(operation))
        if getattr(operation, field.name) != field.default
    ]
    return f"{type(operation).__name__}({', '.join(fields)})"
