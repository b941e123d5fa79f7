"""Hints between replicas that share a PostgreSQL database: its LISTEN and NOTIFY.

One channel for all chats of a cluster, named after the schema: a replica that watches 10,000 chats listens once, and
the engine hands the hints out by chat. A NOTIFY inside of the transaction that it tells of would make commits wait for
each other (PostgreSQL takes a lock of the whole cluster for it), so hints go out after the commit, over a connection
that does nothing else, and whatever came together while the last statement was under way leaves in one statement.

Two things can make a listener deaf without a word: a network that swallows packets, and a pooler in transaction mode,
which takes the LISTEN and gives the session to others. Both are found in the same way. Who listens has its own word
sent to it, by the connection that sends hints, and has to hear it: before it says that it listens, and whenever it
heard nothing for a while.

Must not know: what a hint is good for, or what else the database holds. Who calls: `derive_pubsub`,
and the engine.
"""

from __future__ import annotations

import hashlib
import random as system_random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

import msgspec
import trio
from psycopg import sql

from .._errors import PubSubUnavailable
from .._nursery import BodyNursery
from .._protocol.retry import Backoff
from .._wakeup import Wakeup
from ._base import Hint, HintStatus, PubSub
from ._listener import MOST_CHATS, Listener, replaces
from ._postgres_connection import HintConnection, Parameters, parse_url

PROBE_AFTER_SECONDS = 9.0
"""A listener that heard nothing for so long asks for its own word. With the next: deaf for 14 s at most, unnoticed.
All hear the word of each, so one probe is enough for a whole idle cluster."""
PROBE_SECONDS = 5.0
"""How long that word may take."""
SEND_SECONDS = 4.0
"""How long a statement may take; less than `PROBE_SECONDS`, so that what is at fault is known when a probe fails."""
RETRY_SECONDS = 0.2
RETRY_MAX_SECONDS = 2.0
"""Between tries to send, with full jitter; less than `PROBE_SECONDS` too: one failed try must not fail a probe."""
CLOSE_SECONDS = 2.0
"""How long closing tries to send what is left: that a chat was handed over is worth as much."""
MOST_IN_A_STATEMENT = 1000
MOST_PAYLOAD_BYTES = 7999
"""PostgreSQL refuses more."""
MOST_CHANNEL_BYTES = 63
"""Likewise."""

NOTIFY = b"SELECT count(pg_notify($1, payload)) FROM jsonb_array_elements_text($2::jsonb) AS payload"
NO_ANSWER = f"no answer from the database within {SEND_SECONDS:g} s"
DEAF = (
    f"what is sent with NOTIFY was not heard within {PROBE_SECONDS:g} s by the connection that has asked for it with "
    "LISTEN: the connection hangs, or a pooler in transaction mode is in between (hints need a direct connection or "
    "a pool in session mode)"
)


class _Payload(msgspec.Struct, array_like=True, frozen=True):
    """A hint on its way. A later version may add fields behind these."""

    chat_id: str
    snapshot_version: int
    status: HintStatus
    worker_id: str | None


_decoder = msgspec.json.Decoder(_Payload)


@asynccontextmanager
async def open_postgres_pubsub(
    url: str, *, schema: str = "relaytrio", random: Callable[[], float] = system_random.random
) -> AsyncIterator[PubSub]:
    """The hints of the cluster whose tables are in this schema of a database.

    Connects when the first hint is sent, and for each `listen`, not here. The url (or libpq's key=value string) may
    name another way to the database than the store's: where that goes through a pooler in transaction mode, it has to.
    What the context leaves unsent is sent before it ends, if that takes no more than 2 s. Raises `ConfigurationError`
    for what is no such url.
    """
    pubsub = PostgresPubSub(parse_url(url), channel_of(schema), random)
    try:
        async with BodyNursery(lambda: PubSubUnavailable("the sender of hints failed")) as nursery:
            nursery.start_soon(pubsub.run)
            yield pubsub
    finally:
        await pubsub.aclose()


def channel_of(schema: str) -> str:
    """The channel of a cluster: two in one database do not hear each other."""
    channel = f"relaytrio_{schema}"
    if len(channel.encode()) <= MOST_CHANNEL_BYTES:
        return channel
    return f"relaytrio_{hashlib.sha256(schema.encode()).hexdigest()[:32]}"


class PostgresPubSub:
    """A `PubSub` over a database; made by `open_postgres_pubsub`, which runs its task."""

    def __init__(self, parameters: Parameters, channel: str, random: Callable[[], float]) -> None:
        self._parameters = parameters
        self._channel = channel
        self._random = random
        self._listeners: set[Listener] = set()
        self._unsent: dict[str, Hint] = {}
        """Of each chat the newest."""
        self._probes: set[str] = set()
        self._something = Wakeup()
        self._sending = trio.Lock()
        self._speaker: HintConnection | None = None
        """Sends, and is ready to; not there while it is in use, so that one left in the middle is never used again."""
        self._fault: str | None = None
        """Why the last statement could not be sent."""
        self._connecting = trio.CapacityLimiter(2)
        self._closed = False

    async def publish(self, hint: Hint) -> None:
        """Have the hint sent; a checkpoint, which does not wait for the database.

        Raises `PubSubUnavailable` while the database cannot be reached. The hint is kept even then, one a chat, and
        goes out when it can; only one whose ids are too long for PostgreSQL never does.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        size = len(_encode(hint))
        if size > MOST_PAYLOAD_BYTES:
            raise PubSubUnavailable(f"a hint of {size} bytes is too long for NOTIFY")
        self._keep(hint)
        self._something.set()
        if self._fault is not None:
            raise PubSubUnavailable(f"hints cannot be sent for now: {self._fault}")

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        """All hints that are sent while the context is open, over a connection of its own.

        Entering connects and waits until it has heard itself. Its checkpoints can be cancelled, but for the
        connecting, which is a thread's work and takes at most 5 s for each address of the database.
        """
        self._check_open()
        listener = Listener()
        with closing(await self._open_ear()) as ear:
            async with BodyNursery(lambda: PubSubUnavailable("the listener for hints failed")) as nursery:
                nursery.start_soon(self._hear, ear, listener)
                fault = await self._probe(ear)
                self._check_open()
                if fault is not None:
                    raise PubSubUnavailable(fault)
                nursery.start_soon(self._keep_probing, ear, listener)
                self._listeners.add(listener)
                try:
                    yield listener
                finally:
                    self._listeners.discard(listener)
                    listener.close()

    async def aclose(self) -> None:
        """End all listeners (their connections are closed with their contexts), and send what is left.

        Closes even if cancelled, after 2 s at most, and what connecting takes if there is still something to send.
        Twice is fine.
        """
        self._closed = True
        for listener in self._listeners:
            listener.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
            async with self._sending:
                while self._unsent and self._fault is None:
                    await self._send()
                speaker, self._speaker = self._speaker, None
                if speaker is not None:
                    speaker.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def run(self) -> None:
        """Send what is to be sent. Ends by cancellation only."""
        backoff = Backoff(RETRY_SECONDS, RETRY_MAX_SECONDS)
        while True:
            await self._something.wait()
            while (self._unsent or self._probes) and not self._closed:
                async with self._sending:
                    if not self._closed:
                        await self._send()
                if self._fault is None:
                    backoff.reset()
                else:
                    await trio.sleep(backoff.next_delay_seconds(self._random()))

    async def _send(self) -> None:
        """Send what has come together, in one statement. What was not sent is kept, and the fault too."""
        hints = [self._unsent.pop(chat_id) for chat_id in list(self._unsent)[:MOST_IN_A_STATEMENT]]
        probes, self._probes = self._probes, set()
        fault: str | None = NO_ANSWER
        try:
            with trio.move_on_after(SEND_SECONDS):
                await self._notify([*probes, *(_encode(hint).decode() for hint in hints)])
                hints, probes, fault = [], set(), None
        except PubSubUnavailable as error:
            fault = str(error)
        finally:
            newer, self._unsent = self._unsent, {}
            for hint in (*hints, *newer.values()):
                self._keep(hint)
            self._probes |= probes
        self._fault = fault

    async def _notify(self, payloads: list[str]) -> None:
        arguments = (self._channel.encode(), msgspec.json.encode(payloads))
        if self._speaker is not None:
            try:
                await self._speak(self._speaker, arguments)
            except PubSubUnavailable:
                pass  # the server may have gone and come back while nothing was sent
            else:
                return
        await self._speak(await HintConnection.open(self._parameters, self._connecting), arguments)

    async def _speak(self, speaker: HintConnection, arguments: tuple[bytes, bytes]) -> None:
        self._speaker = None
        await speaker.execute(NOTIFY, *arguments)
        self._speaker = speaker

    async def _open_ear(self) -> _Ear:
        try:
            connection = await HintConnection.open(self._parameters, self._connecting)
            with trio.move_on_after(SEND_SECONDS):
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)).as_bytes())
                return _Ear(connection)
        except PubSubUnavailable as error:
            raise PubSubUnavailable(f"hints cannot be received: {error}") from error
        raise PubSubUnavailable(f"hints cannot be received: {NO_ANSWER}")

    async def _hear(self, ear: _Ear, listener: Listener) -> None:
        """Until the connection is lost."""
        try:
            while True:
                for payload in await ear.hear():
                    try:
                        hint = _decoder.decode(payload)
                    except (msgspec.MsgspecError, RecursionError):
                        continue  # another listener's probe, or of a version that says more: the poll makes up for it
                    listener.put(Hint(hint.chat_id, hint.snapshot_version, hint.status, hint.worker_id))
        except PubSubUnavailable as error:
            fault = f"hints are not received any more: {error}"
            ear.lose(fault)
            listener.fail(fault)

    async def _keep_probing(self, ear: _Ear, listener: Listener) -> None:
        """Until a probe fails."""
        while True:
            await trio.sleep_until(ear.heard_at + PROBE_AFTER_SECONDS)
            if trio.current_time() >= ear.heard_at + PROBE_AFTER_SECONDS:
                fault = await self._probe(ear)
                if fault is not None:
                    return listener.fail(fault)

    async def _probe(self, ear: _Ear) -> str | None:
        """Have the listener's word sent to it; if it heard neither that nor anything else, why."""
        began = trio.current_time()
        ear.answered = trio.Event()
        self._probes.add(ear.word)
        self._something.set()
        try:
            with trio.move_on_after(PROBE_SECONDS):
                await ear.answered.wait()
                if ear.fault is None:
                    self._fault = None  # what was heard was sent, though the answer to that may still be on its way
                return ear.fault
        finally:
            self._probes.discard(ear.word)
        if ear.heard_at > began:
            return None  # nothing can be sent, which `publish` tells, but what others send is heard
        return DEAF if self._fault is None else f"hints can be neither sent nor received: {self._fault}"

    def _keep(self, hint: Hint) -> None:
        """Until it can be sent. If that is never, memory does not grow: the poll makes up for what waited longest."""
        older = self._unsent.get(hint.chat_id)
        if older is None and len(self._unsent) >= MOST_CHATS:
            del self._unsent[next(iter(self._unsent))]
        if older is None or replaces(hint, older):
            self._unsent[hint.chat_id] = hint

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the pubsub is closed")


class _Ear:
    """A connection that listens. One task hears."""

    def __init__(self, connection: HintConnection) -> None:
        self._connection = connection
        self.word = msgspec.json.encode(secrets.token_hex(8)).decode()
        """What only this one waits for."""
        self.answered = trio.Event()
        """Its word was heard, or never will be."""
        self.fault: str | None = None
        self.heard_at = trio.current_time()

    async def hear(self) -> list[bytes]:
        """The payloads that have come, when there are some. Raises `PubSubUnavailable` when the connection is lost."""
        payloads = await self._connection.hear()
        self.heard_at = trio.current_time()
        if self.word.encode() in payloads:
            self.answered.set()
        return payloads

    def lose(self, fault: str) -> None:
        """Nothing more will be heard."""
        self.fault = fault
        self.answered.set()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


def _encode(hint: Hint) -> bytes:
    return msgspec.json.encode(_Payload(hint.chat_id, hint.snapshot_version, hint.status, hint.worker_id))
