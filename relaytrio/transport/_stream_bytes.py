"""The bytes of a leg, as they go and come over its stream.

Over a plain socket each of them takes one call of the system: what a stream does around it is a good part of what a
lone token costs at either end. All other streams (TLS, those of tests) are used as they are. Must not know: frames. Who
calls: `_stream_frames.py`.
"""

from __future__ import annotations

import os

import trio


class StreamBytes:
    """Reads and writes a stream. One task reads and one writes; closing is for whoever has the stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._socket: trio.socket.SocketType | None = None
        """If the stream is that and nothing else."""
        if isinstance(stream, trio.SocketStream) and os.name == "posix":
            self._socket = stream.socket

    async def receive_into(self, space: memoryview) -> int:
        """Put there what has come, when there is something; how many bytes. 0: nothing more will come. A checkpoint.

        Raises `trio.BrokenResourceError` when the connection is lost, `trio.ClosedResourceError` when it was closed.
        """
        if self._socket is None:
            data = await self._stream.receive_some(len(space))
            space[: len(data)] = data
            return len(data)
        while True:
            await trio.lowlevel.wait_readable(_descriptor(self._socket))
            try:
                # Asked for anew: it may have been closed since, and its number may be another's.
                return os.readv(_descriptor(self._socket), (space,))
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(f"the socket is lost: {error}") from error

    async def send(self, data: bytes) -> None:
        """Send all of it; if that is cancelled, perhaps only some. A checkpoint. Raises as `receive_into` does."""
        if self._socket is None:
            await self._stream.send_all(data)
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        sent = self.send_now(data)
        if sent == len(data):
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            with memoryview(data) as whole:
                await self._stream.send_all(whole[sent:])

    @property
    def is_prompt(self) -> bool:
        """Whether it can send without waiting."""
        return self._socket is not None

    def send_now(self, data: bytes) -> int:
        """Send as much as the system takes now; how many bytes that is. Raises as `receive_into` does."""
        assert self._socket is not None
        try:
            return os.write(_descriptor(self._socket), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(f"the socket is lost: {error}") from error


def _descriptor(plain: trio.socket.SocketType) -> int:
    descriptor = plain.fileno()
    if descriptor < 0:
        raise trio.ClosedResourceError("the socket was closed")
    return descriptor
