"""A guest under plain QEMU, emulated, for tests of what is in the images."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import running
from xenoshell.images.manifest import Manifest
from xenoshell.images.store import ImageStore


@dataclass(frozen=True)
class Guest:
    """A running guest; its console goes to the file ``log``."""

    process: subprocess.Popen[bytes]
    log: Path
    monitor: Path
    ports: dict[int, int]

    def console(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace").replace("\r\n", "\n")

    def page(self, path: str = "/") -> str:
        """The page it serves; nothing while it serves none."""
        assert self.process.poll() is None, f"QEMU ended: {self.console()[-2000:]}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.ports[80]}{path}", timeout=2) as answer:
                body: bytes = answer.read()
                return body.decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return ""

    def press_power_button(self) -> None:
        """As QEMU's system_powerdown does."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.monitor))
            stream = connection.makefile("rw")
            stream.readline()
            for command in ("qmp_capabilities", "system_powerdown"):
                stream.write(json.dumps({"execute": command}) + "\n")
                stream.flush()
                stream.readline()
            stream.close()

    def ssh(self, key: Path, command: str) -> str:
        """Run a command over SSH, with the host key that the console showed."""
        found = self.console().split("-----BEGIN SSH HOST KEY KEYS-----\n")[1].split("\n-----END")[0].splitlines()
        known = key.with_name("known")
        known.write_text("".join(f"[127.0.0.1]:{self.ports[22]} {' '.join(line.split()[:2])}\n" for line in found))
        options = [
            "-F",
            "none",
            "-o",
            f"UserKnownHostsFile={known}",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
        ]
        call = ["ssh", *options, "-i", str(key), "-p", str(self.ports[22]), "root@127.0.0.1", command]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout


@contextlib.contextmanager
def boot(
    store: ImageStore, manifest: Manifest, directory: Path, seed: bytes = b"", size: str = "2G", memory_mib: int = 256
) -> Iterator[Guest]:
    """A guest with its own layer over the image's disk, kept in ``directory`` from one boot to the next."""
    disk, log, monitor = directory / "disk.qcow2", directory / "console.log", directory / "qmp.sock"
    assert manifest.disk is not None
    if not disk.exists():
        base = str(store.blob_path(manifest.disk.digest))
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, str(disk), size]
        subprocess.run(create, check=True, timeout=60)
    log.write_text("")
    ports = {guest: _free_port() for guest in (22, 80)}
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in ports.items())
    command = [
        "qemu-system-x86_64", "-M", "pc", "-cpu", "max", "-accel", "tcg", "-m", str(memory_mib), "-nodefaults",
        "-no-user-config", "-display", "none", "-serial", f"file:{log}", "-qmp", f"unix:{monitor},server=on,wait=off",
        "-drive", f"file={disk},if=none,id=d0,format=qcow2,cache=unsafe", "-device", "virtio-blk-pci,drive=d0",
        "-netdev", f"user,id=n0{forwards}", "-device", "virtio-net-pci,netdev=n0", "-device", "virtio-rng-pci",
        "-device", "pvpanic",
    ]  # fmt: skip
    if seed:
        (directory / "seed.iso").write_bytes(seed)
        command += ["-drive", f"file={directory / 'seed.iso'},if=none,id=d1,format=raw,readonly=on"]
        command += ["-device", "virtio-blk-pci,drive=d1"]
    if manifest.boot == "kernel":
        assert manifest.kernel is not None and manifest.initrd is not None
        command += ["-kernel", store.blob_path(manifest.kernel.digest).as_posix()]
        command += ["-initrd", store.blob_path(manifest.initrd.digest).as_posix(), "-append", manifest.cmdline]
    with running(*command, stdin=subprocess.DEVNULL) as process:
        yield Guest(process, log, monitor, ports)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
