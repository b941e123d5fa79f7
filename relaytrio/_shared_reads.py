"""One read of the store for all viewers of a chat that ask the same at the same time.

A viewer who has a reason to look needs a read that began after that reason, but not one of its own: it takes part in
one that another viewer has begun since. A reason is noted as the number of reads that had begun by then. Whoever leads
a read and is cancelled leaves it to those who take part to begin another.

A view is held by several viewers then: nobody changes what is in it.

Must not know: what a reason is. Who calls: watch (`_subscription.py`).
"""

from __future__ import annotations

from ._bounded import within
from ._errors import ChatNotFound, StoreError
from ._protocol.events import MessageRef
from ._wakeup import Flag
from .stores._base import Store, View


class _Read:
    """One read under way."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ended = Flag()
        self.view: View | None = None
        self.error: Exception | None = None


class SharedReads:
    """The reads of one replica."""

    def __init__(self, store: Store, seconds: float) -> None:
        self.begun = 0
        """How many there were. Noted as a reason to look, it asks for a read that begins after now."""
        self._store = store
        self._seconds = seconds
        self._under_way: dict[tuple[str, MessageRef], _Read] = {}

    async def read(self, chat_id: str, base: MessageRef, since: int) -> View:
        """What a read says that began when more than `since` reads had. A checkpoint.

        Raises `ChatNotFound`, and `StoreUnavailable`, also when it takes longer than `store_read_seconds`.
        """
        key = (chat_id, base)
        while True:
            read = self._under_way.get(key)
            if read is None or read.number <= since:
                return await self._lead(key)
            await read.ended.wait()
            if read.view is not None:
                return read.view
            if read.error is not None:
                raise _another(read.error)

    async def _lead(self, key: tuple[str, MessageRef]) -> View:
        self.begun += 1
        read = self._under_way[key] = _Read(self.begun)
        try:
            read.view = await within(self._seconds, self._store.read_view(*key))
        except Exception as error:
            read.error = error
            raise
        finally:
            if self._under_way.get(key) is read:
                del self._under_way[key]
            read.ended.set()
        return read.view


def _another(error: Exception) -> Exception:
    """The same for another task: an exception has one traceback."""
    if not isinstance(error, StoreError | ChatNotFound):
        return error
    copied = type(error)(*error.args)
    copied.__cause__ = error.__cause__
    return copied
