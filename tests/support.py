"""What tests of every area share: waiting for something to become true, processes, ports, labs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xenoshell.paths import paths

if TYPE_CHECKING:
    from xenoshell.lab import Lab
    from xenoshell.paths import Paths

T = TypeVar("T")

#: Packages that templates are built from are kept between runs. Read now, before tests get directories of their own.
PACKAGES = Path(os.environ.get("XENOSHELL_TEST_CACHE_DIR") or paths().cache) / "packages"

#: How long to wait between two looks, seconds: small against what a person notices, cheap enough for 2 cores.
_LOOK_EVERY_S = 0.01


# ---------------------------------------------------------------- waiting


def eventually(check: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """The first true value that ``check()`` returns. Looks every 10 ms.

    Raises `AssertionError` after ``timeout_s`` seconds, with ``what`` was waited for and the last value (or the last
    `AssertionError` or `OSError` that ``check`` raised, which count as "not yet").
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found, last = _look(check)
        if found:
            return last  # type: ignore[no-any-return]
        if time.monotonic() >= deadline:
            raise AssertionError(_gave_up(what, check, timeout_s, last))
        time.sleep(_LOOK_EVERY_S)


async def eventually_async(check: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
    """As `eventually`, for a test that runs in an event loop; ``check`` may be asynchronous."""
    deadline = time.monotonic() + timeout_s
    while True:
        found, last = _look(check)
        if found and inspect.isawaitable(last):
            try:
                last = await asyncio.wait_for(last, max(deadline - time.monotonic(), 0.001))
            except (AssertionError, OSError) as error:
                last = error
            found = bool(last) and not isinstance(last, Exception)
        if found:
            return last
        if time.monotonic() >= deadline:
            raise AssertionError(_gave_up(what, check, timeout_s, last))
        await asyncio.sleep(_LOOK_EVERY_S)


def _look(check: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        last = check()
    except (AssertionError, OSError) as error:
        return False, error
    return bool(last), last


def _gave_up(what: str, check: Callable[..., Any], timeout_s: float, last: Any) -> str:
    return f"{what or getattr(check, '__name__', check)}: not within {timeout_s:g} s; last seen: {last!r}"


# ---------------------------------------------------------------- ports


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether something accepts TCP connections on that port of 127.0.0.1 (told by the kernel, without connecting)."""
    wanted = f"{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1].rpartition(":")[2] == wanted:
                    return True
    return False


# ---------------------------------------------------------------- processes


@dataclass(frozen=True)
class Process:
    """One process, as /proc shows it. ``start`` (clock ticks since boot) tells it from a later one of the same pid."""

    pid: int
    parent: int
    state: str
    start: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.state}): {self.command[:300]}"


def process(pid: int) -> Process | None:
    """What /proc says of ``pid``; `None` if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    return Process(pid, int(fields[1]), fields[0], int(fields[19]), command or f"[{name}]")


def alive(pid: int) -> bool:
    """Whether ``pid`` runs (a zombie does not)."""
    found = process(pid)
    return found is not None and found.state not in "ZX"


def pids() -> list[int]:
    """All processes of the machine that this one can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descends(pid: int) -> bool:
    """Whether ``pid`` is a child, grandchild, ... of this process."""
    while pid > 1:
        found = process(pid)
        if found is None:
            return False
        if found.parent == os.getpid():
            return True
        pid = found.parent
    return False


def descendants(root: int | None = None) -> list[Process]:
    """Children, grandchildren, ... of ``root`` (default: this process), zombies included."""
    children: dict[int, list[Process]] = {}
    for pid in pids():
        if found := process(pid):
            children.setdefault(found.parent, []).append(found)
    result: list[Process] = []
    queue = [os.getpid() if root is None else root]
    while queue:
        below = children.get(queue.pop(), [])
        result += below
        queue += [p.pid for p in below]
    return result


def processes_of(directory: Path, among: list[int] | None = None) -> list[Process]:
    """Processes that have ``directory`` in their command line, environment or working directory: also those that
    made themselves daemons. The caller itself and its ancestors are left out."""
    needle = os.fsencode(directory)
    ours = set(_ancestors())
    result = []
    for pid in pids() if among is None else among:
        if pid in ours:
            continue
        try:
            at = os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
            text = Path(f"/proc/{pid}/cmdline").read_bytes() + b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if (needle in text or at == needle or at.startswith(needle + b"/")) and (found := process(pid)):
            result.append(found)
    return result


def find_process(*words: str) -> list[Process]:
    """Running processes with every one of ``words`` in their command line."""
    found = (process(pid) for pid in pids() if pid != os.getpid())
    return [p for p in found if p and p.state not in "ZX" and all(word in p.command for word in words)]


def kill(target: Process | int, signal_: int = signal.SIGKILL) -> None:
    """Send a signal to a process; a `Process` only if it is still the same one. One already gone is no error."""
    if isinstance(target, Process):
        now = process(target.pid)
        if now is None or now.start != target.start:
            return
        target = target.pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(target, signal_)


@contextlib.contextmanager
def running(*command: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child process for the length of a ``with`` block; it is killed and reaped at its end."""
    child = subprocess.Popen([str(word) for word in command], **options)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        found = process(pid)
        pid = found.parent if found else 0


# ---------------------------------------------------------------- labs


@contextlib.contextmanager
def running_lab(paths: Paths, hosts: int = 1, wan: str | None = None) -> Iterator[Lab]:
    """A lab for the length of a ``with`` block: `hosts` XenoServers, `wan` a profile such as ``"rtt=150ms"``."""
    from xenoshell.lab import down, up

    try:
        yield up(paths, hosts, wan)
    finally:
        down(paths)
