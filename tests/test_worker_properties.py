"""Whatever people, responders and the store do to a worker, in any order: what must hold in the end, and always."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from relaytrio._errors import RelaytrioError, RetryableError
from relaytrio._presence import Presence
from relaytrio._protocol.chat import DeleteQueued, EditMessage, Interrupt, PromoteQueued, SendMessage
from relaytrio._protocol.content import user_message
from relaytrio._turn import Turn
from relaytrio.stores._base import Replica
from relaytrio.stores.memory import MemoryStore
from tests.workshop import HERE, Workshop, open_workshop, text, until_idle

TRANSITIONS = ["Commit", "FinishTurn", "FinishInterruption", "RecordRetry", "BeginAttempt", "Fail", "Abandon"]
OPERATIONS = [*TRANSITIONS, "Acquire", "read_chat", "list_messages", "candidates", "owned_by", "heartbeat", "replicas"]

_ACTIONS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.1, 0.5, 1.0, 5.0, 30.0])),
    st.tuples(st.just("send"), st.sampled_from(["queue", "interrupt"])),
    st.tuples(st.just("interrupt"), st.booleans()),
    st.tuples(st.just("edit"), st.booleans()),
    st.tuples(st.just("promote"), st.just(None)),
    st.tuples(st.just("delete"), st.just(None)),
    st.tuples(st.just("lose all"), st.just(None)),
)
_FAULTS = st.tuples(st.just("fault"), st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(["fail", "lose", "hang"])))


class Moody:
    """A responder that does anything that responders do, by chance."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.at_work: dict[str, int] = {}

    async def __call__(self, turn: Turn) -> None:
        mood = self._random.choice(["plain", "plain", "commits", "retries", "fails", "finishes", "clings", "silent"])
        for number in range(self._random.randrange(4) if mood != "silent" else 0):
            await turn.send(text(f"{number} "))
            await trio.sleep(self._random.choice([0, 0.1, 1.0]))
        if mood == "commits":
            await turn.commit()
            await turn.send(text("after"))
        elif mood == "retries":
            raise RetryableError("later", self._random.choice([None, 0, 2]))
        elif mood == "fails":
            raise ValueError("moody")
        elif mood == "finishes":
            await turn.finish(self._random.choice([None, [], [{"content": "final"}]]))
        elif mood == "clings":
            await self._cling(turn)

    async def _cling(self, turn: Turn) -> None:
        try:
            await trio.sleep(3)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 8):
                await trio.sleep(self._random.choice([0, 1, 7]))
                await turn.send(text("last words"))


async def act(shop: Workshop, action: str, argument: Any) -> None:
    """What a person may do; most of it is refused in some situations."""
    try:
        match action:
            case "wait":
                await trio.sleep(argument)
            case "send":
                content = user_message("sent").content
                await shop.apply(SendMessage(content=content, when_busy=argument))
            case "interrupt":
                await shop.apply(Interrupt(), hint=argument)
            case "edit":
                users = [message.id for message in await shop.messages() if message.role == "user"]
                await shop.apply(EditMessage(message_id=users[-1], content=user_message("x").content), hint=argument)
            case "promote" | "delete":
                queue = await MemoryStore.read_queue(shop.store, "c")
                if queue:
                    kind = PromoteQueued if action == "promote" else DeleteQueued
                    await shop.apply(kind(queued_id=queue[-1].id))
            case "lose all":
                shop.worker.cancel_all_runs()
            case "fault":
                shop.store.plan(*argument)
    except RelaytrioError:
        pass


async def check_in_the_end(shop: Workshop) -> None:
    """NEVER_STRANDED, NEVER_HANGS: the chat waits for a person, nothing waits in its queue, nobody is at work."""
    chat, queue = await shop.chat(), await MemoryStore.read_queue(shop.store, "c")
    assert chat.status in ("waiting", "error")
    assert (None, None, {}) == (chat.worker_id, chat.run_id, dict(shop.worker.runs))
    assert chat.status == "error" or () == queue
    assert chat.last_error is None or chat.last_error.kind == "responder_failed"
    assert not shop.worker._busy
    assert all(log.sealed for log in shop.parts._logs.values())


def check_told(shop: Workshop, *, faultless: bool) -> None:
    """FENCED: each transition of this worker was told once and in order, and nothing that was none of them."""
    told = [chat.snapshot_version for chat in shop.announced]
    assert sorted(set(told)) == told
    if faultless:
        assert [outcome.chat.snapshot_version for _, outcome in shop.store.committed] == told


def play(actions: Sequence[tuple[str, Any]], seed: int, *, faultless: bool) -> None:
    async def main() -> None:
        async with open_workshop(Moody(seed), retry_seconds=1.0) as shop:
            presence = Presence(
                replica=Replica(id=HERE, address=None, version="1"),
                store=shop.store,
                worker=shop.worker,
                settings=shop.settings,
            )
            shop.nursery.start_soon(presence.run)
            await shop.create()
            for action, argument in actions:
                await act(shop, action, argument)
            shop.store.plans.clear()
            await until_idle(300)
            await check_in_the_end(shop)
            check_told(shop, faultless=faultless)

    trio.run(main, clock=MockClock(autojump_threshold=0))


@settings(max_examples=45, deadline=None)
@given(actions=st.lists(_ACTIONS, max_size=15), seed=st.integers(0, 10_000), schedule=st.random_module())
@example(actions=[("send", "queue"), ("interrupt", True), ("interrupt", True)] * 4, seed=1, schedule=None)
def test_people_and_responders(actions: Sequence[tuple[str, Any]], seed: int, schedule: object) -> None:
    """Every chat comes to rest, and exactly what was committed was told."""
    play(actions, seed, faultless=True)


@settings(max_examples=45, deadline=None)
@given(actions=st.lists(_ACTIONS | _FAULTS, max_size=20), seed=st.integers(0, 10_000), schedule=st.random_module())
@example(actions=[("fault", ("candidates", "hang")), ("promote", None)], seed=0, schedule=None)
def test_people_and_responders_and_a_failing_store(
    actions: Sequence[tuple[str, Any]], seed: int, schedule: object
) -> None:
    """The same when requests fail, answers are lost and calls hang."""
    play(actions, seed, faultless=False)
