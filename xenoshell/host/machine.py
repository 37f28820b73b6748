"""The QEMU of one VM, started or found again: its process, its monitor and its serial line."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from typing import Any, Callable, Dict, List, Optional

from xenoshell.host import locks, proc, serial_line
from xenoshell.host.proc import Process
from xenoshell.host.qmp import Qmp
from xenoshell.host.reactor import Reactor, Timer
from xenoshell.host.serial_line import SerialLine
from xenoshell.host.vmdir import connect_unix

#: Held by QEMU itself, through a descriptor that it inherits: locked means that this VM has a QEMU.
LOCK = "qemu.lock"
LOG = "qemu.log"
LOG_LIMIT = 1 << 20
#: How long QEMU may take to go after it was told to, in seconds.
QUIT_S = 3.0


class Machine:
    """One QEMU process. The owner hears of it by ``on_console(bytes)``, ``on_ready()`` (monitor usable),
    ``on_event(name, data)`` and, once everything it wrote is read and it is gone, ``on_gone()``.
    """

    def __init__(
        self,
        reactor: Reactor,
        directory: str,
        *,
        on_console: Callable[[bytes], None],
        on_ready: Callable[[], None],
        on_event: Callable[[str, Dict[str, Any]], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._directory = directory
        self._on_console = on_console
        self._on_ready = on_ready
        self._on_event = on_event
        self._on_gone = on_gone
        self._qmp: Optional[Qmp] = None
        self._console: Optional[SerialLine] = None
        self._killer: Optional[Timer] = None
        self._going = False
        self.process = Process(0, 0)
        self.exit_status: Optional[int] = None  # as waitpid gives it; None when it was not our child

    def start(self, arguments: Callable[[int], List[str]]) -> None:
        """Start QEMU with ``arguments(monitor descriptor)`` and connect. Raises `OSError`."""
        lock = locks.try_lock(os.path.join(self._directory, LOCK))
        if lock is None:
            raise OSError("another QEMU of this VM is running")
        monitor = log = None
        try:
            serial_line.make(self._directory)
            monitor = listen(self._directory, "qmp.sock")  # before QEMU is there: connecting never has to wait for it
            log = os.open(
                os.path.join(self._directory, LOG), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600
            )
            self._console = SerialLine(self._reactor, self._directory, self._on_console)
            child = subprocess.Popen(
                arguments(monitor.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                pass_fds=(lock, monitor.fileno()),
                start_new_session=True,
            )
            child.returncode = 0  # `reap` collects it; Popen need not
            self.process = proc.identify(child.pid)
        except OSError:
            self._hang_up()
            raise
        finally:
            os.close(lock)
            if log is not None:
                os.close(log)
            if monitor is not None:
                monitor.close()
        self._connect()

    def attach(self, process: Process) -> bool:
        """Connect to the monitor and the console of a QEMU that runs, and take what the guest wrote meanwhile.

        False if that may be less than it wrote. Raises `OSError` when QEMU does not listen.
        """
        self.process = process
        self._console = line = SerialLine(self._reactor, self._directory, self._on_console)
        self._connect()
        return not line.full

    def _connect(self) -> None:
        try:
            monitor = connect_unix(self._directory, "qmp.sock", 1.0)
        except OSError:
            self._hang_up()
            raise
        self._qmp = Qmp(self._reactor, monitor, self._on_ready, self._on_event, self._lost)

    def _hang_up(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None

    def find(self) -> Optional[Process]:
        """The running QEMU of this VM, whoever started it: None if there is none, pid 0 if it is just starting."""
        if not locks.locked(os.path.join(self._directory, LOCK)):
            return None
        found = proc.qemus_in(self._directory)
        return found[0] if found else Process(0, 0)

    def execute(self, command: str, reply: Optional[Callable[[Any, str], None]] = None, **arguments: Any) -> None:
        """Send a monitor command; ``reply(value, error)``."""
        if self._qmp is not None:
            self._qmp.execute(command, reply, **arguments)

    def type(self, data: bytes) -> None:
        """Input for the guest's console. More than 64 KiB that the guest does not take are dropped."""
        if self._console is not None and self._console.pending < 65536:
            self._console.write(data)

    def drain(self) -> None:
        """Hand on at once what the guest has written."""
        if self._console is not None:
            self._console.drain()

    def quit(self) -> None:
        """Make QEMU go: by the monitor, and if that does not help, by SIGKILL."""
        self.execute("quit")
        if self._killer is None:
            self._killer = self._reactor.after(QUIT_S, self.kill)

    def kill(self) -> None:
        """SIGKILL, at once."""
        proc.kill(self.process, signal.SIGKILL)

    def last_line(self) -> str:
        """What QEMU said last on stderr, without its own name in front."""
        with contextlib.suppress(OSError), open(os.path.join(self._directory, LOG), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
            if lines:
                return lines[-1].partition(": ")[2] if lines[-1].startswith("qemu-system-") else lines[-1]
        return ""

    def trim_log(self) -> None:
        """Keep QEMU's own log bounded."""
        path = os.path.join(self._directory, LOG)
        with contextlib.suppress(OSError):
            if os.stat(path).st_size > LOG_LIMIT:
                os.truncate(path, 0)

    def _lost(self) -> None:
        if not self._going:
            self._going = True
            if self._killer is None:
                self._killer = self._reactor.after(QUIT_S, self.kill)
            self._wait()

    def _wait(self) -> None:
        self._reap()
        held = locks.locked(os.path.join(self._directory, LOCK))  # a dead process may still have threads that end
        if held or proc.alive(self.process):
            self._reactor.after(0.02, self._wait)
            return
        if self._console is not None:
            self._console.drain()
            self._hang_up()
        if self._killer is not None:
            self._killer.cancel()
        self._on_gone()

    def _reap(self) -> None:
        try:
            pid, status = os.waitpid(self.process.pid, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            self.exit_status = status


def listen(directory: str, name: str) -> socket.socket:
    """A listening UNIX socket ``name`` in ``directory``, in place of an old one. Raises `OSError`."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = "/proc/self/fd/%d/%s" % (fd, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    finally:
        os.close(fd)
    return sock
