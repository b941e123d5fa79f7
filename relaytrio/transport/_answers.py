"""What the routes answer: chats, messages and answers of transitions as JSON, refusals as problems.

Who calls: the handlers of the routes. Must not know: how an answer came about.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from .._errors import RelaytrioError
from .._protocol.chat import Answer, Chat
from .._protocol.events import Content, Message, QueueEntry
from ._problems import (
    INTERNAL,
    MEDIA_TYPE,
    MethodNotAllowed,
    RouteNotFound,
    problem_body,
    retry_after,
)

_encode = msgspec.json.Encoder().encode
_logger = logging.getLogger("relaytrio.http")

MESSAGE_FIELDS = ("id", "role", "content", "version", "interrupted", "truncated", "queued_id", "created_at")
"""The same as in a `message` event."""


def answer(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer. It is never to be kept by a cache: chats change."""
    return Response(
        _encode(body), status, media_type="application/json", headers={"Cache-Control": "no-store", **(headers or {})}
    )


def chat_json(chat: Chat) -> dict[str, Any]:
    """A chat, without its queue."""
    return {
        "id": chat.id,
        "status": chat.status,
        "worker_id": chat.worker_id,
        "snapshot_version": chat.snapshot_version,
        "last_error": None if chat.last_error is None else attrs.asdict(chat.last_error),
        "retry": None if chat.retry_state is None else attrs.asdict(chat.retry_state),
        "created_at": chat.created_at,
        "updated_at": chat.updated_at,
    }


def message_json(message: Message) -> dict[str, Any]:
    """A stored message, as its event has it."""
    return {name: getattr(message, name) for name in MESSAGE_FIELDS}


def queue_json(queue: Iterable[QueueEntry]) -> list[dict[str, Any]]:
    """The queue in order, as its event has it."""
    return [{"id": entry.id, "content": entry.content} for entry in queue]


def transition_json(answer: Answer) -> dict[str, Any]:
    """What a transition did, and the version of the status to wait for."""
    return {"done": answer.done, "snapshot_version": answer.snapshot_version}


def sent_json(answer: Answer, content: Content) -> dict[str, Any]:
    """What a message that was sent, or edited, became: a message of the history or an entry of the queue."""
    message = queued = None
    if answer.done == "queued":
        queued = {"id": answer.queued_id, "content": content}
    else:
        message = {
            "id": answer.messages[-1].id,
            "role": "user",
            "content": content,
            "version": answer.snapshot_version,
            "interrupted": False,
            "truncated": False,
            "queued_id": answer.queued_id,
            "created_at": answer.at,
        }
    return {**transition_json(answer), "message": message, "queued": queued}


def refusal(error: Exception) -> Response:
    """The problem that an exception is. The cause of the server's own failures is for the log, not for the client."""
    headers = {"Cache-Control": "no-store", **retry_after(error)}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
        body = _starlettes_problem(error)
    else:
        body = problem_body(error)
    if body["status"] == INTERNAL.status and isinstance(error, RelaytrioError):
        # Any other exception is raised again behind this answer, and logged by the server.
        _logger.error("a request failed: %s", type(error).__name__, exc_info=error)
    return Response(_encode(body), body["status"], media_type=MEDIA_TYPE, headers=headers)


def _starlettes_problem(error: HTTPException) -> dict[str, Any]:
    """What Starlette itself refuses, or `authorize` with a status of its own."""
    if error.status_code == 404:
        return problem_body(RouteNotFound("there is nothing at this path"))
    if error.status_code == 405:
        return problem_body(MethodNotAllowed("the header Allow says which methods do something"))
    return {"type": "about:blank", "title": error.detail, "status": error.status_code}


async def refuse(connection: HTTPConnection, error: Exception) -> Response:
    """The app's exception handler."""
    return refusal(error)
