"""How commands reach replicas: the option `--url`, and the client made of it. Who calls: `send`, `tail`."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from cyclopts import Parameter

from ..client import ChatClient
from ._options import DEFAULT_URL, URL_VARIABLE, checked_url

Urls: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(name="--url", env_var=URL_VARIABLE, negative="", help="A replica's URL; more than one may be given."),
]
DEFAULT_URLS: Final = (DEFAULT_URL,)


def open_client(urls: tuple[str, ...]) -> ChatClient:
    """A client of these replicas. Raises `UsageFault`."""
    return ChatClient([checked_url(url, option="--url") for url in urls])
