"""What a check plans: the same for a seed, enough to prove something, and nothing that could not."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from relaytrio._errors import ConfigurationError
from relaytrio.cli._check_plan import (
    FIRST_CUT,
    LAST_CUT,
    CheckOptions,
    choose_replica,
    kill_every_seconds,
    make_plan,
    needed_cuts,
)
from relaytrio.cli._status import UsageFault
from relaytrio.responders.pydoc import answer


def test_the_seed_decides() -> None:
    """The same options and seed give the same plan; another seed another one."""
    assert make_plan(CheckOptions(seed=3)) == make_plan(CheckOptions(seed=3))
    assert make_plan(CheckOptions(seed=3)) != make_plan(CheckOptions(seed=4))


def test_tokens_are_those_of_the_responder() -> None:
    """The planned tokens, joined, are the answer to the planned question."""
    for turn in make_plan(CheckOptions()).turns:
        assert answer(turn.name) == "".join(turn.tokens)


@pytest.mark.parametrize("seed", range(5))
def test_enough_cuts_inside_answers(seed: int) -> None:
    """There are three times the needed cuts, all in the middle of answers, in order, mostly to other replicas."""
    plan = make_plan(CheckOptions(seed=seed))
    cuts = [cut for turn in plan.turns for cut in turn.cuts]
    assert len(cuts) >= 3 * needed_cuts(plan.options)
    for turn in plan.turns:
        times = [cut.after_seconds for cut in turn.cuts]
        assert times == sorted(times)
        assert all(FIRST_CUT * turn.seconds <= time <= LAST_CUT * turn.seconds for time in times)
        assert {cut.viewer for cut in turn.cuts} == set(range(6))
    assert sum(cut.replica != cut.viewer % 3 + 1 for cut in cuts) > len(cuts) / 2
    assert {cut.replica for cut in cuts} == {1, 2, 3}


def test_answers_last_long_enough() -> None:
    """An answer lasts two seconds and more, so that a viewer that is cut comes back while it runs."""
    assert all(turn.seconds >= 2 for turn in make_plan(CheckOptions()).turns)


def test_answers_outlast_the_only_other_replica() -> None:
    """Where the only place elsewhere is killed, an answer goes on until that replica is back."""
    assert all(turn.seconds >= 5 for turn in make_plan(CheckOptions(replicas=2, kill="viewer")).turns)


def test_one_viewer_stays_away_in_each_turn() -> None:
    """Where viewers can be spared, one comes back only after the end; where they cannot, none."""
    for viewers, away in ((6, 1), (3, 0)):
        for turn in make_plan(CheckOptions(viewers=viewers)).turns:
            assert sum(cut.stays_away for cut in turn.cuts) == away


def test_killed_workers_get_short_answers() -> None:
    """An answer takes at most a third of the interval between kills, so that one comes through."""
    plan = make_plan(CheckOptions(kill="worker", kill_every=6))
    assert all(turn.seconds <= 2 for turn in plan.turns)
    assert kill_every_seconds(plan.options) == 6
    assert kill_every_seconds(CheckOptions(kill="worker")) == 5


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"replicas": 1}, "--replicas"),
        ({"replicas": 51}, "--replicas"),
        ({"viewers": 1}, "--viewers"),
        ({"viewers": 201}, "--viewers"),
        ({"turns": 0}, "--turns"),
        ({"turns": 1001}, "--turns"),
        ({"pace": 0.0}, "--pace"),
        ({"pace": float("nan")}, "--pace"),
        ({"pace": float("inf")}, "--pace"),
        ({"pace": 1e6}, "--pace"),
        ({"pace": 1e-9, "seconds": 5.0}, "--seconds"),
        ({"seconds": 0.0}, "--seconds"),
        ({"seconds": 10.0}, "--seconds"),
        ({"kill_every": 3.0}, "--kill-every"),
        ({"kill": "viewer", "kill_every": -1.0}, "--kill-every"),
        ({"kill": "viewer", "kill_every": 60.0}, "--kill-every"),
        ({"kill": "worker", "kill_every": 0.01}, "--pace"),
        ({"kill": "worker", "kill_every": 5.0, "turns": 2}, "--kill-every"),
        ({"store": "memory://"}, "--store"),
    ],
)
def test_options_that_cannot_work(changes: dict[str, Any], option: str) -> None:
    """What could never be a test is refused in one line that names the option."""
    with pytest.raises(UsageFault, match=option) as caught:
        make_plan(attrs.evolve(CheckOptions(), **changes))
    assert "\n" not in str(caught.value)


def test_store_that_cannot_be_used() -> None:
    """A store's url that no store has is refused as everywhere."""
    with pytest.raises(ConfigurationError):
        make_plan(CheckOptions(store="mysql://x"))


def test_time_is_generous_but_bounded() -> None:
    """Without --seconds the bound grows with what is asked for; with it, it is that."""
    assert 100 < make_plan(CheckOptions()).seconds < 1000
    assert make_plan(CheckOptions(kill="worker")).seconds > make_plan(CheckOptions()).seconds
    assert make_plan(CheckOptions(seconds=99.0)).seconds == 99.0


@pytest.mark.parametrize(
    ("preferred", "others", "owner", "up", "chosen"),
    [
        (3, [1, 2], 1, [1, 2, 3], 3),  # both sides are there: as planned
        (3, [2, 3], 1, [1, 2, 3], 1),  # nobody where the answer is made
        (1, [1, 1], 1, [1, 2, 3], 2),  # nobody elsewhere
        (3, [1, 1, None], 1, [1, 2, 3], 3),
        (3, [1, 1, 2], 1, [1, 2], 2),  # the planned one is dead: where fewest are
        (3, [2, 3], 1, [2, 3], 3),  # the owner is dead: the rest goes on
        (2, [1, 3], None, [1, 2, 3], 2),  # nothing is being generated
        (2, [None, None], None, [1, 2, 3], 2),
        (1, [1], 1, [1], 1),  # nowhere else to go
        (2, [], None, [], 2),
    ],
)
def test_where_to_come_back(
    preferred: int, others: list[int | None], owner: int | None, up: list[int], chosen: int
) -> None:
    """A viewer comes back as planned, unless that leaves nobody on one side."""
    assert choose_replica(preferred, others, owner, up) == chosen
