"""One run of a VM, from its preparation to QEMU's end: what happens in it, and why it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from xenoshell.host import meter, ports, proc, qemu
from xenoshell.host.console_log import note
from xenoshell.host.listener import Listener
from xenoshell.host.machine import Machine
from xenoshell.host.prepare import prepare
from xenoshell.host.proc import Process
from xenoshell.host.reactor import Reactor, Timers
from xenoshell.host.ready import Probe, needs_port
from xenoshell.host.record import Record
from xenoshell.host.statedir import free_bytes
from xenoshell.host.vmdir import VmDir
from xenoshell.wire.causes import Failure
from xenoshell.wire.remedies import remedy
from xenoshell.wire.values import Forward, VmSpec

#: For how many seconds a console is silent when its kernel has panicked: in the midst of it, and after its last line.
PANIC_S, PANIC_END_S = 1.0, 0.5
#: A kernel that has panicked spins on one CPU: more than this of its time.
PANIC_BUSY = 0.5
#: How long QEMU may take to answer, in seconds: one that was just started, or one that a supervisor comes back to.
ATTACH_S = 20.0
PORT_ATTEMPTS = 5
#: Free bytes on the host's disk at which a guest that was paused for want of them goes on.
DISK_SLACK = 64 << 20

Ended = Callable[
    [str, str, str, str], None
]  # state (exited or failed), cause, message, remedy ("" for the standard one)


class Run:
    """``show(bytes)`` is given the console, ``began()`` is called when the guest runs (again), ``ended(...)`` once."""

    def __init__(
        self,
        reactor: Reactor,
        vmdir: VmDir,
        spec: VmSpec,
        record: Record,
        *,
        show: Callable[[bytes], None],
        began: Callable[[], None],
        ended: Ended,
    ) -> None:
        self._reactor = reactor
        self._dir = vmdir
        self._spec = spec
        self._record = record
        self._show = show
        self._began = began
        self._ended = ended
        self._timers = Timers(reactor)
        self._listener = Listener(spec.ready.match if spec.ready.when == "console" else "")
        self._dump = meter.Dump(vmdir.file("net.pcap"), spec.mac, record.book.net_offset)
        self._machine: Optional[Machine] = None
        self._preparing = 0  # pid of the child that prepares
        self._probe: Optional[Probe] = None
        self._attempt = 0
        self._accel = ""
        self._down = ""  # the cause that the guest itself gave for going down
        self._halted = False  # QEMU paused it for want of disk
        self._over = False

    # ------------------------------------------------------------ beginning

    def prepare(self) -> None:
        """Begin: check and make what QEMU needs, then start it."""
        self._preparing = self._reactor.fork(lambda: prepare(self._spec, self._dir), self._prepared)

    def _prepared(self, answer: Optional[Dict[str, Any]]) -> None:
        if self._over:
            return
        self._preparing = 0
        if answer is None:
            self._end("failed", "internal", "the preparation of the run died; see supervisor.log on the host")
        elif answer.get("cause"):
            self._end("failed", answer["cause"], answer["message"], answer["remedy"])
        else:
            self._accel = answer["accel"]
            self._launch()

    def _launch(self) -> None:
        spec, record = self._spec, self._record
        self._attempt += 1
        internal: Tuple[Forward, ...] = ()
        if needs_port(spec.ready) and not self._ready_forwards(spec.forwards):
            internal = (Forward(spec.ready.port),)
        machine = self._new_machine()
        try:
            before = record.status.forwards + record.book.probe if self._attempt == 1 else ()
            seed = "%s %d" % (spec.id, self._attempt)
            forwards = ports.choose(spec.forwards + internal, before, seed, who=ports.holder)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._dir.file("net.pcap"))
            self._dump = meter.Dump(self._dir.file("net.pcap"), spec.mac)
            count = len(spec.forwards)
            record.note(probe=forwards[count:], net_offset=0)
            record.change(state="booting", accel=self._accel, forwards=forwards[:count])
            self._machine = machine
            machine.start(lambda monitor: self._arguments(forwards, monitor))
        except Failure as failure:
            self._end("failed", failure.cause, failure.message, failure.remedy)
            return
        except OSError as error:
            machine.kill()
            cause = "no-hypervisor" if isinstance(error, FileNotFoundError) else "qemu-failed"
            self._end("failed", cause, "cannot start QEMU: %s" % error)
            return
        self._timers.set("attach", ATTACH_S, machine.kill)
        self._remember(machine.process)

    def _arguments(self, forwards: Tuple[Forward, ...], monitor: int) -> List[str]:
        spec = self._spec

        def blob(digest: Optional[str]) -> Optional[str]:
            # relative to the VM's directory: QEMU splits a module's name at commas and blanks, which ours has none of
            return os.path.join("..", "..", "blobs", digest) if digest and spec.boot == "kernel" else None

        disk = "disk.qcow2" if spec.disk_bytes else None
        seed = "seed.iso" if spec.seed_size else None
        files = qemu.Files(blob(spec.kernel), blob(spec.initrd), disk, seed, monitor)
        return qemu.arguments(spec, forwards, self._accel, files)

    def _new_machine(self) -> Machine:
        return Machine(
            self._reactor,
            self._dir.path,
            on_console=self._console,
            on_ready=self._monitor_ready,
            on_event=self._event,
            on_gone=self._gone,
        )

    def _remember(self, process: Process) -> None:
        self._record.note(process=process.pid, process_started=process.started)
        self._record.change(pid=process.pid)

    def find(self) -> Optional[Process]:
        """The QEMU that this VM has already, see `Machine.find`."""
        return self._new_machine().find()

    def adopt(self, process: Process) -> bool:
        """Go on with a QEMU that runs already. False when nobody listens there any more: it is ending."""
        self._machine = machine = self._new_machine()
        try:
            whole = machine.attach(process)
        except OSError:
            proc.kill(process)
            self._machine = None
            return False
        self._timers.set("attach", ATTACH_S, machine.kill)
        self._remember(process)
        if self._record.status.state != "booting":
            self._listener.feed(bytes(self._record.log.recent))
        if not whole:
            machine.drain()
            text = note("the guest wrote on while nobody read; some of it may be missing here")
            self._record.log.write(text)
            self._show(text)
        return True

    def _monitor_ready(self) -> None:
        """QEMU answers: either it was just started and waits, or we are back with one that runs."""
        self._timers.cancel("attach")
        if self._record.status.state == "booting":
            options: Dict[str, Any] = {"id": "meter", "netdev": "net", "file": "net.pcap", "maxlen": meter.SNAP}
            self._execute(
                "object-add", lambda _, error: self._metered(error, options), qom_type="filter-dump", **options
            )
        self._execute("query-status", self._found)

    def _metered(self, error: str, options: Dict[str, Any]) -> None:
        if error:  # QEMU before 6.0 wants the options apart; without metering the VM runs as well
            rest = {name: value for name, value in options.items() if name != "id"}
            self._execute("object-add", None, qom_type="filter-dump", id=options["id"], props=rest)

    def _found(self, value: Any, error: str) -> None:
        if error:
            return
        found = value.get("status") if isinstance(value, dict) else ""
        state = self._record.status.state
        if found in ("shutdown", "guest-panicked"):
            self._guest_down("guest-poweroff" if found == "shutdown" else "guest-panic")
        elif found == "prelaunch":
            if state == "booting":
                self._execute("cont", self._continued)
            else:
                self.kill()
        elif state == "booting":
            self._continued(None, "")
        else:
            self._halted = found == "io-error"
            if state == "running":
                self._await_ready()
            if self._record.book.ending:
                self._power_down()
            self._began()

    def _continued(self, _value: Any, error: str) -> None:
        if not error and not self._record.book.ending:
            self._record.change(state="running")
            self._await_ready()
            self._began()

    def _execute(self, command: str, reply: Optional[Callable[[Any, str], None]] = None, **arguments: Any) -> None:
        if self._machine is not None:
            self._machine.execute(command, reply, **arguments)

    # ------------------------------------------------------------ readiness

    def _ready_forwards(self, forwards: Tuple[Forward, ...]) -> List[Forward]:
        return [f for f in forwards if f.guest == self._spec.ready.port and f.proto == "tcp"]

    def _await_ready(self) -> None:
        ready = self._spec.ready
        if ready.when == "none" or self._listener.matched:
            self._ready()
            return
        self._timers.set("ready", max(0.0, ready.timeout_s - self._record.run_s()), self._not_ready)
        if needs_port(ready):
            forward = self._ready_forwards(self._record.status.forwards + self._record.book.probe)[0]
            address = "127.0.0.1" if forward.bind == "0.0.0.0" else forward.bind  # noqa: S104
            self._probe = Probe(
                self._reactor, ready, address, forward.host, usernet=self._usernet, answered=self._ready
            )

    def _usernet(self, reply: Callable[[str], None]) -> None:
        def answered(value: Any, _error: str) -> None:
            reply(value if isinstance(value, str) else "")

        self._execute("human-monitor-command", answered, command_line="info usernet")

    def _ready(self) -> None:
        self._timers.cancel("ready")
        self._stop_probe()
        if self._record.status.state == "running":
            if self._record.status.cause == "ready-timeout":
                self._record.change(cause="", message="", remedy="")
            self._record.change(state="ready", boot_s=round(self._record.run_s(), 3))

    def _not_ready(self) -> None:
        ready = self._spec.ready
        texts = {
            "console": "the console did not show %r" % ready.match,
            "tcp": "the guest's port %d takes no connection" % ready.port,
            "http": "no HTTP answer below 400 from the guest's port %d, path %s" % (ready.port, ready.path),
        }
        text = "after %g s %s" % (ready.timeout_s, texts[ready.when])
        self._record.change(cause="ready-timeout", message=text, remedy=remedy("ready-timeout"))
        if self._probe is not None:
            self._probe.slow = True

    def _stop_probe(self) -> None:
        if self._probe is not None:
            self._probe.stop()
            self._probe = None

    # ------------------------------------------------------------ while it runs

    def type(self, data: bytes) -> None:
        """Input for the guest's console."""
        if self._machine is not None:
            self._machine.type(data)

    def _console(self, data: bytes) -> None:
        self._record.heard(data)
        self._show(data)
        listener = self._listener
        keys = listener.host_keys
        listener.feed(data)
        if listener.host_keys != keys:
            self._record.change(host_keys=listener.host_keys)
        if listener.matched and self._record.status.state == "running":
            self._ready()
        if listener.panic:
            self._panicking()
        else:
            self._timers.cancel("panic")

    def _panicking(self) -> None:
        """It printed a panic: has it one, or shows it an old log? One that has falls silent, and its kernel spins."""
        began, before = time.monotonic(), self._cpu_now()

        def judge() -> None:
            busy = (self._cpu_now() - before) / max(0.1, time.monotonic() - began)
            if self._listener.panic_ended or busy > PANIC_BUSY:
                self._guest_down("guest-panic")
            else:
                self._listener.forget_panic()

        self._timers.set("panic", PANIC_END_S if self._listener.panic_ended else PANIC_S, judge)

    def _cpu_now(self) -> float:
        with contextlib.suppress(OSError, ValueError, IndexError):
            if self._machine is not None:
                return proc.used(self._machine.process.pid)[0]
        return 0.0

    def _event(self, name: str, data: Dict[str, Any]) -> None:
        if name == "SHUTDOWN" and data.get("guest") is True:
            panic = data.get("reason") == "guest-panic" or self._listener.panic
            self._guest_down("guest-panic" if panic else "guest-poweroff")
        elif name == "GUEST_PANICKED" or (name == "RESET" and self._listener.panic):  # some reboot when they panic
            self._guest_down("guest-panic")
        elif name == "BLOCK_IO_ERROR" and data.get("nospace") is True and data.get("action") == "stop":
            self._halted = True
            text = "QEMU paused the guest because the host's disk is full; it goes on when there is room"
            self._record.change(cause="disk-full", message=text, remedy=remedy("disk-full"))

    def _guest_down(self, cause: str) -> None:
        """The guest went down by itself; QEMU has only waited for us to see it."""
        self._timers.cancel("panic")
        if not self._down and self._machine is not None:
            self._down = cause
            self._machine.quit()

    def sample(self) -> None:
        """Look what the VM uses, and whether a full disk has room again."""
        if self._machine is None:
            return
        with contextlib.suppress(OSError, ValueError, IndexError):
            cpu, resident = proc.used(self._machine.process.pid)
            inward, outward = self._dump.read()
            mib = resident >> 20
            self._record.used(self._dump.offset, cpu_s=cpu, memory_mib=mib, net_in=inward, net_out=outward)
        self._machine.trim_log()
        self._execute("query-blockstats", self._disk)
        if self._halted:
            with contextlib.suppress(OSError):
                if free_bytes(self._dir.path) > DISK_SLACK:
                    self._halted = False
                    self._record.change(cause="", message="", remedy="")
                    self._execute("cont")

    def _disk(self, value: Any, error: str) -> None:
        if not error:
            read, written = meter.disk(value)
            self._record.used(self._dump.offset, disk_read=read, disk_written=written)

    # ------------------------------------------------------------ ending

    def stop(self, cause: str) -> None:
        """Ask the guest to switch off; after its grace it is made to. Harmless while it is ending already."""
        if self._over or self._record.book.ending:
            return
        was = self._record.status.state
        self._record.note(ending=cause)
        if self._machine is None:
            self._cancel_preparing()
            self._end("exited", cause, "")
            return
        self._stop_probe()
        self._timers.cancel("ready")
        self._record.change(state="stopping")
        if was == "booting" or self._halted:  # it cannot hear
            self._machine.quit()
        else:
            self._power_down()

    def _power_down(self) -> None:
        self._execute("system_powerdown")
        if self._machine is not None:
            self._timers.set("grace", self._spec.stop_grace_s, self._machine.quit)

    def kill(self) -> None:
        """End it at once."""
        self._cancel_preparing()
        if self._machine is None:
            self._end("exited", "killed", "")
        else:
            self._machine.kill()

    def _cancel_preparing(self) -> None:
        if self._preparing:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._preparing, signal.SIGKILL)
            self._preparing = 0

    def _gone(self) -> None:
        """QEMU is gone and all it wrote is read."""
        machine, self._machine = self._machine, None
        if machine is None or self._over:
            return
        inward, outward = self._dump.read()
        self._record.used(self._dump.offset, net_in=inward, net_out=outward)
        ending = self._record.book.ending
        said, status = machine.last_line(), machine.exit_status
        if ending:
            self._end("exited", ending, "")
        elif self._record.status.state == "booting":
            clash = "host forwarding rule" in said
            if clash and self._attempt < PORT_ATTEMPTS:
                self._launch()  # someone took a port between our look and QEMU's; if it is a fixed one, `choose` tells
            else:
                self._end("failed", "port-in-use" if clash else "qemu-failed", said or "QEMU ended without a word")
        elif self._down == "guest-panic":
            self._end("exited", "guest-panic", self._listener.panic or "the guest reported a panic")
        elif self._down:
            self._end("exited", self._down, "")
        elif status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status):
            self._end("exited", "qemu-failed", said or "QEMU ended with status %d" % os.WEXITSTATUS(status))
        else:
            signalled = status is not None and os.WIFSIGNALED(status)
            by = " by signal %d" % os.WTERMSIG(status or 0) if signalled else ""
            text = "QEMU (pid %d) was killed%s%s" % (machine.process.pid, by, ": " + said if said else "")
            self._end("exited", "killed", text)

    def _end(self, state: str, cause: str, message: str, remedy_text: str = "") -> None:
        if self._over:
            return
        self._over = True
        self._stop_probe()
        self._timers.clear()
        self._ended(state, cause, message, remedy_text)
