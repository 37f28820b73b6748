"""What a test left behind: processes, descriptors, threads, temporary files."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support import Process, descends, kill, pids, process, processes_of
from xenoshell.host.rendezvous import clean

#: Processes end and sockets close a moment after they were told to: that long is allowed, seconds.
GRACE_S = 3.0
#: Names by which things of ours in the machine's temporary directory are known.
TEMPORARY = "xenoshell-*"
#: Where helpers put their sockets (XDG_RUNTIME_DIR) when a test starts them, or a server of its own does.
RUNTIME = "run"


@dataclass(frozen=True)
class Before:
    """What there was before the test."""

    pids: frozenset[int]
    descriptors: dict[int, str]
    threads: frozenset[int]
    temporary: frozenset[str]


def look(shared: Path = Path("/tmp")) -> Before:
    """Take stock before a test."""
    return Before(
        frozenset(pids()),
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
    others = [
        f"descriptor {number}: {target}"
        for number, target in descriptors().items()
        if before.descriptors.get(number) != target and target != "/dev/urandom"
    ]
    others += [f"thread {t.name}" for t in threading.enumerate() if (t.ident or 0) not in before.threads]
    for place in (temporary, directory / RUNTIME, *directory.glob(f"*/{RUNTIME}")):
        if place.is_dir():
            others += [f"temporary file {path}" for path in place.iterdir()]
    return Leaks(_processes(before, directory), (*others, *_shared(before, shared)))


def _processes(before: Before, directory: Path) -> tuple[Process, ...]:
    """New descendants of this process, and whoever else is new and works with the test's files. The machine may be
    full of other new processes: those of others, other runs of these tests included."""
    new = [pid for pid in pids() if pid not in before.pids]
    if not new:
        return ()
    found = {pid: p for pid in new if descends(pid) and (p := process(pid))}
    found |= {p.pid: p for p in processes_of(directory, new)}
    return tuple(found.values())


def _shared(before: Before, shared: Path) -> list[str]:
    """What is new in the machine's temporary directory, under our names, and belongs to no living process.

    A helper that was killed leaves its socket there, and the next helper removes it. Whether that helper was this
    test's or one of another run cannot be told any more, but whether such leavings really go away can.
    """

    def new() -> list[str]:
        return [path for path in map(str, shared.glob(TEMPORARY)) if path not in before.temporary]

    if not new():
        return []
    clean(str(shared))
    return [f"temporary file {path}" for path in new() if not _owned(path)]


def _owned(path: str) -> bool:
    """Whether the process lives whose pid is in the name (xenoshell-UID-PID-...): it is looked at as a process."""
    fields = path.rpartition("/")[2].split("-")
    return len(fields) > 2 and fields[2].isdigit() and os.path.exists(f"/proc/{fields[2]}")


def check(before: Before, directory: Path, temporary: Path, grace_s: float = GRACE_S) -> Leaks:
    """As `find`, once what is only slow to end had ``grace_s`` seconds for it. Leaked processes are killed."""
    leaks = find(before, directory, temporary)
    if leaks:
        gc.collect()  # a descriptor that only waits for its owner to be collected is no leak
    deadline = time.monotonic() + grace_s
    while leaks and time.monotonic() < deadline:
        time.sleep(0.02)
        leaks = find(before, directory, temporary)
    for left in leaks.processes:
        kill(left)
    return leaks
