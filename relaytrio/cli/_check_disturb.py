"""What is done to a cluster while answers run: sockets cut, viewers steered, replicas killed.

It decides the moment and the place of each from the plan and from what the board shows. Must not know: what the
viewers make of it. Who calls: `_check_conduct.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import trio

from .._wakeup import Wakeup
from ._check_plan import CheckOptions, TurnPlan, choose_replica, kill_every_seconds
from ._check_viewer import Board, Viewer
from ._cluster import Cluster, ReplicaProcess

RESTART_SECONDS = 1.0
"""How long a killed replica stays away."""
KILL_SHARE = 0.8
"""A kill falls into this part of an answer's time."""


class Lives:
    """Which replica each replica id is a life of, which replicas run, and which of them we have killed."""

    def __init__(self, cluster: Cluster) -> None:
        self.number_of: dict[str, int] = {}
        self.killed: set[int] = set()
        """Those that are being killed or started again."""
        self.kills = 0
        self.returns = 0
        """How often one has come back."""
        self._cluster = cluster
        for replica in cluster.replicas:
            self.note(replica)

    def note(self, replica: ReplicaProcess) -> None:
        """A life of this replica has begun."""
        self.number_of[replica.replica_id] = replica.number

    @property
    def up(self) -> list[int]:
        """The replicas that serve, in order."""
        running = [replica for replica in self._cluster.replicas if replica.pid is not None]
        return [replica.number for replica in running if replica.number not in self.killed]

    def number_alive(self, replica_id: str | None) -> int | None:
        """The replica whose present life that is, if it serves."""
        alive = [replica for replica in self._cluster.replicas if replica.replica_id == replica_id]
        return next((replica.number for replica in alive if replica.number in self.up), None)

    def died(self) -> list[ReplicaProcess]:
        """Replicas that ended by themselves."""
        ended = [replica for replica in self._cluster.replicas if replica.pid is None]
        return [replica for replica in ended if replica.number not in self.killed]

    async def kill(self, replica: ReplicaProcess) -> None:
        """Kill it, and start it again after a while. Raises `ClusterFailed`."""
        self.killed.add(replica.number)
        self.kills += 1
        await replica.kill()
        await trio.sleep(RESTART_SECONDS)
        await self._come_back(replica)

    async def restart(self, replica: ReplicaProcess) -> int:
        """Ask it to end, as a deploy does, and start it again at once; its exit status. Raises `ClusterFailed`."""
        self.killed.add(replica.number)
        status = await replica.terminate()
        await self._come_back(replica)
        return status

    async def _come_back(self, replica: ReplicaProcess) -> None:
        await replica.start_again()
        self.note(replica)
        self.killed.discard(replica.number)
        self.returns += 1


class Disturber:
    """Cuts and steers viewers in each turn, and kills replicas beside that."""

    def __init__(self, cluster: Cluster, viewers: Sequence[Viewer], board: Board, options: CheckOptions) -> None:
        self.lives = Lives(cluster)
        self._cluster = cluster
        self._viewers = viewers
        self._board = board
        self._options = options
        self._random = Random(f"kill:{options.seed}")
        self._running: TurnPlan | None = None
        """The turn in the middle of whose answer we are."""
        self._begun = Wakeup()

    async def disturb(self, turn: TurnPlan, ended: trio.Event) -> None:
        """Cut as planned, from the first part on, and keep viewers on both sides. Cancelled when the answer ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_both_sides)
            await self._board.first_part()
            self._running = turn
            self._begun.set()
            try:
                start = trio.current_time()
                for cut in turn.cuts:
                    await trio.sleep_until(start + cut.after_seconds)
                    away = ended if cut.stays_away else None
                    await self._cut(self._viewers[cut.viewer], cut.replica, away)
                await trio.sleep_forever()
            finally:
                self._running = None

    async def _keep_both_sides(self) -> None:
        """Whenever the answer is made elsewhere, or a replica is back: let there be a viewer there, and one not.

        Not at other times: viewers that were just cut are on their way.
        """
        seen = None
        while True:
            if seen != (self._board.owner_id, self.lives.returns):
                seen = (self._board.owner_id, self.lives.returns)
                await self._steer()
            await self._board.change()

    async def _steer(self) -> None:
        owner = self._owner
        places = [viewer.replica for viewer in self._viewers]
        if (
            owner is None
            or len(self.lives.up) < 2
            or (owner in places and any(place not in (None, owner) for place in places))
        ):
            return
        crowded = max((place for place in places if place is not None), key=places.count, default=None)
        await self._cut(self._viewers[places.index(crowded)], owner, None)

    async def _cut(self, viewer: Viewer, preferred: int, away_until: trio.Event | None) -> None:
        others = [other.replica for other in self._viewers if other is not viewer]
        replica = choose_replica(preferred, others, self._owner, self.lives.up)
        await viewer.cut(replica, away_until=away_until)

    @property
    def _owner(self) -> int | None:
        return self.lives.number_alive(self._board.owner_id)

    async def until_two_serve(self) -> None:
        """Wait until viewers can be where the answer is made, and elsewhere; not for what will not come back."""
        while len(self.lives.up) < 2 and not self.lives.died():
            await self._board.change()
        await trio.lowlevel.checkpoint()

    # --------------------------------------------------------------------------------------------- kills

    async def kill_again_and_again(self) -> None:
        """Kill a replica in every interval, until cancelled. Raises `ClusterFailed` if one does not come back."""
        every = kill_every_seconds(self._options)
        due = trio.current_time() + every
        while True:
            await trio.sleep_until(due)
            replica = await self._victim()
            due = max(due, trio.current_time()) + every
            await self.lives.kill(replica)
            self._board.poke()

    async def _victim(self) -> ReplicaProcess:
        if self._options.kill == "viewer":
            await trio.lowlevel.checkpoint()
            return next(replica for replica in self._cluster.replicas if not replica.spec.worker)
        return await self._generating()

    async def _generating(self) -> ReplicaProcess:
        """Whoever is in the middle of an answer, at a moment that chance chooses."""
        while True:
            while self._running is None:
                await self._begun.wait()
            turn = self._running
            await trio.sleep(self._random.uniform(0, KILL_SHARE) * turn.seconds)
            owner = self._owner
            if self._running is turn and owner is not None:
                return next(replica for replica in self._cluster.replicas if replica.number == owner)
            if self._running is turn:
                await self._board.change()
