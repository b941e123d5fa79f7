"""`serve_viewers`: a listener for viewers' WebSockets, and those of peers, beside the ASGI app.

It serves `GET /v1/chats/{id}/stream` and `GET /relay/v1/parts` with an upgrade, as the ASGI app does, at what one send
a viewer costs; everything else is the app's. It needs no server below it: the sockets are its own.

Must not know: how a connection is served (`_viewers.py`). Who calls: the embedding program, the command `serve`.
"""

from __future__ import annotations

import random as random_module
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from .._errors import ConfigurationError
from ._listening import give_up_stalled, listen, url_of

if TYPE_CHECKING:
    from .._engine import Engine
    from ._authorize import Authorize


async def serve_viewers(
    engine: Engine,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    listeners: Sequence[trio.SocketListener] | None = None,
    authorize: Authorize | None = None,
    recheck_seconds: float | None = None,
    ssl_context: ssl.SSLContext | None = None,
    random: Callable[[], float] = random_module.random,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve viewers' WebSockets on `host` and `port` (0: any that is free), or on `listeners`, until cancelled.

    `GET /v1/chats/{id}/stream?cursor=&after_message_id=` with an upgrade is what it is with `Engine.asgi_app`: the
    same frames, close codes and refusals. So is the parts endpoint, `GET /relay/v1/parts`: an engine whose `address` is
    this listener's is reached by its peers at half the latency. Any other request is refused, one without an upgrade
    with 426.
    `authorize(request, chat_id, "stream")` is asked before the upgrade, and every `recheck_seconds` again, if given;
    without one everything is allowed. With an `ssl_context` it speaks TLS, at the price of a task and a copy for each
    viewer. `random` draws from [0, 1) and spreads those who come back.

    `started()` gives the URL (of the first of the listeners), when viewers can connect. While the engine drains it
    sends its viewers elsewhere, and refuses who comes; cancel it after that. Cancelled, it closes all connections at
    once. The `listeners` are closed at the end too. Raises `OSError` if the address cannot be had, and
    `ConfigurationError` without the extra `server`.
    """
    try:
        from ._viewers import Viewers
    except ModuleNotFoundError as error:
        raise ConfigurationError("serve_viewers needs: pip install 'relaytrio[server]'") from error
    viewers = Viewers(engine, authorize, recheck_seconds=recheck_seconds, ssl_context=ssl_context, random=random)
    if listeners is None:
        listeners = [await listen(host, port, engine.settings)]
    elif not listeners:
        raise ConfigurationError("listeners: at least one, or None")
    for listener in listeners:
        give_up_stalled(listener.socket, engine.settings)
    bound, port = listeners[0].socket.getsockname()[:2]
    async with trio.open_nursery() as nursery:
        await nursery.start(viewers.run)
        await nursery.start(partial(trio.serve_listeners, viewers.serve, list(listeners), handler_nursery=nursery))
        task_status.started(url_of("http" if ssl_context is None else "https", bound, port))
