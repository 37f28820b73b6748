"""Host ports for a guest's forwards: free ones chosen, fixed ones checked."""

from __future__ import annotations

import os
import socket
import zlib
from dataclasses import replace
from typing import Callable, List, Tuple

from xenoshell.host import proc
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Forward

FIRST, LAST = 20000, 29999


def free(proto: str, bind: str, port: int) -> bool:
    """Whether ``port`` can be listened on at address ``bind`` right now."""
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock:
        if proto == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU does: old connections do not count
        try:
            sock.bind((bind, port))
            if proto == "tcp":
                sock.listen(1)
        except OSError:
            return False
    return True


def choose(
    forwards: Tuple[Forward, ...],
    before: Tuple[Forward, ...],
    seed: str,
    is_free: Callable[[str, str, int], bool] = free,
    who: Callable[[str, int], str] = lambda proto, port: "",
) -> Tuple[Forward, ...]:
    """``forwards`` with every host port filled in. A port chosen ``before`` is kept while it is free; ``seed`` says
    where to begin looking, so that many VMs do not try the same ones. Raises `Failure` port-in-use.
    """
    taken: List[Tuple[str, int]] = [(f.proto, f.host) for f in forwards if f.host]
    chosen = []
    for index, forward in enumerate(forwards):
        if forward.host:
            if not is_free(forward.proto, forward.bind, forward.host):
                holder = who(forward.proto, forward.host)
                text = "%s port %d at %s is in use" % (forward.proto, forward.host, forward.bind)
                raise Failure("port-in-use", text + (" by " + holder if holder else ""))
            chosen.append(forward)
            continue
        old = before[index].host if index < len(before) else 0
        first = zlib.crc32(("%s %d" % (seed, index)).encode())
        candidates = ([old] if old else []) + [
            FIRST + (first + n * 7) % (LAST - FIRST + 1) for n in range(LAST - FIRST + 1)
        ]
        for port in candidates:
            if (forward.proto, port) not in taken and is_free(forward.proto, forward.bind, port):
                taken.append((forward.proto, port))
                chosen.append(replace(forward, host=port))
                break
        else:
            raise Failure(
                "port-in-use", "no %s port from %d to %d is free at %s" % (forward.proto, FIRST, LAST, forward.bind)
            )
    return tuple(chosen)


def holder(proto: str, port: int) -> str:
    """Who uses a local port, as "NAME (pid N)"; "" if that is not visible to us."""
    try:
        with open("/proc/net/" + proto) as file:
            rows = [line.split() for line in file.readlines()[1:]]
    except OSError:
        return ""
    inodes = {"socket:[%s]" % r[9] for r in rows if int(r[1].rpartition(":")[2], 16) == port and r[3] in ("0A", "07")}
    for pid in proc.pids() if inodes else ():
        folder = "/proc/%d/fd" % pid
        try:
            if any(os.readlink(folder + "/" + name) in inodes for name in os.listdir(folder)):
                return "%s (pid %d)" % (os.path.basename((proc.command(pid) or ["?"])[0]), pid)
        except OSError:
            continue
    return ""
