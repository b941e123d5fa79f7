"""What a user's text asks for: the dotted names in it, the likeliest first. Pure; called by pydoc.py.

Must not know: which names exist.
"""

from __future__ import annotations

import re

LONGEST_TEXT = 2_000
"""Characters of a message that are read: a question about one name is shorter."""
LONGEST_NAME = 100
"""Characters of a name; no public name comes near."""
DEEPEST_NAME = 8
"""Parts of a name."""
MOST_NAMES = 12
"""Names of a text that are looked at: each may cost an import."""

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]{0,99}"
_NAME = re.compile(rf"(?<![\w.]){_IDENTIFIER}(?:\.{_IDENTIFIER})*(?!\w)", re.ASCII)
_MARKED = re.compile(rf"[`'\"]{{1,3}}({_NAME.pattern})(?:\([^()`]{{0,80}}\))?[`'\"]{{1,3}}", re.ASCII)
_ARGUMENT = re.compile(rf"(?<!\w)help\(\s*['\"]?({_NAME.pattern})", re.ASCII)
_IMPORTED = re.compile(rf"(?<!\w)from\s{{1,9}}({_NAME.pattern})\s{{1,9}}import\s{{1,9}}({_IDENTIFIER})", re.ASCII)
_CALLED = re.compile(rf"({_NAME.pattern})\(", re.ASCII)
_DECORATION = " \t\r\n`'\"?!.,;:()@>*"


def pointed_names(text: str) -> list[str]:
    """The names that the text points at: alone in it, quoted, called, imported, or dotted."""
    text = text[:LONGEST_TEXT]
    alone = text.strip(_DECORATION)
    names = [alone] if _NAME.fullmatch(alone) else []
    names += [".".join(found.groups()) for found in _IMPORTED.finditer(text)]
    names += [found[1] for pattern in (_ARGUMENT, _MARKED, _CALLED) for found in pattern.finditer(text)]
    names += [name for name in _NAME.findall(text) if "." in name]
    return _bounded(names)


def plain_words(text: str) -> list[str]:
    """The words of the text, in its order: one of them may be a module."""
    return _bounded(_NAME.findall(text[:LONGEST_TEXT]), most=LONGEST_TEXT)


def _bounded(names: list[str], most: int = MOST_NAMES) -> list[str]:
    short = (name for name in names if len(name) <= LONGEST_NAME and name.count(".") < DEEPEST_NAME)
    return list(dict.fromkeys(short))[:most]
