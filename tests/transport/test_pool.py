"""Legs that share a connection: each subscription gets what it would have had on its own, and it is sent once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._dialer import DialRequest, Leg, LegEnd
from relaytrio._errors import DialError, DialRefused, DialTimeout, LegLost
from relaytrio._protocol.burst import Burst, join
from relaytrio._protocol.events import Episode
from relaytrio._protocol.peer_wire import (
    Bundle,
    Control,
    Ended,
    EndReason,
    Heartbeat,
    LegBurst,
    Release,
    Select,
    decode_control,
    encode_control,
)
from relaytrio._settings import Settings
from relaytrio.transport import _shared_leg
from relaytrio.transport.pool import LegPool, open_leg_pool
from tests.protocol.wires import text_rows

WORKER, OTHER = "worker", "other"
FIRST, SECOND, THIRD = (Episode(version, 1, "run") for version in (1, 2, 3))
SETTINGS = Settings(idle_leg_seconds=5.0)


class Wire:
    """One connection, in the hands of the test at its far end."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.closed = False
        self.taken: list[Control] = []
        """All that came but heartbeats."""
        self.heartbeats = 0
        self._to_pool, self._from_peer = trio.open_memory_channel[str | bytes](1000)

    # the pool's end

    async def receive(self) -> str | bytes:
        return await self._from_peer.receive()

    async def send(self, frame: str | bytes) -> None:
        await trio.lowlevel.checkpoint()
        control = decode_control(frame, limit_bytes=1 << 20)
        if isinstance(control, Heartbeat):
            self.heartbeats += 1
        elif control is not None:
            self.taken.append(control)

    async def aclose_forcefully(self) -> None:
        self.closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    # the test's end

    def say(self, frame: Control) -> None:
        self._to_pool.send_nowait(encode_control(frame))

    def lose(self) -> None:
        self._to_pool.close()

    @property
    def selects(self) -> list[tuple[str, Episode, int]]:
        return [(frame.chat_id, frame.episode, frame.after_seq) for frame in self.taken if isinstance(frame, Select)]

    @property
    def releases(self) -> int:
        return sum(isinstance(frame, Release) for frame in self.taken)

    def number(self, episode: Episode = FIRST, chat_id: str = "c") -> int:
        """The leg on which that was selected last."""
        return next(
            frame.leg
            for frame in reversed(self.taken)
            if isinstance(frame, Select) and (frame.chat_id, frame.episode) == (chat_id, episode)
        )

    def rows(self, *seqs: int, episode: Episode = FIRST, chat_id: str = "c", size: int = 1) -> None:
        rows = text_rows(*seqs, episode=episode, size=size)
        self.say(LegBurst(self.number(episode, chat_id), join(episode, seqs[0], rows)))

    def end(self, reason: EndReason = "sealed", last_seq: int = 0, *, episode: Episode = FIRST) -> None:
        self.say(Ended(self.number(episode), episode, reason, last_seq))


@attrs.define(slots=False)
class Opener:
    """Opens connections when the test lets it."""

    wires: list[Wire] = attrs.field(factory=list)
    attempts: int = 0
    given_up: int = 0
    held: trio.Event | None = None
    """If given, connecting waits for it."""
    failure: DialError | None = None
    grants: int = 0

    @asynccontextmanager
    async def connect(self, worker_id: str) -> AsyncIterator[Wire]:
        self.attempts += 1
        try:
            await trio.lowlevel.checkpoint()
            if self.held is not None:
                await self.held.wait()
        except trio.Cancelled:
            self.given_up += 1
            raise
        if self.failure is not None:
            raise self.failure
        wire = Wire(worker_id)
        self.wires.append(wire)
        try:
            yield wire
        finally:
            wire.closed = True

    def select_grant(self, worker_id: str, chat_id: str) -> str:
        self.grants += 1
        return f"grant of {chat_id} at {worker_id}"


class Follower:
    """A subscription's relay, as far as a leg knows it: what it takes of one copy that all share."""

    def __init__(self, leg: Leg, copies: dict[Episode, list[int]]) -> None:
        self.leg = leg
        self.copies = copies
        self.took: list[Burst | LegEnd] = []
        self.lost: LegLost | None = None

    async def select(self, episode: Episode = FIRST) -> None:
        await self.leg.select(episode, len(self.copies.setdefault(episode, [])))

    async def run(self) -> None:
        try:
            async for item in self.leg:
                self.took.append(item)
                if isinstance(item, Burst):
                    self._lay_down(item)
        except LegLost as lost:
            self.lost = lost

    def _lay_down(self, burst: Burst) -> None:
        copy = self.copies[burst.episode]
        assert burst.first_seq <= len(copy) + 1, "a burst has overtaken another one"
        copy.extend(seq for seq in range(burst.first_seq, burst.last_seq + 1) if seq == len(copy) + 1)

    @property
    def ends(self) -> list[str]:
        return [item.reason for item in self.took if isinstance(item, LegEnd)]


@attrs.define(slots=False)
class Scene:
    opener: Opener
    pool: LegPool
    nursery: trio.Nursery
    copies: dict[Episode, list[int]] = attrs.field(factory=dict)

    @property
    def wire(self) -> Wire:
        return self.opener.wires[-1]

    @asynccontextmanager
    async def following(self, *, chat_id: str = "c", worker_id: str = WORKER) -> AsyncIterator[Follower]:
        """A follower that takes what comes, for as long as the context lasts."""
        copies = self.copies if chat_id == "c" else {}
        async with self.pool.dial(DialRequest(chat_id, worker_id)) as leg, trio.open_nursery() as nursery:
            follower = Follower(leg, copies)
            nursery.start_soon(follower.run)
            yield follower
            nursery.cancel_scope.cancel()

    async def follow(self, episode: Episode | None = FIRST, **options: Any) -> Follower:
        """One that stays until the end of the test."""

        async def stay(*, task_status: trio.TaskStatus[Follower]) -> None:
            async with self.following(**options) as follower:
                if episode is not None:
                    await follower.select(episode)
                task_status.started(follower)
                await trio.sleep_forever()

        follower: Follower = await self.nursery.start(stay)
        await wait_all_tasks_blocked()
        return follower


@pytest.fixture
async def scene(autojump_clock: MockClock) -> AsyncIterator[Scene]:
    opener = Opener()
    async with open_leg_pool(opener, SETTINGS) as pool, trio.open_nursery() as nursery:
        yield Scene(opener, pool, nursery)
        nursery.cancel_scope.cancel()
    assert all(wire.closed for wire in opener.wires)


async def test_many_followers_are_one_connection_and_one_select(scene: Scene, autojump_clock: MockClock) -> None:
    """And all rows are laid down once, in order, whoever takes them."""
    followers = [await scene.follow() for _ in range(20)]
    assert (1, 1) == (scene.pool.connections, scene.pool.selects)
    assert [("c", FIRST, 0)] == scene.wire.selects
    for seq in range(1, 101):
        scene.wire.rows(seq)
    scene.wire.end(last_seq=100)
    await wait_all_tasks_blocked()
    assert list(range(1, 101)) == scene.copies[FIRST]
    assert [["sealed"]] * 20 == [follower.ends for follower in followers]
    # Each takes its share, and one burst by which it knows that rows come.
    assert sum(len(follower.took) for follower in followers) <= 100 + 20 + 20


async def test_a_bundle_brings_each_its_own(scene: Scene, autojump_clock: MockClock) -> None:
    """Several episodes' rows in one frame; what is nobody's any more is passed over."""
    first, second = await scene.follow(), await scene.follow(SECOND)
    assert all(frame.bundles for frame in scene.wire.taken if isinstance(frame, Select))
    bursts = [(FIRST, 1), (SECOND, 1), (FIRST, 2)]
    of_legs = [
        LegBurst(scene.wire.number(episode), join(episode, seq, text_rows(seq, episode=episode)))
        for episode, seq in bursts
    ]
    scene.wire.say(Bundle((*of_legs, replace(of_legs[0], leg=99))))
    await wait_all_tasks_blocked()
    assert {FIRST: [1, 2], SECOND: [1]} == scene.copies
    assert (1, 1) == (len(first.took), len(second.took))


async def test_bursts_that_wait_are_taken_as_one(scene: Scene, autojump_clock: MockClock) -> None:
    """As far as they follow each other, and not beyond what one burst may hold."""
    large = text_rows(3, 4, episode=FIRST, size=_shared_leg.JOINED_BYTES - 500)
    rows = [*text_rows(1, 2, episode=FIRST), *large, *text_rows(5, 7, 8, episode=FIRST)]
    async with scene.pool.dial(DialRequest("c", WORKER)) as leg:
        await leg.select(FIRST, 0)
        await wait_all_tasks_blocked()
        for seq, row in zip([1, 2, 3, 4, 5, 7, 8], rows, strict=True):
            scene.wire.say(LegBurst(scene.wire.number(FIRST), join(FIRST, seq, [row])))
        await wait_all_tasks_blocked()
        taken = [await anext(aiter(leg)) for _ in range(3)]
    bursts = [item for item in taken if isinstance(item, Burst)]
    assert [(1, 3), (4, 5), (7, 8)] == [(burst.first_seq, burst.last_seq) for burst in bursts]
    assert rows == [row for burst in bursts for row in burst.split()]


class Ledge:
    """What a relay lays rows down on at once, if it likes."""

    def __init__(self, takes: bool = True) -> None:
        self.takes = takes
        self.rows: list[bytes] = []

    def lay_down(self, burst: Burst) -> bool:
        if self.takes:
            self.rows += burst.split()
        return self.takes


async def test_rows_are_laid_down_as_they_come(scene: Scene, autojump_clock: MockClock) -> None:
    """Where a relay takes them so, no task of it has to run; another one learns all the same that rows come. What it
    does not take waits for its task, and then what follows does too."""
    ledge = Ledge()
    request = DialRequest("c", WORKER, lay_down=ledge.lay_down)
    async with scene.pool.dial(request) as leg:
        await leg.select(FIRST, 0)
        other = await scene.follow()
        scene.wire.rows(1)
        scene.wire.rows(2, 3)
        await wait_all_tasks_blocked()
        assert text_rows(1, 2, 3, episode=FIRST, size=1) == ledge.rows
        assert 1 == len(other.took)
        ledge.takes = False
        other.leg.close()  # type: ignore[attr-defined]
        scene.wire.rows(4)
        await wait_all_tasks_blocked()
        ledge.takes = True
        scene.wire.rows(5)
        await wait_all_tasks_blocked()
        taken = await anext(aiter(leg))
        assert isinstance(taken, Burst)
        assert (3, 4, 5) == (len(ledge.rows), taken.first_seq, taken.last_seq)
        scene.wire.rows(6)
        await wait_all_tasks_blocked()
        assert 4 == len(ledge.rows)


async def test_every_follower_learns_that_rows_come(scene: Scene, autojump_clock: MockClock) -> None:
    """What resets its retry, though another one lays the rows down."""
    followers = [await scene.follow() for _ in range(3)]
    scene.wire.rows(1, 2)
    await wait_all_tasks_blocked()
    assert [1, 1, 1] == [len(follower.took) for follower in followers]


async def test_chats_share_the_connection_and_workers_do_not(scene: Scene, autojump_clock: MockClock) -> None:
    """A select for each chat, a connection for each peer."""
    for chat_id in ("c", "d"):
        await scene.follow(chat_id=chat_id)
    await scene.follow(worker_id=OTHER)
    assert [WORKER, OTHER] == [wire.worker_id for wire in scene.opener.wires]
    assert [("c", FIRST, 0), ("d", FIRST, 0)] == scene.opener.wires[0].selects
    assert 3 == scene.opener.grants


async def test_who_comes_later_takes_part_without_another_select(scene: Scene, autojump_clock: MockClock) -> None:
    """The copy has what came before."""
    await scene.follow()
    scene.wire.rows(1, 2, 3)
    await wait_all_tasks_blocked()
    late = await scene.follow()
    assert 1 == len(scene.wire.selects)
    scene.wire.rows(4)
    await wait_all_tasks_blocked()
    assert [1, 2, 3, 4] == scene.copies[FIRST]
    assert 1 == len(late.took)


async def test_a_copy_that_lacks_rows_is_sent_them_again(scene: Scene, autojump_clock: MockClock) -> None:
    """The former copy was forgotten: the select goes back to its beginning."""
    await scene.follow()
    scene.wire.rows(1, 2, 3)
    await wait_all_tasks_blocked()
    scene.copies[FIRST].clear()
    await scene.follow()
    assert [("c", FIRST, 0), ("c", FIRST, 0)] == scene.wire.selects
    scene.wire.rows(1, 2, 3, 4)
    await wait_all_tasks_blocked()
    assert [1, 2, 3, 4] == scene.copies[FIRST]


async def test_who_leaves_takes_nothing_from_the_others(scene: Scene, autojump_clock: MockClock) -> None:
    """Not even when it leaves with rows at hand that it was woken for."""
    async with scene.following() as first:
        await first.select()
        await wait_all_tasks_blocked()
        second = await scene.follow()
        scene.wire.rows(1)
        scene.wire.rows(2)
    await wait_all_tasks_blocked()
    assert [1, 2] == scene.copies[FIRST]
    scene.wire.rows(3)
    await wait_all_tasks_blocked()
    assert [1, 2, 3] == scene.copies[FIRST]
    assert second.took
    assert 0 == scene.wire.releases


async def test_the_last_that_leaves_releases(scene: Scene, autojump_clock: MockClock) -> None:
    """The connection is kept for a moment, and then closed: 5 s."""
    async with scene.following() as follower:
        await follower.select()
        await wait_all_tasks_blocked()
    await wait_all_tasks_blocked()
    assert (1, 0, 1) == (scene.pool.connections, scene.pool.selects, scene.wire.releases)
    await trio.sleep(4.9)
    assert not scene.wire.closed
    await trio.sleep(0.2)
    assert scene.wire.closed
    assert 0 == scene.pool.connections


async def test_who_returns_in_time_finds_the_connection(scene: Scene, autojump_clock: MockClock) -> None:
    """And who comes after that gets another one."""
    for pause_seconds, attempts in ((0.0, 1), (4.9, 1), (4.9, 1), (5.1, 2)):
        await trio.sleep(pause_seconds)
        async with scene.following() as follower:
            await follower.select()
        assert attempts == scene.opener.attempts


async def test_an_old_view_does_not_turn_the_others_back(scene: Scene, autojump_clock: MockClock) -> None:
    """NO_STALE_LEG: a late follower selects an older episode beside the newer one, which goes on."""
    ahead = await scene.follow(SECOND)
    behind = await scene.follow(FIRST)
    scene.wire.rows(1, episode=SECOND)
    scene.wire.rows(1, episode=FIRST)
    scene.wire.rows(2, episode=SECOND)
    await wait_all_tasks_blocked()
    assert [1, 2] == scene.copies[SECOND]
    assert [1] == scene.copies[FIRST]
    assert {SECOND} == {item.episode for item in ahead.took}
    assert {FIRST} == {item.episode for item in behind.took}


async def test_the_former_episode_still_comes_to_its_end(scene: Scene, autojump_clock: MockClock) -> None:
    """LAST_PARTS: what is on its way of it is not cut off by the next select."""
    follower = await scene.follow(FIRST)
    await follower.select(SECOND)
    await wait_all_tasks_blocked()
    scene.wire.rows(1, episode=FIRST)
    scene.wire.end(last_seq=1, episode=FIRST)
    scene.wire.rows(1, episode=SECOND)
    await wait_all_tasks_blocked()
    assert ([1], [1]) == (scene.copies[FIRST], scene.copies[SECOND])
    assert ["sealed"] == follower.ends
    assert 1 == scene.pool.selects


async def test_episodes_that_never_end_are_released(scene: Scene, autojump_clock: MockClock) -> None:
    """BOUNDED: of many former ones, the last few are still taken."""
    follower = await scene.follow(None)
    for version in range(20):
        await follower.select(Episode(version, 1, "run"))
    await wait_all_tasks_blocked()
    assert _shared_leg.FORMER_EPISODES + 1 == scene.pool.selects
    assert 20 - scene.pool.selects == scene.wire.releases


@pytest.mark.parametrize("kind", [DialRefused, DialTimeout, DialError])
async def test_a_dial_that_fails_fails_for_all_who_wait(
    scene: Scene, autojump_clock: MockClock, kind: type[DialError]
) -> None:
    """Each gets an error of its own, of the same kind, that names the worker; the next dial is another attempt."""
    scene.opener.held, scene.opener.failure = trio.Event(), kind(WORKER, "planned")
    errors: list[DialError] = []

    async def dial() -> None:
        with pytest.raises(kind, match="worker: planned") as failed:
            async with scene.pool.dial(DialRequest("c", WORKER)):
                raise AssertionError("it was opened")
        errors.append(failed.value)

    for _ in range(3):
        scene.nursery.start_soon(dial)
    await wait_all_tasks_blocked()
    scene.opener.held.set()
    await wait_all_tasks_blocked()
    assert 3 == len(set(map(id, errors)))
    assert (1, 0) == (scene.opener.attempts, scene.pool.connections)
    scene.opener.failure = None
    await scene.follow()
    assert 2 == scene.opener.attempts


async def test_an_attempt_that_nobody_waits_for_is_given_up(scene: Scene, autojump_clock: MockClock) -> None:
    """STOPS: at once; one that somebody else waits for goes on."""
    scene.opener.held = trio.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.follow)
            await wait_all_tasks_blocked()
            with trio.move_on_after(1):
                async with scene.pool.dial(DialRequest("d", WORKER)):
                    raise AssertionError("it was opened")
            assert (1, 0) == (scene.opener.attempts, scene.opener.given_up)
            scope.cancel()
    await wait_all_tasks_blocked()
    assert (1, 1, 0) == (scene.opener.attempts, scene.opener.given_up, scene.pool.connections)


async def test_a_lost_connection_is_lost_for_all(scene: Scene, autojump_clock: MockClock) -> None:
    """What had come is taken first; then each dials again, and is sent the rest from where the copy ends."""
    followers = [await scene.follow() for _ in range(3)]
    scene.wire.rows(1, 2)
    scene.wire.lose()
    await wait_all_tasks_blocked()
    assert [1, 2] == scene.copies[FIRST]
    assert [WORKER] * 3 == [follower.lost.worker_id for follower in followers if follower.lost]
    await scene.follow()
    assert [("c", FIRST, 2)] == scene.wire.selects
    with pytest.raises(LegLost):
        await followers[0].leg.select(SECOND, 0)


async def test_a_frame_that_is_no_peers_ends_the_connection(scene: Scene, autojump_clock: MockClock) -> None:
    """Whatever it was for."""
    follower = await scene.follow()
    scene.wire.say(Release(1))
    await wait_all_tasks_blocked()
    assert follower.lost is not None
    assert scene.wire.closed


async def test_one_chat_does_not_hold_up_another(
    scene: Scene, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BOUNDED: where one episode's rows are not taken, it is given up; the other chat's go on."""
    monkeypatch.setattr(_shared_leg, "WAITING_BYTES", 10_000)
    async with scene.pool.dial(DialRequest("flood", WORKER)) as stuck:
        await stuck.select(FIRST, 0)
        calm = await scene.follow()
        for seq in range(1, 12):
            scene.wire.rows(seq, chat_id="flood", size=1000)
        scene.wire.rows(1)
        await wait_all_tasks_blocked()
        assert [1] == scene.copies[FIRST]
        assert 1 == scene.wire.releases
        with pytest.raises(LegLost, match="more of an episode has come than is taken"):
            while True:
                await anext(aiter(stuck))
        assert calm.lost is None


async def test_what_comes_after_a_release_reaches_nobody(scene: Scene, autojump_clock: MockClock) -> None:
    """It was on its way."""
    async with scene.following() as follower:
        await follower.select()
        await wait_all_tasks_blocked()
    scene.wire.rows(1)
    await wait_all_tasks_blocked()
    assert [] == scene.copies[FIRST]
    other = await scene.follow()
    assert [("c", FIRST, 0), ("c", FIRST, 0)] == scene.wire.selects
    assert [] == other.took


async def test_an_idle_connection_carries_heartbeats(scene: Scene, autojump_clock: MockClock) -> None:
    """One every 15 s, while somebody uses it; who hears nothing for 45 s takes it for lost."""
    follower = await scene.follow()
    await trio.sleep(44)
    assert 2 == scene.wire.heartbeats
    assert follower.lost is None
    await trio.sleep(2)
    assert follower.lost is not None


async def test_leaving_the_pool_closes_everything(autojump_clock: MockClock) -> None:
    """NO_LEAK: at once, also what is being opened."""
    opener = Opener()
    async with open_leg_pool(opener, SETTINGS) as pool, pool.dial(DialRequest("c", WORKER)) as leg:
        await leg.select(FIRST, 0)
    assert opener.wires[0].closed
    assert 0 == pool.connections
