"""What the responder of a simulated cluster answers: a known text to every question, paced and failing as planned.

Each part says which question it answers and which piece of the answer it is, so that whoever sees a message or a part
can tell what is missing, doubled or in the wrong place. Must not know: replicas, stores. Who calls: simulated clusters
and their oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import trio

from .._errors import RetryableError
from .._protocol.events import Content, Message, Part
from .._turn import Turn


@attrs.frozen(kw_only=True)
class AnswerPlan:
    """How one question is answered."""

    parts: int = 3
    pause_seconds: float = 0.05
    """Before each part."""
    failures: int = 0
    """So many attempts of a run fail, in the middle of the answer, and ask for another."""
    breaks: bool = False
    """The last attempt fails for good, in the middle of the answer."""
    commits_after: int = 0
    """If not 0: so many parts are committed as a message of their own, as before a tool's call."""
    unwind_seconds: float = 0.0
    """How long it takes to end when it is cancelled."""


class ScriptedAnswers:
    """A `Responder`. Questions that have no plan of their own are answered by the `default` one."""

    def __init__(self, default: AnswerPlan | None = None) -> None:
        self.default = default or AnswerPlan()
        self.plans: dict[str, AnswerPlan] = {}
        """By the text of the question."""

    def plan(self, question: str) -> AnswerPlan:
        """How that question is answered."""
        return self.plans.get(question, self.default)

    async def __call__(self, turn: Turn) -> None:
        question, known = question_of(turn.messages)
        plan = self.plan(question)
        try:
            await self._answer(turn, plan, question, known)
        except trio.Cancelled:
            if plan.unwind_seconds:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + plan.unwind_seconds):
                    await trio.sleep_forever()
            raise

    async def _answer(self, turn: Turn, plan: AnswerPlan, question: str, known: int) -> None:
        failing = turn.attempt <= plan.failures or plan.breaks
        last = (known + plan.parts + 1) // 2 if failing else plan.parts
        for number in range(known + 1, last + 1):
            await trio.sleep(plan.pause_seconds)
            await turn.send(part_of(question, number))
            if number == plan.commits_after:
                await turn.commit()
        if turn.attempt <= plan.failures:
            raise RetryableError("planned")
        if plan.breaks:
            raise ValueError("planned")


def part_of(question: str, number: int) -> Part:
    """The piece of that number, from 1, of the answer to that question."""
    return {"type": "text", "text": f"{question}.{number};"}


def pieces_of(content: Content) -> list[str]:
    """The pieces that were joined to this."""
    return [piece for part in content for piece in part["text"].split(";") if piece]


def question_of(messages: Sequence[Message]) -> tuple[str, int]:
    """The last question, and how many pieces of its answer follow it in the history."""
    question, pieces = "", 0
    for message in messages:
        if message.role == "user":
            question, pieces = message.content[0]["text"], 0
        else:
            pieces += len(pieces_of(message.content))
    return question, pieces


def answers_in(messages: Sequence[Message]) -> Mapping[int, list[Message]]:
    """The messages that answer each question of a history, by the id of the question."""
    answers: dict[int, list[Message]] = {}
    last = 0
    for message in messages:
        if message.role == "user":
            last = message.id
            answers[last] = []
        else:
            answers.setdefault(last, []).append(message)
    return answers
