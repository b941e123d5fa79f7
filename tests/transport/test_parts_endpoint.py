"""The parts endpoint, driven frame by frame by a peer that takes them one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._errors import ChatNotFound, StoreUnavailable
from relaytrio._parts import PartLog, PartLogs
from relaytrio._protocol.burst import Burst, join
from relaytrio._protocol.chat import Chat
from relaytrio._protocol.events import Episode
from relaytrio._protocol.peer_wire import (
    Bundle,
    Control,
    Ended,
    Heartbeat,
    LegBurst,
    Release,
    Select,
    decode_control,
    encode_control,
)
from relaytrio._settings import Settings
from relaytrio.stores._base import Store
from relaytrio.transport import _selections
from relaytrio.transport._connection import PromptConnection
from relaytrio.transport._selections import Selections
from relaytrio.transport._tasks import TaskFailed
from relaytrio.transport.grants import (
    GRANT_HEADER,
    SOURCE_HEADER,
    InvalidGrant,
    make_connection_grant,
    make_select_grant,
)
from relaytrio.transport.parts_endpoint import CLOSING_SECONDS, FEW, TOGETHER, authorize_peer, serve_parts
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


@pytest.fixture
def make() -> Callable[..., Endpoint]:
    def make(**settings: Any) -> Endpoint:
        made = Settings(**settings)
        return Endpoint(PartLogs(made, clock=lambda: 0.0), Chats(), Peer(), made)

    return make


@pytest.fixture
def endpoint(make: Callable[..., Endpoint]) -> Endpoint:
    return make()


# ------------------------------------------------------------------------------------------- rows and ends


async def test_a_sealed_log_comes_whole_with_its_end(endpoint: Endpoint) -> None:
    """All rows, then `ended sealed` as a frame; the connection stays."""
    endpoint.log(1, 2, 3, seal=True)
    async with endpoint.running() as peer:
        peer.select()
        assert [await peer.next(), await peer.next()] == [burst(1, 2, 3), sealed(3)]
        await peer.nothing_comes()
        assert peer.closed == 0


async def test_only_rows_after_the_selected_seq_come(endpoint: Endpoint) -> None:
    """A select says what is known already."""
    endpoint.log(1, 2, 3, seal=True)
    async with endpoint.running() as peer:
        peer.select(after_seq=2)
        assert [await peer.next(), await peer.next()] == [burst(3), sealed(3)]


async def test_a_select_after_the_last_row_of_a_sealed_log_gets_its_end(endpoint: Endpoint) -> None:
    """Who has all rows is told that there are no more."""
    endpoint.log(1, 2, seal=True)
    async with endpoint.running() as peer:
        peer.select(after_seq=2)
        assert await peer.next() == sealed(2)


async def test_an_empty_sealed_log_has_an_end(endpoint: Endpoint) -> None:
    """An episode that generated nothing ends too."""
    endpoint.log(seal=True)
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == sealed(0)


async def test_a_lone_row_leaves_at_once(endpoint: Endpoint) -> None:
    """There is no timer: no time passes between a row and its frame."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        await peer.nothing_comes()
        append(log, 1)
        await wait_all_tasks_blocked()
        assert decode_control(peer._from_endpoint.receive_nowait(), limit_bytes=MUCH) == burst(1)


@pytest.fixture
def prompt(endpoint: Endpoint) -> PromptPeer:
    """The endpoint's peer is one that takes frames without waiting."""
    peer = endpoint.peer = PromptPeer()
    return peer


@asynccontextmanager
async def selected(endpoint: Endpoint, prompt: PromptPeer) -> AsyncIterator[PartLog]:
    """The log that the peer has selected, and its writer waits."""
    log = endpoint.log()
    async with endpoint.running():
        prompt.select()
        await trio.sleep(0.001)
        yield log


async def test_a_row_that_comes_alone_leaves_in_its_own_step(
    endpoint: Endpoint, prompt: PromptPeer, autojump_clock: MockClock
) -> None:
    """No task has to run for it; nor for the end of the log."""
    async with selected(endpoint, prompt) as log:
        for seq in (1, 2, 3):
            await trio.sleep(0.001)
            append(log, seq)
            assert [burst(seq)] == prompt.taken()
        await trio.sleep(0.001)
        log.seal()
        assert [sealed(3)] == prompt.taken()
        await wait_all_tasks_blocked()
        assert [] == prompt.taken()


async def test_a_few_rows_that_come_together_leave_in_their_own_steps(
    endpoint: Endpoint, prompt: PromptPeer, autojump_clock: MockClock
) -> None:
    """As if each came alone, time after time."""
    async with selected(endpoint, prompt) as log:
        for first in (1, FEW + 1):
            await trio.sleep(0.001)
            for seq in range(first, first + FEW):
                append(log, seq)
                assert [burst(seq)] == prompt.taken()


async def test_rows_that_come_together_are_left_to_the_writer(
    endpoint: Endpoint, prompt: PromptPeer, autojump_clock: MockClock
) -> None:
    """The first of them leave as if they were alone, once: whose rows come so is known from then on."""
    async with selected(endpoint, prompt) as log:
        last = 0
        for at_once in (FEW, 0, 0):
            await trio.sleep(0.001)
            group = range(last + 1, last + FEW + 3)
            for seq in group:
                append(log, seq)
            assert [burst(seq) for seq in group[:at_once]] == prompt.taken()
            await wait_all_tasks_blocked()
            assert [burst(*group[at_once:])] == prompt.taken()
            last = group[-1]
        await trio.sleep(0.001)
        append(log, last + 1)
        assert [] == prompt.taken()
        await trio.sleep(0.001)
        assert [burst(last + 1)] == prompt.taken()
        append(log, last + 2)
        assert [burst(last + 2)] == prompt.taken()


async def test_what_does_not_go_out_whole_is_left_to_the_writer(
    endpoint: Endpoint, prompt: PromptPeer, autojump_clock: MockClock
) -> None:
    """Its rest first, and then what has come meanwhile."""
    async with selected(endpoint, prompt) as log:
        prompt.whole = False
        append(log, 1)
        assert [burst(1)] == prompt.taken()
        prompt.free = False
        append(log, 2)
        assert [] == prompt.taken()
        await wait_all_tasks_blocked()
        assert 1 == prompt.flushed
        assert await prompt.next() == burst(2)
        prompt.free = prompt.whole = True
        await trio.sleep(0.001)
        append(log, 3)
        await wait_all_tasks_blocked()
        assert [burst(3)] == prompt.taken()


async def test_only_one_frame_leaves_in_the_step_of_a_row(
    make: Callable[..., Endpoint], autojump_clock: MockClock
) -> None:
    """However much there is for that peer: whoever appends does not send all of it."""
    endpoint = make(burst_bytes=1000)
    peer = endpoint.peer = PromptPeer()
    log = endpoint.log()
    logs = [endpoint.log(1, 2, 3, chat=f"chat{leg}") for leg in range(2, 6)]
    async with endpoint.running():
        peer.select()
        await trio.sleep(0.001)
        # As when a peer comes back: its selects have been read, and the writer was woken by none of them yet.
        for leg, other in enumerate(logs, 2):
            peer.select(leg=leg, chat=other.chat_id)
        await wait_all_tasks_blocked()
        taken = peer.taken()
        assert 4 == len(taken)
        await trio.sleep(0.001)
        append(log, *range(1, 41), size=40)
        assert 1 == len(peer.taken())
        await wait_all_tasks_blocked()
        assert 1 < len(peer.taken())


async def test_a_log_that_is_forgotten_in_the_step_of_another_s_row(
    make: Callable[..., Endpoint], autojump_clock: MockClock
) -> None:
    """Its end leaves in that step too, and its selection with it: whoever appends the row learns nothing of that."""
    endpoint = make(part_logs_bytes=100_000)
    peer = endpoint.peer = PromptPeer()
    logs = [endpoint.log(chat="chat1"), endpoint.log(chat="chat2")]
    async with endpoint.running():
        for leg, log in enumerate(logs, 1):
            peer.select(leg=leg, chat=log.chat_id)
        await trio.sleep(0.001)
        for seq in range(1, FEW + 3):
            append(logs[0], seq)
        # All in one turn of the loop: the writer, which was woken, does not come to run.
        autojump_clock.jump(0.001)
        logs[0].seal()
        autojump_clock.jump(0.001)
        append(logs[1], 1, size=101_000)
        assert (None, 1) == (endpoint.parts.find("chat1", EPISODE), logs[1].last_seq)
        assert "over" in [frame.reason for frame in peer.taken() if isinstance(frame, Ended)]


@pytest.mark.parametrize("loss", [trio.BrokenResourceError, trio.ClosedResourceError])
async def test_a_connection_that_is_lost_by_a_row_ends(
    endpoint: Endpoint, prompt: PromptPeer, loss: type[Exception], autojump_clock: MockClock
) -> None:
    """Whoever appends it is not told: it is nobody's fault there."""
    async with selected(endpoint, prompt) as log:
        prompt.lost = loss
        append(log, 1)
        append(log, 2)
        await endpoint.ends("the connection was closed")


async def test_what_accumulates_during_a_send_goes_into_one_frame(endpoint: Endpoint) -> None:
    """A flood travels in large frames."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        append(log, 1)
        await wait_all_tasks_blocked()
        for seq in range(2, 101):
            append(log, seq)
            await wait_all_tasks_blocked()
        assert [await peer.next(), await peer.next()] == [burst(1), burst(*range(2, 101))]
        log.seal()
        assert await peer.next() == sealed(100)


async def test_a_frame_has_at_most_the_bytes_of_a_burst(make: Callable[..., Endpoint]) -> None:
    """What does not fit into one frame goes into the next."""
    endpoint = make(burst_bytes=1000)
    append(endpoint.parts.make("chat", EPISODE), *range(1, 51), size=40)
    async with endpoint.running() as peer:
        peer.select()
        got: list[Burst] = []
        while not got or got[-1].last_seq < 50:
            frame = await peer.next()
            assert isinstance(frame, LegBurst)
            got.append(frame.burst)
    assert max(len(burst.rows) for burst in got) <= 1000
    assert [row for burst in got for row in burst.split()] == rows(*range(1, 51), size=40)


async def test_rows_of_several_legs_travel_in_one_frame(endpoint: Endpoint) -> None:
    """To a peer that takes bundles; an end goes alone, after the rows before it and before those after it."""
    logs = [endpoint.parts.make(f"chat{leg}", EPISODE) for leg in (1, 2, 3)]
    async with endpoint.running() as peer:
        for leg in (1, 2, 3):
            peer.select(leg=leg, chat=f"chat{leg}", bundles=leg == 2)
        await wait_all_tasks_blocked()
        append(logs[0], 1)
        await wait_all_tasks_blocked()  # ... and waits to be taken; what comes meanwhile goes together
        for log in logs:
            append(log, log.last_seq + 1)
        logs[1].seal()
        assert burst(1) == await peer.next()
        assert Bundle((burst(2), burst(1, leg=2), burst(1, leg=3))) == await peer.next()
        assert sealed(1, leg=2) == await peer.next()
        await peer.nothing_comes()
        append(logs[0], 3)
        assert burst(3) == await peer.next()


async def test_an_end_is_not_overtaken_by_a_bundle(endpoint: Endpoint) -> None:
    """What is found while a bundle is put together goes out right behind it."""
    first, second = endpoint.parts.make("chat1", EPISODE), endpoint.parts.make("chat2", EPISODE)
    async with endpoint.running() as peer:
        peer.select(leg=1, chat="chat1", bundles=True)
        peer.select(leg=2, chat="chat2", bundles=True)
        await wait_all_tasks_blocked()
        append(first, 1)
        await wait_all_tasks_blocked()
        append(second, 1)
        first.seal()
        await wait_all_tasks_blocked()
        assert [burst(1), burst(1, leg=2), sealed(1)] == [await peer.next() for _ in range(3)]


async def test_an_older_peer_gets_no_bundle(endpoint: Endpoint) -> None:
    """It has never said that it takes them."""
    logs = [endpoint.parts.make(f"chat{leg}", EPISODE) for leg in (1, 2)]
    async with endpoint.running() as peer:
        for leg in (1, 2):
            peer.select(leg=leg, chat=f"chat{leg}")
        append(logs[0], 1)
        await wait_all_tasks_blocked()
        append(logs[0], 2)
        append(logs[1], 1)
        frames = [await peer.next() for _ in range(3)]
    assert [burst(1), burst(2), burst(1, leg=2)] == sorted(frames, key=lambda frame: frame.leg)  # type: ignore[union-attr]


async def test_a_bundle_has_at_most_the_bytes_of_a_burst(make: Callable[..., Endpoint]) -> None:
    """A leg whose turn comes late in it waits for the next, or gets there what is left of the room."""
    endpoint = make(burst_bytes=1000)
    for leg in range(1, 11):
        append(endpoint.parts.make(f"chat{leg}", EPISODE), *range(1, 11), size=20)
    taken: dict[int, list[bytes]] = {leg: [] for leg in range(1, 11)}
    async with endpoint.running() as peer:
        for leg in range(1, 11):
            peer.select(leg=leg, chat=f"chat{leg}", bundles=True)
        while sum(map(len, taken.values())) < 100:
            frame = await peer.next()
            assert isinstance(frame, LegBurst | Bundle)
            bursts = frame.bursts if isinstance(frame, Bundle) else (frame,)
            assert sum(len(of_leg.burst.rows) for of_leg in bursts) <= 1000
            for of_leg in bursts:
                taken[of_leg.leg] += of_leg.burst.split()
    assert dict.fromkeys(taken, rows(*range(1, 11), size=20)) == taken


async def test_a_log_that_lost_its_beginning_says_so(make: Callable[..., Endpoint]) -> None:
    """The first burst is marked `truncated`: to the other side that is no gap."""
    endpoint = make(part_log_bytes=200)
    log = endpoint.log(*range(1, 41))
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == burst(*range(log.first_seq, 41), truncated=True)


async def test_a_leg_takes_one_select_after_the_other(endpoint: Endpoint) -> None:
    """The end of an episode does not end the leg."""
    endpoint.log(1, seal=True)
    endpoint.log(1, 2, episode=NEXT, seal=True)
    async with endpoint.running() as peer:
        peer.select()
        assert [await peer.next(), await peer.next()] == [burst(1), sealed(1)]
        peer.select(NEXT)
        assert [await peer.next(), await peer.next()] == [burst(1, 2, episode=NEXT), sealed(2, NEXT)]


async def test_a_log_forgotten_before_all_of_it_was_sent_is_over(make: Callable[..., Endpoint]) -> None:
    """A slow leg holds no memory: what is forgotten is gone for it too, and it is told."""
    endpoint = make(burst_bytes=1)
    endpoint.log(1, 2, 3, seal=True)
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        endpoint.parts._forget(("chat", EPISODE))
        assert [await peer.next(), await peer.next()] == [burst(1), Ended(1, EPISODE, "over", 1)]


@pytest.mark.parametrize("seal", [True, False])
async def test_a_select_beyond_the_end_of_a_log_ends(endpoint: Endpoint, seal: bool) -> None:
    """Rows that were never made here are not waited for; the leg can select again."""
    endpoint.log(1, 2, seal=seal)
    async with endpoint.running() as peer:
        peer.select(after_seq=3)
        assert await peer.next() == Ended(1, EPISODE, "beyond", 2)
        peer.select(after_seq=1)
        assert await peer.next() == burst(2)


async def test_a_log_that_appears_too_short_ends_the_select(endpoint: Endpoint) -> None:
    """`beyond` holds also for a log that came after the select."""
    endpoint.chats.owned_by(HERE)
    async with endpoint.running() as peer:
        peer.select(after_seq=1)
        await peer.nothing_comes()
        endpoint.log()
        assert await peer.next() == Ended(1, EPISODE, "beyond", 0)


# ---------------------------------------------------------------------------------------------- many legs


async def test_one_connection_carries_many_legs(endpoint: Endpoint) -> None:
    """Each leg gets its own rows, of its own chat; two may have the same."""
    endpoint.log(1, seal=True)
    endpoint.log(1, 2, seal=True, chat="other")
    async with endpoint.running() as peer:
        peer.select(leg=1)
        peer.select(leg=2, chat="other")
        peer.select(leg=3)
        got = [await peer.next() for _ in range(6)]
    assert [frame for frame in got if frame in (burst(1), sealed(1))] == [burst(1), sealed(1)]
    assert [burst(1, 2, leg=2), sealed(2, leg=2)] == [frame for frame in got if frame is not None and _leg(frame) == 2]
    assert [burst(1, leg=3), sealed(1, leg=3)] == [frame for frame in got if frame is not None and _leg(frame) == 3]


def _leg(frame: Control) -> int:
    assert isinstance(frame, LegBurst | Ended)
    return frame.leg


async def test_a_flood_on_one_leg_does_not_hold_up_another(make: Callable[..., Endpoint]) -> None:
    """Legs take turns, a frame each."""
    endpoint = make(burst_bytes=1)
    endpoint.log(*range(1, 101))
    other = endpoint.log(chat="other")
    async with endpoint.running() as peer:
        peer.select(leg=1)
        peer.select(leg=2, chat="other")
        assert _leg((await peer.next()) or Heartbeat()) == 1
        await wait_all_tasks_blocked()
        append(other, 1)
        got = [await peer.next() for _ in range(3)]
    assert burst(1, leg=2) in got


async def test_two_legs_of_one_episode_are_woken_independently(endpoint: Endpoint) -> None:
    """Releasing one of them leaves the other one awake."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select(leg=1)
        peer.select(leg=2)
        peer.say(Release(1))
        await peer.nothing_comes()
        append(log, 1)
        assert await peer.next() == burst(1, leg=2)
        await peer.nothing_comes()


# ------------------------------------------------------------------------------- selecting anew, releasing


async def test_a_select_replaces_an_unsealed_one_at_once(endpoint: Endpoint) -> None:
    """Rows of the former episode stop."""
    former = endpoint.log(1)
    endpoint.log(1, 2, episode=NEXT)
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == burst(1)
        peer.select(NEXT)
        assert await peer.next() == burst(1, 2, episode=NEXT)
        append(former, 2)
        former.seal()
        await peer.nothing_comes()
        assert endpoint.watched == 1


async def test_a_select_takes_effect_after_a_sealed_log_was_sent_to_its_end(make: Callable[..., Endpoint]) -> None:
    """The last parts of the former episode, and its end, go out first."""
    endpoint = make(burst_bytes=1)
    endpoint.log(1, 2, seal=True)
    endpoint.log(1, episode=NEXT)
    async with endpoint.running() as peer:
        peer.select()
        peer.select(NEXT)
        got = [await peer.next() for _ in range(4)]
    assert got == [burst(1), burst(2), sealed(2), burst(1, episode=NEXT)]


async def test_a_log_sealed_after_the_next_select_came_is_left(endpoint: Endpoint) -> None:
    """It counts whether the former log was sealed when the select came."""
    former = endpoint.log()
    endpoint.log(1, episode=NEXT)
    async with endpoint.running() as peer:
        peer.select()
        peer.select(NEXT)
        await wait_all_tasks_blocked()
        append(former, 1)
        former.seal()
        assert await peer.next() == burst(1, episode=NEXT)
        await peer.nothing_comes()


async def test_each_sealed_episode_of_a_row_of_selects_goes_out(make: Callable[..., Endpoint]) -> None:
    """The rule holds between any two selects, however quickly they come."""
    endpoint = make(burst_bytes=1)
    last = Episode(6, 1, "run0")
    for episode in (EPISODE, NEXT, last):
        endpoint.log(1, episode=episode, seal=True)
    async with endpoint.running() as peer:
        for episode in (EPISODE, NEXT, last):
            peer.select(episode)
        got = [await peer.next() for _ in range(6)]
    expected = [(burst(1, episode=episode), sealed(1, episode)) for episode in (EPISODE, NEXT, last)]
    assert got == [frame for pair in expected for frame in pair]


async def test_parts_that_come_fast_come_together(endpoint: Endpoint) -> None:
    """A part a turn of the loop, as from a responder that never waits: few frames, though the peer takes each at once,
    and the first part alone; the last one leaves as soon as nothing follows."""
    log = endpoint.log()
    got: list[int] = []
    async with endpoint.running() as peer, trio.open_nursery() as nursery:
        peer.select()
        await wait_all_tasks_blocked()

        async def take() -> None:
            while sum(got) < 1000:
                frame = await peer.next()
                assert isinstance(frame, LegBurst)
                got.append(frame.burst.count)

        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        for seq in range(1, 1001):
            append(log, seq)
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        assert 1000 == sum(got)
    assert got[0] <= 2
    assert max(got) <= TOGETHER + 4
    assert len(got) <= 1000 // (TOGETHER // 2)


async def test_a_part_that_comes_alone_leaves_at_once(endpoint: Endpoint) -> None:
    """No turn of the loop is waited for when the one before has left, nor is it waited for others for ever."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        for seq in range(1, 4):
            append(log, seq)
            assert burst(seq) == await peer.next()
            await wait_all_tasks_blocked()
        turns = 0
        while peer.sending is None:
            append(log, 4 + turns)
            turns += 1
            await trio.lowlevel.checkpoint()
        assert turns <= 3


async def test_the_same_episode_again_is_a_step_back(make: Callable[..., Endpoint]) -> None:
    """Rows that got lost are sent anew at once, though the log is sealed."""
    endpoint = make(burst_bytes=1)
    endpoint.log(1, 2, 3, seal=True)
    async with endpoint.running() as peer:
        peer.select()
        assert [await peer.next(), await peer.next()] == [burst(1), burst(2)]
        await wait_all_tasks_blocked()  # the frame with row 3 is being sent
        peer.select(after_seq=1)
        await wait_all_tasks_blocked()  # it has been read
        got = [await peer.next() for _ in range(4)]
    assert got == [burst(3), burst(2), burst(3), sealed(3)]


async def test_a_released_leg_gets_nothing_more(endpoint: Endpoint) -> None:
    """Its log is no longer watched; its number can be used again."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        await peer.nothing_comes()
        peer.say(Release(1))
        await wait_all_tasks_blocked()
        assert endpoint.watched == 0
        append(log, 1)
        await peer.nothing_comes()
        peer.select()
        assert await peer.next() == burst(1)


async def test_a_release_of_an_unknown_leg_is_nothing(endpoint: Endpoint) -> None:
    """Releases and ends may cross."""
    async with endpoint.running() as peer:
        peer.say(Release(7))
        await peer.nothing_comes()
        assert peer.closed == 0


# -------------------------------------------------------------------------------- logs that are not there


async def test_a_log_that_is_not_there_yet_is_waited_for(endpoint: Endpoint) -> None:
    """Owned here, and the current episode: its rows come when they are made. The chat is read once."""
    endpoint.chats.owned_by(HERE)
    async with endpoint.running() as peer:
        peer.select()
        await peer.nothing_comes()
        log = endpoint.log()
        await peer.nothing_comes()
        append(log, 1)
        assert await peer.next() == burst(1)
    assert endpoint.chats.reads == 1


async def test_a_later_attempt_of_the_current_run_is_waited_for(endpoint: Endpoint) -> None:
    """The store may be read before the transition that the other replica has heard of is in it."""
    endpoint.chats.owned_by(HERE, EPISODE)
    async with endpoint.running() as peer:
        peer.select(NEXT)
        await peer.nothing_comes()
        endpoint.log(1, episode=NEXT)
        assert await peer.next() == burst(1, episode=NEXT)


@pytest.mark.parametrize("past", [Episode(5, 1, "run0"), Episode(4, 9, "run0"), Episode(5, 2, "older")])
async def test_a_past_episode_is_over(endpoint: Endpoint, past: Episode) -> None:
    """Owned here, but of an earlier attempt, history or run: nothing will come of it."""
    endpoint.chats.owned_by(HERE)
    async with endpoint.running() as peer:
        peer.select(past, after_seq=4)
        assert await peer.next() == Ended(1, past, "over", 4)
        assert endpoint.watched == 0


@pytest.mark.parametrize("owner", ["replica-c", None])
async def test_a_chat_that_is_not_owned_here_ends_with_its_owner(endpoint: Endpoint, owner: str | None) -> None:
    """`not_owner` names the owner, if there is one."""
    endpoint.chats.owned_by(owner)
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == Ended(1, EPISODE, "not_owner", 0, owner)


@pytest.mark.parametrize("error", [ChatNotFound("no chat"), StoreUnavailable("no database")])
async def test_an_unknown_chat_or_a_failing_store_makes_the_other_side_look_again(
    endpoint: Endpoint, error: Exception
) -> None:
    """`not_owner` without an owner: the reason on which a relay reads its own store and dials again."""
    endpoint.chats.chat = error
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == Ended(1, EPISODE, "not_owner", 0)
        assert peer.closed == 0


@pytest.mark.parametrize("owner", ["replica-c", HERE])
async def test_copies_are_never_served(endpoint: Endpoint, owner: str) -> None:
    """ONE_HOP: rows that came from another replica do not leave this one again."""
    endpoint.chats.owned_by(owner)
    with endpoint.parts.filling("chat", EPISODE) as copy:
        copy.extend(join(EPISODE, 1, rows(1, 2)))
        async with endpoint.running() as peer:
            peer.select()
            if owner == "replica-c":
                assert await peer.next() == Ended(1, EPISODE, "not_owner", 0, "replica-c")
            copy.extend(join(EPISODE, 3, rows(3)))
            await peer.nothing_comes()


async def test_while_the_store_hangs_everything_else_goes_on(endpoint: Endpoint) -> None:
    """DIAL_IS_ASIDE: neither other legs nor a log that appears wait for a read of the store."""
    endpoint.chats.gate = trio.Event()
    endpoint.log(1, chat="other")
    async with endpoint.running() as peer:
        peer.select()
        peer.select(leg=2, chat="other")
        assert await peer.next() == burst(1, leg=2)
        log = endpoint.log(1)
        assert await peer.next() == burst(1)
        endpoint.chats.owned_by("replica-c")
        endpoint.chats.gate.set()
        await peer.nothing_comes()
        append(log, 2)
        assert await peer.next() == burst(2)


async def test_a_log_that_came_and_went_during_the_read_is_over(endpoint: Endpoint) -> None:
    """The store's answer, older than the log, is not given any more."""
    endpoint.chats.gate = trio.Event()
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        endpoint.log(1, seal=True)
        endpoint.parts._forget(("chat", EPISODE))
        assert await peer.next() == Ended(1, EPISODE, "over", 0)
        endpoint.chats.owned_by("replica-c")
        endpoint.chats.gate.set()
        await peer.nothing_comes()


@pytest.mark.parametrize("again", ["select", "release"])
async def test_a_read_for_what_is_not_selected_any_more_is_cancelled(endpoint: Endpoint, again: str) -> None:
    """Its answer reaches nobody."""
    endpoint.chats.gate = trio.Event()
    endpoint.log(episode=NEXT)
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        peer.select(NEXT) if again == "select" else peer.say(Release(1))
        await wait_all_tasks_blocked()
        assert endpoint.chats.reading == 0
        endpoint.chats.gate.set()
        await peer.nothing_comes()


async def test_reads_of_the_store_are_few_at_a_time(endpoint: Endpoint) -> None:
    """A peer with many legs, or a quick one, does not turn into as many reads at once."""
    endpoint.chats.gate = trio.Event()
    async with endpoint.running() as peer:
        for leg in range(100):
            peer.select(leg=leg)
        await wait_all_tasks_blocked()
        assert endpoint.chats.reads == 16
        endpoint.chats.gate.set()
        assert sorted([_leg(await peer.next() or Heartbeat()) for _ in range(100)]) == list(range(100))


# -------------------------------------------------------------------------------------------------- grants


def _bad_grants() -> dict[str, str]:
    def made(
        *, secret: bytes = SECRET, chat: str = "chat", source: str = PEER, target: str = HERE, at: float = NOW
    ) -> str:
        return make_select_grant(secret, chat_id=chat, source=source, target=target, now=at)

    return {
        "none": "",
        "junk": "\x00\n💥",
        "secret": made(secret=b"another"),
        "chat": made(chat="other"),
        "source": made(source="replica-x"),
        "target": made(target="replica-x"),
        "expired": made(at=NOW - 181),
        "early": made(at=NOW + 61),
        "kind": make_connection_grant(SECRET, source=PEER, target=HERE, now=NOW),
    }


@pytest.mark.parametrize("bad", _bad_grants())
async def test_a_select_with_a_bad_grant_is_refused(endpoint: Endpoint, bad: str) -> None:
    """`ended refused`, whatever is wrong with it, and the store is not asked."""
    endpoint.log(1)
    async with endpoint.running() as peer:
        peer.select(grant=_bad_grants()[bad], after_seq=3)
        assert await peer.next() == Ended(1, EPISODE, "refused", 3)
        await peer.nothing_comes()
    assert endpoint.chats.reads == 0


async def test_a_refused_select_changes_nothing_else(endpoint: Endpoint) -> None:
    """What was selected before goes on."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        peer.select(NEXT, grant="bad")
        assert await peer.next() == Ended(1, NEXT, "refused", 0)
        append(log, 1)
        assert await peer.next() == burst(1)


async def test_an_open_leg_is_never_checked_again(endpoint: Endpoint) -> None:
    """A grant that expires in the middle of an answer stops nothing."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        endpoint.now += 1e6
        append(log, 1)
        assert await peer.next() == burst(1)


def test_a_peer_is_known_by_its_grant() -> None:
    """The handshake's two headers, in any case, give the source replica."""
    grant = make_connection_grant(SECRET, source=PEER, target=HERE, now=NOW)
    headers = {SOURCE_HEADER.upper(): PEER, GRANT_HEADER.lower(): grant, "Cookie": "x"}
    assert authorize_peer(headers, secret=SECRET, replica_id=HERE, now=NOW) == PEER


@pytest.mark.parametrize("bad", ["source", "grant", "no source", "no grant", "target", "late"])
def test_a_handshake_without_a_good_grant_is_refused(bad: str) -> None:
    """What is missing, altered, for another replica or too old is a 401."""
    grant = make_connection_grant(SECRET, source=PEER, target=HERE, now=NOW)
    headers = {SOURCE_HEADER: PEER, GRANT_HEADER: grant}
    match bad:
        case "source":
            headers[SOURCE_HEADER] = "replica-x"
        case "grant":
            headers[GRANT_HEADER] = "Bearer x"
        case "no source":
            del headers[SOURCE_HEADER]
        case "no grant":
            del headers[GRANT_HEADER]
    here, now = ("replica-x" if bad == "target" else HERE), (NOW + 1000 if bad == "late" else NOW)
    with pytest.raises(InvalidGrant):
        authorize_peer(headers, secret=SECRET, replica_id=here, now=now)


# --------------------------------------------------------------------------------------------- connections


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "\x00",
        "[1]",
        '{"v":1,"type":"select","leg":1}',
        b"",
        b"\xff\xfe",
        encode_control(Ended(1, EPISODE, "sealed", 3)),
        encode_control(burst(1)),
    ],
)
async def test_a_frame_that_is_none_or_not_a_peers_ends_the_connection(endpoint: Endpoint, frame: str | bytes) -> None:
    """Malformed frames, and those that only an endpoint sends."""
    endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        peer.say(frame)
        await endpoint.ends("it sent")


async def test_a_frame_beyond_the_limit_ends_the_connection(make: Callable[..., Endpoint]) -> None:
    """Nothing of such a frame is taken."""
    endpoint = make(leg_frame_bytes=1000)
    async with endpoint.running() as peer:
        peer.say("[" + " " * 1000 + "]")
        await endpoint.ends("1000 bytes")


async def test_frames_of_unknown_types_are_passed_over(endpoint: Endpoint) -> None:
    """A newer peer may have more to say."""
    endpoint.log(1)
    async with endpoint.running() as peer:
        peer.say('{"v":2,"type":"wave"}')
        peer.select()
        assert await peer.next() == burst(1)


async def test_an_idle_connection_carries_heartbeats(endpoint: Endpoint, autojump_clock: MockClock) -> None:
    """An empty frame after every 15 s without any other."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        start = trio.current_time()
        assert await peer.next() == Heartbeat()
        assert trio.current_time() - start == 15
        await trio.sleep(10)
        append(log, 1)
        assert await peer.next() == burst(1)
        assert await peer.next() == Heartbeat()
        assert trio.current_time() - start == 40


async def test_a_silent_peer_is_dropped(endpoint: Endpoint, autojump_clock: MockClock) -> None:
    """45 s without a frame, though it takes all that it is sent."""
    endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        assert [await peer.next(), await peer.next()] == [Heartbeat(), Heartbeat()]
        peer.say(Heartbeat())
        assert [await peer.next(), await peer.next()] == [Heartbeat(), Heartbeat()]
        await trio.sleep(16)
        await endpoint.ends("nothing was heard")


async def test_a_peer_that_stops_reading_is_cut(endpoint: Endpoint, autojump_clock: MockClock) -> None:
    """15 s after the send began; nothing is ever sent again, and no log is watched any more."""
    log = endpoint.log(1)
    async with endpoint.running() as peer:
        peer.select()
        await trio.sleep(14)
        append(log, 2)
        assert peer.reason is None
        await trio.sleep(2)
        await endpoint.ends("taken nothing")
        assert (peer.sends_cancelled, peer.sends_after_that) == (1, 0)


async def test_a_peer_that_leaves_ends_the_connection(endpoint: Endpoint) -> None:
    """Even while a frame is being sent to it: the writer races the reader."""
    endpoint.log(1)
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        peer.leave()
        await endpoint.ends("closed")


async def test_a_peer_that_vanishes_during_a_send_ends_the_connection(endpoint: Endpoint) -> None:
    """A broken send is noticed by the writer."""
    endpoint.log(1)
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        peer._from_endpoint.close()
        await endpoint.ends("closed")


@pytest.mark.parametrize("where", ["receive", "send", "store", "wakeup"])
async def test_cancelled_anywhere_nothing_is_left(endpoint: Endpoint, where: str) -> None:
    """NO_LEAK: the connection is closed, nothing is sent any more, no log is watched."""
    if where == "send":
        endpoint.log(1)
    elif where == "wakeup":
        endpoint.log()
    elif where == "store":
        endpoint.chats.gate = trio.Event()
    async with endpoint.running() as peer:
        if where != "receive":
            peer.select()
        await wait_all_tasks_blocked()
        endpoint.scope.cancel()
        await wait_all_tasks_blocked()
        assert (peer.closed, endpoint.watched, peer.sends_after_that) == (1, 0, 0)
        assert peer.reason is None


async def test_a_connection_that_cannot_be_closed_hangs_no_shutdown(
    endpoint: Endpoint, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letting go takes a second at most, whatever the server below does."""
    monkeypatch.setattr(endpoint.peer, "aclose_forcefully", trio.sleep_forever)
    async with endpoint.running():
        await wait_all_tasks_blocked()
        start = trio.current_time()
    assert trio.current_time() - start == CLOSING_SECONDS


async def test_more_selects_than_a_leg_can_wait_for_end_the_connection(endpoint: Endpoint) -> None:
    """Saturation: a peer that selects and takes nothing is cut; memory does not grow with it."""
    for attempt in range(1, 30):
        endpoint.log(1, episode=Episode(9, attempt, "run0"), seal=True)
    async with endpoint.running() as peer:
        for attempt in range(1, 30):
            peer.select(Episode(9, attempt, "run0"))
        await endpoint.ends("selected more than 16 times")


async def test_refusals_that_nobody_takes_end_the_connection(endpoint: Endpoint) -> None:
    """Saturation: answers to bad selects do not pile up."""
    async with endpoint.running() as peer:
        for _ in range(30):
            peer.select(grant="bad")
        await endpoint.ends("selected more than 16 times")


async def test_a_peer_may_follow_all_that_runs_here(make: Callable[..., Endpoint]) -> None:
    """Over its one connection, however many chats a worker is allowed to run; one too many would cut all of them."""
    endpoint = make(max_runs=1500)
    endpoint.log(1)
    async with endpoint.running() as peer:
        for leg in range(1500):
            peer.select(leg=leg)
        await wait_all_tasks_blocked()
        assert (peer.reason, peer.closed) == (None, 0)


async def test_more_legs_than_a_connection_has_end_it(
    make: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saturation: the number of legs is bounded."""
    monkeypatch.setattr(_selections, "LEGS", 5)
    endpoint = make(max_runs=1)
    endpoint.log()
    async with endpoint.running() as peer:
        for leg in range(5):
            peer.select(leg=leg)
        await peer.nothing_comes()
        peer.select(leg=5)
        await endpoint.ends("more than 5 legs")


async def test_legs_that_come_and_go_behind_a_stalled_send_take_no_room(endpoint: Endpoint) -> None:
    """Saturation: a peer that reads nothing cannot fill the list of those whose turn it is."""
    endpoint.log(1)
    selections = Selections(endpoint.parts, burst_bytes=1000, runs=1, wake=lambda: None, wake_for_rows=lambda: None)
    for leg in range(1000):
        selections.add(Select(leg, "chat", EPISODE, 0, ""))
        selections.release(leg)
    assert (len(selections), len(selections._ready), endpoint.watched) == (0, 0, 0)


async def test_a_flood_of_selects_of_one_leg_takes_no_room(endpoint: Endpoint) -> None:
    """Only the last of those that replace each other is kept."""
    endpoint.chats.owned_by(HERE)
    async with endpoint.running() as peer:
        for attempt in range(2, 1000):
            peer.select(Episode(5, attempt, "run0"))
        await peer.nothing_comes()
        assert endpoint.watched == 1
        endpoint.log(1, episode=Episode(5, 999, "run0"))
        assert await peer.next() == burst(1, episode=Episode(5, 999, "run0"))


async def test_a_failure_of_our_own_leaves_plain(endpoint: Endpoint) -> None:
    """Not inside a group: one exception of this package, with its cause; the connection is closed."""
    endpoint.chats.chat = ZeroDivisionError()
    endpoint.peer.select()
    with pytest.raises(TaskFailed) as failed:
        await endpoint.serve()
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    assert endpoint.peer.closed == 1
