"""Documentation as text, in the layout of `pydoc`: the same text in every process with the same versions installed.

`pydoc` itself shows what belongs to the process: memory addresses, file paths, the values of data (`os.environ`), sets
in the order of their hashes, the subclasses that happen to be loaded; and it reads attributes through `getattr`. Here
values are shown only where they are constants, everything is read from `__dict__`s, and no source file is opened.
Must not know: what was asked. Called by pydoc.py with what _lookup.py found.
"""

from __future__ import annotations

import enum
import inspect
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import _gate
from ._lookup import ROUTINES, Found, Kind, is_at_home, kind_of, members, unwrapped

_LONGEST_DEFAULT = 60
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
_UNPRINTABLE = re.compile(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")
_CALLS: Mapping[type, str] = {
    classmethod: "class method ",
    types.ClassMethodDescriptorType: "class method ",
    staticmethod: "static method ",
}
_PROCESS_DATA = frozenset({"sys"})
"""Modules whose data, the names too, tell how the process was started and what it did since."""

_DOCUMENTED = (
    *ROUTINES,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ModuleType,
    property,
)
"""Types whose `__doc__` is kept by the interpreter: asking for it runs nothing."""


def render(found: Found) -> str:
    """The documentation of what was found, ending in a newline."""
    last_name = found.name.rpartition(".")[2]
    kind = _KINDS[found.kind] if found.owner is None or found.kind != "routine" else "method"
    text = f"Help on {kind} {found.name}:\n\n{_BODIES[found.kind](found, last_name)}".rstrip() + "\n"
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", _ADDRESS.sub("", text))


def doc_of(value: Any) -> str:
    """The docstring that a value carries itself, cleaned; empty if it has none."""
    if inspect.isclass(value):
        doc = vars(value).get("__doc__")
    elif type(value) in _DOCUMENTED:
        doc = value.__doc__
    else:
        doc = inspect.getattr_static(value, "__doc__", None)
        if type(doc) is types.MemberDescriptorType:  # a slot
            doc = doc.__get__(value)
        if doc is inspect.getattr_static(type(value), "__doc__", None):
            doc = None
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def _module(found: Found, name: str) -> str:
    summary, _, description = doc_of(found.value).partition("\n")
    shown = _shown_members(found.value)
    sections = {
        "NAME": f"{found.name} - {summary}" if summary else found.name,
        "DESCRIPTION": description.strip("\n"),
        "PACKAGE CONTENTS": "\n".join(_gate.submodules(found.value)),
        "CLASSES": "\n".join(_class_text(key, value, inherited=False) for key, value in shown["class"]),
        "FUNCTIONS": "\n".join(_routine_text(key, value) for key, value in shown["routine"]),
        "DATA": "\n".join(_data_line(key, value) for key, value in shown["data"]),
    }
    if found.name in _PROCESS_DATA:
        del sections["DATA"]
    return "\n\n".join(f"{title}\n{_indent(text)}" for title, text in sections.items() if text)


def _shown_members(module: types.ModuleType) -> dict[Kind, list[tuple[str, Any]]]:
    """What a module calls its own: what `__all__` lists, else what was defined in it, by kind and sorted."""
    exported = vars(module).get("__all__")
    shown: dict[Kind, list[tuple[str, Any]]] = {"class": [], "routine": [], "data": []}
    for name, value in sorted(members(module).items()):
        kind = kind_of(value)
        own = name in exported if isinstance(exported, (list, tuple)) else _is_own(value, kind, module)
        if own and kind in shown:
            shown[kind].append((name, value))
    return shown


def _is_own(value: Any, kind: Kind, module: types.ModuleType) -> bool:
    return kind == "data" or getattr(value, "__module__", None) == module.__name__


def _class(found: Found, name: str) -> str:
    return _class_text(name, found.value, inherited=True)


def _class_text(name: str, cls: type, *, inherited: bool) -> str:
    bases = ", ".join(_class_name(base, cls.__module__) for base in cls.__bases__)
    alias = f"{name} = " if name != cls.__name__ else ""
    signature = _signature(cls)
    parts = [f"{name}{signature}\n" if signature not in ("", "()") else "", f"{doc_of(cls)}\n"]
    if len(cls.__mro__) > 2:
        order = "\n".join(f"    {_class_name(base, cls.__module__)}" for base in cls.__mro__)
        parts.append(f"Method resolution order:\n{order}\n")
    taken: set[str] = set()
    for base in cls.__mro__ if inherited else (cls,):
        if base is not object or cls is object:
            parts += _attribute_sections(base, cls, taken)
    body = "\n".join(part for part in parts if part.strip()).rstrip("\n")
    return f"{alias}class {cls.__name__}({bases})\n{_indent(body, ' |  ')}\n"


def _attribute_sections(base: type, cls: type, taken: set[str]) -> Iterable[str]:
    """The sections of what a class has from one of its bases (or itself), but for names that came before."""
    names = sorted(name for name in vars(base) if isinstance(name, str) and name not in taken)
    taken.update(names)
    origin = "defined here" if base is cls else f"inherited from {_class_name(base, cls.__module__)}"
    texts: dict[Kind, list[str]] = {"routine": [], "property": [], "data": []}
    for name in names:
        value = vars(base)[name]
        kind = kind_of(value, in_class=True)
        if kind in texts and _is_shown(name, kind) and is_at_home(unwrapped(value)):
            texts[kind].append(_attribute_text(name, value, kind, cls))
    titles = {"routine": "Methods", "property": "Data descriptors", "data": "Data and other attributes"}
    return [f"{titles[kind]} {origin}:\n\n" + "\n".join(text) for kind, text in texts.items() if text]


def _is_shown(name: str, kind: Kind) -> bool:
    """Special methods are shown, special data (caches, registries) are not, and nothing private is."""
    return not name.startswith("_") or (kind == "routine" and name.startswith("__") and name.endswith("__"))


def _attribute_text(name: str, value: Any, kind: Kind, cls: type) -> str:
    if kind == "data":
        return f"{_data_line(name, value)}\n"
    doc = _inherited_doc(name, cls)
    return _routine_text(name, value, doc) if kind == "routine" else f"{name}\n{_indent(doc)}".rstrip() + "\n"


def _inherited_doc(name: str, cls: type) -> str:
    """The docstring of an attribute, or of what it overrides."""
    docs = (doc_of(unwrapped(vars(base)[name])) for base in cls.__mro__ if name in vars(base))
    return next((doc for doc in docs if doc), "")


def _routine(found: Found, name: str) -> str:
    doc = doc_of(unwrapped(found.value)) if found.owner is None else _inherited_doc(name, found.owner)
    return _routine_text(name, found.value, doc)


def _routine_text(name: str, value: Any, doc: str | None = None) -> str:
    routine = unwrapped(value)
    wait = "async " if inspect.iscoroutinefunction(routine) or inspect.isasyncgenfunction(routine) else ""
    head = f"{wait}{_CALLS.get(type(value), '')}{name}{_signature(routine) or '(...)'}"
    return f"{head}\n{_indent(doc_of(routine) if doc is None else doc)}".rstrip() + "\n"


def _property(found: Found, name: str) -> str:
    assert found.owner is not None
    return f"{name}\n{_indent(_inherited_doc(name, found.owner))}"


def _data(found: Found, name: str) -> str:
    text = doc_of(found.value)
    if _is_constant(name, found.value):
        return f"{_data_line(name, found.value)}\n{_indent(text)}"
    return f"{name}\n{_indent(text or 'Data. Its value belongs to the running program and is not shown.')}"


def _data_line(name: str, value: Any) -> str:
    return f"{name} = {_constant(value)}" if _is_constant(name, value) else name


def _is_constant(name: str, value: Any) -> bool:
    """Numbers by the convention for constants (lower-case ones are settings), and members of enumerations."""
    return isinstance(value, enum.Enum) or type(value) is float or (type(value) in (int, bool) and name.isupper())


def _signature(value: Any) -> str:
    """The signature with its defaults made the same in every process; empty where there is none to be had."""
    try:
        signature = inspect.signature(value)
        parameters = [_with_steady_default(parameter) for parameter in signature.parameters.values()]
        return str(signature.replace(parameters=parameters))
    except Exception:  # whatever a signature made by hand may raise: it is not worth the whole answer
        return ""


class _Shown:
    """A default value that is shown as a given text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _with_steady_default(parameter: inspect.Parameter) -> inspect.Parameter:
    if parameter.default is inspect.Parameter.empty:
        return parameter
    return parameter.replace(default=_Shown(_constant(parameter.default)))


def _constant(value: Any) -> str:
    """A value as text if it is a plain constant; else its type, for its own `repr` may tell anything."""
    if value is None or value is ... or type(value) in (bool, int, float, complex, str, bytes):
        text = repr(value)
        is_path = isinstance(value, str) and len(value) > 1 and os.path.isabs(value)
        return f"<{type(value).__name__}>" if is_path or len(text) > _LONGEST_DEFAULT else text
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if type(value) is tuple and len(value) <= 8:
        return "(" + ", ".join(map(_constant, value)) + (",)" if len(value) == 1 else ")")
    if inspect.isclass(value) or type(value) in (types.FunctionType, types.BuiltinFunctionType):
        return f"<{value.__qualname__}>"
    return f"<{type(value).__name__} object>"


def _class_name(cls: type, module: str) -> str:
    return cls.__name__ if cls.__module__ in (module, "builtins") else f"{cls.__module__}.{cls.__name__}"


def _indent(text: str, prefix: str = "    ") -> str:
    return "\n".join((prefix + line).rstrip() for line in text.split("\n"))


_KINDS: Mapping[Kind, str] = {
    "module": "module",
    "class": "class",
    "routine": "function",
    "property": "property",
    "data": "data",
}
_BODIES: Mapping[Kind, Callable[[Found, str], str]] = {
    "module": _module,
    "class": _class,
    "routine": _routine,
    "property": _property,
    "data": _data,
}
