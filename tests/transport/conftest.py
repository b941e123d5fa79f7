"""What several files here set up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from relaytrio._parts import PartLogs
from relaytrio._settings import Settings
from tests.transport.endpoint_peer import Chats, Endpoint, Peer


@pytest.fixture
def make_endpoint() -> Callable[..., Endpoint]:
    def make(**settings: Any) -> Endpoint:
        made = Settings(**settings)
        return Endpoint(PartLogs(made, clock=lambda: 0.0), Chats(), Peer(), made)

    return make


@pytest.fixture
def endpoint(make_endpoint: Callable[..., Endpoint]) -> Endpoint:
    return make_endpoint()
