"""Breakages of what brings parts from where they are made: the relay, part logs, the peers."""

from __future__ import annotations

from ._mutant import Mutant

_RELAY, _VIEWER, _PARTS = "tests/test_relay.py", "tests/test_subscription.py", "tests/test_parts.py"
_ENDPOINT, _DIALER = "tests/transport/test_parts_endpoint.py", "tests/transport/test_dialer.py"

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
        "self.scope.deadline = trio.current_time() + self._grace_seconds",
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
