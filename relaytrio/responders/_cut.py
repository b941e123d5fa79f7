"""How an answer is cut into tokens and how they are spaced: a function of name and seed alone.

The numbers come from a hash, not from `random`: the same in every process and every version of Python, so that a
check in another process can say what must have been sent. Called by pydoc.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from itertools import count, islice

LONGEST_TOKEN_WORDS = 4

_WORD = re.compile(r"\s*\S+(?:\s+\Z)?|\s+\Z")


def tokens(answer_text: str, *, name: str, seed: int) -> list[str]:
    """The text in pieces of one to four words, each with the white space before it; joined they are the text again.

    `name` is what the user wrote. No token is empty; an empty text has none.
    """
    words = iter(_WORD.findall(answer_text))
    sizes = (1 + number % LONGEST_TOKEN_WORDS for number in _numbers(f"cut:{seed}:{name}"))
    return list(iter(lambda: "".join(islice(words, next(sizes))), ""))


def gaps(*, name: str, seed: int, pace: float) -> Iterator[float]:
    """Endless delays in seconds, unlike each other like those of a model, `1 / pace` on average."""
    return ((0.4 + 1.2 * number / 2**32) / pace for number in _numbers(f"rhythm:{seed}:{name}"))


def _numbers(key: str) -> Iterator[int]:
    """Numbers below 2**32, as many as are taken."""
    digest = blake2b(key.encode("utf-8", "surrogatepass")).digest()
    for block in count():
        mixed = blake2b(block.to_bytes(8, "big"), key=digest).digest()
        yield from (int.from_bytes(mixed[at : at + 4], "big") for at in range(0, len(mixed), 4))
