"""What a check does to its cluster: cuts at the planned moments, viewers on both sides, kills of the right replica."""

from __future__ import annotations

from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._protocol.events import Episode, MessagePart, Status
from relaytrio.cli._check_disturb import Disturber
from relaytrio.cli._check_plan import CheckOptions, CutPlan, TurnPlan
from relaytrio.cli._check_viewer import Board
from relaytrio.cli._cluster import ReplicaSpec

VERSION = 5


@attrs.define
class FakeReplica:
    """A replica that notes what is done to it, and when."""

    spec: ReplicaSpec
    pid: int | None = 1
    lives: int = 1
    done: list[tuple[str, float]] = attrs.field(factory=list)

    @property
    def number(self) -> int:
        return self.spec.number

    @property
    def replica_id(self) -> str:
        return f"life-{self.lives}-of-{self.number}"

    async def kill(self) -> None:
        await trio.lowlevel.checkpoint()
        self.pid = None
        self.done.append(("killed", trio.current_time()))

    async def start_again(self) -> None:
        await trio.lowlevel.checkpoint()
        self.pid, self.lives = 1, self.lives + 1
        self.done.append(("started", trio.current_time()))


@attrs.define
class FakeViewer:
    """A viewer that is where it was told to go, at once."""

    replica: int | None
    cuts: list[tuple[float, int, bool]] = attrs.field(factory=list)

    async def cut(self, replica: int, *, away_until: trio.Event | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self.cuts.append((trio.current_time(), replica, away_until is not None))
        self.replica = replica


class Scene:
    """Three replicas, the last of which only serves, and viewers where a test puts them."""

    def __init__(self, *places: int, **options: Any) -> None:
        self.replicas = [FakeReplica(ReplicaSpec(number=number, worker=number < 3)) for number in (1, 2, 3)]
        self.viewers = [FakeViewer(place) for place in places]
        self.board = Board()
        self.board.begin_turn(VERSION)
        self.versions = VERSION
        cluster = cast("Any", attrs.make_class("FakeCluster", ["replicas"])(self.replicas))
        self.disturber = Disturber(
            cluster, cast("Any", self.viewers), self.board, CheckOptions(viewers=len(places), **options)
        )

    def owned_by(self, number: int) -> None:
        """The viewers are told who owns the chat."""
        self.versions += 1
        worker_id = self.replicas[number - 1].replica_id
        self.board.status(Status(status="running", worker_id=worker_id, version=self.versions, cursor=""))

    def part(self) -> None:
        """A viewer got a part of the present turn."""
        self.board.part(MessagePart(episode=Episode(VERSION, 1, "run0"), seq=1, part={"type": "text"}, cursor=""))


def turn(*cuts: CutPlan) -> TurnPlan:
    return TurnPlan(number=1, name="x", tokens=("a",) * 400, seconds=4.0, cuts=cuts)


def cut(viewer: int, after_seconds: float, replica: int, *, stays_away: bool = False) -> CutPlan:
    return CutPlan(viewer=viewer, after_seconds=after_seconds, replica=replica, stays_away=stays_away)


async def test_cuts_as_planned(autojump_clock: MockClock) -> None:
    """Viewers are cut at the planned moments after the first part, and not after the answer's end."""
    scene = Scene(1, 2, 3)
    plan = turn(cut(0, 1.0, 2), cut(1, 2.5, 3, stays_away=True), cut(2, 60.0, 1))
    scene.owned_by(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.disturb, plan, trio.Event())
        await trio.sleep(10)
        assert [viewer.cuts for viewer in scene.viewers] == [[], [], []]
        scene.part()
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    # Viewer 0 was the only one where the answer is made: it comes back there, whatever was planned.
    assert [viewer.cuts for viewer in scene.viewers] == [[(11.0, 1, False)], [(12.5, 3, True)], []]


async def test_a_viewer_is_steered_to_the_owner(autojump_clock: MockClock) -> None:
    """When nobody is where the answer is made, one viewer of the most crowded replica goes there."""
    scene = Scene(3, 3, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.disturb, turn(), trio.Event())
        await wait_all_tasks_blocked()
        scene.owned_by(1)
        await wait_all_tasks_blocked()
        assert [viewer.replica for viewer in scene.viewers] == [1, 3, 2]
        scene.owned_by(2)
        await wait_all_tasks_blocked()
        assert [viewer.replica for viewer in scene.viewers] == [1, 3, 2]
        nursery.cancel_scope.cancel()


async def test_a_viewer_is_steered_away_from_the_owner(autojump_clock: MockClock) -> None:
    """When all viewers are where the answer is made, one goes elsewhere."""
    scene = Scene(2, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.disturb, turn(), trio.Event())
        await wait_all_tasks_blocked()
        scene.owned_by(2)
        await wait_all_tasks_blocked()
        assert [viewer.replica for viewer in scene.viewers] == [1, 2]
        nursery.cancel_scope.cancel()


async def test_a_viewer_is_steered_to_a_replica_that_is_back(autojump_clock: MockClock) -> None:
    """A viewer goes elsewhere as soon as there is an elsewhere again."""
    scene = Scene(1, 1, kill="viewer", kill_every=3.0)
    scene.replicas[1].pid = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.kill_again_and_again)
        nursery.start_soon(scene.disturber.disturb, turn(), trio.Event())
        await trio.sleep(3.5)
        scene.owned_by(1)
        await wait_all_tasks_blocked()
        assert [viewer.cuts for viewer in scene.viewers] == [[], []]
        await trio.sleep(1)
        assert [viewer.replica for viewer in scene.viewers] == [3, 1]
        nursery.cancel_scope.cancel()


async def test_a_question_waits_for_two_replicas(autojump_clock: MockClock) -> None:
    """Nothing is asked while only one replica serves: no viewer could be elsewhere."""
    scene = Scene(1, 1, kill="viewer", kill_every=3.0)
    del scene.replicas[1]
    await scene.disturber.until_two_serve()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.kill_again_and_again)
        await trio.sleep(3.5)
        await scene.disturber.until_two_serve()
        assert trio.current_time() == 4.0
        nursery.cancel_scope.cancel()


async def test_a_question_does_not_wait_for_the_dead(autojump_clock: MockClock) -> None:
    """A replica that died by itself does not come back: nobody waits for it."""
    scene = Scene(1, 1)
    del scene.replicas[1]
    scene.replicas[1].pid = None
    with trio.fail_after(1):
        await scene.disturber.until_two_serve()


async def test_the_serving_replica_is_killed(autojump_clock: MockClock) -> None:
    """In every interval the replica that only serves is killed, and started again after a second."""
    scene = Scene(1, 2, kill="viewer", kill_every=3.0)
    lives = scene.disturber.lives
    with trio.move_on_after(3.5):
        await scene.disturber.kill_again_and_again()
    assert scene.replicas[2].done == [("killed", 3.0)]
    assert (lives.up, lives.killed, lives.died()) == ([1, 2], {3}, [])


async def test_the_serving_replica_is_killed_again(autojump_clock: MockClock) -> None:
    """It is killed once in each interval, counted from the kill before; nobody else is."""
    scene = Scene(1, 2, kill="viewer", kill_every=3.0)
    lives = scene.disturber.lives
    with trio.move_on_after(7.5):
        await scene.disturber.kill_again_and_again()
    assert scene.replicas[2].done == [("killed", 3.0), ("started", 4.0), ("killed", 6.0), ("started", 7.0)]
    assert [scene.replicas[number].done for number in (0, 1)] == [[], []]
    assert (lives.kills, lives.up) == (2, [1, 2, 3])
    assert {id for id, number in lives.number_of.items() if number == 3} == {
        "life-1-of-3",
        "life-2-of-3",
        "life-3-of-3",
    }


async def test_whoever_generates_is_killed(autojump_clock: MockClock) -> None:
    """The owner is killed in the middle of an answer, and only then, however long nothing is generated."""
    scene = Scene(1, 2, kill="worker", kill_every=3.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.kill_again_and_again)
        await trio.sleep(20)
        assert scene.disturber.lives.kills == 0
        scene.owned_by(2)
        async with trio.open_nursery() as answering:
            answering.start_soon(scene.disturber.disturb, turn(), trio.Event())
            await wait_all_tasks_blocked()
            scene.part()
            await trio.sleep(4)
            answering.cancel_scope.cancel()
        ((what, when),) = scene.replicas[1].done[:1]
        assert what == "killed"
        assert 20 <= when <= 20 + 0.8 * 4
        await trio.sleep(30)
        assert scene.disturber.lives.kills == 1
        nursery.cancel_scope.cancel()
    assert scene.replicas[0].done == []


async def test_an_answer_that_ended_meanwhile_is_not_killed(autojump_clock: MockClock) -> None:
    """An answer that ends before the moment that chance chose is spared: the next one is waited for."""
    scene = Scene(1, 2, kill="worker", kill_every=3.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.kill_again_and_again)
        await trio.sleep(4)
        scene.owned_by(2)
        async with trio.open_nursery() as answering:
            answering.start_soon(scene.disturber.disturb, turn(), trio.Event())
            await wait_all_tasks_blocked()
            scene.part()
            await wait_all_tasks_blocked()
            answering.cancel_scope.cancel()
        await trio.sleep(30)
        assert scene.disturber.lives.kills == 0
        nursery.cancel_scope.cancel()


async def test_a_former_life_generates_nothing(autojump_clock: MockClock) -> None:
    """An owner that was killed and is back has another id: until somebody has taken over, nobody generates."""
    scene = Scene(1, 2, kill="worker", kill_every=1.0)
    scene.owned_by(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.kill_again_and_again)
        nursery.start_soon(scene.disturber.disturb, turn(), trio.Event())
        await wait_all_tasks_blocked()
        scene.part()
        await trio.sleep(60)
        assert [what for what, _ in scene.replicas[1].done] == ["killed", "started"]
        scene.owned_by(1)
        await trio.sleep(60)
        assert [what for what, _ in scene.replicas[0].done] == ["killed", "started"]
        nursery.cancel_scope.cancel()


def test_replicas_that_died() -> None:
    """A replica that ended by itself is told from one that was killed."""
    scene = Scene(1, 2)
    scene.replicas[1].pid = None
    assert [replica.number for replica in scene.disturber.lives.died()] == [2]
    assert scene.disturber.lives.up == [1, 3]


@pytest.mark.parametrize("owner", [None, 3])
async def test_an_owner_that_is_not_known_steers_nobody(owner: int | None, autojump_clock: MockClock) -> None:
    """A worker that is no replica of this cluster has no place to steer to."""
    scene = Scene(1, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.disturber.disturb, turn(), trio.Event())
        await wait_all_tasks_blocked()
        worker_id = None if owner is None else "foreign"
        scene.board.status(Status(status="running", worker_id=worker_id, version=9, cursor=""))
        await wait_all_tasks_blocked()
        assert [viewer.cuts for viewer in scene.viewers] == [[], []]
        nursery.cancel_scope.cancel()
