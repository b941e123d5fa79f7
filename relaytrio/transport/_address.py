"""What a replica's address says: where to connect, and what to ask for there. Pure.

An address is an `http` or `https` URL that peers can reach, with a path if the app is mounted below one.

Who calls: the dialer.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import attrs

PARTS_PATH = "/relay/v1/parts"
_PORTS = {"http": 80, "https": 443}
_PATH = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+,;=:@/]*")
_HOST = re.compile(r"[A-Za-z0-9\-._:]+")


class BadAddress(ValueError):
    """An address that cannot be dialed. The text says why, and does not hold it: there may be a password inside."""


@attrs.frozen
class Address:
    """Where a replica's parts endpoint is."""

    host: str
    port: int
    tls: bool
    authority: str
    """Host and port as the `Host` header has them."""
    resource: str
    """The path of the parts endpoint."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """The parts endpoint below the URL that a replica advertises. Raises `BadAddress`."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise BadAddress("its address is no URL") from None
        if parts.scheme not in _PORTS:
            raise BadAddress("its address is no http or https URL")
        if not host or not _HOST.fullmatch(host) or port == 0:
            raise BadAddress("its address names no host and port that can be dialed")
        if "@" in parts.netloc or "?" in url or "#" in url:
            raise BadAddress("its address has more than a host, a port and a path")
        if not _PATH.fullmatch(parts.path):
            raise BadAddress("the path of its address holds what is to be percent-encoded")
        resource = parts.path.rstrip("/") + PARTS_PATH
        return cls(host, port or _PORTS[parts.scheme], parts.scheme == "https", parts.netloc, resource)
