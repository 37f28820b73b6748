"""From `deploy` to booting guests, and what a user would do otherwise, in one run: figures and ratios.

    python -m tests.bench.deploy [--hosts 3] [--repeat 3] [--quick]

Three tables, each for a link of no and of 150 ms round trip:

*start*: the image is on the hosts already. Ours is the time from the process start of `xenoshell deploy` to
`vm.booting` on the last host. Otherwise: one OpenSSH command a host, all at once, that makes the qcow2 and starts QEMU
(no console log, no readiness, no lease, no metering: the least that a user could type).

*first*: the hosts hold nothing. Otherwise: `tar -S | zstd -3 | ssh zstd -d | tar` of the template's files to all hosts
at once, then the same command (`scp` of the sparse disk would send its 2 GiB of zeros).

*commands*: `xenoshell --help`, `check`, `quote`, and how long a helper takes to answer.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from xenoshell.images.store import ImageStore
from xenoshell.lab import Lab, LabHost, down, up
from xenoshell.paths import Paths

SESSION = """schema = 1
name = "bench"
[[vm]]
name = "vm"
image = "tiny"
hosts = {hosts}
[vm.resources]
memory = "128MiB"
[vm.network]
forward = [{{ guest = 80 }}]
[vm.ready]
when = "none"
"""


def xenoshell(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "xenoshell", *map(str, words)]


def quiet(*words: str | Path) -> None:
    done = subprocess.run(xenoshell(*words), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"xenoshell {' '.join(map(str, words))}: {done.stderr}")


def until_booting(file: Path, hosts: int) -> float:
    """Seconds from the start of `xenoshell deploy` to `vm.booting` on the last host."""
    began = time.perf_counter()
    booting: set[str] = set()
    last = 0.0
    with subprocess.Popen(xenoshell("deploy", file, "--json", "--quiet"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "vm.booting" and event["host"] not in booting:
                    booting.add(event["host"])
                    last = time.perf_counter() - began
        except BaseException:
            process.kill()
            raise
    if len(booting) != hosts:
        sys.exit(f"only {sorted(booting)} booted")
    return last


class Otherwise:
    """What a user would type without xenoshell: OpenSSH and QEMU."""

    def __init__(self, lab: Lab, image: dict[str, Path], cmdline: str) -> None:
        self.lab = lab
        self.image = image
        self.cmdline = cmdline

    def ssh(self, host: LabHost, *words: str) -> list[str]:
        options = ["-F", "none", "-i", str(self.lab.directory / "id_ed25519"), "-o", "IdentitiesOnly=yes"]
        options += ["-o", f"UserKnownHostsFile={self.lab.directory / 'known_hosts'}", "-o", "BatchMode=yes"]
        return ["ssh", *options, "-p", str(host.port), *words]

    def start(self) -> float:
        """Seconds until QEMU is up on every host, the files being there."""
        command = (
            "cd {0} && qemu-img create -q -f qcow2 -F raw -b {0}/disk disk.qcow2 && qemu-system-x86_64 -M pc "
            "-nodefaults -display none -accel tcg -cpu max -m 128M -kernel kernel -initrd initrd -append '{1}' -drive "
            "file=disk.qcow2,if=virtio -netdev user,id=n -device virtio-net-pci,netdev=n -serial file:log -daemonize "
            "-pidfile pid"
        )
        return self._all(lambda host: self.ssh(host, "127.0.0.1", command.format(self.place(host), self.cmdline)))

    def login(self) -> float:
        """Seconds to log in to every host and do nothing: what no program that uses SSH can be faster than."""
        return self._all(lambda host: self.ssh(host, "127.0.0.1", "true"))

    def copy(self) -> float:
        """Seconds to copy the template to every host."""
        for host in self.lab.hosts:
            self.place(host).mkdir(exist_ok=True)
        pack = ["tar", "-C", str(next(iter(self.image.values())).parent), "-Scf", "-", *self.image]

        def command(host: LabHost) -> list[str]:
            there = self.ssh(host, "127.0.0.1", f"zstd -dq | tar -C {self.place(host)} -Sxf -")
            return ["sh", "-c", f"{shlex.join(pack)} | zstd -3 -q | {shlex.join(there)}"]

        return self._all(command)

    def stop(self) -> None:
        for host in self.lab.hosts:
            pid = self.place(host) / "pid"
            if pid.exists():
                subprocess.run(["kill", "-9", pid.read_text().strip()], check=False)
                pid.unlink()

    def place(self, host: LabHost) -> Path:
        return host.directory / "otherwise"

    def _all(self, command: Callable[[LabHost], list[str]]) -> float:
        began = time.perf_counter()
        running = [subprocess.Popen(command(host), stdin=subprocess.DEVNULL) for host in self.lab.hosts]
        if any(process.wait() for process in running):
            sys.exit("ssh or scp failed")
        return time.perf_counter() - began


#: What asks for an end; the labs are taken down first.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end(number: int, _frame: FrameType | None) -> None:
    """As Ctrl-C does: leave through every ``finally``."""
    sys.exit(128 + number)


@contextmanager
def lab(paths: Paths, hosts: int, rtt_ms: int) -> Iterator[Lab]:
    try:
        yield up(paths, hosts, f"rtt={rtt_ms}ms" if rtt_ms else None)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # not half way through
        try:
            down(paths)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def row(name: str, ours: Sequence[float], other: Sequence[float], what: str) -> None:
    a, b = statistics.median(ours), statistics.median(other)
    spread = f"(ours {min(ours):.2f} to {max(ours):.2f})"
    print(f"{name:<34} {a:7.2f} s   {what:<22} {b:7.2f} s   ratio {b / a:5.2f}   {spread}")


def commands(file: Path, repeat: int) -> None:
    python = [_timed([sys.executable, "-c", "pass"]) for _ in range(repeat)]
    for words in (["--help"], ["check", str(file)], ["quote", str(file)], ["ps"]):
        times = [_timed(xenoshell(*words)) for _ in range(repeat)]
        ours, bare = statistics.median(times), statistics.median(python)
        print(f"{'xenoshell ' + words[0]:<34} {ours:7.2f} s   {'python -c pass':<22} {bare:7.2f} s")


def helper_start(repeat: int) -> None:
    from xenoshell.fleet.bundle import bundle, stub

    packed = bundle()
    with tempfile.TemporaryDirectory() as state:
        times = []
        for _ in range(repeat + 1):
            began = time.perf_counter()
            command = ["sh", "-c", stub(packed, os.urandom(16), state)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(packed.packed)
                process.stdin.flush()
                process.stdout.read(64)
                times.append(time.perf_counter() - began)
                process.stdin.close()
                process.stdout.read()
    print(f"helper: {len(packed.packed)} bytes sent; answers after {times[0]:.3f} s, later {min(times[1:]):.3f} s")


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    options = parser.parse_args()
    repeat = 1 if options.quick else options.repeat
    for number in ENDING:
        signal.signal(number, end)
    with tempfile.TemporaryDirectory(prefix="xb-", dir="/tmp") as name:
        root = Path(name)
        # The packages are downloads, not ours to time: they come from the ordinary cache.
        paths = Paths(root / "config", root / "state", Path(os.environ.get("XENOSHELL_CACHE_DIR", root / "cache")))
        os.environ |= {
            "XENOSHELL_CONFIG_DIR": str(paths.config),
            "XENOSHELL_STATE_DIR": str(paths.state),
            "XENOSHELL_CACHE_DIR": str(paths.cache),
        }
        quiet("images", "build", "tiny")
        store = ImageStore(paths.images)
        manifest = store.get("tiny").manifest
        files: dict[str, Path] = {}
        (root / "image").mkdir()
        for part in ("kernel", "initrd", "disk"):
            blob = getattr(manifest, part)
            files[part] = root / "image" / part
            subprocess.run(["cp", "--sparse=always", store.blob_path(blob.digest), files[part]], check=True)
        names = json.dumps([h.name for h in _names(paths, options.hosts)])
        file = root / "bench.toml"
        file.write_text(SESSION.format(hosts=names))
        for rtt in (0, 150):
            with lab(paths, options.hosts, rtt) as hosts:
                others = Otherwise(hosts, files, manifest.cmdline)
                first = [until_booting(file, options.hosts)]
                quiet("destroy", "bench", "--yes")
                copied = [others.copy() + others.start()]
                others.stop()
                ours, theirs, logins = [], [], []
                for _ in range(repeat):
                    ours.append(until_booting(file, options.hosts))
                    quiet("destroy", "bench", "--yes")
                    theirs.append(others.start())
                    others.stop()
                    logins.append(others.login())
                title = f"{options.hosts} hosts at {rtt} ms"
                row(f"{title}, image there", ours, theirs, "ssh + qemu by hand")
                row(f"{title}, image there", ours, logins, "ssh HOST true")
                row(f"{title}, nothing there", first, copied, "tar|zstd|ssh, then same")
        with lab(paths, options.hosts, 0):
            commands(file, repeat)
        helper_start(repeat)


def _names(paths: Paths, hosts: int) -> Sequence[LabHost]:
    with lab(paths, hosts, 0) as up_now:
        return up_now.hosts


if __name__ == "__main__":
    main()
