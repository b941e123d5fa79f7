"""A responder that needs no model: the user writes a name, the answer is its documentation, streamed like a model's.

Real input, real output, long answers, no network. What may be read is the standard library, trio, attrs and httpx
(_gate.py); a name is looked up without running anything (_lookup.py); the text is the same in every process with the
same versions (_render.py), and so are its tokens (_cut.py): another process can recompute what must arrive.
Must not know: episodes, transitions, the store. Called by the embedding program (the demo, the check).
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import cycle, islice
from random import Random
from typing import Any, Protocol, TypeAlias

import trio

from . import _gate
from ._cut import gaps, tokens
from ._lookup import Found, find, names_in
from ._reading import LONGEST_NAME, plain_words, pointed_names
from ._render import render

__all__ = ["answer", "document", "make_pydoc_responder", "sample_names", "tokens"]

CHUNK_PARTS = 64
"""Parts that travel together when there is no pace: enough that the cost of a call does not count."""
CATCH_UP_SECONDS = 0.25
"""How far behind its rhythm an answer may fall and still make up for it; beyond, the rhythm starts anew, no flood."""

HELP = """\
Write a name and I stream its documentation: a module, a class, a function or a method of the standard library, trio,
attrs or httpx. For example:

    asyncio.run
    trio.open_nursery
    json
    what is textwrap.dedent?
"""

_SAMPLE_NAMES = """
asyncio.sleep asyncio.run asyncio.gather asyncio.TaskGroup asyncio.Queue asyncio.Task asyncio.timeout asyncio json
json.dumps json.loads json.JSONEncoder textwrap textwrap.dedent textwrap.TextWrapper argparse
argparse.ArgumentParser collections.Counter collections.OrderedDict collections.deque collections.namedtuple
contextlib contextlib.ExitStack contextlib.suppress dataclasses dataclasses.dataclass datetime.datetime decimal
decimal.Decimal difflib difflib.SequenceMatcher email.message.EmailMessage enum.Enum fractions.Fraction functools
functools.partial functools.reduce functools.lru_cache heapq heapq.merge html.escape http.client itertools
itertools.chain itertools.groupby logging logging.Logger logging.handlers math math.gcd math.isclose os.path os.walk
os.scandir pathlib.Path pathlib.PurePath pickle queue.Queue random.Random random.shuffle re re.compile re.sub
selectors shutil shutil.copytree socket.socket sqlite3.Connection ssl.SSLContext statistics statistics.mean
string.Formatter struct subprocess subprocess.Popen subprocess.run tarfile threading threading.Lock threading.Thread
tempfile.mkdtemp time.monotonic typing typing.Protocol unittest.mock unittest.TestCase urllib.parse uuid.UUID
weakref.finalize xml.etree.ElementTree zipfile zipfile.ZipFile builtins.dict builtins.str trio trio.open_nursery
trio.run trio.sleep_forever trio.CancelScope trio.Nursery trio.MemorySendChannel trio.SocketStream
trio.to_thread.run_sync trio.lowlevel trio.open_memory_channel trio.move_on_after trio.abc.Stream attrs attrs.define
attrs.field attrs.evolve attr.validators httpx httpx.get httpx.Client httpx.AsyncClient httpx.Response httpx.URL
httpx.Timeout os io socket types weakref attr asyncio.StreamReader threading.Condition
contextlib.asynccontextmanager trio.Event trio.Lock httpx.Auth
"""
SAMPLES = tuple(_SAMPLE_NAMES.split())
"""Names whose documentation is short, middling and long, for checks that need answers of a given length."""


class _Message(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def content(self) -> Sequence[dict[str, Any]]: ...


class _Turn(Protocol):
    """What of a turn is used here."""

    @property
    def messages(self) -> Sequence[_Message]: ...
    async def send(self, part: dict[str, Any], /) -> object: ...
    async def send_many(self, parts: Sequence[dict[str, Any]], /) -> object: ...


Responder: TypeAlias = Callable[[_Turn], Awaitable[None]]


def make_pydoc_responder(
    *, pace: float = 40.0, seed: int = 0, stamp_times: bool = False, in_thread: bool = True
) -> Responder:
    """A responder that streams `answer` of the user's last message in the `tokens` of that message and `seed`.

    `pace` is tokens a second on average, in an uneven rhythm; 0 sends as fast as the turn takes them, in chunks.
    `stamp_times` adds `sent_at`, seconds of the system's clock, to each part: comparable on the same machine only.
    `in_thread` finds the answer in a worker thread, since a large module takes long enough to be noticed by others'
    streams; a cancelled turn does not wait for that thread, which changes nothing and ends by itself. A virtual clock
    that jumps when all tasks wait wants False. The turn is not finished here: its parts become the message.

    Raises ValueError for a pace that is negative or not finite.
    """
    if not (math.isfinite(pace) and pace >= 0):
        raise ValueError("pace is tokens a second: a finite number, not negative")
    limiter = trio.CapacityLimiter(1)  # rendering holds the interpreter: two at a time would only disturb more

    async def respond(turn: _Turn) -> None:
        text = last_user_text(turn.messages)
        if in_thread:
            pieces = await trio.to_thread.run_sync(_pieces, text, seed, abandon_on_cancel=True, limiter=limiter)
        else:
            pieces = _pieces(text, seed)
        if pace == 0:
            await _send_at_once(turn, pieces, stamp_times)
        else:
            await _send_at_pace(turn, pieces, gaps(name=text, seed=seed, pace=pace), stamp_times)

    return respond


def answer(text: str) -> str:
    """The whole answer to what a user wrote: documentation, close matches, or what can be asked.

    The same in every process with the same versions installed. May import modules of the standard library.
    """
    pointed = pointed_names(text)
    modules = [] if any(_is_ours(name) for name in pointed) else plain_words(text)
    for name in (*pointed, *(word for word in modules if word.lower() in _gate.ROOTS)):
        try:
            return document(name)
        except LookupError:
            continue
    likeliest = sorted(pointed, key=_is_ours, reverse=True)
    return _instead_of(likeliest[0]) if likeliest else HELP


def document(name: str) -> str:
    """The documentation of a dotted name such as `asyncio.run`; builtins need no `builtins.`.

    Raises LookupError for what is not there or not offered.
    """
    found = _found(name) if len(name) <= LONGEST_NAME else None
    if found is None:
        raise LookupError("no such name in the standard library, trio, attrs or httpx")
    return _rendered(found.name)


def sample_names(rng: Random, count: int, *, min_tokens: int, max_tokens: int, seed: int) -> list[str]:
    """Names, `count` of them, whose answers have so many tokens under that seed; they repeat only when they run out.

    Raises ValueError where no sample fits.
    """
    fitting = [name for name in SAMPLES if min_tokens <= len(_pieces(name, seed)) <= max_tokens]
    if not fitting:
        raise ValueError(f"no sample has {min_tokens} to {max_tokens} tokens")
    rng.shuffle(fitting)
    return list(islice(cycle(fitting), count))


def last_user_text(messages: Sequence[_Message]) -> str:
    """The text of the last message by the user; empty if there is none."""
    contents = (message.content for message in reversed(messages) if message.role == "user")
    texts = (part.get("text") for part in next(contents, ()) if part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _pieces(text: str, seed: int) -> list[str]:
    return tokens(answer(text), name=text, seed=seed)


async def _send_at_once(turn: _Turn, pieces: Sequence[str], stamp_times: bool) -> None:
    for start in range(0, len(pieces), CHUNK_PARTS):
        await turn.send_many([_part(piece, stamp_times) for piece in pieces[start : start + CHUNK_PARTS]])


async def _send_at_pace(turn: _Turn, pieces: Sequence[str], delays: Iterator[float], stamp_times: bool) -> None:
    due = trio.current_time()
    for piece, delay in zip(pieces, delays, strict=False):
        due = max(due + delay, trio.current_time() - CATCH_UP_SECONDS)
        await trio.sleep_until(due)
        await turn.send(_part(piece, stamp_times))


def _part(piece: str, stamp_times: bool) -> dict[str, Any]:
    part = {"type": "text", "text": piece}
    return part | {"sent_at": time.time()} if stamp_times else part


@lru_cache(maxsize=256)
def _rendered(name: str) -> str:
    """Kept by the name as it is really written: spellings of one name do not fill the cache."""
    found = find(name)
    assert found is not None
    return render(found)


def _found(name: str) -> Found | None:
    return find(name) or find(f"builtins.{name}")


def _is_ours(name: str) -> bool:
    """Whether a name begins like one that can be asked for, or with one that is denied."""
    root = name.partition(".")[0].lower()
    return root in _gate.ROOTS or root in _gate.DENIED


def _instead_of(name: str) -> str:
    """A friendly answer about a name that is not there: why, and what comes close."""
    reason = _gate.refusal(name) or _gate.refusal(name.lower())
    if reason is not None:
        return f"`{name}` is not offered here: {reason}.\n\n{HELP}"
    text = f"There is no public `{name}` in the standard library, trio, attrs or httpx, as far as I can see."
    matches = _close_matches(name)
    if not matches:
        return f"{text}\n\n{HELP}"
    listed = "\n".join(f"    {match}" for match in matches)
    return f"{text}\n\nDid you mean one of these?\n\n{listed}\n\nWrite its name to read its documentation.\n"


def _close_matches(name: str) -> list[str]:
    near = {known.rpartition(".")[2].lower(): known for known in reversed(_neighbours(name))}
    wanted = name.rpartition(".")[2].lower()
    return [near[match] for match in get_close_matches(wanted, sorted(near), n=6, cutoff=0.6)]


def _neighbours(name: str) -> list[str]:
    """Names that might have been meant: below the last part that exists; for a lone word, roots and popular names."""
    parent = name
    while "." in parent:
        parent = parent.rpartition(".")[0]
        found = _found(parent)
        if found is not None:
            return [f"{found.name}.{below}" for below in names_in(found)]
    return [*sorted(_gate.ROOTS), *(f"{root}.{below}" for root in _POPULAR for below in _names_below(root))]


_POPULAR = ("builtins", "trio", "asyncio", "collections", "httpx", "attrs")


def _names_below(root: str) -> list[str]:
    found = find(root)
    return [] if found is None else names_in(found)
