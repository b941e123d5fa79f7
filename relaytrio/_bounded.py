"""A read of the store that hangs counts as failed: whoever reads again and again must not end with one lost answer.

Transitions are not bounded here: their run asks again with the same token (_ownership.py). Who calls: all that read
the store in a loop of their own.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import trio

from ._errors import StoreUnavailable

T = TypeVar("T")


async def within(seconds: float, read: Awaitable[T]) -> T:
    """What the read gives. Raises `StoreUnavailable` if it has not answered after `seconds`. A checkpoint."""
    with trio.move_on_after(seconds):
        return await read
    raise StoreUnavailable(f"the store has not answered within {seconds:g} s")
