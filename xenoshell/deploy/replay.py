"""A recorded deployment, shown again: the events of events.jsonl at a chosen speed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from .events import Event, from_line


def read_events(path: Path) -> tuple[Event, ...]:
    """The events of a record, oldest first. A torn last line (the client was killed while writing) is left out, and so
    is any line that this version does not understand. A file that is not there has no events."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ()
    events = []
    for raw in data.split(b"\n"):
        try:
            events.append(from_line(raw.decode()))
        except ValueError:
            continue
    return tuple(events)


async def replay(
    events: Iterable[Event],
    speed: float = 1.0,
    *,
    longest_gap_s: float = 5.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Event]:
    """Yield ``events`` with the pauses they had, divided by ``speed``; 0 gives all of them at once.

    No pause is longer than ``longest_gap_s`` (before the division). A record of several deployments starts its clock
    anew with each ``session.started``. Raises `ValueError` for a negative speed.
    """
    if speed < 0:
        raise ValueError("speed is 0 (no pauses) or a positive factor")
    last = 0.0
    for event in events:
        gap = 0.0 if event.event == "session.started" else min(longest_gap_s, max(0.0, event.t - last))
        last = event.t
        if speed and gap:
            await sleep(gap / speed)
        yield event
