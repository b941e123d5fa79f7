"""Breakages of what a chat goes through: its transitions, and the worker that asks for them."""

from __future__ import annotations

from ._mutant import Mutant

_CHAT = "tests/protocol/test_chat.py"
_RUN = "tests/test_run.py tests/test_run_stops.py tests/test_run_loss.py tests/test_run_store.py"
_WORKER = "tests/test_worker.py tests/test_worker_end.py"
_WORKER_RACES, _LOSS_RACES = "tests/races/test_worker_races.py", "tests/races/test_loss_races.py"
_SHUTDOWN_RACES, _DEATH_RACES = "tests/races/test_shutdown_races.py", "tests/races/test_death_races.py"

MUTANTS = (
    # durable state
    Mutant(
        "the fence is not checked",
        "relaytrio/_protocol/chat.py",
        "        if state.chat.run_id != command.run_id:",
        "        if False:",
        _CHAT,
        races=(20,),
    ),
    Mutant(
        "a repeated token is carried out again",
        "relaytrio/_protocol/chat.py",
        "        if repeated is not None:",
        "        if False:",
        _CHAT,
        races=(20,),
    ),
    Mutant(
        "a Stop of an earlier turn stops the present one",
        "relaytrio/_protocol/chat.py",
        "    return command.of is not None and command.of.history_version < draft.chat.turn_version",
        "    return False",
        _CHAT,
        races=(19,),
    ),
    Mutant(
        "an owner is replaced whoever it is",
        "relaytrio/_protocol/chat.py",
        "    if owner is not None and owner != command.dead_worker_id:",
        "    if False:",
        _CHAT,
        races=(22,),
    ),
    # the worker
    Mutant(
        "the hint goes out before the log is there",
        "relaytrio/_ownership.py",
        "        self.chat = chat\n        if not answer.run_goes_on:",
        "        self.chat = chat\n        self._place.announce(chat)\n        if not answer.run_goes_on:",
        _RUN,
        races=(20,),
    ),
    Mutant(
        "the log is sealed after the finish",
        "relaytrio/_run.py",
        "        responding.record.close()\n\n    async def _woken",
        "        pass\n\n    async def _woken",
        _RUN,
        races=(22,),
    ),
    Mutant(
        "a lost run's responder goes on",
        "relaytrio/_run.py",
        '            self._responding.record.close()\n            self._responding.cancel(self._unwound_at(), "lost")',
        "            pass",
        _RUN,
        races=(20,),
    ),
    Mutant(
        "a hint interrupts by itself",
        "relaytrio/_worker.py",
        "            run.look()\n\n    def found_dead",
        "            run.stop()\n\n    def found_dead",
        f"{_WORKER} {_RUN}",
        races=(21,),
    ),
    Mutant(
        "a retryable error is retried for ever",
        "relaytrio/_run.py",
        "            if retryable is None or self._attempt >= self._settings.attempts:",
        "            if retryable is None:",
        _RUN,
    ),
    # people
    Mutant(
        "a Stop that no hint told of is not found",
        "relaytrio/_worker.py",
        '            if row is None or row.status == "interrupting":',
        "            if row is None:",
        f"{_WORKER_RACES}::test_19_a_stop_whose_hint_is_lost",
        races=(19,),
    ),
    Mutant(
        "a Stop of an earlier step of the turn stops nothing",
        "relaytrio/_protocol/chat.py",
        "command.of.history_version < draft.chat.turn_version",
        "command.of.history_version < draft.chat.history_version",
        f"{_WORKER_RACES}::test_19_a_stop_of_an_earlier_step_of_this_turn",
        races=(19,),
    ),
    Mutant(
        "a Stop that refuses a transition ends nothing",
        "relaytrio/_run.py",
        "            return (await self._own.apply(FinishInterruption, messages=self._at_hand())).run_goes_on",
        "            return False",
        f"{_RUN} {_WORKER_RACES}",
        races=(19,),
    ),
    # loss
    Mutant(
        "the hint goes out before the commit",
        "relaytrio/_ownership.py",
        '            await self._pass("sealed, not committed", command)\n',
        '            self._place.announce(self.chat)\n            await self._pass("sealed, not committed", command)\n',
        _LOSS_RACES,
        races=(20,),
    ),
    Mutant(
        "a lost answer is taken for a loss",
        "relaytrio/_ownership.py",
        "                    if backoff.failures == 0:\n",
        "                    raise ChatTaken(str(error)) from error\n                    if backoff.failures == 0:\n",
        f"{_LOSS_RACES}::test_20_a_lost_answer_is_no_loss",
        races=(20,),
    ),
    Mutant(
        "another token for the same transition",
        "relaytrio/_ownership.py",
        "self._insist(lambda: self._place.store.apply(self.chat.id, command))",
        "self._insist(lambda: self._place.store.apply("
        "self.chat.id, kind(run_id=self.run_id, token=self._place.new_id(), **fields)))",
        f"{_LOSS_RACES}::test_20_a_lost_answer_is_no_loss",
        races=(20,),
    ),
    Mutant(
        "a history that is another's is answered",
        "relaytrio/_ownership.py",
        "        if version != self.log.episode.history_version:",
        "        if False:",
        _LOSS_RACES,
        races=(20,),
    ),
    Mutant(
        "an old look at the chat counts",
        "relaytrio/_ownership.py",
        "        if self._transitions != before:",
        "        if False:",
        f"{_SHUTDOWN_RACES}::test_21_a_stale_look_and_the_next_turn_of_the_same_run",
        races=(21,),
    ),
    # shutdown
    Mutant(
        "what is acquired while the replica stops gets a responder",
        "relaytrio/_worker.py",
        "leaving=self.draining)",
        "leaving=False)",
        _SHUTDOWN_RACES,
        races=(21,),
    ),
    Mutant(
        "a chat that is being acquired counts as one without a run",
        "relaytrio/_worker.py",
        " and row.chat_id not in self._busy and self._nursery",
        " and self._nursery",
        f"{_SHUTDOWN_RACES}::test_21_a_heartbeat_between_the_acquire_and_the_run",
        races=(21,),
    ),
    Mutant(
        "a stale look interrupts a fresh run",
        "relaytrio/_worker.py",
        '            if row is None or row.status == "interrupting":\n                run.look()',
        '            if row is None or row.status == "interrupting":\n                run.stop()\n'
        '        for run in self._runs.values():\n            if any(row.status == "interrupting" for row in owned):\n'
        "                run.stop()",
        f"{_SHUTDOWN_RACES}::test_21_a_stale_list_of_owned_chats_and_a_fresh_run",
        races=(21,),
    ),
    # deaths
    Mutant(
        "an interruption is never ended after a take-over",
        "relaytrio/_protocol/chat.py",
        '        "running, owned": _acquire,\n        "interrupting": _acquire,',
        '        "running, owned": _acquire,',
        f"tests/test_run_loss.py {_DEATH_RACES}",
        races=(22,),
    ),
    Mutant(
        "take-overs are not counted",
        "relaytrio/_protocol/chat.py",
        "        takeovers=draft.chat.takeovers + (owner is not None),",
        "        takeovers=draft.chat.takeovers,",
        f"{_DEATH_RACES}::test_22_a_chat_that_kills_its_worker_three_times",
        races=(22,),
    ),
    Mutant(
        "hand-overs are counted as deaths",
        "relaytrio/_protocol/chat.py",
        "        takeovers=draft.chat.takeovers + (owner is not None),",
        "        takeovers=draft.chat.takeovers + 1,",
        f"{_CHAT} {_DEATH_RACES}",
        races=(22,),
    ),
    Mutant(
        "deaths are counted over the whole life of a chat",
        "relaytrio/_protocol/chat.py",
        "            generation_attempt=0,\n            takeovers=0,",
        "            generation_attempt=0,",
        f"{_DEATH_RACES}::test_22_deaths_count_from_the_last_change_of_the_history",
        races=(22,),
    ),
)
