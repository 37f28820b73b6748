"""A real OpenSSH server on loopback, with keys of its own, for the length of a test."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.leaks import RUNTIME
from tests.support import alive, descendants, eventually, free_port, kill, listening, running


@dataclass
class Sshd:
    """One server: where it listens, its host keys, and the key that logs in."""

    directory: Path
    port: int
    identity: Path
    host_key: Path
    processes: list[int] = field(default_factory=list)

    @property
    def user(self) -> str:
        return getpass.getuser()

    @property
    def target(self) -> str:
        return f"{self.user}@127.0.0.1:{self.port}"

    @property
    def public(self) -> str:
        """``type base64`` of its host key."""
        return " ".join(Path(f"{self.host_key}.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        return keygen("-lf", f"{self.host_key}.pub").split()[1]

    @property
    def known_line(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.public}\n"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def kill(self) -> None:
        """The machine is gone: the server and every session at once, without a goodbye."""
        for pid in self.processes:
            for child in descendants(pid):
                if "sshd" in child.command:
                    kill(child)


def keygen(*arguments: str | Path) -> str:
    """Run ssh-keygen; its output."""
    command = ["ssh-keygen", *(str(a) for a in arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def make_key(path: Path, kind: str = "ed25519") -> Path:
    """A new key pair without a passphrase."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keygen("-q", "-t", kind, "-N", "", "-C", "", "-f", path)
    return path


def public(key: Path) -> str:
    """The line with a key's public half."""
    return Path(f"{key}.pub").read_text()


@contextlib.contextmanager
def sshd(
    directory: Path, *, config: str = "", host_key: Path | None = None, port: int = 0, identity: Path | None = None
) -> Iterator[Sshd]:
    """Start a server with ``config`` (further lines of sshd_config) and end it with all its sessions."""
    (directory / RUNTIME).mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = Sshd(
        directory,
        port or free_port(),
        identity or make_key(directory / "id"),
        host_key or make_key(directory / "host_key"),
    )
    authorized = directory / "authorized_keys"
    authorized.write_text(Path(f"{server.identity}.pub").read_text())
    (directory / "sshd_config").write_text(
        f"{config}\n"
        f"ListenAddress 127.0.0.1:{server.port}\n"
        f"HostKey {server.host_key}\n"
        f"AuthorizedKeysFile {authorized}\n"
        f"PidFile {directory}/pid\n"
        f"SetEnv XDG_RUNTIME_DIR={directory}/{RUNTIME}\n"
        "UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\nPrintMotd no\nUseDNS no\nLogLevel DEBUG1\n"
    )
    log = (directory / "log").open("ab")
    try:
        with running("/usr/sbin/sshd", "-D", "-e", "-f", directory / "sshd_config", stderr=log, cwd=directory) as child:
            server.processes.append(child.pid)
            eventually(lambda: listening(server.port) or child.poll() is not None, what="sshd listens")
            if child.poll() is not None:
                raise AssertionError(server.log)
            try:
                yield server
            finally:
                sessions = descendants(child.pid)
                child.kill()
                for session in sessions:
                    if "sshd" in session.command:
                        kill(session)
                with contextlib.suppress(AssertionError):  # a helper tidies up when its connection is gone
                    eventually(lambda: not any(alive(s.pid) for s in sessions), 5)
                for session in sessions:
                    kill(session)
    finally:
        log.close()
