"""A viewer's stream, by WebSocket and by SSE, and the route of the parts endpoint: without sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio
from starlette.requests import HTTPConnection
from starlette.types import Message
from trio.testing import wait_all_tasks_blocked

from relaytrio._engine import open_engine
from relaytrio._protocol import peer_wire
from relaytrio._protocol.events import Cursor
from relaytrio.transport._problems import TYPE_PREFIX
from relaytrio.transport.grants import (
    GRANT_HEADER,
    SOURCE_HEADER,
    make_connection_grant,
    make_select_grant,
)
from tests.transport.asgi_driver import DrivenWebSocket, event_stream, http_client, scope_of, websocket
from tests.transport.site import SECRET, SETTINGS, Site, open_site


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# ----------------------------------------------------------------------------------------------- WebSocket


async def test_a_websocket_carries_history_parts_and_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    """Text frames, each a JSON array of events, each with its cursor."""
    async with open_site() as site, websocket(site.app, site.target) as viewer:
        assert await viewer.opened()
        assert ["message", "queue_update", "status", "caught_up"] == kinds(await viewer.until("caught_up"))
        await site.generate()
        await viewer.until("status")
        site.part("a", "b")
        parts = await viewer.until("message_part")
        assert [("a", 1), ("b", 2)] == [(event["part"]["text"], event["seq"]) for event in parts]
        await site.finish("ab")
        message, *_ = await viewer.until("message")
        assert "ab" == message["message"]["content"][0]["text"]
        assert message["message"]["id"] == Cursor.parse(message["cursor"]).message.id


async def test_a_cursor_brings_exactly_the_rest(autojump_clock: trio.testing.MockClock) -> None:
    """`cursor` outranks `after_message_id`, and `Last-Event-ID` outranks both."""
    async with open_site() as site:
        async with websocket(site.app, site.target) as viewer:
            await viewer.opened()
            events = await viewer.until("caught_up")
        cursor = events[-1]["cursor"]
        rest = ["queue_update", "status", "caught_up"]
        for query, headers in [
            (f"?cursor={cursor}", {}),
            (f"?cursor={cursor}&after_message_id=0", {}),
            ("?after_message_id=1", {}),
            ("?cursor=0-", {"Last-Event-ID": cursor}),
            ("?cursor=nonsense", {"Last-Event-ID": cursor}),
        ]:
            async with websocket(site.app, site.target + query, headers=headers) as viewer:
                await viewer.opened()
                assert rest == kinds(await viewer.until("caught_up"))


async def test_a_cursor_of_another_chat_is_served_with_a_reset(autojump_clock: trio.testing.MockClock) -> None:
    """Well-formed is always served."""
    async with open_site() as site, websocket(site.app, site.target + "?cursor=7-zzzzz") as viewer:
        await viewer.opened()
        events = await viewer.until("caught_up")
        assert ["history_reset", "message", "queue_update", "status", "caught_up"] == kinds(events)
        assert 0 == events[0]["after_id"]


async def test_an_unknown_chat_is_refused_before_the_upgrade(autojump_clock: trio.testing.MockClock) -> None:
    """With a status and a problem, where the server can do that; else without an upgrade all the same."""
    async with open_site() as site:
        async with websocket(site.app, "/v1/chats/none/stream") as viewer:
            status, problem = await viewer.denied()
            assert (404, TYPE_PREFIX + "chat-not-found") == (status, problem["type"])
        async with websocket(site.app, "/v1/chats/none/stream", can_deny=False) as viewer:
            assert not await viewer.opened()
            assert "websocket.close" == viewer.denial["type"]


async def test_a_viewer_who_may_not_is_refused_before_the_upgrade(autojump_clock: trio.testing.MockClock) -> None:
    """`authorize` sees the WebSocket's request and its answer stands."""

    def with_ticket(request: HTTPConnection, chat_id: str | None, action: str) -> bool:
        return action == "stream" and request.query_params.get("ticket") == "t"

    async with open_site(authorize=with_ticket) as site:
        async with websocket(site.app, site.target + "?cursor=nonsense") as viewer:
            assert 403 == (await viewer.denied())[0]
        async with websocket(site.app, site.target + "?ticket=t") as viewer:
            assert await viewer.opened()
        assert 0 == await site.viewers()


async def test_a_path_without_a_stream_is_refused_before_the_upgrade(autojump_clock: trio.testing.MockClock) -> None:
    """An unknown path is a problem for a WebSocket too."""
    async with open_site() as site, websocket(site.app, "/v1/nothing") as viewer:
        status, problem = await viewer.denied()
        assert (404, TYPE_PREFIX + "route-not-found") == (status, problem["type"])


@pytest.mark.parametrize("query", ["cursor=nonsense", "cursor=", "after_message_id=-1", f"cursor={10**30}-aaaaa"])
async def test_a_malformed_cursor_is_4006(query: str, autojump_clock: trio.testing.MockClock) -> None:
    """A browser learns it from the close code: it cannot read a status."""
    async with open_site() as site, websocket(site.app, f"{site.target}?{query}") as viewer:
        assert await viewer.opened()
        assert (4006, "invalid-cursor") == await viewer.closed()
        await viewer.returned.wait()
        assert 0 == await site.viewers()


async def test_an_idle_stream_carries_heartbeats(autojump_clock: trio.testing.MockClock) -> None:
    """An empty frame every 15 s, for as long as nothing else is sent."""
    async with open_site() as site, websocket(site.app, site.target) as viewer:
        await viewer.opened()
        await viewer.until("caught_up")
        started = trio.current_time()
        assert [[], []] == [await viewer.frame(), await viewer.frame()]
        assert 30 == trio.current_time() - started


async def test_a_viewer_with_heartbeats_stays_and_a_silent_one_goes(autojump_clock: trio.testing.MockClock) -> None:
    """Who is not heard for 45 s is gone: his socket only does not know."""
    async with open_site() as site, websocket(site.app, site.target) as viewer:
        await viewer.opened()
        for _ in range(100):
            await trio.sleep(44)
            await viewer.say("[]")
        assert not viewer.returned.is_set()
        started = trio.current_time()
        code, reason = await viewer.closed()
        assert (1001, "no heartbeat for 45 s") == (code, reason)
        assert 45 == trio.current_time() - started


@pytest.mark.parametrize(("frame", "code"), [("{}", 4006), ("[1]", 4006), ("", 4006), ("x" * 1001, 1009)])
async def test_a_viewer_who_says_anything_else_is_closed(
    frame: str, code: int, autojump_clock: trio.testing.MockClock
) -> None:
    """In comes nothing but the heartbeat."""
    async with open_site() as site, websocket(site.app, site.target) as viewer:
        await viewer.opened()
        await viewer.say(frame)
        assert code == (await viewer.closed())[0]
        await viewer.returned.wait()
        assert 0 == await site.viewers()


async def test_a_deleted_chat_is_4005(autojump_clock: trio.testing.MockClock) -> None:
    """Its viewers are told that there is nothing to come back to."""
    async with open_site() as site, websocket(site.app, site.target) as viewer:
        await viewer.opened()
        await site.engine.delete_chat(site.chat_id)
        assert 4005 == (await viewer.closed())[0]


async def test_viewers_of_a_draining_replica_leave_spread_over_time(autojump_clock: trio.testing.MockClock) -> None:
    """Each is told at a moment of its own, within the jitter, how many milliseconds to wait."""
    draws: Iterator[float] = iter([0.0, 0.25, 0.9, 0.5])
    async with open_site(random=lambda: next(draws)) as site, trio.open_nursery() as nursery:
        left: list[tuple[float, int, str]] = []

        async def view() -> None:
            async with websocket(site.app, site.target) as viewer:
                await viewer.opened()
                code, reason = await viewer.closed()
                left.append((trio.current_time(), code, reason))

        nursery.start_soon(view)
        nursery.start_soon(view)
        await wait_all_tasks_blocked()
        started = trio.current_time()
        await site.engine.drain()
        await trio.sleep(SETTINGS.drain_jitter_seconds)
        assert {4004} == {code for _, code, _ in left}
        first, second = sorted((moment - started, int(reason)) for moment, _, reason in left)
        assert first[0] < second[0] <= SETTINGS.drain_jitter_seconds
        assert all(0 <= milliseconds <= 100 * SETTINGS.drain_jitter_seconds for _, milliseconds in (first, second))
        assert 0 == await site.viewers()


async def test_a_viewer_who_does_not_read_is_cut_and_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    """A send that takes nothing for 15 s ends the stream; the others have everything meanwhile."""
    async with open_site() as site:
        async with websocket(site.app, site.target, room=0) as stalled, websocket(site.app, site.target) as viewer:
            assert await stalled.opened()
            await viewer.opened()
            await site.generate()
            await viewer.until("caught_up")
            site.part(*("x" * 1000 for _ in range(300)))
            started = trio.current_time()
            seen = 0
            while seen < 300:
                seen += len([event for event in await viewer.frame() if event["type"] == "message_part"])
            assert started == trio.current_time()
            await stalled.returned.wait()
            assert SETTINGS.stalled_send_seconds == trio.current_time() - started
            assert 1 == await site.viewers()


async def test_a_viewer_who_reads_too_late_is_told_4003(autojump_clock: trio.testing.MockClock) -> None:
    """Where the server shields its sends, the frame goes out whole in the end, and the close after it."""
    async with open_site() as site:
        sent: list[Message] = []
        read_on = trio.Event()
        told = trio.Event()
        connected, from_peer = trio.open_memory_channel[Message](2)

        async def send(message: Message) -> None:
            sent.append(message)
            if message["type"] == "websocket.send":
                with trio.CancelScope(shield=True):
                    await read_on.wait()
            if message["type"] == "websocket.close":
                told.set()
                connected.send_nowait({"type": "websocket.disconnect", "code": 4003})

        connected.send_nowait({"type": "websocket.connect"})
        scope = scope_of(site.target, {}, type="websocket", scheme="ws", subprotocols=[], extensions={})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(site.app, scope, from_peer.receive, send))
            await trio.sleep(SETTINGS.stalled_send_seconds + 1)
            assert "websocket.send" == sent[-1]["type"]
            read_on.set()
            await told.wait()
        assert ["websocket.accept", "websocket.send", "websocket.close"] == [message["type"] for message in sent]
        assert 4003 == sent[-1]["code"]


@pytest.mark.parametrize("room", [0, float("inf")])
async def test_a_viewer_who_leaves_leaves_nothing(room: float, autojump_clock: trio.testing.MockClock) -> None:
    """At once, also in the middle of a send."""
    async with open_site() as site, websocket(site.app, site.target, room=room) as viewer:
        await viewer.opened()
        assert 1 == await site.viewers()
        started = trio.current_time()
        await viewer.leave()
        await viewer.returned.wait()
        assert started == trio.current_time()
        assert 0 == await site.viewers()


async def test_a_viewer_who_may_no_longer_is_4001(autojump_clock: trio.testing.MockClock) -> None:
    """With `recheck_seconds`, `authorize` is asked again for as long as the stream lasts."""
    allowed = True

    async def may(request: HTTPConnection, chat_id: str | None, action: str) -> bool:
        await trio.lowlevel.checkpoint()
        return allowed

    async with open_site(authorize=may, recheck_seconds=10) as site, websocket(site.app, site.target) as viewer:
        await viewer.opened()
        await trio.sleep(35)
        assert not viewer.returned.is_set()
        allowed = False
        assert (4001, "not allowed any more") == await viewer.closed()
        assert 40 == round(trio.current_time())


async def test_a_failed_stream_is_to_be_asked_for_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure of the engine's own ends one stream, is logged, and the viewer is told to connect again."""

    async def broken(*_: object) -> None:
        raise ValueError("a bug")

    async with open_site() as site, websocket(site.app, site.target) as viewer:
        await viewer.opened()
        await viewer.until("caught_up")
        monkeypatch.setattr(site.engine.store, "read_view", broken)
        await site.engine.interrupt(site.chat_id)
        assert 1001 == (await viewer.closed())[0]
        assert "a stream failed" in caplog.text


async def test_an_engine_that_is_left_sends_its_viewers_elsewhere(autojump_clock: trio.testing.MockClock) -> None:
    """Without a drain too nobody is left hanging."""
    async with trio.open_nursery() as nursery:
        async with open_site() as site:
            app, viewer = site.app, DrivenWebSocket(float("inf"))
            scope = scope_of(site.target, {}, type="websocket", scheme="ws", subprotocols=[], extensions={})
            nursery.start_soon(viewer.run, app, scope)
            await viewer.tell({"type": "websocket.connect"})
            await viewer.opened()
            await viewer.until("caught_up")
        assert (4004, "0") == await viewer.closed()
        await viewer.returned.wait()


# ----------------------------------------------------------------------------------------------------- SSE


def events_of(block: str) -> tuple[str, list[dict[str, Any]]]:
    """What a browser makes of a block: the id, and the lines of data joined."""
    fields = [line.split(": ", 1) for line in block.strip().split("\n")]
    assert {"id", "data"} == {name for name, _ in fields}
    data = "\n".join(value for name, value in fields if name == "data")
    return dict(fields)["id"], json.loads(data)


async def test_sse_carries_the_same_frames(autojump_clock: trio.testing.MockClock) -> None:
    """One event per frame: the array as data, the cursor after it as id, no event field."""
    async with open_site() as site, event_stream(site.app, site.target) as viewer:
        status, headers = await viewer.opened()
        assert (200, "text/event-stream; charset=utf-8") == (status, headers["content-type"])
        assert ("no-cache, no-transform", "no") == (headers["cache-control"], headers["x-accel-buffering"])
        assert ":\n\n" == await viewer.block()
        await site.generate()
        cursor, events = events_of(await viewer.block() or "")
        assert cursor == events[-1]["cursor"]
        await viewer.block()
        site.part("a\nb", "c")
        cursor, events = events_of(await viewer.block() or "")
        assert ["a\nb", "c"] == [event["part"]["text"] for event in events]
        assert cursor == events[-1]["cursor"]


async def test_sse_resumes_with_the_last_event_id(autojump_clock: trio.testing.MockClock) -> None:
    """What a browser sends by itself when it reconnects to the same address brings the rest."""
    async with open_site() as site:
        async with event_stream(site.app, site.target) as viewer:
            await viewer.opened()
            await viewer.block()
            cursor, _ = events_of(await viewer.block() or "")
        headers = {"Last-Event-ID": cursor}
        async with event_stream(site.app, site.target + "?cursor=0-", headers=headers) as viewer:
            await viewer.opened()
            await viewer.block()
            assert "message" not in kinds(events_of(await viewer.block() or "")[1])


async def test_sse_has_a_comment_as_heartbeat(autojump_clock: trio.testing.MockClock) -> None:
    """Every 15 s of silence."""
    async with open_site() as site, event_stream(site.app, site.target) as viewer:
        await viewer.opened()
        await viewer.block()
        await viewer.block()
        started = trio.current_time()
        assert [":\n\n", ":\n\n"] == [await viewer.block(), await viewer.block()]
        assert 30 == trio.current_time() - started


async def test_sse_of_a_draining_replica_says_when_to_come_back(autojump_clock: trio.testing.MockClock) -> None:
    """The last thing is the time to wait before the browser reconnects."""
    async with open_site() as site, event_stream(site.app, site.target) as viewer:
        await viewer.opened()
        await viewer.block()
        await viewer.block()
        await site.engine.drain()
        assert "retry: 100\n\n" == await viewer.block()
        await viewer.returned.wait()


async def test_sse_of_a_deleted_chat_ends(autojump_clock: trio.testing.MockClock) -> None:
    """The browser comes back, and is told 404."""
    async with open_site() as site, event_stream(site.app, site.target) as viewer:
        await viewer.opened()
        await viewer.block()
        await viewer.block()
        await site.engine.delete_chat(site.chat_id)
        assert await viewer.block() is None
        await viewer.returned.wait()
        async with http_client(site.app) as http:
            assert 404 == (await http.get(site.target)).status_code


async def test_sse_ends_when_the_browser_leaves_or_does_not_read(autojump_clock: trio.testing.MockClock) -> None:
    """At once in the one case, after 15 s in the other; nothing is left."""
    async with open_site() as site:
        async with event_stream(site.app, site.target) as viewer:
            await viewer.opened()
            await viewer.leave()
            await viewer.returned.wait()
            assert 0 == trio.current_time()
        async with event_stream(site.app, site.target, room=0) as viewer:
            await viewer.opened()
            await viewer.block()
            await viewer.returned.wait()
            assert SETTINGS.stalled_send_seconds == trio.current_time()
        assert 0 == await site.viewers()


async def test_head_of_a_stream_is_its_head(autojump_clock: trio.testing.MockClock) -> None:
    """It ends."""
    async with open_site() as site, http_client(site.app) as http:
        answer = await http.head(site.target)
        assert (200, "text/event-stream; charset=utf-8") == (answer.status_code, answer.headers["content-type"])


# ------------------------------------------------------------------------------------------ parts endpoint


def grant(site: Site, *, secret: bytes = SECRET, now: float | None = None) -> dict[str, str]:
    import time

    made = make_connection_grant(
        secret, source="peer", target=site.engine.replica_id, now=time.time() if now is None else now
    )
    return {SOURCE_HEADER: "peer", GRANT_HEADER: made}


async def test_a_replica_with_the_secret_is_served_parts(autojump_clock: trio.testing.MockClock) -> None:
    """Selects in, bursts out: the endpoint over the app's WebSocket."""
    import time

    async with open_site() as site, websocket(site.app, "/relay/v1/parts", headers=grant(site)) as peer:
        assert await peer.opened()
        await site.generate()
        site.part("a", "b")
        granted = make_select_grant(
            SECRET, chat_id=site.chat_id, source="peer", target=site.engine.replica_id, now=time.time()
        )
        select = peer_wire.encode_control(peer_wire.Select(1, site.chat_id, site.episode, 0, granted))
        assert isinstance(select, str)
        await peer.say(select)
        frame = (await peer.next())["bytes"]
        burst = peer_wire.decode_control(frame, limit_bytes=10_000)
        assert isinstance(burst, peer_wire.LegBurst)
        assert (1, 2) == (burst.burst.first_seq, burst.burst.count)
        await peer.leave()
        await peer.returned.wait()


async def test_a_peer_that_is_silent_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """A connection that nobody uses any more is closed."""
    async with open_site() as site, websocket(site.app, "/relay/v1/parts", headers=grant(site)) as peer:
        assert await peer.opened()
        assert 1001 == (await peer.closed())[0]
        assert SETTINGS.silence_seconds == trio.current_time()


async def test_a_replica_without_the_secret_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """Another secret, an old grant or none: 401 before the upgrade."""
    async with open_site() as site:
        other = grant(site, secret=b"another secret, just as long")
        for headers in ({}, other, grant(site, now=0.0)):
            async with websocket(site.app, "/relay/v1/parts", headers=headers) as peer:
                status, problem = await peer.denied()
                assert (401, TYPE_PREFIX + "invalid-grant") == (status, problem["type"])


async def test_without_a_secret_there_is_no_parts_endpoint(autojump_clock: trio.testing.MockClock) -> None:
    """A replica that shares no secret serves no other."""
    async with open_engine("memory://") as engine:
        async with websocket(engine.asgi_app(), "/relay/v1/parts") as peer:
            assert 404 == (await peer.denied())[0]
