"""A replica whose worker is the test: what the tests of viewers' transports have before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
from trio.testing import wait_all_tasks_blocked

from relaytrio._engine import Engine, open_engine
from relaytrio._protocol.chat import Acquire, FinishTurn, NewMessage
from relaytrio._protocol.content import user_message
from relaytrio._protocol.events import Cursor, Episode
from relaytrio._settings import Settings
from relaytrio.testing import text_burst
from relaytrio.transport.asgi import make_asgi_app

SETTINGS = Settings(client_frame_bytes=1000)
SECRET = b"a secret of the cluster"


@attrs.define
class Site:
    """A replica with one chat, whose worker is the test."""

    engine: Engine
    app: Any
    chat_id: str = ""
    episode: Episode = Episode(0, 0, "")
    begun_after: Cursor = Cursor()

    @property
    def target(self) -> str:
        return f"/v1/chats/{self.chat_id}/stream"

    async def generate(self) -> None:
        """A run on this replica begins."""
        answer = (await self.engine.store.apply(self.chat_id, Acquire(worker_id="w", run_id="r"))).answer
        self.episode = Episode(answer.history_version, answer.generation_attempt, "r")
        self.begun_after = Cursor((await self.engine.list_messages(self.chat_id))[-1].ref)
        self.engine.parts.make(self.chat_id, self.episode)
        await self.look()

    def part(self, *texts: str) -> None:
        """The responder sends parts."""
        log = self.engine.parts.find(self.chat_id, self.episode)
        assert log is not None
        log.append(text_burst(self.episode, texts, first_seq=log.last_seq + 1, cursor=self.begun_after).split())

    async def finish(self, text: str) -> None:
        """The turn ends with this answer."""
        log = self.engine.parts.find(self.chat_id, self.episode)
        assert log is not None
        log.seal()
        message = NewMessage(role="assistant", content=[{"type": "text", "text": text}])
        await self.engine.store.apply(self.chat_id, FinishTurn(run_id="r", token="t", messages=(message,)))
        await self.look()

    async def look(self) -> None:
        """The hint of a transition."""
        self.engine._hints.announce(await self.engine.get_chat(self.chat_id))

    async def viewers(self) -> int:
        """Those that are left when all that can happen has happened."""
        await wait_all_tasks_blocked()
        return self.engine.stats().subscriptions


def half() -> float:
    """What is drawn where nothing else was said."""
    return 0.5


@asynccontextmanager
async def open_site(settings: Settings = SETTINGS, *, random: Any = None, **options: Any) -> AsyncIterator[Site]:
    async with open_engine("memory://", settings=settings, relay=None, secret=SECRET) as engine:
        app = make_asgi_app(engine, random=random or half, **options)
        chat = await engine.create_chat([user_message("hi")])
        yield Site(engine, app, chat.id)
