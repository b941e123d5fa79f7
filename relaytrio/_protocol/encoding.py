"""JSON as all sockets here have it, and what of it is checked wherever it stands.

Whatever the bytes: what is malformed is a `WireError`, and no text of it holds what the peer sent. Who calls: the two
wires, of viewers and of replicas.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Raw

from .._errors import WireError
from .events import LARGEST_NUMBER, Episode

HEARTBEAT = b"[]"
"""The frame that says only that the connection lives."""

Number: TypeAlias = Annotated[int, Meta(ge=0, le=LARGEST_NUMBER)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST_NUMBER)]
EpisodeFields: TypeAlias = tuple[Number, Number, Annotated[str, Meta(min_length=1, max_length=32)]]

_T = TypeVar("_T")
encode = msgspec.json.Encoder().encode


def decode(decoder: msgspec.json.Decoder[_T], data: bytes | str | Raw) -> _T:
    """What the decoder makes of it. Raises `WireError`."""
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:  # malformed, of a wrong type, no UTF-8; nested too deep
        # `from None`: the caught error holds what the peer sent.
        raise WireError(f"not of this protocol: {_told(str(error))}") from None


def _told(fault: str) -> str:
    """The decoder's text, but for the one that quotes a value."""
    if fault.startswith("Invalid enum value"):
        return f"no known value{fault[fault.rindex(' - at ') :]}"
    return fault


def written(episode: Episode) -> tuple[int, int, str]:
    """How an episode is written."""
    return (episode.history_version, episode.generation_attempt, episode.run_id)
