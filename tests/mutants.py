"""Does the net hold? Breaks the engine in one small place after the other, and runs the tests that should see it.

`python -m tests.mutants` prints what caught each breakage; with a text, only those whose names hold it. It fails if one
goes unseen, or if one no longer applies (the line that it breaks has changed: then it has to be written anew). Works on
copies; two at a time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import attrs

ROOT = Path(__file__).parent.parent
PROCESSES = 2
SECONDS = 90
"""For the tests of one mutant; one that makes them hang is caught too."""


@attrs.frozen
class Mutant:
    """One breakage: this text of that file, which stands there once, becomes that one."""

    name: str
    file: str
    old: str
    new: str
    tests: str


_RELAY, _VIEWER, _PARTS = "tests/test_relay.py", "tests/test_subscription.py", "tests/test_parts.py"
_RESUME, _CHAT, _HINTS = "tests/protocol/test_resume.py", "tests/protocol/test_chat.py", "tests/test_hints.py"
_ENDPOINT, _DIALER = "tests/transport/test_parts_endpoint.py", "tests/transport/test_dialer.py"
_RUN = "tests/test_run.py tests/test_run_stops.py tests/test_run_loss.py tests/test_run_store.py"
_WORKER = "tests/test_worker.py tests/test_worker_end.py"

MUTANTS = (
    # the relay
    Mutant(
        "the scope of the former target is not cancelled",
        "relaytrio/_relay.py",
        "            if target is not None:\n                target.scope.cancel()\n            target = self._target",
        "            target = self._target",
        _RELAY,
    ),
    Mutant(
        "the same worker is dialed again at every notification",
        "relaytrio/_relay.py",
        "target is None or target.worker_id != worker_id or target.scope.cancel_called",
        "True",
        _RELAY,
    ),
    Mutant(
        "a chat that runs here is dialed",
        "relaytrio/_relay.py",
        "return None if notification.worker_id == self._params.replica_id else notification.worker_id",
        "return notification.worker_id",
        _RELAY,
    ),
    Mutant(
        "interrupting does not count as running",
        "relaytrio/_relay.py",
        'notification.status not in ("running", "interrupting")',
        'notification.status != "running"',
        _RELAY,
    ),
    Mutant(
        "a new episode is not selected on the open leg",
        "relaytrio/_relay.py",
        "if copy is not None and copy.episode != self._selected:",
        "if copy is not None and self._selected is None:",
        _RELAY,
    ),
    Mutant(
        "a new episode does not end the retry delay",
        "relaytrio/_relay.py",
        "        self.changes += 1\n        self._waiting.cancel()",
        "        self.changes += 1",
        _RELAY,
    ),
    Mutant(
        "a lost leg is not dialed again",
        "relaytrio/_relay.py",
        "            except DialError as error:\n                await self._after_failure(target, error)",
        "            except DialError:\n                return",
        _RELAY,
    ),
    Mutant(
        "the retry is not armed again after a store error at the re-check",
        "relaytrio/_subscription.py",
        "        with trio.move_on_after(self._replica.settings.look_again_seconds):",
        "        with trio.CancelScope():",
        _RELAY,
    ),
    Mutant(
        "a refused dial is repeated without a pause",
        "relaytrio/_relay.py",
        "await self._wait_to_retry(target, self._settings.dial_retry_max_seconds)",
        "pass",
        _RELAY,
    ),
    Mutant(
        "an idle leg is never closed",
        "relaytrio/_relay.py",
        "reading.deadline = trio.current_time() + self._settings.idle_leg_seconds",
        "pass",
        _RELAY,
    ),
    Mutant(
        "what was under way when the chat left gets no time",
        "relaytrio/_relay.py",
        "self.scope.deadline = trio.current_time() + grace_seconds",
        "self.scope.cancel()",
        _RELAY,
    ),
    Mutant(
        "a gap is filled in silently",
        "relaytrio/_relay.py",
        "        if self._asked_again or burst.episode != self._selected:",
        "        if True:",
        _RELAY,
    ),
    Mutant(
        "who waits is not told that the last leg has gone",
        "relaytrio/_parts.py",
        "            log.left_alone.set()",
        "            pass",
        _RELAY,
    ),
    # a viewer
    Mutant(
        "hints are listened to after the first read",
        "relaytrio/_subscription.py",
        "            resources.enter_context(self._replica.hints.watching(self.chat_id, self._watch))\n"
        "            first = await self._watch.read()",
        "            first = await self._watch.read()\n"
        "            resources.enter_context(self._replica.hints.watching(self.chat_id, self._watch))",
        _VIEWER,
    ),
    Mutant(
        "a message does not wait for the last parts",
        "relaytrio/_subscription.py",
        "        if live is None or not self._progress.ends_live_episode(view):",
        "        if True:",
        f"{_VIEWER} {_RELAY}",
    ),
    Mutant(
        "a message waits for parts without a bound",
        "relaytrio/_subscription.py",
        "        return trio.current_time() < self._hold_until",
        "        return True",
        _RELAY,
    ),
    Mutant(
        "a view of another base is taken",
        "relaytrio/_protocol/resume.py",
        "        return view.base == self.base",
        "        return True",
        f"{_RESUME} {_VIEWER}",
    ),
    Mutant(
        "rows of a newer episode do not make watch look",
        "relaytrio/_subscription.py",
        "        if episode != self._episode and (self._episode is None or not episode < self._episode):",
        "        if False:",
        _VIEWER,
    ),
    Mutant(
        "a page's rest is not read",
        "relaytrio/_subscription.py",
        "        if view.more:\n            self._watch.look()",
        "        if False:\n            self._watch.look()",
        _VIEWER,
    ),
    Mutant(
        "a hint of the version that was read is a reason to read again, for ever",
        "relaytrio/_subscription.py",
        "        self._forced, self._hinted = False, 0",
        "        self._forced = False",
        f"{_VIEWER} {_HINTS}",
    ),
    Mutant(
        "a failed read ends the watch",
        "relaytrio/_subscription.py",
        '                    self.tell("store", False, str(error))\n                    self._forced = True',
        '                    self.tell("store", False, str(error))\n                    return',
        f"{_VIEWER} {_RELAY}",
    ),
    Mutant(
        "what was lost of a log is not told",
        "relaytrio/_subscription.py",
        "        if burst.truncated:",
        "        if False:",
        f"{_VIEWER} {_RELAY}",
    ),
    Mutant(
        "the body's exception leaves in a group",
        "relaytrio/_nursery.py",
        "            return False\n",
        "            raise\n",
        "tests/test_nursery.py",
    ),
    # resume
    Mutant(
        "the cursor does not advance with the rows",
        "relaytrio/_protocol/resume.py",
        "        self.seq = burst.last_seq",
        "        pass",
        _RESUME,
    ),
    Mutant(
        "a failed attempt's end is not told",
        "relaytrio/_protocol/resume.py",
        "        if reason is not None:",
        "        if False:",
        _RESUME,
    ),
    Mutant(
        "a message leaves its preview standing",
        "relaytrio/_protocol/resume.py",
        "        if self.episode is not None and message.version > self.episode.history_version:",
        "        if False:",
        _RESUME,
    ),
    # part logs
    Mutant(
        "known rows are not trimmed",
        "relaytrio/_protocol/burst.py",
        "    return burst.split()[known:] if known > 0 else burst.split()",
        "    return burst.split()",
        f"tests/protocol/test_burst.py {_PARTS}",
    ),
    Mutant(
        "an unattended copy is waited for",
        "relaytrio/_parts.py",
        "        return self.sealed or (not self.made_here and not self._fillers)",
        "        return self.sealed",
        f"{_PARTS} {_RELAY}",
    ),
    Mutant(
        "ended logs are kept for ever",
        "relaytrio/_parts.py",
        "            self._forgetting.set()",
        "            pass",
        "tests/test_parts.py tests/test_parts_waiting.py",
    ),
    Mutant(
        "a log grows without a bound",
        "relaytrio/_parts.py",
        "        if self.size_bytes > self._logs.settings.part_log_bytes:",
        "        if False:",
        f"{_PARTS} {_VIEWER}",
    ),
    # hints
    Mutant(
        "the poll trusts a greater version only",
        "relaytrio/_hints.py",
        "                    if watcher.fingerprint != stored.get(chat_id):",
        "                    if watcher.fingerprint and stored[chat_id].snapshot_version"
        " > watcher.fingerprint.snapshot_version:",
        _HINTS,
    ),
    Mutant(
        "after a lost notifier nobody looks",
        "relaytrio/_hints.py",
        '            watcher.tell("pubsub", True, "hints arrive again")\n            watcher.look()',
        '            watcher.tell("pubsub", True, "hints arrive again")',
        _HINTS,
    ),
    # durable state
    Mutant(
        "the fence is not checked",
        "relaytrio/_protocol/chat.py",
        "        if state.chat.run_id != command.run_id:",
        "        if False:",
        _CHAT,
    ),
    Mutant(
        "a repeated token is carried out again",
        "relaytrio/_protocol/chat.py",
        "        if repeated is not None:",
        "        if False:",
        _CHAT,
    ),
    Mutant(
        "a Stop of an earlier turn stops the present one",
        "relaytrio/_protocol/chat.py",
        "    return command.of is not None and command.of.history_version < draft.chat.turn_version",
        "    return False",
        _CHAT,
    ),
    Mutant(
        "an owner is replaced whoever it is",
        "relaytrio/_protocol/chat.py",
        "    if owner is not None and owner != command.dead_worker_id:",
        "    if False:",
        _CHAT,
    ),
    # the worker
    Mutant(
        "the hint goes out before the log is there",
        "relaytrio/_ownership.py",
        "        self.chat = chat\n        if not answer.run_goes_on:",
        "        self.chat = chat\n        self._place.announce(chat)\n        if not answer.run_goes_on:",
        _RUN,
    ),
    Mutant(
        "the log is sealed after the finish",
        "relaytrio/_run.py",
        "        responding.record.close()\n\n    async def _woken",
        "        pass\n\n    async def _woken",
        _RUN,
    ),
    Mutant(
        "a lost run's responder goes on",
        "relaytrio/_run.py",
        '            self._responding.record.close()\n            self._responding.cancel(self._unwound_at(), "lost")',
        "            pass",
        _RUN,
    ),
    Mutant(
        "a hint interrupts by itself",
        "relaytrio/_worker.py",
        "            run.look()\n\n    def found_dead",
        "            run.stop()\n\n    def found_dead",
        f"{_WORKER} {_RUN}",
    ),
    Mutant(
        "a retryable error is retried for ever",
        "relaytrio/_run.py",
        "            if retryable is None or self._attempt >= self._settings.attempts:",
        "            if retryable is None:",
        _RUN,
    ),
    # between replicas
    Mutant(
        "copies are served to other replicas",
        "relaytrio/transport/_selections.py",
        "        if log is None or not log.made_here:",
        "        if log is None:",
        _ENDPOINT,
    ),
    Mutant(
        "all of the viewer's headers are forwarded",
        "relaytrio/transport/dialer.py",
        " if name.lower() in self._forwarded}",
        "}",
        _DIALER,
    ),
)


@contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="relaytrio-mutants-") as folder:
        for name in ("relaytrio", "tests"):
            ignored = shutil.ignore_patterns("__pycache__", "realworld")
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        yield Path(folder)


def _try(mutant: Mutant, folder: Path) -> tuple[bool, str]:
    """Whether it was caught, and by what."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return False, f"does not apply: its text stands {text.count(mutant.old)} times in {mutant.file}"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "15",
        *mutant.tests.split(),
    ]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return True, "its tests do not end"
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        return False, f"NOT CAUGHT by {mutant.tests}"
    named = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return True, named[0] if named else "the tests did not come to their end"


def main(wanted: str = "") -> int:
    """Try all, or those whose names hold the text; the exit status says whether each was caught."""
    began, caught = time.monotonic(), 0
    mutants = [mutant for mutant in MUTANTS if wanted in mutant.name]
    folders: SimpleQueue[Path] = SimpleQueue()

    def attempt(mutant: Mutant) -> tuple[Mutant, bool, str]:
        folder = folders.get()
        try:
            return (mutant, *_try(mutant, folder))
        finally:
            folders.put(folder)

    with _copy() as one, _copy() as other, ThreadPoolExecutor(PROCESSES) as pool:
        for folder in (one, other):
            folders.put(folder)
        for mutant, held, how in pool.map(attempt, mutants):
            caught += held
            print(f"{'caught' if held else 'FAILED'}  {mutant.name}: {how}", flush=True)
    print(f"{caught} of {len(mutants)} breakages were caught, in {time.monotonic() - began:.0f} s")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
