"""The PostgreSQL store keeps the contract, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from relaytrio._settings import Settings
from relaytrio.stores import Store, open_store
from relaytrio.testing.contracts import StoreContract


@pytest.mark.realworld
class TestContract(StoreContract):
    """The store contract, with a second store on the same database."""

    @pytest.fixture(autouse=True)
    def _place(self, postgres_url: str) -> None:
        self.postgres_url = postgres_url

    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Store]:
        async with open_store(self.postgres_url, settings=settings) as store:
            yield store

    def open_again(self, store: Store, settings: Settings) -> AbstractAsyncContextManager[Store]:
        return self.open(settings)
