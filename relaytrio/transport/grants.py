"""Grants: how one replica proves to another that the cluster's secret is behind a request.

A grant is `<expiry>.<mac>`: the second at which its life ends, and HMAC-SHA256 over its kind, that second and the
fields that it is for. The kind is part of what is signed, so that a grant for a connection is none for a select; every
field is preceded by its length, so that no two lists of fields are signed alike.

A connection grant is for (source, target), a select grant for (chat, source, target). Both are checked when they come
and never again: the replica in front has authorised the viewer.

Pure: the wall-clock time comes in. Who calls: the dialer (make), the parts endpoint (check).
"""

from __future__ import annotations

import hashlib
import hmac
import re

from .._errors import ConfigurationError, RelaytrioError

GRANT_SECONDS = 120
"""The life of a grant: it is made for one handshake or select, and used at once."""
SKEW_SECONDS = 60
"""How far the clocks of two replicas may be apart, either way."""
SOURCE_HEADER = "X-Relaytrio-Source-Replica"
GRANT_HEADER = "X-Relaytrio-Grant"
"""Not `Authorization`: that one may be the viewer's, forwarded."""

_GRANT = re.compile(r"(?P<expiry>[0-9]{1,15})\.(?P<mac>[0-9a-f]{64})", re.ASCII)


class InvalidGrant(RelaytrioError):
    """A request without a good grant: 401, or `ended refused`. Its text says why and holds nothing of the grant."""


def make_connection_grant(secret: bytes, *, source: str, target: str, now: float) -> str:
    """The grant for a handshake from replica `source` to replica `target`; `now` in seconds of the wall clock."""
    return _make(secret, "connection", (source, target), now)


def check_connection_grant(secret: bytes, grant: str, *, source: str, target: str, now: float) -> None:
    """Raises `InvalidGrant` unless the grant is good for a handshake at `now`."""
    _check(secret, grant, "connection", (source, target), now)


def make_select_grant(secret: bytes, *, chat_id: str, source: str, target: str, now: float) -> str:
    """The grant for a select of an episode of that chat; `now` in seconds of the wall clock."""
    return _make(secret, "select", (chat_id, source, target), now)


def check_select_grant(secret: bytes, grant: str, *, chat_id: str, source: str, target: str, now: float) -> None:
    """Raises `InvalidGrant` unless the grant is good for a select in that chat at `now`."""
    _check(secret, grant, "select", (chat_id, source, target), now)


def _make(secret: bytes, kind: str, fields: tuple[str, ...], now: float) -> str:
    expiry = str(int(now) + GRANT_SECONDS)
    return f"{expiry}.{_mac(secret, kind, expiry, *fields)}"


def _check(secret: bytes, grant: str, kind: str, fields: tuple[str, ...], now: float) -> None:
    found = _GRANT.fullmatch(grant)
    if found is None:
        raise InvalidGrant("the grant is malformed")
    if not hmac.compare_digest(found["mac"], _mac(secret, kind, found["expiry"], *fields)):
        raise InvalidGrant("the grant was not made for this request, or with another secret")
    expiry = int(found["expiry"])
    if now > expiry + SKEW_SECONDS:
        raise InvalidGrant("the grant has expired")
    if now < expiry - GRANT_SECONDS - SKEW_SECONDS:
        raise InvalidGrant("the grant is from the future: compare the replicas' clocks")


def _mac(secret: bytes, *fields: str) -> str:
    if not secret:
        # With an empty key, anybody could make grants.
        raise ConfigurationError("the cluster's secret must not be empty")
    mac = hmac.new(secret, b"relaytrio grant 1", hashlib.sha256)
    for field in fields:
        encoded = field.encode("utf-8", "surrogatepass")
        mac.update(len(encoded).to_bytes(8, "big") + encoded)
    return mac.hexdigest()
