"""All kinds of legs of a simulated cluster keep the contract: frames in memory, and the real dialer and endpoint; each
with a connection of its own, or one that all share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import cast

import attrs
import trio

from relaytrio._engine import Engine
from relaytrio._parts import PartLogs
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
