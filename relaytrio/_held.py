"""Context managers that are held for long: an `ExitStack` of few, whose deque alone would take 760 bytes.

Every idle viewer has some. Must not know: what is held. Who calls: subscriptions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self, TypeVar

_T = TypeVar("_T")


class Held:
    """What was entered is left at the end, last first, whatever of it fails; as by an `ExitStack`, which it uses."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: tuple[AbstractContextManager[object, bool | None], ...] = ()

    def enter_context(self, manager: AbstractContextManager[_T, bool | None]) -> _T:
        """Enter it, and hold it."""
        result = manager.__enter__()
        self._held += (manager,)
        return result

    def pop_all(self) -> Held:
        """What holds all of it from now on."""
        other = Held()
        other._held, self._held = self._held, ()
        return other

    def close(self) -> None:
        """Leave all of it. Twice is fine."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        stack = ExitStack()
        for manager in self._held:
            stack.push(manager)
        self._held = ()
        return stack.__exit__(kind, error, traceback)
