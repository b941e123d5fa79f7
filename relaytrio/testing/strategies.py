"""Hypothesis strategies for race tests: orders of tasks, histories of people and faults, chats, commands and cursors.

Needs Hypothesis. All of them shrink towards what a person would try first: the order first in, first out; no faults;
no waiting; one replica, one viewer. Beware: a plain `@given` gives Trio the same order of tasks in every example; draw
one of `schedules()`, and hand it to `run_history` or `scheduled`.

Must not know: what is checked. Who calls: race tests, of this package and of programs that embed it.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .._protocol.chat import NewMessage
from .._protocol.events import Content, Cursor, Episode, MessageRef
from ._history import (
    Break,
    Edit,
    History,
    Mend,
    Operation,
    Outage,
    Promote,
    Send,
    SetBack,
    Silence,
    Slow,
    Step,
    Stop,
    Unplug,
    Unqueue,
    Watch,
)
from ._schedules import Schedule
from ._scripted_answers import AnswerPlan
from ._seams import SEAMS
from ._simulated_pubsub import HintFaults

GAPS_SECONDS = (0.0, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0)
LONG_GAPS_SECONDS = (*GAPS_SECONDS, 6.0, 15.0)
"""With faults: some last until a replica is found dead."""
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def schedules(*, most_deviations: int = 40) -> SearchStrategy[Schedule]:
    """Orders of tasks: first in, first out, but for at most so many instants, early ones mostly."""
    deviation = st.tuples(st.integers(0, 40), st.integers(0, 23))
    sizes = st.sampled_from([0, 0, most_deviations // 4, most_deviations // 2])
    return sizes.flatmap(lambda least: st.lists(deviation, min_size=least, max_size=max(least, most_deviations))).map(
        _schedule
    )


def _schedule(drawn: list[tuple[int, int]]) -> Schedule:
    """An entry of 0 is no deviation: one that does not matter shrinks to it, and those behind it keep their places."""
    deviations, skipped = [], 0
    for more, entry in drawn:
        skipped += more
        if entry:
            deviations.append((skipped, entry))
        skipped = 0 if entry else skipped + 1
    return Schedule(tuple(deviations))


def contents() -> SearchStrategy[Content]:
    """What a message may hold: texts of all kinds, and parts that are none."""
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    text_part = st.builds(lambda text: {"type": "text", "text": text}, texts)
    other: SearchStrategy[Any] = st.builds(lambda name, value: {"type": name, "value": value}, texts, st.integers())
    return st.lists(st.one_of(text_part, other), min_size=1, max_size=4)


def cursors() -> SearchStrategy[Cursor]:
    """What a viewer may come with: made in this chat, in another life of it, or in another chat."""
    numbers = st.integers(0, 2**63 - 1) | st.integers(0, 9)
    runs = st.text(_ALPHABET, min_size=10, max_size=10)
    stamps = st.text(_ALPHABET, min_size=5, max_size=5)
    messages = st.just(MessageRef(0, "")) | st.builds(MessageRef, st.integers(1, 50), stamps)
    episodes = st.builds(Episode, numbers, numbers, runs)
    return st.one_of(st.builds(Cursor, messages), st.builds(Cursor, messages, episodes, numbers))


def answer_plans() -> SearchStrategy[AnswerPlan]:
    """How a question is answered, from at once and whole to late, failing and clinging."""
    return st.builds(
        AnswerPlan,
        parts=st.sampled_from([3, 1, 0, 6]),
        pause_seconds=st.sampled_from([0.0, 0.02, 0.05, 0.5]),
        failures=st.sampled_from([0, 0, 0, 1, 3]),
        breaks=st.sampled_from([False, False, False, True]),
        commits_after=st.sampled_from([0, 0, 1, 2]),
        unwind_seconds=st.sampled_from([0.0, 0.0, 0.1, 7.0]),
    )


def commands(*, replicas: int = 2, viewers: int = 2, chats: int = 1) -> SearchStrategy[Operation]:
    """What people do: send, stop, edit, promote, delete, go to another replica."""
    replica, viewer, place = st.integers(0, replicas - 1), st.integers(0, max(0, viewers - 1)), st.integers(0, 2)
    at: dict[str, SearchStrategy[Any]] = {"chat": st.integers(0, chats - 1), "replica": replica}
    when_busy = st.sampled_from(["queue", "interrupt", "reject"])
    return st.one_of(
        st.builds(Send, when_busy=when_busy, plan=answer_plans(), **at),
        st.builds(Stop, of_viewer=st.none() | viewer, **at),
        st.builds(Edit, from_last=place, plan=answer_plans(), **at),
        st.builds(Promote, place=place, **at),
        st.builds(Unqueue, place=place, **at),
        st.builds(Watch, viewer=viewer, replica=replica, events_back=st.integers(0, 5)),
    )


def faults(*, replicas: int = 2, viewers: int = 2) -> SearchStrategy[Operation]:
    """What happens to a cluster: to replicas, links, the database, the notifier, viewers."""
    replica, viewer = st.integers(0, replicas - 1), st.integers(0, max(0, viewers - 1))
    breaks = st.sampled_from(["crash", "restart", "stop", "pause", "resume", "crash silently"])
    links = st.sampled_from(["drop", "partition", "half-open"])
    outages = st.sampled_from(["lose answer", "works", "fails", "hangs"])
    return st.one_of(
        st.builds(Break, replica=replica, how=breaks),
        st.builds(Unplug, one=replica, other=replica, how=links),
        st.builds(Mend),
        st.builds(Outage, replica=replica, how=outages),
        st.builds(Slow, viewer=viewer, seconds=st.sampled_from([0.01, 0.3, 2.0])),
        st.builds(SetBack, operations=st.integers(0, 3)),
        st.builds(Silence, down=st.booleans()),
    )


def hint_faults() -> SearchStrategy[HintFaults | None]:
    """A notifier that delivers all, some, none, doubled and late, or is not there."""
    drawn = st.builds(
        HintFaults,
        delivered=st.sampled_from([1.0, 0.5, 0.0]),
        doubled=st.sampled_from([0.0, 1.0]),
        delay_seconds=st.sampled_from([(0.0, 0.0), (0.0, 0.3)]),
    )
    return st.one_of(drawn, st.none())


@st.composite
def histories(
    draw: st.DrawFn, *, replicas: int = 2, viewers: int = 2, chats: int = 1, most_steps: int = 10, faulty: bool = True
) -> History:
    """What people and, if `faulty`, faults do to a cluster: up to so many steps."""
    seams = st.none() | st.sampled_from(SEAMS)
    people = st.builds(
        Step,
        after_seconds=st.sampled_from(GAPS_SECONDS),
        at=seams,
        do=commands(replicas=replicas, viewers=viewers, chats=chats),
    )
    world = st.builds(
        Step, after_seconds=st.sampled_from(LONG_GAPS_SECONDS), at=seams, do=faults(replicas=replicas, viewers=viewers)
    )
    steps = draw(st.lists(st.one_of(people, world) if faulty else people, max_size=most_steps))
    return History(
        steps=tuple(steps),
        replicas=replicas,
        chats=chats,
        viewers=tuple(draw(st.integers(0, replicas - 1)) for _ in range(viewers)),
        hints=draw(hint_faults()),
        latency_seconds=draw(st.sampled_from([0.0, 0.01, 0.04])),
        store_latency_seconds=draw(st.sampled_from([0.0, 0.01, 0.04])),
        seed=draw(st.integers(0, 2**16)),
    )


def chats() -> SearchStrategy[list[NewMessage]]:
    """What a chat may begin with: nothing, or messages of all roles; it is running if the last is one of the user."""
    roles = st.sampled_from(["user", "assistant", "system", "tool"])
    return st.lists(st.builds(NewMessage, role=roles, content=contents()), max_size=4)
