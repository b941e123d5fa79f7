"""`relaytrio tail`: a chat's history, and its live text as it comes, until Ctrl-C or the end of the chat."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .._errors import ChatDeleted
from .._protocol.events import Cursor
from ..client import ChatStream
from ._connect import DEFAULT_URLS, Urls, open_client
from ._output import Output
from ._transcript import Transcript


async def tail(
    chat: Annotated[str, Parameter(help="The chat.")],
    *,
    cursor: Annotated[str | None, Parameter(help="Go on after what a former tail has shown.")] = None,
    url: Urls = DEFAULT_URLS,
) -> None:
    """Show a chat: messages and live text on stdout, what happens beside it on stderr, at the end the cursor.

    Goes on by itself where the connection or the replica is lost.
    """
    after = None if cursor is None else Cursor.parse(cursor)
    output = Output()
    async with open_client(url) as client:
        await client.get_chat(chat)  # a stream would try for ever: whether anything is there is asked with an end
        async with client.stream(chat, cursor=after) as stream:
            try:
                await _show(stream, output)
            except ChatDeleted:
                output.remark("the chat was deleted")
            finally:
                output.end_line()
                if stream.cursor is not None:
                    output.remark(f"cursor: {stream.cursor}")


async def _show(stream: ChatStream, output: Output) -> None:
    transcript = Transcript(output)
    reconnects = 0
    async for event in stream:
        if stream.reconnects != reconnects:
            reconnects = stream.reconnects
            output.remark("the connection was lost; connected again")
        transcript.show(event)
