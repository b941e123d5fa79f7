"""Who may do what: the question that the embedding program answers before anything is served or upgraded.

Who calls: every route of a viewer's or client's. Must not know: what is then done.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

from starlette.requests import HTTPConnection

from .._errors import NotAllowed

Action: TypeAlias = Literal["create", "list", "read", "send", "edit", "interrupt", "queue", "delete", "stream"]
Authorize: TypeAlias = Callable[[HTTPConnection, str | None, Action], object | Awaitable[object]]
"""`authorize(request, chat_id, action)`, async or not; `chat_id` is None for `create` and `list`.

Anything false refuses (403). A string is the principal: two principals may use the same idempotency key for `create`.
Anything else that is true allows. It may raise Starlette's `HTTPException` for a status of its own, 401 say.
`read` is the chat, its messages and its queue; `queue` is deleting from the queue and promoting.
"""


async def principal_of(
    authorize: Authorize | None, connection: HTTPConnection, chat_id: str | None, action: Action
) -> str:
    """The principal that may do this, or the empty one. Raises `NotAllowed`."""
    if authorize is None:
        return ""
    answer = authorize(connection, chat_id, action)
    if inspect.isawaitable(answer):
        answer = await answer
    if not answer:
        raise NotAllowed(f"you are not allowed to {action}" + ("" if chat_id is None else " this chat"))
    return answer if isinstance(answer, str) else ""
