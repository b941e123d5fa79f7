"""What the README shows, runs as it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from relaytrio.transport._problems import INTERNAL, PROBLEMS

pytestmark = pytest.mark.realworld

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def example(mark: str) -> str:
    """The one example with this text in it."""
    found: list[str] = [code for code in EXAMPLES if mark in code]
    assert 1 == len(found)
    return found[0]


def run(*command: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout


def test_the_twenty_lines_run(tmp_path: Path) -> None:
    """The first example answers its question."""
    (tmp_path / "example.py").write_text(example("What is a nursery?"))
    assert "You asked: What is a nursery? Let me think. " == run(sys.executable, "example.py", folder=tmp_path)


def test_a_responder_is_tested_in_three_lines(tmp_path: Path) -> None:
    """The example test passes, and fails when the responder says something else."""
    code = example("test_it_greets")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    (tmp_path / "test_example.py").write_text(code)
    assert "1 passed" in run(sys.executable, "-m", "pytest", "-q", folder=tmp_path)
    (tmp_path / "test_example.py").write_text(code.replace('"world."', '"moon."'))
    with pytest.raises(AssertionError):
        run(sys.executable, "-m", "pytest", "-q", folder=tmp_path)


def test_a_crash_is_simulated(tmp_path: Path) -> None:
    """The example of the kit passes, and fails when the answer is another one."""
    code = example("test_a_crash_loses_no_turn")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    (tmp_path / "test_example.py").write_text(code)
    assert "1 passed" in run(sys.executable, "-m", "pytest", "-q", folder=tmp_path)
    (tmp_path / "test_example.py").write_text(code.replace('"three ")', '"four ")'))
    with pytest.raises(AssertionError):
        run(sys.executable, "-m", "pytest", "-q", folder=tmp_path)


def test_a_race_is_stopped_at_a_seam(tmp_path: Path) -> None:
    """The example passes, and fails when it expects the Stop to have won."""
    code = example("test_a_stop_in_the_last_instant")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    (tmp_path / "test_example.py").write_text(code)
    assert "1 passed" in run(sys.executable, "-m", "pytest", "-q", folder=tmp_path)
    (tmp_path / "test_example.py").write_text(code.replace("assert not viewer", "assert viewer"))
    with pytest.raises(AssertionError):
        run(sys.executable, "-m", "pytest", "-q", folder=tmp_path)


def test_the_app_is_mounted_at_a_prefix_under_hypercorn(tmp_path: Path) -> None:
    """A chat is made and answered through the mounted app; who is not allowed is refused."""
    (tmp_path / "app.py").write_text(example("lifespan").replace("8001", "8391"))
    server = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        base = "http://127.0.0.1:8391/chat"
        _until_ready(base, server)
        assert 403 == httpx.post(f"{base}/v1/chats", json={"messages": []}).status_code
        user = {"x-user": "ada"}
        messages = [{"role": "user", "content": "hi"}]
        chat = httpx.post(f"{base}/v1/chats", json={"messages": messages}, headers=user).json()
        deadline = time.monotonic() + 20
        while httpx.get(f"{base}/v1/chats/{chat['id']}", headers=user).json()["status"] != "waiting":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stored = httpx.get(f"{base}/v1/chats/{chat['id']}/messages", headers=user).json()
        assert "Hello." in str(stored)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()
            raise


def _until_ready(base: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert server.poll() is None
        assert time.monotonic() < deadline
        try:
            if httpx.get(f"{base}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)


def test_the_table_of_problems_is_the_one_that_is_served() -> None:
    """Each documented status and name is in the code, and the other way round."""
    shown = re.findall(r"^\| (\d{3}) \| `([a-z-]+)`: ", README, re.MULTILINE)
    assert [(str(problem.status), problem.name) for problem in (*PROBLEMS, INTERNAL)] == shown
