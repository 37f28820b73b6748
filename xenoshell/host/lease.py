"""How long a VM may still run: arithmetic that neither a clock jump nor a reboot can stretch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple


class Now(NamedTuple):
    """The time: seconds since this boot (suspended time included), which boot, and the wall clock."""

    boot: float
    boot_id: str
    wall: float


@dataclass(frozen=True)
class Lease:
    """Until when a VM may run: on the clock of one boot, and on the wall clock for when that boot is over. 0: for
    ever.
    """

    boot_until: float = 0.0
    boot_id: str = ""
    wall_until: float = 0.0


def grant(now: Now, seconds: float) -> Lease:
    """A lease of ``seconds`` from now; 0 gives one that does not end."""
    return Lease(now.boot + seconds, now.boot_id, now.wall + seconds) if seconds > 0 else Lease()


def left(lease: Lease, now: Now) -> float:
    """Seconds left (0 when it is over), -1 without an end. After a reboot only the wall clock can tell."""
    if not lease.boot_id:
        return -1.0
    end = lease.boot_until - now.boot if lease.boot_id == now.boot_id else lease.wall_until - now.wall
    return max(0.0, end)


@dataclass(frozen=True)
class Running:
    """How long a VM has run: whole seconds of earlier runs, and this run's start and the last moment it was seen
    alive.
    """

    before_s: float = 0.0
    since: float = 0.0  # on the clock of boot_id; 0: not running
    seen: float = 0.0
    boot_id: str = ""


def start(running: Running, now: Now) -> Running:
    """A new run begins."""
    return Running(total(running), now.boot, now.boot, now.boot_id)


def seen(running: Running, now: Now) -> Running:
    """The run was seen alive now."""
    if running.since and running.boot_id == now.boot_id and now.boot > running.seen:
        return replace(running, seen=now.boot)
    return running


def total(running: Running) -> float:
    """Seconds of all runs, this one up to the last moment it was seen."""
    return running.before_s + (running.seen - running.since if running.since else 0.0)
