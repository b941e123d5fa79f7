"""What a `postgresql:` URL names: a database, a schema in it, and how to reach both. Needs no driver.

Options in the URL that are ours (`schema`, `pool_size`) are taken out of it; what is left, several hosts included, is
for libpq, letter by letter: to it, a + is no blank. Nothing that is shown of a place holds a password or a user. Who
calls: `_open.py`, whoever needs a connection to a store's database.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from .._errors import ConfigurationError

SCHEMA = "relaytrio"
POOL_SIZE = 8
"""Connections of one replica that run its transactions. Each is used for about a millisecond at a time, and a server
with its usual limit of 100 still serves several replicas."""
_SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
"""What needs no quoting anywhere, is not cut off by the server, and is none of its own."""


_HOST = re.compile(r"(\[[^]]*\]|[^][:]*)(:[0-9]*)?")


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
    _check_shape(parts)
    shown = f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"
    ours = {"schema": SCHEMA, "pool_size": str(POOL_SIZE)}
    rest = []
    for option in filter(None, parts.query.split("&")):
        name, _, value = option.partition("=")
        if name in ours:
            ours[name] = unquote(value)
        else:
            rest.append(option)
    schema = ours["schema"]
    if not _SCHEMA_NAME.fullmatch(schema):
        raise ConfigurationError(
            f"the store's url {shown}: schema must be 1 to 63 of a-z, 0-9 and _, without pg_ or a digit in front"
        )
    return PostgresPlace(
        conninfo=f"postgresql://{parts.netloc}{parts.path}" + (f"?{'&'.join(rest)}" if rest else ""),
        schema=schema,
        pool_size=_pool_size(shown, ours["pool_size"]),
        url=shown if schema == SCHEMA else f"{shown}?schema={schema}",
    )


def _check_shape(parts: SplitResult) -> None:
    """A password that was not encoded ends where its first special character stands, and its rest looks like a host, a
    path or an option. Such a url is refused without a word of it. Raises `ConfigurationError`."""
    user, _, hosts = parts.netloc.rpartition("@")
    fine = (
        "@" not in user
        and "@" not in parts.path
        and not parts.fragment
        and all(_HOST.fullmatch(host) for host in hosts.split(","))
        and all("@" not in option.partition("=")[0] for option in parts.query.split("&"))
    )
    if not fine:
        raise ConfigurationError(
            "the store's url is not of the form postgresql://user:password@host:5432/database?option=value: in a"
            " password, / ? # @ and % are written %2F %3F %23 %40 and %25"
        )


def _pool_size(shown: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text):
        raise ConfigurationError(f"the store's url {shown}: pool_size must be a number from 1 to 999")
    return int(text)
