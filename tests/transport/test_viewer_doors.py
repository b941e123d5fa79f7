"""Every door to a stream keeps the same promises: the ASGI app, and the viewer listener with and without TLS.

Each scenario is played at each door, on virtual time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, TypeAlias

import attrs
import pytest
import trio
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from trio.testing import MockClock

from relaytrio._errors import ReplicaDraining
from relaytrio._protocol.events import Cursor
from relaytrio._settings import Settings
from relaytrio.transport._problems import TYPE_PREFIX
from relaytrio.transport._viewers import Viewers
from tests.transport.asgi_driver import DrivenWebSocket, websocket
from tests.transport.site import SETTINGS, Site, half, open_site
from tests.transport.viewer_client import Client, connect, server_context

Kind: TypeAlias = Literal["app", "socket", "tls"]
Viewer: TypeAlias = DrivenWebSocket | Client
Connect: TypeAlias = Callable[..., AbstractAsyncContextManager[Viewer]]


@attrs.frozen
class Door:
    """A site, and the way in."""

    site: Site
    connect: Connect
    """`connect(target=the chat's stream, headers=...)`: a viewer who has asked."""


@pytest.fixture(params=["app", "socket", "tls"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which door."""
    door: Kind = request.param
    return door


@asynccontextmanager
async def open_door(
    kind: Kind, settings: Settings = SETTINGS, *, random: Callable[[], float] = half, **options: Any
) -> AsyncIterator[Door]:
    """A site with that door."""
    async with trio.open_nursery() as nursery, open_site(settings, random=random, **options) as site:
        tls = server_context() if kind == "tls" else None
        recheck, authorize = options.get("recheck_seconds"), options.get("authorize")
        viewers = Viewers(site.engine, authorize, recheck_seconds=recheck, ssl_context=tls, random=random)
        await nursery.start(viewers.run)

        @asynccontextmanager
        async def come(target: str | None = None, headers: Mapping[str, str] | None = None) -> AsyncIterator[Viewer]:
            target = target or site.target
            if kind == "app":
                async with websocket(site.app, target, headers=headers) as driven:
                    yield driven
            else:
                async with connect(viewers, tls=kind == "tls") as client:
                    await client.ask(target, headers)
                    yield client

        yield Door(site, come)
        nursery.cancel_scope.cancel()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_a_whole_turn(kind: Kind, autojump_clock: MockClock) -> None:
    """History, the parts in order, the answer: text frames, each an array of events."""
    async with open_door(kind) as door, door.connect() as viewer:
        assert await viewer.opened()
        assert ["message", "queue_update", "status", "caught_up"] == kinds(await viewer.until("caught_up"))
        await door.site.generate()
        await viewer.until("status")
        for number in range(5):
            door.site.part(f"{number}a", f"{number}b")
            parts = await viewer.until("message_part")
            expected = [(f"{number}a", 2 * number + 1), (f"{number}b", 2 * number + 2)]
            assert expected == [(event["part"]["text"], event["seq"]) for event in parts]
        await door.site.finish("all")
        message, *_ = await viewer.until("message")
        assert "all" == message["message"]["content"][0]["text"]
        assert message["message"]["id"] == Cursor.parse(message["cursor"]).message.id


async def test_a_cursor_brings_exactly_the_rest(kind: Kind, autojump_clock: MockClock) -> None:
    """`cursor` outranks `after_message_id`, and `Last-Event-ID` outranks both; in the middle of an answer too."""
    async with open_door(kind) as door:
        async with door.connect() as viewer:
            await viewer.opened()
            cursor = (await viewer.until("caught_up"))[-1]["cursor"]
        for query, headers in [
            (f"?cursor={cursor}", {}),
            (f"?cursor={cursor}&after_message_id=0", {}),
            ("?after_message_id=1", {}),
            ("?cursor=nonsense", {"Last-Event-ID": cursor}),
        ]:
            async with door.connect(door.site.target + query, headers) as viewer:
                await viewer.opened()
                assert ["queue_update", "status", "caught_up"] == kinds(await viewer.until("caught_up"))
        await door.site.generate()
        door.site.part("a", "b", "c")
        async with door.connect() as viewer:
            await viewer.opened()
            parts = await viewer.until("message_part")
        async with door.connect(f"{door.site.target}?cursor={parts[-2]['cursor']}") as viewer:
            await viewer.opened()
            assert [3] == [event["seq"] for event in await viewer.until("message_part") if "seq" in event]


async def test_who_may_not_is_refused_before_the_upgrade(kind: Kind, autojump_clock: MockClock) -> None:
    """`authorize` sees the request, and its answer or its exception stands: a status and a problem."""

    async def may(request: HTTPConnection, chat_id: str | None, action: str) -> bool:
        await trio.lowlevel.checkpoint()
        if "x-user" not in request.headers:
            raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})
        seen.append((chat_id, action, request.query_params.get("ticket"), request.url.path))
        return request.query_params.get("ticket") == "t" and request.headers["x-user"] == "ada"

    seen: list[object] = []
    async with open_door(kind, authorize=may) as door:
        target, ada = door.site.target, {"X-User": "ada"}
        async with door.connect(target) as viewer:
            assert (401, "who are you?") == ((denied := await viewer.denied())[0], denied[1]["title"])
        async with door.connect(target + "?cursor=nonsense", ada) as viewer:
            status, problem = await viewer.denied()
            assert (403, TYPE_PREFIX + "not-allowed") == (status, problem["type"])
        async with door.connect(target + "?ticket=t", ada) as viewer:
            assert await viewer.opened()
        assert [(door.site.chat_id, "stream", ticket, target) for ticket in (None, "t")] == seen
        assert 0 == await door.site.viewers()


async def test_what_is_not_there_is_refused_before_the_upgrade(kind: Kind, autojump_clock: MockClock) -> None:
    """An unknown chat, an id that no chat has, an unknown path."""
    async with open_door(kind) as door:
        for target, name in [
            ("/v1/chats/none/stream", "chat-not-found"),
            ("/v1/chats/none/other", "route-not-found"),
        ]:
            async with door.connect(target) as viewer:
                status, problem = await viewer.denied()
                assert (404, TYPE_PREFIX + name) == (status, problem["type"])


@pytest.mark.parametrize("query", ["cursor=nonsense", "cursor=", "after_message_id=-1", f"cursor={10**30}-aaaaa"])
async def test_a_malformed_cursor_is_4006(kind: Kind, query: str, autojump_clock: MockClock) -> None:
    """A browser learns it from the close code: it cannot read a status."""
    async with open_door(kind) as door, door.connect(f"{door.site.target}?{query}") as viewer:
        assert await viewer.opened()
        assert (4006, "invalid-cursor") == await viewer.closed()
        await viewer.returned.wait()
        assert 0 == trio.current_time()
        assert 0 == await door.site.viewers()


async def test_an_idle_stream_carries_heartbeats(kind: Kind, autojump_clock: MockClock) -> None:
    """An empty frame every 15 s, counted from what was sent last."""
    async with open_door(kind) as door, door.connect() as viewer:
        await viewer.opened()
        await viewer.until("caught_up")
        assert [[], []] == [await viewer.frame(), await viewer.frame()]
        assert 30 == trio.current_time()
        await trio.sleep(10)
        await viewer.say("[]")
        await door.site.generate()
        await viewer.until("status")
        door.site.part("a")
        await viewer.until("message_part")
        assert [] == await viewer.frame()
        assert 55 == trio.current_time()


async def test_a_viewer_with_heartbeats_stays_and_a_silent_one_goes(kind: Kind, autojump_clock: MockClock) -> None:
    """Who is not heard for 45 s is gone: his socket only does not know."""
    async with open_door(kind) as door, door.connect() as viewer:
        await viewer.opened()
        for _ in range(20):
            await trio.sleep(44)
            await viewer.say("[]")
        assert not viewer.returned.is_set()
        started = trio.current_time()
        with pytest.raises(AssertionError):
            while True:
                await viewer.frame()
        assert 45 == trio.current_time() - started
        await viewer.leave()
        await viewer.returned.wait()


@pytest.mark.parametrize(("frame", "code"), [("{}", 4006), ("[1]", 4006), ("", 4006), ("x" * 1001, 1009)])
async def test_a_viewer_who_says_anything_else_is_closed(
    kind: Kind, frame: str, code: int, autojump_clock: MockClock
) -> None:
    """In comes nothing but the heartbeat."""
    async with open_door(kind) as door, door.connect() as viewer:
        await viewer.opened()
        await viewer.until("caught_up")
        await viewer.say(frame)
        assert code == (await viewer.closed())[0]
        await viewer.returned.wait()
        assert 0 == await door.site.viewers()


async def test_a_deleted_chat_is_4005(kind: Kind, autojump_clock: MockClock) -> None:
    """Its viewers are told that there is nothing to come back to."""
    async with open_door(kind) as door, door.connect() as viewer:
        await viewer.opened()
        await door.site.engine.delete_chat(door.site.chat_id)
        assert (4005, "the chat was deleted") == await viewer.closed()
        await viewer.returned.wait()


async def test_viewers_of_a_draining_replica_leave_spread_over_time(kind: Kind, autojump_clock: MockClock) -> None:
    """Each at a moment of its own, told how many milliseconds to wait; who comes then is refused with a time too."""
    draws: Iterator[float] = iter([0.0, 0.25, 0.9, 0.5])
    async with open_door(kind, random=lambda: next(draws)) as door, trio.open_nursery() as nursery:
        left: list[tuple[float, int, str]] = []

        async def view() -> None:
            async with door.connect() as viewer:
                await viewer.opened()
                code, reason = await viewer.closed()
                left.append((trio.current_time(), code, reason))

        nursery.start_soon(view)
        nursery.start_soon(view)
        assert 2 == await door.site.viewers()
        await door.site.engine.drain()
        await trio.sleep(SETTINGS.drain_jitter_seconds)
        assert [(0.0, 4004, "50"), (1.8, 4004, "100")] == sorted(left)
        async with door.connect() as viewer:
            status, problem = await viewer.denied()
            assert (503, TYPE_PREFIX + "replica-draining") == (status, problem["type"])


async def test_a_viewer_who_leaves_leaves_nothing(kind: Kind, autojump_clock: MockClock) -> None:
    """At once."""
    async with open_door(kind) as door, door.connect() as viewer:
        await viewer.opened()
        assert 1 == await door.site.viewers()
        await viewer.leave()
        await viewer.returned.wait()
        assert 0 == trio.current_time()
        assert 0 == await door.site.viewers()


async def test_a_viewer_who_may_no_longer_is_4001(kind: Kind, autojump_clock: MockClock) -> None:
    """With `recheck_seconds`, `authorize` is asked again for as long as the stream lasts."""
    allowed = True
    async with open_door(kind, authorize=lambda *_: allowed, recheck_seconds=10) as door, door.connect() as viewer:
        await viewer.opened()
        await trio.sleep(35)
        assert not viewer.returned.is_set()
        allowed = False
        with pytest.raises(AssertionError):
            while True:
                await viewer.frame()
        assert 40 == round(trio.current_time())


async def test_a_failed_stream_is_to_be_asked_for_again(
    kind: Kind, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure of the engine's own ends one stream, is logged, and the viewer is told to connect again."""

    async def broken(*_: object) -> None:
        raise ValueError("a bug")

    async with open_door(kind) as door, door.connect() as viewer:
        await viewer.opened()
        await viewer.until("caught_up")
        monkeypatch.setattr(door.site.engine.store, "read_view", broken)
        await door.site.engine.interrupt(door.site.chat_id)
        assert 1001 == (await viewer.closed())[0]
        assert "a stream failed" in caplog.text


async def test_an_engine_that_is_left_sends_its_viewers_elsewhere(kind: Kind, autojump_clock: MockClock) -> None:
    """Without a drain too nobody is left hanging."""
    async with open_door(kind) as door, door.connect() as viewer:
        await viewer.opened()
        await viewer.until("caught_up")
        door.site.engine._hints.finish_all(lambda: ReplicaDraining(0.0))
        assert (4004, "0") == await viewer.closed()
        await viewer.returned.wait()


async def test_the_last_parts_come_before_the_message(kind: Kind, autojump_clock: MockClock) -> None:
    """A view that ends an episode waits for its rows, at most 200 ms, and the end of the log ends that wait."""
    async with open_door(kind) as door, door.connect() as viewer:
        site = door.site
        await viewer.opened()
        await viewer.until("caught_up")
        await site.generate()
        await viewer.until("status")
        site.part("a")
        await viewer.until("message_part")
        log = site.engine.parts.find(site.chat_id, site.episode)
        assert log is not None
        monkey, log.seal = log.seal, lambda *_: True  # type: ignore[method-assign]
        await site.finish("ab")
        await trio.sleep(0.1)
        site.part("b")
        assert ["message_part"] == kinds(await viewer.frame())
        monkey()
        assert "message" in kinds(await viewer.frame())
        assert 0.1 == trio.current_time()


async def test_what_was_lost_of_a_log_is_told(kind: Kind, autojump_clock: MockClock) -> None:
    """A log that drops its beginning before a viewer has read it: `preview_reset`, and the rows that are left."""
    settings = attrs.evolve(SETTINGS, part_log_bytes=2000)
    async with open_door(kind, settings) as door, door.connect() as viewer:
        await viewer.opened()
        await viewer.until("caught_up")
        await door.site.generate()
        await viewer.until("status")
        door.site.part("a")
        await viewer.until("message_part")
        door.site.part(*("x" * 500 for _ in range(20)))
        events = await viewer.until("message_part")
        reset, part = events[0], events[1]
        assert ("preview_reset", "truncated") == (reset["type"], reset["reason"])
        assert part["seq"] == reset["first_seq"] > 2
