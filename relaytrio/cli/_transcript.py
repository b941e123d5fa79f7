"""What a person reads of a chat's events: the messages and live text on stdout, all else as remarks on stderr.

A preview (the live text of an answer) ends with the first of: a message of a later version, `preview_reset`,
`history_reset`. The message that the live text became is not printed again: only what is missing of it. Must not
know: where the events come from. Who calls: `_tail.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .._protocol.events import (
    Degraded,
    Episode,
    ErrorEvent,
    Event,
    HistoryReset,
    Message,
    MessageEvent,
    MessagePart,
    PreviewReset,
    QueueUpdate,
    Retry,
    Status,
)
from ._output import Colour, Output

_COLOURS: Final[dict[str, Colour]] = {"user": "blue", "assistant": "green"}
_REASONS: Final = {
    "new_attempt": "the attempt failed; the text above is void",
    "worker_lost": "the replica that was generating is gone; the text above is void",
    "nothing_kept": "the answer ended without a message; the text above is void",
    "truncated": "the beginning of the answer is not in memory any more; it goes on at part",
    "gap": "some of the answer was lost on its way; it goes on at part",
}
_GOES_ON: Final = ("truncated", "gap")


def text_of(parts: Iterable[dict[str, Any]]) -> str:
    """The text of content; what is not text is named."""
    return "".join(str(part.get("text", "")) if part["type"] == "text" else f"[{part['type']}]" for part in parts)


class Transcript:
    """Events in, text out."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._episode: Episode | None = None
        """Of the preview, while there is one."""
        self._live: list[str] = []
        """The live text on the screen."""
        self._state: tuple[str, str | None] | None = None
        self._waiting = 0

    def show(self, event: Event) -> None:
        """Print what the event says, if it says anything to a person."""
        match event:
            case MessageEvent(message=message):
                self._message(message)
            case MessagePart(episode=episode, part=part):
                self._part(episode, text_of([part]))
            case PreviewReset(reason=reason, first_seq=first_seq):
                self._preview_reset(reason, first_seq)
            case HistoryReset(after_id=after_id):
                self._episode = None
                after = f"after {after_id} " if after_id else ""
                self._output.remark(f"the messages {after}above are void; those that stand now follow")
            case _:
                self._state_of_chat(event)

    def _state_of_chat(self, event: Event) -> None:
        match event:
            case Status(status=status, worker_id=worker_id):
                self._status(status, worker_id)
            case QueueUpdate(queue=queue):
                if len(queue) != self._waiting:
                    self._output.remark(f"waiting: {len(queue)}")
                self._waiting = len(queue)
            case ErrorEvent(error=error):
                self._output.remark(f"the answer failed: {error.message} ({error.kind})", "red")
            case Retry(attempt=attempt, delay_seconds=delay, error=error):
                self._output.remark(f"attempt {attempt} failed: {error}; the next one in {delay:.1f} s", "yellow")
            case Degraded(what=what, ok=ok, message=message):
                self._output.remark(f"{what}: {message or ('works again' if ok else 'does not work')}", "yellow")

    def _status(self, status: str, worker_id: str | None) -> None:
        if (status, worker_id) != self._state:
            self._output.remark(f"{status}, replica {worker_id}" if worker_id else status)
        self._state = (status, worker_id)

    def _message(self, message: Message) -> None:
        text = text_of(message.content)
        if not self._completes_preview(message, text):
            self._header(message.role, "")
            self._output.write(text)
        self._output.end_line()
        if message.interrupted:
            self._output.remark("(interrupted)")
        if message.truncated:
            self._output.remark("(truncated: the answer outgrew the limit)")

    def _completes_preview(self, message: Message, text: str) -> bool:
        """Whether the message is what stands on the screen already, but for an end that is added here."""
        if self._episode is None or message.version <= self._episode.history_version:
            return False
        self._episode = None
        live = "".join(self._live)
        if message.role == "assistant" and text.startswith(live):
            self._output.write(text[len(live) :])
            return True
        self._output.remark("the live text above is replaced by the message")
        return False

    def _part(self, episode: Episode, text: str) -> None:
        if episode != self._episode:
            self._begin(episode, "")
        self._live.append(text)
        self._output.write(text)

    def _begin(self, episode: Episode, about: str) -> None:
        self._episode = episode
        self._live = []
        self._header("assistant", about)

    def _header(self, role: str, about: str) -> None:
        self._output.end_line()
        self._output.write(f"{role}{about}: ", _COLOURS.get(role, "bold"), "bold")

    def _preview_reset(self, reason: str, first_seq: int) -> None:
        episode, self._episode = self._episode, None
        self._output.end_line()
        said = _REASONS.get(reason, reason)
        if reason not in _GOES_ON:
            self._output.remark(said)
        else:
            self._output.remark(f"{said} {first_seq}")
            if episode is not None:
                self._begin(episode, f" (from part {first_seq})")
