"""What the relay asks of a dialer: legs that carry an episode's parts from its worker's replica to this one.

The default dialer is in `transport/`; a custom one replaces it whole, and `relaytrio.testing.ScriptedDialer` is one
that a test drives. Must not know: when to dial, when to give up, what to do with the rows (_relay.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs

from ._protocol.burst import Burst
from ._protocol.events import Episode
from ._protocol.peer_wire import EndReason


@attrs.frozen
class DialRequest:
    """Whom to dial, and for which chat."""

    chat_id: str
    worker_id: str
    """The replica id of the chat's owner."""
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The viewer's headers, all of them: the dialer forwards only those that it was told to. Never shown."""
    lay_down: Callable[[Burst], bool] | None = attrs.field(default=None, eq=False, repr=False)
    """Whoever receives a burst may offer it here first, if none waits before it, and if its rows were looked through:
    they are the parts that it says they are. True, and it was taken, so that the leg gives it no more; False, and
    nothing has happened. Synchronous. It spares a task's turn for each burst, and another look at its rows; a dialer
    need not call it."""


@attrs.frozen
class LegEnd:
    """The peer has nothing more to say about an episode. The leg stays open for another select."""

    episode: Episode
    reason: EndReason
    """`sealed`: all rows up to `last_seq` were sent. `not_owner`: the peer does not own the chat. `over`: it does, but
    that episode is past and its log is gone. `refused`: the select's grant was not accepted. `beyond`: the select asked
    for rows after the end of the log."""
    last_seq: int
    owner_id: str | None = None
    """With `not_owner`, the owner that the peer knows, if any; only a reason to look again."""


class Leg(Protocol):
    """One live connection to a worker's replica, for one chat."""

    async def select(self, episode: Episode, after_seq: int) -> None:
        """Ask for the rows of that episode after `after_seq`; it replaces what was selected before.

        What the peer had sent of the former episode may still arrive. Raises `LegLost` if the connection has gone.
        Cancelling it leaves the leg whole, with the new selection or the former one.
        """

    def __aiter__(self) -> AsyncIterator[Burst | LegEnd]:
        """Bursts and ends in the order in which the peer sent them.

        Cancelling a wait for the next one loses nothing. Raises `LegLost` when the connection is lost; it may also
        just end, which means the same.
        """


class Dialer(Protocol):
    """Opens legs."""

    def dial(self, request: DialRequest) -> AbstractAsyncContextManager[Leg]:
        """A leg for as long as the context lasts. Leaving it closes the leg without waiting for the peer.

        Entering raises a `DialError` (`ReplicaNotFound`, `BadReplicaAddress`, `DialRefused`, `DialTimeout`, or plain),
        never a group, and is cancelled promptly wherever it waits. An exception of the body leaves as it is.
        """
