"""The HTTP routes: what each answers, and that every refusal has its status and type and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import pytest
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.types import Message

from relaytrio._engine import Engine, open_engine
from relaytrio._errors import StoreUnavailable
from relaytrio._protocol.chat import Acquire, Fail
from relaytrio._protocol.events import ChatError, Episode
from relaytrio._settings import Settings
from relaytrio.transport._problems import PROBLEMS, TYPE_PREFIX
from tests.transport.asgi_driver import http_client, scope_of

SMALL = Settings(message_bytes=2000, client_frame_bytes=4000, queue_entries=2)
TEXT = [{"type": "text", "text": "hi"}]


@attrs.define
class Site:
    engine: Engine
    http: httpx.AsyncClient

    async def create(self, *texts: str) -> str:
        body = {"messages": [{"role": "user", "content": text} for text in texts]}
        answer = await self.http.post("/v1/chats", json=body)
        assert answer.status_code == 201
        chat_id: str = answer.json()["id"]
        return chat_id

    async def snapshot(self, chat_id: str) -> tuple[Any, ...]:
        """All that the store has of the chat."""
        chat = await self.engine.get_chat(chat_id)
        return chat, await self.engine.list_messages(chat_id), await self.engine.list_queue(chat_id)


@asynccontextmanager
async def open_site(settings: Settings = SMALL, **options: Any) -> AsyncIterator[Site]:
    async with open_engine("memory://", settings=settings) as engine:
        async with http_client(engine.asgi_app(**options)) as http:
            yield Site(engine, http)


def problem(answer: httpx.Response) -> tuple[int, str]:
    """The status and the name of a refusal, which is a problem in form too."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) >= {"type", "title", "status"}
    assert body["status"] == answer.status_code
    return answer.status_code, body["type"].removeprefix(TYPE_PREFIX)


# ------------------------------------------------------------------------------------------------ answers


async def test_create_answers_the_chat_and_where_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """A new chat is 201, with its Location and all that is told of a chat."""
    async with open_site() as site:
        answer = await site.http.post("/v1/chats", json={"messages": [{"role": "user", "content": "hi"}]})
        chat = answer.json()
        assert 201 == answer.status_code
        assert f"/v1/chats/{chat['id']}" == answer.headers["location"]
        assert "running" == chat["status"]
        fields = {"id", "status", "worker_id", "snapshot_version", "queue", "last_error", "retry"}
        assert fields | {"created_at", "updated_at"} == set(chat)
        assert chat == (await site.http.get(answer.headers["location"])).json()


async def test_location_respects_a_prefix(autojump_clock: trio.testing.MockClock) -> None:
    """Mounted below a prefix, the app names paths that the client can use."""
    async with open_engine("memory://") as engine:
        outer = Starlette(routes=[Mount("/api", engine.asgi_app())])
        async with http_client(outer) as http:
            answer = await http.post("/api/v1/chats", json={})
            assert answer.headers["location"].startswith("/api/v1/chats/")
            assert 200 == (await http.get(answer.headers["location"])).status_code
            assert (404, "route-not-found") == problem(await http.get("/api/v1/nothing"))


async def test_a_chat_without_messages_waits(autojump_clock: trio.testing.MockClock) -> None:
    """A chat may begin empty."""
    async with open_site() as site:
        assert "waiting" == (await site.http.post("/v1/chats", json={})).json()["status"]


async def test_chats_are_listed_by_pages_newest_first(autojump_clock: trio.testing.MockClock) -> None:
    """The last id of a page asks for the next one."""
    async with open_site() as site:
        ids = [await site.create("hi") for _ in range(5)]
        first = (await site.http.get("/v1/chats?limit=3")).json()["chats"]
        rest = (await site.http.get(f"/v1/chats?limit=3&before={first[-1]['id']}")).json()["chats"]
        assert ids[::-1] == [chat["id"] for chat in first + rest]


async def test_messages_are_listed_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """Messages have the fields of their events, and a page follows another."""
    async with open_site() as site:
        chat_id = await site.create("one", "two", "three")
        page = (await site.http.get(f"/v1/chats/{chat_id}/messages?limit=2")).json()["messages"]
        rest = (await site.http.get(f"/v1/chats/{chat_id}/messages?after_id={page[-1]['id']}")).json()["messages"]
        assert ["one", "two", "three"] == [message["content"][0]["text"] for message in page + rest]
        fields = {"id", "role", "content", "version", "interrupted", "truncated", "queued_id", "created_at"}
        assert fields == set(page[0])


async def test_send_to_a_waiting_chat_answers_the_message(autojump_clock: trio.testing.MockClock) -> None:
    """202 says what entered the history, and the version of the status to wait for."""
    async with open_site() as site:
        chat_id = await site.create()
        answer = await site.http.post(f"/v1/chats/{chat_id}/messages", json={"content": "hi"})
        body = answer.json()
        assert (202, "sent", None) == (answer.status_code, body["done"], body["queued"])
        stored = (await site.http.get(f"/v1/chats/{chat_id}/messages")).json()["messages"]
        assert stored == [body["message"]]
        assert (await site.engine.get_chat(chat_id)).snapshot_version == body["snapshot_version"]


async def test_send_to_a_busy_chat_answers_the_queue_entry(autojump_clock: trio.testing.MockClock) -> None:
    """What has to wait is a queue entry, and the queue shows it."""
    async with open_site() as site:
        chat_id = await site.create("hi")
        body = (await site.http.post(f"/v1/chats/{chat_id}/messages", json={"content": TEXT})).json()
        assert ("queued", None, {"id": 1, "content": TEXT}) == (body["done"], body["message"], body["queued"])
        assert [body["queued"]] == (await site.http.get(f"/v1/chats/{chat_id}/queue")).json()["queue"]
        assert [body["queued"]] == (await site.http.get(f"/v1/chats/{chat_id}")).json()["queue"]


async def test_a_message_that_interrupts_nobody_enters_the_history(autojump_clock: trio.testing.MockClock) -> None:
    """The answer is the message, with the queue entry that it was."""
    async with open_site() as site:
        chat_id = await site.create("hi")
        body = {"content": "stop", "when_busy": "interrupt"}
        sent = (await site.http.post(f"/v1/chats/{chat_id}/messages", json=body)).json()
        assert ("sent", 1, None) == (sent["done"], sent["message"]["queued_id"], sent["queued"])
        stored = (await site.http.get(f"/v1/chats/{chat_id}/messages")).json()["messages"]
        assert stored[-1] == sent["message"]


async def test_a_message_behind_a_parked_queue_is_an_entry(autojump_clock: trio.testing.MockClock) -> None:
    """In `error` the head of the queue is promoted first; the answer is the entry of the one that was sent."""
    async with open_site() as site:
        chat_id = await site.create("hi")
        await site.http.post(f"/v1/chats/{chat_id}/messages", json={"content": "second"})
        await park(site.engine, chat_id)
        chat = (await site.http.get(f"/v1/chats/{chat_id}")).json()
        assert ("error", {"kind": "responder_failed", "message": "it failed"}) == (chat["status"], chat["last_error"])
        sent = (await site.http.post(f"/v1/chats/{chat_id}/messages", json={"content": "third"})).json()
        assert ("queued", None, 2) == (sent["done"], sent["message"], sent["queued"]["id"])


async def test_edit_answers_the_replacement(autojump_clock: trio.testing.MockClock) -> None:
    """An edit gives a message of a new id."""
    async with open_site() as site:
        chat_id = await site.create("hi")
        answer = await site.http.patch(f"/v1/chats/{chat_id}/messages/1", json={"content": "ho"})
        body = answer.json()
        assert (202, "edited", 2) == (answer.status_code, body["done"], body["message"]["id"])
        assert [body["message"]] == (await site.http.get(f"/v1/chats/{chat_id}/messages")).json()["messages"]


async def test_interrupt_says_what_it_did(autojump_clock: trio.testing.MockClock) -> None:
    """`ok` where nobody generates, `interrupting` where somebody does, `nothing` where there is nothing to stop."""
    async with open_site() as site:
        chat_id = await site.create("hi")
        assert "ok" == (await site.http.post(f"/v1/chats/{chat_id}/interrupt")).json()["done"]
        assert "nothing" == (await site.http.post(f"/v1/chats/{chat_id}/interrupt", json={})).json()["done"]
        await site.http.post(f"/v1/chats/{chat_id}/messages", json={"content": "again"})
        await acquire(site.engine, chat_id)
        old = {"of": [1, 1, "r"]}
        assert "nothing" == (await site.http.post(f"/v1/chats/{chat_id}/interrupt", json=old)).json()["done"]
        answer = await site.http.post(f"/v1/chats/{chat_id}/interrupt", json={"of": None})
        assert (202, "interrupting") == (answer.status_code, answer.json()["done"])


async def test_queue_entries_are_deleted_and_promoted(autojump_clock: trio.testing.MockClock) -> None:
    """Both answer what was done and the queue that is left."""
    async with open_site() as site:
        chat_id = await site.create("hi")
        for text in ("one", "two"):
            await site.http.post(f"/v1/chats/{chat_id}/messages", json={"content": text})
        deleted = await site.http.delete(f"/v1/chats/{chat_id}/queue/1")
        assert (200, "deleted", [2]) == (
            deleted.status_code,
            deleted.json()["done"],
            [entry["id"] for entry in deleted.json()["queue"]],
        )
        promoted = await site.http.post(f"/v1/chats/{chat_id}/queue/2/promote")
        assert (202, "promoted", []) == (promoted.status_code, promoted.json()["done"], promoted.json()["queue"])


async def test_a_deleted_chat_is_gone(autojump_clock: trio.testing.MockClock) -> None:
    """Delete is 204, and from then on 404."""
    async with open_site() as site:
        chat_id = await site.create("hi")
        assert 204 == (await site.http.delete(f"/v1/chats/{chat_id}")).status_code
        assert (404, "chat-not-found") == problem(await site.http.get(f"/v1/chats/{chat_id}"))
        assert (404, "chat-not-found") == problem(await site.http.delete(f"/v1/chats/{chat_id}"))


async def test_answers_are_kept_by_no_cache(autojump_clock: trio.testing.MockClock) -> None:
    """A chat changes: neither an answer nor a refusal may be repeated by a proxy."""
    async with open_site() as site:
        for answer in (await site.http.get("/v1/chats"), await site.http.get("/v1/chats/none")):
            assert "no-store" == answer.headers["cache-control"]


# --------------------------------------------------------------------------------------------- idempotency


async def test_a_repeated_key_gives_the_first_answer(autojump_clock: trio.testing.MockClock) -> None:
    """create, send and edit under a key that was used do nothing a second time."""
    async with open_site() as site:
        key = {"Idempotency-Key": "k"}
        chats = [(await site.http.post("/v1/chats", json={}, headers=key)).json() for _ in range(2)]
        assert chats[0] == chats[1]
        path = f"/v1/chats/{chats[0]['id']}/messages"
        sent = [(await site.http.post(path, json={"content": "hi"}, headers=key)).json() for _ in range(2)]
        assert sent[0] == sent[1]
        headers = {"Idempotency-Key": "edit"}
        edited = [
            (await site.http.patch(f"{path}/1", json={"content": "ho"}, headers=headers)).json() for _ in range(2)
        ]
        assert edited[0] == edited[1]
        assert 1 == len((await site.http.get(path)).json()["messages"])


async def test_the_principal_is_part_of_the_key_of_create(autojump_clock: trio.testing.MockClock) -> None:
    """Two principals may choose the same key; the same one gets the same chat."""

    def who(request: HTTPConnection, chat_id: str | None, action: str) -> object:
        return request.headers["x-user"]

    async with open_site(authorize=who) as site:

        async def create(user: str) -> str:
            headers = {"Idempotency-Key": "k", "X-User": user}
            chat_id: str = (await site.http.post("/v1/chats", json={}, headers=headers)).json()["id"]
            return chat_id

        assert await create("ann") == await create("ann")
        assert await create("ann") != await create("bob")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"content": "hi"}),
        ("PATCH", "/messages/1", {"content": "hi"}),
        ("POST", "/interrupt", {}),
        ("GET", "/queue", None),
        ("DELETE", "/queue/1", None),
        ("POST", "/queue/1/promote", None),
        ("GET", "/stream", None),
        ("HEAD", "/stream", None),
    ],
)
@pytest.mark.parametrize("chat_id", ["00000000-0000-4000-8000-000000000000", "%00", "x" * 300])
async def test_an_unknown_chat_is_404(
    chat_id: str, method: str, path: str, body: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """On every route, also for ids that no store could hold."""
    async with open_site() as site:
        answer = await site.http.request(method, f"/v1/chats/{chat_id}{path}", json=body)
        assert 404 == answer.status_code
        if method != "HEAD":
            assert (404, "chat-not-found") == problem(answer)


JSON = {"Content-Type": "application/json"}
BAD: dict[str, tuple[str, str, dict[str, Any], tuple[int, str]]] = {
    "no JSON": ("POST", "/messages", {"content": b"{", "headers": JSON}, (400, "malformed-request")),
    "no UTF-8": ("POST", "/messages", {"content": b'{"content": "\xff"}', "headers": JSON}, (400, "malformed-request")),
    "a list": ("POST", "/messages", {"json": []}, (400, "malformed-request")),
    "nested for ever": (
        "POST",
        "/messages",
        {"content": b'{"content":' + b"[" * 3000, "headers": JSON},
        (400, "malformed-request"),
    ),
    "no body": ("POST", "/messages", {"content": b"", "headers": JSON}, (400, "malformed-request")),
    "no content": ("POST", "/messages", {"json": {}}, (400, "malformed-request")),
    "when_busy": ("POST", "/messages", {"json": {"content": "x", "when_busy": "never"}}, (400, "malformed-request")),
    "of": ("POST", "/interrupt", {"json": {"of": [1]}}, (400, "malformed-request")),
    "a number as content": ("POST", "/messages", {"json": {"content": 7}}, (422, "invalid-content")),
    "empty content": ("POST", "/messages", {"json": {"content": []}}, (422, "invalid-content")),
    "untyped content": ("POST", "/messages", {"json": {"content": [{"text": "x"}]}}, (422, "invalid-content")),
    "content too large": ("POST", "/messages", {"json": {"content": "x" * 2001}}, (413, "content-too-large")),
    "body too large": ("POST", "/messages", {"json": {"content": "x" * 4001}}, (413, "body-too-large")),
    "edit too large": ("PATCH", "/messages/1", {"json": {"content": "x" * 2001}}, (413, "content-too-large")),
    "edit of a number": ("PATCH", "/messages/1", {"json": {"content": 7}}, (422, "invalid-content")),
    "no such message": ("PATCH", "/messages/9", {"json": {"content": "x"}}, (404, "message-not-found")),
    "no number": ("PATCH", "/messages/one", {"json": {"content": "x"}}, (404, "message-not-found")),
    "a huge number": ("PATCH", f"/messages/{10**30}", {"json": {"content": "x"}}, (404, "message-not-found")),
    "no such entry": ("DELETE", "/queue/9", {}, (404, "queued-message-not-found")),
    "no entry's id": ("DELETE", "/queue/-1", {}, (404, "queued-message-not-found")),
    "no such entry to promote": ("POST", "/queue/9/promote", {}, (404, "queued-message-not-found")),
    "busy": ("POST", "/messages", {"json": {"content": "x", "when_busy": "reject"}}, (409, "chat-busy")),
    "limit 0": ("GET", "/messages?limit=0", {}, (400, "malformed-request")),
    "limit 201": ("GET", "/messages?limit=201", {}, (400, "malformed-request")),
    "limit of letters": ("GET", "/messages?limit=ten", {}, (400, "malformed-request")),
    "after_id": ("GET", "/messages?after_id=-1", {}, (400, "malformed-request")),
    "cursor": ("GET", "/stream?cursor=nonsense", {}, (400, "invalid-cursor")),
    "empty cursor": ("GET", "/stream?cursor=", {}, (400, "invalid-cursor")),
    "after_message_id": ("GET", "/stream?after_message_id=last", {}, (400, "invalid-cursor")),
    "Last-Event-ID": ("GET", "/stream?cursor=0-", {"headers": {"Last-Event-ID": "x"}}, (400, "invalid-cursor")),
    "no such route": ("GET", "/nothing", {}, (404, "route-not-found")),
    "no such method": ("PUT", "/messages", {}, (405, "method-not-allowed")),
    "empty key": (
        "POST",
        "/messages",
        {"json": {"content": "x"}, "headers": {"Idempotency-Key": ""}},
        (400, "malformed-request"),
    ),
    "long key": (
        "PATCH",
        "/messages/1",
        {"json": {"content": "x"}, "headers": {"Idempotency-Key": "k" * 201}},
        (400, "malformed-request"),
    ),
    "a form": (
        "POST",
        "/messages",
        {"content": b'{"content": "x"}', "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        (415, "unsupported-media-type"),
    ),
    "no content type": ("POST", "/messages", {"content": b'{"content": "x"}'}, (415, "unsupported-media-type")),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_and_changes_nothing(name: str, autojump_clock: trio.testing.MockClock) -> None:
    """Each kind of bad input has its status and type, and the chat stays as it was."""
    method, path, options, expected = BAD[name]
    async with open_site() as site:
        chat_id = await site.create("hi")
        before = await site.snapshot(chat_id)
        answer = await site.http.request(method, f"/v1/chats/{chat_id}{path}", **options)
        assert expected == problem(answer)
        assert before == await site.snapshot(chat_id)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"json": {"messages": "hi"}}, (400, "malformed-request")),
        ({"json": {"messages": ["hi"]}}, (400, "malformed-request")),
        ({"json": {"messages": [{"role": "user"}]}}, (422, "invalid-content")),
        ({"json": {"messages": [{"role": "king", "content": "x"}]}}, (422, "invalid-content")),
        ({"json": {"messages": [{"role": "user", "content": "x" * 2001}]}}, (413, "content-too-large")),
        ({"json": {}, "headers": {"Idempotency-Key": "k" * 201}}, (400, "malformed-request")),
        ({"content": b"hello", "headers": {"Content-Type": "text/plain"}}, (415, "unsupported-media-type")),
    ],
)
async def test_a_bad_create_makes_no_chat(
    options: Any, expected: tuple[int, str], autojump_clock: trio.testing.MockClock
) -> None:
    """What cannot be created is refused as a whole."""
    async with open_site() as site:
        assert expected == problem(await site.http.post("/v1/chats", **options))
        assert [] == (await site.http.get("/v1/chats")).json()["chats"]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=", "limit=1.5", "limit=٣"])
async def test_a_page_of_chats_has_bounds(query: str, autojump_clock: trio.testing.MockClock) -> None:
    """A limit that is none is refused, whatever it looks like."""
    async with open_site() as site:
        assert (400, "malformed-request") == problem(await site.http.get(f"/v1/chats?{query}"))


@pytest.mark.parametrize("before", ["none", "%00", ""])
async def test_a_page_before_an_unknown_chat_is_404(before: str, autojump_clock: trio.testing.MockClock) -> None:
    """A page follows a chat that there is."""
    async with open_site() as site:
        assert (404, "chat-not-found") == problem(await site.http.get(f"/v1/chats?before={before}"))


async def test_only_messages_of_the_user_are_edited(autojump_clock: trio.testing.MockClock) -> None:
    """An edit of an answer is 409, and nothing changes."""
    async with open_site() as site:
        body = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
        chat_id = (await site.http.post("/v1/chats", json=body)).json()["id"]
        before = await site.snapshot(chat_id)
        answer = await site.http.patch(f"/v1/chats/{chat_id}/messages/2", json={"content": "x"})
        assert (409, "not-editable") == problem(answer)
        assert before == await site.snapshot(chat_id)


async def test_a_full_queue_is_409(autojump_clock: trio.testing.MockClock) -> None:
    """The message that is one too many changes nothing."""
    async with open_site() as site:
        chat_id = await site.create("hi")
        path = f"/v1/chats/{chat_id}/messages"
        for _ in range(SMALL.queue_entries):
            assert 202 == (await site.http.post(path, json={"content": "x"})).status_code
        before = await site.snapshot(chat_id)
        assert (409, "queue-full") == problem(await site.http.post(path, json={"content": "x"}))
        assert before == await site.snapshot(chat_id)


async def test_a_key_under_which_something_else_was_sent_is_422(autojump_clock: trio.testing.MockClock) -> None:
    """Another content under a used key is a mistake of the client's, and nothing changes."""
    async with open_site() as site:
        chat_id = await site.create()
        path, key = f"/v1/chats/{chat_id}/messages", {"Idempotency-Key": "k"}
        assert 202 == (await site.http.post(path, json={"content": "x"}, headers=key)).status_code
        before = await site.snapshot(chat_id)
        other = await site.http.post(path, json={"content": "y"}, headers=key)
        assert (422, "idempotency-conflict") == problem(other)
        assert before == await site.snapshot(chat_id)


async def test_a_body_that_says_that_it_is_too_large_is_not_read(autojump_clock: trio.testing.MockClock) -> None:
    """The length that is declared is enough to refuse it."""

    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with open_site() as site:
        headers = {"Content-Type": "application/json", "Content-Length": str(10**9)}
        answer = await site.http.post("/v1/chats", content=body(), headers=headers)
        assert (413, "body-too-large") == problem(answer)


async def test_a_body_without_an_end_is_read_no_further_than_needed(autojump_clock: trio.testing.MockClock) -> None:
    """What does not say how long it is is read up to the limit."""
    taken: list[Message] = []
    sent: list[Message] = []

    async def receive() -> Message:
        await trio.lowlevel.checkpoint()
        taken.append({"type": "http.request", "body": b"x" * 1000, "more_body": True})
        return taken[-1]

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    async with open_site() as site:
        scope = scope_of("/v1/chats", JSON, type="http", scheme="http", method="POST")
        await site.engine.asgi_app()(scope, receive, send)
        assert 413 == sent[0]["status"]
        assert SMALL.client_frame_bytes // 1000 + 1 == len(taken)


async def test_a_body_that_does_not_come_is_408(autojump_clock: trio.testing.MockClock) -> None:
    """A client that never ends its body does not hold the request for ever."""

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await trio.sleep_forever()

    async with open_site() as site:
        assert (408, "body-too-slow") == problem(await site.http.post("/v1/chats", content=body(), headers=JSON))


async def test_405_names_all_methods_of_the_path(autojump_clock: trio.testing.MockClock) -> None:
    """`Allow` is the whole list."""
    async with open_site() as site:
        answer = await site.http.put("/v1/chats", json={})
        assert {"GET", "HEAD", "POST"} == set(answer.headers["allow"].split(", "))


async def test_a_path_with_a_slash_too_many_is_no_redirect(autojump_clock: trio.testing.MockClock) -> None:
    """What is not there is 404: a redirect would name the host that the client claimed."""
    async with open_site() as site:
        assert (404, "route-not-found") == problem(await site.http.get("/v1/chats/"))


# --------------------------------------------------------------------------------------------- permission

ROUTES = [
    ("POST", "/v1/chats", "create"),
    ("GET", "/v1/chats", "list"),
    ("GET", "/v1/chats/c", "read"),
    ("DELETE", "/v1/chats/c", "delete"),
    ("GET", "/v1/chats/c/messages", "read"),
    ("POST", "/v1/chats/c/messages", "send"),
    ("PATCH", "/v1/chats/c/messages/1", "edit"),
    ("POST", "/v1/chats/c/interrupt", "interrupt"),
    ("GET", "/v1/chats/c/queue", "read"),
    ("DELETE", "/v1/chats/c/queue/1", "queue"),
    ("POST", "/v1/chats/c/queue/1/promote", "queue"),
    ("GET", "/v1/chats/c/stream", "stream"),
]


@pytest.mark.parametrize(("method", "path", "action"), ROUTES)
@pytest.mark.parametrize("is_async", [False, True])
async def test_authorize_is_asked_before_anything_else(
    method: str, path: str, action: str, is_async: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever may not is told neither whether the chat exists nor what is wrong with the request."""
    asked: list[tuple[str | None, str]] = []

    def refuse(request: HTTPConnection, chat_id: str | None, action: str) -> bool:
        asked.append((chat_id, action))
        return False

    async def refuse_later(request: HTTPConnection, chat_id: str | None, action: str) -> bool:
        await trio.sleep(1)
        return refuse(request, chat_id, action)

    async with open_site(authorize=refuse_later if is_async else refuse) as site:
        answer = await site.http.request(method, path, content=b"{")
        assert (403, "not-allowed") == problem(answer)
        assert [(None if action in ("create", "list") else "c", action)] == asked


async def test_authorize_may_choose_a_status(autojump_clock: trio.testing.MockClock) -> None:
    """An exception of Starlette's that it raises is what the client gets, headers and all."""

    def unknown(request: HTTPConnection, chat_id: str | None, action: str) -> object:
        raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})

    async with open_site(authorize=unknown) as site:
        answer = await site.http.get("/v1/chats")
        assert (401, "about:blank") == problem(answer)
        assert "Bearer" == answer.headers["www-authenticate"]


async def test_a_failure_of_authorize_allows_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """What nobody foresaw is 500 without a word about its cause."""

    def broken(request: HTTPConnection, chat_id: str | None, action: str) -> object:
        raise KeyError("secret")

    async with open_engine("memory://") as engine:
        app = engine.asgi_app(authorize=broken)
        async with http_client(app, raise_app_exceptions=False) as http:
            answer = await http.get("/v1/chats")
            assert (500, "internal-error") == problem(answer)
            assert "secret" not in answer.text


# -------------------------------------------------------------------------------------------------- health


async def test_health_needs_no_permission_and_says_who_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """A load balancer has no session."""

    def refuse(request: HTTPConnection, chat_id: str | None, action: str) -> bool:
        return False

    async with open_site(authorize=refuse) as site:
        for path in ("/healthz", "/readyz"):
            answer = await site.http.get(path)
            assert (200, True) == (answer.status_code, answer.json()["ok"])
            assert site.engine.replica_id == answer.json()["replica_id"]
            assert 0 == answer.json()["stats"]["subscriptions"]


async def test_a_draining_replica_is_alive_but_not_ready(autojump_clock: trio.testing.MockClock) -> None:
    """It gets no new work, and is not killed for it; what it is asked it still answers, but for new streams."""
    async with open_site() as site:
        chat_id = await site.create()
        await site.engine.drain()
        ready = await site.http.get("/readyz")
        assert (503, "draining") == (ready.status_code, ready.json()["why_not"])
        assert 200 == (await site.http.get("/healthz")).status_code
        assert 200 == (await site.http.get(f"/v1/chats/{chat_id}")).status_code
        stream = await site.http.get(f"/v1/chats/{chat_id}/stream")
        assert (503, "replica-draining") == problem(stream)
        assert 0 <= int(stream.headers["retry-after"]) <= 2


async def test_a_replica_that_does_not_reach_its_store_is_not_ready(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the store refuses or hangs: /readyz says so in time, and requests are 503 with a time to wait."""

    async def refused(*_: object, **__: object) -> None:
        raise StoreUnavailable("it does not answer")

    async with open_site() as site:
        chat_id = await site.create()
        monkeypatch.setattr(site.engine.store, "ping", trio.sleep_forever)
        assert 503 == (await site.http.get("/readyz")).status_code
        monkeypatch.setattr(site.engine.store, "ping", refused)
        assert 503 == (await site.http.get("/readyz")).status_code
        assert 200 == (await site.http.get("/healthz")).status_code
        monkeypatch.setattr(site.engine.store, "read_chat", refused)
        answer = await site.http.get(f"/v1/chats/{chat_id}")
        assert (503, "store-unavailable") == problem(answer)
        assert "1" == answer.headers["retry-after"]


def test_every_problem_has_a_name_and_an_exception_of_its_own() -> None:
    """The list is a table: no name twice, no exception twice, each with a status that refuses."""
    assert len({problem.name for problem in PROBLEMS}) == len(PROBLEMS)
    assert len({problem.exception for problem in PROBLEMS}) == len(PROBLEMS)
    assert all(400 <= problem.status < 600 and problem.title for problem in PROBLEMS)


async def acquire(engine: Engine, chat_id: str) -> Episode:
    """Another replica takes the chat and generates."""
    answer = (await engine.store.apply(chat_id, Acquire(worker_id="elsewhere", run_id="r"))).answer
    return Episode(answer.history_version, answer.generation_attempt, "r")


async def park(engine: Engine, chat_id: str) -> None:
    """Another replica takes the chat, and fails."""
    await acquire(engine, chat_id)
    error = ChatError(kind="responder_failed", message="it failed")
    await engine.store.apply(chat_id, Fail(run_id="r", token="t", error=error))
