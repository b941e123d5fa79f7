"""Breakages of what a viewer gets: watch and merge, resuming, hints."""

from __future__ import annotations

from ._mutant import Mutant

_RELAY, _VIEWER = "tests/test_relay.py", "tests/test_subscription.py"
_RESUME, _HINTS = "tests/protocol/test_resume.py", "tests/test_hints.py"

MUTANTS = (
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
)
