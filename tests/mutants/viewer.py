"""Breakages of what a viewer gets: watch and merge, resuming, hints."""

from __future__ import annotations

from ._mutant import Mutant

_RELAY, _VIEWER = "tests/test_relay.py", "tests/test_subscription.py"
_DIALS, _LEGS, _LEAVING = (f"tests/races/test_{topic}_races.py" for topic in ("dial", "leg", "leaving"))
_CHANNELS = "tests/races/test_channel_races.py"
_RESUME, _HINTS = "tests/protocol/test_resume.py", "tests/test_hints.py"
_VIEWER_RACES, _NOTIFIER_RACES = "tests/races/test_viewer_races.py", "tests/races/test_notifier_races.py"
_BOUNDARY_RACES = "tests/races/test_boundary_races.py"

MUTANTS = (
    # a viewer
    Mutant(
        "hints are listened to after the first read",
        "relaytrio/_subscription.py",
        "            resources.enter_context(self._replica.hints.watching(self.chat_id, self._watch))\n"
        "            resources.enter_context(self._merge)\n"
        '            await seam("watching, not read", chat_id=self.chat_id, replica_id=self._replica.replica_id)\n'
        "            self._watch.begin()\n"
        "            first = await self._watch.read()",
        "            resources.enter_context(self._merge)\n"
        '            await seam("watching, not read", chat_id=self.chat_id, replica_id=self._replica.replica_id)\n'
        "            self._watch.begin()\n"
        "            first = await self._watch.read()\n"
        "            resources.enter_context(self._replica.hints.watching(self.chat_id, self._watch))",
        _VIEWER_RACES,
        races=(14,),
    ),
    Mutant(
        "a read that began before the reason to look is shared",
        "relaytrio/_shared_reads.py",
        "            if read is None or read.number <= since:",
        "            if read is None:",
        "tests/test_shared_reads.py",
        races=(14,),
    ),
    Mutant(
        "the last parts are waited for anew with every view",
        "relaytrio/_watch.py",
        "        elif self.over_since is None:\n",
        "        else:\n",
        _RELAY,
        races=(11,),
    ),
    Mutant(
        "a message does not wait for the last parts",
        "relaytrio/_merge.py",
        "        if live is None or not self._progress.ends_live_episode(view):",
        "        if True:",
        f"{_VIEWER} {_RELAY}",
        races=(11,),
    ),
    Mutant(
        "a message waits for parts without a bound",
        "relaytrio/_merge.py",
        "        return trio.current_time() < self.hold_until",
        "        return True",
        _RELAY,
        races=(11,),
    ),
    Mutant(
        "a view of another base is taken",
        "relaytrio/_protocol/resume.py",
        "        return view.base == self.base",
        "        return True",
        f"{_RESUME} {_VIEWER}",
        races=(14,),
    ),
    Mutant(
        "rows of a newer episode do not make watch look",
        "relaytrio/_watch.py",
        "        if episode != self._episode and (self._episode is None or not episode < self._episode):",
        "        if False:",
        _VIEWER,
        races=(17,),
    ),
    Mutant(
        "a page's rest is not read",
        "relaytrio/_merge.py",
        "        if view.more:\n            self._watch.look()",
        "        if False:\n            self._watch.look()",
        _VIEWER,
        races=(14,),
    ),
    Mutant(
        "a hint of the version that was read is a reason to read again, for ever",
        "relaytrio/_watch.py",
        "        self._forced, self._hinted = False, 0",
        "        self._forced = False",
        f"{_VIEWER} {_HINTS}",
        races=(15,),
    ),
    Mutant(
        "a failed read ends the watch",
        "relaytrio/_watch.py",
        '                    self.tell("store", False, str(error))\n                    self._forced = True',
        '                    self.tell("store", False, str(error))\n                    return',
        f"{_VIEWER} {_RELAY}",
    ),
    Mutant(
        "what was lost of a log is not told",
        "relaytrio/_merge.py",
        "        if burst.truncated:",
        "        if False:",
        f"{_VIEWER} {_RELAY}",
        races=(16,),
    ),
    Mutant(
        "the body's exception leaves in a group",
        "relaytrio/_nursery.py",
        "            return False\n",
        "            raise\n",
        "tests/test_nursery.py",
        races=(18,),
    ),
    Mutant(
        "the caller's cancellation is swallowed",
        "relaytrio/_nursery.py",
        "            return False\n",
        "            return True\n",
        _BOUNDARY_RACES,
        races=(18,),
    ),
    Mutant(
        "a failure of the engine's is told in a group",
        "relaytrio/_nursery.py",
        "self._failure or _unwrapped(failure)",
        "self._failure or failure",
        _BOUNDARY_RACES,
        races=(18,),
    ),
    Mutant(
        "who joins during the delay is not told of the retry",
        "relaytrio/_protocol/resume.py",
        "        if news and retry is not None:",
        "        if news and retry is not None and self.caught_up:",
        _VIEWER_RACES,
        races=(16,),
    ),
    Mutant(
        "a view that the viewer has not taken stops the news for the relay",
        "relaytrio/_watch.py",
        "        self.view = self.last_view = view\n",
        "        if self.view is not None:\n            return\n        self.view = self.last_view = view\n",
        _DIALS,
        races=(4,),
    ),
    Mutant(
        "a read of the store that hangs is waited for without a bound",
        "relaytrio/_bounded.py",
        "    with trio.move_on_after(seconds):",
        "    with trio.CancelScope():",
        _DIALS,
        races=(4,),
    ),
    Mutant(
        "a hint is trusted as truth: its version counts as read",
        "relaytrio/_watch.py",
        "            self._hinted = max(self._hinted, snapshot_version)",
        "            self._hinted = self._seen = snapshot_version",
        _DIALS,
        races=(4, 5, 6, 8),
    ),
    Mutant(
        "the log is not swapped: merge watches that of the first episode",
        "relaytrio/_merge.py",
        "        if episode == self._log_watched:",
        "        if self._log_watched is not None:",
        _VIEWER,
        races=(6, 7, 8),
    ),
    Mutant(
        "a viewer that has left still watches a log",
        "relaytrio/_merge.py",
        "        self._log_watch.close()\n\n    async def take",
        "        pass\n\n    async def take",
        _LEAVING,
        races=(9,),
    ),
    Mutant(
        "a notifier that ends is listened to again at once",
        "relaytrio/_hints.py",
        "            await trio.sleep(backoff.next_delay_seconds(self._random()))",
        "            await trio.sleep(1.0)",
        _CHANNELS,
        races=(12,),
    ),
    # resume
    Mutant(
        "rows of an episode that is over are taken",
        "relaytrio/_protocol/resume.py",
        "        self.live = live\n        if live is not None and live != self.episode:",
        "        self.live = live or self.live\n        if live is not None and live != self.episode:",
        _VIEWER_RACES,
        races=(17,),
    ),
    Mutant(
        "a take-over is told as another attempt",
        "relaytrio/_protocol/resume.py",
        '            return "worker_lost"\n        if live is None',
        '            return "new_attempt"\n        if live is None',
        f"{_RESUME} tests/races/test_death_races.py",
        races=(22,),
    ),
    Mutant(
        "the cursor does not advance with the rows",
        "relaytrio/_protocol/resume.py",
        "        self.seq = burst.last_seq",
        "        pass",
        _RESUME,
        races=(1, 14, 16),
    ),
    Mutant(
        "a failed attempt's end is not told",
        "relaytrio/_protocol/resume.py",
        "        if reason is not None:",
        "        if False:",
        _RESUME,
        races=(
            16,
            17,
        ),
    ),
    Mutant(
        "a message leaves its preview standing",
        "relaytrio/_protocol/resume.py",
        "        if self.episode is not None and message.version > self.episode.history_version:",
        "        if False:",
        _RESUME,
        races=(17,),
    ),
    # hints
    Mutant(
        "the poll trusts a greater version only",
        "relaytrio/_hints.py",
        "                    if watcher.fingerprint != stored.get(chat_id):",
        "                    if watcher.fingerprint and stored[chat_id].snapshot_version"
        " > watcher.fingerprint.snapshot_version:",
        _HINTS,
        races=(14,),
    ),
    Mutant(
        "after a lost notifier nobody looks",
        "relaytrio/_hints.py",
        '            watcher.tell("pubsub", True, "hints arrive again")\n            watcher.look()',
        '            watcher.tell("pubsub", True, "hints arrive again")',
        _HINTS,
        races=(15,),
    ),
    Mutant(
        "a hint is trusted as the truth",
        "relaytrio/_watch.py",
        "            self._hinted = max(self._hinted, snapshot_version)\n",
        "            self._seen = snapshot_version\n",
        _NOTIFIER_RACES,
        races=(15,),
    ),
    Mutant(
        "a stale hint is a reason to read",
        "relaytrio/_watch.py",
        "        if snapshot_version > self._seen:\n            self._hinted",
        "        self._forced = True\n        if True:\n            self._hinted",
        _NOTIFIER_RACES,
        races=(15,),
    ),
)
