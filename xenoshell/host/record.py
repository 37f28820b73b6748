"""What a supervisor knows of its VM and writes down: the status that everyone sees, and its own book-keeping beside
it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional, Tuple

from xenoshell.host import lease, proc
from xenoshell.host.console_log import ConsoleLog
from xenoshell.host.lease import Lease, Now, Running
from xenoshell.host.statedir import write_whole
from xenoshell.host.vmdir import VmDir, first_status
from xenoshell.wire import codec
from xenoshell.wire.remedies import remedy
from xenoshell.wire.values import Forward, Usage, VmSpec, VmStatus

#: The states in which a VM has a QEMU.
LIVE = ("booting", "running", "ready", "stopping")


@dataclass(frozen=True)
class Book:
    """What a supervisor must remember beside the status."""

    process: int = 0
    process_started: int = 0
    boot_id: str = ""
    lease: Lease = field(default_factory=Lease)
    running: Running = field(default_factory=Running)
    before: Usage = field(default_factory=Usage)  # of earlier runs
    net_offset: int = 0
    probe: Tuple[Forward, ...] = ()  # a forward of our own, for readiness
    budget_s: float = -1.0  # as renewed (0: no limit); -1: as the spec has it
    ending: str = ""  # the cause for which the VM is being stopped


def now() -> Now:
    """The time, on all clocks."""
    return Now(proc.boottime(), proc.boot_id(), time.time())


def say(text: str) -> None:
    """A line for supervisor.log."""
    with contextlib.suppress(OSError):
        sys.stderr.write("%s %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text))
        sys.stderr.flush()


class Record:
    """Status, book and console log of one VM, as last written down. Each `change` is written, then ``told(status)``."""

    def __init__(self, vmdir: VmDir, spec: VmSpec, told: Callable[[VmStatus], None]) -> None:
        self._dir = vmdir
        self._spec = spec
        self._told = told
        self.status = first_status(spec, time.time())
        self.book = Book()
        state = vmdir.read_state()
        with contextlib.suppress(codec.CodecError):
            self.status = codec.decode(VmStatus, state.get("status"))
            self.book = codec.decode(Book, state.get("book", {}))
        self.log = ConsoleLog(vmdir.path)
        self.log.resume(self.status.console_bytes)
        self._last_byte = time.monotonic() - self.status.silent_s
        self.saved = 0.0  # when, on the monotonic clock

    def heard(self, data: bytes) -> None:
        """The guest wrote ``data`` on its console."""
        self._last_byte = time.monotonic()
        self.log.write(data)

    def current(self) -> VmStatus:
        """The status now."""
        status = self.status
        silent = time.monotonic() - self._last_byte if status.state in LIVE else 0.0
        left = self.lease_left() if status.run else status.lease_left_s
        return replace(status, silent_s=round(silent, 1), lease_left_s=round(left, 1), console_bytes=self.log.total)

    def change(self, **fields: Any) -> None:
        """Set fields of the status, write it down and tell."""
        self.status = replace(self.status, **fields)
        self.save()
        self.tell()

    def note(self, **fields: Any) -> None:
        """Set fields of the book; they are written with the next `change`."""
        self.book = replace(self.book, **fields)

    def tell(self) -> None:
        """Tell the status as it is now."""
        self._told(self.current())

    def save(self) -> None:
        """Write everything down. On a full disk the next change tries again, and the VM goes on."""
        self.saved = time.monotonic()
        self.status = self.current()
        try:
            write_whole(self._dir.file("state.json"), codec.dumps({"status": self.status, "book": self.book}))
        except OSError as error:
            say("cannot write state.json: %s" % error)

    # ------------------------------------------------------------ a run

    def begin_run(self, run: int) -> None:
        """Run number ``run`` begins, on a new lease if the old one is over."""
        clock = now()
        if self.status.run != run:  # else a supervisor died while it prepared this very run
            self.log.begin()
        if not self.book.lease.boot_id or lease.left(self.book.lease, clock) <= 0:
            self.note(lease=lease.grant(clock, self._spec.lease_s))
        running = lease.start(self.book.running, clock)
        self.note(running=running, boot_id=clock.boot_id, ending="", process=0, process_started=0)
        self._last_byte = time.monotonic()
        blank = {"cause": "", "message": "", "remedy": "", "boot_s": 0.0, "pid": 0, "host_keys": ()}
        self.change(state="creating", run=run, started=clock.wall, **blank)

    def run_s(self) -> float:
        """Seconds since this run began."""
        return proc.boottime() - self.book.running.since

    def end_run(self, state: str, cause: str, message: str, remedy_text: str = "") -> None:
        """The run is over (or never came to be), for good."""
        total = lease.total(self.book.running)
        usage = replace(self.status.usage, memory_mib=0, uptime_s=round(total, 2))
        self.note(running=Running(total), before=usage, process=0, process_started=0, ending="")
        self.change(state=state, cause=cause, message=message, remedy=remedy_text or remedy(cause), pid=0, usage=usage)

    # ------------------------------------------------------------ lease and use

    def renew(self, seconds: float, budget_s: Optional[float] = None) -> None:
        """A lease of ``seconds`` from now, 0 for one without end; with ``budget_s``, so many seconds of running over
        all runs, those that were included, 0 for no limit.
        """
        self.note(lease=lease.grant(now(), seconds), budget_s=self.book.budget_s if budget_s is None else budget_s)
        self.change()

    def lease_left(self) -> float:
        """Seconds left of the lease, -1 without one."""
        return lease.left(self.book.lease, now())

    def budget_left(self) -> float:
        """Seconds of running that are still paid for, -1 when nobody counts."""
        budget_s = self._spec.budget_s if self.book.budget_s < 0 else self.book.budget_s
        if budget_s <= 0:
            return -1.0
        return max(0.0, budget_s - lease.total(self.book.running))

    def spent(self) -> str:
        """The cause for which the VM has to stop now; "" when it may go on."""
        if self.lease_left() == 0:
            return "lease-expired"
        return "budget-spent" if self.budget_left() == 0 else ""

    def used(self, net_offset: int, **now_used: Any) -> None:
        """The VM was seen alive, and its use of this run is as given (``net_in`` and ``net_out``: since the last
        time).
        """
        before, usage = self.book.before, self.status.usage
        self.note(running=lease.seen(self.book.running, now()), net_offset=net_offset)
        fields = dict(now_used)
        fields["uptime_s"] = round(lease.total(self.book.running), 2)
        for name in ("cpu_s", "disk_read", "disk_written"):
            if name in fields:
                fields[name] = round(getattr(before, name) + fields[name], 2)
        for name in ("net_in", "net_out"):
            fields[name] = getattr(usage, name) + fields.get(name, 0)
        self.status = replace(self.status, usage=replace(usage, **fields))
