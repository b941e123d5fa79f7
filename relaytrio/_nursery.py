"""A nursery of the engine's tasks, in the middle of which somebody else's code runs.

Trio's nurseries are strict: whatever leaves one is in a group. At a public boundary that would wrap a caller's own
exception for no reason of theirs. Here the body's exception leaves as it was, with its own context, and a failed task
of the engine cancels the body and leaves as one exception of this package, with its cause. The caller's cancellation
is neither swallowed nor converted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Self

import trio

from ._errors import ConfigurationError, RelaytrioError


class BodyNursery:
    """Use as an async context manager. Its tasks are cancelled when the body ends."""

    __slots__ = ("_entered", "_failure", "_make_error", "_manager", "_nursery")

    def __init__(self, make_error: Callable[[], RelaytrioError]) -> None:
        self._make_error = make_error
        self._failure: Exception | None = None
        self._manager = trio.open_nursery()
        self._entered = False

    def check_entered(self) -> None:
        """For what the tasks make: without them, a reader would wait for ever. Raises `ConfigurationError`."""
        if not self._entered:
            raise ConfigurationError("a stream is read inside of its context: async with ... as stream")

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("a stream is entered once: make another one")
        self._entered = True
        self._nursery = await self._manager.__aenter__()
        return self

    def start_soon(self, run: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run a task of the engine; if it fails, the body is cancelled, and told why when it leaves."""
        self._nursery.start_soon(self._guard, run, *args, name=run)

    async def _guard(self, run: Callable[..., Awaitable[object]], *args: object) -> None:
        try:
            await run(*args)
        except Exception as failure:
            self._failure = self._failure or _unwrapped(failure)
            self._nursery.cancel_scope.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._nursery.cancel_scope.cancel()
        try:
            swallowed = await self._manager.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - of cancelled tasks
        except BaseExceptionGroup as group:
            # The tasks' own failures never get here (`_guard`): what is in the group is the body's, but for the
            # cancellations that were ours. Trio makes groups anew on their way: what counts is what they hold.
            if len(group.exceptions) == 1 and list(_leaves(group)) != list(_leaves(error)):
                _raise_as_it_was(group.exceptions[0])
            return False
        if self._failure is not None:
            raise self._make_error() from self._failure
        return bool(swallowed)


def _unwrapped(failure: Exception) -> Exception:
    """One failure is what it is, however many nurseries of the engine's own it has left; several stay a group."""
    while isinstance(failure, ExceptionGroup) and len(failure.exceptions) == 1:
        failure = failure.exceptions[0]
    return failure


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    """The exceptions in a group, in whatever groups they are."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif error is not None:
        yield error


def _raise_as_it_was(error: BaseException) -> None:
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
