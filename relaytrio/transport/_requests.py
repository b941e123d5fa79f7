"""The handlers of the HTTP routes: read, ask the engine, answer. One method of `Requests` a route and method.

`authorize` is asked first, before a byte of the body is read. Must not know: streams, rules of a chat. Who calls: the
routes of asgi.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .._errors import MessageNotFound, QueuedMessageNotFound
from .._protocol.asked import checked_chat_id
from .._protocol.chat import Chat, WhenBusy
from .._protocol.content import normal_content
from .._protocol.events import Content, Episode, MessageRef
from ._answers import answer, chat_json, message_json, queue_json, sent_json, transition_json
from ._authorize import Action, Authorize, principal_of
from ._problems import MalformedRequest
from ._reading import LARGEST_PAGE, chat_id_of, idempotency_key, path_number, query_number, read_body

if TYPE_CHECKING:
    from .._engine import Engine

CHATS_PAGE = 50


class _Create(msgspec.Struct):
    messages: list[dict[str, Any]] = msgspec.field(default_factory=list)


class _Send(msgspec.Struct):
    content: Any
    when_busy: str = "queue"


class _Edit(msgspec.Struct):
    content: Any


class _Interrupt(msgspec.Struct):
    of: tuple[int, int, str] | None = None


_CREATE = msgspec.json.Decoder(_Create)
_SEND = msgspec.json.Decoder(_Send)
_EDIT = msgspec.json.Decoder(_Edit)
_INTERRUPT = msgspec.json.Decoder(_Interrupt)


class Requests:
    """The routes' handlers for one engine."""

    def __init__(self, engine: Engine, authorize: Authorize | None) -> None:
        self._engine = engine
        self._authorize = authorize

    # ------------------------------------------------------------------------------------------ chats

    async def create_chat(self, request: Request) -> Response:
        """`POST /v1/chats`"""
        principal = await principal_of(self._authorize, request, None, "create")
        key = idempotency_key(request)
        body = await read_body(request, _CREATE, self._engine.settings)
        chat = await self._engine.create_chat(body.messages, idempotency_key=key, principal=principal)
        location = f"{request.scope.get('root_path', '')}/v1/chats/{chat.id}"
        return answer(await self._with_queue(chat), 201, {"Location": location})

    async def list_chats(self, request: Request) -> Response:
        """`GET /v1/chats`"""
        await principal_of(self._authorize, request, None, "list")
        limit = query_number(request, "limit", CHATS_PAGE, least=1, most=LARGEST_PAGE)
        before = request.query_params.get("before")
        last = None if before is None else checked_chat_id(before)
        chats = await self._engine.list_chats(before=last, limit=limit)
        return answer({"chats": [chat_json(chat) for chat in chats]})

    async def get_chat(self, request: Request) -> Response:
        """`GET /v1/chats/{id}`"""
        chat_id = await self._allowed_chat(request, "read")
        return answer(await self._with_queue(await self._engine.get_chat(chat_id)))

    async def delete_chat(self, request: Request) -> Response:
        """`DELETE /v1/chats/{id}`"""
        await self._engine.delete_chat(await self._allowed_chat(request, "delete"))
        return Response(status_code=204)

    # --------------------------------------------------------------------------------------- messages

    async def list_messages(self, request: Request) -> Response:
        """`GET /v1/chats/{id}/messages`"""
        chat_id = await self._allowed_chat(request, "read")
        after_id = query_number(request, "after_id", 0, least=0)
        limit = query_number(request, "limit", LARGEST_PAGE, least=1, most=LARGEST_PAGE)
        messages = await self._engine.list_messages(chat_id, after_id=after_id, limit=limit)
        return answer({"messages": [message_json(message) for message in messages]})

    async def send_message(self, request: Request) -> Response:
        """`POST /v1/chats/{id}/messages`"""
        chat_id = await self._allowed_chat(request, "send")
        key = idempotency_key(request)
        body = await read_body(request, _SEND, self._engine.settings)
        content = self._content(body.content)
        if body.when_busy not in get_args(WhenBusy):
            raise MalformedRequest(f"when_busy: one of {', '.join(get_args(WhenBusy))}")
        when_busy: WhenBusy = body.when_busy  # type: ignore[assignment]
        sent = await self._engine.send_message(chat_id, content, when_busy=when_busy, idempotency_key=key)
        return answer(sent_json(sent, content), 202)

    async def edit_message(self, request: Request) -> Response:
        """`PATCH /v1/chats/{id}/messages/{message_id}`"""
        chat_id = await self._allowed_chat(request, "edit")
        key = idempotency_key(request)
        body = await read_body(request, _EDIT, self._engine.settings)
        content = self._content(body.content)
        message_id = path_number(request, "message_id")
        if message_id is None:
            raise MessageNotFound("no message has such an id")
        edited = await self._engine.edit_message(chat_id, message_id, content, idempotency_key=key)
        return answer(sent_json(edited, content), 202)

    async def interrupt(self, request: Request) -> Response:
        """`POST /v1/chats/{id}/interrupt`"""
        chat_id = await self._allowed_chat(request, "interrupt")
        body = await read_body(request, _INTERRUPT, self._engine.settings, empty=_Interrupt())
        of = None if body.of is None else Episode(*body.of)
        return answer(transition_json(await self._engine.interrupt(chat_id, of=of)), 202)

    # ------------------------------------------------------------------------------------------ queue

    async def list_queue(self, request: Request) -> Response:
        """`GET /v1/chats/{id}/queue`"""
        chat_id = await self._allowed_chat(request, "read")
        return answer({"queue": queue_json(await self._engine.list_queue(chat_id))})

    async def delete_queued(self, request: Request) -> Response:
        """`DELETE /v1/chats/{id}/queue/{queued_id}`"""
        chat_id = await self._allowed_chat(request, "queue")
        deleted = await self._engine.delete_queued(chat_id, _queued_id(request))
        return answer({**transition_json(deleted), "queue": queue_json(await self._engine.list_queue(chat_id))})

    async def promote_queued(self, request: Request) -> Response:
        """`POST /v1/chats/{id}/queue/{queued_id}/promote`"""
        chat_id = await self._allowed_chat(request, "queue")
        promoted = await self._engine.promote_queued(chat_id, _queued_id(request))
        queue = await self._engine.list_queue(chat_id)
        return answer({**transition_json(promoted), "queue": queue_json(queue)}, 202)

    # ----------------------------------------------------------------------------------------- shared

    async def _allowed_chat(self, request: Request, action: Action) -> str:
        chat_id = chat_id_of(request)
        await principal_of(self._authorize, request, chat_id, action)
        return chat_id

    async def _with_queue(self, chat: Chat) -> dict[str, Any]:
        """The chat with its queue, both of one moment. A chat that never had a queue needs no second read.

        The view is one from the chat's last message on, so that it brings no history.
        """
        if chat.queue_version == 0:
            return {**chat_json(chat), "queue": []}
        last = chat.next_message_id - 1
        view = await self._engine.store.read_view(chat.id, MessageRef(last, None if last else ""))
        return {**chat_json(view.chat), "queue": queue_json(view.queue)}

    def _content(self, content: object) -> Content:
        return normal_content(content, limit_bytes=self._engine.settings.message_bytes)


def _queued_id(request: Request) -> int:
    queued_id = path_number(request, "queued_id")
    if queued_id is None:
        raise QueuedMessageNotFound("no queued message has such an id")
    return queued_id
