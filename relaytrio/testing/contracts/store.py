"""The contract of a `Store`: whole transactions, exact views, idempotency, and who owns what."""

from __future__ import annotations

from ._store_owners import StoreOwners
from ._store_reads import StoreReads
from ._store_writes import StoreWrites


class StoreContract(StoreWrites, StoreReads, StoreOwners):
    """Subclass it as `Test...`, and give `open`; and `open_again` if several processes can share the database."""
