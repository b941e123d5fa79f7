"""SERIAL: the transitions one after the other, by their versions, give all the answers that there were.

Each change is decided anew on the state that the one before has left, with its own instant and stamps: the answer has
to be the same to the last field. A read has to show the state of its version. A refusal, and a no-op, has to be right
in one of the states that the chat was in while it was asked for.

Pure. Who calls: `playing.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, islice

import attrs

from relaytrio._errors import RelaytrioError
from relaytrio._protocol.chat import Chat, ChatState, Command, Create, EditMessage, Fresh, Transition, create, decide
from relaytrio._protocol.events import Message
from relaytrio._settings import DEFAULTS
from relaytrio.stores import View

from .records import After, Record
from .rules import Answered, ChatHistory, Violation


@attrs.frozen
class _Life:
    """A message, and from which version to before which it was live."""

    message: Message
    ended: int | None = None

    def live_at(self, version: int) -> bool:
        return self.message.version <= version and (self.ended is None or version < self.ended)


@attrs.define
class _Replay:
    """The states by version, and all messages by id."""

    states: list[ChatState] = attrs.field(factory=list)
    lives: dict[int, _Life] = attrs.field(factory=dict)

    def decide(self, version: int, command: Command, fresh: Fresh) -> Transition:
        """What the command would have done after this version. Raises its refusal."""
        state = self.states[version]
        return decide(state, command, fresh, target=self._target(version, command), queue_limit=DEFAULTS.queue_entries)

    def take(self, one: Answered) -> Transition:
        """What a change does after the last of the states, which it adds to."""
        stamps = tuple(ref.stamp or "" for ref in one.answer.messages)
        fresh = Fresh(at=one.answer.at, stamps=(*stamps, *("" for _ in range(4))))
        if isinstance(one.command, Create):
            transition = create(one.record.chat_id, one.command, fresh)
            self.states.append(ChatState(Chat(id=one.record.chat_id, status="waiting")))
        else:
            transition = self.decide(len(self.states) - 1, one.command, fresh)
        if transition.deleted_from is not None:
            self._delete_from(transition.deleted_from, one.version)
        self.lives.update((message.id, _Life(message)) for message in transition.inserted)
        self.states.append(ChatState(transition.chat, transition.queue))
        return transition

    def live(self, version: int, after_id: int, most: int | None = None) -> tuple[Message, ...]:
        """The first live messages after this id."""
        last = self.states[version].chat.next_message_id
        live = (self.lives[number] for number in range(after_id + 1, last) if number in self.lives)
        return tuple(islice((life.message for life in live if life.live_at(version)), most))

    def _target(self, version: int, command: Command) -> Message | None:
        life = self.lives.get(command.message_id) if isinstance(command, EditMessage) else None
        if life is None or life.message.version > version:
            return None
        return attrs.evolve(life.message, deleted=not life.live_at(version))

    def _delete_from(self, message_id: int, version: int) -> None:
        number = self.states[-1].chat.next_message_id - 1
        while number >= message_id:
            if number in self.lives and self.lives[number].ended is None:
                self.lives[number] = attrs.evolve(self.lives[number], ended=version)
            number -= 1


def replay(history: ChatHistory) -> Iterator[Violation]:
    """What is not as if all were one after the other; up to the first change that cannot be placed."""
    made = _Replay()
    for number, one in enumerate(history.changes, start=1):
        if one.version != number:
            return  # VERSIONS has it
        try:
            transition = made.take(one)
        except RelaytrioError as error:
            yield history.violation("SERIAL", f"version {number} was to be refused: {type(error).__name__}: {error}")
            return
        if transition.answer != one.answer or After.of(transition.chat) != one.record.after:
            yield history.violation("SERIAL", f"version {number} was to be {transition.answer}, not {one.answer}")
            return
    final = history.final
    last = len(made.states) - 1
    if last != final.chat.snapshot_version:
        return
    if made.states[last] != ChatState(final.chat, final.queue) or made.live(last, 0) != final.messages:
        yield history.violation("SERIAL", f"the store has {final.chat}, not {made.states[last].chat}")
    yield from _rest(history, made)


def _rest(history: ChatHistory, made: _Replay) -> Iterator[Violation]:
    """All that changed nothing."""
    window = _Window(history)
    for record in history.records:
        if record.view is not None:
            if not _is_shown(record.view, made):
                yield history.violation("SERIAL", f"version {record.view.chat.snapshot_version} was shown another way")
        elif record.came == "refusal" and record.said != "IdempotencyConflict":
            versions = window.of(record)
            if all(record.said != _outcome(made, version, record) for version in versions):
                yield history.violation("SERIAL", f"{record.kind} by {record.who} was refused with {record.said}")
        elif record.key is None and record.answer is not None and record.answer.done == "nothing":
            # Decided at that version, not remembered.
            if _outcome(made, record.answer.snapshot_version, record) == "nothing":
                continue
            yield history.violation("SERIAL", f"{record.kind} by {record.who} was no no-op")


def _is_shown(view: View, made: _Replay) -> bool:
    version = view.chat.snapshot_version
    if version >= len(made.states):
        return False
    state = made.states[version]
    page = made.live(version, view.anchor.id, DEFAULTS.page_messages)
    return ChatState(view.chat, view.queue) == state and view.messages == page


def _outcome(made: _Replay, version: int, record: Record) -> str:
    """What the command would have come to after this version, in a word."""
    fresh = Fresh(at="", stamps=("",) * 4)
    try:
        return made.decide(version, record.command, fresh).answer.done
    except RelaytrioError as error:
        return type(error).__name__


class _Window:
    """Which versions the chat may have been at while something was asked for."""

    def __init__(self, history: ChatHistory) -> None:
        back = sorted(history.changes, key=lambda one: one.record.came_back)
        self._back = [one.record.came_back for one in back]
        self._least = list(accumulate((one.version for one in back), max))
        asked = sorted(history.changes, key=lambda one: one.record.asked)
        self._asked = [one.record.asked for one in asked]
        self._most = list(accumulate((one.version for one in asked), max))

    def of(self, record: Record) -> range:
        """From what was over before it was asked for to what was asked for before it came back."""
        over = bisect_left(self._back, record.asked)
        begun = bisect_left(self._asked, record.came_back)
        least = self._least[over - 1] if over else 1
        return range(least, self._most[begun - 1] + 1)
