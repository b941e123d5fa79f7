"""Whether what many callers were told of one chat can be true of one chat: a checker over the history of results.

VERSIONS  What changed the chat has the versions 1, 2, 3... up to the last, each once; whoever asks after an answer came
          back, in whatever process, is shown no older version.
OWNER     A run's transition follows a state that is that run's; an acquire follows one that is nobody's, or that of the
          owner it found dead. `waiting` and `error` have no owner, `interrupting` has one.
KEY       What was asked under one key, or with one token of a run, got one answer, and changed the chat once; another
          content under the key is refused.
MESSAGES  Ids are given once and without gaps; what was accepted is in the chat once, in the history or in the queue,
          unless it was deleted or an edit took it away.
QUEUE     Ordinary entries are promoted in the order in which they came; those that interrupt stand before them.
STRANDED  A waiting chat has nobody in its queue; in the end all chats wait.
SERIAL    All answers, refusals and reads are those of the transitions one after the other (`replay.py`).
CALM      A store raises nothing but refusals, and is there all the time.

All but SERIAL are judged by what the store said alone, not by the transitions' rules. Pure. Who calls: `playing.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeAlias

import attrs

from relaytrio._protocol.chat import Acquire, Answer, DeleteQueued, EditMessage, PromoteQueued, RunCommand, SendMessage
from relaytrio._protocol.events import Message, QueueEntry

from .records import Final, Record

Rule: TypeAlias = Literal["VERSIONS", "OWNER", "KEY", "MESSAGES", "QUEUE", "STRANDED", "SERIAL", "CALM"]


@attrs.frozen
class Violation:
    """What cannot be."""

    rule: Rule
    chat_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule} in {self.chat_id}: {self.what}"


@attrs.frozen
class Answered:
    """A record with an answer; its command and what it left, at hand."""

    record: Record
    command: Any
    answer: Answer
    version: int
    """Of the chat when the transaction had ended."""


@attrs.define
class ChatHistory:
    """All records of one chat, sorted into what the rules ask for."""

    chat_id: str
    records: list[Record]
    final: Final
    answered: list[Answered] = attrs.field(init=False)
    changes: list[Answered] = attrs.field(init=False)
    """Those that changed the chat, by version."""

    def __attrs_post_init__(self) -> None:
        self.answered = [
            Answered(record, record.command, record.answer, record.after.snapshot_version)
            for record in self.records
            if record.answer is not None and record.after is not None
        ]
        self.changes = sorted((one for one in self.answered if one.record.changed), key=lambda one: one.version)

    @property
    def perhaps(self) -> int:
        """How many transitions there may be that nobody got an answer to."""
        return sum(record.came in ("unavailable", "broke") for record in self.records)

    def violation(self, rule: Rule, what: str) -> Violation:
        return Violation(rule, self.chat_id, what)


def histories(records: Iterable[Record], finals: Mapping[str, Final]) -> Iterator[ChatHistory]:
    """Chat by chat."""
    by_chat: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_chat[record.chat_id].append(record)
    for chat_id, final in finals.items():
        yield ChatHistory(chat_id, by_chat[chat_id], final)


def judge(history: ChatHistory) -> Iterator[Violation]:
    """What breaks a rule, but for SERIAL."""
    yield from _calm(history)
    yield from _versions(history)
    yield from _in_time(history)
    yield from _owner(history)
    yield from _keys(history)
    yield from _tokens(history)
    yield from _ids(history)
    yield from _accepted(history)
    yield from _queue(history)
    yield from _stranded(history)


def _calm(history: ChatHistory) -> Iterator[Violation]:
    for record in history.records:
        if record.came in ("broke", "unavailable"):
            yield history.violation("CALM", f"{record.kind} by {record.who} raised {record.said}")


def _versions(history: ChatHistory) -> Iterator[Violation]:
    for one in history.changes:
        if one.answer.snapshot_version != one.version:
            yield history.violation("VERSIONS", f"{one.record.kind} said {one.answer.snapshot_version}: {one.version}")
    last = history.final.chat.snapshot_version
    given = Counter(one.version for one in history.changes)
    for version, count in given.items():
        if count > 1:
            yield history.violation("VERSIONS", f"version {version} was given {count} times")
        if version > last:
            yield history.violation("VERSIONS", f"version {version} was given, and the last is {last}")
    missing = [version for version in range(1, last + 1) if version not in given]
    if len(missing) > history.perhaps:
        yield history.violation("VERSIONS", f"nobody was given {missing[:10]}")


def _in_time(history: ChatHistory) -> Iterator[Violation]:
    """Who asks after an answer came back sees what it told of, in this process or another."""
    seen = sorted((record for record in history.records if record.after), key=lambda record: record.came_back)
    times = [record.came_back for record in seen]
    newest = list(accumulate((_version(record) for record in seen), max))
    for record in seen:
        before = bisect_left(times, record.asked)
        if before and newest[before - 1] > _version(record) - record.changed:
            yield history.violation(
                "VERSIONS", f"{record.kind} gave version {_version(record)} after {newest[before - 1]} had been given"
            )


def _version(record: Record) -> int:
    assert record.after is not None
    return record.after.snapshot_version


def _owner(history: ChatHistory) -> Iterator[Violation]:
    for record in history.records:
        after = record.after
        if after is None:
            continue
        is_owned = after.run_id is not None
        if is_owned != (after.worker_id is not None) or is_owned is (
            {"waiting": True, "error": True, "interrupting": False}.get(after.status)
        ):
            yield history.violation("OWNER", f"{after.status}, of worker {after.worker_id} and run {after.run_id}")
    for former, one in pairwise(history.changes):
        before = former.record.after
        assert before is not None
        if former.version + 1 != one.version:
            continue
        match one.command:
            case RunCommand(run_id=run_id) if before.run_id != run_id:
                yield history.violation(
                    "OWNER", f"{one.record.kind} of run {run_id} made {one.version}; the owner was {before.run_id}"
                )
            case Acquire(dead_worker_id=dead) if before.worker_id not in (None, dead):
                yield history.violation("OWNER", f"version {one.version} took the chat from {before.worker_id}")


def _keys(history: ChatHistory) -> Iterator[Violation]:
    by_key: defaultdict[str, list[Record]] = defaultdict(list)
    for record in history.records:
        if record.key is not None:
            by_key[record.key].append(record)
    for key, records in by_key.items():
        answered = [record for record in records if record.answer is not None]
        yield from _one_answer(history, f"key {key}", answered)
        if len({record.request_hash for record in answered}) > 1:
            yield history.violation("KEY", f"key {key} was good for two contents")
        kept_at = min((record.came_back for record in answered), default=float("inf"))
        for record in records:
            is_first = bool(answered) and record.request_hash == answered[0].request_hash
            if record.came == "refusal" and is_first and record.asked > kept_at:
                yield history.violation("KEY", f"key {key} was answered, then refused with {record.said}")
            if record.said == "IdempotencyConflict" and (is_first or not answered) and not history.perhaps:
                yield history.violation("KEY", f"key {key} was in conflict with nothing")


def _tokens(history: ChatHistory) -> Iterator[Violation]:
    by_token: defaultdict[str, list[Record]] = defaultdict(list)
    for one in history.answered:
        if isinstance(one.command, RunCommand):
            by_token[one.command.token].append(one.record)
    for token, records in by_token.items():
        yield from _one_answer(history, f"token {token}", records)


def _one_answer(history: ChatHistory, what: str, records: Sequence[Record]) -> Iterator[Violation]:
    # A no-op of a run is not kept: asked again, it is a no-op at the version of that time.
    kept = [record for record in records if record.key is not None or record.answer.done != "nothing"]  # type: ignore[union-attr]
    if any(record.answer != kept[0].answer for record in kept):
        yield history.violation("KEY", f"{what} got two answers: {[record.answer for record in kept]}")
    if sum(record.changed for record in records) > 1:
        yield history.violation("KEY", f"{what} changed the chat more than once")


def _ids(history: ChatHistory) -> Iterator[Violation]:
    given = [(ref.id, ref.stamp, one.version) for one in history.changes for ref in one.answer.messages]
    ids = [message_id for message_id, _, _ in given]
    next_id = history.final.chat.next_message_id
    if len(set(ids)) < len(ids):
        yield history.violation("MESSAGES", f"ids were given twice: {[i for i, n in Counter(ids).items() if n > 1]}")
    elif not history.perhaps and ids != list(range(1, next_id)):
        yield history.violation("MESSAGES", f"{len(ids)} ids were given, not in order up to {next_id - 1}")
    if not history.perhaps:
        told = set(given)
        for message in history.final.messages:
            if (message.id, message.stamp, message.version) not in told:
                yield history.violation("MESSAGES", f"nobody was told of {message}")
    yield from _once(history, "message", history.final.messages)
    yield from _once(history, "entry", history.final.queue)


def _once(history: ChatHistory, what: str, those: Sequence[Message | QueueEntry]) -> Iterator[Violation]:
    for name in ("id", "queued_id"):
        numbers = Counter(getattr(one, name, None) for one in those)
        for number, count in numbers.items():
            if number is not None and count > 1:
                yield history.violation("MESSAGES", f"{what} with the {name} {number} is there {count} times")


def _accepted(history: ChatHistory) -> Iterator[Violation]:
    """Each text is in the chat once, as long as nothing has taken it away."""
    there = Counter([*map(_text, history.final.messages), *map(_text, history.final.queue)])
    deleted = {one.answer.queued_id for one in history.changes if isinstance(one.command, DeleteQueued)}
    edits = [(one.version, one.command.message_id) for one in history.changes if isinstance(one.command, EditMessage)]
    last_edit = max((version for version, _ in edits), default=0)
    for text, count in there.items():
        if count > 1:
            yield history.violation("MESSAGES", f"{text} is there {count} times")
    for one in history.changes:
        if not isinstance(one.command, SendMessage | EditMessage):
            continue
        text = one.command.content[0]["text"]
        # Where an entry was when an edit came, these rules do not know: then it may be gone.
        gone = one.answer.queued_id in deleted if one.answer.queued_id is not None else False
        if one.answer.queued_id is not None:
            gone = gone or one.version < last_edit
        else:
            (ref,) = one.answer.messages
            gone = any(version > one.version and message_id <= ref.id for version, message_id in edits)
            if gone and there[text]:
                yield history.violation("MESSAGES", f"{text} is there, and an edit took it away")
        if not gone and there[text] != 1:
            yield history.violation("MESSAGES", f"{text}, accepted as {one.answer.done}, is there {there[text]} times")


def _text(one: Message | QueueEntry) -> str:
    text: str = one.content[0]["text"]
    return text


def _queue(history: ChatHistory) -> Iterator[Violation]:
    urgent = {one.answer.queued_id for one in history.changes if isinstance(one.command, PromoteQueued)}
    for one in history.changes:
        if isinstance(one.command, SendMessage) and one.command.when_busy == "interrupt":
            urgent.add(one.answer.queued_id)
    seen = [(record.view.messages, record.view.queue) for record in history.records if record.view is not None]
    for messages, queue in (*seen, (history.final.messages, history.final.queue)):
        promoted = [message.queued_id for message in messages if message.queued_id not in (None, *urgent)]
        waiting = [entry.id for entry in queue if entry.id not in urgent]
        ordinary = [number for number in (*promoted, *waiting) if number is not None]
        if ordinary != sorted(ordinary):
            yield history.violation("QUEUE", f"ordinary entries were promoted, or stand, in the order {ordinary[-30:]}")
            return
        flags = [entry.urgent for entry in queue]
        if flags != sorted(flags, reverse=True):
            yield history.violation("QUEUE", f"an ordinary entry stands before one that interrupts: {queue}")
            return


def _stranded(history: ChatHistory) -> Iterator[Violation]:
    for record in history.records:
        if record.view is not None and record.view.chat.status == "waiting" and record.view.queue:
            yield history.violation("STRANDED", f"version {record.view.chat.snapshot_version}: {record.view.queue}")
    final = history.final
    if final.queue or final.chat.status != "waiting":
        yield history.violation("STRANDED", f"in the end it is {final.chat.status}, with {len(final.queue)} waiting")
