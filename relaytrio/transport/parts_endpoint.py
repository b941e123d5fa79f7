"""The parts endpoint: serves the rows of episodes that are generated here to the replicas whose viewers want them.

Neutral to what carries the frames: the ASGI app and a plain trio-websocket server hand in a `FrameConnection`. One
connection carries many legs; one task writes for all of them, a frame for each in turn, with all rows that came while
the last send was under way, and those that come right behind them. A row that comes alone need not wait for that task:
it leaves in the step in which it is appended. The end of an episode is a frame, never a close.

A request with a good grant is served from logs made here, never from copies, and nothing is ever dialed for it.

Must not know: HTTP, viewers. Who calls: whoever accepts a peer's connection, after `authorize_peer`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import trio

from .. import _seams
from .._errors import ChatNotFound, StoreError
from .._parts import PartLogs
from .._protocol.chat import Chat
from .._protocol.peer_wire import Heartbeat, Release, Select, encode_control
from .._seams import seam
from .._settings import Settings
from .._wakeup import Wakeup
from ..stores._base import Store
from ._connection import (
    FrameConnection,
    Incoming,
    PromptConnection,
    flush_control,
    send_control,
    unless_idle,
)
from ._selections import Selection, Selections, verdict
from ._tasks import ConnectionLost, run_until_lost
from .grants import GRANT_HEADER, SOURCE_HEADER, InvalidGrant, check_connection_grant, check_select_grant

LOOKUPS = 16
"""Reads of the store that one connection may have under way."""
TOGETHER = 32
"""Parts, or batches of them, that are let come together: a frame costs as much as so many parts do."""
QUIET_TURNS = 2
"""Turns of the loop in which nothing came, after which no more is let come. A responder takes one or two for a part."""
PAUSE_SECONDS = 0.0005
"""Parts that come closer to each other than that come together."""
FEW = 4
"""Parts that come together, as two of a token stream do when a timer was late, and are sent as if each were alone."""
CLOSING_SECONDS = 1.0
"""The longest that letting go of a connection may take."""


def authorize_peer(headers: Mapping[str, str], *, secret: bytes, replica_id: str, now: float) -> str:
    """The id of the replica that asks to be served, from the headers of its handshake (their names in any case).

    Raises `InvalidGrant`: answer 401. `now` is in seconds of the wall clock.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    source = lowered.get(SOURCE_HEADER.lower())
    grant = lowered.get(GRANT_HEADER.lower())
    if not source or not grant:
        raise InvalidGrant(f"{SOURCE_HEADER} and {GRANT_HEADER} are required")
    check_connection_grant(secret, grant, source=source, target=replica_id, now=now)
    return source


async def serve_parts(
    connection: FrameConnection,
    *,
    parts: PartLogs,
    store: Store,
    replica_id: str,
    secret: bytes,
    source: str,
    settings: Settings,
    clock: Callable[[], float] = time.time,
) -> str:
    """Serve one peer's legs until its connection is lost; gives the reason. Closes the connection, however it ends.

    `source` is what `authorize_peer` gave. `clock` gives the wall-clock seconds for grants.
    """
    endpoint = _Endpoint(connection, parts, store, replica_id, secret, source, settings, clock)
    try:
        return await run_until_lost(endpoint.read, endpoint.incoming.until_silent, endpoint.write)
    finally:
        endpoint.selections.close()
        # Shielded: it does not wait by its contract, and one that does must not hang a shutdown.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSING_SECONDS):
            await connection.aclose_forcefully()


class _Endpoint:
    """One peer's connection."""

    def __init__(
        self,
        connection: FrameConnection,
        parts: PartLogs,
        store: Store,
        replica_id: str,
        secret: bytes,
        source: str,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._prompt = connection if isinstance(connection, PromptConnection) else None
        self.incoming = Incoming(connection, settings)
        self._store = store
        self._replica_id = replica_id
        self._secret = secret
        self._source = source
        self._settings = settings
        self._clock = clock
        self._wakeup = Wakeup()
        self._news = 0
        """How often there was something to send."""
        self._is_idle = False
        """The writer waits for something to send."""
        self._has_rest = False
        """What was sent beside the writer has not gone out whole, or the connection was lost by that."""
        self._came_at = -math.inf
        self._together = self._together_before = 0
        """How many parts came since there was a pause, and between it and the one before."""
        self._lookups = trio.Semaphore(LOOKUPS)
        self.selections = Selections(
            parts,
            burst_bytes=settings.burst_bytes,
            runs=settings.max_runs,
            wake=self._notice,
            wake_for_rows=self._notice_rows,
        )

    async def read(self) -> NoReturn:
        """Take selects and releases. Waits for nothing else: neither for the store nor for the writer."""
        async with trio.open_nursery() as nursery:
            while True:
                match await self.incoming.next():
                    case Select() as select:
                        self._select(select, nursery)
                    case Release(leg):
                        self.selections.release(leg)
                    case Heartbeat() | None:
                        pass
                    case _:
                        raise ConnectionLost("it sent a frame that is not its to send")

    async def write(self) -> NoReturn:
        """Send what there is, a leg at a time, and heartbeats when there is nothing."""
        while True:
            if self._prompt is not None and self._has_rest:
                self._has_rest = False
                await flush_control(self._prompt, self._settings)
            frame = self.selections.next_frame() or await self._wait()
            if frame is not None:
                news = self._news
                await seam("frame taken, not sent", replica_id=self._replica_id)
                await send_control(self._connection, frame, self._settings)
                if self._news != news:
                    await self._let_come()

    async def _wait(self) -> Heartbeat | None:
        """Return when there may be something to send."""
        self._is_idle = True
        try:
            return await unless_idle(self._wakeup.wait, self._settings)
        finally:
            self._is_idle = False

    async def _let_come(self) -> None:
        """Parts come faster than frames go out: let some come together, for as long as more of them come.

        No time is waited for, and nothing at all after a part that came alone.
        """
        enough, quiet = self._news + TOGETHER, 0
        while self._news < enough and quiet < QUIET_TURNS:
            news = self._news
            await trio.lowlevel.checkpoint()
            quiet = quiet + 1 if self._news == news else 0

    def _notice(self) -> None:
        self._news += 1
        self._wakeup.set()

    def _notice_rows(self) -> None:
        """Called in the step in which they are appended. One that comes alone, or with few, leaves in that step."""
        self._news += 1
        if not (self._is_idle and self._counted_few() and self._send_now()):
            self._wakeup.set()

    def _counted_few(self) -> bool:
        """Count one more. Whether there are few that came together until now, and were when a pause ended before."""
        now = trio.current_time()
        if now - self._came_at >= PAUSE_SECONDS:
            self._together_before, self._together = self._together, 0
        self._came_at = now
        self._together += 1
        return max(self._together, self._together_before) <= FEW

    def _send_now(self) -> bool:
        """Send one frame in this step. False: the writer has to go on."""
        # A seam's stop is for the writer.
        if self._prompt is None or not self._prompt.is_free or _seams.observers:
            return False
        frame = self.selections.next_frame()
        if frame is not None:
            try:
                self._has_rest = not self._prompt.send_now(encode_control(frame))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # Not the fault of whoever appends. The writer's next try says what is to be said.
                self._has_rest = True
        return not self._has_rest and not self.selections.has_more

    def _select(self, select: Select, nursery: trio.Nursery) -> None:
        try:
            check_select_grant(
                self._secret,
                select.grant,
                chat_id=select.chat_id,
                source=self._source,
                target=self._replica_id,
                now=self._clock(),
            )
        except InvalidGrant:
            self.selections.refuse(select)
            return
        selection = self.selections.add(select)
        if selection.log() is None:
            nursery.start_soon(self._look_up, selection)

    async def _look_up(self, selection: Selection) -> None:
        """Read the chat once: is the log that is not here worth waiting for?"""
        with selection.lookup:
            chat = await self._read_chat(selection.select.chat_id)
            await seam("chat looked up, not answered", chat_id=selection.select.chat_id, replica_id=self._replica_id)
            if chat is None:
                self.selections.settle(selection, "not_owner")
            elif (settled := verdict(chat, selection.select, self._replica_id)) is not None:
                self.selections.settle(selection, *settled)

    async def _read_chat(self, chat_id: str) -> Chat | None:
        """The chat; None if it cannot be told whose it is.

        A store that fails here is answered like an unknown chat, with `not_owner`: of all reasons the one on which the
        other replica asks its own store again and then dials again.
        """
        async with self._lookups:
            try:
                return await self._store.read_chat(chat_id)
            except (ChatNotFound, StoreError):
                return None
