"""What became of each part on its way to one viewer: live, after a resume, missing, doubled, out of order.

Pure, and it believes nothing that the engine says of itself: only which parts arrived, when, on which connection.
Must not know: whether that is good or bad. Who calls: `_check_judge.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import attrs

from .._protocol.events import Episode
from ._check_records import ANSWERED, Connection, MessageSeen, PartSeen, ResetSeen, TurnRecord, ViewerRecord

EDGE_SECONDS = 0.25
"""A part that was made so shortly before a connection ended may have been on its way: it does not count as one that
this connection should have brought. Far more than a part takes on a healthy machine, little of an answer."""
STAYED_SECONDS = 1.0
"""Who came so shortly before the end may get the message instead of the last parts: its replica has a dial to make,
and the end waits 200 ms for it."""
GOES_ON = ("truncated", "gap")


@attrs.define
class Made:
    """What the responder made, as far as any viewer or the recomputed answer tells."""

    turns: Mapping[int, TurnRecord]
    """By the version with which the question entered the history: an episode's history version."""
    out_of_time: bool = False
    """Whether the check may have ended before it knew that version of its last question."""
    sent_at: dict[Episode, dict[int, float]] = attrs.field(factory=lambda: defaultdict(dict))
    """When each part was made."""

    def turn_of(self, episode: Episode) -> TurnRecord | None:
        """The turn that an episode belongs to."""
        return self.turns.get(episode.history_version)

    def is_unknown(self, episode: Episode) -> bool:
        """Whether it may belong to a question whose version is not known any more."""
        return self.out_of_time and all(episode.history_version > version for version in self.turns)

    def last_episode(self, turn: TurnRecord) -> Episode | None:
        """The one that the answer came of, if a part of it was seen."""
        episodes = [episode for episode in self.sent_at if episode.history_version == turn.version]
        return max(episodes, key=lambda episode: episode.numbers, default=None)

    def times(self, episode: Episode) -> tuple[float, float]:
        """When its first and its last part were made."""
        times = self.sent_at[episode].values()
        return min(times), max(times)


def gather_made(viewers: Sequence[ViewerRecord], turns: Sequence[TurnRecord], *, out_of_time: bool = False) -> Made:
    """All parts that were made. One that no viewer saw counts as made with the one before it."""
    made = Made({turn.version: turn for turn in turns}, out_of_time)
    for viewer in viewers:
        for part in viewer.seen:
            if isinstance(part, PartSeen) and made.turn_of(part.episode) is not None:
                made.sent_at[part.episode].setdefault(part.seq, part.sent_at)
    for turn in turns:
        episode = made.last_episode(turn)
        if turn.outcome == ANSWERED and episode is not None:
            _fill(made.sent_at[episode], len(turn.tokens))
    return made


def _fill(times: dict[int, float], count: int) -> None:
    before = min(times.values())
    for seq in range(1, count + 1):
        before = times.setdefault(seq, before)


@attrs.define(kw_only=True)
class Followed:
    """What one viewer had."""

    number: int
    parts: int = 0
    live: int = 0
    """Delivered over the connection that was there when they were made."""
    resumed: int = 0
    """Delivered over a later one."""
    due_live: int = 0
    """Parts made while it was connected."""
    came_live: int = 0
    """Of these, delivered over that connection."""
    missing: list[tuple[Episode, int]] = attrs.field(factory=list)
    doubled: list[tuple[Episode, int]] = attrs.field(factory=list)
    out_of_order: list[tuple[Episode, int]] = attrs.field(factory=list)
    late: list[tuple[Episode, int]] = attrs.field(factory=list)
    """Parts after the end: after the message they led to, or after the reset that took them back."""
    strange: list[tuple[Episode, int]] = attrs.field(factory=list)
    """Parts that no question asked for, or with another text than was made."""
    messages_again: list[int] = attrs.field(factory=list)
    """Ids of messages that came though the viewer had them."""
    resets: Counter[str] = attrs.field(factory=Counter)
    cuts: int = 0
    """Of established connections."""
    cuts_inside: int = 0
    """While an answer was running."""
    resumes_after_end: int = 0
    """Connections that began with the message of an answer that this viewer had not seen the end of."""
    latencies: list[float] = attrs.field(factory=list)
    """Of live parts, in seconds."""
    first_parts: list[float] = attrs.field(factory=list)
    """Seconds from a dial in the middle of an answer to the first part."""
    live_at: dict[int, set[int | None]] = attrs.field(factory=lambda: defaultdict(set))
    """Per turn number: the distance of live parts' way: 0 where the answer was made, 1 elsewhere."""
    remote: set[tuple[int, Episode, int]] = attrs.field(factory=set)
    """(replica, episode, seq) of parts that this viewer had elsewhere than where they were made."""
    history: dict[int, MessageSeen] = attrs.field(factory=dict)
    """Messages as the viewer has them at the end."""


def follow(viewer: ViewerRecord, made: Made, replica_of: Mapping[str, int]) -> Followed:
    """Follow one viewer through the run."""
    follower = _Follower(viewer, made, replica_of)
    for seen in viewer.seen:
        follower.take(seen)
    follower.count_connections()
    follower.count_due()
    return follower.out


class _Follower:
    def __init__(self, viewer: ViewerRecord, made: Made, replica_of: Mapping[str, int]) -> None:
        self.out = Followed(number=viewer.number)
        self._viewer = viewer
        self._made = made
        self._replica_of = replica_of
        self._had: dict[Episode, dict[int, int]] = defaultdict(dict)
        """Parts that were delivered, with the connection that brought them first."""
        self._due: dict[Episode, int] = defaultdict(lambda: 1)
        """The seq that comes next."""
        self._lost: set[tuple[Episode, int]] = set()
        self._preview: Episode | None = None
        self._over: set[Episode] = set()
        self._answered: set[int] = set()
        """Versions of turns whose answer the viewer has."""
        self._began: set[int] = set()
        """Connections that have brought a part."""

    def take(self, seen: PartSeen | MessageSeen | ResetSeen) -> None:
        match seen:
            case PartSeen():
                self._part(seen)
            case MessageSeen():
                self._message(seen)
            case ResetSeen():
                self._reset(seen)

    def _part(self, part: PartSeen) -> None:
        if self._made.is_unknown(part.episode):
            return
        self.out.parts += 1
        where = (part.episode, part.seq)
        turn = self._made.turn_of(part.episode)
        if turn is None or not 1 <= part.seq <= len(turn.tokens) or turn.tokens[part.seq - 1] != part.text:
            self.out.strange.append(where)
            return
        if part.seq in self._had[part.episode]:
            self.out.doubled.append(where)
            return
        self._had[part.episode][part.seq] = part.connection
        self._place_in_order(part)
        self._measure(part, turn)

    def _place_in_order(self, part: PartSeen) -> None:
        where, due = (part.episode, part.seq), self._due[part.episode]
        if part.episode in self._over or part.episode.history_version in self._answered:
            self.out.late.append(where)
            return
        if part.seq < due or (self._preview is not None and self._preview != part.episode):
            self.out.out_of_order.append(where)
        self._lost.discard(where)
        self._lost.update((part.episode, seq) for seq in range(due, part.seq))
        self._due[part.episode] = max(due, part.seq + 1)
        self._preview = part.episode

    def _measure(self, part: PartSeen, turn: TurnRecord) -> None:
        connection = self._viewer.connections[part.connection]
        owner = self._replica_of.get(part.worker_id or "")
        elsewhere = owner is not None and owner != connection.replica
        if elsewhere:
            self.out.remote.add((connection.replica, part.episode, part.seq))
        if _is_live(connection, part.sent_at):
            self.out.live += 1
            self.out.latencies.append(part.at - part.sent_at)
            self.out.live_at[turn.number].add(None if owner is None else int(elsewhere))
        else:
            self.out.resumed += 1
        if part.connection not in self._began:
            self._began.add(part.connection)
            first, last = self._made.times(part.episode)
            if part.connection > 0 and first <= connection.dialed_at <= last:
                self.out.first_parts.append(part.at - connection.dialed_at)

    def _message(self, message: MessageSeen) -> None:
        if message.id in self.out.history:
            self.out.messages_again.append(message.id)
        self.out.history[message.id] = message
        turn = self._turn_answered_by(message)
        if turn is None:
            return
        self._answered.add(turn.version)
        self._preview = None
        connection = self._viewer.connections[message.connection]
        if connection.caught_up_at is None or message.at < connection.caught_up_at:
            self.out.resumes_after_end += message.connection > 0
        elif turn.outcome == ANSWERED and self._stayed(connection, turn):
            episode = self._made.last_episode(turn) or Episode(turn.version, 1, "")
            self._lost.update((episode, seq) for seq in range(self._due[episode], len(turn.tokens) + 1))

    def _turn_answered_by(self, message: MessageSeen) -> TurnRecord | None:
        if message.role != "assistant":
            return None
        before = [turn for turn in self._made.turns.values() if turn.version < message.version]
        return max(before, key=lambda turn: turn.version, default=None)

    def _stayed(self, connection: Connection, turn: TurnRecord) -> bool:
        """Whether the viewer was connected over the end of the answer, and had been for some time."""
        episode = self._made.last_episode(turn)
        end = turn.ended_at if episode is None else self._made.times(episode)[1]
        return connection.caught_up_at is not None and connection.caught_up_at + STAYED_SECONDS <= end

    def _reset(self, reset: ResetSeen) -> None:
        self.out.resets[reset.reason] += 1
        if reset.reason in GOES_ON and self._preview is not None:
            self._due[self._preview] = max(self._due[self._preview], reset.first_seq)
            return
        if self._preview is not None and reset.reason not in ("history", *GOES_ON):
            self._over.add(self._preview)
        if reset.reason == "history":
            self.out.history = {id: seen for id, seen in self.out.history.items() if id <= reset.first_seq}
        self._preview = None

    def count_connections(self) -> None:
        """The cuts, and what was lost in the end."""
        self.out.missing = sorted(self._lost, key=lambda where: (where[0].numbers, where[1]))
        spans = [self._made.times(episode) for episode in self._made.sent_at]
        for connection in self._viewer.connections:
            if connection.cut and connection.caught_up_at is not None and connection.ended_at is not None:
                self.out.cuts += 1
                self.out.cuts_inside += any(first <= connection.ended_at <= last for first, last in spans)

    def count_due(self) -> None:
        """The parts made while the viewer was connected, and how many of them came over that connection."""
        for episode, times in self._made.sent_at.items():
            for seq, sent_at in times.items():
                index = self._connection_at(sent_at)
                if index is not None:
                    self.out.due_live += 1
                    self.out.came_live += self._had[episode].get(seq) == index

    def _connection_at(self, moment: float) -> int | None:
        for index, connection in enumerate(self._viewer.connections):
            if connection.lasted_over(moment, margin_seconds=EDGE_SECONDS):
                return index
        return None


def _is_live(connection: Connection, sent_at: float) -> bool:
    return connection.caught_up_at is not None and sent_at >= connection.caught_up_at
