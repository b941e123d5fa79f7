"""What a check will do: which questions, and when which viewer's socket is cut. Pure: options in, plan out.

The same options and seed give the same plan; what comes of it depends on the machine too. Options that could never
satisfy the check's own conditions are refused here. Who calls: `_check.py`; the conductor reads the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Literal, TypeAlias

import attrs

from ..responders.pydoc import answer, sample_names, tokens
from ..stores._open import SqlitePlace, parse_url
from ..stores._postgres_place import PostgresPlace
from ._own_schema import names_schema
from ._status import UsageFault

Kill: TypeAlias = Literal["viewer", "worker"]

MOST_REPLICAS = 50
MOST_VIEWERS = 200
MOST_TURNS = 1000
SHORTEST_SECONDS = 2.0
"""Of an answer: long enough that a viewer that is cut is back while it still runs."""
LONGEST_SECONDS = 4.0
OUTLASTING_SECONDS = 5.0, 8.0
"""The same, where the only replica for viewers elsewhere is killed: an answer has to outlast its restart."""
FEWEST_TOKENS = 8
KILL_EVERY_SECONDS = 5.0
KILLED_SHARE = 1 / 3
"""Of the interval between kills that an answer may take, so that an answer that was killed has time to come through."""
FIRST_CUT, LAST_CUT = 0.05, 0.9
"""Cuts fall between these parts of an answer's time: before, nothing runs; after, the end comes before the cut."""
SECOND_CUT_CHANCE = 0.3
ELSEWHERE_CHANCE = 0.8
VIEWERS_TO_SPARE = 4
"""From so many viewers on, one in each turn stays away until the answer has ended."""
TURN_SECONDS = 60.0
"""How long the store may take to see the end of an answer, beyond the answer's own time: far more than it takes."""
TAKEOVER_SECONDS = 40.0
"""More, for each death of an owner: twice the time after which it counts as dead."""
MOST_DEATHS = 4
SETTLED_SECONDS = 30.0
"""After the store has seen the end of an answer, a viewer has so long: a poll (10 s) for a lost hint, two tries of a
client that connects again, and a machine that is busy. Who has not seen the end by then hangs."""
START_SECONDS = 90.0


@attrs.frozen(kw_only=True)
class CheckOptions:
    """The options of the command, in their units."""

    replicas: int = 3
    viewers: int = 6
    turns: int = 5
    seed: int = 0
    pace: float = 200.0
    """Tokens a second."""
    seconds: float | None = None
    """Upper bound of the whole run."""
    kill: Kill | None = None
    kill_every: float | None = None
    """Seconds."""
    store: str | None = None
    own_listener: bool = False
    """Whether viewers come over the listener that is for them alone."""
    settings: str = "{}"
    """Of each replica, as JSON."""


@attrs.frozen(kw_only=True)
class CutPlan:
    """One cut of one viewer's socket."""

    viewer: int
    after_seconds: float
    """Since the first part of the answer was seen."""
    replica: int
    """Where to come back, if nothing speaks against it."""
    stays_away: bool
    """Whether it comes back only when the answer has ended."""


@attrs.frozen(kw_only=True)
class TurnPlan:
    """One question, its answer, and the cuts while it runs."""

    number: int
    name: str
    """What the user writes."""
    tokens: tuple[str, ...]
    """What the responder will make of it."""
    seconds: float
    """What the answer takes at the pace."""
    cuts: tuple[CutPlan, ...]
    """By time."""

    @property
    def look_after_seconds(self) -> float:
        """When to look into the store's tables, since the first part was seen."""
        return self.seconds / 2


@attrs.frozen(kw_only=True)
class CheckPlan:
    """The whole run."""

    options: CheckOptions
    turns: tuple[TurnPlan, ...]
    seconds: float
    """Upper bound of the whole run."""
    place: SqlitePlace | PostgresPlace | None
    """The store that was given; None: a file of the cluster."""

    @property
    def turn_seconds(self) -> float:
        """How long an answer may take until the store has its end."""
        return _turn_seconds(self.options, max(turn.seconds for turn in self.turns))


def make_plan(options: CheckOptions) -> CheckPlan:
    """The plan for these options. Reads documentation for a second: call it in a thread. Raises `UsageFault`."""
    _check_numbers(options)
    place = _place(options.store)
    random = Random(f"check:{options.seed}")
    names = _names(options, random)
    turns = tuple(_turn(options, number, name, random) for number, name in enumerate(names, 1))
    answering = sum(turn.seconds for turn in turns)
    if options.kill is not None and answering < kill_every_seconds(options):
        raise UsageFault(
            f"--kill-every {kill_every_seconds(options):g}: the answers take {answering:.1f} s; give more --turns"
        )
    if options.seconds is not None and options.seconds <= answering:
        raise UsageFault(f"--seconds {options.seconds:g}: the answers alone take {answering:.1f} s")
    bound = sum(_turn_seconds(options, turn.seconds) + SETTLED_SECONDS for turn in turns)
    return CheckPlan(options=options, turns=turns, seconds=options.seconds or START_SECONDS + bound, place=place)


def needed_cuts(options: CheckOptions) -> int:
    """How many cuts inside running answers a check must have made."""
    return math.ceil(options.viewers * options.turns / 3)


def _check_numbers(options: CheckOptions) -> None:
    if not 2 <= options.replicas <= MOST_REPLICAS:
        raise UsageFault(f"--replicas is 2 to {MOST_REPLICAS}, not {options.replicas}: a remote viewer needs two")
    if not 2 <= options.viewers <= MOST_VIEWERS:
        raise UsageFault(
            f"--viewers is 2 to {MOST_VIEWERS}, not {options.viewers}: one where the answer is made and one elsewhere"
        )
    if not 1 <= options.turns <= MOST_TURNS:
        raise UsageFault(f"--turns is 1 to {MOST_TURNS}, not {options.turns}")
    _check_positive("--pace", options.pace)
    _check_positive("--seconds", options.seconds)
    _check_positive("--kill-every", options.kill_every)
    if options.kill is None and options.kill_every is not None:
        raise UsageFault("--kill-every needs --kill viewer or --kill worker")


def _check_positive(name: str, number: float | None) -> None:
    if number is not None and not (math.isfinite(number) and number > 0):
        raise UsageFault(f"{name} is a finite number above 0, not {number:g}")


def _place(store: str | None) -> SqlitePlace | PostgresPlace | None:
    place = None if store is None else parse_url(store)
    if store is not None and place is None:
        raise UsageFault("--store: replicas are processes of their own and cannot share a memory store")
    if isinstance(place, PostgresPlace) and names_schema(store or ""):
        raise UsageFault("--store: a check makes a schema of its own; leave out ?schema=")
    return place


def kill_every_seconds(options: CheckOptions) -> float:
    """The interval between kills."""
    return options.kill_every or KILL_EVERY_SECONDS


def _turn_seconds(options: CheckOptions, answer_seconds: float) -> float:
    deaths = MOST_DEATHS if options.kill == "worker" else 0
    return TURN_SECONDS + 4 * answer_seconds + deaths * (TAKEOVER_SECONDS + answer_seconds)


def _names(options: CheckOptions, random: Random) -> Sequence[str]:
    shortest, longest = SHORTEST_SECONDS, LONGEST_SECONDS
    if options.kill == "viewer" and options.replicas == 2:
        shortest, longest = OUTLASTING_SECONDS
    if options.kill == "worker":
        longest = kill_every_seconds(options) * KILLED_SHARE
        shortest = longest * 2 / 3
    fewest = max(math.ceil(shortest * options.pace), FEWEST_TOKENS)
    most = math.floor(longest * options.pace) if options.kill == "worker" else max(int(longest * options.pace), 16)
    try:
        return sample_names(random, options.turns, min_tokens=fewest, max_tokens=most, seed=options.seed)
    except ValueError:
        raise UsageFault(
            f"--pace {options.pace:g}: no answer of {shortest:.1f} to {longest:.1f} s can be made at this pace"
        ) from None


def _turn(options: CheckOptions, number: int, name: str, random: Random) -> TurnPlan:
    pieces = tuple(tokens(answer(name), name=name, seed=options.seed))
    seconds = len(pieces) / options.pace
    absent = number % options.viewers if options.viewers >= VIEWERS_TO_SPARE else None
    cuts = [
        cut for viewer in range(options.viewers) for cut in _cuts(options, viewer, seconds, random, absent == viewer)
    ]
    cuts.sort(key=lambda cut: cut.after_seconds)
    return TurnPlan(number=number, name=name, tokens=pieces, seconds=seconds, cuts=tuple(cuts))


def _cuts(options: CheckOptions, viewer: int, seconds: float, random: Random, absent: bool) -> Sequence[CutPlan]:
    """Of one viewer in one answer: one, sometimes two. The sum is three times what is needed."""
    count = 1 if absent or random.random() >= SECOND_CUT_CHANCE else 2
    return [
        CutPlan(
            viewer=viewer,
            after_seconds=random.uniform(FIRST_CUT, LAST_CUT) * seconds,
            replica=_where(options.replicas, viewer, random),
            stays_away=absent,
        )
        for _ in range(count)
    ]


def _where(replicas: int, viewer: int, random: Random) -> int:
    """Mostly another replica than the one where the viewer began; numbers count from 1."""
    home = viewer % replicas
    step = random.randrange(1, replicas) if random.random() < ELSEWHERE_CHANCE else 0
    return (home + step) % replicas + 1


def choose_replica(preferred: int, others: Sequence[int | None], owner: int | None, up: Sequence[int]) -> int:
    """Where a viewer should come back, so that some viewer is where the answer is made and some other elsewhere.

    `others` is where the other viewers are connected now; `up` are the replicas that run, in order.
    """
    known = [replica for replica in others if replica is not None]
    if owner in up and owner not in known:
        assert owner is not None
        return owner
    wanted = [replica for replica in up if replica != owner] if all(other == owner for other in known) else list(up)
    if preferred in wanted or not wanted:
        return preferred
    return min(wanted, key=lambda replica: (known.count(replica), replica))
