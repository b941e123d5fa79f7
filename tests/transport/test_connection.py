"""The rules by which a connection between two replicas is given up."""

from __future__ import annotations

from typing import NoReturn

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio._protocol.peer_wire import Heartbeat, encode_control
from relaytrio._settings import Settings
from relaytrio.transport._connection import Incoming
from relaytrio.transport._tasks import run_until_lost

SETTINGS = Settings()


class Wire:
    """A connection on which only the test speaks."""

    def __init__(self) -> None:
        self._to_reader, self._frames = trio.open_memory_channel[str | bytes](10)

    async def receive(self) -> str | bytes:
        return await self._frames.receive()

    async def send(self, frame: str | bytes) -> None:
        raise AssertionError

    async def aclose_forcefully(self) -> None:
        raise AssertionError

    def beat(self) -> None:
        self._to_reader.send_nowait(encode_control(Heartbeat()))


async def test_what_came_before_a_pause_of_the_process_counts(mock_clock: MockClock) -> None:
    """The process stood still for longer than a peer may be silent. A frame that is here says that it was not, in
    whatever order the tasks come to run; the next silence is one."""
    for _ in range(30):
        wire, heard, reasons = Wire(), list[object](), list[str]()
        incoming = Incoming(wire, SETTINGS)

        async def read(incoming: Incoming = incoming, heard: list[object] = heard) -> NoReturn:
            while True:
                heard.append(await incoming.next())

        async def watch(incoming: Incoming = incoming, reasons: list[str] = reasons, read: object = read) -> None:
            reasons.append(await run_until_lost(read, incoming.until_silent))  # type: ignore[arg-type]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await wait_all_tasks_blocked()
            wire.beat()
            mock_clock.jump(SETTINGS.silence_seconds * 2)
            await wait_all_tasks_blocked()
            assert ([Heartbeat()], []) == (heard, reasons)
            mock_clock.jump(SETTINGS.silence_seconds - 1)
            await wait_all_tasks_blocked()
            assert [] == reasons
            mock_clock.jump(1)
        assert ["nothing was heard from it for 45 s"] == reasons
