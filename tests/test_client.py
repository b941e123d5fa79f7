"""`ChatClient`: requests that are repeated without harm, and a stream that goes on over any number of connections.

Time is virtual; replicas are scripted, or the app itself in this process.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import WebSocketConnection, wrap_server_stream

from relaytrio._client_stream import ChatStream
from relaytrio._engine import open_engine
from relaytrio._errors import (
    ChatBusy,
    ChatDeleted,
    ChatNotFound,
    ConfigurationError,
    ContentTooLarge,
    IdempotencyConflict,
    InvalidContent,
    InvalidCursor,
    MessageNotFound,
    NotAllowed,
    NotEditable,
    QueuedMessageNotFound,
    RelaytrioError,
    ReplicaDraining,
    RequestFailed,
    StoreUnavailable,
    SubscriptionFailed,
    WireError,
)
from relaytrio._protocol import wire
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import CaughtUp, Episode, HistoryReset
from relaytrio._settings import Settings
from relaytrio.client import TRIES, ChatClient
from relaytrio.transport._problems import PROBLEMS, exception_of, problem_body

ONE, TWO, THREE = "http://one", "http://two", "http://three:8001/base"
SETTINGS = Settings()
ACCEPTED = {"done": "ok", "snapshot_version": 3}
CHAT: dict[str, Any] = {
    "id": "c",
    "status": "waiting",
    "worker_id": None,
    "snapshot_version": 1,
    "queue": [],
    "last_error": None,
    "retry": None,
    "created_at": "then",
    "updated_at": "now",
    "later": "a field of another version",
}

Answer = httpx.Response | Exception


@asynccontextmanager
async def scripted(*answers: Answer, urls: Any = (ONE, TWO), **options: Any) -> AsyncIterator[Scripted]:
    """A client whose tries are answered by the script, one after the other."""
    script = Scripted(iter(answers))
    async with httpx.AsyncClient(transport=httpx.MockTransport(script.answer)) as http:
        async with ChatClient(urls, http=http, random=lambda: 0.5, **options) as client:
            script.client = client
            yield script


@attrs.define
class Scripted:
    answers: Iterator[Answer]
    client: Any = None
    requests: list[httpx.Request] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(trio.current_time())
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def hosts(self) -> list[str]:
        return [request.url.host for request in self.requests]


def refused(error: Exception, **headers: str) -> httpx.Response:
    body = problem_body(error)
    return httpx.Response(body["status"], json=body, headers=headers)


# ------------------------------------------------------------------------------------------------ requests


async def test_every_request_against_the_app(autojump_clock: MockClock) -> None:
    """What the app answers is what the client gives, from creating a chat to deleting it."""
    async with open_engine("memory://") as engine:
        transport = httpx.ASGITransport(app=engine.asgi_app())
        async with httpx.AsyncClient(transport=transport) as http, ChatClient(ONE, http=http) as client:
            chat = await client.create_chat([user_message("hi"), {"role": "assistant", "content": "ho"}])
            assert "waiting" == chat.status
            sent = await client.send_message(chat.id, "again")
            assert sent.message is not None
            assert ("sent", 3, None) == (sent.done, sent.message.id, sent.queued)
            queued = await client.send_message(chat.id, "later")
            assert queued.queued is not None
            assert ("queued", None, 1) == (queued.done, queued.message, queued.queued.id)
            assert (queued.queued,) == await client.list_queue(chat.id)
            assert "deleted" == (await client.delete_queued(chat.id, 1)).done
            with pytest.raises(ChatBusy):
                await client.send_message(chat.id, "now", when_busy="reject")
            await client.send_message(chat.id, "later")
            assert "promoted" == (await client.promote_queued(chat.id, 2)).done
            stopped = await client.interrupt(chat.id, of=Episode(10**6, 1, "r"))
            assert "ok" == stopped.done
            assert stopped.snapshot_version == (await client.get_chat(chat.id)).snapshot_version
            edited = await client.edit_message(chat.id, 1, [{"type": "text", "text": "hello"}])
            assert edited.message is not None
            assert [edited.message] == list(await client.list_messages(chat.id))
            assert [chat.id] == [other.id for other in await client.list_chats(limit=10)]
            with pytest.raises(NotEditable):
                await edit_an_answer(client)
            await client.delete_chat(chat.id)
            with pytest.raises(ChatNotFound):
                await client.get_chat(chat.id)


async def edit_an_answer(client: ChatClient) -> None:
    chat = await client.create_chat([{"role": "assistant", "content": "ho"}])
    await client.edit_message(chat.id, 1, "x")


async def test_tries_share_one_idempotency_key(autojump_clock: MockClock) -> None:
    """create, send and edit are told to every replica as one and the same request."""
    lost = httpx.ReadError("lost")
    calls: list[tuple[httpx.Response, Callable[[ChatClient], Any]]] = [
        (httpx.Response(201, json=CHAT), lambda client: client.create_chat()),
        (httpx.Response(202, json=ACCEPTED), lambda client: client.send_message("c", "hi")),
        (httpx.Response(202, json=ACCEPTED), lambda client: client.edit_message("c", 1, "hi")),
    ]
    keys = set()
    for answer, call in calls:
        async with scripted(lost, httpx.Response(502), answer) as script:
            await call(script.client)
            assert ["one", "two", "one"] == script.hosts
            (key,) = {request.headers["idempotency-key"] for request in script.requests}
            (body,) = {request.content for request in script.requests}
            keys.add((key, body))
    assert 3 == len({body for _, body in keys})


async def test_keys_differ_between_requests(autojump_clock: MockClock) -> None:
    """The same message sent twice is two messages."""
    numbers = iter([0.1, 0.2, 0.3, 0.4])
    script = Scripted(iter([httpx.Response(202, json=ACCEPTED), httpx.Response(202, json=ACCEPTED)]))
    async with httpx.AsyncClient(transport=httpx.MockTransport(script.answer)) as http:
        async with ChatClient(ONE, http=http, random=lambda: next(numbers)) as client:
            await client.send_message("c", "hi")
            await client.send_message("c", "hi")
    first, second = (request.headers["idempotency-key"] for request in script.requests)
    assert first != second


async def test_a_key_of_the_callers_own_is_used(autojump_clock: MockClock) -> None:
    """A program that repeats by itself keeps its key."""
    async with scripted(httpx.Response(202, json=ACCEPTED)) as script:
        await script.client.send_message("c", "hi", idempotency_key="mine")
        assert "mine" == script.requests[0].headers["idempotency-key"]


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_passing_refusal_is_tried_again_after_its_time(status: int, autojump_clock: MockClock) -> None:
    """`Retry-After` is waited for, then another address is asked."""
    answer = httpx.Response(status, headers={"Retry-After": "7"})
    async with scripted(answer, httpx.Response(200, json=CHAT)) as script:
        assert "c" == (await script.client.get_chat("c")).id
        assert ["one", "two"] == script.hosts
        assert 7 <= script.times[1] < 8


async def test_a_request_gives_up_after_its_tries(autojump_clock: MockClock) -> None:
    """The last refusal is what is raised, with growing delays before it; or that there was no answer at all."""
    async with scripted(*[refused(StoreUnavailable("down"))] * TRIES) as script:
        with pytest.raises(StoreUnavailable):
            await script.client.get_chat("c")
        assert TRIES == len(script.requests)
        gaps = [later - sooner for sooner, later in zip(script.times, script.times[1:], strict=False)]
        assert sorted(gaps) == gaps
    async with scripted(*[httpx.ConnectError("no")] * TRIES) as script:
        with pytest.raises(RequestFailed, match="no answer: ConnectError"):
            await script.client.get_chat("c")


async def test_an_interrupt_without_an_episode_is_not_repeated(autojump_clock: MockClock) -> None:
    """Done twice it could stop the next answer too: it is tried again only if it was surely never sent."""
    done = httpx.Response(202, json={"done": "interrupting", "snapshot_version": 3})
    async with scripted(httpx.ReadError("lost")) as script:
        with pytest.raises(RequestFailed):
            await script.client.interrupt("c")
    async with scripted(httpx.Response(503)) as script:
        with pytest.raises(RequestFailed) as failed:
            await script.client.interrupt("c")
        assert 503 == failed.value.status
    async with scripted(httpx.ConnectError("no"), done) as script:
        assert "interrupting" == (await script.client.interrupt("c")).done
    async with scripted(httpx.ReadError("lost"), done) as script:
        assert "interrupting" == (await script.client.interrupt("c", of=Episode(1, 1, "r"))).done


async def test_a_delete_whose_answer_was_lost_is_done(autojump_clock: MockClock) -> None:
    """404 at a repeat says that it is gone; at the first try it says that it never was."""
    gone = refused(ChatNotFound("gone"))
    async with scripted(httpx.ReadTimeout("lost"), gone) as script:
        await script.client.delete_chat("c")
    async with scripted(httpx.ConnectError("no"), gone) as script:
        with pytest.raises(ChatNotFound):
            await script.client.delete_chat("c")


@pytest.mark.parametrize(
    "error",
    [
        InvalidContent("bad"),
        ContentTooLarge("large"),
        IdempotencyConflict("key"),
        MessageNotFound("none"),
        QueuedMessageNotFound("none"),
        NotAllowed("no"),
    ],
)
async def test_a_refusal_is_the_exception_that_the_engine_raised(
    error: RelaytrioError, autojump_clock: MockClock
) -> None:
    """Over HTTP the same `except` works as around the engine, with the same text, and nothing is tried again."""
    async with scripted(refused(error)) as script:
        with pytest.raises(type(error)) as raised:
            await script.client.send_message("c", "hi")
        assert type(error) is type(raised.value)
        assert str(error) == str(raised.value)
        assert 1 == len(script.requests)


def test_every_problem_that_is_not_the_transports_becomes_its_exception() -> None:
    """The table is read in both directions."""
    public = importlib.import_module("relaytrio._errors")
    for problem in PROBLEMS:
        known = exception_of({"type": problem.type, "detail": "why"})
        if hasattr(public, problem.exception.__name__):
            assert problem.exception is type(known)
        else:
            assert known is None
    assert isinstance(exception_of(problem_body(ReplicaDraining(1.0)), 2.0), ReplicaDraining)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(500, text="oops"), RequestFailed),
        (httpx.Response(404, text="<html>"), RequestFailed),
        (httpx.Response(404, json={"type": ["strange"]}), RequestFailed),
        (httpx.Response(401), NotAllowed),
        (httpx.Response(403, json=[]), NotAllowed),
        (httpx.Response(200, text="<html>"), RequestFailed),
        (httpx.Response(200, json={"id": "c"}), RequestFailed),
        (httpx.Response(200, json=[1]), RequestFailed),
    ],
)
async def test_an_answer_of_something_else_is_told_as_such(
    answer: httpx.Response, error: type[Exception], autojump_clock: MockClock
) -> None:
    """A proxy's page is neither a chat nor a crash."""
    async with scripted(answer) as script:
        with pytest.raises(error):
            await script.client.get_chat("c")


async def test_headers_and_ids_go_into_the_request(autojump_clock: MockClock) -> None:
    """What the program names goes with every request; an id is one part of the path whatever is in it."""
    answer = httpx.Response(200, json=CHAT)
    async with scripted(answer, urls=THREE, headers={"Authorization": "Bearer t"}) as script:
        await script.client.get_chat("a/b c")
        assert "/base/v1/chats/a%2Fb%20c" == script.requests[0].url.raw_path.decode()
        assert "Bearer t" == script.requests[0].headers["authorization"]


@pytest.mark.parametrize("urls", [[], "ftp://one", "http://", ["http://one", "nonsense"]])
def test_an_address_that_is_none_is_refused_at_once(urls: Any) -> None:
    """What can never work is no matter of retries."""
    with pytest.raises(ConfigurationError):
        ChatClient(urls)


def test_a_header_that_is_none_is_refused_at_once() -> None:
    """Its value may be a secret, and is not repeated."""
    with pytest.raises(ConfigurationError) as refused:
        ChatClient(ONE, headers={"Authorization": "secret\r\nX: y"})
    assert "secret" not in str(refused.value)


async def test_a_client_that_was_not_entered_says_so(autojump_clock: MockClock) -> None:
    """It has nothing to ask with."""
    with pytest.raises(ConfigurationError, match="context manager"):
        await ChatClient(ONE).get_chat("c")


# -------------------------------------------------------------------------------------------------- stream


@attrs.define
class Replica:
    """The other end of one connection of the stream."""

    host: str
    path: str
    connection: WebSocketConnection
    at: float

    async def send(self, *events: Any) -> None:
        await self.connection.send_message(wire.encode_frame([wire.encode_event(event) for event in events]).decode())

    async def close(self, code: int, reason: str = "") -> None:
        await self.connection.aclose(code, reason)


class Cluster:
    """Scripted replicas: the test accepts the stream's connections one by one."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.dials: list[str] = []
        self.unreachable: set[str] = set()
        self.hanging: set[str] = set()
        self.mute: set[str] = set()
        self._nursery = nursery
        self._waiting, self._connections = trio.open_memory_channel[tuple[str, trio.abc.Stream]](100)

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        self.dials.append(host)
        await trio.lowlevel.checkpoint()
        if host in self.hanging:
            await trio.sleep_forever()
        if host in self.unreachable:
            raise OSError("unreachable")
        ours, theirs = memory_stream_pair()
        if host not in self.mute:
            self._waiting.send_nowait((host, ours))
        return theirs

    async def accept(self) -> Replica:
        """The next connection, opened."""
        host, stream = await self._connections.receive()
        request = await wrap_server_stream(self._nursery, stream)
        connection = await request.accept()
        await wait_all_tasks_blocked()
        return Replica(host, request.path, connection, trio.current_time())

    async def refuse(self, status: int, body: bytes = b"", **headers: str) -> float:
        """The next connection, refused; gives when it came."""
        _, stream = await self._connections.receive()
        request = await wrap_server_stream(self._nursery, stream)
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await request.reject(status, extra_headers=named, body=body)
        return trio.current_time()


@asynccontextmanager
async def open_cluster() -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        yield Cluster(nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def streaming(
    *, urls: Any = (ONE, TWO, THREE), chat_id: str = "c", **options: Any
) -> AsyncIterator[tuple[Cluster, ChatStream]]:
    async with open_cluster() as cluster:
        client = ChatClient(urls, random=lambda: 0.5, open_stream=cluster.open_stream)
        async with client.stream(chat_id, **options) as stream:
            yield cluster, stream


def event(number: int) -> HistoryReset:
    """An event that can be told from others."""
    return HistoryReset(after_id=number, cursor=f"{number}-aaaaa")


async def test_events_come_decoded_with_their_cursor(autojump_clock: MockClock) -> None:
    """The stream's cursor is that of the last event that was taken, not of what has come."""
    async with streaming() as (cluster, stream):
        replica = await cluster.accept()
        assert ("/v1/chats/c/stream", ONE) == (replica.path, stream.url)
        await replica.send(event(1), event(2), CaughtUp(cursor="2-aaaaa"))
        assert event(1) == await anext(stream)
        assert "1-aaaaa" == stream.cursor
        assert [event(2), CaughtUp(cursor="2-aaaaa")] == [await anext(stream), await anext(stream)]


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({}, ""),
        ({"cursor": "1-aaaaa"}, "?cursor=1-aaaaa"),
        ({"after_message_id": 7}, "?after_message_id=7"),
        ({"cursor": "1-aaaaa", "after_message_id": 7}, "?cursor=1-aaaaa"),
    ],
)
async def test_a_stream_begins_where_it_is_told(options: Any, query: str, autojump_clock: MockClock) -> None:
    """A cursor, or the last message that the viewer knows."""
    async with streaming(**options) as (cluster, _):
        assert f"/v1/chats/c/stream{query}" == (await cluster.accept()).path


async def test_a_lost_connection_is_replaced_from_its_cursor(autojump_clock: MockClock) -> None:
    """At the next address, after a short delay, from the last event that came: even one that was not taken yet."""
    async with streaming(after_message_id=3) as (cluster, stream):
        replica = await cluster.accept()
        await replica.send(event(1))
        await replica.send(event(2))
        assert event(1) == await anext(stream)
        await stream.cut()
        await wait_all_tasks_blocked()
        assert stream.url is None
        other = await cluster.accept()
        assert ("two", "/v1/chats/c/stream?cursor=2-aaaaa") == (other.host, other.path)
        assert SETTINGS.dial_retry_seconds * 0.5 == other.at - replica.at
        await other.send(event(3))
        assert (event(2), 0) == (await anext(stream), stream.reconnects)
        assert (event(3), 1) == (await anext(stream), stream.reconnects)


async def test_a_connection_before_the_first_event_begins_anew(autojump_clock: MockClock) -> None:
    """Without an event there is no cursor: the viewer's own beginning stands."""
    async with streaming(after_message_id=3) as (cluster, stream):
        await cluster.accept()
        await stream.cut()
        assert "/v1/chats/c/stream?after_message_id=3" == (await cluster.accept()).path


@pytest.mark.parametrize(("code", "host"), [(1000, "two"), (1001, "two"), (1011, "two"), (4003, "one")])
async def test_a_close_that_is_not_final_is_followed_by_a_connection(
    code: int, host: str, autojump_clock: MockClock
) -> None:
    """Elsewhere, but for a viewer who was too slow: that is no fault of the replica's."""
    async with streaming() as (cluster, _):
        await (await cluster.accept()).close(code)
        assert host == (await cluster.accept()).host


async def test_a_draining_replica_is_left_when_and_as_it_says(autojump_clock: MockClock) -> None:
    """4004: wait the milliseconds, then another address."""
    async with streaming() as (cluster, _):
        replica = await cluster.accept()
        await replica.close(4004, "1700")
        other = await cluster.accept()
        assert ("two", 1.7) == (other.host, other.at - replica.at)


@pytest.mark.parametrize("reason", ["", "soon", "-1", "9" * 10])
async def test_a_draining_replica_that_names_no_time_is_left_as_usual(reason: str, autojump_clock: MockClock) -> None:
    """A reason that is no number of milliseconds is none."""
    async with streaming() as (cluster, _):
        await (await cluster.accept()).close(4004, reason)
        other = await cluster.accept()
        assert ("two", 0.25) == (other.host, other.at)


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (4001, "", NotAllowed),
        (4005, "", ChatDeleted),
        (4006, "invalid-cursor", InvalidCursor),
        (4006, "invalid-frame", WireError),
        (1009, "", WireError),
    ],
)
async def test_a_final_close_ends_the_stream(
    code: int, reason: str, error: type[Exception], autojump_clock: MockClock
) -> None:
    """What came before it can still be taken; then it is an exception, every time."""
    async with streaming() as (cluster, stream):
        replica = await cluster.accept()
        await replica.send(event(1))
        await replica.close(code, reason)
        assert event(1) == await anext(stream)
        for _ in range(2):
            with pytest.raises(error):
                await anext(stream)
        assert ["one"] == cluster.dials


async def test_a_frame_that_is_none_ends_the_stream(autojump_clock: MockClock) -> None:
    """Asked for again it would come again."""
    async with streaming() as (cluster, stream):
        await (await cluster.accept()).connection.send_message("{}")
        with pytest.raises(WireError):
            await anext(stream)


async def test_an_unknown_chat_is_told_apart_from_one_that_was_deleted(autojump_clock: MockClock) -> None:
    """404 at the first connection, and after one."""
    body = httpx.Response(404, json=problem_body(ChatNotFound("no such chat"))).content
    async with streaming() as (cluster, stream):
        await cluster.refuse(404, body)
        with pytest.raises(ChatNotFound):
            await anext(stream)
    async with streaming() as (cluster, stream):
        await cluster.accept()
        await stream.cut()
        await cluster.refuse(404, body)
        with pytest.raises(ChatDeleted):
            await anext(stream)


@pytest.mark.parametrize(("status", "error"), [(401, NotAllowed), (403, NotAllowed), (404, RequestFailed)])
async def test_a_refusal_that_stands_ends_the_stream(
    status: int, error: type[Exception], autojump_clock: MockClock
) -> None:
    """A replica, or what is in front of it, that says no does not say otherwise the next time."""
    async with streaming() as (cluster, stream):
        await cluster.refuse(status)
        with pytest.raises(error):
            await anext(stream)


async def test_a_refusal_that_passes_is_waited_for(autojump_clock: MockClock) -> None:
    """503 with a time to wait, then elsewhere; 500 without one as usual."""
    async with streaming() as (cluster, _):
        refused_at = await cluster.refuse(503, Retry_After="4")
        assert 4 <= await cluster.refuse(500) - refused_at < 5
        assert "three" == (await cluster.accept()).host


async def test_addresses_that_do_not_answer_are_passed_over(autojump_clock: MockClock) -> None:
    """Unreachable, or silent in the handshake: the next one is tried, and so on around, ever more slowly."""
    async with streaming() as (cluster, stream):
        cluster.unreachable.update({"one", "three"})
        cluster.mute.add("two")
        with trio.move_on_after(600):
            await anext(stream)
        assert ["one", "two", "three", "one"] == cluster.dials[:4]
        assert 40 < len(cluster.dials) < 100
        assert stream.url is None
        cluster.unreachable.clear()
        cluster.mute.clear()
        replica = await cluster.accept()
        await replica.send(event(1))
        assert event(1) == await anext(stream)
        assert 0 == stream.reconnects


async def test_a_connection_that_is_silent_is_dead(autojump_clock: MockClock) -> None:
    """45 s without a frame, and there is another one; heartbeats keep it."""
    async with streaming() as (cluster, _):
        replica = await cluster.accept()
        for _ in range(20):
            await trio.sleep(40)
            await replica.connection.send_message("[]")
        kept_at = trio.current_time()
        other = await cluster.accept()
        assert ("two", 45.25) == (other.host, other.at - kept_at)


async def test_the_client_sends_heartbeats(autojump_clock: MockClock) -> None:
    """Every 15 s: the replica, too, must know whether there is anybody."""
    async with streaming() as (cluster, _):
        replica = await cluster.accept()
        for beat in (1, 2):
            assert "[]" == await replica.connection.get_message()
            assert beat * SETTINGS.application_heartbeat_seconds == trio.current_time()


async def test_a_slow_viewer_holds_up_the_replica_and_not_the_memory(autojump_clock: MockClock) -> None:
    """What is not taken is not read: of many large frames only a few are here, and none is lost."""
    async with streaming() as (cluster, stream):
        replica = await cluster.accept()
        for number in range(1, 101):
            await replica.send(event(number))
        await wait_all_tasks_blocked()
        assert 2 == stream._received.statistics().current_buffer_used
        assert list(range(1, 101)) == [(await anext(stream)).after_id for _ in range(100)]  # type: ignore[union-attr]


async def test_a_preferred_address_is_the_next_one(autojump_clock: MockClock) -> None:
    """At the beginning, and later."""
    async with streaming(prefer=THREE) as (cluster, stream):
        replica = await cluster.accept()
        assert ("three", "/base/v1/chats/c/stream") == (replica.host, replica.path)
        stream.prefer(TWO)
        await replica.close(4003)
        assert "two" == (await cluster.accept()).host
        with pytest.raises(ConfigurationError):
            stream.prefer("http://four")


@pytest.mark.parametrize("where", ["dial", "handshake", "open", "waiting"])
async def test_a_stream_can_be_left_at_any_moment(where: str, autojump_clock: MockClock) -> None:
    """At once, with the viewer's own exception as it was, and with no task left."""
    async with open_cluster() as cluster:
        if where == "dial":
            cluster.hanging.add("one")
        if where == "handshake":
            cluster.mute.add("one")
        tasks = trio.lowlevel.current_statistics().tasks_living
        with pytest.raises(KeyError) as raised:
            async with ChatClient(ONE, open_stream=cluster.open_stream).stream("c") as stream:
                replica = await cluster.accept() if where in ("open", "waiting") else None
                if replica is not None and where == "waiting":
                    await replica.close(4004, "5000")
                await wait_all_tasks_blocked()
                raise KeyError("mine")
        assert raised.value.__context__ is None
        assert 0 == trio.current_time()
        await wait_all_tasks_blocked()
        assert tasks == trio.lowlevel.current_statistics().tasks_living
        with pytest.raises(trio.ClosedResourceError):
            await anext(stream)


async def test_a_stream_is_read_inside_of_its_context(autojump_clock: MockClock) -> None:
    """One that was never entered would wait for ever: that is told to the caller."""
    with pytest.raises(ConfigurationError, match="async with"):
        await anext(ChatClient(ONE).stream("c"))


async def test_a_failure_of_its_own_is_told_as_such(autojump_clock: MockClock) -> None:
    """Something that nobody foresaw cancels the body and has its cause."""

    async def broken(host: str, port: int) -> trio.abc.Stream:
        raise ZeroDivisionError

    client = ChatClient(ONE, open_stream=broken)
    with pytest.raises(SubscriptionFailed) as failed:
        async with client.stream("c") as stream:
            await anext(stream)
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


def test_the_client_needs_no_server() -> None:
    """It is there without the extra: nothing that it imports imports Starlette or Hypercorn."""
    root = Path(importlib.import_module("relaytrio").__file__ or "").parent
    seen: set[Path] = set()
    todo = [root / "client.py"]
    while todo:
        file = todo.pop()
        if file in seen or not file.exists():
            continue
        seen.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                assert not {"starlette", "hypercorn"} & {name.split(".")[0] for name in names}
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("starlette", "hypercorn")
                base = file.parents[node.level - 1] if node.level else root.parent
                todo.append(base.joinpath(*(node.module or "").split(".")).with_suffix(".py"))
    assert root / "transport" / "_problems.py" in seen
