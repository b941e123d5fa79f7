"""The parts endpoint, served to a peer that takes its frames one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._errors import ChatNotFound
from relaytrio._parts import PartLog, PartLogs
from relaytrio._protocol.burst import join
from relaytrio._protocol.chat import Chat
from relaytrio._protocol.events import Episode
from relaytrio._protocol.peer_wire import Control, Ended, LegBurst, Select, decode_control, encode_control
from relaytrio._settings import Settings
from relaytrio.stores._base import Store
from relaytrio.transport._connection import PromptConnection
from relaytrio.transport.grants import make_select_grant
from relaytrio.transport.parts_endpoint import serve_parts
from tests.protocol.wires import text_rows

SECRET = b"secret"
HERE, PEER = "replica-b", "replica-a"
NOW = 1_700_000_000.0
EPISODE = Episode(5, 2, "run0")
NEXT = Episode(5, 3, "run0")
MUCH = 1 << 20


def rows(*seqs: int, episode: Episode = EPISODE, size: int = 0) -> list[bytes]:
    return text_rows(*seqs, episode=episode, size=size)


def append(log: PartLog, *seqs: int, size: int = 0) -> None:
    log.append(rows(*seqs, episode=log.episode, size=size))


def burst(*seqs: int, episode: Episode = EPISODE, leg: int = 1, truncated: bool = False) -> LegBurst:
    return LegBurst(leg, join(episode, seqs[0], rows(*seqs, episode=episode), truncated=truncated))


def sealed(last_seq: int, episode: Episode = EPISODE, leg: int = 1) -> Ended:
    return Ended(leg, episode, "sealed", last_seq)


def leg_of(frame: Control) -> int:
    assert isinstance(frame, LegBurst | Ended)
    return frame.leg


class Chats:
    """A store of which only `read_chat` is asked."""

    def __init__(self) -> None:
        self.chat: Chat | Exception = ChatNotFound("no chat")
        self.reads = 0
        self.reading = 0
        self.gate = trio.Event()
        self.gate.set()

    def owned_by(self, worker_id: str | None, episode: Episode = EPISODE) -> None:
        self.chat = Chat(
            id="chat",
            status="running",
            worker_id=worker_id,
            run_id=None if worker_id is None else episode.run_id,
            history_version=episode.history_version,
            generation_attempt=episode.generation_attempt,
        )

    async def read_chat(self, chat_id: str) -> Chat:
        self.reads += 1
        self.reading += 1
        try:
            await self.gate.wait()
        finally:
            self.reading -= 1
        if isinstance(self.chat, Exception):
            raise self.chat
        return self.chat


class Peer:
    """The other end of a connection: it takes a frame only when the test does."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.closed = 0
        self.sends_cancelled = 0
        self.sends_after_that = 0
        self.sending: str | bytes | None = None
        self._to_endpoint, self._incoming = trio.open_memory_channel[str | bytes](100_000)
        self._outgoing, self._from_endpoint = trio.open_memory_channel[str | bytes](0)

    # the endpoint's side

    async def receive(self) -> str | bytes:
        return await self._incoming.receive()

    async def send(self, frame: str | bytes) -> None:
        if self.sends_cancelled:
            self.sends_after_that += 1
        self.sending = frame
        try:
            await self._outgoing.send(frame)
            self.sending = None
        except trio.Cancelled:
            self.sends_cancelled += 1
            raise

    async def aclose_forcefully(self) -> None:
        self.closed += 1
        self._incoming.close()
        self._outgoing.close()

    # the test's side

    def say(self, frame: Control | str | bytes) -> None:
        self._to_endpoint.send_nowait(frame if isinstance(frame, str | bytes) else encode_control(frame))

    def select(
        self,
        episode: Episode = EPISODE,
        after_seq: int = 0,
        *,
        leg: int = 1,
        chat: str = "chat",
        grant: str | None = None,
        bundles: bool = False,
    ) -> None:
        if grant is None:
            grant = make_select_grant(SECRET, chat_id=chat, source=PEER, target=HERE, now=NOW)
        self.say(Select(leg, chat, episode, after_seq, grant, bundles))

    async def next(self) -> Control | None:
        with trio.fail_after(1000):
            return decode_control(await self._from_endpoint.receive(), limit_bytes=MUCH)

    async def nothing_comes(self) -> None:
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            self._from_endpoint.receive_nowait()

    def leave(self) -> None:
        self._to_endpoint.close()


class PromptPeer(Peer, PromptConnection):
    """One whose connection takes a frame without waiting, as far as the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.free = True
        self.whole = True
        """What is sent goes out whole."""
        self.lost: type[Exception] | None = None
        self.sent: list[Control | None] = []
        """Without waiting."""
        self.flushed = 0

    @property
    def is_free(self) -> bool:
        return self.free

    def send_now(self, frame: str | bytes) -> bool:
        if self.lost is not None:
            raise self.lost
        self.sent.append(decode_control(frame, limit_bytes=MUCH))
        return self.whole

    async def flush(self) -> None:
        self.flushed += 1
        await trio.lowlevel.checkpoint()
        if self.lost is not None:
            raise self.lost

    def taken(self) -> list[Control | None]:
        taken, self.sent = self.sent, []
        return taken


@attrs.define
class Endpoint:
    """An endpoint that is being served, and what it serves from."""

    parts: PartLogs
    chats: Chats
    peer: Any  # Peer, or PromptPeer
    settings: Settings
    now: float = NOW
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)

    def log(self, *seqs: int, episode: Episode = EPISODE, seal: bool = False, chat: str = "chat") -> PartLog:
        log = self.parts.make(chat, episode)
        append(log, *seqs)
        if seal:
            log.seal()
        return log

    @property
    def watched(self) -> int:
        return len(self.parts.watched)

    async def serve(self) -> None:
        with self.scope:
            self.peer.reason = await serve_parts(
                self.peer,
                parts=self.parts,
                store=cast("Store", self.chats),
                replica_id=HERE,
                secret=SECRET,
                source=PEER,
                settings=self.settings,
                clock=lambda: self.now,
            )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Peer]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.serve)  # noqa: ASYNC113 - that it is not there yet is part of the test
            yield self.peer
            self.scope.cancel()

    async def ends(self, because: str) -> None:
        """The connection was given up for that reason, closed, and nothing of it is left."""
        await wait_all_tasks_blocked()
        assert self.peer.reason is not None
        assert because in self.peer.reason
        assert (self.peer.closed, self.watched) == (1, 0)
