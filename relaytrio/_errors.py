"""Every public exception.

    RelaytrioError
    ├── ConfigurationError (also ValueError)  the program that embeds the engine: fix the call
    ├── RequestError                          the caller of a request: do not repeat it unchanged
    │   ├── InvalidContent
    │   │   └── ContentTooLarge
    │   ├── InvalidCursor
    │   ├── NotAllowed                        whoever asks may not: `authorize` said so
    │   ├── ChatNotFound
    │   ├── MessageNotFound
    │   ├── QueuedMessageNotFound
    │   ├── NotEditable
    │   ├── InvalidTransition
    │   ├── ChatBusy                          try again when the chat is waiting
    │   ├── QueueFull                         try again when an entry was promoted or deleted
    │   └── IdempotencyConflict
    ├── RequestFailed                         a client's request had no answer that says what became of it
    ├── RunError                              what a run is told by a transition that it asked for
    │   ├── ChatTaken                         the chat is not this run's any more: stop, tell nobody
    │   └── Interrupted                       finish the interruption first
    ├── TurnError                             the responder
    │   ├── InvalidPart
    │   ├── AnswerTooLarge
    │   └── TurnOver                          the turn has ended (or another call for it is under way)
    ├── RetryableError                        raised *by* a responder that wants another attempt
    ├── StoreError
    │   ├── StoreUnavailable                  the database for now: try again
    │   └── StoreUnusable                     the database or its address: a person has to act
    ├── PubSubUnavailable                     the notifier for now: polling goes on without it
    ├── DialError                             one attempt to reach a worker's replica; names the worker
    │   ├── ReplicaNotFound
    │   ├── BadReplicaAddress
    │   ├── DialRefused
    │   ├── DialTimeout
    │   └── LegLost
    ├── WireError                             the peer or the client sent what is no frame of this protocol
    ├── ReplicaDraining                       this replica is being stopped: try another
    ├── ChatDeleted                           the end of a subscription whose chat was deleted
    ├── SubscriptionFailed                    the engine: one task of a subscription failed; has a cause
    └── EngineFailed                          the engine: one task of the replica failed; has a cause

What Trio has already is not made again: use after closing is `trio.ClosedResourceError`, two readers of one
stream are `trio.BusyResourceError`.

No message of these holds a token, a cookie or the text of a chat.
"""

from __future__ import annotations


class RelaytrioError(Exception):
    """The root of all exceptions of this package."""


class ConfigurationError(RelaytrioError, ValueError):
    """The engine was put together in a way that cannot work; the text names the argument."""


class RequestError(RelaytrioError):
    """A request was refused and nothing has changed. Repeating it unchanged gives the same answer."""


class InvalidContent(RequestError):
    """The content of a message is neither a string nor a list of JSON objects with a `type`."""


class ContentTooLarge(InvalidContent):
    """The content of a message is over the limit."""


class InvalidCursor(RequestError):
    """A cursor that this protocol never made."""


class NotAllowed(RequestError):
    """The program that embeds the engine does not allow this to whoever asks."""


class ChatNotFound(RequestError):
    """There is no chat of that id."""


class MessageNotFound(RequestError):
    """The chat has no live message of that id."""


class QueuedMessageNotFound(RequestError):
    """The chat's queue has no entry of that id (it may have been promoted already)."""


class NotEditable(RequestError):
    """Only a live message of the user can be edited."""


class InvalidTransition(RequestError):
    """The chat's status does not allow this command."""


class ChatBusy(RequestError):
    """The chat is generating, and the message was sent with `when_busy="reject"`."""


class QueueFull(RequestError):
    """The chat's queue holds as many entries as it may."""


class IdempotencyConflict(RequestError):
    """The idempotency key was used before, with another content."""


class RequestFailed(RelaytrioError):
    """No replica gave an answer that a client can use; what became of the request is not known."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of the last answer, HTTP; None: there was none."""


class RunError(RelaytrioError):
    """A transition of a run was refused and nothing has changed."""


class ChatTaken(RunError):
    """The chat is not this run's any more. The run does nothing after it: no event, no hint, no callback."""


class Interrupted(RunError):
    """The chat is `interrupting`: the run's only answers are finish_interruption and finish_turn."""


class TurnError(RelaytrioError):
    """A responder used its turn in a way that cannot work; nothing was sent."""


class InvalidPart(TurnError):
    """A part is no JSON object with a `type`, or is over the limit. No seq was used for it."""


class AnswerTooLarge(TurnError):
    """The answer has outgrown the limit. What was sent before is kept and will be marked truncated."""


class TurnOver(TurnError):
    """The turn has ended, or its finish is under way: nothing more can be sent."""


class RetryableError(RelaytrioError):
    """Raised by a responder to ask for another attempt after a delay; any other exception fails the turn.

    `retry_after_seconds` replaces the engine's own delay (for a model's rate limit, say).
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class StoreError(RelaytrioError):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError):
    """The database cannot be reached for now, or is too busy. Try again: a transition is fenced by its token."""


class StoreUnusable(StoreError):
    """The database cannot be opened, is read-only, is of a newer schema, or is none. Nothing was changed."""


class PubSubUnavailable(RelaytrioError):
    """Hints cannot be sent or received for now."""


class DialError(RelaytrioError):
    """One attempt to open a leg failed; the relay decides whether and when to try again."""

    def __init__(self, worker_id: str, reason: str) -> None:
        super().__init__(f"replica {worker_id}: {reason}")
        self.worker_id = worker_id
        """The replica that was dialed."""
        self.reason = reason
        """What went wrong, in words."""


class ReplicaNotFound(DialError):
    """No address is known for the worker's replica."""


class BadReplicaAddress(DialError):
    """The address that the replica advertises cannot be used."""


class DialRefused(DialError):
    """The peer answered 401 or 403, or refused the grant of a select."""


class DialTimeout(DialError):
    """The peer did not answer in time."""


class LegLost(DialError):
    """An open leg ended without the end of its episode."""


class WireError(RelaytrioError):
    """Bytes that are no frame of this protocol, or one over its limits."""


class ReplicaDraining(RelaytrioError):
    """This replica is being stopped; another one serves. `retry_after_seconds` spreads those who come back."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("this replica is stopping; connect to another")
        self.retry_after_seconds = retry_after_seconds


class ChatDeleted(RelaytrioError):
    """The chat that a subscription watched was deleted."""


class SubscriptionFailed(RelaytrioError):
    """A task of the engine failed inside a subscription; the cause is the failure. Subscribe again with the cursor."""


class EngineFailed(RelaytrioError):
    """A task of the engine failed; the cause is the failure. Its chats go on on other replicas: open it again."""
