"""The owner of one VM on a host: makes of it what the journal orders, and tells what becomes of it.

One loop, no threads. The journal (wanted.json) is the only order; `converge` compares it with what is there and takes
the next step. Every step is written down (state.json) before it is taken, so that a supervisor that is killed anywhere
is continued by the next one. It stays as long as the VM's directory does: an ended VM still shows its console.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Optional

from xenoshell.host import guardian, locks, proc
from xenoshell.host.machine import listen
from xenoshell.host.reactor import READ, Reactor, Timers
from xenoshell.host.record import LIVE, Record, say
from xenoshell.host.run import Run
from xenoshell.host.serve import Owner, Server
from xenoshell.host.vmdir import VmDir
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import VmStatus

TICK_S = 2.0
#: state.json is renewed this often while nothing changes but use, in seconds.
SAVE_S = 10.0
#: How long a process that holds the VM's lock may take to become QEMU, in seconds.
QEMU_START_S = 5.0
LOG_LIMIT = 256 << 10


class Supervisor(Owner):
    """See the module."""

    def __init__(self, vmdir: VmDir, reactor: Reactor) -> None:
        self._dir = vmdir
        self._reactor = reactor
        self._spec = vmdir.read_spec()
        self._timers = Timers(reactor)
        self._run: Optional[Run] = None
        self._destroying = False
        self._settled = False  # whether what was there at the start is known
        self._record = Record(vmdir, self._spec, self._tell)
        self.log = self._record.log
        self._server = Server(reactor, listen(vmdir.path, "sup.sock"), self)
        self._give_up = time.monotonic() + QEMU_START_S

    def settle(self) -> None:
        """Take over: go on with the VM's QEMU if it has one, else find out what became of it; then converge."""
        run = self._new_run()
        found = run.find()
        if found is not None and time.monotonic() < self._give_up:
            if found.pid and run.adopt(found):
                self._run, self._settled = run, True
                if self._dir.read_wanted().state == "destroyed":
                    self.converge()
            else:  # it is not QEMU yet, or ending
                self._timers.set("settle", 0.1, self.settle)
            return
        self._settled = True
        status, book = self._record.status, self._record.book
        rebooted = book.boot_id not in ("", proc.boot_id())
        if status.state == "booting" and not book.ending and not rebooted:
            self._record.change(state="creating", pid=0)  # no byte of it was ever seen: the run begins again
        elif status.state in LIVE:
            text = "the host was rebooted" if rebooted else "QEMU (pid %d) was gone" % book.process
            cause = "host-rebooted" if rebooted else "killed"
            self._record.end_run("exited", book.ending or cause, "" if book.ending else text)
        self.converge()

    # ------------------------------------------------------------ orders

    def converge(self) -> None:
        """Read the journal and take the next step towards it. Harmless at any time."""
        if self._destroying or not self._settled or not os.path.exists(self._dir.path):
            return
        wanted, status = self._dir.read_wanted(), self._record.status
        if wanted.state == "destroyed":
            self._destroying = True
            self._timers.clear()
            if self._run is not None:
                self._run.kill()  # its disk goes with it: there is nothing to save
            else:
                self._remove()
        elif self._run is not None:
            if wanted.state == "stopped" or wanted.run > status.run:
                self._run.stop("stopped")
        elif wanted.state == "stopped":
            if status.state not in ("exited", "failed"):
                self._record.end_run("exited", "stopped", "")
        elif wanted.run > status.run or status.state == "creating":
            self._begin(wanted.run)

    def _begin(self, run: int) -> None:
        self._record.begin_run(run)
        spent = self._record.spent()
        if spent:
            self._record.end_run("exited", spent, "")
            return
        self._run = self._new_run()
        self._run.prepare()

    def _new_run(self) -> Run:
        return Run(
            self._reactor,
            self._dir,
            self._spec,
            self._record,
            show=self._show,
            began=self._began,
            ended=self._ended,
        )

    def _began(self) -> None:
        self._tick()
        self.converge()

    def _ended(self, state: str, cause: str, message: str, remedy: str) -> None:
        self._run = None
        self._timers.clear()
        if self._destroying:
            self._remove()
            return
        self._record.end_run(state, cause, message, remedy)
        self.converge()

    def _remove(self) -> None:
        self.log.close()
        self._dir.remove()
        self._server.close()
        self._reactor.stop()

    def _tick(self) -> None:
        """Sample, enforce lease and budget, save now and then, tell watchers."""
        if self._run is None:
            return
        record = self._record
        self._run.sample()
        spent = record.spent()
        if spent:
            self._run.stop(spent)
        if time.monotonic() - record.saved > SAVE_S:
            record.save()
        record.tell()
        ends = [left + 0.01 for left in (record.lease_left(), record.budget_left()) if left > 0]
        self._timers.set("tick", min([TICK_S, *ends]), self._tick)

    # ------------------------------------------------------------ what the server asks for

    def current(self) -> VmStatus:
        """The status now."""
        return self._record.current()

    def renew(self, seconds: float, budget_s: Optional[float]) -> None:
        """A lease of ``seconds`` from now, 0 for one without end; and a new budget of running time, unless None."""
        self._record.renew(seconds, budget_s)
        self._tick()

    def type(self, data: bytes) -> None:
        """Input for the guest's console."""
        if self._run is not None:
            self._run.type(data)

    def _show(self, data: bytes) -> None:
        self._server.console(data)

    def _tell(self, status: VmStatus) -> None:
        self._server.status(status)


def supervise(path: str, guard: int, announce: int) -> int:
    """Be the supervisor of the VM in directory ``path`` until it is destroyed; the exit code for the guardian (0:
    done).

    ``guard`` is at end of file when the guardian is dead; a byte to ``announce`` (if not negative) says that sup.sock
    answers.
    """
    vmdir = VmDir(os.path.dirname(path), os.path.basename(path))
    try:
        lock = locks.try_lock(vmdir.file("lock"))
        if lock is None:  # there is one already, or it is just starting
            _announce(announce)
            return 0
        with contextlib.suppress(OSError):
            if os.stat(vmdir.file("supervisor.log")).st_size > LOG_LIMIT:
                os.truncate(vmdir.file("supervisor.log"), 0)
        reactor = Reactor()
        supervisor = Supervisor(vmdir, reactor)
    except (FileNotFoundError, Failure) as error:
        say("no VM to supervise: %s" % error)
        return 0

    def orphaned(_ready: int) -> None:
        nonlocal guard
        reactor.forget(guard)
        os.close(guard)
        guard = guardian.renew(lambda later, announce: supervise(path, later, announce))
        reactor.watch(guard, READ, orphaned)

    reactor.watch(guard, READ, orphaned)
    reactor.after(0, supervisor.settle)
    _announce(announce)
    reactor.run()
    return 0


def _announce(pipe: int) -> None:
    if pipe >= 0:
        os.write(pipe, b"1")
        os.close(pipe)


def main(path: str) -> int:
    """Start guardian and supervisor of the VM in directory ``path``; 0 in the caller once sup.sock answers."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return guardian.start(lambda guard, announce: supervise(os.path.realpath(path), guard, announce))
