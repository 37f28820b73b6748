"""Which processes belong to a lab host, found for certain: by what they are *and* whose files they work with.

Nothing is ended by its name or a bare pid. A process is the lab's if it is

* the listening sshd, the relay or the asyncssh server that was started with a path of this host's directory,
* an sshd that has this host's log open: session processes inherit it, though their command line tells nothing,
* anything run over SSH on this host, which has `TAG` in its environment, daemons included,
* a QEMU or supervisor that works in this host's state directory,
* or is in the journal, with the same start time in the same boot.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from xenoshell.host.proc import Process, alive, identify, kill

#: Environment variable that everything run on a lab host carries: the host's directory.
TAG = "XENOSHELL_LAB_HOST"


#: The processes of one host, each with its kind: sshd, relay, session or vm.
Found = dict[Process, str]


def processes_of(lab: Path) -> dict[str, Found]:
    """All processes of the lab in that directory, by the name of their host. One look at /proc for all hosts."""
    paths = re.compile(re.escape(os.fsencode(lab)) + rb"/([^/\0]+)((?:/[^\0]*)?)\Z", re.DOTALL)
    result: dict[str, Found] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        process = identify(int(entry.name))
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if process.started and (found := _look(process.pid, paths)):
                host, kind = found
                result.setdefault(os.fsdecode(host), {})[process] = kind
    return result


def _look(pid: int, paths: re.Pattern[bytes]) -> tuple[bytes, str] | None:
    """The host and the kind of a process of the lab. ``paths`` takes a path apart: the host, and the rest."""
    name = Path(f"/proc/{pid}/comm").read_bytes().strip()
    words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    if name.startswith(b"sshd"):
        # The listener writes its command line into one word, sessions write who is logged in.
        listener = _host(b" ".join(words).split(b" "), paths, b"/sshd_config")
        if listener is not None:
            return listener, "sshd"
        session = _host(_open_files(pid), paths, b"/sshd.log")
        return None if session is None else (session, "session")
    if (host := _host(words, paths, b"")) is not None:
        if any(word.endswith(b"/lab/relay.py") for word in words):
            return host, "relay"
        if b"xenoshell.lab.server" in words:
            return host, "sshd"
    if b"supervise" in words and (host := _host(words, paths, b"/state/")) is not None:
        return host, "vm"
    if name.startswith(b"qemu"):
        at = os.fsencode(Path(f"/proc/{pid}/cwd").readlink())
        if (host := _host([at], paths, b"/state/")) is not None:
            return host, "vm"
    mark = TAG.encode() + b"="
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    tags = [entry.removeprefix(mark) for entry in environment if entry.startswith(mark)]
    host = _host(tags, paths, b"")
    return None if host is None else (host, "session")


def _host(words: Iterable[bytes], paths: re.Pattern[bytes], rest: bytes) -> bytes | None:
    """The host in whose directory one of ``words`` is: the path ``rest`` there, or below it if it ends in /."""
    for word in words:
        if (found := paths.match(word)) and (found[2] == rest or (rest.endswith(b"/") and found[2].startswith(rest))):
            return found[1]
    return None


def _open_files(pid: int) -> set[bytes]:
    return {os.fsencode(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def end(processes: Iterable[Process], patience_s: float) -> list[Process]:
    """SIGTERM, and after ``patience_s`` seconds SIGKILL, to exactly these processes. Returns those that still run
    2 s later (in uninterruptible sleep, or another user's)."""
    left = [process for process in processes if alive(process)]
    for number, limit_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 2.0)):
        if left and limit_s > 0:
            for process in left:
                _signal(process, number)
            wait_until(lambda these=tuple(left): not any(map(alive, these)), limit_s)  # type: ignore[misc]
            left = [process for process in left if alive(process)]
    return left


def _signal(process: Process, number: int) -> None:
    with contextlib.suppress(PermissionError):
        kill(process, number)


def wait_until(check: Callable[[], bool], limit_s: float) -> bool:
    """Whether ``check()`` came true within ``limit_s`` seconds; looks every 5 ms."""
    deadline = time.monotonic() + limit_s
    while not check():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def listens(process: Process, port: int) -> bool:
    """Whether exactly this process is the one that listens on TCP ``port`` of 127.0.0.1."""
    inode = _listener_inode(port)
    if inode is None or not alive(process):
        return False
    try:
        return b"socket:[%s]" % inode.encode() in _open_files(process.pid)
    except OSError:
        return False


def port_is_free(port: int) -> bool:
    """Whether nothing listens on TCP ``port`` of 127.0.0.1."""
    return _listener_inode(port) is None


def _listener_inode(port: int) -> str | None:
    wanted = {f"0100007F:{port:04X}", f"00000000:{port:04X}"}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] in wanted and fields[3] == "0A":
            return fields[9]
    return None
