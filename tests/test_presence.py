"""A replica's row and heartbeat, who is dead to it, and what its worker is told of that."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from relaytrio._errors import StoreUnavailable
from relaytrio._presence import DeathWatch, Presence
from relaytrio._protocol.chat import Acquire
from relaytrio._settings import Settings
from relaytrio._turn import Turn
from relaytrio.stores._base import Replica
from relaytrio.stores.memory import MemoryStore
from tests.workshop import HELLO, HERE, THERE, FaultyStore, Workshop, open_workshop, text, until_idle


async def stays(turn: Turn) -> None:
    await turn.send(text("half"))
    await trio.sleep_forever()


def row(replica_id: str = THERE, heartbeat: int = 0, lock: str = "") -> Replica:
    return Replica(id=replica_id, address=None, version="1", heartbeat=heartbeat, lock=lock)


# ------------------------------------------------------------------------------------- who is dead, purely


@attrs.define
class Observer:
    """A death watch that reads for a moment every second."""

    watch: DeathWatch = attrs.field(factory=lambda: DeathWatch(HERE, dead_after_seconds=20.0, longest_step_seconds=5.0))
    now: float = 1000.0

    def read(self, *replicas: Replica, after: float = 1.0) -> frozenset[str]:
        self.now += after
        self.watch.looked(replicas, began=self.now, ended=self.now)
        return self.watch.dead

    def fail(self, after: float = 1.0) -> None:
        self.now += after
        self.watch.look_failed()


def test_a_counter_that_stands_still_is_a_death() -> None:
    """Twenty seconds of the observer's time, from the first look at it."""
    observer = Observer()
    assert [frozenset()] * 20 == [observer.read(row()) for _ in range(20)]
    assert {THERE} == observer.read(row())


def test_a_counter_that_moves_is_a_life() -> None:
    """Once in a while is enough; a counter that went backwards (registered anew) has moved too."""
    observer = Observer()
    for second in range(200):
        assert frozenset() == observer.read(row(heartbeat=(second // 19) % 3))


def test_a_dead_replica_that_beats_again_lives() -> None:
    """Death is what an observer sees, not a verdict."""
    observer = Observer()
    for _ in range(30):
        observer.read(row())
    assert frozenset() == observer.read(row(heartbeat=1))


def test_time_without_a_successful_read_does_not_count() -> None:
    """An observer that cannot reach the store cannot see a heart beat: an outage kills nobody."""
    observer = Observer()
    for _ in range(19):
        observer.read(row())
    for _ in range(100):
        observer.fail()
    assert frozenset() == observer.read(row())
    assert frozenset() == observer.read(row())
    assert {THERE} == observer.read(row())


def test_an_observer_that_stood_still_itself_finds_nobody_dead() -> None:
    """After an hour asleep it has looked twice, not for an hour."""
    observer = Observer()
    observer.read(row())
    assert frozenset() == observer.read(row(), after=3600.0)
    assert [frozenset(), frozenset(), {THERE}] == [observer.read(row(), after=5.0) for _ in range(3)]


def test_the_time_that_a_read_takes_does_not_count() -> None:
    """What a slow read says may be as old as its beginning."""
    watch = DeathWatch(HERE, dead_after_seconds=20.0, longest_step_seconds=5.0)
    for step in range(20):
        watch.looked([row()], began=step * 5.0, ended=step * 5.0 + 4.0)
    assert frozenset() == watch.dead
    for step in range(20, 22):
        watch.looked([row()], began=step * 5.0, ended=step * 5.0 + 4.0)
    assert {THERE} == watch.dead


def test_an_observer_is_not_dead_to_itself() -> None:
    """However long its own counter stands still."""
    observer = Observer()
    assert [frozenset()] * 50 == [observer.read(row(HERE)) for _ in range(50)]


def test_a_row_that_went_is_forgotten() -> None:
    """The watch holds no more than there are rows, and one that comes back begins anew."""
    observer = Observer()
    for _ in range(30):
        observer.read(row())
    assert frozenset() == observer.read()
    assert frozenset() == observer.read(row())
    assert 1 == len(observer.watch._pulses)


@given(
    gaps=st.lists(st.tuples(st.sampled_from(["read", "fail", "beat"]), st.floats(0.0, 30.0)), max_size=60),
)
def test_nobody_dies_within_twenty_seconds_of_a_beat(gaps: Sequence[tuple[str, float]]) -> None:
    """Whatever is read when, and whatever fails: a death needs so much time since a counter moved."""
    observer, heartbeat, beat_at = Observer(), 0, 1000.0
    for what, seconds in gaps:
        if what == "fail":
            observer.fail(seconds)
            continue
        if what == "beat":
            heartbeat, beat_at = heartbeat + 1, observer.now + seconds
        dead = observer.read(row(heartbeat=heartbeat), after=seconds)
        assert not dead or observer.now - beat_at >= 20.0


# ------------------------------------------------------------------------------------------------ presence


@asynccontextmanager
async def open_presence(
    store: FaultyStore | None = None, shop: Workshop | None = None, **settings: Any
) -> AsyncIterator[tuple[Presence, FaultyStore]]:
    """The presence of `here`, running; with the worker of that workshop or without one."""
    chosen = Settings(**settings) if shop is None else shop.settings
    store = store or (FaultyStore(chosen) if shop is None else shop.store)
    worker = None if shop is None else shop.worker
    presence = Presence(replica=row(HERE), store=store, worker=worker, settings=chosen)
    async with trio.open_nursery() as nursery, presence.registered():
        nursery.start_soon(presence.run)
        yield presence, store
        nursery.cancel_scope.cancel()


async def heartbeat_of(store: FaultyStore, replica_id: str = HERE) -> int | None:
    rows = {replica.id: replica.heartbeat for replica in await MemoryStore.replicas(store)}
    return rows.get(replica_id)


async def test_a_replica_has_a_row_while_it_lives(autojump_clock: MockClock) -> None:
    """Registered on the way in, gone on the way out."""
    async with open_presence() as (_, store):
        assert 0 == await heartbeat_of(store)
    assert None is await heartbeat_of(store)


async def test_the_heart_beats(autojump_clock: MockClock) -> None:
    """Every five seconds, worker or not."""
    async with open_presence() as (_, store):
        await until_idle(51)
        assert 10 == await heartbeat_of(store)


async def test_a_heartbeat_tells_the_load(autojump_clock: MockClock) -> None:
    """The runs at that moment."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await shop.create("c")
        await shop.create("d")
        await until_idle(6)
        assert [2] == [replica.load for replica in await MemoryStore.replicas(shop.store)]


async def test_a_store_that_is_away_at_the_start_is_told(autojump_clock: MockClock) -> None:
    """Without its row a replica does not begin."""
    store = FaultyStore(Settings())
    store.down = True
    with pytest.raises(StoreUnavailable):
        async with Presence(replica=row(HERE), store=store, worker=None, settings=Settings()).registered():
            raise AssertionError("not registered")


@pytest.mark.parametrize("fault", ["fail", "hang", "break"])
async def test_leaving_does_not_depend_on_the_store(
    autojump_clock: MockClock, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that cannot be removed stays, and others find it dead; nobody waits for it for long."""
    async with open_presence() as (_, store):
        store.plan("unregister", fault)
    assert trio.current_time() <= 5.0
    assert 1 == len([record for record in caplog.records if record.levelno == logging.WARNING])


async def test_a_cancelled_replica_still_removes_its_row(autojump_clock: MockClock) -> None:
    """Then others need not wait to find it dead."""
    store = FaultyStore(Settings())
    with trio.CancelScope() as scope:
        async with Presence(replica=row(HERE), store=store, worker=None, settings=Settings()).registered():
            scope.cancel()
            await trio.sleep_forever()
    assert None is await heartbeat_of(store)


async def test_a_missed_heartbeat_is_made_up_for(autojump_clock: MockClock) -> None:
    """An outage that is shorter than a run's patience costs nothing."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await shop.create()
        await until_idle(1)
        shop.store.down = True
        await until_idle(50)
        assert 1 == len(shop.worker.runs)
        shop.store.down = False
        await until_idle(6)
        assert 1 == len(shop.worker.runs)
        assert 1 == await heartbeat_of(shop.store)


@pytest.mark.parametrize("hangs", [False, True])
async def test_after_an_outage_all_runs_end(
    autojump_clock: MockClock, hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Generation goes on for so long without the store; others have taken the chats over long since."""
    async with open_workshop(stays, acquire_seconds=1000) as shop, open_presence(shop=shop):
        await shop.create()
        await until_idle(1)
        if hangs:
            for _ in range(4):  # each counts as failed after 10 s, and the next one comes 5 s later
                shop.store.plan("heartbeat", "hang")
        else:
            shop.store.down = True
        await until_idle(58)
        assert 1 == len(shop.worker.runs)
        await until_idle(3)
        assert 0 == len(shop.worker.runs)
        assert 1 == len([record for record in caplog.records if record.levelno == logging.ERROR])
        shop.store.down = False
        await until_idle(10)
        assert ["Acquire", "Abandon", "Acquire"] == shop.store.names()
        assert 1 == len(shop.worker.runs)


async def test_a_replica_whose_row_is_gone_cancels_its_runs_and_registers_anew(autojump_clock: MockClock) -> None:
    """It was taken for dead: its chats are others', or, if nobody took them, handed over by itself."""
    async with open_workshop(stays, acquire_seconds=1000) as shop, open_presence(shop=shop):
        await shop.create("c")
        await shop.create("d")
        await until_idle(1)
        log = shop.log(shop.announced[0])
        run_ids = {chat.run_id for chat in shop.announced}
        await MemoryStore.unregister(shop.store, HERE)
        await MemoryStore.register(shop.store, row(THERE))
        await shop.apply(Acquire(worker_id=THERE, run_id="theirs", dead_worker_id=HERE), "d", hint=False)
        await until_idle(4.5)
        assert log.sealed
        assert THERE == (await shop.chat("d")).worker_id
        assert HERE == (await shop.chat("c")).worker_id
        assert (await shop.chat("c")).run_id not in run_ids
        assert ["Acquire", "Acquire", "Abandon", "Acquire"] == shop.store.names()
        shop.check_announced()
        assert 0 == await heartbeat_of(shop.store)


async def test_a_missed_stop_is_found_with_the_next_heartbeat(autojump_clock: MockClock) -> None:
    """NO_LOSS: a deaf pubsub delays a Stop by a heartbeat at most."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await shop.create()
        await until_idle(1)
        await shop.interrupt(hint=False)
        await until_idle(4.5)
        assert [("half", True)] == await shop.answers()


async def test_a_run_that_begins_while_the_question_is_on_its_way(autojump_clock: MockClock) -> None:
    """The runs are noted before the query, so one that begins meanwhile is not taken for lost."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        original = shop.store.owned_by

        async def slow(replica_id: str) -> Any:
            owned = await original(replica_id)
            await shop.create()
            await trio.sleep(1)
            shop.store.owned_by = original  # type: ignore[method-assign]
            return owned

        shop.store.owned_by = slow  # type: ignore[method-assign]
        await until_idle(20)
        assert 1 == len(shop.worker.runs)
        assert ["Acquire"] == shop.store.names()
        assert 0 == shop.store.calls["read_chat"]


# --------------------------------------------------------------------------------------------- the others


async def test_the_chats_of_a_replica_that_stopped_beating_are_taken_over(autojump_clock: MockClock) -> None:
    """Twenty seconds after its last beat was seen, not before."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await _theirs(shop)
        shop.store._replicas[THERE] = attrs.evolve(shop.store._replicas[THERE], lock="")
        await until_idle(19.5)
        assert THERE == (await shop.chat()).worker_id
        await until_idle(3)
        assert (HERE, 1) == ((await shop.chat()).worker_id, (await shop.chat()).takeovers)


async def test_the_chats_of_a_living_replica_are_not(autojump_clock: MockClock) -> None:
    """As long as its counter moves, hours later too."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await _theirs(shop)
        for _ in range(100):
            await until_idle(15)
            await MemoryStore.heartbeat(shop.store, THERE, 0)
        assert THERE == (await shop.chat()).worker_id


async def test_a_free_lock_is_a_death_at_once(autojump_clock: MockClock) -> None:
    """Where the store can tell, nobody waits for a counter."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await _theirs(shop)
        await until_idle(5)
        shop.store.lose_lock(THERE)
        await until_idle(2)
        assert HERE == (await shop.chat()).worker_id


async def test_a_lock_must_be_free_at_two_looks(autojump_clock: MockClock) -> None:
    """One that lost its connection takes its lock again before anything else: it is not dead."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await _theirs(shop)
        looks = []
        original = shop.store.released_locks

        async def look(replica_ids: Any) -> frozenset[str]:
            free = await original(replica_ids)
            looks.append((trio.current_time(), free))
            shop.store._locked.add(THERE)
            return free

        shop.store.released_locks = look  # type: ignore[method-assign]
        await until_idle(5.5)
        shop.store.lose_lock(THERE)
        await until_idle(5)
        assert THERE == (await shop.chat()).worker_id
        (first,) = [at for at, free in looks if free]
        assert 0.25 == pytest.approx(min(at for at, _ in looks if at > first) - first)


async def test_an_outage_kills_nobody(autojump_clock: MockClock) -> None:
    """While the store is away nobody's heart is seen to beat: that is no death."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await _theirs(shop)
        await until_idle(10)
        shop.store.down = True
        await until_idle(55)
        await MemoryStore.heartbeat(shop.store, THERE, 0)
        shop.store.down = False
        await until_idle(15)
        assert THERE == (await shop.chat()).worker_id


async def test_the_rows_of_the_long_dead_are_removed(autojump_clock: MockClock) -> None:
    """A crash leaves a row for minutes, not for ever; nobody's chats are forgotten with it."""
    async with open_workshop(stays) as shop, open_presence(shop=shop):
        await _theirs(shop)
        await until_idle(190)
        assert 0 == await heartbeat_of(shop.store, THERE)
        await until_idle(20)
        assert None is await heartbeat_of(shop.store, THERE)
        assert HERE == (await shop.chat()).worker_id


async def test_a_replica_without_a_worker_watches_nobody(autojump_clock: MockClock) -> None:
    """It takes nothing over, so it asks nothing."""
    async with open_presence() as (_, store):
        await until_idle(60)
        assert (0, 0) == (store.calls["replicas"], store.calls["owned_by"])


async def _theirs(shop: Workshop) -> None:
    """A chat that another replica owns."""
    await MemoryStore.register(shop.store, row(THERE))
    await MemoryStore.create_chat(shop.store, "c", HELLO)
    await shop.apply(Acquire(worker_id=THERE, run_id="theirs"), hint=False)
