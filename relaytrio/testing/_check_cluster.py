"""The oracle of a simulated cluster: which invariant did its run break, and where.

`check_cluster` ends all faults, gives the cluster a bounded time, and then compares. It knows what nobody there can
know: every transition that was committed, all that every viewer was sent, who was really dead. A violation names

- what `check_stream` names, for the stream of every viewer over all its reconnects;
- NEVER_HANGS, NEVER_STRANDED: a turn that does not end, a message that stays in the queue;
- CONVERGES: a viewer that shows something else than the store holds, or a preview of an answer that is over;
- STOPS, NO_LEAK: legs, dials, tasks, connections, part logs and listeners that outlive their reason;
- FENCED: a transition of a run that had lost its chat, a hint of what this replica was never told is so, a chat that
  was taken from a replica which nothing had happened to;
- ONCE: a message that was taken and is not there, or twice; an answer with a piece missing, doubled or moved;
- LAST_PARTS: in a cluster that nothing has happened to, a message that came in place of its last parts.

Who calls: tests, after what they do to a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Literal, TypeAlias

import attrs
import trio

from .._protocol.chat import (
    Acquire,
    Chat,
    Create,
    DeleteQueued,
    EditMessage,
    Fail,
    FinishInterruption,
    Interrupt,
    PromoteQueued,
    RunCommand,
    SendMessage,
)
from .._protocol.events import Content, Episode, Message, MessagePart, QueueEntry
from ._check_stream import Invariant, InvariantViolation
from ._scripted_answers import ScriptedAnswers, answers_in, part_of, pieces_of
from ._scripted_viewer import ScriptedViewer
from ._simulated_cluster import Sent, SimulatedCluster
from ._simulated_replica import SimulatedReplica
from ._simulated_store import Commit

ClusterInvariant: TypeAlias = (
    Invariant
    | Literal[
        "NEVER_HANGS",
        "NEVER_STRANDED",
        "CONVERGES",
        "STOPS",
        "NO_LEAK",
        "FENCED",
        "ONCE",
        "LAST_PARTS",
        "ENGINE",
    ]
)
STEP_SECONDS = 0.25
SHOWN_LINES = 60
"""Of a history that shows a violation: the end of it says most."""
_FOLLOWING = "._Following._follow"
"""The task of the engine's own relay that exists for as long as it follows a worker."""
_CUT_SHORT = (FinishInterruption, Fail, Interrupt, PromoteQueued)


class ClusterViolation(AssertionError):
    """A run that must not be. Its text ends with what concerns it of the run's history, one event a line."""

    def __init__(self, invariant: ClusterInvariant, explanation: str, history: Sequence[str]) -> None:
        left_out = len(history) - SHOWN_LINES
        shown = [f"... {left_out} lines before", *history[-SHOWN_LINES:]] if left_out > 0 else history
        super().__init__("\n  ".join([f"{invariant}: {explanation}", *shown]))
        self.invariant = invariant
        self.explanation = explanation
        self.history = tuple(history)


@attrs.frozen(kw_only=True)
class ClusterReport:
    """What was checked."""

    chats: int
    viewers: int
    commits: int
    parts_seen: int
    virtual_seconds: float


async def check_cluster(cluster: SimulatedCluster, *, within_seconds: float | None = None) -> ClusterReport:
    """End all faults, wait until the cluster is quiet, and raise `ClusterViolation` unless all invariants hold.

    Turns have `within_seconds` to end: by default, as long as it takes at most to find a replica dead and to give up a
    store, and a minute. All viewers that were cut come back, and leave in the end. Call it once, at the end of a test.
    """
    check = _Check(cluster)
    settings = cluster.settings
    check.faults()
    await cluster.heal()
    healed_at = trio.current_time()
    if within_seconds is None:
        within_seconds = settings.dead_after_seconds + settings.outage_seconds + 60.0
    check.bring_back()
    await check.until(check.unfinished, within_seconds)
    answering_at = max(trio.current_time(), healed_at + settings.store_retry_max_seconds)
    if cluster.ledger.restores:
        # What a viewer shows of before may look like what is there now, until it notices.
        await trio.sleep_until(healed_at + settings.poll_seconds + 1.0)
    await check.until(check.diverged, answering_at + settings.poll_seconds + 1.0 - trio.current_time())
    check.ledger()
    check.answers()
    check.last_parts()
    await check.until(check.legs_left, settings.idle_leg_seconds + 1.0)
    await check.leaks()
    check.faults()
    return check.report()


_Finding: TypeAlias = tuple[ClusterInvariant, str, "str | None", "ScriptedViewer | None"]
"""The invariant, the explanation, and the chat and the viewer that it is about."""


class _Check:
    """One check of one cluster."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self._parts: dict[tuple[str, Episode, int], str] = {}

    def fail(self, invariant: ClusterInvariant, told: str, chat_id: str | None, viewer: ScriptedViewer | None) -> None:
        self.faults()  # a fault that was noticed meanwhile is the cause
        named = self._cluster.named
        raise ClusterViolation(invariant, named(told), self._cluster.history(chat_id, viewer))

    async def until(self, find: Callable[[], _Finding | None], seconds: float) -> None:
        """Wait until there is nothing left to be found; what is there after so many seconds is a violation."""
        deadline = trio.current_time() + seconds
        while (found := find()) is not None:
            if trio.current_time() >= deadline:
                self.fail(found[0], f"{found[1]}, {seconds:g} s after it should", *found[2:])
            await trio.sleep(STEP_SECONDS)

    def report(self) -> ClusterReport:
        cluster = self._cluster
        return ClusterReport(
            chats=len(cluster.ledger.chat_ids()),
            viewers=len(cluster.viewers),
            commits=len(cluster.ledger.all_commits),
            parts_seen=len(self._parts),
            virtual_seconds=trio.current_time(),
        )

    # ------------------------------------------------------------------------------------------ streams

    def faults(self) -> None:
        """What was noticed on the way."""
        for fault in self._cluster.faults:
            if isinstance(fault, InvariantViolation):
                raise ClusterViolation(fault.invariant, fault.explanation, fault.history) from fault
            raise ClusterViolation("ENGINE", f"{type(fault).__name__}: {fault}", self._cluster.history()) from fault

    def bring_back(self) -> None:
        for viewer in self._watching():
            if not viewer.connected:
                number = viewer.number % len(self._cluster.replicas)
                viewer.connect(self._cluster.replicas[number])

    def _watching(self) -> list[ScriptedViewer]:
        return [viewer for viewer in self._cluster.viewers if viewer.ended is None and not viewer.left]

    # ---------------------------------------------------------------------------------------- quietness

    def unfinished(self) -> _Finding | None:
        """A chat that is still to be worked on."""
        for chat_id, chat, queue in self._chats():
            if chat.status not in ("waiting", "error"):
                owner = "nobody" if chat.worker_id is None else chat.worker_id
                told = f"{chat_id} is still {chat.status} and owned by {owner}"
                return ("NEVER_STRANDED" if queue else "NEVER_HANGS", told, chat_id, None)
            if queue and chat.status == "waiting":
                return ("NEVER_STRANDED", f"{chat_id} is waiting with {queue} messages in its queue", chat_id, None)
        return None

    def diverged(self) -> _Finding | None:
        """A viewer that shows something else than the store holds."""
        for viewer in self._watching():
            difference = self._difference(viewer)
            if difference is not None:
                return ("CONVERGES", f"{viewer} {difference}", viewer.chat_id, viewer)
        return None

    def _difference(self, viewer: ScriptedViewer) -> str | None:
        record, shown = self._cluster.ledger.record(viewer.chat_id), viewer.shown
        if record is None:
            return "watches a chat that is not there"
        chat = record.chat
        messages = [message for message in record.messages if not message.deleted]
        expected = messages if self._cluster.ledger.restores else _after(messages, viewer.start.message.id)
        held = [message.id for message in shown.screen.messages]
        for what, stored, seen in (
            ("status", chat.status, shown.status),
            ("version", chat.snapshot_version, shown.version),
            ("error", chat.last_error, shown.error),
            ("queue", record.queue, shown.queue),
            ("message ids", [message.id for message in expected], held),
            ("messages", expected, shown.screen.messages),
            ("preview", [], shown.preview),
        ):
            if stored != seen:
                return f"shows the {what} {seen!r} where the store has {stored!r}"
        return None

    def legs_left(self) -> _Finding | None:
        """Legs, dials and what follows a worker where no chat is running."""
        for replica in self._cluster.replicas:
            following = sum(name.endswith(_FOLLOWING) for name in replica.tasks())
            for what, count in (("legs", replica.engine.stats().legs), ("targets", following)):
                if count:
                    return ("STOPS", f"{replica} has {count} {what}, but no chat is running", None, None)
        if self._cluster.network.dialing:
            return ("STOPS", f"{self._cluster.network.dialing} dials are under way, but no chat is running", None, None)
        return None

    async def leaks(self) -> None:
        """Everybody leaves, and nothing is left; nothing is dialed meanwhile."""
        settings, dialed = self._cluster.settings, self._cluster.network.dialed
        for viewer in self._cluster.viewers:
            viewer.leave()
        await self.until(self._left_over, settings.silence_seconds + 1.0)
        if self._cluster.network.dialed != dialed:
            self.fail("STOPS", "a replica was dialed, but no chat was running", None, None)

    def _left_over(self) -> _Finding | None:
        for replica in self._cluster.replicas:
            for what, count in self._holdings(replica):
                if count:
                    return ("NO_LEAK", f"{replica} has {count} {what} that nobody needs", None, None)
        if self._cluster.network.connections:
            told = f"{self._cluster.network.connections} connections are open that nobody needs"
            return ("NO_LEAK", told, None, None)
        return None

    def _holdings(self, replica: SimulatedReplica) -> Iterator[tuple[str, int]]:
        stats = replica.engine.stats()
        yield "subscriptions", stats.subscriptions
        yield "runs", stats.runs
        yield "part logs", len(replica.engine.parts)
        left = Counter(replica.tasks()) - self._cluster.idle_tasks
        yield f"tasks ({', '.join(left)})", left.total()

    def _chats(self) -> Iterator[tuple[str, Chat, int]]:
        for chat_id in self._cluster.ledger.chat_ids():
            record = self._cluster.ledger.record(chat_id)
            if record is not None:
                yield chat_id, record.chat, len(record.queue)

    # ------------------------------------------------------------------------------------------- ledger

    def ledger(self) -> None:
        """What was committed and announced."""
        for commit in self._cluster.ledger.all_commits:
            self._fence(commit)
            self._take_over(commit)
        for replica in self._cluster.replicas:
            for life in replica.lives:
                for told, times in (life.pubsub.published - life.store.told).items():
                    told_of = f"{replica} announced {told} {times} times more often than the store told it so"
                    self.fail("FENCED", told_of, told[0], None)
        for sent in self._cluster.sent:
            self._once(sent)

    def _fence(self, commit: Commit) -> None:
        command, before = commit.command, commit.before
        if isinstance(command, RunCommand) and before is not None and before.run_id != command.run_id:
            told = f"{type(command).__name__} of run {command.run_id}, while the chat is run {before.run_id}'s"
            self.fail("FENCED", told, commit.chat_id, None)

    def _take_over(self, commit: Commit) -> None:
        if not isinstance(commit.command, Acquire) or commit.before is None or self._cluster.ledger.restores:
            return
        owner = commit.before.worker_id
        for replica in self._cluster.replicas:
            for life in replica.lives:
                if life.serves and life.engine.replica_id == owner and not life.disturbed:
                    self.fail("FENCED", f"{replica} lost a chat, but nothing has happened to it", commit.chat_id, None)

    def _once(self, sent: Sent) -> None:
        record, commits = self._cluster.ledger.record(sent.chat_id), self._cluster.ledger.commits
        entered = [commit for commit in commits if commit.chat_id == sent.chat_id and _text(commit) == sent.text]
        if record is None or len(entered) > 1:
            if record is not None:
                self.fail("ONCE", f"{sent.text!r} was stored {len(entered)} times", sent.chat_id, None)
            return
        if not entered:
            if sent.state == "taken" and not self._cluster.ledger.restores:
                self.fail("ONCE", f"{sent.text!r} was taken, but was never stored", sent.chat_id, None)
            return
        stored: list[Message | QueueEntry] = [*record.messages, *record.queue]
        found = [_says(message.content, sent.text) for message in stored].count(True)
        if found > 1 or (found == 0 and not _was_removed(commits, entered[0])):
            self.fail("ONCE", f"{sent.text!r} is there {found} times", sent.chat_id, None)

    # ------------------------------------------------------------------------------------------ answers

    def answers(self) -> None:
        """What scripted answers look like, in messages and in parts."""
        scripted = self._cluster.responder
        if not isinstance(scripted, ScriptedAnswers) or self._cluster.ledger.restores:
            return
        for chat_id in self._cluster.ledger.chat_ids():
            record = self._cluster.ledger.record(chat_id)
            assert record is not None
            live = [message for message in record.messages if not message.deleted]
            questions = [message for message in live if message.role == "user"]
            answers = answers_in(live)
            for question, next_one in zip_longest(questions, questions[1:]):
                self._answer(scripted, record.chat, question, answers[question.id], next_one)
        for viewer in self._cluster.viewers:
            self._seen_parts(viewer)

    def _answer(
        self, scripted: ScriptedAnswers, chat: Chat, question: Message, answers: list[Message], next_one: Message | None
    ) -> None:
        text: str = question.content[0]["text"]
        pieces = [piece for answer in answers for piece in pieces_of(answer.content)]
        expected = [part_of(text, number)["text"][:-1] for number in range(1, len(pieces) + 1)]
        if pieces != expected:
            self.fail("ONCE", f"the answer to {text!r} is {pieces}", chat.id, None)
        if len(pieces) < scripted.plan(text).parts and not self._was_cut_short(chat.id, question, next_one):
            self.fail("ONCE", f"the answer to {text!r} ends after {pieces}, and nobody stopped it", chat.id, None)

    def _was_cut_short(self, chat_id: str, question: Message, next_one: Message | None) -> bool:
        return any(
            isinstance(commit.command, _CUT_SHORT)
            or (isinstance(commit.command, SendMessage) and commit.command.when_busy == "interrupt")
            for commit in self._cluster.ledger.commits
            if commit.chat_id == chat_id
            and commit.outcome.chat.snapshot_version > question.version
            and (next_one is None or commit.outcome.chat.snapshot_version <= next_one.version)
        )

    def _seen_parts(self, viewer: ScriptedViewer) -> None:
        """All viewers are sent the same parts, and each is the one after the one before it."""
        for event in viewer.events:
            if not isinstance(event, MessagePart):
                continue
            text = event.part["text"]
            first = self._parts.setdefault((viewer.chat_id, event.episode, event.seq), text)
            before = self._parts.get((viewer.chat_id, event.episode, event.seq - 1))
            if first != text or (before is not None and _next_piece(before) != text):
                told = f"{viewer} was sent {text!r} as part {event.seq} of {event.episode}, after {before!r}"
                self.fail("ONCE", told, viewer.chat_id, viewer)

    def last_parts(self) -> None:
        """Only where nothing was in the way. A failed attempt's preview may be ended by the message of the next."""
        scripted = self._cluster.responder
        if self._cluster.was_disturbed or not isinstance(scripted, ScriptedAnswers):
            return
        for viewer in self._cluster.viewers:
            for preview, told in viewer.short_previews:
                if scripted.plan(preview.partition(".")[0]).failures == 0:
                    self.fail("LAST_PARTS", told, viewer.chat_id, viewer)


def _after(messages: list[Message], message_id: int) -> list[Message]:
    return [message for message in messages if message.id > message_id]


def _says(content: Content, text: str) -> bool:
    return len(content) == 1 and content[0].get("text") == text


def _text(commit: Commit) -> str | None:
    """What message of the user a commit brought."""
    match commit.command:
        case SendMessage(content=content) | EditMessage(content=content):
            text: str | None = content[0].get("text")
            return text
        case Create(messages=messages) if messages:
            return messages[-1].content[0].get("text")
        case _:
            return None


def _was_removed(commits: Sequence[Commit], entered: Commit) -> bool:
    """Whether somebody deleted it from the queue, or cleared that by an edit."""
    later = [
        commit
        for commit in commits
        if commit.chat_id == entered.chat_id
        and commit.outcome.chat.snapshot_version > entered.outcome.chat.snapshot_version
    ]
    queued_id = entered.outcome.answer.queued_id
    return any(
        isinstance(commit.command, EditMessage)
        or (isinstance(commit.command, DeleteQueued) and commit.command.queued_id == queued_id)
        for commit in later
    )


def _next_piece(text: str) -> str:
    question, _, number = text[:-1].rpartition(".")
    return str(part_of(question, int(number) + 1)["text"])
