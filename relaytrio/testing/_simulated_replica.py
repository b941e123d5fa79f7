"""A replica of a simulated cluster: the real engine with its worker and relay, which can crash, pause and come back.

A life lasts from a start to a crash or a stop. All that the replica does runs below the task of its life: the engine,
the connections that it serves to viewers and peers, the requests that it was asked. A crash cuts the life's ways to the
store, the notifier and the network first, so that whatever is left of it raises without an effect, and then cancels it.

Must not know: what is checked. Who calls: the simulated cluster, tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import trio

from .._engine import Engine, open_engine
from .._errors import RequestFailed
from .._relay import RelayConfig
from ._simulated_legs import SECRET, Place, address_of, open_dialer, serve_peer
from ._simulated_network import End
from ._simulated_pubsub import PubSubHandle
from ._simulated_store import Crashed, SimulatedStore

if TYPE_CHECKING:
    from ._simulated_cluster import SimulatedCluster

T = TypeVar("T")


class _Life:
    """One process."""

    def __init__(self, cluster: SimulatedCluster, node: int, number: int) -> None:
        self.node = node
        self.serves = False
        """From its start to its end or crash."""
        self.served = False
        """Whether it ever did."""
        self.crashed = False
        self.was_paused = False
        self.stopping = False
        """It is being drained, and ends after that."""
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.leaving = trio.Event()
        self.store = SimulatedStore(cluster.ledger, cluster.random(f"store of {node}.{number}"))
        self.store.latency_seconds = cluster.store_latency_seconds
        self.pubsub = PubSubHandle(cluster.pubsub)
        self.engine: Engine
        self.serving: trio.Nursery
        self.task: trio.lowlevel.Task
        self._cluster = cluster
        self._random = cluster.random(f"engine of {node}.{number}")
        self._place = Place(
            node=node,
            network=cluster.network,
            settings=cluster.settings,
            store=self.store,
            engine=lambda: self.engine,
            clock=cluster.wall_clock,
        )

    @property
    def disturbed(self) -> bool:
        """Whether anything was ever done to it."""
        return self.crashed or self.was_paused or self.store.was_disturbed

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - `_live` calls it
        """The whole life. What fails in a life that has not crashed is the engine's fault, once it serves.

        Raises what kept it from serving.
        """
        self.task = trio.lowlevel.current_task()
        refusal: Exception | None = None
        try:
            with self.scope:
                await self._live(task_status)
        except* Crashed:
            pass  # the last of it
        except* Exception as faults:
            if not self.served:
                refusal = _first_of(faults)
            elif not self.crashed:
                self._cluster.blame(_first_of(faults))
        finally:
            self.serves = False
            self.ended.set()
        if refusal is not None:
            raise refusal

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        cluster = self._cluster
        async with (
            open_dialer(cluster.legs, self._place, shared=cluster.shared_legs) as dialer,
            open_engine(
                self.store,
                pubsub=self.pubsub if cluster.has_pubsub else None,
                responder=cluster.responder,
                relay=cluster.make_relay(
                    RelayConfig(dialer=dialer, settings=cluster.settings, random=self._random.random)
                ),
                address=address_of(self.node),
                secret=SECRET,
                settings=cluster.settings,
                random=self._random,
            ) as self.engine,
        ):
            async with trio.open_nursery() as self.serving:
                cluster.network.listen(self.node, self._accept)
                self.serves = self.served = True
                task_status.started()
                await self.leaving.wait()
                self.serves = False
                cluster.network.leave(self.node)
                self.serving.cancel_scope.cancel()

    def _accept(self, end: End) -> None:
        self.serving.start_soon(serve_peer, self._cluster.legs, self._place, end)

    def crash(self, *, silently: bool) -> None:
        self.crashed, self.serves = True, False
        self.store.crash()
        self.pubsub.crash()
        self._cluster.network.leave(self.node, silently=silently)
        self.scope.cancel()


@attrs.define
class _Request:
    done: trio.Event = attrs.field(factory=trio.Event)
    result: Any = None
    error: Exception | None = None


class SimulatedReplica:
    """One replica of a cluster, over all its lives."""

    def __init__(self, cluster: SimulatedCluster, number: int) -> None:
        self.number = number
        self.lives: list[_Life] = []
        self.paused = False
        self._cluster = cluster
        self._starting = trio.Lock()

    def __str__(self) -> str:
        return f"replica {self.number}"

    @property
    def up(self) -> bool:
        """Whether it has a process, paused or not."""
        return bool(self.lives) and self._life.serves

    @property
    def engine(self) -> Engine:
        """Of the present life, or the last one."""
        return self._life.engine

    @property
    def store(self) -> SimulatedStore:
        """Its present way to the database: faults are set there."""
        return self._life.store

    @property
    def _life(self) -> _Life:
        return self.lives[-1]

    def tasks(self) -> list[str]:
        """The names of all below the task of its life."""
        return list(_below(self._life.task))

    def next_up(self) -> SimulatedReplica:
        """The next replica of the cluster that is up, itself last; itself if none is."""
        replicas = self._cluster.replicas
        others = [replicas[(self.number + step) % len(replicas)] for step in range(1, len(replicas) + 1)]
        return next((replica for replica in others if replica.up), self)

    # ------------------------------------------------------------------------------------------- its life

    async def start(self) -> None:
        """Begin a new life, unless it is up. Returns when it serves. Raises what `open_engine` raises."""
        async with self._starting:
            if self.up:
                return
            if self.lives:
                await self._life.ended.wait()
            life = _Life(self._cluster, self.number, len(self.lives))
            self.lives.append(life)
            try:
                await self._cluster.nursery.start(life.run)
            except BaseException:
                self.lives.remove(life)
                raise
            self._cluster.name(life.engine.replica_id, f"{self}.{len(self.lives)}")
            self._cluster.note(self, "starts")

    async def be_up(self) -> None:
        """Start if it is down, or when it is: one that is being stopped ends first."""
        if self.up and self._life.stopping:
            await self._life.ended.wait()
        await self.start()

    async def crash(self, *, silently: bool = False) -> None:
        """Be gone at once, without a transition, hint or goodbye. Returns when nothing of it runs any more.

        Silently: as if the machine had gone. Neither the database nor the peers notice by themselves.
        """
        if not self.up:
            await trio.lowlevel.checkpoint()
            return
        self._cluster.note(self, "crashes silently" if silently else "crashes")
        life = self._life
        life.crash(silently=silently)
        if not silently:
            self._cluster.ledger.lose_lock(life.engine.replica_id)
        self.resume()
        await life.ended.wait()

    async def stop(self) -> None:
        """Stop as a deployment does: drain, then end. Raises `RequestFailed` if it crashes meanwhile."""
        if not self.up:
            await trio.lowlevel.checkpoint()
            return
        self._cluster.note(self, "stops")
        life = self._life
        life.stopping = True
        await self.call(lambda engine: engine.drain())
        life.leaving.set()
        await life.ended.wait()

    async def restart(self) -> None:
        """Begin a new life, after a crash if it is still up. With a new replica id, at the same address."""
        await self.crash()
        await self.start()

    def pause(self) -> None:
        """Stop the process where it stands: nothing of it runs, but time goes on and its connections stay open."""
        if self.up and not self.paused:
            self._cluster.note(self, "is paused")
            self._life.was_paused = self.paused = True
            self._cluster.scheduler.freeze(self._life.task)

    def resume(self) -> None:
        """Let it go on."""
        if self.paused:
            self._cluster.note(self, "goes on")
            self.paused = False
            self._cluster.scheduler.thaw(self._life.task)

    # ------------------------------------------------------------------------------------- what it does

    def start_soon(self, run: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run a task of its own in this replica, for as long as it lives."""
        self._life.serving.start_soon(run, *args)

    async def call(self, request: Callable[[Engine], Awaitable[T]]) -> T:
        """Have it do this, and give the answer. Raises `RequestFailed` if it ends meanwhile, as a lost connection."""
        if not self.up:
            raise RequestFailed(f"{self} is down")
        life, asked = self._life, _Request()
        life.serving.start_soon(self._carry_out, life, request, asked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_with, life.ended, asked.done)
            await asked.done.wait()
            nursery.cancel_scope.cancel()
        if asked.error is not None:
            raise asked.error
        result: T = asked.result
        return result

    async def _carry_out(self, life: _Life, request: Callable[[Engine], Awaitable[object]], asked: _Request) -> None:
        asked.error = RequestFailed(f"{self} ended before it answered")
        try:
            asked.result = await request(life.engine)
            asked.error = None
        except Exception as error:
            asked.error = error
        finally:
            asked.done.set()


async def _set_with(first: trio.Event, then: trio.Event) -> None:
    await first.wait()
    then.set()


def _first_of(group: BaseExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _below(task: trio.lowlevel.Task) -> Iterator[str]:
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child.name
            yield from _below(child)
