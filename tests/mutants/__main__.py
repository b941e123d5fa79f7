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

from . import relay, viewer, worker
from ._mutant import Mutant

ROOT = Path(__file__).parents[2]
MUTANTS = (*relay.MUTANTS, *viewer.MUTANTS, *worker.MUTANTS)
PROCESSES = 2
SECONDS = 90
"""For the tests of one mutant; one that makes them hang is caught too."""
COULD_NOT_BE_RUN = (4, 5)
"""What pytest says of tests that are not there, or whose surroundings are broken."""


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
    if done.returncode in COULD_NOT_BE_RUN:
        return False, f"{mutant.tests} could not be run"
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
