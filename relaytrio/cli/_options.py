"""What the options of `serve` mean: where to listen, what to advertise, which secret and settings.

No sockets, no tasks. The rule it keeps: without a secret a replica is for this machine only. Who calls: `_serve.py`;
`_demo.py` for stores.
"""

from __future__ import annotations

import ipaddress
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import msgspec

from .._settings import DEFAULTS, Settings
from ._status import UsageFault

SECRET_VARIABLE = "RELAYTRIO_SECRET"
STORE_VARIABLE = "RELAYTRIO_STORE"
URL_VARIABLE = "RELAYTRIO_URL"
DEFAULT_URL = "http://127.0.0.1:8001"


@attrs.frozen
class Listen:
    """Where to listen."""

    host: str
    port: int
    """0: a free one."""

    @classmethod
    def parse(cls, text: str) -> Listen:
        """`HOST:PORT`; an IPv6 address stands in brackets. Raises `UsageFault`."""
        try:
            parts = urlsplit(f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or port is None or parts.netloc != text or "@" in text:
            raise UsageFault(f"--listen is HOST:PORT, such as 127.0.0.1:8001, not {text!r}")
        return cls(host, port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def everywhere(self) -> bool:
        """Whether it listens on all addresses, so that it names none that a peer could dial."""
        return self.host in ("0.0.0.0", "::")

    def url(self, port: int) -> str:
        """Its URL, with the port that was really bound."""
        return f"http://[{self.host}]:{port}" if ":" in self.host else f"http://{self.host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_url(url: str, *, option: str) -> str:
    """The base URL of a replica. Raises `UsageFault`."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment:
        raise UsageFault(f"{option} is a URL such as {DEFAULT_URL}, not {url!r}")
    return url.rstrip("/")


@attrs.frozen
class Secret:
    """The cluster's secret, and what is to be said about how it was given."""

    value: str = attrs.field(repr=False)
    warning: str | None = None


def read_secret(file: Path | None, environ: Mapping[str, str]) -> Secret | None:
    """The secret: of the file where one is named, else of the environment, else none. Raises `UsageFault`.

    Blanks around it are left off: editors end files with a line feed.
    """
    if file is None:
        value = environ.get(SECRET_VARIABLE, "").strip()
        return _long_enough(Secret(value), SECRET_VARIABLE) if value else None
    try:
        value = file.read_text("utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageFault(f"--secret-file {file}: {reason}") from None
    warning = None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        warning = f"{file} can be read by others than its owner; chmod 600 it"
    return _long_enough(Secret(value, warning), f"--secret-file {file}")


def _long_enough(secret: Secret, where: str) -> Secret:
    if len(secret.value.encode()) < 16:
        raise UsageFault(f"{where}: a secret has at least 16 bytes, the same on all replicas")
    return secret


def read_settings(text: str) -> Settings:
    """The engine's settings, with those of a JSON object in the place of their defaults. Raises `UsageFault`."""
    try:
        given: dict[str, Any] = msgspec.json.decode(text, type=dict[str, bool | int | float])
    except msgspec.MsgspecError as error:
        raise UsageFault(f"--settings is a JSON object of numbers and booleans: {error}") from None
    defaults = attrs.asdict(DEFAULTS)
    for name, value in given.items():
        if name not in defaults:
            raise UsageFault(f"--settings: there is no setting {name}")
        kind = type(defaults[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UsageFault(f"--settings: {name} is of the kind {kind.__name__}, not {value!r}")
        if not math.isfinite(value) or value < 0:
            raise UsageFault(f"--settings: {name} is not below 0 and finite, not {value!r}")
    return attrs.evolve(DEFAULTS, **given)


def check_reach(listen: Listen, advertise: str | None, secret: Secret | None) -> None:
    """Refuse what others could reach without a secret, and what they could not dial with one. Raises `UsageFault`."""
    if secret is None:
        far = None if listen.loopback else f"--listen {listen.host}"
        if advertise is not None and not is_loopback(urlsplit(advertise).hostname or ""):
            far = f"--advertise {advertise}"
        if far is not None:
            raise UsageFault(
                f"{far} is not of this machine alone: that needs a secret (--secret-file, or {SECRET_VARIABLE})"
            )
    elif advertise is None and listen.everywhere:
        raise UsageFault(f"--listen {listen.host} names no address that others can dial: give --advertise")
