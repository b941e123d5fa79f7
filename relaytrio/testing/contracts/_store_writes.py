"""The store contract: a transition is written whole, or not at all, and once.

What a transition decides is `_protocol/chat.py`'s and tested there.
"""

from __future__ import annotations

import attrs
import pytest
import trio

from ..._errors import (
    ChatBusy,
    ChatNotFound,
    ChatTaken,
    IdempotencyConflict,
    Interrupted,
    InvalidTransition,
    MessageNotFound,
    NotEditable,
    QueuedMessageNotFound,
    QueueFull,
)
from ..._protocol.chat import (
    Abandon,
    Acquire,
    BeginAttempt,
    Chat,
    Command,
    Commit,
    Create,
    DeleteQueued,
    EditMessage,
    Fail,
    FinishInterruption,
    FinishTurn,
    Interrupt,
    NewMessage,
    PromoteQueued,
    RecordRetry,
    SendMessage,
)
from ..._protocol.events import NO_MESSAGE, ChatError, Content, Episode, RetryState
from ...stores import IdempotencyKey, Store
from ._kit import (
    LIMITS,
    Everything,
    StoreTests,
    acquire,
    asked,
    assistant,
    cancel_after,
    live_messages,
    text,
    texts,
    user,
)

SENDERS = 5
SENDS = 8
STEPS = 12
"""Of the scheduler, after each of which a caller is cancelled once."""
PATIENCE_SECONDS = 10.0
"""How long a transition may take."""
FULL: tuple[Command, ...] = tuple(SendMessage(content=text(str(number))) for number in range(LIMITS.queue_entries))
ACQUIRE = Acquire(worker_id="w", run_id="r")
STOP = Interrupt()
REFUSALS: dict[str, tuple[tuple[Command, ...], Command, type[Exception]]] = {
    "full queue": (FULL, SendMessage(content=text("more")), QueueFull),
    "busy": ((), SendMessage(content=text("more"), when_busy="reject"), ChatBusy),
    "unknown message": ((), EditMessage(message_id=9, content=text("new")), MessageNotFound),
    "message of the assistant": ((), EditMessage(message_id=1, content=text("new")), NotEditable),
    "deleted message": (
        (EditMessage(message_id=2, content=text("new")),),
        EditMessage(message_id=2, content=text("newer")),
        MessageNotFound,
    ),
    "unknown entry": ((), DeleteQueued(queued_id=7), QueuedMessageNotFound),
    "owned by another": ((ACQUIRE,), Acquire(worker_id="x", run_id="s"), InvalidTransition),
    "owned by another than the dead": (
        (ACQUIRE,),
        Acquire(worker_id="x", run_id="s", dead_worker_id="y"),
        InvalidTransition,
    ),
    "late run": ((ACQUIRE,), FinishTurn(run_id="old", token="t", messages=(assistant("late"),)), ChatTaken),
    "interrupted run": (
        (ACQUIRE, STOP),
        RecordRetry(run_id="r", token="t", retry=RetryState(attempt=1, delay_seconds=1.0, error="busy")),
        Interrupted,
    ),
    "not interrupted": ((ACQUIRE,), FinishInterruption(run_id="r", token="t"), InvalidTransition),
}
"""What brings the chat to it (from an assistant's and a user's message), the command, and how it is refused."""


class StoreWrites(StoreTests):
    """Transitions, deletion, idempotency."""

    async def test_a_chat_is_made_with_its_messages(self) -> None:
        """What `create_chat` returned is what every read gives."""
        async with self.open(LIMITS) as store:
            outcome = await store.create_chat("c", Create(messages=(assistant("hello"), user("hi"))))
            view = await store.read_view("c", NO_MESSAGE)
            assert outcome.changed
            assert ("created", 1) == (outcome.answer.done, outcome.answer.snapshot_version)
            assert outcome.chat == view.chat == await store.read_chat("c")
            assert outcome.answer.messages == tuple(message.ref for message in view.messages)
            assert ["hello", "hi"] == texts(view.messages)
            assert {outcome.chat.created_at} == {message.created_at for message in view.messages}

    async def test_a_message_keeps_its_role(self) -> None:
        """In a view and in a list alike."""
        roles = ["assistant", "system", "tool", "user"]
        messages = tuple(NewMessage(role=role, content=text("x")) for role in roles)
        async with self.open(attrs.evolve(LIMITS, page_messages=len(roles))) as store:
            await store.create_chat("c", Create(messages=messages))
            view = await store.read_view("c", NO_MESSAGE)
            assert roles == [message.role for message in view.messages]
            assert list(view.messages) == await live_messages(store, "c")

    async def test_another_connection_sees_what_was_written(self) -> None:
        """At once, in every read, though it has read before: it looks at the database, not at a copy."""
        async with self.open(LIMITS) as store, self.open_again(store, LIMITS) as other:
            await store.create_chat("c", asked("q"))
            for command in (ACQUIRE, *FULL[:1], FinishTurn(run_id="r", token="1"), STOP):
                await store.apply("c", command)
                assert await Everything.of(store, "c") == await Everything.of(other, "c")
                assert await live_messages(store, "c") == await live_messages(other, "c")
                assert list(await store.list_chats()) == list(await other.list_chats())

    async def test_an_id_is_used_once(self) -> None:
        """A second chat of the same id is refused."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("first"))
            before = await Everything.of(store, "c")
            with pytest.raises(InvalidTransition):
                await store.create_chat("c", Create(messages=()))
            assert before == await Everything.of(store, "c")

    async def test_a_run_is_written_and_read_back(self) -> None:
        """After each transition of a run, the chat that was returned is the chat that is read."""
        retry = RetryState(attempt=1, delay_seconds=1.5, error="busy")
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"))
            await acquire(store, "c")
            for command in (
                RecordRetry(run_id="r", token="1", retry=retry),
                BeginAttempt(run_id="r", token="2"),
                Commit(run_id="r", token="3", messages=(assistant("tool"), assistant("result"))),
                FinishTurn(run_id="r", token="4", messages=(attrs.evolve(assistant("end"), truncated=True),)),
            ):
                outcome = await store.apply("c", command)
                assert outcome.changed
                assert outcome.chat == await store.read_chat("c")
                assert (command.token, outcome.answer) == (outcome.chat.last_token, outcome.chat.last_answer)
            messages = await live_messages(store, "c")
            assert ["q", "tool", "result", "end"] == texts(messages)
            assert [False, False, False, True] == [message.truncated for message in messages]

    async def test_a_retry_is_kept_until_the_next_attempt(self) -> None:
        """A late viewer sees the retry, and sees it go."""
        retry = RetryState(attempt=2, delay_seconds=0.25, error="busy")
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"))
            await acquire(store, "c")
            await store.apply("c", RecordRetry(run_id="r", token="1", retry=retry))
            assert (retry, True) == _trouble(await store.read_chat("c"))
            await store.apply("c", BeginAttempt(run_id="r", token="2"))
            assert (None, False) == _trouble(await store.read_chat("c"))

    async def test_a_failed_turn_keeps_its_error_and_its_partial(self) -> None:
        """`fail` parks the chat with its reason and marks what was generated; the next message takes the error away."""
        error = ChatError(kind="responder_failed", message="it broke")
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"))
            await acquire(store, "c")
            await store.apply("c", Fail(run_id="r", token="1", error=error, messages=(assistant("par"),)))
            view = await store.read_view("c", NO_MESSAGE)
            assert ("error", error, None) == (view.chat.status, view.chat.last_error, view.chat.worker_id)
            assert [False, True] == [message.interrupted for message in view.messages]
            await store.apply("c", SendMessage(content=text("again")))
            assert None is (await store.read_chat("c")).last_error

    async def test_the_queue_keeps_its_order(self) -> None:
        """Entries are read in the order of promotion, urgent ones first, and leave one by one."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"))
            await acquire(store, "c")
            for content, when_busy in (("one", "queue"), ("two", "queue"), ("urgent", "interrupt")):
                await store.apply("c", SendMessage(content=text(content), when_busy=when_busy))  # type: ignore[arg-type]
            queue = await store.read_queue("c")
            assert ["urgent", "one", "two"] == texts(queue)
            assert [True, False, False] == [entry.urgent for entry in queue]
            assert queue == (await store.read_view("c", NO_MESSAGE)).queue
            await store.apply("c", DeleteQueued(queued_id=queue[1].id))
            await store.apply("c", PromoteQueued(queued_id=queue[2].id))
            assert ["two", "urgent"] == texts(await store.read_queue("c"))
            await store.apply("c", FinishInterruption(run_id="r", token="1"))
            assert ["urgent"] == texts(await store.read_queue("c"))
            assert ["q", "two"] == texts(await live_messages(store, "c"))
            assert queue[2].id == (await live_messages(store, "c"))[-1].queued_id

    async def test_an_edit_deletes_the_suffix_and_the_queue(self) -> None:
        """The edited message and all after it are gone from what is live, the queue is empty, the run has lost."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", Create(messages=(user("a"), assistant("b"), user("c"))))
            await acquire(store, "c")
            await store.apply("c", SendMessage(content=text("queued")))
            outcome = await store.apply("c", EditMessage(message_id=1, content=text("A")))
            (message,) = await live_messages(store, "c")
            assert ("A", 4, outcome.answer.messages) == (texts([message])[0], message.id, (message.ref,))
            assert () == await store.read_queue("c")
            assert None is (await store.read_chat("c")).run_id
            with pytest.raises(ChatTaken):
                await store.apply("c", FinishTurn(run_id="r", token="t", messages=(assistant("late"),)))

    async def test_a_no_op_changes_nothing(self) -> None:
        """A command that has nothing to do says so."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", Create(messages=()))
            before = await Everything.of(store, "c")
            outcome = await store.apply("c", Interrupt(of=Episode(1, 1, "r")))
            assert (False, "nothing", before.chat) == (outcome.changed, outcome.answer.done, outcome.chat)
            assert before == await Everything.of(store, "c")

    @pytest.mark.parametrize("name", REFUSALS)
    async def test_a_refusal_changes_nothing(self, name: str) -> None:
        """A refused command leaves all that can be read as it was, and keeps no idempotency key."""
        commands, refused, reason = REFUSALS[name]
        key = IdempotencyKey(scope="c", key="k", request_hash="refused")
        async with self.open(LIMITS) as store:
            await store.create_chat("c", Create(messages=(assistant("hello"), user("hi"))))
            for command in commands:
                await store.apply("c", command)
            before = await Everything.of(store, "c")
            with pytest.raises(reason):
                await store.apply("c", refused, key)
            assert before == await Everything.of(store, "c")
            other = IdempotencyKey(scope="c", key="k", request_hash="allowed")
            assert (
                await store.apply("c", EditMessage(message_id=before.views[-2].base.id, content=text("x")), other)
            ).changed

    async def test_a_transition_asked_for_twice_happens_once(self) -> None:
        """The same token gives the first answer and changes nothing, over any connection."""
        async with self.open(LIMITS) as store, self.open_again(store, LIMITS) as other:
            await store.create_chat("c", asked("q"))
            await acquire(store, "c")
            command = FinishTurn(run_id="r", token="t", messages=(assistant("a"),))
            first = await store.apply("c", command)
            before = await Everything.of(store, "c")
            repeat = await other.apply("c", command)
            assert (False, first.answer) == (repeat.changed, repeat.answer)
            assert before == await Everything.of(store, "c")

    async def test_contents_survive(self) -> None:
        """Any JSON in a message or an entry is read as it was written."""
        content: Content = [
            {"type": "text", "text": "\u0000 \u2028 \U0001f984 \" \\ 'é'"},
            {"type": "data", "value": [1, -2.5, None, True, {"nested": {"": []}}], "big": 2**53 + 1},
        ]
        async with self.open(attrs.evolve(LIMITS, page_bytes=2**20)) as store:
            await store.create_chat("c", Create(messages=(attrs.evolve(user(""), content=content),)))
            await store.apply("c", SendMessage(content=content))
            view = await store.read_view("c", NO_MESSAGE)
            assert [content, content] == [view.messages[0].content, view.queue[0].content]

    async def test_concurrent_commands_are_one_after_the_other(self) -> None:
        """No update is lost: every command sees what the one before it left, over all connections."""
        settings = attrs.evolve(LIMITS, queue_entries=SENDERS * SENDS)

        async def send(store: Store) -> None:
            for _ in range(SENDS):
                outcome = await store.apply("c", SendMessage(content=text("more")))
                versions.append(outcome.answer.snapshot_version)

        async with self.open(settings) as store, self.open_again(store, settings) as other:
            await store.create_chat("c", asked("q"))
            versions = [1]
            async with trio.open_nursery() as nursery:
                for number in range(SENDERS):
                    nursery.start_soon(send, (store, other)[number % 2])
            assert list(range(1, SENDERS * SENDS + 2)) == sorted(versions)
            assert list(range(1, SENDERS * SENDS + 1)) == [entry.id for entry in await store.read_queue("c")]

    async def test_one_of_many_acquires(self) -> None:
        """Of workers that want the same chat at once, one gets it."""
        winners: list[str] = []

        async def try_to_acquire(store: Store, worker_id: str) -> None:
            try:
                await acquire(store, "c", worker_id=worker_id, run_id=f"run{worker_id}")
            except InvalidTransition:
                return
            winners.append(worker_id)

        async with self.open(LIMITS) as store, self.open_again(store, LIMITS) as other:
            await store.create_chat("c", asked("q"))
            async with trio.open_nursery() as nursery:
                for number in range(SENDERS):
                    nursery.start_soon(try_to_acquire, (store, other)[number % 2], str(number))
            assert winners == [(await store.read_chat("c")).worker_id]

    async def test_a_cancelled_caller_leaves_a_whole_state(self) -> None:
        """A transition whose caller is cancelled happens wholly or not at all, and the next one works."""
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"))
            with trio.CancelScope() as scope:
                scope.cancel()
                await store.apply("c", SendMessage(content=text("more")))
            chat = await store.read_chat("c")
            assert chat.snapshot_version - 1 == chat.next_queued_id - 1 == len(await store.read_queue("c"))
            assert (await store.apply("c", SendMessage(content=text("again")))).changed

    async def test_a_caller_that_is_cancelled_at_any_step(self) -> None:
        """However far it has come: its transition and its key are both kept or neither, and nobody waits for it."""
        settings = attrs.evolve(LIMITS, queue_entries=STEPS)
        async with self.open(settings) as store:
            await store.create_chat("c", asked("q"))
            for steps in range(STEPS):
                key = IdempotencyKey(scope="c", key=str(steps), request_hash="h")
                command = SendMessage(content=text(str(steps)))
                async with trio.open_nursery() as nursery:
                    scope = trio.CancelScope()
                    nursery.start_soon(cancel_after, scope, steps)
                    with scope:
                        await store.apply("c", command, key)
                with trio.fail_after(PATIENCE_SECONDS):
                    repeat = await store.apply("c", command, key)
                assert steps + 1 == repeat.answer.queued_id
                assert [str(number) for number in range(steps + 1)] == texts(await store.read_queue("c"))

    async def test_a_deleted_chat_is_gone(self) -> None:
        """Nothing of it is left; others stay, and a chat may have its id again."""
        key = IdempotencyKey(scope="c", key="k", request_hash="h")
        async with self.open(LIMITS) as store:
            for chat_id in ("c", "other"):
                await store.create_chat(chat_id, asked("q"))
                await acquire(store, chat_id)
            await store.apply("c", SendMessage(content=text("more")), key)
            before = await Everything.of(store, "other")
            await store.delete_chat("c")
            await self._assert_gone(store, "c")
            assert before.chat == (await Everything.of(store, "other")).chat
            assert ["other"] == [chat.chat_id for chat in await store.owned_by("w")]
            await store.create_chat("c", asked("new"))
            assert ["new"] == texts(await live_messages(store, "c"))
            assert (await store.apply("c", SendMessage(content=text("more")), key)).changed

    async def test_every_method_knows_that_a_chat_is_unknown(self) -> None:
        """What names a chat that was never made raises `ChatNotFound`."""
        async with self.open(LIMITS) as store:
            await self._assert_gone(store, "never")

    async def _assert_gone(self, store: Store, chat_id: str) -> None:
        for call in (
            lambda: store.apply(chat_id, SendMessage(content=text("x"))),
            lambda: store.apply(chat_id, Abandon(run_id="r", token="t")),
            lambda: store.delete_chat(chat_id),
            lambda: store.read_view(chat_id, NO_MESSAGE),
            lambda: store.read_chat(chat_id),
            lambda: store.read_queue(chat_id),
            lambda: store.list_messages(chat_id),
            lambda: store.list_chats(before=chat_id),
        ):
            with pytest.raises(ChatNotFound):
                await call()
        assert {} == await store.fingerprints([chat_id])

    # ------------------------------------------------------------------------------------- idempotency

    async def test_a_repeated_send_gives_the_first_answer(self) -> None:
        """The same key and content: nothing changes, whatever has happened since, over any connection."""
        key = IdempotencyKey(scope="c", key="k", request_hash="h")
        async with self.open(LIMITS) as store, self.open_again(store, LIMITS) as other:
            await store.create_chat("c", Create(messages=()))
            first = await store.apply("c", SendMessage(content=text("q")), key)
            await acquire(store, "c")
            before = await Everything.of(store, "c")
            repeat = await other.apply("c", SendMessage(content=text("q")), key)
            assert (False, first.answer, before.chat) == (repeat.changed, repeat.answer, repeat.chat)
            assert before == await Everything.of(store, "c")

    async def test_concurrent_repeats_happen_once(self) -> None:
        """A request that is sent again before its first answer has come is carried out once."""
        key = IdempotencyKey(scope="c", key="k", request_hash="h")
        changes: list[bool] = []

        async def send(store: Store) -> None:
            changes.append((await store.apply("c", SendMessage(content=text("q")), key)).changed)

        async with self.open(LIMITS) as store, self.open_again(store, LIMITS) as other:
            await store.create_chat("c", Create(messages=()))
            async with trio.open_nursery() as nursery:
                for number in range(SENDERS):
                    nursery.start_soon(send, (store, other)[number % 2])
            assert [True] == [changed for changed in changes if changed]
            assert ["q"] == texts(await live_messages(store, "c"))

    async def test_concurrent_creates_happen_once(self) -> None:
        """Of creates at once under one key, or of one id, one makes a chat."""
        key = IdempotencyKey(scope="ann", key="k", request_hash="h")
        changes: list[bool] = []

        async def create(store: Store, chat_id: str, key: IdempotencyKey | None) -> None:
            try:
                changes.append((await store.create_chat(chat_id, asked("q"), key)).changed)
            except InvalidTransition:
                changes.append(False)

        async with self.open(LIMITS) as store, self.open_again(store, LIMITS) as other:
            async with trio.open_nursery() as nursery:
                for number in range(SENDERS):
                    nursery.start_soon(create, (store, other)[number % 2], str(number), key)
            async with trio.open_nursery() as nursery:
                for number in range(SENDERS):
                    nursery.start_soon(create, (store, other)[number % 2], "same", None)
            assert [True, True] == [changed for changed in changes if changed]
            assert 2 == len(await store.list_chats())

    async def test_another_content_under_the_same_key_is_refused(self) -> None:
        """`IdempotencyConflict`, and nothing changes; the first content may still be repeated."""
        key = IdempotencyKey(scope="c", key="k", request_hash="h")
        async with self.open(LIMITS) as store:
            await store.create_chat("c", Create(messages=()))
            await store.apply("c", SendMessage(content=text("q")), key)
            before = await Everything.of(store, "c")
            with pytest.raises(IdempotencyConflict):
                await store.apply("c", SendMessage(content=text("x")), attrs.evolve(key, request_hash="other"))
            assert before == await Everything.of(store, "c")
            assert not (await store.apply("c", SendMessage(content=text("q")), key)).changed

    async def test_keys_of_different_chats_are_apart(self) -> None:
        """A key counts within its chat."""
        async with self.open(LIMITS) as store:
            for chat_id in ("a", "b"):
                await store.create_chat(chat_id, Create(messages=()))
                key = IdempotencyKey(scope=chat_id, key="k", request_hash=chat_id)
                assert (await store.apply(chat_id, SendMessage(content=text("q")), key)).changed

    async def test_a_repeated_create_gives_the_first_chat(self) -> None:
        """The second id is not used; another content is refused; keys of principals, and of chats, are apart."""
        key = IdempotencyKey(scope="ann", key="k", request_hash="h")
        async with self.open(LIMITS) as store:
            first = await store.create_chat("ann", asked("q"), key)
            repeat = await store.create_chat("second", asked("q"), key)
            assert (False, first.answer, first.chat) == (repeat.changed, repeat.answer, repeat.chat)
            with pytest.raises(IdempotencyConflict):
                await store.create_chat("third", asked("x"), attrs.evolve(key, request_hash="other"))
            assert ["ann"] == [chat.id for chat in await store.list_chats()]
            assert (await store.create_chat("bob's", asked("q"), attrs.evolve(key, scope="bob"))).changed
            assert (await store.apply("ann", SendMessage(content=text("more")), key)).changed

    async def test_a_repeated_create_does_not_bring_a_deleted_chat_back(self) -> None:
        """A late repeat of a create whose chat was deleted finds no chat, and makes none."""
        key = IdempotencyKey(scope="ann", key="k", request_hash="h")
        async with self.open(LIMITS) as store:
            await store.create_chat("c", asked("q"), key)
            await store.delete_chat("c")
            with pytest.raises(ChatNotFound):
                await store.create_chat("d", asked("q"), key)
            assert [] == list(await store.list_chats())


def _trouble(chat: Chat) -> tuple[RetryState | None, bool]:
    return chat.retry_state, chat.attempt_failed
