"""Which error gives which exit status, and what a person reads of it."""

from __future__ import annotations

import httpx
import pytest

from relaytrio._errors import (
    ChatNotFound,
    ConfigurationError,
    EngineFailed,
    InvalidCursor,
    StoreUnavailable,
    StoreUnusable,
)
from relaytrio.cli._status import NotDone, UsageFault, status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageFault("--x"), 2),
        (ConfigurationError("store"), 2),
        (InvalidCursor("cursor"), 2),
        (EngineFailed("failed"), 1),
        (NotDone("port taken"), 3),
        (ChatNotFound("no chat"), 3),
        (StoreUnusable("read-only"), 3),
        (StoreUnavailable("busy"), 3),
        (httpx.ConnectError("refused"), 3),
        (OSError(98, "Address already in use"), 3),
    ],
)
def test_status(error: Exception, status: int) -> None:
    """Each foreseen error has its status and one line."""
    assert (status, [str(error)]) == status_of(error)


def test_unforeseen_errors_keep_their_traceback() -> None:
    """A bug is not made into a line that hides where it is, alone or among others."""
    assert status_of(KeyError("x")) is None
    assert status_of(ExceptionGroup("", [UsageFault("--x"), KeyError("x")])) is None


def test_groups() -> None:
    """What nurseries gather is told once each, and the gravest counts."""
    group = ExceptionGroup("", [NotDone("a"), ExceptionGroup("", [NotDone("a"), ConfigurationError("b")])])
    assert (2, ["a", "b"]) == status_of(group)


def test_ctrl_c_outranks() -> None:
    """Ctrl-C is Ctrl-C, whatever fails while everything ends."""
    assert (130, []) == status_of(KeyboardInterrupt())
    assert (130, []) == status_of(BaseExceptionGroup("", [KeyError("x"), KeyboardInterrupt()]))


def test_nobody_reads() -> None:
    """A reader who has left (`| head`) needs no word."""
    assert (3, []) == status_of(BrokenPipeError(32, "Broken pipe"))


def test_one_line() -> None:
    """An error of several lines is told in one, and the engine's failure with its cause."""
    failure = EngineFailed("replica 1 failed")
    failure.__cause__ = ValueError("a\n  b")
    assert (1, ["replica 1 failed: ValueError: a b"]) == status_of(failure)
    assert (3, ["a b"]) == status_of(NotDone("a\nb"))
    assert (3, ["ConnectTimeout"]) == status_of(httpx.ConnectTimeout(""))
