"""Notifiers behind the PubSub protocol."""

from ._base import Hint as Hint
from ._base import PubSub as PubSub
from ._derive import derive_pubsub as derive_pubsub
from .memory import MemoryPubSub as MemoryPubSub
from .sqlite import SqlitePubSub as SqlitePubSub
from .sqlite import open_sqlite_pubsub as open_sqlite_pubsub
