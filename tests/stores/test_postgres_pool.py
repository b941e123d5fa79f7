"""Which connections a pool keeps, without a server."""

from __future__ import annotations

import threading
from typing import Any, cast

import attrs
import psycopg
import pytest

from relaytrio.stores._postgres_errors import TryAgain
from relaytrio.stores._postgres_pool import Deadlines, PostgresPool
from relaytrio.stores._postgres_session import PostgresSession


@attrs.define(eq=False)
class FakeSession:
    """A connection to nowhere."""

    connection: object = attrs.field(factory=object)
    usable: bool = True
    closed: bool = False

    def close(self) -> None:
        self.closed = True


def test_a_connection_that_cannot_be_had_costs_none_that_is_there() -> None:
    """A server that takes no more of them goes on with those that it has."""
    first = FakeSession()
    in_use, ended = threading.Event(), threading.Event()
    sessions = iter([first])

    def connect() -> PostgresSession:
        session = next(sessions, None)
        if session is None:
            ended.set()
            user.join()  # the first is idle by now
            raise psycopg.OperationalError("too many connections")
        return cast("PostgresSession", session)

    def use(session: object) -> None:
        in_use.set()
        assert ended.wait(10)

    pool = PostgresPool(connect, place="here", deadlines=Deadlines(10.0))
    user = threading.Thread(target=pool.run, args=(cast("Any", use),))
    user.start()
    assert in_use.wait(10)
    with pytest.raises(TryAgain, match="too many"):
        pool.run(lambda session: None)
    assert not first.closed
    assert first is cast("Any", pool.run(lambda session: session))


def test_after_a_lost_connection_those_that_wait_are_closed() -> None:
    """They lead to the same server."""
    sessions = [FakeSession(), FakeSession()]
    waiting = iter(sessions)
    pool = PostgresPool(lambda: cast("PostgresSession", next(waiting)), place="here", deadlines=Deadlines(10.0))

    def lose(session: object) -> None:
        pool.run(lambda session: None)  # the second, idle from here on
        raise psycopg.OperationalError("lost")

    with pytest.raises(TryAgain, match="lost"):
        pool.run(lose)
    assert [True, True] == [session.closed for session in sessions]
