"""The guardian of a supervisor: a parent that does nothing but start it again when it dies.

Both are copies of one process, made by fork. The guardian is "subreaper", so that the QEMU of a dead supervisor
becomes its child and not init's. It lives as long as a pipe is open: when it dies, the supervisor reads the end of the
pipe and splits in two itself (`renew`): the old process stays behind as the new guardian, its copy goes on as
supervisor with all its connections.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
import traceback
from typing import Callable, List, Optional, Tuple

#: A supervisor that dies this often within this many seconds is left alone for as long, then tried again: without one,
#: nobody would keep the lease.
DEATHS, WITHIN_S = 5, 60.0
START_S = 10.0

Supervise = Callable[[int, int], int]  # (pipe that ends with the guardian, pipe to announce on or -1) -> exit code
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def start(supervise: Supervise) -> int:
    """Fork guardian and supervisor away from this process; 0 once the supervisor announced itself, 1 if it died
    before.
    """
    hear, announce = os.pipe()
    if os.fork():
        os.close(announce)
        return 0 if os.read(hear, 1) else 1
    os.close(hear)
    code = 1
    try:
        code = _guard(supervise, None, announce)
    finally:
        os._exit(code)


def renew(supervise: Supervise) -> int:
    """In a supervisor whose guardian died: fork. The copy returns the pipe that ends with its new guardian."""
    ours, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(its)
        return ours
    code = 1
    try:
        os.closerange(3, its)
        os.closerange(its + 1, 4096)
        code = _guard(supervise, (pid, its), -1)
    finally:
        os._exit(code)


def _guard(supervise: Supervise, child: Optional[Tuple[int, int]], announce: int) -> int:
    """Keep a supervisor alive until it is done. ``child``: the one that lives already, and our end of its pipe."""
    with contextlib.suppress(OSError, AttributeError):  # where it fails, its QEMU is init's child; all else works
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    deaths: List[float] = []
    while True:
        pid, pipe = child or _spawn(supervise, announce)
        if announce >= 0:
            os.close(announce)
        child, announce = None, -1
        status = _wait(pid)
        os.close(pipe)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return 0
        now = time.monotonic()
        deaths = [d for d in deaths if now - d < WITHIN_S] + [now]
        if len(deaths) >= DEATHS:
            sys.stderr.write(
                "the supervisor died %d times in %d s; trying again in %d s\n" % (DEATHS, WITHIN_S, WITHIN_S)
            )
            sys.stderr.flush()
            time.sleep(WITHIN_S)  # a pause for its own sake: there is no event to wait for
            deaths = []


def _spawn(supervise: Supervise, announce: int) -> Tuple[int, int]:
    ours, its = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ours)
        return pid, its
    code = 1
    try:
        os.close(its)
        code = supervise(ours, announce)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(pid: int) -> int:
    """Wait for the supervisor, collecting every other child that ends meanwhile; its status."""
    while True:
        try:
            dead, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return 1
        if dead == pid:
            return status
