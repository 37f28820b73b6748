"""Removes every VM of a state directory, whatever state it and its supervisor are in: for a lab that is taken down."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import List

from xenoshell.host import proc
from xenoshell.host.vmdir import VmDir, list_vms, tidy

_DEADLINE_S = 20.0


def processes_of(path: str) -> List[proc.Process]:
    """Guardian, supervisor and QEMU of the VM directory ``path``."""
    real = os.path.realpath(path)
    keepers = [proc.identify(pid) for pid in proc.pids() if proc.command(pid)[-2:] in (["supervise", path], ["supervise", real])]
    return keepers + proc.qemus_in(path)


def sweep(state_dir: str) -> List[str]:
    """Kill and remove every VM; return the ids of those of which something is left."""
    vms = os.path.join(state_dir, "vms")
    deadline = time.monotonic() + _DEADLINE_S
    pause = threading.Event()
    left = list_vms(vms)
    for vm_id in left:
        VmDir(vms, vm_id).want("destroyed", "sweep")  # so that nobody starts it again while we look elsewhere
    while left and time.monotonic() < deadline:
        running = [process for vm_id in left for process in processes_of(os.path.join(vms, vm_id))]
        for process in running:
            proc.kill(process)
        if running:
            pause.wait(0.05)  # the ends of processes that are not our children can only be looked for
            continue
        for vm_id in left:
            VmDir(vms, vm_id).remove()
        left = list_vms(vms)
    tidy(vms)
    return left


def main(state_dir: str) -> int:
    """Sweep; exit status 1 and a line for each VM that would not go."""
    left = sweep(os.path.realpath(state_dir))
    for vm_id in left:
        sys.stderr.write("%s could not be removed\n" % vm_id)
    return 1 if left else 0
