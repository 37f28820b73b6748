"""Remove every VM of a state directory with all its processes, and the directory: after a crash of anything, too."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import List

from xenoshell.host import proc
from xenoshell.host.proc import Process

ROUNDS = 50


def processes(state_dir: str) -> List[Process]:
    """The guardians, supervisors, QEMUs and what they started that belong to ``state_dir``, guardians and supervisors
    first.

    A process belongs to it for certain only if its working directory is inside (every QEMU's is) or if it was started
    as ``supervise`` of a VM inside; its start time is noted so that nothing else is ever hit.
    """
    inside = os.path.realpath(state_dir) + os.sep
    owners, others = [], []
    for pid in proc.pids():
        if pid == os.getpid():
            continue
        words = proc.command(pid)
        if len(words) > 2 and words[-2] == "supervise" and words[-1].startswith(inside):
            owners.append(proc.identify(pid))
        elif _qemu(words) and any(place.startswith(inside) for place in [proc.working_directory(pid), *words]):
            others.append(proc.identify(pid))
    return [p for p in owners + others if p.started]


def _qemu(words: List[str]) -> bool:
    return bool(words) and os.path.basename(words[0]).startswith("qemu-")


def sweep(state_dir: str) -> List[Process]:
    """Kill what belongs to ``state_dir``, then delete it. Returns what could not be killed (empty: all is gone)."""
    left = processes(state_dir)
    for _ in range(ROUNDS):  # a guardian that is just forking makes a second look necessary
        if not left:
            break
        for process in left:
            proc.kill(process)
        _await_end(left)
        left = processes(state_dir)
    if not left:
        shutil.rmtree(os.path.realpath(state_dir), ignore_errors=True)
    return left


def _await_end(processes: List[Process], deadline_s: float = 2.0) -> None:
    deadline = time.monotonic() + deadline_s
    while any(proc.alive(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.01)  # not our children: nothing announces their end


def main(state_dir: str) -> int:
    """The command ``sweep STATE-DIR``: exit status 1 if something is left."""
    left = sweep(state_dir)
    for process in left:
        sys.stderr.write("cannot kill process %d\n" % process.pid)
    return 1 if left or os.path.exists(state_dir) else 0
