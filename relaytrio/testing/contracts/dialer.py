"""The contract of a `Dialer`: legs that bring what was selected, in order, tell every end, and fail and close plainly.

The suite plays the worker: its part logs and its store. The author serves them to the dialer in whatever way that
dialer wants, and lends the suite a hand on the connections between the two.

Must not know: what carries a leg. Who calls: authors of dialers, with a short subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import pytest
import trio
from msgspec.structs import replace

from ..._dialer import Dialer, DialRequest, Leg, LegEnd
from ..._errors import DialError, LegLost
from ..._parts import PartLog, PartLogs
from ..._protocol.burst import Burst
from ..._protocol.chat import BeginAttempt
from ..._protocol.events import Episode
from ..._settings import DEFAULTS, Settings
from ..._wakeup import Wakeup
from ...stores import MemoryStore
from .._scripted_dialer import text_burst
from ._kit import acquire, asked, cancel_after

CHAT = "contract"
NOBODY = "nobody"
"""The id of a replica that there is not."""
STEPS = 60
"""Of the scheduler, after each of which a dial is cancelled once."""


@attrs.frozen
class ServedWorker:
    """The worker's side of all legs: serve its logs as a parts endpoint does, and let nothing else be served."""

    replica_id: str = "worker"
    """Under which the dialer has to find it."""
    settings: Settings = Settings()
    parts: PartLogs = attrs.field(init=False)
    store: MemoryStore = attrs.field(init=False)

    @parts.default
    def _new_parts(self) -> PartLogs:
        return PartLogs(self.settings)

    @store.default
    def _new_store(self) -> MemoryStore:
        return MemoryStore(settings=self.settings)


@attrs.frozen(kw_only=True)
class DialerAndPeer:
    """What a dialer's author gives."""

    dialer: Dialer
    cut: Callable[[], object]
    """Lose all connections that there are at this moment, without a word of either side. Synchronous."""
    open_connections: Callable[[], int]
    """How many the dialer has opened and not closed, as far as the worker's side can tell."""


@attrs.frozen
class _Stage:
    worker: ServedWorker
    dialer: Dialer
    cut: Callable[[], object]
    open_connections: Callable[[], int]

    def dial(self, worker_id: str | None = None) -> AbstractAsyncContextManager[Leg]:
        return self.dialer.dial(DialRequest(CHAT, worker_id or self.worker.replica_id))

    async def next_episode(self) -> tuple[Episode, PartLog]:
        """The chat's next attempt, with its log."""
        chat = await self.worker.store.read_chat(CHAT)
        if chat.run_id is None:
            await acquire(self.worker.store, CHAT, worker_id=self.worker.replica_id, run_id="run")
        else:
            token = f"begin {chat.generation_attempt}"
            await self.worker.store.apply(CHAT, BeginAttempt(run_id="run", token=token))
        episode = (await self.worker.store.read_chat(CHAT)).live_episode
        assert episode is not None
        return episode, self.worker.parts.make(CHAT, episode)


class DialerContract(ABC):
    """Subclass it as `Test...`, and give `open`."""

    pytestmark = pytest.mark.trio
    patience_seconds = 10.0
    """How long anything may take on the way."""
    prompt_seconds = 1.0
    """How long it may take to leave a dial or a leg, whatever the peer does."""

    @abstractmethod
    def open(self, worker: ServedWorker) -> AbstractAsyncContextManager[DialerAndPeer]:
        """A dialer that reaches this worker, and whatever serves it, for as long as the context lasts.

        No replica is to be found under the id `nobody`.
        """

    # ------------------------------------------------------------------------------------- what a leg brings

    async def test_rows_come_in_order_from_the_first_one(self) -> None:
        """What was made before the select comes first, then what is made from then on; each once."""
        async with self._stage() as stage, stage.dial() as leg:
            episode, log = await stage.next_episode()
            _make(log, 20)
            await leg.select(episode, 0)
            for made in range(20, 60, 10):
                assert made == await self._taken(leg, episode, 0 if made == 20 else made - 10, made)
                _make(log, 10)
            assert 60 == await self._taken(leg, episode, 50, 60)

    async def test_rows_come_after_the_one_that_was_named(self) -> None:
        """Nothing up to `after_seq` is sent again."""
        async with self._stage() as stage, stage.dial() as leg:
            episode, log = await stage.next_episode()
            _make(log, 10)
            await leg.select(episode, 7)
            assert 10 == await self._taken(leg, episode, 7, 10)

    async def test_rows_that_are_gone_are_told(self) -> None:
        """The first burst says that rows before it are lost (`truncated`), and has the numbers that its rows have."""
        async with self._stage(Settings(part_log_bytes=5_000)) as stage, stage.dial() as leg:
            episode, log = await stage.next_episode()
            _make(log, 100)
            assert 1 < log.first_seq < 100
            await leg.select(episode, 0)
            first = await self._next(leg)
            assert isinstance(first, Burst)
            assert (True, log.first_seq) == (first.truncated, first.first_seq)
            whole = replace(first, truncated=False)
            assert 100 == await self._taken(leg, episode, _checked(whole, episode, log.first_seq - 1), 100)

    async def test_a_log_that_has_not_come_yet_is_waited_for(self) -> None:
        """A select that overtakes the worker's own beginning is served when the log is there."""
        async with self._stage() as stage, stage.dial() as leg:
            episode, log = await stage.next_episode()
            ahead = attrs.evolve(episode, generation_attempt=episode.generation_attempt + 1)
            await leg.select(ahead, 0)
            following, log = await stage.next_episode()
            assert ahead == following
            _make(log, 3)
            assert 3 == await self._taken(leg, ahead, 0, 3)

    # -------------------------------------------------------------------------------------- how episodes end

    async def test_a_sealed_log_ends_and_the_leg_stays(self) -> None:
        """`sealed` comes after the last row and names it; the next episode is selected on the same leg."""
        async with self._stage() as stage, stage.dial() as leg:
            for rows in (3, 0, 2):
                episode, log = await stage.next_episode()
                _make(log, rows)
                await leg.select(episode, 0)
                assert rows == await self._taken(leg, episode, 0, rows)
                log.seal()
                assert LegEnd(episode, "sealed", rows) == await self._next(leg)

    async def test_a_select_on_an_open_leg(self) -> None:
        """A sealed episode's rows and end go out before those of the next one; of one that goes on, nothing must."""
        async with self._stage() as stage, stage.dial() as leg:
            first, log = await stage.next_episode()
            _make(log, 3)
            log.seal()
            await leg.select(first, 0)
            second, log = await stage.next_episode()
            _make(log, 1)
            await leg.select(second, 0)
            assert 3 == await self._taken(leg, first, 0, 3)
            assert LegEnd(first, "sealed", 3) == await self._next(leg)
            assert 1 == await self._taken(leg, second, 0, 1)
            third, log = await stage.next_episode()
            _make(log, 2)
            await leg.select(third, 0)
            assert 2 == await self._taken(leg, third, 0, 2)

    async def test_a_chat_of_another_worker(self) -> None:
        """`not_owner`, with the owner that the peer knows; the leg stays open."""
        async with self._stage() as stage, stage.dial() as leg:
            await acquire(stage.worker.store, CHAT, worker_id="another", run_id="run")
            episode = (await stage.worker.store.read_chat(CHAT)).live_episode
            assert episode is not None
            for _ in range(2):
                await leg.select(episode, 0)
                assert LegEnd(episode, "not_owner", 0, "another") == await self._next(leg)

    async def test_an_episode_that_is_past(self) -> None:
        """`over` for one older than the present one whose log is gone; the present one can be had on the same leg."""
        async with self._stage() as stage, stage.dial() as leg:
            episode, log = await stage.next_episode()
            await leg.select(attrs.evolve(episode, generation_attempt=0), 0)
            end = await self._next(leg)
            assert isinstance(end, LegEnd)
            assert (end.episode.generation_attempt, end.reason) == (0, "over")
            _make(log, 1)
            await leg.select(episode, 0)
            assert 1 == await self._taken(leg, episode, 0, 1)

    async def test_a_select_beyond_the_end(self) -> None:
        """`beyond`, with the last row that there is."""
        async with self._stage() as stage, stage.dial() as leg:
            episode, log = await stage.next_episode()
            _make(log, 3)
            await leg.select(episode, 9)
            assert LegEnd(episode, "beyond", 3) == await self._next(leg)

    # -------------------------------------------------------------------------------------- how dialing fails

    async def test_a_replica_that_there_is_not(self) -> None:
        """A plain `DialError` that names whom it could not reach; never a group."""
        async with self._stage() as stage:
            with trio.fail_after(self.patience_seconds), pytest.raises(DialError, match=NOBODY) as failed:
                async with stage.dial(NOBODY):
                    raise AssertionError("a leg to nobody")
            assert NOBODY == failed.value.worker_id
            await self._nothing_is_left(stage)

    async def test_a_lost_connection(self) -> None:
        """What had come can be taken; then waiting says `LegLost` (or just ends), and selecting `LegLost`."""
        async with self._stage() as stage:
            async with stage.dial() as leg:
                episode, log = await stage.next_episode()
                _make(log, 3)
                await leg.select(episode, 0)
                assert 3 == await self._taken(leg, episode, 0, 3)
                stage.cut()
                with trio.fail_after(self.patience_seconds):
                    with pytest.raises((LegLost, StopAsyncIteration)) as lost:
                        await anext(aiter(leg))
                    if isinstance(lost.value, LegLost):
                        assert stage.worker.replica_id == lost.value.worker_id
                    with pytest.raises(LegLost, match=stage.worker.replica_id):
                        while True:
                            await leg.select(episode, 3)
            await self._nothing_is_left(stage)
            async with stage.dial() as leg:
                await leg.select(episode, 3)
                _make(log, 1)
                assert 4 == await self._taken(leg, episode, 3, 4)

    # ------------------------------------------------------------------------------------ cancelling, leaving

    async def test_a_dial_that_is_cancelled_at_any_step(self) -> None:
        """However far it has come: at once, nothing is left, and the next dial works."""
        async with self._stage() as stage:
            episode, log = await stage.next_episode()
            _make(log, 3)
            for steps in range(STEPS):
                began = trio.current_time()
                async with trio.open_nursery() as nursery:
                    scope = trio.CancelScope()
                    nursery.start_soon(cancel_after, scope, steps)
                    with scope:
                        async with stage.dial() as leg:
                            await leg.select(episode, 0)
                            await trio.sleep_forever()
                assert trio.current_time() - began < self.prompt_seconds
                await self._nothing_is_left(stage)
            async with stage.dial() as leg:
                await leg.select(episode, 0)
                assert 3 == await self._taken(leg, episode, 0, 3)

    async def test_a_cancelled_wait_loses_nothing(self) -> None:
        """Whatever is cancelled when, all rows come, once and in order."""
        async with self._stage() as stage, stage.dial() as leg, trio.open_nursery() as nursery:
            episode, log = await stage.next_episode()
            await leg.select(episode, 0)
            nursery.start_soon(_make_one_by_one, log, 100)
            last_seq = 0
            with trio.fail_after(self.patience_seconds):
                while last_seq < 100:
                    scope = trio.CancelScope()
                    nursery.start_soon(cancel_after, scope, 1 + last_seq % 3)
                    with scope:
                        last_seq = _checked(await anext(aiter(leg)), episode, last_seq)

    async def test_a_select_that_is_cancelled_at_any_step(self) -> None:
        """However far it has come: the leg is whole, and serves the next one."""
        async with self._stage() as stage, stage.dial() as leg:
            for steps in range(STEPS // 10):
                former, log = await stage.next_episode()
                _make(log, 2)
                async with trio.open_nursery() as nursery:
                    scope = trio.CancelScope()
                    if steps == 0:
                        scope.cancel()
                    nursery.start_soon(cancel_after, scope, steps)
                    with scope:
                        await leg.select(former, 0)
                episode, log = await stage.next_episode()
                _make(log, 3)
                await leg.select(episode, 0)
                while (item := await self._next(leg)).episode != episode:
                    pass
                assert 3 == await self._taken(leg, episode, _checked(item, episode, 0), 3)

    async def test_leaving_closes_the_connection(self) -> None:
        """At once, without waiting for the peer, in the middle of a flood that nobody takes."""
        async with self._stage() as stage:
            episode, log = await stage.next_episode()
            async with stage.dial() as leg:
                await leg.select(episode, 0)
                log.append(text_burst(episode, ["x" * 10_000] * 500).split())
                await self._next(leg)
                assert 1 == stage.open_connections()
                left = trio.current_time()
            assert trio.current_time() - left < self.prompt_seconds
            await self._nothing_is_left(stage)

    @pytest.mark.parametrize("error", [KeyError("mine"), ExceptionGroup("mine", [KeyError()])])
    async def test_an_error_of_the_body_leaves_as_it_is(self, error: Exception) -> None:
        """Not inside a group, and the connection is closed all the same."""
        async with self._stage() as stage:
            with pytest.raises(type(error)) as caught:
                async with stage.dial():
                    raise error
            assert error is caught.value
            await self._nothing_is_left(stage)

    async def test_two_dials_are_independent(self) -> None:
        """Each leg has its own selects and rows; that one is left is nothing to the other."""
        async with self._stage() as stage, stage.dial() as stays:
            episode, log = await stage.next_episode()
            _make(log, 5)
            await stays.select(episode, 0)
            following, next_log = await stage.next_episode()
            _make(next_log, 3)
            async with stage.dial() as leaves:
                await leaves.select(following, 1)
                assert 3 == await self._taken(leaves, following, 1, 3)
                assert 5 == await self._taken(stays, episode, 0, 5)
            with trio.CancelScope() as scope:
                async with stage.dial():
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
            _make(log, 1)
            assert 6 == await self._taken(stays, episode, 5, 6)

    async def test_two_legs_of_one_episode_fill_one_copy(self) -> None:
        """Each may get all rows, or they share them: both extend the same copy, and it lacks nothing; not even when one
        of them leaves in the middle."""
        async with self._stage() as stage, stage.dial() as stays:
            episode, log = await stage.next_episode()
            copies, grown, leaves = PartLogs(stage.worker.settings), Wakeup(), trio.CancelScope()
            with copies.filling(CHAT, episode) as filled, copies.watching(CHAT, episode, grown.set):
                async with trio.open_nursery() as nursery:
                    await stays.select(episode, 0)
                    nursery.start_soon(_fill, stays, filled)
                    nursery.start_soon(_fill_until_cancelled, stage, leaves, episode, filled)
                    for made in range(1, 101):
                        _make(log, 1)
                        await trio.lowlevel.checkpoint()
                        if made == 50:
                            leaves.cancel()
                    with trio.fail_after(self.patience_seconds):
                        while filled.last_seq < 100:
                            await grown.wait()
                    nursery.cancel_scope.cancel()

    # --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _stage(self, settings: Settings = DEFAULTS) -> AsyncIterator[_Stage]:
        worker = ServedWorker(settings=settings)
        await worker.store.create_chat(CHAT, asked("hello"))
        async with self.open(worker) as peer:
            stage = _Stage(worker, peer.dialer, peer.cut, peer.open_connections)
            yield stage
            await self._nothing_is_left(stage)

    async def _nothing_is_left(self, stage: _Stage) -> None:
        """The dialer has closed its connections, and nobody reads the worker's logs any more."""
        with trio.fail_after(self.patience_seconds):
            while stage.open_connections() or stage.worker.parts.watched:  # noqa: ASYNC110 - nobody tells of it
                await trio.lowlevel.checkpoint()

    async def _next(self, leg: Leg) -> Burst | LegEnd:
        with trio.fail_after(self.patience_seconds):
            return await anext(aiter(leg))

    async def _taken(self, leg: Leg, episode: Episode, last_seq: int, wanted: int) -> int:
        """Take bursts until that row has come."""
        while last_seq < wanted:
            last_seq = _checked(await self._next(leg), episode, last_seq)
        return last_seq


def _checked(item: Burst | LegEnd, episode: Episode, last_seq: int) -> int:
    """The last seq of a burst, which has to go on behind `last_seq` with the rows that were made."""
    assert isinstance(item, Burst)
    assert (episode, last_seq + 1) == (item.episode, item.first_seq)
    texts = [f"part {seq}" for seq in range(item.first_seq, item.last_seq + 1)]
    assert text_burst(episode, texts, first_seq=item.first_seq) == item
    return item.last_seq


async def _fill(leg: Leg, copy: PartLog) -> None:
    """Lay down what comes, as a relay does: before anybody else runs."""
    async for item in leg:
        if isinstance(item, Burst):
            assert copy.extend(item), "rows are missing before these"


async def _fill_until_cancelled(stage: _Stage, scope: trio.CancelScope, episode: Episode, copy: PartLog) -> None:
    with scope:
        async with stage.dial() as leg:
            await leg.select(episode, copy.last_seq)
            await _fill(leg, copy)


def _make(log: PartLog, count: int) -> None:
    """The worker sends so many more parts."""
    first_seq = log.last_seq + 1
    texts = [f"part {seq}" for seq in range(first_seq, first_seq + count)]
    if texts:
        log.append(text_burst(log.episode, texts, first_seq=first_seq).split())


async def _make_one_by_one(log: PartLog, count: int) -> None:
    for _ in range(count):
        _make(log, 1)
        await trio.lowlevel.checkpoint()
