"""What every store, notifier and dialer has to do, as tests. An author of one runs them with a short subclass:

    class TestMyStore(StoreContract):
        @asynccontextmanager
        async def open(self, settings: Settings) -> AsyncIterator[Store]:
            async with open_my_store(..., settings=settings) as store:
                yield store

They need pytest and pytest-trio.
"""

import pytest

_MODULES = ("_kit", "_store_owners", "_store_reads", "_store_writes", "dialer", "pubsub")
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _MODULES))

from .dialer import DialerAndPeer as DialerAndPeer  # noqa: E402
from .dialer import DialerContract as DialerContract  # noqa: E402
from .dialer import ServedWorker as ServedWorker  # noqa: E402
from .pubsub import PubSubContract as PubSubContract  # noqa: E402
from .store import StoreContract as StoreContract  # noqa: E402
