"""What went wrong with PostgreSQL, in this package's words: for now, or until a person acts; and whether it is known
what became of the transaction.

No text that leaves here holds a password, a row or a parameter: a server's details and contexts are left out. Who
calls: all that touches a connection, in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import psycopg

from .._errors import StoreUnavailable, StoreUnusable

_LOST = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "25006", "58", "XX000", "0A000", "26000", "42P05")
"""The connection is no good any more: it broke, the server is going down or starting, the administrator or a limit of
time ended the session, or it leads to a server that may not be written to (any more): another connection leads to the
new primary. The last three are of prepared statements that a migration, or a pooler in between, has made useless."""
_CONFLICT = ("40",)
"""Serialisation failures and deadlocks: nothing was written, and the same transaction may well work now."""
_SHORT = ("53",)
"""Too many connections, no memory, no disk."""
_SLOW = ("57014", "55P03")
"""A statement, or the wait for a lock, took too long. It has had its time: the caller decides."""


class TryAgain(Exception):
    """A transaction failed in a way that another try, perhaps over another connection, may get past."""

    def __init__(self, reason: str, *, lost: bool, in_doubt: bool = False) -> None:
        super().__init__(reason)
        self.lost = lost
        """Connections to that server are not to be trusted any more."""
        self.in_doubt = in_doubt
        """The connection was lost in the commit: nobody knows whether it has happened."""


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Errors of PostgreSQL leave as `TryAgain`, `StoreUnavailable` (it had its time) or `StoreUnusable`.

    A violated constraint or a refused value is a fault of this package, and leaves as what it is, but without the row.
    """
    try:
        yield
    except (psycopg.IntegrityError, psycopg.DataError, psycopg.InterfaceError) as error:
        raise type(error)(said(error)) from None
    except psycopg.Error as error:
        raise _in_our_words(place, error) from error
    except msgspec.MsgspecError as error:
        raise StoreUnusable(f"the database {place} holds what was never written by this package: {error}") from error


def _in_our_words(place: str, error: psycopg.Error) -> Exception:
    state = error.sqlstate or ""
    if state.startswith((*_LOST, *_SHORT)) or (not state and isinstance(error, psycopg.OperationalError)):
        return TryAgain(said(error), lost=not state.startswith(_SHORT))
    if state.startswith(_CONFLICT):
        return TryAgain(said(error), lost=False)
    if state.startswith(_SLOW):
        return StoreUnavailable(f"the database {place} cannot be used for now: {said(error)}")
    return StoreUnusable(f"the database {place} cannot be used: {said(error)}")


def said(error: psycopg.Error) -> str:
    """The first line of what the server or libpq said, which never holds a value; details may."""
    text = error.diag.message_primary or str(error).partition("\n")[0]
    return text or type(error).__name__
