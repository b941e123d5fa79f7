"""`ClusterMachine`: a state machine for Hypothesis that drives a cluster with random commands and faults.

What it adds to random histories: each step is chosen in the light of those before it, something is checked after each,
and a program that embeds the engine can add rules, invariants and a responder of its own. Needs Hypothesis; it is
imported with the first use of its name. Must not know: what must hold of streams and clusters (`_check_*.py`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trio.testing import wait_all_tasks_blocked

from .._protocol.events import Content, MessageRef
from .._relay import MultiReplicaRelay, Relay, RelayConfig
from .._settings import Settings
from .._turn import Responder
from ..transport._tasks import background
from ._chat_model import ChatModel
from ._check_cluster import ClusterInvariant, ClusterViolation, check_cluster
from ._check_stream import InvariantViolation
from ._history import (
    EXPLORING,
    Break,
    Edit,
    History,
    HowBroken,
    HowOut,
    Mend,
    Operation,
    Outage,
    Promote,
    Send,
    SetBack,
    Silence,
    Slow,
    Stage,
    Stop,
    Unplug,
    Unqueue,
    Watch,
)
from ._schedules import Schedule, Scheduler
from ._scripted_answers import AnswerPlan
from ._scripted_viewer import ScriptedViewer
from ._simulated_cluster import SimulatedCluster, open_simulated_cluster
from ._simulated_legs import LegKind
from ._simulated_pubsub import HintFaults
from ._simulated_store import Commit, Ledger
from ._stepped_run import Questions, SteppedRun, answer_all
from .strategies import GAPS_SECONDS, LONG_GAPS_SECONDS, answer_plans, hint_faults, schedules

_NUMBERS = st.integers(0, 3)
"""Of chats, replicas, viewers and places: those that are not there are taken modulo."""
_GAPS = st.sampled_from(GAPS_SECONDS)
_LONG_GAPS = st.sampled_from(LONG_GAPS_SECONDS)
_LATENCIES = st.sampled_from([0.0, 0.01, 0.04])
_BREAKS: st.SearchStrategy[HowBroken] = st.sampled_from(
    ("crash", "restart", "stop", "pause", "resume", "crash silently")
)
_OUTAGES: st.SearchStrategy[HowOut] = st.sampled_from(("lose answer", "works", "fails", "hangs"))


def _faults_only(machine: Any) -> bool:
    return bool(machine.faulty)


class ClusterMachine(RuleBasedStateMachine):
    """A cluster under random commands and faults, in an order of its tasks that is drawn too.

    After each step no stream has broken an invariant, the store holds what a small model of the chat says that it
    should, and no viewer shows a message that the store never had. In the end all faults end, `check_cluster` has to
    find nothing, and every viewer has to show what the model says. A failure is shrunk to the steps that it takes.

    Run it as it is, or with a responder, settings, rules and invariants of your own::

        class MyChats(ClusterMachine):
            replicas = 3
            cluster_settings = attrs.evolve(EXPLORING, takeovers=2)

            def make_responder(self):
                return my_responder

            @rule(after=st.sampled_from([0.0, 1.0]))
            def ask_for_a_poem(self, after):
                self.do(Send(), after_seconds=after)

        TestMyChats = MyChats.TestCase
        TestMyChats.settings = hypothesis.settings(max_examples=50, stateful_step_count=15, deadline=None)

    Time is virtual and the run is in the test's own thread: between two steps nothing runs, and `cluster` may be looked
    at. What needs Trio is done with `call`.
    """

    replicas: ClassVar[int] = 2
    chats: ClassVar[int] = 1
    viewers: ClassVar[tuple[int, ...]] = (0, 1)
    """The replica through which each begins to watch; the chat of viewer n is n modulo chats."""
    faulty: ClassVar[bool] = True
    """Whether anything happens but what people do."""
    cluster_settings: ClassVar[Settings] = EXPLORING
    legs: ClassVar[LegKind] = "memory"
    ledger: ClassVar[type[Ledger]] = Ledger

    cluster: SimulatedCluster
    schedule: Schedule
    """The order of its tasks that was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._run: SteppedRun | None = None
        self._broken = False
        """Whether something has failed: then what follows says nothing."""
        self._had: dict[tuple[str, MessageRef], Content] = {}
        """All messages that the store ever had, by chat."""

    def make_responder(self) -> Responder | None:
        """The responder of all replicas; None is a scripted one, whose answers are checked piece by piece."""
        return None

    def make_relay(self, config: RelayConfig) -> Relay:
        """The relay of each replica, from the config that it would have."""
        return MultiReplicaRelay(config)

    # ------------------------------------------------------------------------------------------ the rules

    @initialize(
        schedule=schedules(),
        hints=hint_faults(),
        latency_seconds=_LATENCIES,
        store_latency_seconds=_LATENCIES,
        seed=st.integers(0, 2**16),
    )
    def begin(
        self,
        schedule: Schedule,
        hints: HintFaults | None,
        latency_seconds: float,
        store_latency_seconds: float,
        seed: int,
    ) -> None:
        """An empty cluster, with its chats, and with viewers that watch them."""
        self._beginning = History(
            steps=(),
            replicas=self.replicas,
            chats=self.chats,
            viewers=self.viewers,
            hints=hints,
            latency_seconds=latency_seconds,
            store_latency_seconds=store_latency_seconds,
            seed=seed,
        )
        self.schedule = schedule
        self._run = SteppedRun(self._live, schedule)
        self.call(self._set)

    @rule(
        after=_GAPS,
        chat=_NUMBERS,
        replica=_NUMBERS,
        when_busy=st.sampled_from(["queue", "interrupt", "reject"]),
        plan=answer_plans(),
    )
    def send(self, after: float, chat: int, replica: int, when_busy: Any, plan: AnswerPlan) -> None:
        """A person sends a message."""
        self.do(Send(chat=chat, replica=replica, when_busy=when_busy, plan=plan), after_seconds=after)

    @rule(after=_GAPS, chat=_NUMBERS, replica=_NUMBERS, of_viewer=st.none() | _NUMBERS)
    def stop(self, after: float, chat: int, replica: int, of_viewer: int | None) -> None:
        """A person presses Stop."""
        self.do(Stop(chat=chat, replica=replica, of_viewer=of_viewer), after_seconds=after)

    @rule(after=_GAPS, chat=_NUMBERS, replica=_NUMBERS, from_last=_NUMBERS, plan=answer_plans())
    def edit(self, after: float, chat: int, replica: int, from_last: int, plan: AnswerPlan) -> None:
        """A person replaces a question."""
        self.do(Edit(chat=chat, replica=replica, from_last=from_last, plan=plan), after_seconds=after)

    @rule(after=_GAPS, chat=_NUMBERS, replica=_NUMBERS, place=_NUMBERS)
    def promote(self, after: float, chat: int, replica: int, place: int) -> None:
        """A person wants a message that waits at once."""
        self.do(Promote(chat=chat, replica=replica, place=place), after_seconds=after)

    @rule(after=_GAPS, chat=_NUMBERS, replica=_NUMBERS, place=_NUMBERS)
    def unqueue(self, after: float, chat: int, replica: int, place: int) -> None:
        """A person takes back a message that waits."""
        self.do(Unqueue(chat=chat, replica=replica, place=place), after_seconds=after)

    @rule(after=_GAPS, viewer=_NUMBERS, replica=_NUMBERS, events_back=st.integers(0, 5))
    def watch(self, after: float, viewer: int, replica: int, events_back: int) -> None:
        """A viewer goes to a replica, as it is or as it was some events ago."""
        self.do(Watch(viewer=viewer, replica=replica, events_back=events_back), after_seconds=after)

    @rule(seconds=_LONG_GAPS)
    def let_time_pass(self, seconds: float) -> None:
        """Nobody does anything."""

        async def wait() -> None:
            await trio.sleep(seconds)

        self.call(wait)

    @precondition(_faults_only)
    @rule(after=_LONG_GAPS, replica=_NUMBERS, how=_BREAKS)
    def break_replica(self, after: float, replica: int, how: HowBroken) -> None:
        """Something happens to a replica."""
        self.do(Break(replica=replica, how=how), after_seconds=after)

    @precondition(_faults_only)
    @rule(after=_LONG_GAPS, one=_NUMBERS, other=_NUMBERS, how=st.sampled_from(["drop", "partition", "half-open"]))
    def unplug(self, after: float, one: int, other: int, how: Any) -> None:
        """Something happens between two replicas."""
        self.do(Unplug(one=one, other=other, how=how), after_seconds=after)

    @precondition(_faults_only)
    @rule(after=_LONG_GAPS)
    def mend(self, after: float) -> None:
        """All links are whole again."""
        self.do(Mend(), after_seconds=after)

    @precondition(_faults_only)
    @rule(after=_LONG_GAPS, replica=_NUMBERS, how=_OUTAGES)
    def outage(self, after: float, replica: int, how: HowOut) -> None:
        """Something happens to a replica's way to the database."""
        self.do(Outage(replica=replica, how=how), after_seconds=after)

    @precondition(_faults_only)
    @rule(after=_LONG_GAPS, operations=_NUMBERS)
    def set_back(self, after: float, operations: int) -> None:
        """The database is set back to an older copy."""
        self.do(SetBack(operations=operations), after_seconds=after)

    @precondition(_faults_only)
    @rule(after=_LONG_GAPS, down=st.booleans())
    def silence(self, after: float, down: bool) -> None:
        """The notifier fails, or works again."""
        self.do(Silence(down=down), after_seconds=after)

    @precondition(_faults_only)
    @rule(after=_LONG_GAPS, viewer=_NUMBERS, seconds=st.sampled_from([0.01, 0.3, 2.0]))
    def slow_down(self, after: float, viewer: int, seconds: float) -> None:
        """A viewer takes its time over each event from now on."""
        self.do(Slow(viewer=viewer, seconds=seconds), after_seconds=after)

    # ---------------------------------------------------------------------------------- what holds always

    @invariant()
    def streams_are_whole(self) -> None:
        """No stream has broken an invariant, and nothing has failed in the engine."""
        for fault in self._faults():
            if isinstance(fault, InvariantViolation):
                self._fail(fault.invariant, fault.explanation)
            self._fail("ENGINE", f"{type(fault).__name__}: {fault}")

    @invariant()
    def store_is_as_the_model(self) -> None:
        """Questions, queue and status of each chat are what its committed transitions come to."""
        if self._run is not None:
            for chat_id in self.cluster.ledger.chat_ids():
                self._compare_store(chat_id)

    @invariant()
    def viewers_show_what_was_stored(self) -> None:
        """No message that the store never had, or had otherwise."""
        if self._run is not None:
            for viewer in self.cluster.viewers:
                for message in viewer.shown.screen.messages:
                    if self._had.get((viewer.chat_id, message.ref)) != message.content:
                        self._fail("CONVERGES", f"{viewer} shows message {message.id}, which never was", viewer.chat_id)

    def teardown(self) -> None:
        """All faults end, and everything is checked; unless something has failed before."""
        if self._run is None:
            return
        try:
            if not self._broken:
                self.call(self._finish)
                self.store_is_as_the_model()
                self.viewers_show_what_was_stored()
                self._compare_viewers()
        finally:
            self._run.end()

    # ------------------------------------------------------------------------------------ for rules to use

    def do(self, operation: Operation, *, after_seconds: float = 0.0) -> None:
        """Let so much time pass, and begin an operation. Nobody waits for its end."""

        async def begin() -> None:
            await trio.sleep(after_seconds)
            self._stage.begin(operation, self._people, backup=True)
            await trio.lowlevel.checkpoint()

        self.call(begin)

    def call(self, do: Any) -> None:
        """Let the cluster go on until this async function has returned. Raises what it raises."""
        assert self._run is not None
        try:
            self._run.call(do)
        except BaseException:
            self._broken = True
            raise

    def model(self, chat_id: str) -> ChatModel:
        """What the chat should hold, by the transitions that were committed and not undone by a restore."""
        model = ChatModel()
        for commit in self.cluster.ledger.commits:
            if commit.chat_id == chat_id:
                model.follow(commit.command, [ref.id for ref in commit.outcome.answer.messages])
        return model

    # -------------------------------------------------------------------------------------------- within

    async def _live(self, asked: Questions, scheduler: Scheduler) -> None:
        beginning = self._beginning
        async with open_simulated_cluster(
            replicas=beginning.replicas,
            seed=beginning.seed,
            schedule=scheduler,
            legs=self.legs,
            responder=self.make_responder(),
            settings=self.cluster_settings,
            hints=beginning.hints,
            relay=self.make_relay,
            ledger=self.ledger,
        ) as self.cluster:
            self._stage = Stage(self.cluster, beginning)
            self._tell = self.cluster.ledger.heard
            self.cluster.ledger.heard = self._remember
            async with background() as self._people:
                await answer_all(asked)

    async def _set(self) -> None:
        await self._stage.set()

    async def _finish(self) -> None:
        await wait_all_tasks_blocked()
        await self._stage.come_to_rest(self._people)
        await check_cluster(self.cluster)

    def _remember(self, commit: Commit) -> None:
        self._tell(commit)
        record = self.cluster.ledger.record(commit.chat_id)
        assert record is not None
        new = set(commit.outcome.answer.messages)
        self._had.update(
            {(commit.chat_id, message.ref): message.content for message in record.messages if message.ref in new}
        )

    def _faults(self) -> list[BaseException]:
        return [] if self._run is None else self.cluster.faults

    def _compare_store(self, chat_id: str) -> None:
        record, model = self.cluster.ledger.record(chat_id), self.model(chat_id)
        assert record is not None
        held = [message.content for message in record.messages if message.role == "user" and not message.deleted]
        queue = [entry.content for entry in record.queue]
        for what, expected, found in (
            ("status", model.status, record.chat.status),
            ("questions", model.questions, held),
            ("queue", model.queue, queue),
        ):
            if expected != found:
                self._fail("ONCE", f"{chat_id} has the {what} {found!r}; it should be {expected!r}", chat_id)

    def _compare_viewers(self) -> None:
        for viewer in self.cluster.viewers:
            if viewer.ended is None:
                self._compare_viewer(viewer, self.model(viewer.chat_id))

    def _compare_viewer(self, viewer: ScriptedViewer, model: ChatModel) -> None:
        questions = [message.content for message in viewer.shown.screen.messages if message.role == "user"]
        queue = [entry.content for entry in viewer.shown.queue]
        for what, expected, found in (
            ("status", model.status, viewer.shown.status),
            ("questions", model.questions, questions),
            ("queue", model.queue, queue),
        ):
            if expected != found:
                told = f"{viewer} shows the {what} {found!r} in the end; it should be {expected!r}"
                self._fail("CONVERGES", told, viewer.chat_id)

    def _fail(self, broken: ClusterInvariant, told: str, chat_id: str | None = None) -> None:
        self._broken = True
        raise ClusterViolation(broken, self.cluster.named(told), self.cluster.history(chat_id))
