"""One replica, whole: requests, worker and viewers on virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import relaytrio
from relaytrio._relay import MultiReplicaRelay
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import ask, check_stream, open_test_engine
from relaytrio.transport.dialer import WebSocketDialer
from relaytrio.transport.pool import LegPool
from tests.scene import kinds, texts, until


async def echo(turn: relaytrio.Turn) -> None:
    """Say what was asked, word by word, one a second."""
    for word in turn.messages[-1].content[0]["text"].split():
        await turn.send({"type": "text", "text": f"{word} "})
        await trio.sleep(1)


async def test_a_question_is_answered(autojump_clock: MockClock) -> None:
    """The parts as they come, then the message that they make, then waiting."""
    reply = await ask(echo, "a b c")
    assert ("waiting", "a b c ") == (reply.status, reply.text)
    assert ["a ", "b ", "c "] == [part.part["text"] for part in reply.parts]


async def test_a_conversation_goes_on(autojump_clock: MockClock) -> None:
    """Each question of a chat begins a turn with the whole history."""
    seen: list[int] = []

    async def count(turn: relaytrio.Turn) -> None:
        seen.append(len(turn.messages))
        await turn.send({"type": "text", "text": "ok"})

    async with open_test_engine(count) as engine:
        first = await ask(engine, "one")
        await ask(engine, "two", chat_id=first.chat_id)
    assert [1, 3] == seen


async def test_a_stop_keeps_what_was_generated(autojump_clock: MockClock) -> None:
    """An interrupted answer is a message that says so; from the request to the end it takes no time."""
    async with open_test_engine(echo) as engine:
        chat = await engine.create_chat([relaytrio.user_message("a b c d")])
        async with engine.subscribe(chat.id) as subscription:
            events = await until(subscription, relaytrio.MessagePart, seq=2)
            started = trio.current_time()
            assert "interrupting" == (await engine.interrupt(chat.id)).done
            events += await until(subscription, relaytrio.Status, status="waiting")
            assert started == trio.current_time()
        messages = await engine.list_messages(chat.id)
        assert ("a b ", True) == (messages[-1].content[0]["text"], messages[-1].interrupted)
        check_stream(events)


async def test_interrupt_and_resend(autojump_clock: MockClock) -> None:
    """The new question is answered at once by the same run; nothing of the old answer follows it."""
    async with open_test_engine(echo) as engine:
        chat = await engine.create_chat([relaytrio.user_message("a b c d")])
        async with engine.subscribe(chat.id) as subscription:
            events = await until(subscription, relaytrio.MessagePart, seq=2)
            await engine.send_message(chat.id, "x y", when_busy="interrupt")
            events += await until(subscription, relaytrio.Status, status="waiting")
        assert ["a ", "b ", "x ", "y "] == texts(events)
        check_stream(events)


async def test_a_queue_is_worked_off_in_order(autojump_clock: MockClock) -> None:
    """NEVER_STRANDED: what waits is promoted, one after the other."""
    async with open_test_engine(echo) as engine:
        chat = await engine.create_chat([relaytrio.user_message("a b")])
        async with engine.subscribe(chat.id) as subscription:
            await until(subscription, relaytrio.MessagePart)
            for text in ("c", "d"):
                await engine.send_message(chat.id, text)
            await until(subscription, relaytrio.Status, status="waiting")
        roles = [(message.role, message.content[0]["text"]) for message in await engine.list_messages(chat.id)]
    assert [
        ("user", "a b"),
        ("assistant", "a b "),
        ("user", "c"),
        ("assistant", "c "),
        ("user", "d"),
        ("assistant", "d "),
    ] == roles


async def test_an_edit_begins_the_turn_anew(autojump_clock: MockClock) -> None:
    """The run of the edited turn is lost, and another one answers; its viewers are reset."""
    async with open_test_engine(echo) as engine:
        chat = await engine.create_chat([relaytrio.user_message("a b c")])
        async with engine.subscribe(chat.id) as subscription:
            events = await until(subscription, relaytrio.MessagePart, seq=2)
            await engine.edit_message(chat.id, 1, "x y")
            events += await until(subscription, relaytrio.Status, status="waiting")
        assert "history_reset" in kinds(events)
        assert ["x y", "x y "] == [m.content[0]["text"] for m in await engine.list_messages(chat.id)]
        check_stream(events)


async def test_a_responder_that_raises_parks_the_chat_and_a_message_goes_on(autojump_clock: MockClock) -> None:
    """The replica lives on; what was generated is kept as interrupted."""
    failing = True

    async def respond(turn: relaytrio.Turn) -> None:
        await turn.send({"type": "text", "text": "so far"})
        if failing:
            raise ValueError("broken")

    async with open_test_engine(respond) as engine:
        reply = await ask(engine, "one")
        assert ("error", "so far", True) == (reply.status, reply.text, reply.messages[0].interrupted)
        assert "broken" not in str([e for e in reply.events if isinstance(e, relaytrio.ErrorEvent)])
        failing = False
        assert "waiting" == (await ask(engine, "two", chat_id=reply.chat_id)).status


async def test_two_replicas_share_a_store_and_one_answers(autojump_clock: MockClock) -> None:
    """Exactly one of them acquires the chat; a viewer on each gets the message."""
    store, answered = MemoryStore(), list[str]()

    async def respond(turn: relaytrio.Turn) -> None:
        answered.append(turn.chat_id)
        await turn.send({"type": "text", "text": "once"})

    async with (
        relaytrio.open_engine(store, responder=respond) as one,
        relaytrio.open_engine(store, responder=respond) as other,
    ):
        chat = await one.create_chat([relaytrio.user_message("hello")])
        for engine in (one, other):
            async with engine.subscribe(chat.id) as subscription:
                await until(subscription, relaytrio.Status, status="waiting")
        assert [chat.id] == answered
        assert 2 == len(await store.list_messages(chat.id))


async def test_leaving_the_engine_hands_its_chats_over(autojump_clock: MockClock) -> None:
    """A replica that stops without a drain abandons at once, and another one begins anew from seq 1."""
    store = MemoryStore()
    async with relaytrio.open_engine(store, responder=echo) as staying:
        await wait_all_tasks_blocked()
        staying_worker = staying._worker
        assert staying_worker is not None
        async with relaytrio.open_engine(store, responder=echo) as leaving:
            chat = await leaving.create_chat([relaytrio.user_message("a b c d")])
            await trio.sleep(1.5)
            owner = (await store.read_chat(chat.id)).worker_id
            other = staying if owner == leaving.replica_id else leaving
        async with other.subscribe(chat.id) if other is staying else staying.subscribe(chat.id) as subscription:
            events = await until(subscription, relaytrio.Status, status="waiting")
        check_stream(events)
        assert "a b c d " == (await store.list_messages(chat.id))[-1].content[0]["text"]


async def test_a_drain_lets_answers_finish_and_then_refuses_viewers(autojump_clock: MockClock) -> None:
    """Shutdown: nothing new is acquired, responders have their grace, viewers go elsewhere."""
    async with open_test_engine(echo) as engine:
        chat = await engine.create_chat([relaytrio.user_message("a b c")])
        await trio.sleep(0.5)
        await engine.drain()
        assert "waiting" == (await engine.get_chat(chat.id)).status
        with pytest.raises(relaytrio.ReplicaDraining):
            engine.subscribe(chat.id)


async def test_a_viewers_stream_ends_with_the_engine(autojump_clock: MockClock) -> None:
    """It is told that the replica stops, and does not hang."""
    ended = trio.Event()

    async def watch(engine: relaytrio.Engine, chat_id: str) -> None:
        async with engine.subscribe(chat_id) as subscription:
            with pytest.raises(relaytrio.ReplicaDraining):
                async for _ in subscription:
                    pass
        ended.set()

    async with trio.open_nursery() as nursery:
        async with open_test_engine(echo) as engine:
            chat = await engine.create_chat()
            nursery.start_soon(watch, engine, chat.id)  # noqa: ASYNC111 - it is to see the engine end
            await wait_all_tasks_blocked()
        await ended.wait()


async def test_idempotency_keys(autojump_clock: MockClock) -> None:
    """A repeat gives the first answer and changes nothing; another content is refused."""
    async with open_test_engine(echo) as engine:
        chat = await engine.create_chat([relaytrio.user_message("a")], idempotency_key="k")
        assert chat.id == (await engine.create_chat([relaytrio.user_message("a")], idempotency_key="k")).id
        with pytest.raises(relaytrio.IdempotencyConflict):
            await engine.create_chat([relaytrio.user_message("b")], idempotency_key="k")
        first = await engine.send_message(chat.id, "c", idempotency_key="k")
        assert first == await engine.send_message(chat.id, "c", idempotency_key="k")


NO_IDS = ["", "a\0b", "\ud800", "a b", "\N{SNOWMAN}", 201 * "a"]


@pytest.mark.parametrize("chat_id", NO_IDS)
async def test_what_cannot_be_an_id_is_no_chat(autojump_clock: MockClock, chat_id: str) -> None:
    """Some databases cannot even look for it: the engine answers, in each of its requests."""
    async with open_test_engine(echo) as engine:
        for request in (
            engine.get_chat(chat_id),
            engine.delete_chat(chat_id),
            engine.list_chats(before=chat_id),
            engine.list_messages(chat_id),
            engine.list_queue(chat_id),
            engine.send_message(chat_id, "a"),
            engine.edit_message(chat_id, 1, "a"),
            engine.interrupt(chat_id),
            engine.delete_queued(chat_id, 1),
            engine.promote_queued(chat_id, 1),
        ):
            with pytest.raises(relaytrio.ChatNotFound, match="no chat has such an id"):
                await request
        with pytest.raises(relaytrio.ChatNotFound, match="no chat has such an id"):
            engine.subscribe(chat_id)


@pytest.mark.parametrize("key", NO_IDS)
async def test_a_key_that_http_would_refuse_is_refused(autojump_clock: MockClock, key: str) -> None:
    """Before anything is done."""
    async with open_test_engine(echo) as engine:
        chat = await engine.create_chat()
        for request in (
            engine.create_chat(idempotency_key=key),
            engine.send_message(chat.id, "a", idempotency_key=key),
            engine.edit_message(chat.id, 1, "a", idempotency_key=key),
        ):
            with pytest.raises(relaytrio.ConfigurationError, match="idempotency_key has 1 to 200 visible ASCII"):
                await request
        assert [chat] == list(await engine.list_chats())


@pytest.mark.parametrize("principal", ["a\0b", "\ud800", 2001 * "a"])
async def test_a_principal_is_one_that_any_database_can_keep(autojump_clock: MockClock, principal: str) -> None:
    """It is kept with its keys."""
    async with open_test_engine(echo) as engine:
        with pytest.raises(relaytrio.ConfigurationError, match="principal"):
            await engine.create_chat(idempotency_key="k", principal=principal)
        assert await engine.create_chat(idempotency_key="k", principal="\N{SNOWMAN}" * 600)


async def test_numbers_that_no_database_holds(autojump_clock: MockClock) -> None:
    """They name nothing, and no driver is asked to carry them."""
    huge = 2**70
    async with open_test_engine(echo) as engine:
        chat = await engine.create_chat([relaytrio.user_message("a")])
        assert [chat.id] == [one.id for one in await engine.list_chats(limit=huge)]
        assert await engine.list_messages(chat.id, after_id=-huge, limit=huge)
        assert not await engine.list_messages(chat.id, after_id=huge)
        for limit in (0, -1):
            with pytest.raises(relaytrio.ConfigurationError, match="limit"):
                await engine.list_chats(limit=limit)
            with pytest.raises(relaytrio.ConfigurationError, match="limit"):
                await engine.list_messages(chat.id, limit=limit)
        for number in (huge, -1):
            with pytest.raises(relaytrio.MessageNotFound):
                await engine.edit_message(chat.id, number, "b")
            with pytest.raises(relaytrio.InvalidCursor):
                engine.subscribe(chat.id, after_message_id=number)


@pytest.mark.parametrize("secret", ["short", b"", ""])
async def test_a_weak_secret_is_refused(autojump_clock: MockClock, secret: str | bytes) -> None:
    """Replicas trust each other by it."""
    with pytest.raises(relaytrio.ConfigurationError, match="secret"):
        async with relaytrio.open_engine("memory://", secret=secret):
            pass


async def test_the_engine_fails_as_one_exception(autojump_clock: MockClock) -> None:
    """A task of the engine that fails cancels the body, and leaves with its cause."""

    class Broken(MemoryStore):
        async def replicas(self) -> list[relaytrio.Replica]:
            raise ZeroDivisionError

    with pytest.raises(relaytrio.EngineFailed) as caught:
        async with relaytrio.open_engine(Broken(), responder=echo):
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, BaseException)


def test_a_public_name_has_one_home() -> None:
    """Every public class is found under its own name, and an exception says so in a traceback."""
    for name, value in vars(relaytrio).items():
        if isinstance(value, type):
            assert name == value.__name__
        if isinstance(value, type) and issubclass(value, BaseException):
            assert "relaytrio" == value.__module__, name


@pytest.mark.parametrize("shared", [True, False])
async def test_legs_are_shared_unless_told_otherwise(autojump_clock: MockClock, shared: bool) -> None:
    """One connection to a peer, or one for each subscription, as the settings say."""
    async with relaytrio.open_engine(
        "memory://", secret="a secret of a cluster", settings=relaytrio.Settings(shared_legs=shared)
    ) as engine:
        assert isinstance(engine.relay, MultiReplicaRelay)
        assert isinstance(engine.relay.config.dialer, LegPool if shared else WebSocketDialer)
