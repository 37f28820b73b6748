"""A host without SSH: a state directory with blobs in it, and VMs on it that are spoken to as a helper does."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support import eventually
from xenoshell.host import proc, sweep
from xenoshell.host.vmdir import VmDir, adopt
from xenoshell.wire import codec, frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Forward, Ready, VmSpec, VmStatus

REPOSITORY = Path(__file__).parents[2]
MAC = "52:54:00:12:34:56"
UP = "the guest is up"

#: The guest's /init: modules, network, a web server, the power button, a shell on the serial line.
INIT = f"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /www /etc/acpi/PWRF
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
while read -r module; do
    grep -q "no${{module%%[-_.]*}}" /proc/cmdline || insmod "/modules/$module"
done < /modules/order
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
echo "hello from the guest" > /www/index.html
grep -q nohttp /proc/cmdline || httpd -p 80 -h /www
printf '#!/bin/sh\\necho powering down > /dev/console; poweroff -f\\n' > /etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
grep -q noacpid /proc/cmdline || acpid -l /dev/null
echo "{UP}"
while :; do setsid sh -c 'exec sh < /dev/ttyS0 > /dev/ttyS0 2>&1'; done
"""
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "button", "evdev", "pvpanic-mmio")


def spec(**fields: Any) -> VmSpec:
    """A VM that boots nothing in particular, with ``fields`` of its own."""
    digest = "0" * 64
    basic = VmSpec(
        id="edge.web-1.0123abcd",
        session="edge",
        session_id="0123abcd",
        name="web-1",
        arch="x86_64",
        vcpus=1,
        memory_mib=128,
        disk_bytes=0,
        disk=None,
        boot="kernel",
        kernel=digest,
        initrd=None,
        cmdline="console=ttyS0 quiet",
        accel="tcg",
        network="user",
        mac=MAC,
        forwards=(),
        ready=Ready("console", match=UP),
        lease_s=0.0,
        budget_s=0.0,
        seed_size=0,
        seed_sha256="",
        stop_grace_s=10.0,
    )
    return replace(basic, **fields)


class HungUp(ConnectionError, EOFError):
    """The supervisor hung up; to one who waits for something, that is not yet."""


class Talk:
    """One connection to a supervisor: requests, and what comes of them."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._reader = frames.FrameReader()
        self._stream = 0
        self.frames: list[frames.Frame] = []

    def request(self, verb: str, **params: Any) -> int:
        """Send a request; its stream id."""
        self._stream += 1
        payload = codec.dumps({"verb": verb, **params})
        self.connection.sendall(frames.pack(frames.REQUEST, self._stream, payload))
        return self._stream

    def take(self, stream: int, timeout_s: float = 30.0, type_: int = 0) -> frames.Frame:
        """The next frame of ``stream`` (and of a type). Raises `EOFError` when the supervisor hangs up."""
        deadline = time.monotonic() + timeout_s
        while True:
            for at, frame in enumerate(self.frames):
                if frame.stream == stream and type_ in (0, frame.type):
                    return self.frames.pop(at)
            self.connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = self.connection.recv(1 << 16)
            if not data:
                raise HungUp
            self.frames += self._reader.feed(data)

    def ask(self, verb: str, **params: Any) -> dict[str, Any]:
        """A request with one answer; an ERROR raises `Failure`."""
        frame = self.take(self.request(verb, **params))
        value = codec.loads(frame.payload)
        if frame.type == frames.ERROR:
            raise Failure(value["cause"], value["message"], value["remedy"])
        return value

    def text(self, stream: int, wanted: bytes, timeout_s: float = 30.0) -> bytes:
        """DATA of ``stream`` until ``wanted`` is in it."""
        seen = b""
        while wanted not in seen:
            seen += self.take(stream, timeout_s, frames.DATA).payload
        return seen


class Guest:
    """One VM of a `Host`."""

    def __init__(self, host: Host, wanted: VmSpec, seed: bytes = b"") -> None:
        self.host = host
        self.spec = wanted
        self.dir = VmDir(str(host.vms), wanted.id)
        self.dir.create(wanted, seed)
        self.adopt()

    def adopt(self) -> None:
        """As a helper that finds it."""
        adopt(self.dir, str(self.host.library))

    @contextmanager
    def talk(self) -> Iterator[Talk]:
        """A connection to the supervisor."""
        with self.dir.connect() as connection:
            yield Talk(connection)

    def status(self) -> VmStatus:
        """Its status now."""
        with self.talk() as talk:
            return codec.decode(VmStatus, talk.ask("status"))

    def order(self, state: str, op: str = "") -> None:
        """Give an order, as the helper does."""
        self.dir.want(state, op or uuid.uuid4().hex)
        with self.talk() as talk, contextlib.suppress(EOFError, ConnectionError):  # gone at once, it does not answer
            talk.ask("poke")

    def until(self, check: Callable[[VmStatus], bool] | str, timeout_s: float = 30.0) -> VmStatus:
        """Watch until a status fulfils ``check`` (or has that state); it."""
        fits = (lambda status: status.state == check) if isinstance(check, str) else check
        seen: list[VmStatus] = []
        deadline = time.monotonic() + timeout_s
        with self.talk() as talk:
            stream = talk.request("watch")
            try:
                while True:
                    frame = talk.take(stream, deadline - time.monotonic(), frames.EVENT)
                    seen.append(codec.decode(VmStatus, codec.loads(frame.payload)))
                    if fits(seen[-1]):
                        return seen[-1]
            except (TimeoutError, ValueError):
                raise AssertionError(f"never {check}; last seen {seen[-1:]}\n{self.log()[-2000:]!r}") from None

    def shell(self, command: str, wanted: str) -> bytes:
        """Type a command once the guest has its prompt; what its console said until ``wanted``."""
        with self.talk() as talk:
            stream = talk.request("console", replay=1 << 20)
            seen = talk.text(stream, UP.encode()) if UP.encode() not in self.log() else b""
            talk.connection.sendall(frames.pack(frames.DATA, stream, command.encode() + b"\n"))
            return seen + talk.text(stream, wanted.encode())

    def log(self) -> bytes:
        """The whole console log, from the supervisor."""
        with self.talk() as talk:
            stream = talk.request("logs", follow=False, tail=0)
            talk.take(stream)
            seen = b""
            while True:
                frame = talk.take(stream)
                if frame.type == frames.EOF:
                    return seen
                seen += frame.payload

    def keepers(self) -> tuple[proc.Process, proc.Process]:
        """Guardian and supervisor (the one is the other's parent)."""
        found = {
            p.pid: p
            for p in sweep.processes(str(self.host.state))
            if proc.command(p.pid)[-2:] == ["supervise", self.dir.path]
        }

        def parent(pid: int) -> int:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

        above = {pid: parent(pid) for pid in found}
        # what a supervisor has forked to prepare a run has its name, too
        supervisors = [pid for pid in found if above[pid] in found and above[above[pid]] not in found]
        assert len(supervisors) == 1, found  # else one of them is just being made
        return found[above[supervisors[0]]], found[supervisors[0]]

    def kill_keepers(self) -> None:
        """SIGKILL guardian and supervisor as if at once: neither may see the other die."""
        keepers = self.keepers()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in keepers:
                os.kill(process.pid, number)
        for process in keepers:
            gone(process)

    def kill_qemu(self) -> None:
        """SIGKILL its QEMU."""
        (qemu,) = proc.qemus_in(self.dir.path)
        os.kill(qemu.pid, signal.SIGKILL)


class Host:
    """A state directory in ``directory`` with the test kernel and initramfs among its blobs."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "host"
        self.vms = self.state / "vms"
        self.blobs = self.state / "blobs"
        self.proofs = self.state / "proofs"
        for path in (self.vms, self.blobs, self.proofs):
            path.mkdir(parents=True, mode=0o700)
        self.library = directory / "library.py"
        self.library.write_text(
            f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
            "from xenoshell.host import machine, ready, supervisor\n"
            "supervisor.TICK_S, ready.SLOW_PAUSE_S, machine.QUIT_S = 0.25, 0.5, 1.0\n"  # so that tests wait less
            "from xenoshell.host.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
        )

    def blob(self, path: Path) -> str:
        """Hold the file as a blob; the digest it has here."""
        digest = hashlib.sha256(str(path).encode()).hexdigest()
        if not (self.blobs / digest).exists():
            (self.blobs / digest).symlink_to(path)
        return digest

    def end(self) -> None:
        """Remove everything; fails if something cannot be removed. What supervisors said is printed."""
        for log in self.vms.glob("*/supervisor.log"):
            print(log, log.read_text())
        assert sweep.sweep(str(self.state)) == []


class World:
    """What a test of guests needs."""

    def __init__(self, host: Host, kernel: Path, initrd: Path) -> None:
        self.host = host
        self.kernel = host.blob(kernel)
        self.initrd = host.blob(initrd)

    def spec(self, **fields: Any) -> VmSpec:
        """A VM of the test kernel."""
        return spec(**{"kernel": self.kernel, "initrd": self.initrd, "forwards": (Forward(80),), **fields})

    def guest(self, **fields: Any) -> Guest:
        """Create and start one."""
        return Guest(self.host, self.spec(**fields))


def gone(process: proc.Process, timeout_s: float = 5.0) -> None:
    """Wait until a process has ended."""
    eventually(lambda: not proc.alive(process), timeout_s, f"the end of process {process.pid}")
