"""Exit statuses, and which error gives which, with the one line that a person reads.

    0    it held, it was done
    1    an invariant broke, or the engine failed
    2    the usage or the configuration is wrong
    3    it could not be carried out
    130  Ctrl-C

An error that is not listed is a bug of this package: it keeps its traceback. Who calls: `_app.py`; commands raise.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from .._errors import (
    ConfigurationError,
    EngineFailed,
    InvalidContent,
    InvalidCursor,
    RelaytrioError,
    SubscriptionFailed,
)

HELD = 0
BROKEN = 1
USAGE = 2
NOT_DONE = 3
INTERRUPTED = 130


class UsageFault(Exception):
    """What the person wrote cannot be meant; the text names the option."""


class NotDone(Exception):
    """The command could not be carried out; the text says why."""


_STATUSES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    (KeyboardInterrupt, INTERRUPTED),
    ((UsageFault, ConfigurationError, InvalidCursor, InvalidContent), USAGE),
    ((EngineFailed, SubscriptionFailed), BROKEN),
    ((NotDone, RelaytrioError, httpx.HTTPError, OSError), NOT_DONE),
)
"""The first that fits counts."""


def status_of(error: BaseException) -> tuple[int, list[str]] | None:
    """The exit status and the lines for stderr; None for an error that nobody has foreseen.

    Several at once, as nurseries give them: Ctrl-C outranks all, then the lowest status is the gravest.
    """
    known = [(_status(leaf), leaf) for leaf in _leaves(error)]
    statuses = [status for status, _ in known if status is not None]
    if INTERRUPTED in statuses:
        return INTERRUPTED, []
    if len(statuses) < len(known):
        return None
    if all(isinstance(leaf, BrokenPipeError) for _, leaf in known):
        return NOT_DONE, []  # the reader of our output has left: it needs no word about it
    return min(statuses), list(dict.fromkeys(_line(leaf) for _, leaf in known))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _status(error: BaseException) -> int | None:
    return next((status for kinds, status in _STATUSES if isinstance(error, kinds)), None)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, EngineFailed | SubscriptionFailed) and error.__cause__ is not None:
        causes = [f"{type(cause).__name__}: {' '.join(str(cause).split())}" for cause in _leaves(error.__cause__)]
        text = f"{text}: {'; '.join(causes)}"
    return text
