"""The command line as a person has it: real processes, real sockets, real signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import httpx
import psycopg
import pytest
import trio

from relaytrio._protocol.events import MessageEvent, MessagePart, MessageRef
from relaytrio.cli._cluster import ClusterFailed, ReplicaSpec, open_cluster
from relaytrio.cli._status import NotDone
from relaytrio.cli._transcript import text_of
from relaytrio.client import ChatClient
from relaytrio.responders.pydoc import answer
from relaytrio.stores import open_store

pytestmark = [pytest.mark.realworld, pytest.mark.timeout(120)]

SECONDS = 60.0
"""What any one test may take, on a machine that does much else."""
QUESTION = "json.dumps"
LONG = "asyncio"
SECRET = "a secret of the tests, long enough"
_NUMBERS = count(1)


class Command:
    """A running `relaytrio ...`."""

    def __init__(self, process: trio.Process, err: Path) -> None:
        self.process = process
        self._err = err
        self._rest = b""

    async def line(self) -> str:
        """The next line of its stdout; empty at the end."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            received = await self.process.stdout.receive_some()
            if not received:
                break
            self._rest += received
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def rest(self) -> str:
        """All that it still writes to its stdout."""
        assert self.process.stdout is not None
        async for received in self.process.stdout:
            self._rest += received
        rest, self._rest = self._rest, b""
        return rest.decode()

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return self._err.read_text()

    async def until_said(self, text: str) -> None:
        """Wait until it has written this to stderr."""

        def said() -> bool:
            assert text in self.errors or self.process.poll() is None, self.errors
            return text in self.errors

        await until(said)

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def running(
    folder: Path, *arguments: str, stdin: int | None = None, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Command]:
    """A command, killed at the end if it still runs."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("RELAYTRIO_")}
    err = folder / f"stderr-{next(_NUMBERS)}"
    with trio.fail_after(SECONDS):
        with err.open("wb") as opened:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "relaytrio", *arguments],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=subprocess.PIPE,
                stderr=opened,
                env={**known, "NO_COLOR": "1", **(environment or {})},
            )
        try:
            yield Command(process, err)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                await _put_away(process)


async def _put_away(process: trio.Process) -> None:
    process.kill()
    await process.wait()
    if process.stdout is not None:
        await process.stdout.aclose()


@asynccontextmanager
async def serving(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Command, str]]:
    """A replica on a free port, and its URL."""
    store = f"sqlite:///{folder / 'chat.db'}"
    async with running(
        folder, "serve", "--store", store, "--listen", "127.0.0.1:0", *options, environment=environment
    ) as command:
        line = await command.line()
        assert line.startswith("serving at http://127.0.0.1:"), command.errors
        yield command, line.removeprefix("serving at ")


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def none_alive(pids: Iterable[int]) -> bool:
    """Whether none of these processes runs."""
    return not any(alive(pid) for pid in pids)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so. Other processes have no event of ours."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.02)


async def started(demo: Command) -> tuple[list[str], list[int]]:
    """The URLs and the processes of the replicas that a demo announces."""
    replicas = int((await demo.line()).split()[0])
    lines = [await demo.line() for _ in range(replicas)]
    await demo.line()
    return [line.split()[2] for line in lines], [int(line.rpartition(" ")[2].rstrip(")")) for line in lines]


# ----------------------------------------------------------------------------------------------- serve


async def test_serve_send_tail(tmp_path: Path) -> None:
    """What is sent is answered, and a tail shows it whole, then gives the cursor to go on from."""
    async with serving(tmp_path, "--pace", "0") as (_, url):
        async with running(tmp_path, "send", QUESTION, "--url", url) as send:
            chat = (await send.rest()).removesuffix("\n")
            assert await send.process.wait() == 0
        async with running(tmp_path, "tail", chat, "--url", url) as tail:
            await tail.until_said("waiting")
            assert await tail.end(signal.SIGINT) == 130
            shown, remarks = await tail.rest(), tail.errors
        assert shown == f"user: {QUESTION}\nassistant: {answer(QUESTION).rstrip()}\n"
        cursor = remarks.rstrip().rpartition("cursor: ")[2]
        async with running(tmp_path, "tail", chat, "--cursor", cursor, environment={"RELAYTRIO_URL": url}) as tail:
            await tail.until_said("waiting")
            assert await tail.end(signal.SIGINT) == 130
            assert await tail.rest() == ""


async def test_send_to_a_busy_chat(tmp_path: Path) -> None:
    """A message for a busy chat waits in its queue, or interrupts the answer."""
    async with serving(tmp_path, "--pace", "5") as (_, url):
        async with running(tmp_path, "send", LONG, "--url", url) as send:
            chat = (await send.rest()).strip()
        async with running(tmp_path, "tail", chat, "--url", url) as tail:
            await tail.until_said("running, replica")
            async with running(tmp_path, "send", QUESTION, "--chat", chat, "--url", url) as send:
                assert await send.process.wait() == 0
                assert "queue" in send.errors
            await tail.until_said("waiting: 1")
            async with running(tmp_path, "send", "trio", "--chat", chat, "--interrupt", "--url", url) as send:
                assert await send.process.wait() == 0
            await tail.until_said("interrupting")
            await tail.until_said("(interrupted)")


async def test_sigterm_lets_the_answer_end(tmp_path: Path) -> None:
    """A replica that is asked to stop finishes the answer that it generates, and exits with 0."""
    async with serving(tmp_path, "--pace", "300") as (serve, url):
        async with ChatClient(url) as client:
            chat = await client.create_chat([{"role": "user", "content": QUESTION}])
            async with client.stream(chat.id) as stream:
                async for event in stream:
                    if isinstance(event, MessagePart):
                        break
        assert await serve.end(signal.SIGTERM) == 0
        assert "Traceback" not in serve.errors
    async with open_store(f"sqlite:///{tmp_path / 'chat.db'}") as store:
        view = await store.read_view(chat.id, MessageRef(0, ""))
    assert view.chat.status == "waiting"
    assert [text_of(message.content) for message in view.messages] == [QUESTION, answer(QUESTION)]
    assert not view.messages[-1].interrupted


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Who insists does not wait for the answer."""
    async with serving(tmp_path, "--pace", "1") as (serve, url), ChatClient(url) as client:
        chat = await client.create_chat([{"role": "user", "content": LONG}])
        async with client.stream(chat.id) as stream:
            async for event in stream:
                if isinstance(event, MessagePart):
                    break
        serve.process.terminate()
        async with httpx.AsyncClient(trust_env=False) as http:
            while (await http.get(f"{url}/readyz")).status_code == 200:  # noqa: ASYNC110
                await trio.sleep(0.02)
        with trio.fail_after(5):
            assert await serve.end(signal.SIGTERM) == -signal.SIGTERM


async def test_ctrl_c_ends_serve(tmp_path: Path) -> None:
    """Ctrl-C ends a replica in order too, and gives 130."""
    async with serving(tmp_path) as (serve, _):
        assert await serve.end(signal.SIGINT) == 130
        assert "Traceback" not in serve.errors


async def test_serve_says_what_it_does_without(tmp_path: Path) -> None:
    """Without a secret it says so; with one that others can read it warns."""
    async with serving(tmp_path) as (serve, _):
        assert "no secret" in serve.errors
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    advertise = ["--advertise", "http://127.0.0.1:1"]
    async with serving(tmp_path, "--secret-file", str(secret), *advertise) as (serve, _):
        assert "chmod 600" in serve.errors
    async with serving(tmp_path, *advertise, environment={"RELAYTRIO_SECRET": SECRET}) as (serve, _):
        assert serve.errors == ""


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """An address that cannot be had is told in one line, with status 3."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        async with running(tmp_path, "serve", "--store", "memory://", "--listen", where) as serve:
            assert await serve.process.wait() == 3
            assert "in use" in serve.errors
            assert "Traceback" not in serve.errors


async def test_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    """A replica that is told to watch its stdin ends when nobody holds the other end any more."""
    theirs, ours = os.pipe()
    options = ("serve", "--store", "memory://", "--listen", "127.0.0.1:0", "--exit-with-stdin")
    async with running(tmp_path, *options, stdin=theirs) as serve:
        os.close(theirs)
        assert (await serve.line()).startswith("serving at ")
        os.close(ours)
        assert await serve.process.wait() == 0


async def test_no_such_chat(tmp_path: Path) -> None:
    """A chat that is not there is told in one line, with status 3."""
    async with serving(tmp_path) as (_, url):
        async with running(tmp_path, "tail", "no-such-chat", "--url", url) as tail:
            assert await tail.process.wait() == 3
            assert "Traceback" not in tail.errors
            assert len(tail.errors.splitlines()) == 1


async def test_a_reader_who_leaves(tmp_path: Path) -> None:
    """`relaytrio tail ... | head` ends quietly when nobody reads any more."""
    async with serving(tmp_path, "--pace", "50") as (_, url):
        async with running(tmp_path, "send", LONG, "--url", url) as send:
            chat = (await send.rest()).strip()
        async with running(tmp_path, "tail", chat, "--url", url) as tail:
            await tail.line()
            assert tail.process.stdout is not None
            await tail.process.stdout.aclose()
            assert await tail.process.wait() == 3
            assert "Traceback" not in tail.errors
            assert "Broken pipe" not in tail.errors


# ------------------------------------------------------------------------------------------- the page


async def test_the_page(tmp_path: Path) -> None:
    """The page is there where it is wanted, may load nothing from elsewhere, and knows the replicas."""
    async with serving(tmp_path, "--page") as (_, url), httpx.AsyncClient(trust_env=False, base_url=url) as http:
        page = await http.get("/")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        for path in ("app.css", "app.js", "chat.js", "stream.js"):
            assert (await http.get(f"/demo/{path}")).status_code == 200
        assert set((await http.get("/demo/replicas.json")).json()) == {"self", "replicas"}
        assert (await http.get("/v1/chats")).status_code == 200
        assert (await http.get("/nothing")).status_code == 404
    async with serving(tmp_path) as (_, url), httpx.AsyncClient(trust_env=False, base_url=url) as http:
        assert (await http.get("/")).status_code == 404


# ------------------------------------------------------------------------------------------- the demo


@asynccontextmanager
async def demo(tmp_path: Path, *options: str) -> AsyncIterator[tuple[Command, Path]]:
    """A demo whose temporary folders are made in a folder of ours."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    async with running(tmp_path, "demo", "--no-browser", *options, environment={"TMPDIR": str(folder)}) as command:
        yield command, folder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
async def test_the_demo_leaves_nothing(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """A demo is three replicas with a page each; at its end no process and no folder is left."""
    async with demo(tmp_path) as (command, folder):
        urls, pids = await started(command)
        assert len(set(urls)) == len(set(pids)) == 3
        assert all(alive(pid) for pid in pids)
        async with httpx.AsyncClient(trust_env=False) as http:
            for url in urls:
                assert "text/html" in (await http.get(url)).headers["Content-Type"]
            listed = (await http.get(f"{urls[0]}demo/replicas.json")).json()["replicas"]
        assert sorted(url.rstrip("/") for url in urls) == [replica["address"] for replica in listed]
        assert len(list(folder.iterdir())) == 1
        assert await command.end(number) == status, command.errors
        assert not any(alive(pid) for pid in pids)
        assert list(folder.iterdir()) == []
        assert "Traceback" not in command.errors


@pytest.mark.parametrize("schema", [None, "mine"])
async def test_the_demo_on_postgres(tmp_path: Path, postgres_url: str, schema: str | None) -> None:
    """Its replicas answer from one database; a schema of its own goes with it, one that the URL names stays."""
    store = postgres_url if schema is None else f"{postgres_url}?schema={schema}"
    async with demo(tmp_path, "--replicas", "2", "--store", store) as (command, _):
        urls, pids = await started(command)
        async with ChatClient(urls) as client:
            chat = await client.create_chat()
            assert [chat.id] == [found.id for found in await client.list_chats()]
        assert 0 == await command.end(signal.SIGTERM), command.errors
        assert not any(alive(pid) for pid in pids)
    with psycopg.connect(postgres_url) as connection:
        left = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^(mine|relaytrio)'").fetchall()
    assert ([] if schema is None else [(schema,)]) == left


async def test_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    """When the demo itself is killed, which it cannot notice, its replicas end by themselves."""
    async with demo(tmp_path, "--replicas", "2") as (command, _):
        _, pids = await started(command)
        assert await command.end(signal.SIGKILL) == -signal.SIGKILL
        with trio.fail_after(15):
            await until(lambda: none_alive(pids))


async def test_a_demo_that_is_ended_while_it_starts(tmp_path: Path) -> None:
    """Ctrl-C before the replicas are ready leaves nothing either."""
    async with demo(tmp_path) as (command, folder):

        def all_spawned() -> bool:
            return bool(list(folder.glob("*/replica-3.log")))

        await until(all_spawned)
        assert await command.end(signal.SIGINT) == 130, command.errors
        assert list(folder.iterdir()) == []


async def test_a_replica_that_dies_comes_back(tmp_path: Path) -> None:
    """The demo reports a replica that died, and starts it again at the same address."""
    async with demo(tmp_path, "--replicas", "2") as (command, _):
        urls, pids = await started(command)
        os.kill(pids[1], signal.SIGKILL)
        await command.until_said("replica 2 was killed by signal 9")
        await command.until_said("replica 2 is back")
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{urls[1]}readyz")).status_code == 200
        assert await command.end(signal.SIGINT) == 130


async def test_the_demos_ports(tmp_path: Path) -> None:
    """A port that is taken is told before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with demo(tmp_path, "--replicas", "1", "--port", str(port)) as (command, folder):
            assert await command.process.wait() == 3
            assert f"port {port}" in command.errors
            assert list(folder.iterdir()) == []


async def test_one_answer_through_every_replica(tmp_path: Path) -> None:
    """Live text that one replica generates reaches viewers at all of them, the same and whole."""
    async with demo(tmp_path, "--pace", "300") as (command, _):
        urls, _ = await started(command)
        texts: dict[str, str] = {}

        async def watch(url: str) -> None:
            async with ChatClient(url) as client, client.stream(chat.id) as stream:
                async for event in stream:
                    if isinstance(event, MessagePart):
                        texts[url] = texts.get(url, "") + text_of([event.part])
                    elif isinstance(event, MessageEvent) and event.message.role == "assistant":
                        return

        async with ChatClient(urls) as client:
            chat = await client.create_chat([])
            async with trio.open_nursery() as nursery:
                for url in urls:
                    nursery.start_soon(watch, url)
                await client.send_message(chat.id, QUESTION)
        assert texts == dict.fromkeys(urls, answer(QUESTION))


# ---------------------------------------------------------------------------------------- the cluster


async def test_a_cluster(tmp_path: Path) -> None:
    """Replicas of a cluster can be killed, asked to end, and started again at the same address under a new id."""
    specs = [ReplicaSpec(number=1), ReplicaSpec(number=2, worker=False)]
    with trio.fail_after(SECONDS):
        async with open_cluster(specs, serve_options=["--pace", "0"], log_dir=tmp_path) as cluster:
            first, second = cluster.replicas
            ids = [replica.replica_id for replica in cluster.replicas]
            assert ids == [(await replica.health())["replica_id"] for replica in cluster.replicas]
            await first.kill()
            assert first.pid is None
            assert await second.terminate() == 0
            await first.start_again()
            await second.start_again()
            assert not set(ids) & {first.replica_id, second.replica_id}
            assert cluster.urls == [first.url, second.url]
            pids = [first.pid, second.pid]
            folder = cluster.folder
            assert folder.stat().st_mode & 0o777 == 0o700
            assert (folder / "secret").stat().st_mode & 0o777 == 0o600
        assert not folder.exists()
        assert not any(alive(pid) for pid in pids if pid is not None)


async def test_hurry() -> None:
    """Replicas that do not end when asked are killed as soon as somebody insists, not only after their grace."""
    with trio.fail_after(SECONDS):
        async with open_cluster([ReplicaSpec(number=1)], grace_seconds=3600) as cluster:
            replica = cluster.replicas[0]
            replica.signal(signal.SIGSTOP)
            cluster.hurry()
        assert await replica.ended() == -signal.SIGKILL


async def test_a_cluster_that_is_cancelled() -> None:
    """Cancelling a cluster's user ends the processes all the same, and waits for them."""
    with trio.fail_after(SECONDS):
        with trio.CancelScope() as scope:
            async with open_cluster([ReplicaSpec(number=1)]) as cluster:
                scope.cancel()
                await trio.sleep_forever()
        assert cluster.replicas[0].pid is None
        assert not cluster.folder.exists()


async def test_a_cluster_that_cannot_start(tmp_path: Path) -> None:
    """A replica that ends at once fails the cluster with what it said, and the others are put away."""
    with trio.fail_after(SECONDS), pytest.raises(ClusterFailed, match="--nonsense"):
        async with open_cluster([ReplicaSpec(number=1)], serve_options=["--nonsense"], log_dir=tmp_path):
            raise AssertionError("it has started")


async def test_ports_of_a_cluster() -> None:
    """The same port cannot be wanted twice."""
    with pytest.raises(NotDone, match="port 23456"):
        async with open_cluster([ReplicaSpec(number=1, port=23456), ReplicaSpec(number=2, port=23456)]):
            raise AssertionError("it has started")
