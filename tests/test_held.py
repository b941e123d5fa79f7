"""Context managers that are held for long: see `_held.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from relaytrio._held import Held


class Diary:
    """Managers that note when they are entered and left."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def manager(self, name: str, *, fails: bool = False) -> Iterator[str]:
        self.lines.append(f"{name} entered")
        try:
            yield name
        finally:
            self.lines.append(f"{name} left")
            if fails:
                raise ValueError(name)


def test_what_is_held_is_left_once_last_first() -> None:
    """As by an ExitStack."""
    diary, held = Diary(), Held()
    assert [held.enter_context(diary.manager(name)) for name in "ab"] == ["a", "b"]
    held.close()
    held.close()
    assert diary.lines == ["a entered", "b entered", "b left", "a left"]


def test_whatever_fails_all_is_left() -> None:
    """A failing exit hides neither the others nor what was raised before."""
    diary = Diary()
    with pytest.raises(ValueError, match="b") as caught, Held() as held:
        held.enter_context(diary.manager("a"))
        held.enter_context(diary.manager("b", fails=True))
        raise KeyError("body")
    assert diary.lines[2:] == ["b left", "a left"]
    assert isinstance(caught.value.__context__, KeyError)


def test_what_could_not_be_entered_is_not_left() -> None:
    """And what was entered before is."""
    diary = Diary()

    @contextmanager
    def refusing() -> Iterator[None]:
        raise ValueError("no")
        yield

    with pytest.raises(ValueError, match="no"), Held() as held:
        held.enter_context(diary.manager("a"))
        held.enter_context(refusing())
    assert diary.lines == ["a entered", "a left"]


def test_another_one_holds_it_from_now_on() -> None:
    """What was handed over outlives the context in which it was entered."""
    diary = Diary()
    with Held() as held:
        held.enter_context(diary.manager("a"))
        kept = held.pop_all()
    assert diary.lines == ["a entered"]
    kept.close()
    assert diary.lines == ["a entered", "a left"]
