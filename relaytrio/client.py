"""`ChatClient`: a chat's requests over httpx, and its stream over a WebSocket, from any of several replicas.

Requests are repeated by themselves where that can do no harm: what would be done twice carries an idempotency key,
made once for all tries; an `interrupt` that does not say which answer it means is repeated only if it was never sent,
for it could stop the next one too.

Must not know: how a stream resumes (`_client_stream.py`), what is in an answer (`_client_answers.py`). Who calls:
programs, the command line, the checks.
"""

from __future__ import annotations

import random as random_module
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import attrs
import httpx
import msgspec
import trio

from ._client_addresses import Addresses
from ._client_answers import Accepted as Accepted
from ._client_answers import (
    accepted_of,
    chat_of,
    chats_of,
    decoded,
    messages_of,
    nothing_of,
    queue_of,
    refusal_of,
    retry_after_of,
)
from ._client_stream import ChatStream as ChatStream
from ._client_stream import StreamParams
from ._errors import ChatNotFound, ConfigurationError, RequestFailed
from ._protocol.chat import Chat, NewMessage, WhenBusy
from ._protocol.events import Content, Cursor, Episode, Message, QueueEntry
from ._protocol.retry import Backoff
from ._settings import DEFAULTS, Settings
from .transport.dialer import OpenStream

TRIES: Final = 6
"""Of one request. With the relay's delays that is some fifteen seconds: a replica's restart, a database's fail-over."""
READ_SECONDS: Final = 30.0
"""How long one try waits for its answer."""
_RETRIED_STATUSES: Final = frozenset({502, 503, 504})
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

_T = TypeVar("_T")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_encode = msgspec.json.Encoder().encode


@attrs.frozen(kw_only=True)
class _Request:
    """One request, the same at each try."""

    method: str
    path: str
    params: dict[str, Any] = attrs.field(factory=dict)
    body: object = None
    key: str | None = None
    harmless_twice: bool = True

    def build(self, http: httpx.AsyncClient, base: str, headers: Mapping[str, str]) -> httpx.Request:
        ours = {"Accept": "application/json, application/problem+json"}
        if self.body is not None:
            ours["Content-Type"] = "application/json"
        if self.key is not None:
            ours["Idempotency-Key"] = self.key
        params = {name: value for name, value in self.params.items() if value is not None}
        content = None if self.body is None else _encode(self.body)
        return http.build_request(
            self.method, base + self.path, params=params, content=content, headers={**headers, **ours}
        )


class ChatClient:
    """A client of one cluster: an async context manager.

    `urls` are the addresses of replicas (or of a load balancer), with a path if the app is mounted below one.
    `headers` go with every request and every stream. `http` is a client of httpx to use, and is not closed here.
    `random` draws from [0, 1), for delays and keys. `ssl_context` is for streams from `https` addresses, and
    `open_stream` what makes the connection below a stream.

    Every request raises `NotAllowed`, `StoreUnavailable` when the database cannot be reached after several tries, and
    `RequestFailed` when no try had an answer of this protocol; what else it raises is what `Engine` raises for it.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        headers: Mapping[str, str] | None = None,
        http: httpx.AsyncClient | None = None,
        settings: Settings = DEFAULTS,
        random: Callable[[], float] = random_module.random,
        ssl_context: ssl.SSLContext | None = None,
        open_stream: OpenStream | None = None,
    ) -> None:
        self._addresses = Addresses([urls] if isinstance(urls, str) else urls)
        self._headers = _checked(headers or {})
        self._http = http
        self._settings = settings
        self._random = random
        self._ssl_context = ssl_context
        self._open_stream = open_stream
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self._http is None:
            timeout = httpx.Timeout(READ_SECONDS, connect=self._settings.connect_seconds)
            # Streams go by no proxy of the environment, so requests go by none: they are to reach the same replicas.
            client = httpx.AsyncClient(timeout=timeout, trust_env=False)
            self._http = await self._resources.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._resources.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - what is left has bounds of its own

    # ------------------------------------------------------------------------------------------ chats

    async def create_chat(
        self, messages: Sequence[NewMessage | Mapping[str, Any]] = (), *, idempotency_key: str | None = None
    ) -> Chat:
        """A new chat with these messages."""
        body = {"messages": [_message_body(message) for message in messages]}
        request = _Request(method="POST", path="/v1/chats", body=body, key=idempotency_key or self._new_key())
        return await self._ask(request, chat_of)

    async def get_chat(self, chat_id: str) -> Chat:
        """The chat, without its queue."""
        return await self._ask(_Request(method="GET", path=_path(chat_id)), chat_of)

    async def list_chats(self, *, before: str | None = None, limit: int = 50) -> Sequence[Chat]:
        """A page of chats, newest first; `before` is the last id of the page before."""
        params = {"before": before, "limit": limit}
        return await self._ask(_Request(method="GET", path="/v1/chats", params=params), chats_of)

    async def delete_chat(self, chat_id: str) -> None:
        """Remove the chat. That it is gone at a repeated try is success."""
        attempt = _Attempt()
        try:
            await self._ask(_Request(method="DELETE", path=_path(chat_id)), nothing_of, attempt)
        except ChatNotFound:
            if not attempt.perhaps_done:
                raise

    # --------------------------------------------------------------------------------------- messages

    async def list_messages(self, chat_id: str, *, after_id: int = 0, limit: int = 200) -> Sequence[Message]:
        """Live messages in order; fewer than `limit` if they are large. Their stamps are not told."""
        params = {"after_id": after_id, "limit": limit}
        return await self._ask(_Request(method="GET", path=_path(chat_id, "messages"), params=params), messages_of)

    async def send_message(
        self,
        chat_id: str,
        content: str | Content,
        *,
        when_busy: WhenBusy = "queue",
        idempotency_key: str | None = None,
    ) -> Accepted:
        """Send a message of the user. See `Engine.send_message`."""
        body = {"content": content, "when_busy": when_busy}
        key = idempotency_key or self._new_key()
        return await self._ask(
            _Request(method="POST", path=_path(chat_id, "messages"), body=body, key=key), accepted_of
        )

    async def edit_message(
        self, chat_id: str, message_id: int, content: str | Content, *, idempotency_key: str | None = None
    ) -> Accepted:
        """Replace a message of the user. See `Engine.edit_message`."""
        path, key = _path(chat_id, "messages", str(message_id)), idempotency_key or self._new_key()
        return await self._ask(_Request(method="PATCH", path=path, body={"content": content}, key=key), accepted_of)

    async def interrupt(self, chat_id: str, *, of: Episode | None = None) -> Accepted:
        """Stop the answer. With `of` (from the parts that were seen), never one of a later turn."""
        episode = None if of is None else [of.history_version, of.generation_attempt, of.run_id]
        request = _Request(
            method="POST", path=_path(chat_id, "interrupt"), body={"of": episode}, harmless_twice=of is not None
        )
        return await self._ask(request, accepted_of)

    # ------------------------------------------------------------------------------------------ queue

    async def list_queue(self, chat_id: str) -> tuple[QueueEntry, ...]:
        """The messages that wait, in order."""
        return await self._ask(_Request(method="GET", path=_path(chat_id, "queue")), queue_of)

    async def delete_queued(self, chat_id: str, queued_id: int) -> Accepted:
        """Take a message out of the queue. `QueuedMessageNotFound` may also say that a first try has done it."""
        path = _path(chat_id, "queue", str(queued_id))
        return await self._ask(_Request(method="DELETE", path=path), accepted_of)

    async def promote_queued(self, chat_id: str, queued_id: int) -> Accepted:
        """Stop the answer for a message that waits. `QueuedMessageNotFound` may also say that a first try did it."""
        path = _path(chat_id, "queue", str(queued_id), "promote")
        return await self._ask(_Request(method="POST", path=path), accepted_of)

    # ----------------------------------------------------------------------------------------- stream

    def stream(
        self,
        chat_id: str,
        *,
        cursor: str | Cursor | None = None,
        after_message_id: int | None = None,
        prefer: str | None = None,
    ) -> ChatStream:
        """A chat's events, for as long as the context lasts: an async context manager, see `ChatStream`.

        It goes on after `cursor`, else after the message `after_message_id`, else begins with the first message.
        `prefer` is the address to try first.
        """
        params = StreamParams(
            chat_id=chat_id,
            cursor=None if cursor is None else str(cursor),
            after_message_id=after_message_id,
            headers=self._headers,
            settings=self._settings,
            random=self._random,
            ssl_context=self._ssl_context,
            open_stream=self._open_stream,
        )
        addresses = self._addresses.copy()
        if prefer is not None:
            addresses.prefer(prefer)
            addresses.go_on()
        return ChatStream(params, addresses)

    # ------------------------------------------------------------------------------------------ tries

    def _new_key(self) -> str:
        return f"{int(self._random() * 2**53):014x}{int(self._random() * 2**53):014x}"

    async def _ask(self, request: _Request, make: Callable[[Any], _T], attempt: _Attempt | None = None) -> _T:
        """Try until there is an answer that counts. The one place where requests are repeated."""
        attempt = attempt or _Attempt()
        backoff = Backoff(self._settings.dial_retry_seconds, self._settings.dial_retry_max_seconds)
        for tries_left in reversed(range(TRIES)):
            try:
                response = await self._try(request)
            except httpx.TransportError as error:
                never_sent = isinstance(error, _NEVER_SENT)
                attempt.perhaps_done |= not never_sent
                if not tries_left or not (never_sent or request.harmless_twice):
                    raise RequestFailed(f"no answer: {type(error).__name__}") from error
                wait_seconds = 0.0
            else:
                if response.is_success:
                    return decoded(response.status_code, response.content, make)
                if response.status_code not in _RETRIED_STATUSES or not tries_left or not request.harmless_twice:
                    raise refusal_of(response.status_code, response.content, response.headers)
                attempt.perhaps_done = True
                wait_seconds = retry_after_of(response.headers) or 0.0
            self._addresses.go_on()
            await trio.sleep(wait_seconds + backoff.next_delay_seconds(self._random()))
        raise AssertionError("the last try either returns or raises")

    async def _try(self, request: _Request) -> httpx.Response:
        if self._http is None:
            raise ConfigurationError("use the client as an async context manager")
        return await self._http.send(request.build(self._http, self._addresses.current, self._headers))


@attrs.define
class _Attempt:
    """What is known of a request that is repeated."""

    perhaps_done: bool = False


def _path(chat_id: str, *more: str) -> str:
    return "/".join(["/v1/chats", quote(chat_id, safe=""), *more])


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError(f"headers: {name!r} is no header, or has a value that none can have")
    return dict(headers)


def _message_body(message: NewMessage | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(message, NewMessage):
        return {"role": message.role, "content": message.content}
    return message
