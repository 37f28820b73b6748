"""What a test left behind: processes, descriptors, threads, temporary files."""

from __future__ import annotations

import gc
import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support import Process, descendants, kill, pids, processes_of

#: Processes end and sockets close a moment after they were told to: that long is allowed, seconds.
GRACE_S = 3.0
#: Names by which things of ours in the machine's temporary directory are known.
TEMPORARY = "xenoshell-*"


@dataclass(frozen=True)
class Before:
    """What there was before the test."""

    pids: frozenset[int]
    children: frozenset[int]
    descriptors: dict[int, str]
    threads: frozenset[int]
    temporary: frozenset[str]


def look(shared: Path = Path("/tmp")) -> Before:
    """Take stock before a test."""
    return Before(
        frozenset(pids()),
        frozenset(p.pid for p in descendants()),
        descriptors(),
        frozenset(t.ident or 0 for t in threading.enumerate()),
        frozenset(map(str, shared.glob(TEMPORARY))),
    )


def descriptors() -> dict[int, str]:
    """Open file descriptors of this process and what they are."""
    result = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            result[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return result


@dataclass(frozen=True)
class Leaks:
    """What is there now and was not before the test."""

    processes: tuple[Process, ...] = ()
    others: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.processes or self.others)

    def __str__(self) -> str:
        return "\n".join(["left behind:", *(f"  {p}" for p in self.processes), *(f"  {o}" for o in self.others)])


def find(before: Before, directory: Path, temporary: Path, shared: Path = Path("/tmp")) -> Leaks:
    """What is left of a test whose files are in ``directory``, whose TMPDIR was ``temporary``."""
    new = [pid for pid in pids() if pid not in before.pids]
    processes = {p.pid: p for p in descendants() if p.pid not in before.children}
    if new:
        processes |= {p.pid: p for p in processes_of(directory, new)}
    others = [
        f"descriptor {number}: {target}"
        for number, target in descriptors().items()
        if before.descriptors.get(number) != target and target != "/dev/urandom"
    ]
    others += [f"thread {t.name}" for t in threading.enumerate() if (t.ident or 0) not in before.threads]
    if temporary.is_dir():
        others += [f"temporary file {path}" for path in temporary.iterdir()]
    others += [
        f"temporary file {path}"
        for path in shared.glob(TEMPORARY)
        if str(path) not in before.temporary and not _in_use(path)
    ]
    return Leaks(tuple(processes.values()), tuple(others))


def check(before: Before, directory: Path, temporary: Path, grace_s: float = GRACE_S) -> Leaks:
    """As `find`, once what is only slow to end had ``grace_s`` seconds for it. Leaked processes are killed."""
    leaks = find(before, directory, temporary)
    if leaks:
        gc.collect()  # a descriptor that only waits for its owner to be collected is no leak
    deadline = time.monotonic() + grace_s
    while leaks and time.monotonic() < deadline:
        time.sleep(0.02)
        leaks = find(before, directory, temporary)
    for process in leaks.processes:
        kill(process)
    return leaks


def _in_use(path: Path) -> bool:
    """Whether a socket in ``path`` is bound right now: then it belongs to a process that lives, and if that is a
    process of this test it is reported as such. (Several test runs share the machine's temporary directory.)"""
    bound = Path("/proc/net/unix").read_text()
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            return str(path) in bound
        return any(str(inside) in bound for inside in path.iterdir()) if path.is_dir() else False
    except (FileNotFoundError, PermissionError):
        return True  # it went away between two looks, or is another user's
