"""Rows are read in many threads, and the first of a kind by several at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.realworld
FIRST_TIMES = 60
"""Processes, each with one first time. Without what is made known at the import, about one in five dies of it."""

PROGRAM = """
import os, sys, threading
import msgspec
from relaytrio._protocol.chat import Answer, Chat
from relaytrio._protocol.events import Message, QueueEntry
from relaytrio.stores import Replica
from relaytrio.stores._sql_rows import from_row, names, to_answer, to_json, to_row

sys.setswitchinterval(1e-6)
VALUES = [
    Chat(id="c", status="waiting"),
    Message(id=1, stamp="abcde", role="user", content=[], version=1, created_at=""),
    QueueEntry(id=1, content=[]),
    Replica(id="w", address=None, version="1"),
]
ANSWER = Answer(done="ok", snapshot_version=1, status="waiting", history_version=1, generation_attempt=0)
ROWS = [(type(value), [to_row(value)[name] for name in names(type(value))]) for value in VALUES]

def first_time():
    barrier = threading.Barrier(8)
    good = []

    def read():
        for value, (kind, row) in zip(VALUES, ROWS):
            barrier.wait()
            assert value == from_row(kind, row)
        barrier.wait()
        assert ANSWER == to_answer(to_json(ANSWER))
        good.append(True)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if len(good) == 8 else 1

ended = []
for _ in range(FIRST_TIMES):
    child = os.fork()
    if child == 0:
        os._exit(first_time())
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(ended)
sys.exit(any(ended))
""".replace("FIRST_TIMES", str(FIRST_TIMES))


def test_many_threads_may_read_the_first_row_at_once() -> None:
    """A replica that has just started does not die of its first requests."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert 0 == done.returncode, done.stdout + done.stderr
