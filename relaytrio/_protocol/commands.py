"""What may be asked of a chat: commands, as values. Which of them is possible when is in the table of `chat.py`."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from .events import ChatError, Content, Episode, RetryState

WhenBusy: TypeAlias = Literal["queue", "interrupt", "reject"]
ROLES = ("user", "assistant", "system", "tool")


@attrs.frozen(kw_only=True)
class NewMessage:
    """A message that is not stored yet; its content is valid and normal (a list of parts)."""

    role: str
    content: Content
    interrupted: bool = False
    truncated: bool = False


@attrs.frozen(kw_only=True)
class Create:
    messages: tuple[NewMessage, ...]


@attrs.frozen(kw_only=True)
class SendMessage:
    content: Content
    when_busy: WhenBusy = "queue"


@attrs.frozen(kw_only=True)
class EditMessage:
    message_id: int
    content: Content


@attrs.frozen(kw_only=True)
class DeleteQueued:
    queued_id: int


@attrs.frozen(kw_only=True)
class PromoteQueued:
    queued_id: int


@attrs.frozen(kw_only=True)
class Interrupt:
    of: Episode | None = None


@attrs.frozen(kw_only=True)
class Acquire:
    worker_id: str
    run_id: str
    dead_worker_id: str | None = None
    """The owner that the acquiring worker has found dead; only that one is replaced."""


@attrs.frozen(kw_only=True)
class RunCommand:
    """A transition that a run asks for: fenced by its run id, repeatable by its token."""

    run_id: str
    token: str


@attrs.frozen(kw_only=True)
class BeginAttempt(RunCommand):
    pass


@attrs.frozen(kw_only=True)
class RecordRetry(RunCommand):
    retry: RetryState


@attrs.frozen(kw_only=True)
class Commit(RunCommand):
    messages: tuple[NewMessage, ...]


@attrs.frozen(kw_only=True)
class FinishTurn(RunCommand):
    messages: tuple[NewMessage, ...] = ()


@attrs.frozen(kw_only=True)
class FinishInterruption(RunCommand):
    messages: tuple[NewMessage, ...] = ()
    """What was generated; none for nothing. Stored as interrupted."""


@attrs.frozen(kw_only=True)
class Fail(RunCommand):
    error: ChatError
    messages: tuple[NewMessage, ...] = ()
    """What was generated; none for nothing. Stored as interrupted."""


@attrs.frozen(kw_only=True)
class Abandon(RunCommand):
    pass


UserCommand: TypeAlias = SendMessage | EditMessage | DeleteQueued | PromoteQueued | Interrupt
Command: TypeAlias = (
    UserCommand | Acquire | BeginAttempt | RecordRetry | Commit | FinishTurn | FinishInterruption | Fail | Abandon
)
