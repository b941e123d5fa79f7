"""The state machine of the kit: it is green where the engine is whole, and finds and shrinks what is broken."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import attrs
import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from relaytrio import Turn
from relaytrio._hints import Hints
from relaytrio._protocol import chat as chat_rules
from relaytrio._protocol.chat import EditMessage
from relaytrio._watch import Watch
from relaytrio.testing import EXPLORING, ClusterMachine, ClusterViolation, Operation, Schedule, Send

QUICK = settings(
    max_examples=30, stateful_step_count=10, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
SEARCH = settings(
    QUICK,
    max_examples=3000,  # far more than are needed: which come first depends on all constants of the package
    stateful_step_count=6,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
    print_blob=False,
)


def run(machine: type[ClusterMachine], how: settings) -> None:
    run_state_machine_as_test(machine, settings=how)


class Kept(ClusterMachine):
    """As small as it can be; remembers what was done last."""

    replicas = 1
    viewers = (0,)
    faulty = False

    last: ClassVar[list[Operation]] = []
    order: ClassVar[Schedule] = Schedule()

    def __init__(self) -> None:
        super().__init__()
        type(self).last = []

    def do(self, operation: Operation, *, after_seconds: float = 0.0) -> None:
        self.last.append(operation)
        type(self).order = self.schedule
        super().do(operation, after_seconds=after_seconds)


def test_a_whole_engine_passes() -> None:
    """Commands and faults in any order, with tasks in any order."""
    run(ClusterMachine, QUICK)


def test_people_alone_pass() -> None:
    """And where nothing fails nobody may lose the last parts of an answer."""

    class People(ClusterMachine):
        faulty = False

    run(People, settings(QUICK, max_examples=15))


async def shouts(turn: Turn) -> None:
    question = turn.messages[-1].content[0]["text"]
    await turn.send({"type": "text", "text": question.upper()})
    await trio.sleep(0.1)


def test_a_program_tests_its_own() -> None:
    """A responder, settings, rules and checks of one's own, as the class says."""

    class Shouting(ClusterMachine):
        replicas = 3
        chats = 2
        cluster_settings = attrs.evolve(EXPLORING, takeovers=2)
        asked = 0

        def make_responder(self) -> Any:
            return shouts

        @rule(after=st.sampled_from([0.0, 1.0]))
        def ask(self, after: float) -> None:
            self.asked += 1
            self.do(Send(), after_seconds=after)

        def teardown(self) -> None:
            super().teardown()
            for chat_id in self.cluster.ledger.chat_ids():
                record = self.cluster.ledger.record(chat_id)
                assert record is not None
                said = [m.content[0]["text"] for m in record.messages if m.role == "assistant"]
                assert [text.upper() for text in said] == said

    run(Shouting, settings(QUICK, max_examples=10))


def test_the_same_choices_are_the_same_run() -> None:
    """What Hypothesis replays is the same interleaving, event by event."""

    def once() -> int:
        machine = ClusterMachine()
        machine.begin(schedule=Schedule.random(7), hints=None, latency_seconds=0.04, store_latency_seconds=0.01, seed=3)
        machine.do(Send(), after_seconds=0.1)
        machine.do(Send(replica=1, when_busy="interrupt"), after_seconds=0.1)
        fingerprint = machine.cluster.fingerprint()
        machine.teardown()
        return fingerprint ^ machine.cluster.fingerprint()

    assert once() == once()


def test_a_fault_in_the_rules_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that leaves the queue: what is left is a question, one that waits, and the edit."""

    def keep_queue(state: Any, command: Any, *arguments: Any, **options: Any) -> Any:
        transition = decide(state, command, *arguments, **options)
        return attrs.evolve(transition, queue=state.queue) if isinstance(command, EditMessage) else transition

    decide = chat_rules.decide
    monkeypatch.setattr("relaytrio.stores.memory.decide", keep_queue)
    with pytest.raises(ClusterViolation) as found:
        run(Kept, SEARCH)
    assert "ONCE" == found.value.invariant
    kinds = [type(operation).__name__ for operation in Kept.last]
    assert ("Edit", True) == (kinds[-1], len(kinds) <= 4)
    assert 2 <= kinds.count("Send")
    assert Schedule() == Kept.order


def test_a_fault_in_the_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer that believes each hint, and a poll that compares nothing: what it shows is not so, for ever."""

    def believe(self: Watch, snapshot_version: int) -> None:
        self._seen = max(self._seen, snapshot_version)

    async def compare_nothing(self: Hints) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Watch, "hinted", believe)
    monkeypatch.setattr(Hints, "_compare", compare_nothing)
    with pytest.raises(ClusterViolation) as found:
        run(ClusterMachine, settings(SEARCH, phases=[Phase.generate]))
    assert "CONVERGES" == found.value.invariant


def test_the_kit_needs_hypothesis_only_where_it_is_used() -> None:
    """Whoever imports the kit for its dialer has nothing else to install."""
    code = "import sys, relaytrio.testing; sys.exit('hypothesis' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode
