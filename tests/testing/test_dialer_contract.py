"""All kinds of legs of a simulated cluster keep the contract: frames in memory, and the real dialer and endpoint; each
with a connection of its own, or one that all share. And one that is broken on purpose does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import cast

import attrs
import pytest
import trio
from msgspec.structs import replace

from relaytrio._dialer import Dialer, DialRequest, Leg, LegEnd
from relaytrio._engine import Engine
from relaytrio._errors import LegLost
from relaytrio._parts import PartLogs
from relaytrio._protocol.burst import Burst
from relaytrio._protocol.events import Episode
from relaytrio.stores import Replica
from relaytrio.testing._simulated_legs import LegKind, Place, address_of, open_dialer, serve_peer
from relaytrio.testing._simulated_network import Network
from relaytrio.testing.contracts import DialerAndPeer, DialerContract, ServedWorker

VIEWER, WORKER = 0, 1


class _OnASimulatedNetwork(DialerContract):
    kind: LegKind
    shared = False

    @asynccontextmanager
    async def open(self, worker: ServedWorker) -> AsyncIterator[DialerAndPeer]:
        network = Network(Random(1))
        await worker.store.register(Replica(id=worker.replica_id, address=address_of(WORKER), version="1"))

        def place(node: int, replica_id: str) -> Place:
            parts = worker.parts if node == WORKER else PartLogs(worker.settings)
            engine = cast("Engine", SimpleNamespace(replica_id=replica_id, parts=parts))
            return Place(
                node=node,
                network=network,
                settings=attrs.evolve(worker.settings, idle_leg_seconds=0.001),
                store=worker.store,
                engine=lambda: engine,
                clock=lambda: 1_700_000_000.0,
            )

        there = place(WORKER, worker.replica_id)
        async with (
            open_dialer(self.kind, place(VIEWER, "viewer"), shared=self.shared) as dialer,
            trio.open_nursery() as nursery,
        ):
            network.listen(WORKER, lambda end: nursery.start_soon(serve_peer, self.kind, there, end))
            yield DialerAndPeer(
                dialer=dialer,
                cut=lambda: network.drop(VIEWER, WORKER),
                open_connections=lambda: sum(not connection.near.closed for connection in network._connections),
            )
            nursery.cancel_scope.cancel()


class TestMemory(_OnASimulatedNetwork):
    """The contract, over frames in memory."""

    kind = "memory"


class TestWebSocket(_OnASimulatedNetwork):
    """The contract, over the real WebSockets of both sides, on streams in memory."""

    kind = "websocket"


class TestSharedMemory(TestMemory):
    """The same, with one connection for all legs."""

    shared = True


class TestSharedWebSocket(TestWebSocket):
    """The same, with one WebSocket for all legs."""

    shared = True


@attrs.define
class _Broken:
    """A leg that says nothing of lost rows, and is lost when a select on it is cancelled."""

    leg: Leg
    lost: bool = False

    async def select(self, episode: Episode, after_seq: int) -> None:
        if self.lost:
            raise LegLost("worker", "a select was cancelled")
        try:
            await self.leg.select(episode, after_seq)
        except trio.Cancelled:
            self.lost = True
            raise

    def __aiter__(self) -> AsyncIterator[Burst | LegEnd]:
        return self

    async def __anext__(self) -> Burst | LegEnd:
        item = await anext(aiter(self.leg))
        return replace(item, truncated=False) if isinstance(item, Burst) else item


@attrs.frozen
class _BrokenDialer:
    dialer: Dialer

    def dial(self, request: DialRequest) -> AbstractAsyncContextManager[Leg]:
        return self._dial(request)

    @asynccontextmanager
    async def _dial(self, request: DialRequest) -> AsyncIterator[Leg]:
        async with self.dialer.dial(request) as leg:
            yield _Broken(leg)


class _OfABrokenDialer(TestMemory):
    __test__ = False

    @asynccontextmanager
    async def open(self, worker: ServedWorker) -> AsyncIterator[DialerAndPeer]:
        async with super().open(worker) as peer:
            yield attrs.evolve(peer, dialer=_BrokenDialer(peer.dialer))


async def test_lost_rows_that_are_not_told_are_caught() -> None:
    """A gap that nobody announces is a violation of the contract."""
    with pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
        await _OfABrokenDialer().test_rows_that_are_gone_are_told()


async def test_a_leg_that_a_cancelled_select_breaks_is_caught() -> None:
    """The next select has to find it whole."""
    with pytest.RaisesGroup(LegLost, flatten_subgroups=True):
        await _OfABrokenDialer().test_a_select_that_is_cancelled_at_any_step()
