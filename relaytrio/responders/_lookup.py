"""From a dotted name to the thing it names, without running anything that belongs to the thing.

Attributes are read out of `__dict__`s: no property, no `__getattr__`, no descriptor runs because of what was asked.
An attribute goes before a submodule of the same name, since importing that submodule would replace the attribute in
the running program (`curses.has_key`).
Must not know: how it is shown (_render.py). Called by pydoc.py and _render.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Literal, TypeAlias

import attrs

from . import _gate

Kind: TypeAlias = Literal["module", "class", "routine", "property", "data"]

ROUTINES = (
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    MethodDescriptorType,
    WrapperDescriptorType,
    ClassMethodDescriptorType,
)
"""The interpreter's own types of what can be called by name: asking one for its name or docstring runs nothing."""

_ALIASES = {"os.path"}
"""Submodules that are known under another name than their own."""

_LAZY = {
    "concurrent.futures": {
        "ProcessPoolExecutor": "concurrent.futures.process",
        "ThreadPoolExecutor": "concurrent.futures.thread",
        "InterpreterPoolExecutor": "concurrent.futures.interpreter",
    }
}
"""Public names that a module makes only when first used: there or not depending on what the program did before."""

_CHANGING: Mapping[str, set[str]] = {
    "builtins": {"copyright", "credits", "exit", "help", "license", "quit"},
    "sys": {
        *("breakpointhook", "displayhook", "excepthook", "unraisablehook"),
        *("last_exc", "last_traceback", "last_type", "last_value", "ps1", "ps2", "tracebacklimit"),
    },
    "threading": {"excepthook"},
    "warnings": {"showwarning"},
}
"""Names that are there, or mean something, depending on what the program did before."""


@attrs.frozen(eq=False)
class Found:
    """What a name stands for: `name` as it is really written, and the value as it lies in its `__dict__`."""

    name: str
    value: Any
    owner: type | None = None
    """The class that it was looked up in, if it was."""

    @property
    def kind(self) -> Kind:
        """What it is, for a reader."""
        return kind_of(self.value, in_class=self.owner is not None)


def find(dotted: str) -> Found | None:
    """What a dotted name stands for, or None. Letter case counts only where two names differ in nothing else."""
    root, *rest = dotted.split(".")
    name = _spelled(root, _gate.ROOTS) or ""
    module = _gate.load(name)
    found = None if module is None else Found(name, module)
    for part in rest:
        found = None if found is None or part.startswith("_") else _step(found, part)
    return found


def names_in(found: Found) -> list[str]:
    """The public names below a module or a class, sorted; nothing below anything else."""
    if found.kind == "module":
        return sorted({*members(found.value), *_gate.submodules(found.value)})
    if found.kind == "class":
        attributes = class_attributes(found.value).items()
        return sorted(name for name, value in attributes if not name.startswith("_") and is_at_home(unwrapped(value)))
    return []


def members(module: ModuleType) -> dict[str, Any]:
    """The public attributes of a module but modules, as they lie there; foreign and changing ones are left out."""
    values = vars(module) | _lazy_members(module)
    changing = _CHANGING.get(module.__name__, set())
    names = (name for name in values if isinstance(name, str) and name.isidentifier() and not name.startswith("_"))
    return {name: values[name] for name in names if name not in changing and is_at_home(values[name])}


def class_attributes(cls: type) -> dict[str, Any]:
    """The attributes of a class and its bases, as they lie in the first `__dict__` that has them."""
    attributes: dict[str, Any] = {}
    for base in cls.__mro__:
        attributes = dict(vars(base)) | attributes
    return attributes


def kind_of(value: Any, *, in_class: bool = False) -> Kind:
    """What a value is for a reader; only `in_class` can it be a property."""
    value = unwrapped(value)
    if inspect.ismodule(value):
        return "module"
    if inspect.isclass(value):
        return "class"
    if type(value) in ROUTINES or _is_wrapped_routine(value):
        return "routine"
    return "property" if in_class and hasattr(type(value), "__get__") else "data"


def _is_wrapped_routine(value: Any) -> bool:
    """True for what stands in for a function under its name, such as a cached one."""
    return inspect.isroutine(value) and isinstance(inspect.getattr_static(value, "__name__", None), str)


def unwrapped(value: Any) -> Any:
    """The function inside a `classmethod` or `staticmethod`; else the value."""
    return value.__func__ if type(value) in (classmethod, staticmethod) else value


def is_at_home(value: Any) -> bool:
    """False for a module, and for code that was defined outside the standard library and the libraries offered."""
    if inspect.ismodule(value):
        return False
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return True
    home = getattr(value, "__module__", None)
    return home is None or (isinstance(home, str) and home.partition(".")[0] in _gate.HOMES)


def _lazy_members(module: ModuleType) -> dict[str, Any]:
    sources = {name: _gate.load(source) for name, source in _LAZY.get(module.__name__, {}).items()}
    return {name: vars(source)[name] for name, source in sources.items() if source is not None}


def _step(found: Found, part: str) -> Found | None:
    if found.kind == "module":
        return _step_into_module(found, part)
    return _step_into_class(found, part) if found.kind == "class" else None


def _step_into_module(found: Found, part: str) -> Found | None:
    name = _spelled(part, names_in(found)) or part
    dotted = f"{found.name}.{name}"
    here = members(found.value)
    if name in here:
        return Found(dotted, here[name])
    module = vars(found.value).get(name) if dotted in _ALIASES else _gate.load(dotted)
    return None if module is None else Found(dotted, module)


def _step_into_class(found: Found, part: str) -> Found | None:
    attributes: Mapping[str, Any] = class_attributes(found.value)
    name = _spelled(part, names_in(found))
    return None if name is None else Found(f"{found.name}.{name}", attributes[name], owner=found.value)


def _spelled(word: str, names: Iterable[str]) -> str | None:
    """The one of the names that is meant by the word."""
    names = frozenset(names)
    if word in names:
        return word
    alike = [name for name in names if name.lower() == word.lower()]
    return alike[0] if len(alike) == 1 else None
