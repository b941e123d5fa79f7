"""Where a viewer's page of messages begins and ends. Pure: a store brings what it has found, or how to find it.

Who calls: the stores' `read_view` and `list_messages`, inside one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from .._protocol.events import NO_MESSAGE, Message, MessageRef


@attrs.frozen
class Known:
    """What the store has under the id of a base."""

    stamp: str
    deleted: bool


@attrs.frozen
class Start:
    """Where a page starts."""

    base_live: bool
    anchor: MessageRef
    """See `View.anchor`."""


def start_of_page(base: MessageRef, known: Known | None, last_live_below: Callable[[int], MessageRef | None]) -> Start:
    """What a viewer with this base continues from. `last_live_below` is asked only if the base was deleted."""
    if base.id == 0:
        return Start(True, NO_MESSAGE)
    if known is None or base.stamp not in (None, known.stamp):
        return Start(False, NO_MESSAGE)
    if known.deleted:
        return Start(False, last_live_below(base.id) or NO_MESSAGE)
    return Start(True, MessageRef(base.id, known.stamp))


def take_page(
    messages: Iterable[tuple[Message, int]], *, most_messages: int, most_bytes: int
) -> tuple[tuple[Message, ...], bool]:
    """The first of these (each with its weight in bytes) that make a page, and whether there are more.

    Takes no more from the iterable than one message past the page. A page holds at least one message if there is one.
    """
    page: list[Message] = []
    weight = 0
    for message, size in messages:
        weight += size
        if len(page) >= most_messages or (page and weight > most_bytes):
            return tuple(page), True
        page.append(message)
    return tuple(page), False
