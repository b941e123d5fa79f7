"""A cluster of whole replicas in one process, on virtual time, with a world around it that fails as it is told.

The engine, worker, relay, legs and subscriptions are the real ones. The database, the notifier, the network and the
order in which tasks run are simulated, and all that is random comes from one seed: the same seed gives the same run,
event by event. Hours cost seconds.

Must not know: what must hold (`_check_cluster.py`). Who calls: tests.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Literal, TypeVar

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from .._engine import Engine
from .._errors import RelaytrioError, RequestFailed, StoreUnavailable
from .._protocol.chat import Answer, Chat, WhenBusy
from .._protocol.content import user_message
from .._protocol.events import Event
from .._relay import MultiReplicaRelay, Relay, RelayConfig
from .._settings import DEFAULTS, Settings
from .._turn import Responder
from ..transport._tasks import background
from ._display import Reconnected, one_line
from ._schedules import Schedule, Scheduler, scheduled
from ._scripted_answers import ScriptedAnswers
from ._scripted_viewer import ScriptedViewer, start_after
from ._simulated_legs import LegKind
from ._simulated_network import Network
from ._simulated_pubsub import HintFaults, SimulatedPubSub
from ._simulated_replica import SimulatedReplica
from ._simulated_store import Backup, Commit, Ledger

T = TypeVar("T")
ALL_HINTS = HintFaults()
"""None is lost."""

WALL_CLOCK = 1_700_000_000.0
"""What the wall clock says when virtual time begins."""
REPEAT_SECONDS = 1.0
"""When a request that insists is made again."""


@attrs.define
class Sent:
    """A message of the user that was sent, and what is known of it."""

    chat_id: str
    text: str
    state: Literal["asked", "taken", "refused", "unknown"] = "asked"
    """`unknown`: the answer was lost, whatever became of the message."""
    at_commit: int = 0
    """How many commits there had been when it was taken."""


class SimulatedCluster:
    """See `open_simulated_cluster`."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        scheduler: Scheduler,
        seed: int,
        legs: LegKind,
        shared_legs: bool,
        responder: Responder | None,
        settings: Settings,
        hints: HintFaults | None,
        relay: Callable[[RelayConfig], Relay],
        ledger: type[Ledger],
    ) -> None:
        self.nursery = nursery
        self.scheduler = scheduler
        self.seed = seed
        self.legs = legs
        self.shared_legs = shared_legs
        self.settings = settings
        self.answers = ScriptedAnswers()
        """The responder, where no other was given."""
        self.responder = responder or self.answers
        self.make_relay = relay
        self.has_pubsub = hints is not None
        self.store_latency_seconds: tuple[float, float] = (0.0, 0.0)
        """Of lives that begin from now on."""
        self.ledger = ledger(settings=settings, clock=self._stored_clock, random=self.random("stamps"))
        self.ledger.heard = partial(self.note, "")
        self.network = Network(self.random("network"))
        self.pubsub = SimulatedPubSub(nursery, self.random("hints"), hints or HintFaults())
        self.replicas: list[SimulatedReplica] = []
        self.viewers: list[ScriptedViewer] = []
        self.sent: list[Sent] = []
        self.faults: list[BaseException] = []
        """What went wrong in the engine and in the streams of viewers."""
        self.trace: list[tuple[float, object, object]] = []
        """All that happened, in order: when, to whom, what."""
        self.idle_tasks: Counter[str] = Counter()
        """Of a replica that has nothing to do."""
        self._names: dict[str, str] = {}
        self._requests = 0

    # --------------------------------------------------------------------------------- what people do

    async def create_chat(self, text: str | None = None, *, replica: int = 0) -> Chat:
        """A new chat that begins with this question, or with nothing. Raises `RequestFailed`."""
        messages = [] if text is None else [user_message(text)]
        chat = await self.replicas[replica].call(lambda engine: engine.create_chat(messages))
        self.name(chat.id, f"chat {len(self.ledger.chat_ids())}")
        if text is not None:
            self.sent.append(Sent(chat.id, text, "taken", len(self.ledger.all_commits)))
        return chat

    async def send(
        self, chat_id: str, text: str, *, replica: int = 0, when_busy: WhenBusy = "queue", insist: bool = False
    ) -> Answer | None:
        """Send a message of the user through a replica; None if its answer was lost. Each text should be new.

        Who insists makes the request again, at the next replica that is up and with the same idempotency key, until it
        is answered. Raises what `Engine.send_message` raises when it refuses.
        """
        key = self._next_key()
        return await self._track(
            Sent(chat_id, text),
            lambda engine: engine.send_message(chat_id, text, when_busy=when_busy, idempotency_key=key),
            replica,
            insist,
        )

    async def edit(self, chat_id: str, message_id: int, text: str, *, replica: int = 0) -> Answer | None:
        """Replace a message of the user; otherwise like `send`."""
        key = self._next_key()
        return await self._track(
            Sent(chat_id, text),
            lambda engine: engine.edit_message(chat_id, message_id, text, idempotency_key=key),
            replica,
            False,
        )

    async def stop(self, chat_id: str, *, replica: int = 0) -> Answer | None:
        """Press Stop."""
        return await self._ask(lambda engine: engine.interrupt(chat_id), replica, False)

    async def _track(
        self, sent: Sent, request: Callable[[Engine], Awaitable[Answer]], replica: int, insist: bool
    ) -> Answer | None:
        self.sent.append(sent)
        try:
            answer = await self._ask(request, replica, insist)
        except RelaytrioError:
            sent.state = "refused"
            raise
        sent.state = "unknown" if answer is None else "taken"
        sent.at_commit = len(self.ledger.all_commits)
        return answer

    async def _ask(self, request: Callable[[Engine], Awaitable[T]], replica: int, insist: bool) -> T | None:
        asked = self.replicas[replica]
        while True:
            try:
                return await asked.call(request)
            except (RequestFailed, StoreUnavailable):
                if not insist:
                    return None
            await trio.sleep(REPEAT_SECONDS)
            asked = asked.next_up()

    def _next_key(self) -> str:
        self._requests += 1
        return f"request-{self._requests}"

    def viewer(self, replica: int, chat_id: str, *, after_message_id: int | None = None) -> ScriptedViewer:
        """A viewer that watches the chat through that replica from now on."""
        viewer = ScriptedViewer(
            len(self.viewers),
            chat_id,
            nursery=self.nursery,
            note=self.note,
            blame=self.blame,
            start=start_after(after_message_id),
        )
        self.viewers.append(viewer)
        viewer.connect(self.replicas[replica])
        return viewer

    # ------------------------------------------------------------------------------------ what happens

    def take_backup(self) -> Backup:
        """A copy of the database as it is now."""
        return self.ledger.take_backup()

    def set_back(self, backup: Backup) -> None:
        """Set the database back to an older copy, under everybody who uses it."""
        self.note("the database", "is set back")
        self.ledger.set_back(backup)

    async def heal(self) -> None:
        """End all faults but those of hints: links are mended, the store answers, every replica is up and runs."""
        self.note("", "all faults end")
        self.network.heal()
        self.pubsub.set_down(False)
        for replica in self.replicas:
            replica.resume()
            replica.store.set_fault(None)
            await replica.be_up()
        for viewer in self.viewers:
            viewer.slow_seconds = 0.0

    @property
    def was_disturbed(self) -> bool:
        """Whether anything happened that may keep parts from their viewers."""
        return (
            self.network.was_disturbed
            or self.ledger.restores > 0
            or any(len(replica.lives) > 1 or replica.lives[0].disturbed for replica in self.replicas)
            or any(viewer.was_slow for viewer in self.viewers)
        )

    # -------------------------------------------------------------------------------- for those inside

    def random(self, purpose: str) -> Random:
        """A source of randomness of its own for each purpose."""
        return Random(f"{self.seed} {purpose}")

    def wall_clock(self) -> float:
        """Seconds since 1970, as all machines of the cluster have them."""
        return WALL_CLOCK + trio.current_time()

    def note(self, who: object, what: object) -> None:
        """Keep it in the trace."""
        self.trace.append((trio.current_time(), who, what))

    def blame(self, fault: BaseException) -> None:
        """Keep what went wrong."""
        self.note("FAULT", type(fault).__name__)
        self.faults.append(fault)

    def name(self, id: str, name: str) -> None:
        """What the trace calls a replica or a chat."""
        self._names[id] = name

    def named(self, text: str) -> str:
        """A text in which ids are replaced by names."""
        for id, name in self._names.items():
            text = text.replace(id, name)
        return text

    def history(self, chat_id: str | None = None, viewer: ScriptedViewer | None = None) -> list[str]:
        """The trace, one event a line: of one chat only, with one of its viewers only, or of everything."""
        return [
            f"{at:9.3f}  {_line(who, what, self.named)}"
            for at, who, what in self.trace
            if _concerns(who, what, chat_id, viewer)
        ]

    def fingerprint(self) -> int:
        """Of the order of all events, without times and ids: two runs with the same one are the same interleaving.

        The same in every process.
        """
        events = repr([_key(who, what, self._names) for _, who, what in self.trace])
        return int.from_bytes(hashlib.blake2b(events.encode(), digest_size=8).digest())

    def _stored_clock(self) -> str:
        instant = datetime.fromtimestamp(self.wall_clock(), UTC)
        return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")


@asynccontextmanager
async def open_simulated_cluster(
    *,
    replicas: int = 3,
    seed: int = 0,
    schedule: Schedule | Scheduler | None = None,
    legs: LegKind = "memory",
    shared_legs: bool = True,
    responder: Responder | None = None,
    settings: Settings = DEFAULTS,
    hints: HintFaults | None = ALL_HINTS,
    relay: Callable[[RelayConfig], Relay] = MultiReplicaRelay,
    ledger: type[Ledger] = Ledger,
) -> AsyncIterator[SimulatedCluster]:
    """A cluster of so many replicas, for as long as the context lasts. Needs `trio.testing.MockClock` with autojump.

    `seed` decides all that is random; `schedule`, if given, the order of tasks (a `Scheduler` is one that is in force
    already). `legs` are `memory` (frames over a
    simulated network) or `websocket` (the real dialer and trio-websocket over it). Without a `responder`,
    `cluster.answers` is it. `hints` are what becomes of them, None is a cluster without a notifier. `relay` makes each
    replica's relay from the config that it would have.

    Raises `UnsupportedTrio`. The invariants are checked by `check_cluster`; what leaves here is the body's own.
    """
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, MockClock) or clock.autojump_threshold != 0:
        raise RuntimeError("a simulated cluster runs on trio.testing.MockClock(autojump_threshold=0)")
    order = Schedule.random(seed) if schedule is None else schedule
    with scheduled(order) if isinstance(order, Schedule) else nullcontext(order) as scheduler:
        async with background() as nursery:
            cluster = SimulatedCluster(
                nursery=nursery,
                scheduler=scheduler,
                seed=seed,
                legs=legs,
                shared_legs=shared_legs,
                responder=responder,
                settings=settings,
                hints=hints,
                relay=relay,
                ledger=ledger,
            )
            try:
                for number in range(replicas):
                    cluster.replicas.append(SimulatedReplica(cluster, number))
                    await cluster.replicas[number].start()
                await wait_all_tasks_blocked()
                cluster.idle_tasks = Counter(cluster.replicas[0].tasks())
                yield cluster
            finally:
                for replica in cluster.replicas:
                    replica.resume()


# ----------------------------------------------------------------------------------------- the trace


def _line(who: object, what: object, named: Callable[[str], str]) -> str:
    text = what if isinstance(what, str | Commit) else one_line(_event(what))
    chat = f"{what.chat_id}: " if isinstance(what, Commit) else ""
    return named(f"{chat}{who} {text}".replace(":  ", ": ").strip())


def _concerns(who: object, what: object, chat_id: str | None, viewer: ScriptedViewer | None) -> bool:
    if isinstance(who, ScriptedViewer):
        return viewer is who or (viewer is None and chat_id in (None, who.chat_id))
    return not isinstance(what, Commit) or chat_id in (None, what.chat_id)


def _key(who: object, what: object, names: dict[str, str]) -> Sequence[object]:
    if isinstance(what, Commit):
        chat = what.outcome.chat
        worker = names.get(chat.worker_id or "")
        return (names.get(what.chat_id), type(what.command).__name__, chat.snapshot_version, worker)
    if isinstance(what, str):
        return (str(who), what)
    event = _event(what)
    return (str(who), event.type, getattr(event, "seq", 0), getattr(event, "version", 0), getattr(event, "reason", ""))


def _event(what: object) -> Event | Reconnected:
    assert not isinstance(what, str | Commit)
    return what  # type: ignore[return-value]
