"""What a refused request is told: RFC 9457 problems, one for each exception.

`PROBLEMS` below is the whole list: which exception is which status and type. The README shows the same table. A type
is a name, not an address; the text that is for a person is the exception's own, which never holds a token, a cookie
or the text of a chat.

Pure. Must not know: Starlette, routes. Who calls: the ASGI app (exception -> problem), the client (problem ->
exception).
"""

from __future__ import annotations

import math
from typing import Any, Final

import attrs

from .._errors import (
    ChatBusy,
    ChatNotFound,
    ContentTooLarge,
    IdempotencyConflict,
    InvalidContent,
    InvalidCursor,
    InvalidTransition,
    MessageNotFound,
    NotAllowed,
    NotEditable,
    QueuedMessageNotFound,
    QueueFull,
    RelaytrioError,
    ReplicaDraining,
    RequestError,
    StoreUnavailable,
)
from .grants import InvalidGrant

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:relaytrio:problem:"
STORE_RETRY_SECONDS: Final = 1
"""What a client is told to wait when the database cannot be reached: its outages are seconds, or a person's matter."""


class MalformedRequest(RequestError):
    """A body, a parameter or a header is not of the form that the request needs."""


class BodyTooLarge(RequestError):
    """The body has more bytes than are accepted; the rest of it was not read."""


class BodyTooSlow(RequestError):
    """The body did not come in time."""


class UnsupportedMediaType(RequestError):
    """The body is not said to be JSON."""


class RouteNotFound(RequestError):
    """There is nothing at this path."""


class MethodNotAllowed(RequestError):
    """There is something at this path, but not for this method."""


class UpgradeRequired(RequestError):
    """There is a WebSocket at this path, and nothing else."""


@attrs.frozen
class Problem:
    """What one kind of refusal looks like."""

    exception: type[Exception]
    status: int
    name: str
    title: str

    @property
    def type(self) -> str:
        """What a client tells it by."""
        return TYPE_PREFIX + self.name


PROBLEMS: Final = (
    Problem(MalformedRequest, 400, "malformed-request", "The request is not of the form that is needed here"),
    Problem(InvalidCursor, 400, "invalid-cursor", "The cursor was never given out"),
    Problem(InvalidGrant, 401, "invalid-grant", "The request carries no good grant of another replica"),
    Problem(NotAllowed, 403, "not-allowed", "This is not allowed"),
    Problem(RouteNotFound, 404, "route-not-found", "There is nothing at this path"),
    Problem(ChatNotFound, 404, "chat-not-found", "There is no such chat"),
    Problem(MessageNotFound, 404, "message-not-found", "The chat has no such message"),
    Problem(QueuedMessageNotFound, 404, "queued-message-not-found", "The queue has no such message"),
    Problem(MethodNotAllowed, 405, "method-not-allowed", "This method does nothing here"),
    Problem(BodyTooSlow, 408, "body-too-slow", "The body did not come in time"),
    Problem(NotEditable, 409, "not-editable", "Only a live message of the user can be edited"),
    Problem(InvalidTransition, 409, "invalid-transition", "The chat's status does not allow this"),
    Problem(ChatBusy, 409, "chat-busy", "The chat is generating"),
    Problem(QueueFull, 409, "queue-full", "The chat's queue is full"),
    Problem(ContentTooLarge, 413, "content-too-large", "The content of the message is too large"),
    Problem(BodyTooLarge, 413, "body-too-large", "The body is too large"),
    Problem(UnsupportedMediaType, 415, "unsupported-media-type", "The body is to be JSON"),
    Problem(InvalidContent, 422, "invalid-content", "The content of the message is not valid"),
    Problem(IdempotencyConflict, 422, "idempotency-conflict", "The key was used for another request"),
    Problem(UpgradeRequired, 426, "upgrade-required", "There is a WebSocket at this path, and nothing else"),
    Problem(StoreUnavailable, 503, "store-unavailable", "The database cannot be reached: try again"),
    Problem(ReplicaDraining, 503, "replica-draining", "This replica is stopping: try another"),
)
INTERNAL: Final = Problem(Exception, 500, "internal-error", "The server failed")
"""Of everything else. Its cause is in the log, not in the answer."""

_BY_EXCEPTION: Final = {problem.exception: problem for problem in PROBLEMS}
_OF_TRANSPORT: Final = (
    MalformedRequest,
    BodyTooLarge,
    BodyTooSlow,
    UnsupportedMediaType,
    RouteNotFound,
    MethodNotAllowed,
    UpgradeRequired,
    InvalidGrant,
)
"""No matter of the one who calls the client: it made the request in a wrong way."""
_BY_TYPE: Final = {
    problem.type: problem.exception for problem in PROBLEMS if not issubclass(problem.exception, _OF_TRANSPORT)
}


def problem_of(error: Exception) -> Problem:
    """The problem that an exception is; of two that fit, the nearer one."""
    for kind in type(error).__mro__:
        if kind in _BY_EXCEPTION:
            return _BY_EXCEPTION[kind]
    return INTERNAL


def problem_body(error: Exception) -> dict[str, Any]:
    """The members of the answer's body."""
    problem = problem_of(error)
    body = {"type": problem.type, "title": problem.title, "status": problem.status}
    return body if problem is INTERNAL else {**body, "detail": str(error)}


def retry_after(error: Exception) -> dict[str, str]:
    """The `Retry-After` header, in whole seconds, where trying again is the answer."""
    match error:
        case ReplicaDraining():
            return {"Retry-After": str(math.ceil(error.retry_after_seconds))}
        case StoreUnavailable():
            return {"Retry-After": str(STORE_RETRY_SECONDS)}
    return {}


def exception_of(body: object, retry_after_seconds: float = 0.0) -> RelaytrioError | None:
    """The exception that a problem's body was made of; None if it is none that a client of this package knows.

    Those of the transport itself (a path that does not exist, a body that is no JSON) are no use to a client's caller:
    None too.
    """
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        return None
    kind = _BY_TYPE.get(body["type"])
    if kind is None or not issubclass(kind, RelaytrioError):
        return None
    if kind is ReplicaDraining:
        return ReplicaDraining(retry_after_seconds)
    return kind(str(body.get("detail") or body.get("title") or body["type"]))
