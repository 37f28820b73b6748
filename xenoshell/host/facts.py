"""What a helper finds out about its host, fast: it is the first thing that a client waits for."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from typing import Dict, NamedTuple, Optional, Tuple

from xenoshell.host import locks
from xenoshell.host.statedir import free_bytes, write_whole
from xenoshell.host.unpack import find_program
from xenoshell.wire import codec
from xenoshell.wire.values import HostFacts, VmStatus

_QEMU_TIMEOUT_S = 20.0


class Qemu(NamedTuple):
    """A QEMU: its path and version, both "" when there is none."""

    path: str
    version: str


def qemu(state_dir: str, arch: str) -> Qemu:
    """The system emulator for ``arch``. Asking it takes 100 ms, so the answer is kept until the program changes."""
    path = find_program("qemu-system-" + arch)
    if path is None:
        return Qemu("", "")
    info = os.stat(path)
    key = "%s %d %d" % (path, info.st_mtime_ns, info.st_size)
    cache = os.path.join(state_dir, "qemu.json")
    known = locks.read_json(cache) or {}
    if known.get("key") == key and isinstance(known.get("version"), str):
        return Qemu(path, str(known["version"]))
    version = _ask_version(path)
    if version:
        with contextlib.suppress(OSError):  # a full disk must not keep anybody from making room on it
            write_whole(cache, codec.dumps({"key": key, "version": version}), sync=False)
    return Qemu(path, version)


def _ask_version(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              stdin=subprocess.DEVNULL, timeout=_QEMU_TIMEOUT_S, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(rb"version (\d[\w.+~-]*)", done.stdout)
    return found.group(1).decode() if found else ""


def memory_mib() -> Tuple[int, int]:
    """Total and available memory, from /proc/meminfo; within a memory control group, no more than that allows."""
    values: Dict[str, int] = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable", "MemFree"):
                values[name] = int(rest.split()[0]) >> 10
    total = values.get("MemTotal", 0)
    free = values.get("MemAvailable", values.get("MemFree", 0))
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and used is not None:
        total, free = min(total, limit >> 20), max(0, min(free, (limit - used) >> 20))
    return total, free


def _cgroup(name: str) -> Optional[int]:
    try:
        with open("/proc/self/cgroup") as file:
            group = next(line[3:].strip() for line in file if line.startswith("0::"))
        with open(os.path.join("/sys/fs/cgroup", group.lstrip("/"), name)) as file:
            return int(file.read())
    except (OSError, StopIteration, ValueError):  # no cgroup v2, or "max"
        return None


def user_name() -> str:
    """The name of the user that the helper runs as, or the number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def gather(
    state_dir: str,
    *,
    version: str,
    emulator: Qemu,
    kvm: str,
    codecs: Tuple[str, ...],
    channel: str,
    blobs: Tuple[str, ...],
    vms: Tuple[VmStatus, ...],
    library: bool,
) -> HostFacts:
    """Put together the facts of this moment. What other parts know comes in as arguments."""
    system = os.uname()
    total, free = memory_mib()
    notes = []
    if "zstd" not in codecs:
        notes.append("no libzstd and no zstd program: images travel zlib-compressed and take more bytes")
    if not channel:
        notes.append("no private directory for a socket: transfers use one channel only")
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip()
    return HostFacts(
        helper=version,
        python=".".join(map(str, _python())),
        kernel=system.release,
        arch=system.machine,
        hostname=system.nodename,
        user=user_name(),
        boot_id=boot_id,
        clock=time.time(),
        cpus=len(os.sched_getaffinity(0)),
        load1=os.getloadavg()[0],
        memory_mib=total,
        memory_free_mib=free,
        disk_free_mib=free_bytes(state_dir) >> 20,
        state_dir=state_dir,
        qemu=emulator.version,
        qemu_img=find_program("qemu-img") is not None,
        kvm=kvm,
        codecs=codecs,
        channel=channel,
        blobs=blobs,
        vms=vms,
        notes=tuple(notes),
        library=library,
    )


def _python() -> Tuple[int, int, int]:
    import sys

    return sys.version_info[:3]
