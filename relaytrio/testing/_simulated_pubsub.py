"""The notifier of a simulated cluster: hints that are lost, doubled and late, for each listener by itself.

Must not know: stores, engines. Who calls: replicas of a simulated cluster, each over a handle of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import attrs
import trio

from .._errors import PubSubUnavailable
from ..pubsub._base import Hint
from ..pubsub._listener import Listener
from ._simulated_store import Crashed, Told


@attrs.frozen(kw_only=True)
class HintFaults:
    """What becomes of hints. Drawn for every hint and listener."""

    delivered: float = 1.0
    """The share that arrives: 0 is a deaf notifier."""
    doubled: float = 0.0
    """The share of these that arrives twice."""
    delay_seconds: tuple[float, float] = (0.0, 0.0)
    """The least and the most that one takes: hints overtake each other."""


class SimulatedPubSub:
    """What carries the hints of a cluster."""

    def __init__(self, nursery: trio.Nursery, random: Random, faults: HintFaults) -> None:
        self.faults = faults
        self._nursery = nursery
        self._random = random
        self._down: str | None = None
        self._listeners: dict[Listener, None] = {}

    def set_down(self, down: bool) -> None:
        """Nobody can publish or listen; those who listen are told. Or it works again."""
        self._down = "the notifier does not answer" if down else None
        if down:
            for listener in self._listeners:
                listener.fail("the notifier was lost")
            self._listeners.clear()

    def check_up(self) -> None:
        """Raises `PubSubUnavailable`."""
        if self._down is not None:
            raise PubSubUnavailable(self._down)

    def publish(self, hint: Hint) -> None:
        """Hand the hint to all who listen, or not."""
        for listener in tuple(self._listeners):
            if self._random.random() >= self.faults.delivered:
                continue
            self._send(listener, hint)
            if self._random.random() < self.faults.doubled:
                self._send(listener, hint)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Listener]:
        """A listener for as long as the context lasts."""
        self.check_up()
        listener = Listener()
        self._listeners[listener] = None
        try:
            yield listener
        finally:
            self._listeners.pop(listener, None)
            listener.close()

    def _send(self, listener: Listener, hint: Hint) -> None:
        least, most = self.faults.delay_seconds
        if most > 0:
            self._nursery.start_soon(self._send_late, listener, hint, self._random.uniform(least, most))
        else:
            listener.put(hint)

    async def _send_late(self, listener: Listener, hint: Hint, delay_seconds: float) -> None:
        await trio.sleep(delay_seconds)
        listener.put(hint)


class PubSubHandle:
    """The notifier, as one life of a replica has it. A `PubSub`."""

    def __init__(self, pubsub: SimulatedPubSub) -> None:
        self.published: Counter[Told] = Counter()
        """What this replica has told the others, and how often."""
        self._pubsub = pubsub
        self._crashed = False

    def crash(self) -> None:
        """The replica is no more: nothing of it is published."""
        self._crashed = True

    async def publish(self, hint: Hint) -> None:
        """See `PubSub`."""
        self._check_alive()
        await trio.lowlevel.checkpoint()
        self._check_alive()
        self._pubsub.check_up()
        self.published[hint.chat_id, hint.snapshot_version, hint.status, hint.worker_id] += 1
        self._pubsub.publish(hint)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        """See `PubSub`."""
        self._check_alive()
        async with self._pubsub.listen() as listener:
            yield listener

    async def aclose(self) -> None:
        """The notifier is the cluster's: it goes on for the others."""
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _check_alive(self) -> None:
        if self._crashed:
            raise Crashed
