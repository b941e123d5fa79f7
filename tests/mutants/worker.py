"""Breakages of what a chat goes through: its transitions, and the worker that asks for them."""

from __future__ import annotations

from ._mutant import Mutant

_CHAT = "tests/protocol/test_chat.py"
_RUN = "tests/test_run.py tests/test_run_stops.py tests/test_run_loss.py tests/test_run_store.py"
_WORKER = "tests/test_worker.py tests/test_worker_end.py"

MUTANTS = (
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
)
