"""What a check wrote down while it ran: values only, for the judge. Times are seconds of this machine's clock.

Who calls: the viewers and the conductor write, `_check_follow.py`, `_check_judge.py` and `_check_report.py` read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import attrs

from .._protocol.events import Episode

ANSWERED = "answered"
WORKER_LOST = "worker_lost"
NEVER_ENDED = "never ended"
UNFINISHED = "unfinished"
"""The check's own time was over before."""


@attrs.frozen(kw_only=True)
class PartSeen:
    """A part that reached a viewer."""

    at: float
    connection: int
    """Index of the viewer's connection that brought it."""
    episode: Episode
    seq: int
    text: str
    sent_at: float
    """When the responder made it."""
    worker_id: str | None
    """The owner, as the viewer was told last."""


@attrs.frozen(kw_only=True)
class MessageSeen:
    """A message that reached a viewer."""

    at: float
    connection: int
    id: int
    role: str
    text: str
    version: int


@attrs.frozen(kw_only=True)
class ResetSeen:
    """A `preview_reset`, or a `history_reset` (reason `history`, and its `after_id` as `first_seq`)."""

    at: float
    connection: int
    reason: str
    first_seq: int


Seen: TypeAlias = PartSeen | MessageSeen | ResetSeen


@attrs.define(kw_only=True)
class Connection:
    """One connection of a viewer."""

    replica: int
    dialed_at: float
    caught_up_at: float | None = None
    """When the viewer had all that was stored; None: it never came so far."""
    ended_at: float | None = None
    """None: it was there until the end of the check."""
    cut: bool = False
    """Whether the check has cut it."""

    def lasted_over(self, moment: float, *, margin_seconds: float) -> bool:
        """Whether the viewer was connected then, and for the margin after it."""
        if self.caught_up_at is None or moment < self.caught_up_at:
            return False
        return self.ended_at is None or moment + margin_seconds <= self.ended_at


@attrs.define(kw_only=True)
class ViewerRecord:
    """All that one viewer had."""

    number: int
    seen: list[Seen] = attrs.field(factory=list)
    """In order."""
    connections: list[Connection] = attrs.field(factory=list)
    broken: list[str] = attrs.field(factory=list)
    """What the stream's checker said."""
    hung: list[int] = attrs.field(factory=list)
    """Turns whose end it had not seen in time."""
    failure: str | None = None
    """What ended its stream for good."""


@attrs.frozen(kw_only=True)
class TurnRecord:
    """One question that was asked, and what the store says of it."""

    number: int
    name: str
    tokens: Sequence[str]
    """What the responder makes of it, recomputed."""
    version: int
    """The snapshot version with which the question entered the history."""
    outcome: str
    """`answered`, the kind of the chat's error, `never ended`, or `unfinished`."""
    ended_at: float
    """When the store was seen to have the end; when the question was asked, if there is none."""


@attrs.frozen(kw_only=True)
class StoredMessage:
    """A message as the store has it at the end."""

    id: int
    role: str
    text: str
    interrupted: bool


@attrs.frozen(kw_only=True)
class ReplicaCounts:
    """What one life of a replica said of itself last."""

    legs_opened: int
    parts_relayed: int


@attrs.frozen(kw_only=True)
class TableLook:
    """One look into all text of the store's tables while an answer was running."""

    turn: int
    needles: int
    """Pieces of the answer, made by then, that were looked for."""
    found: Sequence[str]
    """Where one was found, as `table.column`."""


@attrs.frozen(kw_only=True)
class RunRecord:
    """The whole run."""

    viewers: Sequence[ViewerRecord]
    planned_turns: int
    needed_cuts: int
    turns: Sequence[TurnRecord]
    stored: Sequence[StoredMessage] | None
    """None: it could not be read."""
    replica_of: Mapping[str, int]
    """Which replica each replica id is a life of."""
    counts: Mapping[str, ReplicaCounts]
    """By replica id."""
    looks: Sequence[TableLook]
    kill: str | None = None
    kills: int = 0
    died: Sequence[str] = ()
    """Replicas that ended though nobody killed them."""
    out_of_time: bool = False
