"""Selects at the parts endpoint: one after the other, of logs that are not here, with bad grants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaytrio._errors import ChatNotFound, StoreUnavailable
from relaytrio._parts import PartLogs
from relaytrio._protocol.burst import join
from relaytrio._protocol.events import Episode
from relaytrio._protocol.peer_wire import Ended, Heartbeat, Release, Select
from relaytrio._settings import Settings
from relaytrio.transport._selections import Selections
from relaytrio.transport.grants import (
    GRANT_HEADER,
    SOURCE_HEADER,
    InvalidGrant,
    make_connection_grant,
    make_select_grant,
)
from relaytrio.transport.parts_endpoint import authorize_peer
from tests.transport.endpoint_peer import (
    EPISODE,
    HERE,
    NEXT,
    NOW,
    PEER,
    SECRET,
    Endpoint,
    append,
    burst,
    leg_of,
    rows,
    sealed,
)


async def test_a_select_replaces_an_unsealed_one_at_once(endpoint: Endpoint) -> None:
    """Rows of the former episode stop."""
    former = endpoint.log(1)
    endpoint.log(1, 2, episode=NEXT)
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == burst(1)
        peer.select(NEXT)
        assert await peer.next() == burst(1, 2, episode=NEXT)
        append(former, 2)
        former.seal()
        await peer.nothing_comes()
        assert endpoint.watched == 1


async def test_a_select_takes_effect_after_a_sealed_log_was_sent_to_its_end(
    make_endpoint: Callable[..., Endpoint],
) -> None:
    """The last parts of the former episode, and its end, go out first."""
    endpoint = make_endpoint(burst_bytes=1)
    endpoint.log(1, 2, seal=True)
    endpoint.log(1, episode=NEXT)
    async with endpoint.running() as peer:
        peer.select()
        peer.select(NEXT)
        got = [await peer.next() for _ in range(4)]
    assert got == [burst(1), burst(2), sealed(2), burst(1, episode=NEXT)]


async def test_a_log_sealed_after_the_next_select_came_is_left(endpoint: Endpoint) -> None:
    """It counts whether the former log was sealed when the select came."""
    former = endpoint.log()
    endpoint.log(1, episode=NEXT)
    async with endpoint.running() as peer:
        peer.select()
        peer.select(NEXT)
        await wait_all_tasks_blocked()
        append(former, 1)
        former.seal()
        assert await peer.next() == burst(1, episode=NEXT)
        await peer.nothing_comes()


async def test_each_sealed_episode_of_a_row_of_selects_goes_out(make_endpoint: Callable[..., Endpoint]) -> None:
    """The rule holds between any two selects, however quickly they come."""
    endpoint = make_endpoint(burst_bytes=1)
    last = Episode(6, 1, "run0")
    for episode in (EPISODE, NEXT, last):
        endpoint.log(1, episode=episode, seal=True)
    async with endpoint.running() as peer:
        for episode in (EPISODE, NEXT, last):
            peer.select(episode)
        got = [await peer.next() for _ in range(6)]
    expected = [(burst(1, episode=episode), sealed(1, episode)) for episode in (EPISODE, NEXT, last)]
    assert got == [frame for pair in expected for frame in pair]


async def test_the_same_episode_again_is_a_step_back(make_endpoint: Callable[..., Endpoint]) -> None:
    """Rows that got lost are sent anew at once, though the log is sealed."""
    endpoint = make_endpoint(burst_bytes=1)
    endpoint.log(1, 2, 3, seal=True)
    async with endpoint.running() as peer:
        peer.select()
        assert [await peer.next(), await peer.next()] == [burst(1), burst(2)]
        await wait_all_tasks_blocked()  # the frame with row 3 is being sent
        peer.select(after_seq=1)
        await wait_all_tasks_blocked()  # it has been read
        got = [await peer.next() for _ in range(4)]
    assert got == [burst(3), burst(2), burst(3), sealed(3)]


async def test_a_released_leg_gets_nothing_more(endpoint: Endpoint) -> None:
    """Its log is no longer watched; its number can be used again."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        await peer.nothing_comes()
        peer.say(Release(1))
        await wait_all_tasks_blocked()
        assert endpoint.watched == 0
        append(log, 1)
        await peer.nothing_comes()
        peer.select()
        assert await peer.next() == burst(1)


async def test_a_release_of_an_unknown_leg_is_nothing(endpoint: Endpoint) -> None:
    """Releases and ends may cross."""
    async with endpoint.running() as peer:
        peer.say(Release(7))
        await peer.nothing_comes()
        assert peer.closed == 0


async def test_a_log_that_is_not_there_yet_is_waited_for(endpoint: Endpoint) -> None:
    """Owned here, and the current episode: its rows come when they are made. The chat is read once."""
    endpoint.chats.owned_by(HERE)
    async with endpoint.running() as peer:
        peer.select()
        await peer.nothing_comes()
        log = endpoint.log()
        await peer.nothing_comes()
        append(log, 1)
        assert await peer.next() == burst(1)
    assert endpoint.chats.reads == 1


async def test_a_later_attempt_of_the_current_run_is_waited_for(endpoint: Endpoint) -> None:
    """The store may be read before the transition that the other replica has heard of is in it."""
    endpoint.chats.owned_by(HERE, EPISODE)
    async with endpoint.running() as peer:
        peer.select(NEXT)
        await peer.nothing_comes()
        endpoint.log(1, episode=NEXT)
        assert await peer.next() == burst(1, episode=NEXT)


@pytest.mark.parametrize("past", [Episode(5, 1, "run0"), Episode(4, 9, "run0"), Episode(5, 2, "older")])
async def test_a_past_episode_is_over(endpoint: Endpoint, past: Episode) -> None:
    """Owned here, but of an earlier attempt, history or run: nothing will come of it."""
    endpoint.chats.owned_by(HERE)
    async with endpoint.running() as peer:
        peer.select(past, after_seq=4)
        assert await peer.next() == Ended(1, past, "over", 4)
        assert endpoint.watched == 0


@pytest.mark.parametrize("owner", ["replica-c", None])
async def test_a_chat_that_is_not_owned_here_ends_with_its_owner(endpoint: Endpoint, owner: str | None) -> None:
    """`not_owner` names the owner, if there is one."""
    endpoint.chats.owned_by(owner)
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == Ended(1, EPISODE, "not_owner", 0, owner)


@pytest.mark.parametrize("error", [ChatNotFound("no chat"), StoreUnavailable("no database")])
async def test_an_unknown_chat_or_a_failing_store_makes_the_other_side_look_again(
    endpoint: Endpoint, error: Exception
) -> None:
    """`not_owner` without an owner: the reason on which a relay reads its own store and dials again."""
    endpoint.chats.chat = error
    async with endpoint.running() as peer:
        peer.select()
        assert await peer.next() == Ended(1, EPISODE, "not_owner", 0)
        assert peer.closed == 0


@pytest.mark.parametrize("owner", ["replica-c", HERE])
async def test_copies_are_never_served(endpoint: Endpoint, owner: str) -> None:
    """ONE_HOP: rows that came from another replica do not leave this one again."""
    endpoint.chats.owned_by(owner)
    with endpoint.parts.filling("chat", EPISODE) as copy:
        copy.extend(join(EPISODE, 1, rows(1, 2)))
        async with endpoint.running() as peer:
            peer.select()
            if owner == "replica-c":
                assert await peer.next() == Ended(1, EPISODE, "not_owner", 0, "replica-c")
            copy.extend(join(EPISODE, 3, rows(3)))
            await peer.nothing_comes()


async def test_while_the_store_hangs_everything_else_goes_on(endpoint: Endpoint) -> None:
    """DIAL_IS_ASIDE: neither other legs nor a log that appears wait for a read of the store."""
    endpoint.chats.gate = trio.Event()
    endpoint.log(1, chat="other")
    async with endpoint.running() as peer:
        peer.select()
        peer.select(leg=2, chat="other")
        assert await peer.next() == burst(1, leg=2)
        log = endpoint.log(1)
        assert await peer.next() == burst(1)
        endpoint.chats.owned_by("replica-c")
        endpoint.chats.gate.set()
        await peer.nothing_comes()
        append(log, 2)
        assert await peer.next() == burst(2)


async def test_a_log_that_came_and_went_during_the_read_is_over(endpoint: Endpoint) -> None:
    """The store's answer, older than the log, is not given any more."""
    endpoint.chats.gate = trio.Event()
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        endpoint.log(1, seal=True)
        endpoint.parts._forget(("chat", EPISODE))
        assert await peer.next() == Ended(1, EPISODE, "over", 0)
        endpoint.chats.owned_by("replica-c")
        endpoint.chats.gate.set()
        await peer.nothing_comes()


@pytest.mark.parametrize("again", ["select", "release"])
async def test_a_read_for_what_is_not_selected_any_more_is_cancelled(endpoint: Endpoint, again: str) -> None:
    """Its answer reaches nobody."""
    endpoint.chats.gate = trio.Event()
    endpoint.log(episode=NEXT)
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        peer.select(NEXT) if again == "select" else peer.say(Release(1))
        await wait_all_tasks_blocked()
        assert endpoint.chats.reading == 0
        endpoint.chats.gate.set()
        await peer.nothing_comes()


async def test_reads_of_the_store_are_few_at_a_time(endpoint: Endpoint) -> None:
    """A peer with many legs, or a quick one, does not turn into as many reads at once."""
    endpoint.chats.gate = trio.Event()
    async with endpoint.running() as peer:
        for leg in range(100):
            peer.select(leg=leg)
        await wait_all_tasks_blocked()
        assert endpoint.chats.reads == 16
        endpoint.chats.gate.set()
        assert sorted([leg_of(await peer.next() or Heartbeat()) for _ in range(100)]) == list(range(100))


def _bad_grants() -> dict[str, str]:
    def made(
        *, secret: bytes = SECRET, chat: str = "chat", source: str = PEER, target: str = HERE, at: float = NOW
    ) -> str:
        return make_select_grant(secret, chat_id=chat, source=source, target=target, now=at)

    return {
        "none": "",
        "junk": "\x00\n💥",
        "secret": made(secret=b"another"),
        "chat": made(chat="other"),
        "source": made(source="replica-x"),
        "target": made(target="replica-x"),
        "expired": made(at=NOW - 181),
        "early": made(at=NOW + 61),
        "kind": make_connection_grant(SECRET, source=PEER, target=HERE, now=NOW),
    }


@pytest.mark.parametrize("bad", _bad_grants())
async def test_a_select_with_a_bad_grant_is_refused(endpoint: Endpoint, bad: str) -> None:
    """`ended refused`, whatever is wrong with it, and the store is not asked."""
    endpoint.log(1)
    async with endpoint.running() as peer:
        peer.select(grant=_bad_grants()[bad], after_seq=3)
        assert await peer.next() == Ended(1, EPISODE, "refused", 3)
        await peer.nothing_comes()
    assert endpoint.chats.reads == 0


async def test_a_refused_select_changes_nothing_else(endpoint: Endpoint) -> None:
    """What was selected before goes on."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        peer.select(NEXT, grant="bad")
        assert await peer.next() == Ended(1, NEXT, "refused", 0)
        append(log, 1)
        assert await peer.next() == burst(1)


def test_each_refused_select_of_a_leg_is_answered() -> None:
    """The newest first, without anything else happening in between."""
    parts = PartLogs(Settings(), clock=lambda: 0.0)
    selections = Selections(parts, burst_bytes=1000, runs=1, wake=lambda: None, wake_for_rows=lambda: None)
    for after_seq in (1, 2):
        selections.refuse(Select(1, "chat", EPISODE, after_seq, "bad"))
    ends = [Ended(1, EPISODE, "refused", after_seq) for after_seq in (2, 1)]
    assert [*ends, None] == [selections.next_frame() for _ in range(3)]


async def test_an_open_leg_is_never_checked_again(endpoint: Endpoint) -> None:
    """A grant that expires in the middle of an answer stops nothing."""
    log = endpoint.log()
    async with endpoint.running() as peer:
        peer.select()
        await wait_all_tasks_blocked()
        endpoint.now += 1e6
        append(log, 1)
        assert await peer.next() == burst(1)


def test_a_peer_is_known_by_its_grant() -> None:
    """The handshake's two headers, in any case, give the source replica."""
    grant = make_connection_grant(SECRET, source=PEER, target=HERE, now=NOW)
    headers = {SOURCE_HEADER.upper(): PEER, GRANT_HEADER.lower(): grant, "Cookie": "x"}
    assert authorize_peer(headers, secret=SECRET, replica_id=HERE, now=NOW) == PEER


@pytest.mark.parametrize("bad", ["source", "grant", "no source", "no grant", "target", "late"])
def test_a_handshake_without_a_good_grant_is_refused(bad: str) -> None:
    """What is missing, altered, for another replica or too old is a 401."""
    grant = make_connection_grant(SECRET, source=PEER, target=HERE, now=NOW)
    headers = {SOURCE_HEADER: PEER, GRANT_HEADER: grant}
    match bad:
        case "source":
            headers[SOURCE_HEADER] = "replica-x"
        case "grant":
            headers[GRANT_HEADER] = "Bearer x"
        case "no source":
            del headers[SOURCE_HEADER]
        case "no grant":
            del headers[GRANT_HEADER]
    here, now = ("replica-x" if bad == "target" else HERE), (NOW + 1000 if bad == "late" else NOW)
    with pytest.raises(InvalidGrant):
        authorize_peer(headers, secret=SECRET, replica_id=here, now=now)
