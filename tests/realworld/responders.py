"""Responders for replicas that are processes of their own: `serve --responder tests.realworld.responders:NAME`."""

from __future__ import annotations

import trio

import relaytrio

PACE_SECONDS = 0.05
STUCK_SECONDS = 4.0
"""How long `stuck` ignores that it is to end."""


async def endless(turn: relaytrio.Turn) -> None:
    """Counts until it is cancelled."""
    number = 0
    while True:
        number += 1
        await turn.send({"type": "text", "text": f"{number} "})
        await trio.sleep(PACE_SECONDS)


async def stuck(turn: relaytrio.Turn) -> None:
    """Does not end when it is cancelled, for a while."""
    await turn.send({"type": "text", "text": "here "})
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(STUCK_SECONDS)


async def counting(turn: relaytrio.Turn) -> None:
    """Counts to the number that the user has written."""
    for number in range(int(turn.messages[-1].content[0]["text"])):
        await turn.send({"type": "text", "text": f"{number} "})
        await trio.sleep(PACE_SECONDS)
