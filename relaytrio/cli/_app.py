"""The commands, by name, and how one of them is run: arguments in, exit status out.

It decides what a person's mistake looks like: one line on stderr and an exit status (`_status.py`), no traceback.
A command is loaded when it is named. Must not know: what any command does. Who calls: `relaytrio/__main__.py`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from .._engine import VERSION
from ._output import fault
from ._status import BROKEN, HELD, INTERRUPTED, USAGE, status_of

COMMANDS = {
    "demo": ("relaytrio.cli._demo:demo", "A cluster on this machine, with a page to chat on."),
    "check": (
        "relaytrio.cli._check:check",
        "Put a cluster to the test: cut viewers, kill replicas, compare every token.",
    ),
    "serve": ("relaytrio.cli._serve:serve", "Run one replica until SIGTERM or Ctrl-C, which let answers end first."),
    "send": ("relaytrio.cli._send:send", "Send a message to a chat, or begin one with it."),
    "tail": ("relaytrio.cli._tail:tail", "Print a chat as it goes on."),
}
"""Each is an async function that returns its exit status (None: 0), and what the list of commands says of it."""


def make_app() -> App:
    """The command line."""
    app = App(
        name="relaytrio",
        help="One stream per viewer for chat backends on several replicas.",
        version=VERSION,
        backend="trio",
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, (where, summary) in COMMANDS.items():
        app.command(where, name=name, help=summary)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit status; what a person did wrong is a line on stderr."""
    try:
        status = make_app()(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        fault(f"{' '.join(str(error).split())} See: relaytrio --help")
        return USAGE
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:
        told = status_of(error)
        if told is None:
            raise
        if told[0] == BROKEN:
            traceback.print_exception(error)  # nobody's mistake but ours: where it happened is what is to be known
        return _leave(*told)
    return HELD if status is None else int(status)


def _leave(status: int, lines: Sequence[str]) -> int:
    """Say what there is to say. Nothing may be left in stdout's buffer: nobody may be there to read it."""
    for line in lines:
        fault(line)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if status == INTERRUPTED:
        print(file=sys.stderr)
    return status
