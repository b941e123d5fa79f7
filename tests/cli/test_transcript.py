"""What a person reads of a chat's events."""

from __future__ import annotations

import io

import pytest

from relaytrio._protocol.events import (
    CaughtUp,
    ChatError,
    Degraded,
    Episode,
    ErrorEvent,
    Event,
    HistoryReset,
    Message,
    MessageEvent,
    MessagePart,
    PreviewReset,
    QueueEntry,
    QueueUpdate,
    ResetReason,
    Retry,
    Status,
)
from relaytrio.cli._output import Output
from relaytrio.cli._transcript import Transcript, text_of

EPISODE = Episode(5, 1, "run")
NEXT = Episode(5, 2, "run")


def message(
    id: int, text: str, *, role: str = "assistant", version: int = 6, interrupted: bool = False
) -> MessageEvent:
    content = [{"type": "text", "text": text}]
    stored = Message(
        id=id, stamp="aaaaa", role=role, content=content, version=version, interrupted=interrupted, created_at=""
    )
    return MessageEvent(message=stored, cursor="")


def part(seq: int, text: str, episode: Episode = EPISODE) -> MessagePart:
    return MessagePart(episode=episode, seq=seq, part={"type": "text", "text": text}, cursor="")


def shown(*events: Event) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    transcript = Transcript(Output(out, err))
    for event in events:
        transcript.show(event)
    return out.getvalue(), err.getvalue()


def test_history() -> None:
    """Messages stand under their roles, each ending its line."""
    events = message(1, "hi\n", role="user", version=1), message(2, "hello")
    assert ("user: hi\nassistant: hello\n", "") == shown(*events)


def test_live_text_is_not_printed_again() -> None:
    """The message that the live text became adds only the end of its line."""
    assert ("assistant: token\n", "") == shown(part(1, "to"), part(2, "ken"), message(2, "token"))


def test_what_is_missing_is_added() -> None:
    """A message that has more than the live text gets its rest printed."""
    assert ("assistant: token\n", "(interrupted)\n") == shown(part(1, "to"), message(2, "token", interrupted=True))


def test_another_text_replaces_the_live_one() -> None:
    """A message that is not what the live text began is printed in full, and the reader is told."""
    out, err = shown(part(1, "abc"), message(2, "xyz"))
    assert out == "assistant: abc\nassistant: xyz\n"
    assert "replaced" in err


def test_an_older_message_does_not_end_the_preview() -> None:
    """Only a message of a later version ends the live text."""
    out, _ = shown(message(1, "q", role="user", version=5), part(1, "a"), message(2, "ab"))
    assert out == "user: q\nassistant: ab\n"


@pytest.mark.parametrize("reason", ["new_attempt", "worker_lost", "nothing_kept"])
def test_a_reset_ends_the_live_text(reason: ResetReason) -> None:
    """After a reset that ends the preview, the next episode begins on a line of its own."""
    out, err = shown(part(1, "abc"), PreviewReset(reason=reason, first_seq=1, cursor=""), part(1, "x", NEXT))
    assert out == "assistant: abc\nassistant: x"
    assert "void" in err


@pytest.mark.parametrize("reason", ["truncated", "gap"])
def test_a_reset_that_goes_on(reason: ResetReason) -> None:
    """After a gap the live text goes on where it can, and the whole message follows at its end."""
    reset = PreviewReset(reason=reason, first_seq=7, cursor="")
    out, err = shown(part(1, "abc"), reset, part(7, "g"), message(2, "abcdefg"))
    assert out == "assistant: abc\nassistant (from part 7): g\nassistant: abcdefg\n"
    assert "at part 7" in err


def test_history_reset() -> None:
    """Void messages are told of; the live text is over too."""
    out, err = shown(part(1, "abc"), HistoryReset(after_id=0, cursor=""), message(1, "abc"))
    assert out == "assistant: abc\nassistant: abc\n"
    assert "void" in err


def test_state_is_remarked() -> None:
    """Status, queue, error, retry and degradation go to stderr, repeated states once, and stdout stays empty."""
    out, err = shown(
        QueueUpdate(queue=(), cursor=""),
        Status(status="running", worker_id="w", version=1, cursor=""),
        Status(status="running", worker_id="w", version=2, cursor=""),
        CaughtUp(cursor=""),
        QueueUpdate(queue=(QueueEntry(id=1, content=[]),), cursor=""),
        Retry(attempt=1, delay_seconds=0.5, error="busy", cursor=""),
        Degraded(what="relay", ok=False, message="refused", retrying=True, cursor=""),
        ErrorEvent(error=ChatError(kind="responder_failed", message="it broke"), cursor=""),
    )
    assert out == ""
    assert err.splitlines() == [
        "running, replica w",
        "waiting: 1",
        "attempt 1 failed: busy; the next one in 0.5 s",
        "relay: refused",
        "the answer failed: it broke (responder_failed)",
    ]


def test_content_that_is_no_text() -> None:
    """What is no text is named, not dropped."""
    assert text_of([{"type": "text", "text": "a"}, {"type": "image", "url": "x"}]) == "a[image]"
