"""`relaytrio send`: one message of the user, to a chat that is there or to a new one."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .._client_answers import Accepted
from ._connect import DEFAULT_URLS, Urls, open_client
from ._output import Output


async def send(
    text: Annotated[str, Parameter(help="What to send.")],
    *,
    chat: Annotated[str | None, Parameter(help="The chat; without it a new one is made.")] = None,
    interrupt: Annotated[bool, Parameter(help="Stop the answer that is being generated.", negative="")] = False,
    url: Urls = DEFAULT_URLS,
) -> None:
    """Send a message. A new chat's id is printed on stdout, alone on a line."""
    output = Output()
    async with open_client(url) as client:
        if chat is None:
            made = await client.create_chat([{"role": "user", "content": text}])
            output.line(made.id)
        else:
            sent = await client.send_message(chat, text, when_busy="interrupt" if interrupt else "queue")
            output.remark(_what_became_of(sent))


def _what_became_of(sent: Accepted) -> str:
    if sent.queued is not None:
        return f"waiting in the queue as {sent.queued.id}"
    return "sent" if sent.message is None else f"sent as message {sent.message.id}"
