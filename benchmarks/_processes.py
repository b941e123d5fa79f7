"""Processes of one round: each plays a role, says what it found, and shares a board of numbers with the others.

A role is a function of a module, called with its `Stage` in a fresh interpreter. The board costs no system call: it is
how a producer knows how far its readers are. Must not know: what is measured.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, cast

import attrs
import trio

PATIENCE_SECONDS = 120.0
"""How long an actor may be silent before the benchmark is given up."""
BOARD = 2048

_SPAWN = multiprocessing.get_context("spawn")


@attrs.frozen
class Stage:
    """What a role is called with."""

    board: MutableSequence[float]
    """Numbers that all processes of the round read and write; at first 0."""
    connection: Connection

    def say(self, word: object) -> None:
        """Tell the director."""
        self.connection.send(word)

    async def until(self, place: int) -> float:
        """Wait until that place of the board is not 0: another process writes it, which no event can tell."""
        while not self.board[place]:  # noqa: ASYNC110
            await trio.sleep(0.001)
        return self.board[place]


class Actor:
    """One process, seen by the director."""

    def __init__(self, process: SpawnProcess, connection: Connection) -> None:
        self._process = process
        self._connection = connection

    @property
    def pid(self) -> int:
        return cast("int", self._process.pid)

    def hear(self) -> Any:
        """What it says next. Raises `RuntimeError` if it has ended, or is silent for too long."""
        try:
            if self._connection.poll(PATIENCE_SECONDS):
                return self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{self._process.name} has ended with nothing to say") from None
        raise RuntimeError(f"{self._process.name} is silent")

    def stop(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()


class Director:
    """Starts actors."""

    def __init__(self) -> None:
        # Shared by inheritance of its arena; without a lock: each number has one writer.
        self.board = cast("MutableSequence[float]", _SPAWN.RawArray("d", BOARD))
        self.actors: list[Actor] = []

    def start(self, role: Callable[..., None], *arguments: object) -> Actor:
        """A process that plays the role."""
        ours, theirs = _SPAWN.Pipe()
        stage = Stage(self.board, theirs)
        process = _SPAWN.Process(target=role, args=(stage, *arguments), name=role.__name__, daemon=True)
        process.start()
        theirs.close()
        actor = Actor(process, ours)
        self.actors.append(actor)
        return actor


@contextmanager
def one_round() -> Iterator[Director]:
    """The processes of one round, which end with it."""
    director = Director()
    try:
        yield director
    finally:
        for actor in director.actors:
            actor.stop()


def cpu_seconds(pid: int) -> float:
    """What a process has used of all cores, by the clock that Linux keeps of it."""
    return time.clock_gettime((~pid << 3) | 2)
