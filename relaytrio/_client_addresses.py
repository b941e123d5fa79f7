"""The addresses of replicas that a client may use, and which one is next.

Pure. Who calls: `ChatClient` and its streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._errors import ConfigurationError
from .transport._address import PARTS_PATH, Address, BadAddress


class Addresses:
    """Base URLs in a ring."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(url.rstrip("/") for url in urls)
        if not self.urls:
            raise ConfigurationError("urls: at least one address of a replica")
        self._parsed = {url: _parsed(url) for url in self.urls}
        self._index = 0
        self._preferred: int | None = None

    @property
    def current(self) -> str:
        """The one to use now."""
        return self.urls[self._index]

    @property
    def has_preferred(self) -> bool:
        """Whether `prefer` has named the next one."""
        return self._preferred is not None

    def place(self, url: str) -> tuple[Address, str]:
        """Where to connect for an address, and the path below which the app is."""
        address = self._parsed[url]
        return address, address.resource.removesuffix(PARTS_PATH)

    def go_on(self) -> None:
        """Use the preferred one, else the next one; the same if there is only one."""
        self._index = (self._index + 1) % len(self.urls) if self._preferred is None else self._preferred
        self._preferred = None

    def prefer(self, url: str) -> None:
        """Let this be the next one. Raises `ConfigurationError` if it is none of these."""
        if url.rstrip("/") not in self.urls:
            raise ConfigurationError("prefer: one of the client's own urls")
        self._preferred = self.urls.index(url.rstrip("/"))

    def copy(self) -> Addresses:
        """The same addresses, with a place of their own."""
        copied = Addresses(self.urls)
        copied._index = self._index
        return copied


def _parsed(url: str) -> Address:
    try:
        return Address.parse(url)
    except BadAddress as error:
        raise ConfigurationError(f"urls: {error}") from None
