"""Bytes <-> control frames: what goes between two replicas, and what is refused there.

JSON objects in text, the same heartbeat as for viewers, and bursts: binary, a JSON header, a line feed, and the rows as
they stand in the log, so that nobody between the worker and the browser decodes them. Compatible in both directions:
unknown fields are ignored, unknown types of frames are passed over.

Must not know: sockets, when something is sent, what a log is. Who calls: the dialer's legs and the parts endpoint.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import attrs
import msgspec
from msgspec import Struct

from .._errors import WireError
from .burst import Burst
from .encoding import HEARTBEAT, EpisodeFields, Number, Positive, decode, encode, written
from .events import Episode
from .wire import EPISODES_AT_ONCE, are_parts

PROTOCOL_VERSION = 1
"""Goes up when an older peer would misunderstand a frame; new fields and types do not raise it."""

BEGINNING_BYTES = 512
"""A burst's header is shorter, as we write it."""

EndReason: TypeAlias = Literal["sealed", "not_owner", "over", "refused", "beyond"]
"""Why an episode's rows end. A reason that a later version may add is read as `not_owner`, which makes its reader look
again and go on trying, and nothing else. Read as `sealed` or `over`, it could leave a viewer waiting."""


@attrs.frozen
class Select:
    """Send this leg the rows of an episode from `after_seq + 1` on."""

    leg: int
    """Numbers the legs of one connection."""
    chat_id: str
    episode: Episode
    after_seq: int
    grant: str = attrs.field(repr=False)
    bundles: bool = False
    """Whoever selects this takes bundles on this connection. An older peer does not say so, and gets none."""


@attrs.frozen
class Release:
    """This leg wants nothing more."""

    leg: int


@attrs.frozen
class Ended:
    """What was selected on this leg has ended."""

    leg: int
    episode: Episode
    reason: EndReason
    last_seq: int
    owner_id: str | None = None
    """The replica id of the chat's owner, where the reason is `not_owner` and there is one."""


class LegBurst(Struct, frozen=True, gc=False):
    """Rows for a leg."""

    leg: int
    burst: Burst


@attrs.frozen
class Bundle:
    """Rows for several legs, in the order in which they would have gone out: one frame costs less than many."""

    bursts: tuple[LegBurst, ...]


@attrs.frozen
class Heartbeat:
    """The connection lives."""


Control: TypeAlias = Select | Release | Ended | LegBurst | Bundle | Heartbeat


class _ControlHead(Struct):
    """What every control frame has. A greater version is no obstacle: the frame is what it decodes to."""

    v: Positive
    type: str


class _Select(_ControlHead):
    leg: Number
    chat: str
    episode: EpisodeFields
    after_seq: Number
    grant: str
    bundles: bool = False

    def frame(self) -> Select:
        return Select(self.leg, self.chat, Episode(*self.episode), self.after_seq, self.grant, self.bundles)


class _Release(_ControlHead):
    leg: Number

    def frame(self) -> Release:
        return Release(self.leg)


class _Ended(_ControlHead):
    leg: Number
    episode: EpisodeFields
    reason: str
    last_seq: Number
    owner_id: str | None = None

    def frame(self) -> Ended:
        reason: EndReason = self.reason if self.reason in get_args(EndReason) else "not_owner"  # type: ignore[assignment]
        return Ended(self.leg, Episode(*self.episode), reason, self.last_seq, self.owner_id)


class _BurstHeader(_ControlHead):
    leg: Number
    episode: EpisodeFields
    first_seq: Positive
    count: Positive
    truncated: bool = False

    def frame(self, rows: bytes | memoryview) -> LegBurst:
        burst = Burst(_episode(self.episode), self.first_seq, self.count, bytes(rows), self.truncated)
        return LegBurst(self.leg, _check_rows(burst))


class _Bundled(Struct, gc=False):
    leg: Number
    episode: EpisodeFields
    first_seq: Positive
    count: Positive
    size: Positive
    """Of its rows, in bytes."""
    truncated: bool = False


class _BundleHeader(_ControlHead):
    bursts: list[_Bundled]

    def frame(self, rows: bytes | memoryview) -> Bundle:
        bursts, begin = [], 0
        for bundled in self.bursts:
            own_rows = bytes(rows[begin : begin + bundled.size])
            begin += bundled.size
            burst = Burst(_episode(bundled.episode), bundled.first_seq, bundled.count, own_rows, bundled.truncated)
            bursts.append(LegBurst(bundled.leg, _check_rows(burst)))
        if begin != len(rows):
            raise WireError("not of this protocol: a bundle of another size than its bursts")
        return Bundle(tuple(bursts))


_CONTROL_HEAD = msgspec.json.Decoder(_ControlHead)
_CONTROLS: dict[str, msgspec.json.Decoder[_Select | _Release | _Ended]] = {
    "select": msgspec.json.Decoder(_Select),
    "release": msgspec.json.Decoder(_Release),
    "ended": msgspec.json.Decoder(_Ended),
}
_BINARY_HEADERS: dict[str, msgspec.json.Decoder[_BurstHeader | _BundleHeader]] = {
    "burst": msgspec.json.Decoder(_BurstHeader),
    "bundle": msgspec.json.Decoder(_BundleHeader),
}


def encode_control(frame: Control) -> str | bytes:
    """The frame for a socket: bytes (a binary frame) for bursts, text for all others."""
    match frame:
        case LegBurst(leg, burst):
            # What an encoder makes of it, in two thirds of the time: it goes before every token.
            truncated = b"true" if burst.truncated else b"false"
            fields = (leg, _written(burst.episode), burst.first_seq, burst.count, truncated, burst.rows)
            return _BURST % fields
        case Bundle(bursts):
            header = _control("bundle", bursts=[_bundled(of_leg.leg, of_leg.burst) for of_leg in bursts])
            return b"".join([header, b"\n", *(of_leg.burst.rows for of_leg in bursts)])
        case Select(leg, chat_id, episode, after_seq, grant, bundles):
            named = written(episode)
            text = _control(
                "select", leg=leg, chat=chat_id, episode=named, after_seq=after_seq, grant=grant, bundles=bundles
            )
        case Release(leg):
            text = _control("release", leg=leg)
        case Ended(leg, episode, reason, last_seq, owner_id):
            named = written(episode)
            text = _control("ended", leg=leg, episode=named, reason=reason, last_seq=last_seq, owner_id=owner_id)
        case _:
            text = HEARTBEAT
    return text.decode()


@lru_cache(maxsize=EPISODES_AT_ONCE)
def _episode(fields: EpisodeFields) -> Episode:
    """One object for each: it comes with every burst, and names what is looked up."""
    return Episode(*fields)


@lru_cache(maxsize=EPISODES_AT_ONCE)
def _written(episode: Episode) -> bytes:
    return encode(written(episode))


def _bundled(leg: int, burst: Burst) -> _Bundled:
    size = len(burst.rows)
    return _Bundled(leg, written(burst.episode), burst.first_seq, burst.count, size, burst.truncated)


def _control(type: str, **fields: object) -> bytes:
    return encode({"v": PROTOCOL_VERSION, "type": type, **fields})


_BURST_BEGINNING = _control("burst")[:-1] + b","
"""Of what nearly every frame is, as it is written here: its type is not looked up."""
_BURST = _BURST_BEGINNING + b'"leg":%d,"episode":%b,"first_seq":%d,"count":%d,"truncated":%b}\n%b'


def decode_control(data: str | bytes | memoryview, *, limit_bytes: int) -> Control | None:
    """The control frame that came in; None if its type is unknown here. Text is text, all else is a binary frame.

    Raises `WireError`, also if it is larger than `limit_bytes`. The rows of a burst are not decoded, but it is sure
    that they are UTF-8, each on a line of its own, and begin as the parts that the burst says they are.
    """
    if isinstance(data, str):
        return _decode_text(data.encode(errors="surrogatepass"), limit_bytes)
    if len(data) > limit_bytes:
        raise _too_large(limit_bytes)
    return _decode_bursts(data)


def _too_large(limit_bytes: int) -> WireError:
    return WireError(f"a frame of more than {limit_bytes} bytes")


def _decode_text(data: bytes, limit_bytes: int) -> Select | Release | Ended | Heartbeat | None:
    if len(data) > limit_bytes:
        raise _too_large(limit_bytes)
    if data == HEARTBEAT:
        return Heartbeat()
    decoder = _CONTROLS.get(decode(_CONTROL_HEAD, data).type)
    return None if decoder is None else decode(decoder, data).frame()


def _decode_bursts(data: bytes | memoryview) -> LegBurst | Bundle | None:
    rows: bytes | memoryview
    if isinstance(data, bytes):
        header, _, rows = data.partition(b"\n")
    else:
        # Many rows: they are copied once, into what is kept, and not a second time to find where they begin.
        header = _header(data)
        rows = data[len(header) + 1 :]
    decoder = _BINARY_HEADERS["burst"] if header.startswith(_BURST_BEGINNING) else _decoder_of(header)
    return None if decoder is None else decode(decoder, header).frame(rows)


def _header(data: memoryview) -> bytes:
    """What stands before the first line feed, which is nearly always in the beginning."""
    header, found, _ = bytes(data[:BEGINNING_BYTES]).partition(b"\n")
    return header if found else bytes(data).partition(b"\n")[0]


def _decoder_of(header: bytes) -> msgspec.json.Decoder[_BurstHeader | _BundleHeader] | None:
    return _BINARY_HEADERS.get(decode(_CONTROL_HEAD, header).type)


def _check_rows(burst: Burst) -> Burst:
    """The burst, if its rows are the parts that it says they are, and can be sent to a browser as they stand."""
    rows = burst.rows
    if not are_parts(burst) or not rows.endswith(b"}"):
        raise WireError("not of this protocol: a burst of something else than its rows")
    if not rows.isascii():
        try:
            rows.decode()
        except UnicodeDecodeError:
            raise WireError("not of this protocol: a burst that is no UTF-8") from None
    return burst
