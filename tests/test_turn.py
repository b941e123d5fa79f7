"""What a responder can do with its turn, and what becomes of what it sends."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import attrs
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from relaytrio import _record
from relaytrio._errors import AnswerTooLarge, ContentTooLarge, InvalidContent, InvalidPart, TurnOver
from relaytrio._parts import PartLog, PartLogs
from relaytrio._protocol.chat import NewMessage
from relaytrio._protocol.events import Episode, MessageRef, Part
from relaytrio._protocol.wire import encode_part
from relaytrio._record import Kept, Record
from relaytrio._settings import Settings
from relaytrio._turn import MessageLike, Turn
from tests.workshop import rows, text

EPISODE = Episode(7, 2, "p8r2dq7w3e")
NEXT = Episode(9, 1, "p8r2dq7w3e")
BASE = MessageRef(41, "k3x9q")
HUGE = 10**6


@attrs.define
class Desk:
    """A turn, with the test in the part of the run's supervisor."""

    turn: Turn
    record: Record
    log: PartLog
    logs: PartLogs
    wakes: list[None]

    def take(self) -> tuple[NewMessage, ...]:
        """What the responder asks to be stored."""
        assert self.record.request is not None
        return self.record.request.messages

    def store(self) -> PartLog:
        """A commit goes through."""
        self.log.seal()
        self.log = self.logs.make("c", NEXT)
        self.record.reopen(self.log, MessageRef(42, "aaaaa"))
        return self.log


def open_desk(**settings: Any) -> Desk:
    chosen = Settings(**settings)
    logs = PartLogs(chosen, clock=lambda: 0.0)
    log = logs.make("c", EPISODE)
    wakes: list[None] = []
    record = Record(log, BASE, chosen, lambda: wakes.append(None))
    turn = Turn(chat_id="c", messages=(), attempt=1, record=record, answer_bytes=chosen.answer_bytes)
    return Desk(turn, record, log, logs, wakes)


@pytest.fixture
def desk() -> Desk:
    return open_desk()


# ------------------------------------------------------------------------------------------------- sending


async def test_a_part_becomes_the_complete_event_a_viewer_gets(desk: Desk) -> None:
    """A row has the episode, its seq, the part, and the cursor of a viewer that has the history and all up to it."""
    await desk.turn.send(text("a"))
    await desk.turn.send_many([text("b"), {"type": "image", "url": "x"}])
    expected = [
        {
            "type": "message_part",
            "episode": [7, 2, "p8r2dq7w3e"],
            "seq": seq,
            "part": part,
            "cursor": f"41-k3x9q-7.2.p8r2dq7w3e-{seq}",
        }
        for seq, part in enumerate([text("a"), text("b"), {"type": "image", "url": "x"}], 1)
    ]
    assert expected == rows(desk.log)


async def test_a_part_is_encoded_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to viewers is encoded when it is sent, and never again."""
    encoded = []

    def counted(part: Any, **options: Any) -> bytes:
        encoded.append(part)
        return encode_part(part, **options)

    monkeypatch.setattr(_record, "encode_part", counted)
    await desk.turn.send_many([text("a"), {"type": "image"}])
    assert [text("a"), {"type": "image"}] == encoded


@pytest.mark.parametrize("send", [Turn.send, lambda turn, part: turn.send_many([part])], ids=["send", "send_many"])
async def test_what_is_sent_has_left_before_others_run(
    desk: Desk, send: Callable[[Turn, Part], Coroutine[Any, Any, None]]
) -> None:
    """It is under way while its sender waits for its turn; one that is refused lets others run as well."""
    sending = send(desk.turn, text("a"))
    assert 0 == desk.log.last_seq
    sending.send(None)  # to where it lets others run
    assert 1 == desk.log.last_seq
    sending.close()
    with assert_checkpoints(), pytest.raises(InvalidPart):
        await send(desk.turn, {"type": 1})


async def test_sends_are_checkpoints(desk: Desk) -> None:
    """A responder that only sends lets others run, and can be cancelled."""
    with assert_checkpoints():
        await desk.turn.send(text("a"))
    with assert_checkpoints():
        await desk.turn.send_many([])


async def test_a_cancelled_send_sends_nothing(desk: Desk) -> None:
    """Whoever is cancelled in a send knows that nothing of it went out."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await desk.turn.send(text("a"))
    assert (0, []) == (desk.log.last_seq, desk.turn.partial)


@pytest.mark.parametrize(
    "part",
    [
        "a",
        {"text": "a"},
        {"type": "x", "y": float("nan")},
        text("\ud800"),
        {"type": "x", "y": object()},
        text("a" * 99),
    ],
)
async def test_an_invalid_part_uses_no_seq(part: Any) -> None:
    """A part that is no JSON or is too large is refused before it has a number; the turn goes on."""
    desk = open_desk(part_bytes=100)
    with pytest.raises(InvalidPart):
        await desk.turn.send(part)
    await desk.turn.send(text("b"))
    assert [1] == [row["seq"] for row in rows(desk.log)]
    assert [text("b")] == desk.turn.partial


async def test_send_many_sends_all_or_nothing(desk: Desk) -> None:
    """One bad part among many, and none of them is sent."""
    with pytest.raises(InvalidPart):
        await desk.turn.send_many([text("a"), {"no": "type"}])
    assert (0, []) == (desk.log.last_seq, desk.turn.partial)


async def test_send_many_wakes_viewers_once(desk: Desk) -> None:
    """Parts that are sent together are there together."""
    wakes = []
    with desk.logs.watching("c", EPISODE, lambda: wakes.append(desk.log.last_seq)):
        await desk.turn.send_many([text("a"), text("b"), text("c")])
    assert [3] == wakes


# --------------------------------------------------------------------------------------------- what is kept


async def test_adjacent_texts_are_joined_and_other_parts_kept_as_they_are(desk: Desk) -> None:
    """The message says what the parts said, in their order; a text that says more than its text stays itself."""
    stamped = {"type": "text", "text": "c", "sent_at": 1.5}
    tool = {"type": "tool_call", "name": "look", "arguments": {"deep": [1, {"er": None}]}}
    for part in [text("a\r\n"), text("b"), stamped, text("d"), text("e"), tool, tool, text("f")]:
        await desk.turn.send(part)
    assert [text("a\r\nb"), stamped, text("de"), tool, tool, text("f")] == desk.turn.partial


async def test_what_was_sent_stays_as_it_was_sent(desk: Desk) -> None:
    """A responder may go on with its own objects, and with `partial`: the answer is what its viewers saw."""
    part = {"type": "tool_call", "arguments": [1]}
    await desk.turn.send(part)
    part["arguments"].append(2)  # type: ignore[attr-defined]
    desk.turn.partial[0]["arguments"].append(3)
    assert [{"type": "tool_call", "arguments": [1]}] == desk.turn.partial


async def test_an_answer_that_outgrows_its_limit_is_refused_and_said_to_be_truncated() -> None:
    """Past the limit nothing is sent, what was sent before is kept, and the message will say so."""
    desk = open_desk(answer_bytes=40)
    await desk.turn.send(text("a" * 10))
    with pytest.raises(AnswerTooLarge):
        await desk.turn.send(text("b" * 10))
    assert 1 == desk.log.last_seq
    (message,) = desk.record.messages()
    assert ([text("a" * 10)], True) == (message.content, message.truncated)


_PARTS = st.lists(
    st.builds(text, st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
    | st.fixed_dictionaries({"type": st.just("image"), "alt": st.text("aé\n\U0001f600", max_size=5)}),
    max_size=12,
)


@given(bursts=st.lists(_PARTS, max_size=5), first_seq=st.sampled_from([1, 9, 99_999]))
def test_the_size_that_is_counted_is_that_of_the_json(bursts: Sequence[list[Any]], first_seq: int) -> None:
    """The limit is on what is stored, however the parts were cut and wherever their numbers stand."""
    desk = open_desk(answer_bytes=HUGE)
    desk.log.last_seq = first_seq - 1
    for parts in bursts:
        desk.record.append(parts)
    encoded = msgspec.json.encode(desk.record.kept.content)
    assert len(encoded) - 1 == desk.record.kept.size_bytes or (b"[]", 0) == (encoded, desk.record.kept.size_bytes)


def test_many_small_tokens_do_not_cost_memory_each() -> None:
    """A long answer in small parts weighs a few times what it says, not a string for every token."""
    kept = Kept(1 << 30)
    tracemalloc.start()
    for number in range(100_000):
        kept.add([text(f"{number:07}")], [len('{"type":"text","text":"0000000"}')])
    size_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size_bytes < 5 * kept.size_bytes


# --------------------------------------------------------------------------------------------------- commit


async def test_a_commit_asks_for_what_was_sent_and_begins_anew(desk: Desk) -> None:
    """What was sent becomes a message of the assistant; the parts after it belong to the next episode and record."""
    await desk.turn.send(text("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.turn.commit)
        await wait_all_tasks_blocked()
        assert (NewMessage(role="assistant", content=[text("a")]),) == desk.take()
        assert 1 == len(desk.wakes)
        log = desk.store()
    await desk.turn.send(text("b"))
    assert ["42-aaaaa-9.1.p8r2dq7w3e-1"] == [row["cursor"] for row in rows(log)]
    assert [text("b")] == desk.turn.partial


async def test_a_commit_returns_when_it_is_stored(desk: Desk) -> None:
    """Nothing a responder does after a commit happens before the store has it."""
    done = []

    async def responder() -> None:
        await desk.turn.send(text("a"))
        await desk.turn.commit()
        done.append("stored")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(responder)
        await wait_all_tasks_blocked()
        assert [] == done
        desk.store()
    assert ["stored"] == done


async def test_a_send_during_a_commit_waits_for_the_next_episode(desk: Desk) -> None:
    """A part that comes while the log is sealed is neither lost nor late: it is the next episode's first."""
    await desk.turn.send(text("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.turn.commit)
        await wait_all_tasks_blocked()
        nursery.start_soon(desk.turn.send, text("b"))
        nursery.start_soon(desk.turn.send_many, [text("c")])
        await wait_all_tasks_blocked()
        assert 1 == desk.log.last_seq
        log = desk.store()
    assert ["b", "c"] == sorted(row["part"]["text"] for row in rows(log))


async def test_a_cancelled_send_during_a_commit_sends_nothing(desk: Desk) -> None:
    """Waiting for the commit can be cut off, and then nothing was sent."""
    scope = trio.CancelScope()
    await desk.turn.send(text("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.turn.commit)
        await wait_all_tasks_blocked()
        with scope:
            nursery.start_soon(_cancel_later, scope)
            await desk.turn.send(text("b"))
        log = desk.store()
    assert scope.cancelled_caught
    assert [] == rows(log)


async def test_a_commit_during_a_commit_waits_for_it(desk: Desk) -> None:
    """Two tasks of a responder may commit: one after the other."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.turn.commit, [{"content": "one"}])
        await wait_all_tasks_blocked()
        nursery.start_soon(desk.turn.commit, [{"content": "two"}])
        await wait_all_tasks_blocked()
        desk.store()
        await wait_all_tasks_blocked()
        assert [text("two")] == desk.take()[0].content
        desk.record.answer()


async def test_nothing_to_commit_is_no_commit(desk: Desk) -> None:
    """A commit without a message asks nobody for anything, and leaves what was sent where it is."""
    with assert_checkpoints():
        await desk.turn.commit()
    await desk.turn.send(text("a"))
    await desk.turn.commit([])
    assert desk.record.request is None
    assert [text("a")] == desk.turn.partial


async def test_messages_of_a_commit_are_the_assistants_unless_they_say_otherwise(desk: Desk) -> None:
    """A responder commits what it says, or a tool's result, or ready messages."""
    ready = NewMessage(role="system", content=[text("s")], truncated=True)
    drafts: list[MessageLike] = [{"content": "a"}, {"role": "tool", "content": "b"}, ready]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.turn.commit, drafts)
        await wait_all_tasks_blocked()
        assert ["assistant", "tool", "system"] == [message.role for message in desk.take()]
        assert ready == desk.take()[2]
        desk.store()


@pytest.mark.parametrize("verb", ["commit", "finish"])
@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "god", "content": "a"}, InvalidContent),
        ({"content": []}, InvalidContent),
        ({"content": "a" * 500}, ContentTooLarge),
        ("text", InvalidContent),
    ],
)
async def test_content_is_refused_before_anything_is_asked(verb: str, message: Any, error: type[Exception]) -> None:
    """What can be refused is refused while the log is open: the turn goes on as if nothing had been said."""
    desk = open_desk(answer_bytes=400)
    with pytest.raises(error):
        await getattr(desk.turn, verb)([message])
    assert desk.record.request is None
    await desk.turn.send(text("b"))
    assert 1 == desk.log.last_seq


async def test_a_commit_whose_caller_was_cancelled_is_carried_out_all_the_same(desk: Desk) -> None:
    """Once asked for, a commit is the supervisor's; the next send waits for it."""
    scope = trio.CancelScope()
    await desk.turn.send(text("a"))
    async with trio.open_nursery() as nursery:
        with scope:
            nursery.start_soon(_cancel_later, scope)
            await desk.turn.commit()
        assert [text("a")] == desk.take()[0].content
        nursery.start_soon(desk.turn.send, text("b"))
        await wait_all_tasks_blocked()
        log = desk.store()
    assert ["b"] == [row["part"]["text"] for row in rows(log)]


# ------------------------------------------------------------------------------------------------------ over


async def test_nothing_can_be_sent_after_finish(desk: Desk) -> None:
    """From the call of `finish` on the turn takes nothing more, before and after it is stored."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.turn.finish, [{"content": "all"}])
        await wait_all_tasks_blocked()
        await _all_raise_turn_over(desk.turn)
        desk.record.answer()
        desk.record.close()
    await _all_raise_turn_over(desk.turn)


async def test_finish_can_keep_nothing(desk: Desk) -> None:
    """An empty list ends the turn without a message."""
    await desk.turn.send(text("a"))
    nothing: list[NewMessage] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.turn.finish, nothing)
        await wait_all_tasks_blocked()
        assert () == desk.take()
        desk.record.answer()


@pytest.mark.parametrize("verb", ["commit", "finish"])
async def test_the_end_of_the_turn_answers_who_waits(desk: Desk, verb: str) -> None:
    """A commit or finish that cannot be stored any more raises, and so does the send that waits behind it."""
    await desk.turn.send(text("a"))
    refused = []

    async def call(verb: str, *args: Any) -> None:
        with pytest.raises(TurnOver):
            await getattr(desk.turn, verb)(*args)
        refused.append(verb)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, verb)
        await wait_all_tasks_blocked()
        nursery.start_soon(call, "send", text("b"))
        await wait_all_tasks_blocked()
        desk.record.close()
    assert sorted([verb, "send"]) == sorted(refused)
    assert (1, True) == (desk.log.last_seq, desk.log.sealed)
    await _all_raise_turn_over(desk.turn)


async def test_a_turn_that_is_over_still_lets_others_run(desk: Desk) -> None:
    """A loop that ignores `TurnOver` can be cancelled: refusing is a checkpoint too."""
    desk.record.close()
    with assert_checkpoints(), pytest.raises(TurnOver):
        await desk.turn.send(text("a"))


async def _all_raise_turn_over(turn: Turn) -> None:
    for call in (turn.send(text("x")), turn.send_many([]), turn.commit(), turn.finish()):
        with pytest.raises(TurnOver):
            await call


async def _cancel_later(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()
