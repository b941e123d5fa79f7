"""Databases behind the Store protocol."""

from ._base import Candidate as Candidate
from ._base import Fingerprint as Fingerprint
from ._base import IdempotencyKey as IdempotencyKey
from ._base import Outcome as Outcome
from ._base import OwnedChat as OwnedChat
from ._base import Replica as Replica
from ._base import Store as Store
from ._base import View as View
from ._open import open_store as open_store
from .memory import MemoryStore as MemoryStore
from .sqlite import SqliteStore as SqliteStore
from .sqlite import open_sqlite_store as open_sqlite_store
