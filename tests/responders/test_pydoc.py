"""The pydoc responder: what it answers, what it never runs, how it is cut and paced."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, NoReturn

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaytrio.responders import _gate, _lookup, pydoc
from relaytrio.responders._cut import gaps
from relaytrio.responders._reading import LONGEST_TEXT, pointed_names
from relaytrio.responders._render import render
from relaytrio.responders.pydoc import SAMPLES, answer, document, make_pydoc_responder, sample_names, tokens


@attrs.frozen
class FakeMessage:
    """A message of a turn's history."""

    role: str
    content: list[dict[str, Any]]


def said(role: str, *texts: str) -> FakeMessage:
    """A message of text parts."""
    return FakeMessage(role, [{"type": "text", "text": text} for text in texts])


class FakeTurn:
    """A turn that keeps what it was sent, and when; `stalls` is how long the send of that index takes."""

    def __init__(self, *messages: FakeMessage, stalls: dict[int, float] | None = None) -> None:
        self.messages = messages
        self.parts: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.chunks: list[int] = []
        self.stalls = stalls or {}

    async def send(self, part: dict[str, Any]) -> None:
        await trio.sleep(self.stalls.get(len(self.parts), 0))
        self.times.append(trio.current_time())
        self.parts.append(part)

    async def send_many(self, parts: Sequence[dict[str, Any]]) -> None:
        await trio.lowlevel.checkpoint()
        self.chunks.append(len(parts))
        self.parts += parts

    @property
    def texts(self) -> list[str]:
        return [part["text"] for part in self.parts]


# What is answered


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("asyncio.run", "asyncio.run"),
        ("  asyncio.run \n", "asyncio.run"),
        ("what is asyncio.run?", "asyncio.run"),
        ("What is the code of asyncio.run.", "asyncio.run"),
        ("`json`", "json"),
        ("```json```", "json"),
        ("help(trio.open_nursery)", "trio.open_nursery"),
        ("help('trio.open_nursery') please", "trio.open_nursery"),
        ("TRIO.Open_Nursery", "trio.open_nursery"),
        ("from asyncio import run", "asyncio.run"),
        ("could you tell me what json is", "json"),
        ("show me textwrap.dedent(text), e.g. now", "textwrap.dedent"),
        ("print", "builtins.print"),
        ("int.bit_length", "builtins.int.bit_length"),
        ("os.path.join", "os.path.join"),
        ("HTTPX.client.GET", "httpx.Client.get"),
        ("xml.etree.elementtree", "xml.etree.ElementTree"),
    ],
)
def test_finds_the_name_in_the_text(text: str, name: str) -> None:
    """Whatever surrounds a name, and however it is capitalised, its documentation is the answer."""
    assert answer(text) == document(name)
    assert answer(text).partition("\n")[0].endswith(f" {name}:")


def test_a_name_in_two_spellings_is_told_apart_by_case() -> None:
    """Letter case counts where nothing else tells two names apart."""
    titles = [document(f"asyncio.{name}").partition("\n")[0] for name in ("Timeout", "timeout")]
    assert titles == ["Help on class asyncio.Timeout:", "Help on function asyncio.timeout:"]
    assert document("threading.EVENT") == document("threading.Event")
    with pytest.raises(LookupError):
        document("asyncio.TIMEOUT")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("asyncio.rum", "asyncio.run"),
        ("what does trio.opennursery do?", "trio.open_nursery"),
        ("open_nursery", "trio.open_nursery"),
        ("jsn", "json"),
        ("asynco", "asyncio"),
        ("int.bit_lenght", "builtins.int.bit_length"),
        ("json.dumps.nothing", "json"),
    ],
)
def test_an_unknown_name_gets_close_matches(text: str, match: str) -> None:
    """A slip of the pen is answered with names that exist."""
    given = answer(text)
    assert "There is no public" in given
    assert match in given


@pytest.mark.parametrize("text", ["", "   ", "hello there", "?!", "日本語で", "1 + 1", "\x00\x1b[31m", "\ud800"])
def test_anything_else_gets_an_explanation(text: str) -> None:
    """Who does not name anything is told what can be asked."""
    assert answer(text) == pydoc.HELP


def test_a_denied_module_is_named_with_the_reason() -> None:
    """Who asks for a denied module learns why."""
    assert answer("AntiGravity").startswith("`AntiGravity` is not offered here: importing it opens a web browser.")
    assert "brings in pytest" in answer("trio.testing.MockClock")


def test_documentation_of_each_kind() -> None:
    """A module, a class, a function, a property, a constant and data each have an answer of their own."""
    assert "PACKAGE CONTENTS\n    decoder" in document("json")
    assert "Methods inherited from object" not in document("json.JSONEncoder")
    assert "class Counter(dict)" in document("collections.Counter")
    assert "inherited from dict" in document("collections.Counter")
    assert "async sleep(delay, result=None)" in document("asyncio.sleep")
    assert "Readonly :class:`bool`" in document("trio.CancelScope.cancel_called")
    assert "pi = 3.14" in document("math.pi")
    assert "class method fromkeys(" in document("dict.fromkeys")
    assert "class ThreadPoolExecutor" in document("concurrent.futures.ThreadPoolExecutor")
    assert "class ThreadPoolExecutor" in document("concurrent.futures")


# What it must never run or tell


ATTACKS = [
    *sorted(_gate.DENIED),
    *("__main__", "asyncio.__main__", "json.tool.__main__", "unittest.__main__", "trio.__main__", "httpx._main"),
    *("idlelib.idle", "turtledemo.clock", "lib2to3.tests", "test.support", "unittest.test", "ctypes.test"),
    *("__import__", "__import__('os').system('true')", "builtins.__import__", "_thread", "__future__", "__hello__"),
    *("int.__subclasses__", "os.__builtins__", "os.sys", "os.sys.modules", "asyncio.sys", "json.decoder.scanner.re"),
    *(
        "json.__spec__.loader",
        "json.__dict__",
        "str.__class__.__mro__",
        "type.__subclasses__",
        "sys.modules.antigravity",
    ),
    *("pytest", "pip", "setuptools", "relaytrio", "relaytrio.cli", "_pytest", "sortedcontainers", "outcome", "idna"),
    *("os..path", ".os", "os.", "..", "os/path", "../../etc/passwd", "os\x00path", "json\n.tool", "file:///etc/passwd"),
    *("trio.testing", "trio._core", "trio.tests", "trio.Testing", "attr._make", "httpx._client", "trio._core._run"),
    *(
        "\uff41syncio.run",
        "as\u0443ncio.run",
        "\u212aeyword",
        "ASYNCIO.__MAIN__",
        "THIS",
        "Antigravity.webbrowser",
        "from antigravity import x",
    ),
    *("a" * 5_000, "a." * 5_000, "." * 5_000, "`" * 5_000, "`a(" * 2_000, "from a import " * 300, "json." * 300),
]


HARMLESS = ("Help on module os:", "Help on module json:", "Help on module keyword:")
"""What some of them ask for without meaning to: what lies within is ignored, not run."""


@pytest.mark.parametrize("text", ATTACKS, ids=range(len(ATTACKS)))
def test_an_attack_imports_nothing_and_is_answered(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text leads to an import that the gate does not allow, and each gets a friendly answer of bounded size."""
    imported: list[str] = []
    import_module = importlib.import_module

    def recorded(name: str) -> ModuleType:
        imported.append(name)
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", recorded)
    before = set(sys.modules)
    given = answer(text)
    assert not [name for name in set(sys.modules) - before if not _is_expected(name)]
    assert not [name for name in imported if not _gate.is_allowed(name)]
    assert not given.startswith("Help on") or given.startswith(HARMLESS)
    assert len(given) < 100_000


def _is_expected(name: str) -> bool:
    """Whether a module may have come in, asked for or by one that was."""
    return name.partition(".")[0] in _gate.HOMES and _gate.refusal(name) is None


@pytest.mark.parametrize("denied", ["antigravity", "this", "tkinter", "turtle", "idlelib", "test", "site", "readline"])
def test_the_gate_refuses(denied: str) -> None:
    """What acts when imported is refused, and so is everything that lies in it."""
    assert _gate.load(denied) is None
    assert not _gate.is_allowed(denied)
    assert not _gate.is_allowed(f"{denied}.anything")
    with pytest.raises(LookupError):
        document(denied)


def test_every_module_of_the_standard_library_is_denied_or_harmless() -> None:
    """Importing all that is allowed at the top leaves the process as it was, and brings in nothing denied."""
    before, modules = _process_state(), set(sys.modules)
    missing = [root for root in sorted(_gate.ROOTS) if _gate.load(root) is None]
    assert _process_state() == before
    # the other name that multiprocessing gives to the main module
    came = {name for name in set(sys.modules) - modules if not _is_expected(name)} - {"__mp_main__"}
    assert came == set()
    assert [root for root in missing if importlib.util.find_spec(root) is not None] == []
    public = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    assert public - set(_gate.DENIED) <= _gate.ROOTS


def _process_state() -> list[object]:
    handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    hooks = [sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook, sys.stdout, sys.stderr]
    paths = [list(sys.path), list(sys.meta_path), list(sys.path_hooks)]
    return [dict(os.environ), Path.cwd(), threading.enumerate(), handlers, hooks, *paths]


def test_a_stray_file_with_the_name_of_an_absent_module_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of the standard library that is not installed here does not open the door to a file beside the program."""
    absent = next(root for root in sorted(_gate.ROOTS) if importlib.util.find_spec(root) is None)
    (tmp_path / f"{absent}.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec(absent) is not None
    assert _gate.load(absent) is None
    assert absent not in sys.modules


def test_a_module_that_somebody_put_there_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module object without a spec is not the standard library's, whatever it is called."""
    monkeypatch.setitem(sys.modules, "telemetry_of_mine", ModuleType("telemetry_of_mine"))
    monkeypatch.setitem(sys.modules, "colorsys", ModuleType("colorsys"))
    assert _gate.load("colorsys") is None
    assert _gate.load("telemetry_of_mine") is None


def test_an_attribute_goes_before_a_submodule_of_its_name() -> None:
    """Asking never replaces an attribute of a package by importing the submodule that has the same name."""
    unittest = importlib.import_module("unittest")
    main = unittest.main
    assert document("unittest.main").startswith("Help on class unittest.main:")
    assert unittest.main is main


class _TrapDescriptor:
    __module__ = "asyncio"  # else it is foreign, and not shown

    def __get__(self, instance: object, owner: type | None = None) -> NoReturn:
        raise AssertionError("a descriptor ran")


class _TrapMeta(type):
    def __getattr__(cls, name: str) -> NoReturn:
        raise AssertionError(f"__getattr__ ran for {name}")


class _TrapDefault:
    def __repr__(self) -> str:
        raise AssertionError("a repr ran")


class Trap(metaclass=_TrapMeta):
    """A class that tells when anything of it runs."""

    described = _TrapDescriptor()
    value = _TrapDefault()

    @property
    def computed(self) -> NoReturn:
        """A property."""
        raise AssertionError("a property ran")

    def method(self, default: object = _TrapDefault()) -> None:
        """A method."""

    method.__module__ = "asyncio"


def test_looking_up_and_rendering_run_nothing() -> None:
    """No property, descriptor, `__getattr__` or `repr` of what is shown runs."""
    trap = _lookup.Found("somewhere.Trap", Trap)
    text = render(trap)
    assert "method(self, default: 'object' = <_TrapDefault object>)" in text
    assert "computed\n |      A property." in text
    assert _lookup.names_in(trap) == ["computed", "described", "method", "value"]
    assert "described" in text


def test_nothing_of_the_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that belong to the process (environment, arguments, paths) never get into an answer."""
    monkeypatch.setenv("SECRET_OF_MINE", "hunter2-hunter2")
    monkeypatch.setattr(sys, "argv", ["hunter2-hunter2"])
    names = "os os.environ os.environb sys sys.argv sys.path sys.modules sys.executable platform sysconfig tempfile"
    for name in names.split():
        pydoc._rendered.cache_clear()
        text = document(name)
        assert "hunter2" not in text
        assert sys.prefix not in text
        assert " at 0x" not in text


def test_foreign_code_in_a_patched_module_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that another package put into a module of the standard library is not offered."""
    colorsys = importlib.import_module("colorsys")
    monkeypatch.setattr(colorsys, "patched", test_nothing_of_the_process_is_told, raising=False)
    assert "patched" not in _lookup.names_in(_lookup.Found("colorsys", colorsys))
    assert _lookup.find("colorsys.patched") is None


# The same everywhere


def test_an_answer_is_a_pure_function_of_the_text() -> None:
    """Rendered anew, after everything else was looked at, an answer has not changed by a character."""
    names = [*SAMPLES, "concurrent.futures", "xml.dom", "sys", "object", "asyncio.rum", "hello"]
    first = {name: answer(name) for name in names}
    pydoc._rendered.cache_clear()
    assert {name: answer(name) for name in reversed(names)} == first


def test_the_text_can_be_sent() -> None:
    """No answer has control characters or lone surrogates: each encodes, and is below what a part log may hold."""
    for name in SAMPLES:
        text = answer(name)
        assert text.isprintable() or not [char for char in text if not char.isprintable() and char not in "\n\t\xa0"]
        assert len(text.encode()) < 1024 * 1024


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    """A text of a megabyte costs no more than a short one."""
    assert answer(" " * LONGEST_TEXT + "json") == pydoc.HELP
    assert answer("json " + "x" * 1_000_000) == document("json")
    assert pointed_names("json." * 100_000) == []


# Tokens


@pytest.mark.parametrize(
    "text", ["", " ", "a", " a ", "\n\na  b\tc\n", "a b c d e f g", "x" * 10_000, "a\u2003b\x1cc "]
)
@pytest.mark.parametrize("seed", [0, 1, -7])
def test_tokens_join_exactly(text: str, seed: int) -> None:
    """Joined, tokens are the text again, and none is empty."""
    pieces = tokens(text, name="x", seed=seed)
    assert "".join(pieces) == text
    assert "" not in pieces


def test_tokens_have_one_to_four_words() -> None:
    """Each token has one to four words, and each size occurs."""
    sizes = [len(piece.split()) for piece in tokens(document("json"), name="json", seed=3)[:-1]]
    assert set(sizes) == {1, 2, 3, 4}


def test_tokens_are_the_same_in_every_process() -> None:
    """The cut depends on name, text and seed alone: written down once, it holds in every version of Python."""
    text = "one two three four five six seven eight nine ten\n"
    assert tokens(text, name="json", seed=0) == GOLDEN
    assert tokens(text, name="json", seed=1) != GOLDEN
    assert tokens(text, name="jsonx", seed=0) != GOLDEN


GOLDEN = ["one two", " three four five", " six", " seven eight", " nine ten\n"]


# Pace


async def test_the_pace_holds_on_average(autojump_clock: MockClock) -> None:
    """Tokens leave unevenly, and in the mean as many a second as asked for."""
    turn = FakeTurn(said("user", "argparse"))
    began = trio.current_time()
    await make_pydoc_responder(pace=40, seed=5, in_thread=False)(turn)
    assert turn.texts == tokens(answer("argparse"), name="argparse", seed=5)
    assert len(turn.parts) / (turn.times[-1] - began) == pytest.approx(40, rel=0.03)
    steps = [after - before for before, after in zip(turn.times, turn.times[1:], strict=False)]
    assert min(steps) < 0.5 / 40
    assert max(steps) > 1.5 / 40


async def test_a_stall_is_not_made_up_for_by_a_flood(autojump_clock: MockClock) -> None:
    """After a send that took long the rhythm goes on; only a moment of it is caught up."""
    turn = FakeTurn(said("user", "argparse"), stalls={100: 60.0})
    await make_pydoc_responder(pace=40, in_thread=False)(turn)
    resumed = turn.times[100]
    at_once = [moment for moment in turn.times[101:] if moment - resumed < 0.001]
    assert len(at_once) <= pydoc.CATCH_UP_SECONDS * 40 * 2
    second = [moment for moment in turn.times[101:] if moment - resumed < 1.0]
    assert len(second) <= 40 + pydoc.CATCH_UP_SECONDS * 40 * 2


async def test_without_a_pace_parts_travel_in_chunks(autojump_clock: MockClock) -> None:
    """A pace of 0 sends all there is, in chunks, in no time."""
    turn = FakeTurn(said("user", "textwrap"))
    began = trio.current_time()
    await make_pydoc_responder(pace=0, in_thread=False)(turn)
    assert turn.texts == tokens(answer("textwrap"), name="textwrap", seed=0)
    assert turn.chunks[:-1] == [pydoc.CHUNK_PARTS] * (len(turn.chunks) - 1)
    assert trio.current_time() == began
    assert all(part.keys() == {"type", "text"} for part in turn.parts)


@pytest.mark.parametrize("pace", [0.0, 1_000.0])
async def test_parts_can_carry_the_time(pace: float, autojump_clock: MockClock) -> None:
    """In check mode each part says when it was sent, on the system's clock."""
    turn = FakeTurn(said("user", "json.loads"))
    before = time.time()
    await make_pydoc_responder(pace=pace, stamp_times=True, in_thread=False)(turn)
    stamps = [part["sent_at"] for part in turn.parts]
    assert before <= min(stamps) <= max(stamps) <= time.time()


@pytest.mark.parametrize("pace", [-1.0, float("nan"), float("inf")])
def test_a_pace_must_make_sense(pace: float) -> None:
    """A pace that is no rate is refused when the responder is made."""
    with pytest.raises(ValueError, match="tokens a second"):
        make_pydoc_responder(pace=pace)


def test_the_rhythm_is_the_seeds() -> None:
    """The delays come from name and seed alone."""
    first, second = (gaps(name="json", seed=1, pace=10) for _ in range(2))
    assert [next(first) for _ in range(50)] == [next(second) for _ in range(50)]
    assert all(0.04 <= next(first) <= 0.16 for _ in range(200))


# The turn


async def test_the_last_message_of_the_user_is_answered(autojump_clock: MockClock) -> None:
    """Earlier questions and other roles do not count; several text parts are one text; other parts are passed over."""
    last = said("user", "json.", "loads")
    last.content.insert(0, {"type": "image", "url": "x"})
    turn = FakeTurn(said("system", "re"), said("user", "json"), last, said("assistant", "math"))
    await make_pydoc_responder(pace=0, in_thread=False)(turn)
    assert "".join(turn.texts) == document("json.loads")


@pytest.mark.parametrize("messages", [[], [said("assistant", "json")], [FakeMessage("user", [])]])
async def test_a_turn_without_a_question_is_answered(messages: list[FakeMessage], autojump_clock: MockClock) -> None:
    """Even with nothing asked there is an answer."""
    turn = FakeTurn(*messages)
    await make_pydoc_responder(pace=0, in_thread=False)(turn)
    assert "".join(turn.texts) == pydoc.HELP


async def test_the_answer_is_found_in_a_thread(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """By default the loop is free while documentation is rendered, and the answer is the same."""
    threads: list[threading.Thread] = []
    pieces = pydoc._pieces

    def watched(text: str, seed: int) -> list[str]:
        threads.append(threading.current_thread())
        return pieces(text, seed)

    monkeypatch.setattr(pydoc, "_pieces", watched)
    turn = FakeTurn(said("user", "json.loads"))
    await make_pydoc_responder(pace=0)(turn)
    assert threads != [threading.current_thread()]
    assert "".join(turn.texts) == document("json.loads")


async def test_a_cancelled_turn_does_not_wait_for_the_thread(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    """A Stop while documentation is being rendered is prompt, nothing is sent, and the next turn works."""
    entered, release, returned = threading.Event(), threading.Event(), threading.Event()

    def hanging(text: str, seed: int) -> list[str]:
        entered.set()
        release.wait(5)
        returned.set()
        return ["x"]

    respond = make_pydoc_responder(pace=0)
    turn, following = FakeTurn(said("user", "json")), FakeTurn(said("user", "json"))
    with monkeypatch.context() as patch:
        patch.setattr(pydoc, "_pieces", hanging)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(respond, turn)
            await trio.to_thread.run_sync(entered.wait)
            nursery.cancel_scope.cancel()
        assert not returned.is_set()
    release.set()
    await respond(following)
    assert (turn.parts, "".join(following.texts)) == ([], document("json"))


async def test_a_cancelled_turn_stops_between_tokens(autojump_clock: MockClock) -> None:
    """A Stop in the middle of an answer leaves what was sent, and nothing follows."""
    turn = FakeTurn(said("user", "argparse"))
    with trio.move_on_after(1):
        await make_pydoc_responder(pace=40, in_thread=False)(turn)
    sent = len(turn.parts)
    await wait_all_tasks_blocked()
    assert 30 <= sent <= 50
    assert len(turn.parts) == sent


# Names for checks


@pytest.mark.parametrize("bounds", [(20, 60), (60, 150), (150, 400), (400, 1_000), (1_000, 2_500), (2_500, 5_000)])
def test_samples_cover_short_and_long_answers(bounds: tuple[int, int]) -> None:
    """From twenty tokens to five thousand there are several names to ask for, and all are within their bounds."""
    low, high = bounds
    names = sample_names(Random(1), 8, min_tokens=low, max_tokens=high, seed=9)
    counts = [len(tokens(answer(name), name=name, seed=9)) for name in names]
    assert all(low <= count <= high for count in counts)
    assert len(set(names)) >= 3
    assert names == sample_names(Random(1), 8, min_tokens=low, max_tokens=high, seed=9)


def test_samples_all_exist() -> None:
    """Each sample is a name with documentation of its own."""
    assert [name for name in SAMPLES if not answer(name).startswith("Help on")] == []
    assert len(set(SAMPLES)) == len(SAMPLES)


def test_samples_that_cannot_be_had_are_refused() -> None:
    """Bounds that nothing fits are an error, not an endless search; enough names are given where few fit."""
    with pytest.raises(ValueError, match="no sample has"):
        sample_names(Random(1), 3, min_tokens=10**9, max_tokens=10**9, seed=0)
    assert len(sample_names(Random(1), 1_000, min_tokens=1, max_tokens=60, seed=0)) == 1_000
