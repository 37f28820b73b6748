"""How the tests of the lab talk to its hosts: with the system's ssh, which knows nothing of xenoshell."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from xenoshell.lab import Lab, LabHost

Ssh = Callable[..., list[str]]


def ssh_command(lab: Lab, host: LabHost, *words: str, user: str | None = None, key: Path | None = None) -> list[str]:
    """The ssh command line for one host: its pinned key only, and only the lab's own key to log in with."""
    from xenoshell.lab.sshd import user as current

    options = {
        "UserKnownHostsFile": str(lab.directory / "known_hosts"),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": "20",
        "LogLevel": "ERROR",
    }
    flags = [word for key_, value in options.items() for word in ("-o", f"{key_}={value}")]
    target = f"{user or current()}@127.0.0.1"
    return [
        "ssh",
        "-F",
        "none",
        *flags,
        "-i",
        str(key or lab.directory / "id_ed25519"),
        "-p",
        str(host.port),
        target,
        *words,
    ]


def run(lab: Lab, host: LabHost, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command on a lab host."""
    command = ssh_command(lab, host, *words, **options)  # type: ignore[arg-type]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture(params=["sshd", "asyncssh"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of SSH server: OpenSSH's, and ours for machines without it."""
    if request.param == "asyncssh":
        monkeypatch.setattr("xenoshell.lab.sshd.find_sshd", lambda: None)
    return str(request.param)
