"""Which modules a reader's words may cause to be imported, and the only place of this room that imports by name.

A name is refused unless it passes all of it: a root that is listed, no part that is private or a test suite, no entry
in `DENIED`, and a file that really lies in the standard library (a stray `winreg.py` beside the program is not it).
Importing is all that ever runs: what is looked up in a module afterwards is read statically (_lookup.py).
Must not know: what is asked (pydoc.py), what is shown (_render.py). Called by _lookup.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import sysconfig
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

LIBRARIES = ("attr", "attrs", "httpx", "trio")
"""What may be read besides the standard library. The package depends on these: they run in the process anyway."""

_ACTS = {
    "antigravity": "importing it opens a web browser",
    "this": "importing it prints a poem",
    "site": "importing it changes where modules are found",
    "readline": "importing it takes hold of the terminal",
    "rlcompleter": "importing it takes hold of the terminal",
    "pdb": "in some versions it brings in readline, which takes hold of the terminal",
    "doctest": "it brings in pdb, and with it readline",
    "idlelib": "it is a desktop program",
    "tkinter": "it loads a desktop toolkit",
    "turtle": "it loads a desktop toolkit",
    "turtledemo": "it loads a desktop toolkit",
    "test": "it is the test suite of Python",
    "lib2to3": "importing it may write cached grammars",
    "distutils": "other packages replace it while it is imported",
    "trio.testing": "it brings in pytest where that is installed",
}
_RETIRED = (
    "aifc asynchat asyncore audioop cgi cgitb chunk crypt imghdr imp mailcap msilib nis nntplib nturl2path ossaudiodev "
    "pipes smtpd sndhdr spwd sre_compile sre_constants sre_parse sunau telnetlib uu xdrlib"
)
DENIED = _ACTS | dict.fromkeys(_RETIRED.split(), "it is on its way out of Python, and importing it warns")
"""Module -> why neither it nor what lies in it is offered."""

_TEST_SUITES = frozenset({"test", "tests", "idle_test"})

ROOTS = frozenset(
    name for name in (*sys.stdlib_module_names, *LIBRARIES) if not name.startswith("_") and name not in DENIED
)
"""Every top-level module that may be asked for, installed on this platform or not."""

HOMES = sys.stdlib_module_names | frozenset(LIBRARIES)
"""Where a function or class may have been defined to be shown; private modules too, nothing of them is imported."""


def refusal(dotted: str) -> str | None:
    """Why the module, or one that it lies in, is denied; None where it is not on the list."""
    parts = dotted.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next((DENIED[prefix] for prefix in prefixes if prefix in DENIED), None)


def is_allowed(dotted: str) -> bool:
    """Whether a module of this name may be imported, should it exist."""
    parts = dotted.split(".")
    acceptable = all(part.isidentifier() and not part.startswith("_") and part not in _TEST_SUITES for part in parts)
    return acceptable and parts[0] in ROOTS and refusal(dotted) is None


def load(dotted: str) -> ModuleType | None:
    """The module, imported together with the packages that it lies in; None where that is not allowed or not possible.

    A warning that is an error in this process makes a module as absent as a missing C library does.
    """
    if not is_allowed(dotted):
        return None
    package, _, name = dotted.rpartition(".")
    if package and name not in submodules(load(package)):
        return None
    try:
        return importlib.import_module(dotted) if _is_genuine(dotted) else None
    except (ImportError, Warning):
        return None


def submodules(package: ModuleType | None) -> list[str]:
    """The last names of what may be imported from a package, sorted; nothing for a plain module."""
    if package is None or not hasattr(package, "__path__"):
        return []
    return _listed(package.__name__, tuple(package.__path__))


@cache
def _listed(package: str, path: tuple[str, ...]) -> list[str]:
    found = {module.name for module in pkgutil.iter_modules(path)}
    return sorted(name for name in found if is_allowed(f"{package}.{name}"))


def _is_genuine(dotted: str) -> bool:
    if dotted.partition(".")[0] in LIBRARIES:
        return True
    try:
        spec = importlib.util.find_spec(dotted)
    except ValueError:  # a loaded module without a spec: somebody put it there
        return False
    return spec is not None and _is_of_the_standard_library(spec)


def _is_of_the_standard_library(spec: ModuleSpec) -> bool:
    if spec.origin in ("built-in", "frozen"):
        return True
    if spec.origin is None or {"site-packages", "dist-packages"} & set(Path(spec.origin).parts):
        return False
    return any(Path(spec.origin).resolve().is_relative_to(home) for home in _homes())


@cache
def _homes() -> list[Path]:
    return [Path(sysconfig.get_path(which)).resolve() for which in ("stdlib", "platstdlib")]
