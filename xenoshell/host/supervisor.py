"""The owner of one VM on a host: makes of it what the journal orders, and tells what becomes of it.

One loop, no threads. The journal (wanted.json) is the only order; `converge` compares it with what is there and takes the
next step. Every step is written down (state.json) before it is taken, so that a supervisor that is killed anywhere is
continued by the next one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Tuple

from xenoshell.host import guardian, lease, locks, meter, ports, proc, qemu
from xenoshell.host.console_log import ConsoleLog, note
from xenoshell.host.lease import Lease, Now, Running
from xenoshell.host.listener import Listener
from xenoshell.host.machine import Machine, listen
from xenoshell.host.prepare import prepare
from xenoshell.host.proc import Process
from xenoshell.host.reactor import READ, Reactor, Timer
from xenoshell.host.ready import Probe, needs_port
from xenoshell.host.serve import Owner, Server
from xenoshell.host.statedir import free_bytes, write_whole
from xenoshell.host.vmdir import VmDir, first_status
from xenoshell.wire import codec
from xenoshell.wire.causes import Failure, remedy
from xenoshell.wire.values import Forward, Usage, VmStatus

TICK_S = 2.0
#: state.json is renewed this often while nothing happens but use.
SAVE_S = 10.0
#: How long a panicking kernel may go on printing, in seconds.
PANIC_S = 1.0
#: How long a process that holds the VM's lock may take to become QEMU.
QEMU_START_S = 5.0
#: How long a running QEMU may take to answer a supervisor that comes back.
ATTACH_S = 20.0
PORT_ATTEMPTS = 5
#: Free bytes on the host's disk at which a guest that was paused for want of them goes on.
DISK_SLACK = 64 << 20
LIVE = ("booting", "running", "ready", "stopping")


@dataclass(frozen=True)
class Book:
    """What a supervisor must remember beside the status."""

    process: int = 0
    process_started: int = 0
    boot_id: str = ""
    lease: Lease = Lease()
    running: Running = Running()
    before: Usage = Usage()  # of earlier runs
    net_offset: int = 0
    probe: Tuple[Forward, ...] = ()  # a forward of our own, for readiness
    ending: str = ""  # the cause for which the VM is being stopped


def now() -> Now:
    """The time, on all clocks."""
    return Now(proc.boottime(), proc.boot_id(), time.time())


class Supervisor(Owner):
    """See the module."""

    def __init__(self, vmdir: VmDir, reactor: Reactor) -> None:
        self._dir = vmdir
        self._reactor = reactor
        self._spec = vmdir.read_spec()
        state = vmdir.read_state()
        self._status = first_status(self._spec, time.time())
        self._book = Book()
        with contextlib.suppress(codec.CodecError):
            self._status = codec.decode(VmStatus, state.get("status"))
            self._book = codec.decode(Book, state.get("book", {}))
        self.log = ConsoleLog(vmdir.path)
        self.log.resume(self._status.console_bytes)
        self._listener = Listener()
        self._machine: Optional[Machine] = None
        self._preparing = 0  # pid of the child that prepares a run
        self._probe: Optional[Probe] = None
        self._dump = meter.Dump(vmdir.file("net.pcap"), self._spec.mac, self._book.net_offset)
        self._timers: Dict[str, Timer] = {}
        self._last_byte = time.monotonic() - self._status.silent_s
        self._saved = 0.0
        self._attempt = 0
        self._down = ""  # the cause that the guest itself gave for going down
        self._halted = False  # QEMU paused it for want of disk
        self._destroying = False
        self._panic_seen = 0
        self._born = time.monotonic()
        self._server = Server(reactor, listen(vmdir.path, "sup.sock"), self)

    # ------------------------------------------------------------ orders

    def begin(self) -> None:
        """Take over: find the VM's QEMU if it has one, else settle what became of it; then converge."""
        machine = self._new_machine()
        found = machine.find()
        if found is not None and not found.pid and time.monotonic() < self._born + QEMU_START_S:
            self._later("begin", 0.1, self.begin)  # forked, but not QEMU yet
            return
        if found is not None and found.pid:
            self._adopt(machine, found)
            return
        if self._status.state in LIVE:
            here = proc.boot_id()
            cause, text = self._book.ending, ""
            if not cause:
                cause = "host-rebooted" if self._book.boot_id != here else "killed"
                text = (
                    "the host was rebooted"
                    if cause == "host-rebooted"
                    else "QEMU (pid %d) was gone" % self._book.process
                )
            if self._status.state == "booting" and cause == "killed":
                self._change(state="creating", pid=0)  # it never ran: no one saw a byte of it
            else:
                self._end("exited", cause, text)
                return
        self.converge()

    def converge(self) -> None:
        """Read the journal and take the next step towards it. Harmless at any time."""
        if self._destroying or not os.path.exists(self._dir.path):
            return
        wanted = self._dir.read_wanted()
        status = self._status
        if wanted.state == "destroyed":
            self._destroy()
        elif self._machine is not None:
            if wanted.state == "stopped" or wanted.run > status.run:
                self._stop("stopped")
        elif self._preparing:
            if wanted.state == "stopped":
                self._cancel_preparing()
                self._end("exited", "stopped", "")
        elif wanted.state == "stopped":
            if status.state not in ("exited", "failed"):
                self._end("exited", "stopped", "")
        elif wanted.run > status.run or status.state == "creating":
            self._prepare(wanted.run)

    def renew(self, seconds: float) -> None:
        """A lease of ``seconds`` from now; 0 for one without end."""
        self._book = replace(self._book, lease=lease.grant(now(), seconds))
        self._change()
        self._tick()

    def type(self, data: bytes) -> None:
        """Input for the guest's console."""
        if self._machine is not None:
            self._machine.type(data)

    def current(self) -> VmStatus:
        """The status now."""
        silent = time.monotonic() - self._last_byte if self._status.state in LIVE else 0.0
        return replace(
            self._status,
            silent_s=round(silent, 1),
            lease_left_s=round(lease.left(self._book.lease, now()), 1)
            if self._status.run
            else self._status.lease_left_s,
            console_bytes=self.log.total,
            host_keys=self._listener.host_keys or self._status.host_keys,
        )

    # ------------------------------------------------------------ a run begins

    def _prepare(self, run: int) -> None:
        clock = now()
        again = self._status.run == run  # a supervisor died while it prepared this run
        book = self._book
        if not book.lease.boot_id or lease.left(book.lease, clock) <= 0:
            book = replace(book, lease=lease.grant(clock, self._spec.lease_s))
        self._book = replace(
            book, running=lease.start(book.running, clock), boot_id=clock.boot_id, ending="", process=0
        )
        if not again:
            self.log.begin()
        self._listener = Listener(self._spec.ready.match if self._spec.ready.when == "console" else "")
        self._attempt, self._down, self._halted, self._panic_seen = 0, "", False, 0
        self._change(
            state="creating",
            run=run,
            cause="",
            message="",
            remedy="",
            started=clock.wall,
            boot_s=0.0,
            pid=0,
            host_keys=(),
        )
        if self._over():
            return
        self._preparing = self._reactor.fork(lambda: prepare(self._spec, self._dir), self._prepared)

    def _cancel_preparing(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._preparing, signal.SIGKILL)
        self._preparing = 0

    def _prepared(self, answer: Optional[Dict[str, Any]]) -> None:
        if not self._preparing:
            return  # it was cancelled
        self._preparing = 0
        if answer is None:
            answer = {"cause": "internal", "message": "the preparation of the run died; see supervisor.log on the host"}
        if answer.get("cause"):
            self._end("failed", answer["cause"], answer["message"], answer.get("remedy", ""))
            return
        self._status = replace(self._status, accel=answer["accel"])
        self._launch()

    def _launch(self) -> None:
        spec = self._spec
        self._attempt += 1
        ready = spec.ready
        internal: Tuple[Forward, ...] = ()
        if needs_port(ready) and not any(f.guest == ready.port and f.proto == "tcp" for f in spec.forwards):
            internal = (Forward(ready.port),)
        try:
            before = self._status.forwards + self._book.probe if self._attempt == 1 else ()
            forwards = ports.choose(
                spec.forwards + internal, before, "%s %d" % (spec.id, self._attempt), who=ports.holder
            )
            self._dump = meter.Dump(self._dir.file("net.pcap"), spec.mac)
            with contextlib.suppress(OSError):
                os.unlink(self._dir.file("net.pcap"))
            count = len(spec.forwards)
            self._book = replace(self._book, probe=forwards[count:], net_offset=0)
            self._change(state="booting", forwards=forwards[:count])
            self._machine = machine = self._new_machine()
            machine.start(lambda monitor, console: self._arguments(forwards, monitor, console))
        except Failure as failure:
            self._end("failed", failure.cause, failure.message, failure.remedy)
            return
        except FileNotFoundError as error:
            self._end("failed", "no-hypervisor", "cannot start QEMU: %s" % error)
            return
        except OSError as error:
            if self._machine is not None and self._machine.process.pid:
                self._machine.kill()
            self._end("failed", "qemu-failed", "cannot start QEMU: %s" % error)
            return
        self._book = replace(self._book, process=machine.process.pid, process_started=machine.process.started)
        self._last_byte = time.monotonic()
        self._change(pid=machine.process.pid)

    def _arguments(self, forwards: Tuple[Forward, ...], monitor: int, console: int) -> List[str]:
        spec = self._spec

        def blob(digest: Optional[str]) -> Optional[str]:
            return os.path.join(self._dir.blobs, digest) if digest else None

        kernel = spec.boot == "kernel"
        files = qemu.Files(
            blob(spec.kernel) if kernel else None,
            blob(spec.initrd) if kernel else None,
            "disk.qcow2" if spec.disk_bytes else None,
            "seed.iso" if spec.seed_size else None,
            monitor,
            console,
        )
        return qemu.arguments(spec, forwards, self._status.accel, files)

    def _new_machine(self) -> Machine:
        return Machine(self._reactor, self._dir.path, self._console, self._monitor_ready, self._event, self._gone)

    def _adopt(self, machine: Machine, process: Process) -> None:
        self._machine = machine
        self._book = replace(self._book, process=process.pid, process_started=process.started)
        self._listener = Listener(self._spec.ready.match if self._spec.ready.when == "console" else "")
        self._dump = meter.Dump(self._dir.file("net.pcap"), self._spec.mac, self._book.net_offset)
        try:
            machine.attach(process)
        except OSError:
            machine.kill()  # nobody listens: it is ending, or it never came up
            self._later("attach", 0.1, self.begin)
            self._machine = None
            return
        self._later("attach", ATTACH_S, machine.kill)
        if self._status.state in ("running", "ready", "stopping"):
            self._listener.feed(bytes(self.log.recent))
            self._show(note("console attached again; what the guest wrote meanwhile is not here"))
        if self._dir.read_wanted().state == "destroyed":
            self.converge()

    def _monitor_ready(self) -> None:
        """QEMU answers: either it was just started and waits, or we are back with one that runs."""
        self._cancel("attach")
        assert self._machine is not None
        meter_options = {"id": "meter", "netdev": "net", "file": "net.pcap", "maxlen": meter.SNAP}
        if self._status.state == "booting":
            self._machine.execute(
                "object-add",
                lambda _, error: self._metered(error, meter_options),
                qom_type="filter-dump",
                **meter_options,
            )
        self._machine.execute("query-status", self._found)

    def _metered(self, error: str, options: Dict[str, Any]) -> None:
        if (
            error and self._machine is not None
        ):  # QEMU before 6.0 wants them apart; without metering the VM runs as well
            self._machine.execute("object-add", None, qom_type="filter-dump", props=options)

    def _found(self, value: Any, error: str) -> None:
        if error or self._machine is None:
            return
        found = value.get("status") if isinstance(value, dict) else ""
        if found in ("shutdown", "guest-panicked"):
            self._guest_down("guest-poweroff" if found == "shutdown" else "guest-panic")
        elif found == "prelaunch" and self._status.state == "stopping":
            self._machine.quit()
        elif found in ("prelaunch", "paused") and self._status.state in ("creating", "booting"):
            self._machine.execute("cont", self._continued)
        elif self._status.state in ("creating", "booting"):
            self._continued(None, "")
        else:
            self._halted = found == "io-error"
            if self._status.state == "running":
                self._await_ready()
            self._resume()

    def _continued(self, _value: Any, error: str) -> None:
        if error or self._book.ending:
            return  # QEMU is going, `_gone` tells; or it was told to go
        self._change(state="running")
        self._await_ready()
        self._resume()

    def _resume(self) -> None:
        """The VM runs: watch over it, and go on with what was being done to it."""
        if self._book.ending:
            self._stop(self._book.ending, again=True)
        self._tick()
        self.converge()

    # ------------------------------------------------------------ readiness

    def _await_ready(self) -> None:
        ready = self._spec.ready
        if ready.when == "none" or self._listener.matched:
            self._ready()
            return
        left = ready.timeout_s - (time.time() - self._status.started)
        self._later("ready", max(0.0, left), self._not_ready)
        if needs_port(ready):
            forwards = [
                f for f in self._status.forwards + self._book.probe if f.guest == ready.port and f.proto == "tcp"
            ]
            address = "127.0.0.1" if forwards[0].bind == "0.0.0.0" else forwards[0].bind  # noqa: S104
            self._probe = Probe(self._reactor, ready, address, forwards[0].host, self._usernet, self._ready)

    def _usernet(self, reply: Any) -> None:
        if self._machine is not None:
            self._machine.execute(
                "human-monitor-command",
                lambda value, _: reply(value if isinstance(value, str) else ""),
                command_line="info usernet",
            )

    def _ready(self) -> None:
        self._cancel("ready")
        self._probe = None
        if self._status.state == "running":
            clean = {"cause": "", "message": "", "remedy": ""} if self._status.cause == "ready-timeout" else {}
            running = self._book.running
            self._change(state="ready", boot_s=round(proc.boottime() - running.since, 3), **clean)

    def _not_ready(self) -> None:
        ready = self._spec.ready
        if self._status.state == "running":
            what = {
                "console": "the console did not show %r" % ready.match,
                "tcp": "port %d takes no connection" % ready.port,
            }
            text = what.get(ready.when, "no HTTP answer below 400 from port %d%s" % (ready.port, ready.path))
            self._change(
                cause="ready-timeout", message="after %g s %s" % (ready.timeout_s, text), remedy=remedy("ready-timeout")
            )
        if self._probe is not None:
            self._probe.slow = True

    # ------------------------------------------------------------ while it runs

    def _console(self, data: bytes) -> None:
        self._last_byte = time.monotonic()
        self._show(data)
        listener = self._listener
        keys = listener.host_keys
        listener.feed(data)
        if listener.host_keys != keys:
            self._change(host_keys=listener.host_keys)
        if listener.matched and self._status.state == "running":
            self._ready()
        stage = (1 + listener.panic_ended) if listener.panic else 0
        if stage > self._panic_seen:
            self._panic_seen = stage
            self._later("panic", 0.1 if listener.panic_ended else PANIC_S, lambda: self._guest_down("guest-panic"))

    def _show(self, data: bytes) -> None:
        self.log.write(data)
        self._server.console(data)

    def _event(self, name: str, data: Dict[str, Any]) -> None:
        if name == "SHUTDOWN" and self._machine is not None:
            reason = str(data.get("reason", ""))
            if data.get("guest") is True:
                self._guest_down("guest-panic" if reason == "guest-panic" or self._listener.panic else "guest-poweroff")
            elif reason == "host-signal":
                self._down = self._down or "killed"
        elif name == "GUEST_PANICKED":
            self._guest_down("guest-panic")
        elif name == "RESET" and self._listener.panic:
            self._guest_down("guest-panic")  # a kernel that reboots when it panics
        elif name == "BLOCK_IO_ERROR" and data.get("nospace") is True and data.get("action") == "stop":
            self._halted = True
            text = "QEMU paused the guest: the host's disk is full; it goes on when there is room"
            self._change(cause="disk-full", message=text, remedy=remedy("disk-full"))

    def _guest_down(self, cause: str) -> None:
        """The guest went down by itself; QEMU is kept only until its console is read."""
        self._cancel("panic")
        if not self._down and self._machine is not None:
            self._down = cause
            self._machine.quit()

    def _tick(self) -> None:
        """Sample, enforce lease and budget, save now and then, tell watchers."""
        if self._machine is None:
            return
        self._sample()
        if self._over():
            return
        if self._halted:
            with contextlib.suppress(OSError):
                if free_bytes(self._dir.path) > DISK_SLACK:
                    self._halted = False
                    self._change(cause="", message="", remedy="")
                    self._machine.execute("cont")
        self._machine.trim_log()
        self._machine.execute("query-blockstats", self._disk)
        if time.monotonic() - self._saved > SAVE_S:
            self._save()
        self._server.status(self.current())
        ends = [
            e for e in (lease.left(self._book.lease, now()), self._budget_left()) if e >= 0 and not self._book.ending
        ]
        self._later("tick", min([TICK_S, *[e + 0.01 for e in ends]]), self._tick)

    def _sample(self) -> None:
        assert self._machine is not None
        book = self._book
        with contextlib.suppress(OSError, ValueError, IndexError):
            cpu, resident = proc.used(self._machine.process.pid)
            inward, outward = self._dump.read()
            usage = self._status.usage
            self._book = book = replace(book, running=lease.seen(book.running, now()), net_offset=self._dump.offset)
            usage = replace(
                usage,
                uptime_s=round(lease.total(book.running), 2),
                cpu_s=round(book.before.cpu_s + cpu, 2),
                memory_mib=resident >> 20,
                net_in=usage.net_in + inward,
                net_out=usage.net_out + outward,
            )
            self._status = replace(self._status, usage=usage)

    def _disk(self, value: Any, error: str) -> None:
        if not error:
            read, written = meter.disk(value)
            before = self._book.before
            usage = replace(
                self._status.usage, disk_read=before.disk_read + read, disk_written=before.disk_written + written
            )
            self._status = replace(self._status, usage=usage)

    def _budget_left(self) -> float:
        spent = lease.total(self._book.running)
        return max(0.0, self._spec.budget_s - spent) if self._spec.budget_s > 0 else -1.0

    def _over(self) -> bool:
        """Stop the VM when its lease or its budget is used up; whether that is so."""
        cause = "budget-spent" if self._budget_left() == 0 else ""
        if lease.left(self._book.lease, now()) == 0:
            cause = "lease-expired"
        if not cause:
            return False
        if self._machine is None:
            self._end("exited", cause, "")
        elif not self._book.ending:
            self._stop(cause)
            return True
        return self._machine is None

    # ------------------------------------------------------------ a run ends

    def _stop(self, cause: str, again: bool = False) -> None:
        if (self._book.ending and not again) or self._machine is None:
            return
        self._book = replace(self._book, ending=cause)
        began = self._status.state in ("running", "ready", "stopping") and not self._halted
        self._change(state="stopping")
        if self._probe is not None:
            self._probe.stop()
            self._probe = None
        self._cancel("ready")
        if not began:
            self._machine.quit()
            return
        self._machine.execute("system_powerdown")
        self._later("grace", self._spec.stop_grace_s, self._machine.quit)
        self._later("tick", TICK_S, self._tick)

    def _gone(self) -> None:
        """QEMU is gone and all it wrote is read."""
        machine, self._machine = self._machine, None
        if machine is None:
            return
        if self._destroying:
            self._removed()
            return
        self._dump_rest()
        status = machine.exit_status
        said = machine.last_line()
        if self._status.state in ("creating", "booting"):
            self._never_ran(said or "QEMU ended at once")
            return
        cause, text = self._book.ending or self._down or "killed", ""
        if cause == "guest-panic":
            text = self._listener.panic or "the guest reported a panic"
        elif cause == "killed" and status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status):
            cause, text = "qemu-failed", said or "QEMU ended with status %d" % os.WEXITSTATUS(status)
        elif cause == "killed":
            by = " by signal %d" % os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else ""
            text = "QEMU (pid %d) was killed%s%s" % (machine.process.pid, by, ": " + said if said else "")
        self._end("exited", cause, text)

    def _never_ran(self, said: str) -> None:
        if self._book.ending:
            self._end("exited", self._book.ending, "")
        elif "host forwarding rule" in said and self._attempt < PORT_ATTEMPTS:
            self._launch()  # someone took the port between our look and QEMU's; a fixed one fails in `choose`
        else:
            self._end("failed", "port-in-use" if "host forwarding rule" in said else "qemu-failed", said)

    def _dump_rest(self) -> None:
        inward, outward = self._dump.read()
        usage = self._status.usage
        self._status = replace(
            self._status,
            usage=replace(usage, memory_mib=0, net_in=usage.net_in + inward, net_out=usage.net_out + outward),
        )

    def _end(self, state: str, cause: str, message: str, remedy_text: str = "") -> None:
        if self._probe is not None:
            self._probe.stop()
            self._probe = None
        for name in list(self._timers):
            self._cancel(name)
        self._machine = None
        running = self._book.running
        self._book = replace(
            self._book,
            running=Running(lease.total(running)),
            before=self._status.usage,
            process=0,
            process_started=0,
            ending="",
        )
        usage = replace(self._status.usage, memory_mib=0, uptime_s=round(lease.total(running), 2))
        self._change(state=state, cause=cause, message=message, remedy=remedy_text or remedy(cause), pid=0, usage=usage)
        self.converge()

    def _destroy(self) -> None:
        self._destroying = True
        if self._preparing:
            self._cancel_preparing()
        if self._probe is not None:
            self._probe.stop()
        for name in list(self._timers):
            self._cancel(name)
        if self._machine is None:
            self._removed()
        else:
            self._machine.kill()  # its disk goes with it: nothing to save

    def _removed(self) -> None:
        self.log.close()
        self._dir.remove()
        self._server.close()
        self._reactor.stop()

    # ------------------------------------------------------------ book-keeping

    def _change(self, **fields: Any) -> None:
        """Set fields of the status; write it down, then tell everyone."""
        self._status = replace(self._status, **fields)
        self._save()
        self._server.status(self.current())

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._destroying:
            return
        self._status = self.current()
        try:
            write_whole(self._dir.file("state.json"), codec.dumps({"status": self._status, "book": self._book}))
        except OSError as error:  # a full disk: the next change tries again, and the VM goes on
            say("cannot write state.json: %s" % error)

    def _later(self, name: str, delay_s: float, call: Any) -> None:
        """(Re)start the timer ``name``."""
        self._cancel(name)

        def due() -> None:
            self._timers.pop(name, None)
            call()

        self._timers[name] = self._reactor.after(delay_s, due)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def say(text: str) -> None:
    """A line for supervisor.log."""
    with contextlib.suppress(OSError):
        sys.stderr.write("%s %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text))
        sys.stderr.flush()


def supervise(path: str, guard: int, announce: int) -> int:
    """Be the supervisor of the VM in directory ``path`` until it is destroyed; the exit code for the guardian (0: done).

    ``guard`` is at end of file when the guardian is dead; a byte to ``announce`` (if not negative) says that sup.sock answers.
    """
    vmdir = VmDir(os.path.dirname(path), os.path.basename(path))
    try:
        lock = locks.try_lock(vmdir.file("lock"))
        if lock is None:
            return 0  # there is one already
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
    reactor.after(0, supervisor.begin)
    if announce >= 0:
        os.write(announce, b"1")
        os.close(announce)
    reactor.run()
    return 0


def main(path: str) -> int:
    """Start guardian and supervisor of the VM in directory ``path``; returns 0 in the starting process when sup.sock answers."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return guardian.start(lambda guard, announce: supervise(os.path.realpath(path), guard, announce))
    except Exception:
        traceback.print_exc()
        return 1
