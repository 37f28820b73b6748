"""What /proc knows: which process is the one we meant, what it used, and clocks that nobody can set."""

from __future__ import annotations

import os
import signal
import time
from typing import Iterator, List, NamedTuple, Tuple

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """A process, known for certain: a pid is used again, but never with the same start time (in clock ticks since
    boot).
    """

    pid: int
    started: int


def boot_id() -> str:
    """The id of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def boottime() -> float:
    """Seconds since the host booted, suspended time included; setting the clock does not change it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _stat(pid: int) -> List[str]:
    with open("/proc/%d/stat" % pid) as file:
        return file.read().rpartition(")")[2].split()


def identify(pid: int) -> Process:
    """The process that has ``pid`` now; started is 0 if there is none (a zombie is none)."""
    try:
        stat = _stat(pid)
    except (OSError, ValueError):
        return Process(pid, 0)
    return Process(pid, 0 if stat[0] in "ZX" else int(stat[19]))


def alive(process: Process) -> bool:
    """Whether exactly this process still runs."""
    return process.started > 0 and identify(process.pid) == process


def used(pid: int) -> Tuple[float, int]:
    """CPU seconds used by ``pid`` so far and its resident memory in bytes. Raises `OSError` when it is gone."""
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) / TICKS, int(stat[21]) * PAGE


def kill(process: Process, number: int = signal.SIGKILL) -> bool:
    """Send a signal to exactly this process. False if it is gone already."""
    if not alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def pids() -> Iterator[int]:
    """All pids that are visible."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def working_directory(pid: int) -> str:
    """The working directory of ``pid``; "" if it is gone or not ours to see."""
    try:
        return os.readlink("/proc/%d/cwd" % pid)
    except OSError:
        return ""


def command(pid: int) -> List[str]:
    """The arguments of ``pid``; empty if it is gone."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return os.fsdecode(file.read()).split("\0")[:-1]
    except OSError:
        return []


def qemus_in(directory: str) -> List[Process]:
    """The QEMU processes whose working directory is ``directory``: the one of a VM, since each runs in its VM's
    directory.
    """
    directory = os.path.realpath(directory)
    return [
        identify(pid)
        for pid in pids()
        if working_directory(pid) == directory
        and os.path.basename((command(pid) or [""])[0]).startswith("qemu-system-")
    ]
