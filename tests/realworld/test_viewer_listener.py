"""The viewer listener over TCP: real clients, and one of fifty viewers who does not read."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

import relaytrio
from relaytrio._settings import Settings
from relaytrio.transport._listening import listen
from tests.transport.viewer_client import client_context, server_context, upgrade

pytestmark = pytest.mark.realworld

QUICK = Settings(
    stalled_send_seconds=1.0, drain_jitter_seconds=0.2, grace_seconds=1.0, acquire_seconds=0.05, dial_retry_seconds=0.05
)
PARTS = 60


@pytest.fixture(autouse=True)
async def _bounded() -> AsyncIterator[None]:
    """No test here takes longer than this, whatever hangs."""
    with trio.fail_after(40):
        yield


async def shout(turn: relaytrio.Turn) -> None:
    """More than the sockets of one who does not read take, the system's buffers and all."""
    for number in range(PARTS):
        await turn.send({"type": "text", "text": f"{number} " + "x" * 10_000})


@asynccontextmanager
async def open_site(responder: Any = None, **options: Any) -> AsyncIterator[tuple[relaytrio.Engine, str]]:
    """A replica with the listener, and its URL."""
    async with relaytrio.open_engine("memory://", responder=responder, settings=QUICK) as engine:
        async with trio.open_nursery() as nursery:
            listening = trio.socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # so that a stalled viewer soon is one
            await listening.bind(("127.0.0.1", 0))
            listening.listen(100)
            listeners = [trio.SocketListener(listening)]
            url = await nursery.start(partial(relaytrio.serve_viewers, engine, listeners=listeners, **options))
            yield engine, url
            nursery.cancel_scope.cancel()


def stalled_viewer(url: str, chat_id: str) -> socket.socket:
    """A viewer that asks for a stream and then does not read."""
    viewer = socket.socket()
    viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    viewer.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    viewer.sendall(upgrade(f"/v1/chats/{chat_id}/stream"))
    return viewer


async def parts_until_the_answer(stream: Any) -> list[int]:
    """The seqs of the parts of an answer."""
    seqs = []
    async for event in stream:
        if isinstance(event, relaytrio.MessagePart):
            seqs.append(event.seq)
        if isinstance(event, relaytrio.MessageEvent) and event.message.role == "assistant":
            break
    return seqs


async def test_a_plain_client_sees_a_turn_and_the_close() -> None:
    """trio-websocket's client: frames, and why the stream ends."""

    async def count(turn: relaytrio.Turn) -> None:
        await turn.send_many([{"type": "text", "text": text} for text in ("one ", "two")])

    async with open_site(count) as (engine, url):
        chat = await engine.create_chat()
        # trio-websocket leaves its socket open after a close: this one is ours.
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        async with stream, trio.open_nursery() as nursery:
            websocket = await wrap_client_stream(nursery, stream, "replica", f"/v1/chats/{chat.id}/stream")
            await engine.send_message(chat.id, "count")
            text = ""
            while "waiting" not in text.rpartition("running")[2] or "one two" not in text:
                text += str(await websocket.get_message())
            await engine.drain()
            with pytest.raises(ConnectionClosed) as closed:
                while json.loads(await websocket.get_message()) is not None:
                    pass
            assert closed.value.reason is not None
            assert 4004 == closed.value.reason.code
            assert 0 <= int(closed.value.reason.reason or "") <= 200


@pytest.mark.parametrize("tls", [False, True])
async def test_the_clients_stream_goes_on_through_cuts(tls: bool) -> None:
    """`ChatClient`, cut in the middle of an answer, has each part once and in order."""
    go_on = trio.Semaphore(0)

    async def slow(turn: relaytrio.Turn) -> None:
        for number in range(30):
            await go_on.acquire()
            await turn.send({"type": "text", "text": f"{number} "})

    options = {"ssl_context": server_context()} if tls else {}
    async with open_site(slow, **options) as (engine, url):
        chat = await engine.create_chat([relaytrio.user_message("count")])
        client = relaytrio.ChatClient(url, ssl_context=client_context() if tls else None)
        seen: list[int] = []
        async with client, client.stream(chat.id) as stream:
            go_on.release()
            async for event in stream:
                if isinstance(event, relaytrio.MessagePart):
                    seen.append(event.seq)
                    if len(seen) % 7 == 0:
                        await stream.cut()
                    go_on.release()
                if isinstance(event, relaytrio.MessageEvent) and event.message.role == "assistant":
                    break
        assert list(range(1, 31)) == seen


async def test_one_stalled_viewer_of_fifty_costs_the_others_nothing() -> None:
    """The others have every part live, none was told of a loss, and the one is cut."""
    async with open_site(shout) as (engine, url):
        chat = await engine.create_chat()
        seen: dict[int, list[int]] = {}

        async def view(number: int, *, task_status: trio.TaskStatus[None]) -> None:
            async with relaytrio.ChatClient(url) as client, client.stream(chat.id) as stream:
                async for event in stream:
                    if isinstance(event, relaytrio.CaughtUp):
                        break
                task_status.started()
                seen[number] = await parts_until_the_answer(stream)

        with stalled_viewer(url, chat.id):
            async with trio.open_nursery() as nursery:
                for number in range(49):
                    await nursery.start(view, number)
                assert 50 == engine.stats().subscriptions
                await engine.send_message(chat.id, "shout")
            while engine.stats().subscriptions:  # noqa: ASYNC110 - the system has no event for it
                await trio.sleep(0.01)
        assert {number: list(range(1, PARTS + 1)) for number in range(49)} == seen


async def test_a_stalled_viewer_holds_up_no_end() -> None:
    """Cancelling the listener is prompt in the middle of a frame."""
    async with open_site(shout) as (engine, url):
        chat = await engine.create_chat([relaytrio.user_message("shout")])
        with stalled_viewer(url, chat.id):
            async with engine.subscribe(chat.id) as subscription:
                await parts_until_the_answer(subscription)
            started = trio.current_time()
    assert trio.current_time() - started < 1


async def test_peers_are_served_there_too(tmp_path: Path) -> None:
    """A replica whose address is that of the listener: another one shows what it makes, over a leg to there. Who has no
    grant is refused."""
    store, secret = f"sqlite:///{tmp_path / 'chat.db'}", "a secret of a cluster"
    go_on = trio.Event()

    async def count(turn: relaytrio.Turn) -> None:
        await turn.send({"type": "text", "text": "one"})
        await go_on.wait()
        await turn.send({"type": "text", "text": "two"})

    listener = await listen("127.0.0.1", 0, QUICK)
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    async with (
        relaytrio.open_engine(store, responder=count, address=url, secret=secret, settings=QUICK) as making,
        relaytrio.open_engine(store, secret=secret, settings=QUICK) as showing,
        trio.open_nursery() as nursery,
    ):
        assert url == await nursery.start(partial(relaytrio.serve_viewers, making, listeners=[listener]))
        chat = await showing.create_chat([relaytrio.user_message("Go.")])
        seen: list[relaytrio.Event] = []
        async with showing.subscribe(chat.id) as subscription:
            async for event in subscription:
                seen.append(event)
                match event:
                    case relaytrio.MessagePart():
                        go_on.set()
                    case relaytrio.Status(status="waiting"):
                        break
        assert ["one", "two"] == [event.part["text"] for event in seen if isinstance(event, relaytrio.MessagePart)]
        assert 2 == showing.parts.rows_copied
        async with httpx.AsyncClient(trust_env=False) as http:
            headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
            key = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
            refused = await http.get(f"{url}/relay/v1/parts", headers={**headers, **key})
            plain = await http.get(f"{url}/relay/v1/parts")
        assert [401, 426] == [refused.status_code, plain.status_code]
        nursery.cancel_scope.cancel()
