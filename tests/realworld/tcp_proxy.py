"""A network between a client and its server that fails where a test wants it to.

Must not know: what is said over it. Who calls: tests of what a store does when its connection is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

CHUNK_BYTES = 65536


@attrs.define(eq=False)
class TcpProxy:
    """Forwards connections to a port of this machine; made by `open_proxy`."""

    target: int
    port: int = 0
    cut_at: bytes | None = None
    """The next bytes of a client that hold these are the last of their connection; the client gets no answer."""
    cut_before: bool = False
    """They do not reach the server either. Otherwise it has answered before the connection is cut."""
    cuts: int = 0
    _flows: bool = True
    _changed: trio.Condition = attrs.field(factory=trio.Condition)
    _links: set[_Link] = attrs.field(factory=set)

    async def freeze(self, *, frozen: bool = True) -> None:
        """From now on nothing comes through, in either direction; nor does anybody hear that it does not."""
        async with self._changed:
            self._flows = not frozen
            self._changed.notify_all()

    async def thaw(self) -> None:
        await self.freeze(frozen=False)

    async def leave_clients(self) -> None:
        """End all connections for the clients only: the server goes on believing in them."""
        for link in self._links.copy():
            link.is_half = True
            await trio.aclose_forcefully(link.client)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve, until cancelled."""
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, self._serve, self.port, host="127.0.0.1"))
            self.port = listener.socket.getsockname()[1]
            task_status.started()

    async def _serve(self, client: trio.SocketStream) -> None:
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            return
        link = _Link(client, server)
        self._links.add(link)
        try:
            async with server, trio.open_nursery() as nursery:
                nursery.start_soon(self._to_server, link)
                nursery.start_soon(self._to_client, link)
        finally:
            self._links.discard(link)

    async def _to_server(self, link: _Link) -> None:
        try:
            while chunk := await link.client.receive_some(CHUNK_BYTES):
                await self._flow()
                if self.cut_at is not None and self.cut_at in chunk:
                    self.cut_at = None
                    self.cuts += 1
                    link.is_muted = True
                    if self.cut_before:
                        break
                await link.server.send_all(chunk)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            if link.is_half:
                return
        await link.close()

    async def _to_client(self, link: _Link) -> None:
        try:
            while chunk := await link.server.receive_some(CHUNK_BYTES):
                await self._flow()
                if link.is_muted:
                    break
                await link.client.send_all(chunk)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        await link.close()

    async def _flow(self) -> None:
        async with self._changed:
            while not self._flows:
                await self._changed.wait()


@attrs.define(eq=False)
class _Link:
    """One connection through the proxy."""

    client: trio.SocketStream
    server: trio.SocketStream
    is_half: bool = False
    """Its client is gone, and the server is not told."""
    is_muted: bool = False
    """Its client hears nothing more, and it ends when the server has answered."""

    async def close(self) -> None:
        await trio.aclose_forcefully(self.client)
        await trio.aclose_forcefully(self.server)


@asynccontextmanager
async def open_proxy(target: int) -> AsyncIterator[TcpProxy]:
    """A proxy before the server at this port, while the context is open."""
    proxy = TcpProxy(target)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
