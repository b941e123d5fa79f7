"""Grants between replicas: what is accepted, for how long, and that nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaytrio._errors import ConfigurationError
from relaytrio.transport.grants import (
    GRANT_SECONDS,
    SKEW_SECONDS,
    InvalidGrant,
    check_connection_grant,
    check_select_grant,
    make_connection_grant,
    make_select_grant,
)

SECRET = b"the cluster's secret"
NOW = 1_700_000_000.25


def connection_grant(now: float = NOW) -> str:
    return make_connection_grant(SECRET, source="a", target="b", now=now)


def check(grant: str, now: float = NOW) -> None:
    check_connection_grant(SECRET, grant, source="a", target="b", now=now)


def test_a_connection_grant_is_good_for_its_replicas() -> None:
    """What was made for a source and a target is accepted there."""
    check(connection_grant())


def test_a_select_grant_is_good_for_its_chat() -> None:
    """What was made for a chat, a source and a target is accepted there."""
    grant = make_select_grant(SECRET, chat_id="c", source="a", target="b", now=NOW)
    check_select_grant(SECRET, grant, chat_id="c", source="a", target="b", now=NOW)


@pytest.mark.parametrize("late_by", [-SKEW_SECONDS, 0, GRANT_SECONDS, GRANT_SECONDS + SKEW_SECONDS - 1])
def test_a_grant_lives_two_minutes_give_or_take_the_skew(late_by: float) -> None:
    """120 seconds, and 60 of skew either way."""
    check(connection_grant(), NOW + late_by)


@pytest.mark.parametrize(
    ("late_by", "why"),
    [(GRANT_SECONDS + SKEW_SECONDS + 1, "expired"), (-SKEW_SECONDS - 1, "future"), (1e9, "expired"), (-1e9, "future")],
)
def test_a_grant_is_refused_outside_of_its_life(late_by: float, why: str) -> None:
    """Neither an old grant nor one from the future is accepted."""
    with pytest.raises(InvalidGrant, match=why):
        check(connection_grant(), NOW + late_by)


@pytest.mark.parametrize(
    ("secret", "source", "target"),
    [(b"another", "a", "b"), (SECRET, "x", "b"), (SECRET, "a", "x"), (SECRET, "b", "a"), (SECRET, "ab", "")],
)
def test_a_connection_grant_is_good_for_nothing_else(secret: bytes, source: str, target: str) -> None:
    """Another secret, source or target, or the fields cut elsewhere: refused."""
    with pytest.raises(InvalidGrant, match="not made for this"):
        check_connection_grant(secret, connection_grant(), source=source, target=target, now=NOW)


@pytest.mark.parametrize(
    ("chat_id", "source", "target"), [("x", "a", "b"), ("c", "x", "b"), ("c", "a", "x"), ("ca", "", "b")]
)
def test_a_select_grant_is_good_for_nothing_else(chat_id: str, source: str, target: str) -> None:
    """Another chat, source or target, or the fields cut elsewhere: refused."""
    grant = make_select_grant(SECRET, chat_id="c", source="a", target="b", now=NOW)
    with pytest.raises(InvalidGrant, match="not made for this"):
        check_select_grant(SECRET, grant, chat_id=chat_id, source=source, target=target, now=NOW)


def test_a_grant_of_one_kind_is_none_of_the_other() -> None:
    """A grant for a connection opens no chat, and the other way round."""
    with pytest.raises(InvalidGrant):
        check_select_grant(SECRET, connection_grant(), chat_id="", source="a", target="b", now=NOW)
    grant = make_select_grant(SECRET, chat_id="", source="a", target="b", now=NOW)
    with pytest.raises(InvalidGrant):
        check(grant)


def test_the_expiry_is_part_of_what_is_signed() -> None:
    """Nobody can lengthen a life."""
    expiry, mac = connection_grant().split(".")
    with pytest.raises(InvalidGrant, match="not made for this"):
        check(f"{int(expiry) + 1}.{mac}")


@pytest.mark.parametrize(
    "grant",
    [
        "",
        ".",
        "1.",
        "1.x",
        "-1." + "0" * 64,
        "9" * 5000 + "." + "0" * 64,
        "\u0661." + "0" * 64,
        "\ud800",
        "1." + "é" * 64,
    ],
)
def test_a_malformed_grant_is_refused(grant: str) -> None:
    """Whatever comes in place of a grant is refused and crashes nothing."""
    with pytest.raises(InvalidGrant):
        check(grant)


@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1"))))
def test_no_text_is_a_grant_by_chance(grant: str) -> None:
    """Any text is refused as a grant of either kind."""
    with pytest.raises(InvalidGrant):
        check(grant)
    with pytest.raises(InvalidGrant):
        check_select_grant(SECRET, grant, chat_id="c", source="a", target="b", now=NOW)


@given(st.text(), st.text(), st.text())
def test_any_ids_can_be_granted(chat_id: str, source: str, target: str) -> None:
    """Ids of any characters make a grant that is good for them."""
    grant = make_select_grant(SECRET, chat_id=chat_id, source=source, target=target, now=NOW)
    check_select_grant(SECRET, grant, chat_id=chat_id, source=source, target=target, now=NOW)


def test_an_empty_secret_makes_no_grants() -> None:
    """With an empty key anybody could make grants: that is a mistake of the program."""
    with pytest.raises(ConfigurationError, match="secret"):
        make_connection_grant(b"", source="a", target="b", now=NOW)


def test_a_refusal_holds_nothing_of_the_grant() -> None:
    """Errors name a reason, never the token."""
    grant = connection_grant()
    with pytest.raises(InvalidGrant) as refused:
        check_connection_grant(SECRET, grant, source="a", target="x", now=NOW)
    assert grant.split(".")[1] not in str(refused.value)
