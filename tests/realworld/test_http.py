"""The app under Hypercorn, over sockets: what is sent arrives, who does not read is cut, and stopping is prompt."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import httpx
import pytest
import trio
from starlette.applications import Starlette
from starlette.routing import Mount
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from relaytrio._engine import Engine, open_engine
from relaytrio._errors import ChatDeleted, ChatNotFound, InvalidCursor, NotAllowed
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import CaughtUp, MessageEvent, MessagePart, QueueUpdate, Status
from relaytrio._settings import Settings
from relaytrio._turn import Turn
from relaytrio.client import ChatClient
from relaytrio.stores.memory import MemoryStore
from relaytrio.transport._serve import serve

pytestmark = pytest.mark.realworld

QUICK = Settings(
    stalled_send_seconds=1.0,
    drain_jitter_seconds=0.2,
    grace_seconds=1.0,
    acquire_seconds=0.05,
    client_frame_bytes=10_000,
    dial_retry_seconds=0.05,
)


@pytest.fixture(autouse=True)
async def _bounded() -> AsyncIterator[None]:
    """No test here takes longer than this, whatever hangs."""
    with trio.fail_after(30):
        yield


@attrs.define
class Site:
    engine: Engine
    url: str
    shutdown: trio.Event
    stopped: trio.Event
    http: httpx.AsyncClient

    @asynccontextmanager
    async def websocket(self, target: str) -> AsyncIterator[WebSocketConnection]:
        """A plain client of trio-websocket. It leaves its socket open after a close: that one is ours."""
        host, port = self.url.removeprefix("http://").split(":")
        stream = await trio.open_tcp_stream(host, int(port))
        try:
            async with trio.open_nursery() as nursery:
                yield await wrap_client_stream(nursery, stream, host, target)
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)

    async def refusal(self, target: str) -> ConnectionRejected:
        """How the upgrade is refused."""
        refusals: list[ConnectionRejected] = []
        try:
            async with self.websocket(target):
                pass
        except* ConnectionRejected as group:
            refusals += [error for error in group.exceptions if isinstance(error, ConnectionRejected)]
        return refusals[0]

    async def create(self, text: str | None = None) -> str:
        chat = await self.engine.create_chat([] if text is None else [user_message(text)])
        return chat.id

    async def until_viewers(self, number: int) -> None:
        while self.engine.stats().subscriptions != number:  # noqa: ASYNC110 - the system has no event for it
            await trio.sleep(0.01)


@asynccontextmanager
async def open_site(
    responder: Any = None,
    *,
    settings: Settings = QUICK,
    prefix: str = "",
    store: Any = "memory://",
    port: int = 0,
    **options: Any,
) -> AsyncIterator[Site]:
    address = f"http://127.0.0.1:{port}{prefix}" if port else None
    secret = "the secret of these replicas" if port else None
    async with open_engine(store, settings=settings, responder=responder, address=address, secret=secret) as engine:
        app = engine.asgi_app(**options)
        if prefix:
            app = Starlette(routes=[Mount(prefix, app)])
        shutdown, stopped = trio.Event(), trio.Event()

        async def run(*, task_status: trio.TaskStatus[str]) -> None:  # noqa: ASYNC128 - `serve` calls it
            await serve(engine, app, port=port, shutdown=shutdown, task_status=task_status)
            stopped.set()

        async with trio.open_nursery() as nursery:
            url = await nursery.start(run) + prefix
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                yield Site(engine, url, shutdown, stopped, http)
            nursery.cancel_scope.cancel()


async def speak(turn: Turn) -> None:
    """A responder of a few tokens."""
    for token in ("one ", "two ", "three"):
        await turn.send({"type": "text", "text": token})
        await trio.lowlevel.checkpoint()


async def shout(turn: Turn) -> None:
    """A responder of some megabytes, more than all buffers of a connection."""
    for _ in range(400):
        await turn.send({"type": "text", "text": "x" * 16_000})
        await trio.lowlevel.checkpoint()


async def until(websocket: WebSocketConnection, kind: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while not any(event["type"] == kind for event in events):
        events += json.loads(await websocket.get_message())
    return events


async def close_code(websocket: WebSocketConnection) -> tuple[int, str | None]:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await websocket.get_message()
    assert closed.value.reason is not None
    return closed.value.reason.code, closed.value.reason.reason


async def test_a_websocket_brings_a_whole_turn() -> None:
    """History, the parts in order, and the message that they are."""
    async with open_site(speak) as site:
        chat_id = await site.create("count")
        async with site.websocket(f"/v1/chats/{chat_id}/stream") as websocket:
            events = await until(websocket, "caught_up")
            while "waiting" not in {event.get("status") for event in events}:
                events += json.loads(await websocket.get_message())
        messages = [event["message"]["content"][0]["text"] for event in events if event["type"] == "message"]
        assert ["count", "one two three"] == messages


async def test_requests_and_problems_over_a_socket() -> None:
    """What the app answers is what arrives, mounted at a prefix too."""
    async with open_site(prefix="/api") as site:
        created = await site.http.post("/v1/chats", json={"messages": []})
        assert 201 == created.status_code
        location = created.headers["location"]
        assert location.startswith("/api/v1/chats/")
        assert 200 == (await site.http.get(site.url.removesuffix("/api") + location)).status_code
        large = await site.http.post("/v1/chats", json={"x": "x" * 20_000})
        assert (413, "application/problem+json") == (large.status_code, large.headers["content-type"])
        assert 200 == (await site.http.get("/healthz")).status_code
        assert 200 == (await site.http.get("/readyz")).status_code


@pytest.mark.filterwarnings("ignore:Async generator 'http")  # httpx leaves its own behind when an answer is left early
async def test_sse_over_a_socket() -> None:
    """Headers come at once, then blocks, each with the id to resume from."""
    async with open_site(speak, prefix="/api") as site:
        chat_id = await site.create("count")
        async with site.http.stream("GET", f"/v1/chats/{chat_id}/stream") as answer:
            assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
            ids: list[str] = []
            texts: list[str] = []
            async for line in answer.aiter_lines():
                assert line.partition(":")[0] in ("", "id", "data")
                if line.startswith("id: "):
                    ids.append(line.removeprefix("id: "))
                texts.append(line)
                if '"waiting"' in line:
                    break
        assert any("one two three" in text for text in texts)
        await site.until_viewers(0)
        resumed = await site.http.get("/healthz")
        assert 0 == resumed.json()["stats"]["subscriptions"]
        headers = {"Last-Event-ID": ids[-1]}
        async with site.http.stream("GET", f"/v1/chats/{chat_id}/stream", headers=headers) as answer:
            async for line in answer.aiter_lines():
                assert '"message"' not in line
                if '"caught_up"' in line:
                    break


async def test_refusals_come_before_the_upgrade() -> None:
    """A client of WebSockets sees the status and the problem."""
    async with open_site(authorize=lambda request, chat_id, action: chat_id != "forbidden") as site:
        for chat_id, status in (("forbidden", 403), ("none", 404)):
            refusal = await site.refusal(f"/v1/chats/{chat_id}/stream")
            assert status == refusal.status_code
            assert status == json.loads(refusal.body or b"")["status"]


async def test_close_codes_arrive() -> None:
    """Every code that the server says is what the client is told, though frames of its own are on their way."""
    async with open_site() as site:
        chat_id = await site.create()
        target = f"/v1/chats/{chat_id}/stream"
        async with site.websocket(target + "?cursor=nonsense") as websocket:
            assert (4006, "invalid-cursor") == await close_code(websocket)
        for frame, code in (("hello", 4006), ("x" * 20_000, 1009)):
            async with site.websocket(target) as websocket:
                await websocket.send_message("[]")
                await websocket.send_message(frame)
                assert code == (await close_code(websocket))[0]
        async with site.websocket(target) as websocket:
            await until(websocket, "caught_up")
            for _ in range(5):
                await websocket.send_message("[]")
            await site.engine.delete_chat(chat_id)
            assert 4005 == (await close_code(websocket))[0]
        await site.until_viewers(0)


async def test_a_viewer_who_may_no_longer_is_told() -> None:
    """The code of a permission that was withdrawn arrives."""
    allowed = True
    from relaytrio.transport.asgi import make_asgi_app

    async with open_engine("memory://", settings=QUICK) as engine, trio.open_nursery() as nursery:
        app = make_asgi_app(engine, authorize=lambda *_: allowed, recheck_seconds=0.1)
        url = await nursery.start(partial(serve, engine, app, shutdown=trio.Event()))
        chat = await engine.create_chat()
        async with ChatClient(url) as client, client.stream(chat.id) as stream:
            assert isinstance(await anext(stream), QueueUpdate)
            allowed = False
            with pytest.raises(NotAllowed):
                async for _ in stream:
                    pass
        nursery.cancel_scope.cancel()


async def test_draining_sends_viewers_elsewhere_and_stops() -> None:
    """4004 with milliseconds, the hint of SSE, a `readyz` that fails, and then nobody listens any more."""
    async with open_site(settings=attrs.evolve(QUICK, drain_jitter_seconds=0.5)) as site:
        chat_id = await site.create()
        target = f"/v1/chats/{chat_id}/stream"
        async with site.websocket(target) as websocket, site.http.stream("GET", target) as answer:
            lines = answer.aiter_lines()
            await until(websocket, "caught_up")
            site.shutdown.set()
            code, reason = await close_code(websocket)
            assert 4004 == code
            assert 0 <= int(reason or "") <= 500
            assert [line async for line in lines][-2].startswith("retry: ")
        with trio.fail_after(3):
            await site.stopped.wait()
        with pytest.raises(httpx.ConnectError):
            await site.http.get("/healthz")


async def test_draining_gives_an_answer_its_time() -> None:
    """A responder that ends within the grace is not cut, and the server stops after it."""
    begun, go_on = trio.Event(), trio.Event()

    async def slow(turn: Turn) -> None:
        begun.set()
        await go_on.wait()
        await turn.send({"type": "text", "text": "done"})

    store = MemoryStore(settings=QUICK)
    async with open_site(slow, store=store, settings=attrs.evolve(QUICK, grace_seconds=10)) as site:
        chat_id = await site.create("wait")
        await begun.wait()
        site.shutdown.set()
        await site.engine.drain_started.wait()
        assert 503 == (await site.http.get("/readyz")).status_code
        go_on.set()
        await site.stopped.wait()
        assert "waiting" == (await store.read_chat(chat_id)).status


def stalled_viewer(url: str, target: str) -> socket.socket:
    """A viewer that asks for a stream and then does not read."""
    host, port = url.removeprefix("http://").split(":")
    viewer = socket.socket()
    viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    viewer.connect((host, int(port)))
    head = [
        f"GET {target} HTTP/1.1",
        "Host: x",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    viewer.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
    return viewer


async def test_a_viewer_who_does_not_read_is_cut_and_others_are_served() -> None:
    """Its connection is given up after `stalled_send_seconds`, though the server shields its sends."""
    async with open_site(shout) as site:
        chat_id = await site.create()
        target = f"/v1/chats/{chat_id}/stream"
        with stalled_viewer(site.url, target):
            await site.until_viewers(1)
            async with ChatClient(site.url) as client, client.stream(chat_id) as stream:
                await client.send_message(chat_id, "shout")
                parts = 0
                async for event in stream:
                    parts += isinstance(event, MessagePart)
                    if isinstance(event, MessageEvent) and event.message.role == "assistant":
                        break
                assert 400 == parts
                with trio.fail_after(10):
                    await site.until_viewers(1)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_viewer_who_does_not_read_holds_up_no_shutdown(cancelled: bool) -> None:
    """Neither a drain and stop nor a cancel waits for it, long before the system would give it up."""
    async with open_site(shout, settings=attrs.evolve(QUICK, stalled_send_seconds=60.0)) as site:
        chat_id = await site.create("shout")
        with stalled_viewer(site.url, f"/v1/chats/{chat_id}/stream"):
            await site.until_viewers(1)
            async with ChatClient(site.url) as client, client.stream(chat_id) as stream:
                async for event in stream:
                    if isinstance(event, Status) and event.status == "waiting":
                        break
            await trio.sleep(0.3)
            started = trio.current_time()
            if not cancelled:
                site.shutdown.set()
                await site.stopped.wait()
                assert trio.current_time() - started < 5
    assert trio.current_time() - started < 5


async def test_the_clients_stream_goes_on_through_cuts() -> None:
    """Cut again and again in the middle of an answer, it has each part once and in order."""
    go_on = trio.Semaphore(0)

    async def slow(turn: Turn) -> None:
        for number in range(30):
            await go_on.acquire()
            await turn.send({"type": "text", "text": f"{number} "})

    async with open_site(slow) as site, ChatClient([site.url, site.url + "/"]) as client:
        chat = await client.create_chat([user_message("count")])
        seen: list[int] = []
        async with client.stream(chat.id) as stream:
            async for event in stream:
                if isinstance(event, CaughtUp) and not seen:
                    go_on.release()
                if isinstance(event, MessagePart):
                    seen.append(event.seq)
                    if len(seen) % 7 == 0:
                        await stream.cut()
                    go_on.release()
                if isinstance(event, MessageEvent) and event.message.role == "assistant":
                    break
            assert 4 == stream.reconnects
        assert list(range(1, 31)) == seen
        messages = await client.list_messages(chat.id)
        assert "".join(f"{number} " for number in range(30)) == messages[-1].content[0]["text"]


async def test_the_clients_stream_ends_with_the_reason() -> None:
    """What is final is an exception of its own: no such chat, deleted, a malformed cursor."""
    async with open_site() as site, ChatClient(site.url) as client:
        chat = await client.create_chat()
        for chat_id, cursor, error in (
            ("none", None, ChatNotFound),
            (chat.id, "nonsense", InvalidCursor),
        ):
            with pytest.raises(error):
                async with client.stream(chat_id, cursor=cursor) as stream:
                    await anext(stream)
        with pytest.raises(ChatDeleted):
            async with client.stream(chat.id) as stream:
                async for event in stream:
                    if isinstance(event, CaughtUp):
                        await client.delete_chat(chat.id)


async def test_the_client_moves_to_another_replica_when_its_own_drains() -> None:
    """Told to go elsewhere, it goes, and misses nothing."""
    store = MemoryStore(settings=QUICK)
    async with open_site(store=store) as first, open_site(store=store) as second:
        async with ChatClient([first.url, second.url]) as client:
            chat = await client.create_chat()
            async with client.stream(chat.id) as stream:
                assert isinstance(await anext(stream), QueueUpdate)
                assert first.url == stream.url
                first.shutdown.set()
                await second.until_viewers(1)
                await client.send_message(chat.id, "hi")
                async for event in stream:
                    if isinstance(event, MessageEvent):
                        break
                assert second.url == stream.url
                assert 1 == stream.reconnects


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_viewer_of_another_replica_sees_tokens_as_they_are_made() -> None:
    """From the worker's responder over the parts endpoint of its app, at a prefix, to a browser's socket elsewhere."""
    seen = trio.Semaphore(0)

    async def in_step(turn: Turn) -> None:
        for number in range(5):
            await turn.send({"type": "text", "text": f"{number} "})
            await seen.acquire()  # the next one is made when this one has been seen on the other replica

    store = MemoryStore(settings=QUICK)
    async with (
        open_site(in_step, store=store, port=free_port(), prefix="/backend") as worker,
        open_site(store=store, port=free_port()) as front,
        ChatClient(front.url) as client,
    ):
        chat = await client.create_chat([user_message("count")])
        async with client.stream(chat.id) as stream:
            async for event in stream:
                if isinstance(event, MessagePart):
                    seen.release()
                if isinstance(event, MessageEvent) and event.message.role == "assistant":
                    assert "0 1 2 3 4 " == event.message.content[0]["text"]
                    break
        assert 5 == front.engine.stats().parts_relayed
        assert 5 == worker.engine.stats().parts_made
        worker.shutdown.set()
        with trio.fail_after(5):
            await worker.stopped.wait()


async def test_a_port_in_use_is_said_and_leaves_nothing() -> None:
    """The error is the system's."""
    async with open_site() as site, open_engine("memory://") as engine:
        port = int(site.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await serve(engine, engine.asgi_app(), port=port, shutdown=trio.Event())
