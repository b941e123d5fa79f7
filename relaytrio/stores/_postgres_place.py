"""What a `postgresql:` URL names: a database, a schema in it, and how to reach both. Needs no driver.

Options in the URL that are ours (`schema`, `pool_size`) are taken out of it; what is left is for libpq, several hosts
included. Nothing that is shown of a place holds a password or a user. Who calls: `_open.py`, whoever needs a
connection to a store's database.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import attrs

from .._errors import ConfigurationError

SCHEMA = "relaytrio"
POOL_SIZE = 8
"""Connections of one replica that run its transactions. Each is used for about a millisecond at a time, and a server
with its usual limit of 100 still serves several replicas."""
_SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
"""What needs no quoting anywhere, is not cut off by the server, and is none of its own."""


@attrs.frozen
class PostgresPlace:
    """Where a store is."""

    conninfo: str = attrs.field(repr=False)
    """For libpq: the URL without our options, with its password."""
    schema: str
    pool_size: int
    url: str
    """Without user, password and libpq's options; what errors and logs name."""


def parse_postgres_url(url: str) -> PostgresPlace:
    """The place that a URL names. Raises `ConfigurationError`, which names no password; whether libpq understands the
    rest is found when it is used."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError("the store's url is malformed") from None
    shown = f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.fragment:
        raise ConfigurationError(f"the store's url {shown} has a fragment: a # in a password is written %23")
    ours = {"schema": SCHEMA, "pool_size": str(POOL_SIZE)}
    rest = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ours:
            ours[name] = value
        else:
            rest.append((name, value))
    schema = ours["schema"]
    if not _SCHEMA_NAME.fullmatch(schema):
        raise ConfigurationError(
            f"the store's url {shown}: schema must be 1 to 63 of a-z, 0-9 and _, without pg_ or a digit in front"
        )
    return PostgresPlace(
        conninfo=_without_ours(parts, rest),
        schema=schema,
        pool_size=_pool_size(shown, ours["pool_size"]),
        url=shown if schema == SCHEMA else f"{shown}?schema={schema}",
    )


def _pool_size(shown: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text):
        raise ConfigurationError(f"the store's url {shown}: pool_size must be a number from 1 to 999")
    return int(text)


def _without_ours(parts: SplitResult, rest: list[tuple[str, str]]) -> str:
    return parts._replace(scheme="postgresql", query=urlencode(rest)).geturl()
