"""PostgreSQL fails in every way it has, under load: answers go on, nothing happens twice, all agree afterwards."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import httpx
import pytest
import trio

import relaytrio
from relaytrio.cli._check_conduct import Conductor
from relaytrio.cli._check_judge import judge
from relaytrio.cli._check_plan import CheckOptions
from relaytrio.cli._check_records import ANSWERED, PartSeen
from relaytrio.cli._cluster import ReplicaSpec, open_cluster
from relaytrio.cli._transcript import text_of
from relaytrio.client import ChatClient
from tests.postgres_server import PostgresServer
from tests.realworld.checked import parts_of, run_beside
from tests.realworld.tcp_proxy import TcpProxy, open_proxy

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(600)]
AWAY_SECONDS, THOROUGH_AWAY_SECONDS = 1.0, 30.0
ALL = 7


@attrs.define
class Outages:
    """What is done to the database, and when it was away."""

    server: PostgresServer
    proxy: TcpProxy
    away_seconds: float
    spans: list[tuple[float, float]] = attrs.field(factory=list)
    refusals: list[httpx.Response] = attrs.field(factory=list)

    async def carry_out(self, conductor: Conductor) -> None:
        """One after the other, each in the middle of an answer."""
        in_thread, server = trio.to_thread.run_sync, self.server
        start = partial(in_thread, server.start)
        await self._one(conductor, partial(in_thread, server.stop), start)
        await self._one(conductor, partial(in_thread, server.kill), start)
        await self._one(conductor, partial(in_thread, server.stop, "immediate"), start)
        await self._one(
            conductor, partial(in_thread, server.set_read_only, True), partial(in_thread, server.set_read_only, False)
        )
        await self._one(conductor, self.proxy.freeze, self.proxy.thaw)

    async def _one(
        self, conductor: Conductor, begin: Callable[[], Awaitable[None]], end: Callable[[], Awaitable[None]]
    ) -> None:
        turns = len(conductor.turns)
        # Who has seen nothing of an answer could not learn of it without the database.
        while len(conductor.turns) == turns or not _all_watch(conductor):  # noqa: ASYNC110 - of several streams
            await trio.sleep(0.02)
        await begin()
        began = time.time()
        try:
            await self._be_refused(conductor)
            await trio.sleep(self.away_seconds)
            self.spans.append((began, time.time()))
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await end()

    async def _be_refused(self, conductor: Conductor) -> None:
        """A request that cannot be served is told when to come again, or it waits."""
        async with httpx.AsyncClient(trust_env=False, timeout=self.away_seconds + 30) as http:
            with trio.move_on_after(self.away_seconds):
                answer = await http.post(f"{conductor.cluster.urls[0]}/v1/chats", json={"messages": []})
                self.refusals.append(answer)


def _all_watch(conductor: Conductor) -> bool:
    """Whether each viewer is in the middle of the present answer."""
    version = conductor.turns[-1].version
    last = [viewer.record.seen[-1] for viewer in conductor.viewers if viewer.record.seen]
    watching = [seen for seen in last if isinstance(seen, PartSeen) and seen.episode.history_version == version]
    return len(watching) == len(conductor.viewers)


async def test_outages_under_load(postgres_server: PostgresServer, request: pytest.FixtureRequest) -> None:
    """Stopped, killed, crashed, made read-only, cut off: what is being generated goes on to viewers meanwhile, in the
    same run, requests are refused with 503 and a time or wait, no turn is lost, none is answered twice."""
    thorough = request.config.getoption("--thorough") is not None
    async with open_proxy(postgres_server.port) as proxy:
        url = postgres_server.url().replace(f":{postgres_server.port}/", f":{proxy.port}/")
        outages = Outages(postgres_server, proxy, THOROUGH_AWAY_SECONDS if thorough else AWAY_SECONDS)
        options = CheckOptions(replicas=3, viewers=6, turns=ALL, pace=50, store=url)
        run = await run_beside(options, outages.carry_out, cuts=False)
    assert [] == list(judge(run).faults)
    assert [ANSWERED] * ALL == [turn.outcome for turn in run.turns]
    assert 5 == len(outages.spans)
    for answer in outages.refusals:
        assert answer.status_code in (201, 503)
        assert answer.status_code == 201 or answer.headers["Retry-After"] == "1"
    assert any(answer.status_code == 503 for answer in outages.refusals)
    runs: dict[int, set[str]] = {}
    for parts in parts_of(run):
        for part in parts:
            runs.setdefault(part.episode.history_version, set()).add(part.episode.run_id)
        for began, ended in outages.spans:
            assert any(began < part.sent_at <= part.at < ended for part in parts), "nothing came during an outage"
    assert {1} == {len(ids) for ids in runs.values()}, "an owner that lived has lost its chat"


async def test_a_standby_that_lacks_the_last_second(postgres_server: PostgresServer) -> None:
    """It is promoted in the middle of an answer to what it never knew: each viewer is led back to what it has, the
    chat goes on from there, and all agree."""
    standby = await trio.to_thread.run_sync(postgres_server.standby, "promoted")
    one, two = f"127.0.0.1:{postgres_server.port}", f"127.0.0.1:{standby.port}"
    url = postgres_server.url().replace(one, f"{one},{two}")
    shown: list[dict[int, str]] = [{}, {}, {}]
    resets: list[int] = []

    async def watch(client: ChatClient, chat_id: str, index: int, where: str) -> None:
        async with client.stream(chat_id, prefer=where) as stream:
            async for event in stream:
                match event:
                    case relaytrio.MessageEvent(message=message):
                        shown[index][message.id] = text_of(message.content)
                    case relaytrio.HistoryReset(after_id=after_id):
                        resets.append(index)
                        shown[index] = {id: text for id, text in shown[index].items() if id <= after_id}

    async def until_all_show(text: str) -> None:
        while not all(text in messages.values() for messages in shown):  # noqa: ASYNC110 - of several streams
            await trio.sleep(0.05)

    async def send(client: ChatClient, chat_id: str, text: str) -> None:
        while True:
            try:
                await client.send_message(chat_id, text, idempotency_key=text)
                return
            except relaytrio.StoreUnavailable:
                await trio.sleep(0.2)

    async def until_answered(client: ChatClient, chat_id: str) -> None:
        while (await client.get_chat(chat_id)).status != "waiting":  # noqa: ASYNC110
            await trio.sleep(0.05)

    specs = [ReplicaSpec(number=number) for number in (1, 2, 3)]
    with trio.fail_after(120):
        async with (
            open_cluster(specs, store_url=url, serve_options=["--pace", "50"], grace_seconds=3.0) as cluster,
            ChatClient(cluster.urls) as client,
            trio.open_nursery() as nursery,
        ):
            chat = await client.create_chat()
            for index, where in enumerate(cluster.urls):
                nursery.start_soon(watch, client, chat.id, index, where)
            await send(client, chat.id, "math.gcd")
            await until_all_show("math.gcd")
            await until_answered(client, chat.id)
            await trio.to_thread.run_sync(standby.stop_following)
            await send(client, chat.id, "json.dumps")
            await until_all_show("json.dumps")
            await trio.to_thread.run_sync(postgres_server.kill)
            await trio.to_thread.run_sync(standby.promote)
            await send(client, chat.id, "heapq.merge")
            await until_all_show("heapq.merge")
            await until_answered(client, chat.id)
            stored = {message.id: text_of(message.content) for message in await client.list_messages(chat.id)}
            while not all(stored == messages for messages in shown):  # noqa: ASYNC110
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    assert "json.dumps" not in stored.values()
    assert 4 == len(stored)
    assert {0, 1, 2} == set(resets)
    await trio.to_thread.run_sync(standby.close)
