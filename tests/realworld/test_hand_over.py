"""How a replica leaves, and how it comes back after it stood still: with real processes, on both databases."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

import relaytrio
from relaytrio.cli._cluster import Cluster, ReplicaProcess, ReplicaSpec, open_cluster
from relaytrio.client import ChatClient, ChatStream
from relaytrio.testing import StreamChecker
from tests.realworld.responders import STUCK_SECONDS

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(120)]
SECONDS = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Of the database that the test names. None: the cluster's own file."""
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else None


@asynccontextmanager
async def replicas(store_url: str | None, responder: str, **settings: float) -> AsyncIterator[Cluster]:
    """Two of them, which both generate."""
    options = ["--responder", f"tests.realworld.responders:{responder}", "--settings", json.dumps(settings)]
    with trio.fail_after(SECONDS):
        async with open_cluster(
            [ReplicaSpec(number=1), ReplicaSpec(number=2)],
            store_url=store_url,
            serve_options=options,
            environment={"PYTHONPATH": str(ROOT)},
            grace_seconds=1.0,
        ) as cluster:
            yield cluster


async def begin(cluster: Cluster, client: ChatClient) -> tuple[str, ReplicaProcess, ReplicaProcess]:
    """A chat that is being answered, by whom, and the other replica."""
    chat = await client.create_chat([relaytrio.user_message("speak")])
    while chat.worker_id is None:
        chat = await client.get_chat(chat.id)
    first, second = cluster.replicas
    return (chat.id, first, second) if chat.worker_id == first.replica_id else (chat.id, second, first)


async def next_part(stream: ChatStream, checker: StreamChecker, *, but: str | None = None) -> relaytrio.MessagePart:
    """The next part, of another episode than that of the run with this id."""
    async for event in stream:
        checker.feed(event)
        if isinstance(event, relaytrio.MessagePart) and event.episode.run_id != but:
            return event
    raise AssertionError("the stream has ended")


async def until(condition: Callable[[], object]) -> None:
    """Wait for what has no edge to wait on: it is in another process."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


def _get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False)


async def close_code(replica: ReplicaProcess, chat_id: str) -> tuple[int, str]:
    """With what the replica ends the stream of a viewer, and what it says then."""
    host, _, port = replica.url.removeprefix("http://").partition(":")
    # A plain client of trio-websocket leaves its socket open after a close: this one is ours.
    async with await trio.open_tcp_stream(host, int(port)) as socket, trio.open_nursery() as nursery:
        viewer = await wrap_client_stream(
            nursery, socket, f"{host}:{port}", f"/v1/chats/{chat_id}/stream", max_message_size=2**22
        )
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await viewer.get_message()
        nursery.cancel_scope.cancel()
    assert closed.value.reason is not None
    return closed.value.reason.code, closed.value.reason.reason or ""


@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize(("responder", "held_seconds"), [("endless", 0.0), ("stuck", 1.0)])
async def test_a_replica_leaves_in_order(store_url: str | None, responder: str, held_seconds: float) -> None:
    """Asked to end, it is not ready at once, sends its viewers elsewhere at different times, gives its responder its
    grace, and hands the chat over, whether that ends when it is cancelled or not; another has it within a second."""
    grace_seconds, codes = 1.0, list[tuple[int, str]]()

    async def watch(replica: ReplicaProcess, chat_id: str) -> None:
        codes.append(await close_code(replica, chat_id))

    async with (
        replicas(store_url, responder, grace_seconds=grace_seconds, unwind_seconds=1.0) as cluster,
        ChatClient(cluster.urls) as client,
        httpx.AsyncClient(trust_env=False) as http,
        trio.open_nursery() as nursery,
    ):
        chat_id, leaving, staying = await begin(cluster, client)
        for _ in range(5):
            nursery.start_soon(watch, leaving, chat_id)
        async with client.stream(chat_id, prefer=staying.url) as stream:
            checker = StreamChecker()
            first = await next_part(stream, checker)
            await until(lambda: _get(f"{leaving.url}/healthz").json()["stats"]["subscriptions"] == 5)
            leaving.signal(signal.SIGTERM)
            asked_at = time.monotonic()
            while (ready := await http.get(f"{leaving.url}/readyz")).status_code == 200:
                assert time.monotonic() < asked_at + grace_seconds / 2
            assert (503, "draining") == (ready.status_code, ready.json()["why_not"])
            assert leaving.replica_id == (await client.get_chat(chat_id)).worker_id
            await next_part(stream, checker, but=first.episode.run_id)
            taken_at = time.monotonic()
            assert staying.replica_id == (await client.get_chat(chat_id)).worker_id
        assert asked_at + grace_seconds <= taken_at
        assert taken_at <= asked_at + grace_seconds + held_seconds + 1.0
        assert 0 == await leaving.ended(), leaving.log_tail()
        if responder == "stuck":
            assert time.monotonic() >= asked_at + grace_seconds + STUCK_SECONDS
        await until(lambda: len(codes) == 5)
    assert {4004} == {code for code, _ in codes}
    # Two may well have drawn the same millisecond.
    assert 1 < len({int(reason) for _, reason in codes}), "they would all come back at the same time"


@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
async def test_who_insists_is_obeyed(store_url: str | None) -> None:
    """A second signal ends it at once, whatever its responder does; the chat goes on elsewhere."""
    async with replicas(store_url, "stuck", lock_trust_seconds=0) as cluster, ChatClient(cluster.urls) as client:
        chat_id, leaving, staying = await begin(cluster, client)
        async with client.stream(chat_id, prefer=staying.url) as stream:
            checker = StreamChecker()
            first = await next_part(stream, checker)
            leaving.signal(signal.SIGTERM)
            await until(lambda: _get(f"{leaving.url}/readyz").status_code == 503)
            leaving.signal(signal.SIGTERM)
            with trio.fail_after(2):
                assert -signal.SIGTERM == await leaving.ended()
            await next_part(stream, checker, but=first.episode.run_id)


@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
async def test_who_stood_still_finds_itself_fenced(store_url: str | None) -> None:
    """A stopped process keeps its lock, but not its chats: its heartbeat stands still, and another goes on. When it
    continues it ends its run, tells nobody, and nothing of what it makes then reaches a viewer."""
    timing = {"heartbeat_seconds": 1.0, "dead_after_seconds": 4.0}
    async with replicas(store_url, "endless", **timing) as cluster, ChatClient(cluster.urls) as client:
        chat_id, stopped, other = await begin(cluster, client)
        # Who asked the one that stands still would wait for it.
        async with ChatClient([other.url]) as elsewhere, elsewhere.stream(chat_id) as stream:
            checker = StreamChecker()
            first = await next_part(stream, checker)
            stopped.signal(signal.SIGSTOP)
            second = await next_part(stream, checker, but=first.episode.run_id)
            taken = await elsewhere.get_chat(chat_id)
            stopped.signal(signal.SIGCONT)
            while (await stopped.health())["stats"]["runs"] > 0:
                await next_part(stream, checker)
            for _ in range(10):
                part = await next_part(stream, checker)
                assert second.episode == part.episode
            assert taken == await elsewhere.get_chat(chat_id)
            assert other.replica_id == taken.worker_id
        assert stopped.pid is not None
