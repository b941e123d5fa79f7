"""What the options of `serve` mean, and what is refused."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from relaytrio._settings import DEFAULTS
from relaytrio.cli._options import (
    Listen,
    Secret,
    check_reach,
    checked_url,
    is_loopback,
    read_secret,
    read_settings,
)
from relaytrio.cli._status import UsageFault

LONG = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:8001", "127.0.0.1", 8001), ("[::1]:0", "::1", 0), ("localhost:80", "localhost", 80)],
)
def test_listen(text: str, host: str, port: int) -> None:
    """HOST:PORT is taken apart; brackets belong to an IPv6 address, not to the host."""
    assert Listen(host, port) == Listen.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", ":8001", "8001", "127.0.0.1", "::1:80", "h:x", "h:70000", "http://h:1", "h:1/x", "u@h:1", "h:1?q", "h:-1"],
)
def test_listen_refused(text: str) -> None:
    """What is no HOST:PORT is the person's mistake, named by its option."""
    with pytest.raises(UsageFault, match="--listen is HOST:PORT"):
        Listen.parse(text)


def test_listen_url() -> None:
    """The URL has the port that was bound, and brackets where an address needs them."""
    assert Listen("127.0.0.1", 0).url(4000) == "http://127.0.0.1:4000"
    assert Listen("::1", 0).url(4000) == "http://[::1]:4000"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1"])
def test_loopback(host: str) -> None:
    """All names and addresses of this machine alone are loopback."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.5", "localhost.example.org", "127.0.0.1.example.org"])
def test_not_loopback(host: str) -> None:
    """What others could reach, or what is only named alike, is not loopback."""
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("listen", "advertise"),
    [("0.0.0.0:8001", None), ("10.0.0.5:8001", None), ("[::]:8001", None), ("127.0.0.1:8001", "http://10.0.0.5:8001")],
)
def test_without_a_secret_only_this_machine(listen: str, advertise: str | None) -> None:
    """Without a secret a replica that others could reach is refused."""
    with pytest.raises(UsageFault, match="needs a secret"):
        check_reach(Listen.parse(listen), advertise, None)


def test_reach_allowed() -> None:
    """Loopback needs no secret, and with one any address that can be named is fine."""
    check_reach(Listen("127.0.0.1", 8001), None, None)
    check_reach(Listen("localhost", 8001), "http://localhost:8001", None)
    check_reach(Listen("10.0.0.5", 8001), None, Secret(LONG))
    check_reach(Listen("0.0.0.0", 8001), "http://10.0.0.5:8001", Secret(LONG))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_everywhere_is_no_address(host: str) -> None:
    """Who listens everywhere has to say where peers find it."""
    with pytest.raises(UsageFault, match="give --advertise"):
        check_reach(Listen(host, 8001), None, Secret(LONG))


@pytest.mark.parametrize(
    "url", ["", "h", "ftp://h", "http://", "http://h:0", "http://h:x", "http://h?q=1", "http://h#f"]
)
def test_url_refused(url: str) -> None:
    """What cannot be the base of a replica's paths is refused, with the option's name."""
    with pytest.raises(UsageFault, match="--url is a URL"):
        checked_url(url, option="--url")


def test_url() -> None:
    """A URL may have a path; the slash at its end is left off."""
    assert checked_url("https://h:8/chat/", option="--url") == "https://h:8/chat"


def test_secret_of_the_environment() -> None:
    """The environment's secret counts where no file is named; an empty one is none."""
    assert Secret(LONG) == read_secret(None, {"RELAYTRIO_SECRET": f" {LONG}\n"})
    assert read_secret(None, {"RELAYTRIO_SECRET": ""}) is None
    assert read_secret(None, {}) is None


def test_secret_of_a_file(tmp_path: Path) -> None:
    """A file outranks the environment; the line feed that editors add is no part of it."""
    file = tmp_path / "secret"
    file.write_text(f"{LONG}\n")
    file.chmod(0o600)
    assert Secret(LONG) == read_secret(file, {"RELAYTRIO_SECRET": "another secret, long enough"})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_secret_that_others_can_read(tmp_path: Path, mode: int) -> None:
    """A secret that others can read is taken, with a warning that says what to do."""
    file = tmp_path / "secret"
    file.write_text(LONG)
    file.chmod(mode)
    secret = read_secret(file, {})
    assert secret is not None
    assert secret.warning is not None
    assert "chmod 600" in secret.warning


def test_secret_is_never_shown() -> None:
    """A secret does not appear where the object is printed."""
    assert LONG not in repr(Secret(LONG))


@pytest.mark.parametrize("content", [b"", b"too short\n", b"\xff" * 20])
def test_bad_secret_file(tmp_path: Path, content: bytes) -> None:
    """An empty, short or binary secret file is refused by its name, without its content."""
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(UsageFault) as caught:
        read_secret(file, {})
    assert str(file) in str(caught.value)
    assert "too short" not in str(caught.value).replace("--secret-file", "")


def test_missing_secret_file(tmp_path: Path) -> None:
    """A secret file that is not there is the person's mistake, not a traceback."""
    with pytest.raises(UsageFault, match="No such file"):
        read_secret(tmp_path / "none", {})


def test_short_secret_of_the_environment() -> None:
    """A short secret in the environment is refused by the variable's name."""
    with pytest.raises(UsageFault, match="RELAYTRIO_SECRET"):
        read_secret(None, {"RELAYTRIO_SECRET": "short"})


def test_settings() -> None:
    """What is named stands in the place of its default; all else stays as it is."""
    given = read_settings('{"grace_seconds": 60, "replica_locks": false, "max_runs": 7}')
    assert attrs.evolve(DEFAULTS, grace_seconds=60, replica_locks=False, max_runs=7) == given
    assert DEFAULTS == read_settings("{}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grace_seconds=60", "JSON"),
        ("[60]", "JSON"),
        ('{"grace": 60}', "no setting grace"),
        ('{"grace_seconds": "60"}', "JSON"),
        ('{"grace_seconds": true}', "grace_seconds"),
        ('{"grace_seconds": -1}', "grace_seconds"),
        ('{"max_runs": 1.5}', "max_runs"),
        ('{"replica_locks": 0}', "replica_locks"),
    ],
)
def test_bad_settings(text: str, said: str) -> None:
    """What names no setting, or gives it what it cannot be, is refused in one line."""
    with pytest.raises(UsageFault, match=said) as caught:
        read_settings(text)
    assert "\n" not in str(caught.value)
