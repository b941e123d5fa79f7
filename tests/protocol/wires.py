"""What both wires carry, drawn and made: numbers, names, texts, parts, episodes, rows."""

from __future__ import annotations

from hypothesis import strategies as st

from relaytrio._protocol import wire
from relaytrio._protocol.events import LARGEST_NUMBER, Episode, MessageRef, Part

LIMIT = 256 * 1024
EPISODE = Episode(57, 1, "p8r2dq7w3e")
TEXT_PART: Part = {"type": "text", "text": " token"}
PREFIX = "41-k3x9q-57.1.p8r2dq7w3e-"

NUMBERS = st.integers(0, LARGEST_NUMBER)
POSITIVE = st.integers(1, LARGEST_NUMBER)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=16)
# Hypothesis leaves lone surrogates out of its texts where they are to be encoded.
TEXTS = st.text(st.characters(codec="utf-8"))
INTEGERS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
PARTS = st.builds(
    lambda fields, kind: {**fields, "type": kind}, st.dictionaries(TEXTS, JSON, max_size=3), TEXTS
) | st.builds(lambda text: {"type": "text", "text": text}, TEXTS)
EPISODES = st.builds(Episode, NUMBERS, NUMBERS, NAMES)


def rows_from(first_seq: int, count: int, episode: Episode = EPISODE) -> list[bytes]:
    return [
        wire.encode_part_row(episode, seq, PREFIX, TEXT_PART, limit_bytes=LIMIT)
        for seq in range(first_seq, first_seq + count)
    ]


def text_rows(*seqs: int, episode: Episode = EPISODE, size: int = 0) -> list[bytes]:
    """Rows of parts whose texts are of that size."""
    part: Part = {"type": "text", "text": "x" * size}
    prefix = wire.cursor_prefix(MessageRef(1, "a"), episode)
    return [wire.encode_part_row(episode, seq, prefix, part, limit_bytes=LIMIT) for seq in seqs]
