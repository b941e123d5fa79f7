"""Tasks in the background of a body, and tasks of which the first to end ends all: without exception groups.

Who calls: the dialer and the parts endpoint. Must not know: what the tasks do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from .._errors import RelaytrioError


class TaskFailed(RelaytrioError):
    """A task in the background failed; the cause is its failure."""


class ConnectionLost(Exception):
    """The connection is of no more use; the text says why, and holds nothing that the peer sent."""


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that last no longer than the body: when it leaves, they are cancelled.

    The body's own error leaves as it was, never inside a group. A task's failure cancels the body and leaves as
    `TaskFailed`.
    """
    left_by: BaseException | None = None
    task_failed = False
    failures: BaseExceptionGroup[BaseException] | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                left_by = error
                raise
            finally:
                task_failed = nursery.cancel_scope.cancel_called
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failures = group
        error_to_raise = _what_leaves(left_by, task_failed, group)
    if failures is not None:
        # Outside of the handler: an error that left the body keeps its own context.
        try:
            raise error_to_raise
        finally:
            del error_to_raise, left_by, failures  # no cycles through this frame


def _what_leaves(
    left_by: BaseException | None, task_failed: bool, failures: BaseExceptionGroup[BaseException]
) -> BaseException:
    # A task that failed has cancelled the body: no `Cancelled` of ours may get out.
    own = _without_cancelled(left_by) if task_failed and left_by is not None else left_by
    if own is not None:
        return own
    faults = _without_cancelled(failures)
    if faults is None:
        return left_by or failures
    fault = first_of(faults)
    if not isinstance(fault, Exception):
        return fault
    failed = TaskFailed(_named(fault))
    failed.__cause__ = fault
    return failed


def _without_cancelled(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1]
    return None if isinstance(error, trio.Cancelled) else error


def first_of(error: BaseException) -> BaseException:
    """The first plain exception in a group of groups; what is none is its own."""
    return first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def run_until_lost(*tasks: Callable[[], Awaitable[None]]) -> str:
    """Run the tasks of one connection side by side until one raises `ConnectionLost`; gives that one's text.

    Any other failure leaves as `TaskFailed`.
    """
    reason, fault = "", None
    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
    except* ConnectionLost as lost:
        reason = str(first_of(lost))
    except* Exception as failures:
        fault = first_of(failures)
    if fault is not None:
        raise TaskFailed(_named(fault)) from fault
    return reason


def _named(fault: BaseException) -> str:
    return f"a task in the background failed: {type(fault).__name__}"
