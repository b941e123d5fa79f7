"""Listening sockets as they should be for peers that may stop reading.

They have a `TCP_USER_TIMEOUT` where the system knows it, and the sockets that they accept inherit it: the system gives
up a peer that acknowledges nothing, whatever the program waits for.

Who calls: both servers, that of the ASGI app and that of viewers.
"""

from __future__ import annotations

import socket
from typing import Final

import trio

from .._settings import Settings

BACKLOG: Final = 512
"""Connections that wait to be accepted: all viewers of a replica that stopped come at once."""


async def listen(host: str, port: int, settings: Settings) -> trio.SocketListener:
    """Listen on the first address that the host has. Raises `OSError` if it cannot be had."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listening = trio.socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        give_up_stalled(listening, settings)
        await listening.bind(address)
        listening.listen(BACKLOG)
        return trio.SocketListener(listening)
    except BaseException:
        listening.close()
        raise


def give_up_stalled(listening: trio.socket.SocketType, settings: Settings) -> None:
    """Have the system give up peers of this socket, and of those that it accepts, that acknowledge nothing."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
    if option is not None and listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.IPPROTO_TCP, option, int(settings.stalled_send_seconds * 1000))


def url_of(scheme: str, host: str, port: int) -> str:
    """The URL of what listens there."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
