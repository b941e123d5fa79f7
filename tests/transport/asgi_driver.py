"""Drives an ASGI app in the same process, without a server: the test is the server, and decides what the peer reads.

httpx's own ASGI transport serves plain requests; it waits for the end of an answer, which a stream does not have.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
import trio
from starlette.types import ASGIApp, Message

BASE = "http://replica"

_Driven = TypeVar("_Driven", bound="Driven")


@asynccontextmanager
async def http_client(app: ASGIApp, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Requests to the app."""
    transport = httpx.ASGITransport(app=app, **options)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


class Driven:
    """One request that stays open: what the app sends, and what is sent to it."""

    def __init__(self, room: float) -> None:
        self._out, self._sent = trio.open_memory_channel[Message](room)
        self._to_app, self._from_peer = trio.open_memory_channel[Message](10)
        self.returned = trio.Event()
        """The app has returned."""

    async def receive(self) -> Message:
        return await self._from_peer.receive()

    async def send(self, message: Message) -> None:
        await self._out.send(message)

    async def tell(self, message: Message) -> None:
        """What the peer does."""
        await self._to_app.send(message)

    async def next(self) -> Message:
        """The next message of the app's."""
        return await self._sent.receive()

    async def run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        await app(scope, self.receive, self.send)
        self.returned.set()


class DrivenWebSocket(Driven):
    """A WebSocket's peer that keeps the protocol."""

    async def opened(self) -> bool:
        """Whether the upgrade was accepted."""
        self.denial = await self.next()
        return bool(self.denial["type"] == "websocket.accept")

    async def denied(self) -> tuple[int, dict[str, Any]]:
        """The status and the problem with which the upgrade was refused."""
        assert not await self.opened()
        assert self.denial["type"] == "websocket.http.response.start"
        body = await self.next()
        return self.denial["status"], json.loads(body["body"])

    async def frame(self) -> list[dict[str, Any]]:
        """The next text frame."""
        message = await self.next()
        assert message["type"] == "websocket.send", message
        events: list[dict[str, Any]] = json.loads(message["text"])
        return events

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """All events up to the first of that type."""
        events: list[dict[str, Any]] = []
        while not any(event["type"] == kind for event in events):
            events += await self.frame()
        return events

    async def closed(self) -> tuple[int, str]:
        """The close code and its reason; it is answered, as a peer does."""
        while True:
            message = await self.next()
            if message["type"] == "websocket.close":
                await self.tell({"type": "websocket.disconnect", "code": message["code"]})
                return message["code"], message["reason"]

    async def say(self, text: str) -> None:
        """A text frame of the peer's."""
        await self.tell({"type": "websocket.receive", "text": text})

    async def leave(self) -> None:
        """The peer is gone."""
        await self.tell({"type": "websocket.disconnect", "code": 1006})


class DrivenEventStream(Driven):
    """An EventSource."""

    async def opened(self) -> tuple[int, dict[str, str]]:
        """The status and the headers."""
        start = await self.next()
        return start["status"], {name.decode().lower(): value.decode() for name, value in start["headers"]}

    async def block(self) -> str | None:
        """The next thing sent; None at the end."""
        message = await self.next()
        text: str = message["body"].decode()
        return text if text or message.get("more_body") else None

    async def leave(self) -> None:
        """The browser is gone."""
        await self.tell({"type": "http.disconnect"})


@asynccontextmanager
async def websocket(
    app: ASGIApp,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    room: float = float("inf"),
    can_deny: bool = True,
) -> AsyncIterator[DrivenWebSocket]:
    """Ask for an upgrade. Of what the app sends, `room` messages need not be read."""
    extensions: dict[str, Any] = {"websocket.http.response": {}} if can_deny else {}
    scope = scope_of(target, headers or {}, type="websocket", scheme="ws", subprotocols=[], extensions=extensions)
    async with _running(app, scope, lambda: DrivenWebSocket(room)) as driven:
        await driven.tell({"type": "websocket.connect"})
        yield driven


@asynccontextmanager
async def event_stream(
    app: ASGIApp,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    room: float = float("inf"),
    method: str = "GET",
) -> AsyncIterator[DrivenEventStream]:
    """Ask for a stream without an upgrade."""
    scope = scope_of(target, headers or {}, type="http", scheme="http", method=method)
    async with _running(app, scope, lambda: DrivenEventStream(room)) as driven:
        await driven.tell({"type": "http.request", "body": b"", "more_body": False})
        yield driven


def scope_of(target: str, headers: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """What a server says of a request."""
    path, _, query = target.partition("?")
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": raw,
        "client": ("10.0.0.9", 1),
        "server": ("replica", 80),
        **more,
    }


@asynccontextmanager
async def _running(app: ASGIApp, scope: dict[str, Any], make: Callable[[], _Driven]) -> AsyncIterator[_Driven]:
    driven = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driven.run, app, scope)
        yield driven
        nursery.cancel_scope.cancel()
