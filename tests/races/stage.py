"""What the races of the relay share: a scene that has to be left empty, its steps counted, stores that hang.

Must not know: which race is run. Who calls: the races of the relay.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._dialer import Dialer
from relaytrio._errors import StoreUnavailable
from relaytrio._protocol.events import MessageRef
from relaytrio._relay import MultiReplicaRelay, RelayConfig
from relaytrio.stores._base import View
from relaytrio.stores.memory import MemoryStore
from relaytrio.testing import Seam, Seams
from tests.scene import Scene, open_scene


@asynccontextmanager
async def open_stage(**options: Any) -> AsyncIterator[Scene]:
    """A scene. When it is left, no dial is pending, no leg is open, and no task of a viewer is there any more."""
    async with open_scene(**options) as scene, nothing_is_left(scene):
        yield scene


@asynccontextmanager
async def nothing_is_left(scene: Scene) -> AsyncIterator[None]:
    """What was begun within it has ended with it: tasks, dials, legs, and whoever listens to hints or logs."""
    await wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    yield
    await wait_all_tasks_blocked()
    assert before == trio.lowlevel.current_statistics().tasks_living
    scene.dialer.assert_quiet()
    assert 0 == scene.relay.counts.open
    assert 0 == len(scene.hints)
    assert not scene.parts.watched
    assert not scene.parts._chat_wakes
    assert all(log.made_here or not log._fillers for log in scene.parts._logs.values())


def dial_with(scene: Scene, dialer: Dialer) -> None:
    """Let the viewers that come from now on be served over this dialer."""
    scene.relay = MultiReplicaRelay(RelayConfig(dialer=dialer, settings=scene.replica.settings, random=lambda: 0.999))
    scene.replica = attrs.evolve(scene.replica, relay=scene.relay)


@asynccontextmanager
async def in_no_time() -> AsyncIterator[None]:
    """What is done within it takes no virtual time."""
    started = trio.current_time()
    yield
    assert started == trio.current_time()


@asynccontextmanager
async def held(seams: Seams, seam: Seam, act: Callable[[], object]) -> AsyncIterator[None]:
    """Do what brings a task to the seam; it stands there for as long as the context lasts."""
    stop = seams.stop(seam)
    act()
    async with stop:
        yield


class Steps(trio.abc.Instrument):
    """Counts the steps that tasks take."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def steps_in(seconds: float) -> int:
    """How many steps all tasks together take in that virtual time, while the test does nothing."""
    await wait_all_tasks_blocked()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await trio.sleep(seconds)
    trio.lowlevel.remove_instrument(steps)
    return steps.count


@attrs.define
class TroubledStore:
    """A store of one replica whose reads of views fail or hang when the test says so. All else is the store's own."""

    memory: MemoryStore
    mode: str = "answers"
    """`answers`, `fails` or `hangs`."""
    hanging: int = 0
    """Reads that hang at this moment."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    async def read_view(self, chat_id: str, base: MessageRef) -> View:
        if self.mode == "fails":
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("the store fails, as it was told")
        if self.mode == "hangs":
            self.hanging += 1
            try:
                await trio.sleep_forever()
            finally:
                self.hanging -= 1
        return await self.memory.read_view(chat_id, base)


def troubled(scene: Scene) -> TroubledStore:
    """The scene's store, if it was opened with `wrap_store=TroubledStore`."""
    assert isinstance(scene.store, TroubledStore)
    return scene.store
