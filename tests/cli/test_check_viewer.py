"""What a viewer of a check writes down, and what the board shows of it."""

from __future__ import annotations

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._errors import RelaytrioError
from relaytrio._protocol.events import (
    CaughtUp,
    Cursor,
    Episode,
    Event,
    HistoryReset,
    Message,
    MessageEvent,
    MessagePart,
    MessageRef,
    PreviewReset,
    QueueUpdate,
    Status,
)
from relaytrio.cli._check_records import Connection, MessageSeen, PartSeen, ResetSeen
from relaytrio.cli._check_viewer import Board, Viewer
from relaytrio.cli._status import NotDone

EPISODE = Episode(5, 1, "run0")
BASE = Cursor(MessageRef(1, "aaaaa"))


def status(status: str, version: int, worker_id: str | None = None, cursor: Cursor = BASE) -> Status:
    return Status(status=status, worker_id=worker_id, version=version, cursor=str(cursor))  # type: ignore[arg-type]


def part(seq: int) -> MessagePart:
    cursor = Cursor(BASE.message, EPISODE, seq)
    stamped = {"type": "text", "text": f"p{seq}", "sent_at": 100.0 + seq}
    return MessagePart(episode=EPISODE, seq=seq, part=stamped, cursor=str(cursor))


def message() -> MessageEvent:
    content = [{"type": "text", "text": "question"}]
    made = Message(id=1, stamp="aaaaa", role="user", content=content, version=5, created_at="")
    return MessageEvent(message=made, cursor=str(BASE))


def beginning(cursor: Cursor = BASE) -> list[Event]:
    """What a subscription begins with, after its messages."""
    return [
        QueueUpdate(queue=(), cursor=str(cursor)),
        status("running", 6, "w", cursor),
        CaughtUp(cursor=str(cursor)),
    ]


@pytest.fixture
def viewer() -> Viewer:
    """A viewer that is connected, and has had nothing yet."""
    made = Viewer(1, {"http://127.0.0.1:8001": 1}, Board(), http=httpx.AsyncClient(), seed=0)
    made.record.connections.append(Connection(replica=1, dialed_at=1.0))
    return made


def take(viewer: Viewer, *events: Event, reconnects: int = 0) -> None:
    for event in events:
        viewer._take(event, reconnects)


def test_what_is_written_down(viewer: Viewer) -> None:
    """Messages, parts with the owner that was told, and resets, in order, with their connection."""
    take(viewer, message(), *beginning(), part(1), part(2))
    take(viewer, PreviewReset(reason="worker_lost", first_seq=1, cursor=str(BASE)))
    first, second, third, fourth = viewer.record.seen
    assert isinstance(first, MessageSeen)
    assert (first.id, first.role, first.text, first.version) == (1, "user", "question", 5)
    assert isinstance(second, PartSeen)
    assert (second.seq, second.text, second.sent_at, second.worker_id) == (1, "p1", 101.0, "w")
    assert isinstance(third, PartSeen)
    assert isinstance(fourth, ResetSeen)
    assert (fourth.reason, fourth.connection) == ("worker_lost", 0)
    assert viewer.record.broken == []
    assert viewer.caught_up


def test_history_reset_is_written_down(viewer: Viewer) -> None:
    """A history reset is kept as a reset of its own kind."""
    take(viewer, message(), *beginning(), HistoryReset(after_id=0, cursor="0-"))
    last = viewer.record.seen[-1]
    assert isinstance(last, ResetSeen)
    assert (last.reason, last.first_seq) == ("history", 0)


def test_a_resume_is_another_connection(viewer: Viewer) -> None:
    """What comes after a reconnect belongs to the next connection, and its checker knows of the resume."""
    take(viewer, message(), *beginning(), part(1))
    viewer.record.connections.append(Connection(replica=1, dialed_at=2.0))
    take(viewer, *beginning(Cursor(BASE.message, EPISODE, 1)), part(2), reconnects=1)
    assert [seen.connection for seen in viewer.record.seen] == [0, 0, 1]
    assert viewer.record.broken == []
    assert all(connection.caught_up_at is not None for connection in viewer.record.connections)


def test_a_broken_stream_is_told_once(viewer: Viewer) -> None:
    """The first violation is kept; what follows is still written down for the judge."""
    take(viewer, message(), *beginning(), part(1), part(3), part(3), part(4))
    assert len(viewer.record.broken) == 1
    assert "CONTIGUOUS" in viewer.record.broken[0]
    assert [seen.seq for seen in viewer.record.seen if isinstance(seen, PartSeen)] == [1, 3, 3, 4]


async def test_settled(viewer: Viewer) -> None:
    """A viewer has settled when it knows of a version, that one or a later, in which nothing is being generated."""
    take(viewer, message(), *beginning())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.until_settled, 8)
        take(viewer, status("running", 8, "w"))
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        take(viewer, status("waiting", 9))
    assert viewer.settled_version == 9


async def test_who_failed_is_not_waited_for(viewer: Viewer) -> None:
    """A viewer whose stream ended for good does not hang the check, and says so at the start."""
    viewer.record.failure = f"{RelaytrioError.__name__}: over"
    await viewer.until_settled(8)
    with pytest.raises(NotDone, match="viewer 1: RelaytrioError: over"):
        await viewer.until_caught_up()


async def test_cutting_without_a_stream(viewer: Viewer) -> None:
    """A viewer that does not watch yet has nothing to be cut."""
    await viewer.cut(1)
    assert not viewer.record.connections[0].cut


async def test_board_shows_the_newest() -> None:
    """The board follows the newest status, and the parts of the present turn only."""
    board = Board()
    board.begin_turn(5)
    board.status(status("running", 7, "w"))
    board.status(status("running", 6, "older"))
    assert board.owner_id == "w"
    board.begin_turn(6)
    board.part(part(1))
    assert board.seq == 0
    board.begin_turn(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.first_part)
        await wait_all_tasks_blocked()
        board.part(part(3))
        board.part(part(2))
    assert board.seq == 3
