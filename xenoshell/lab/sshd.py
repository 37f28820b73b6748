"""The SSH server of one lab host: OpenSSH's sshd with a configuration of its own, or asyncssh's where there is none."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from xenoshell.host.proc import Process, identify
from xenoshell.lab.processes import TAG
from xenoshell.wire.causes import Failure

#: sshd is seldom in the PATH of an ordinary user.
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin")
#: sshd run by root insists on this directory; the system's service makes it at its start.
PRIVSEP = Path("/run/sshd")
_START_S = 10.0


def user() -> str:
    """The name of the user who runs this process, by uid."""
    return pwd.getpwuid(os.getuid()).pw_name


def find_sshd() -> Path | None:
    """OpenSSH's sshd, or `None` where it is not installed or would not let this user in."""
    found = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), *_PLACES)))
    return Path(found) if found and not _locked() else None


def _locked() -> bool:
    """Whether the account is locked: sshd without PAM refuses it then. Only a sshd of root can know."""
    if os.getuid():
        return False
    for line in Path("/etc/shadow").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == user():
            return fields[1].startswith("!")
    return False


def make_key(path: Path, comment: str) -> str:
    """Make an ed25519 key pair at ``path`` and ``path``.pub, unless it is there. Returns the public key's line."""
    public = path.with_name(path.name + ".pub")
    if not (path.exists() and public.exists()):
        path.unlink(missing_ok=True)
        if keygen := shutil.which("ssh-keygen"):
            command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
            try:
                made = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_START_S
                )
            except subprocess.TimeoutExpired:
                raise Failure(
                    "timeout", f"ssh-keygen made no key within {_START_S:g} s", "is this machine busy?"
                ) from None
            if made.returncode:
                raise Failure("internal", f"ssh-keygen: {made.stderr.strip()}", f"is {path.parent} writable?")
        else:
            _make_key_here(path, public, comment)
    return public.read_text().strip()


def _make_key_here(path: Path, public: Path, comment: str) -> None:
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519", comment)
    path.touch(0o600)
    path.write_bytes(key.export_private_key())
    public.write_bytes(key.export_public_key())


def configuration(directory: Path, port: int, authorized_keys: Path) -> str:
    """The sshd_config of the host in ``directory``: loopback, one user, one key, nothing of the system's."""
    return f"""\
# A XenoServer of the lab. Written by `xenoshell lab up`, removed by `xenoshell lab down`.
ListenAddress 127.0.0.1:{port}
HostKey "{directory}/host_key"
PidFile none
LogLevel VERBOSE
UsePAM no
StrictModes no
AllowUsers {user()}
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile "{authorized_keys}"
AuthorizedKeysCommand none
PermitUserEnvironment no
PermitUserRC no
SetEnv "{TAG}={directory}"
UseDNS no
PrintMotd no
PrintLastLog no
X11Forwarding no
AllowAgentForwarding no
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
MaxAuthTries 20
MaxSessions 64
MaxStartups 200:30:400
LoginGraceTime 30
Subsystem sftp internal-sftp
"""


def sshd_command(sshd: Path, directory: Path) -> list[str]:
    """How to start sshd for the host in ``directory`` in the foreground."""
    return [str(sshd), "-D", "-f", f"{directory}/sshd_config", "-E", f"{directory}/sshd.log"]


def asyncssh_command(directory: Path, port: int, authorized_keys: Path) -> list[str]:
    """How to start asyncssh's server for the host in ``directory`` in the foreground."""
    return [sys.executable, "-m", "xenoshell.lab.server", str(directory), str(port), str(authorized_keys)]


def relay_command(directory: Path, port: int, target: int, link: Sequence[float]) -> list[str]:
    """How to start the relay in front of the server; ``link``: round trip in ms, rates up and down in bit/s."""
    relay = Path(__file__).with_name("relay.py")
    numbers = [f"{number:.15g}" for number in link]
    return [sys.executable, "-I", "-S", str(relay), str(directory), str(port), str(target), *numbers]


def start(daemons: Sequence[tuple[Sequence[str], Path]]) -> list[Process]:
    """Start daemons, each a command and the file for its output (see `spawn`). Returns which processes they are."""
    orders = [[list(command), str(log)] for command, log in daemons]
    spawn = Path(__file__).with_name("spawn.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(spawn)],
        input=json.dumps(orders),
        stdout=subprocess.PIPE,
        timeout=_START_S,
        check=True,
        text=True,
    )
    return [identify(int(line)) for line in done.stdout.split()]


def hold_privsep(directory: Path) -> None:
    """Make /run/sshd if root's sshd needs it and nobody made it; a mark in it says that this lab uses it."""
    if os.getuid():
        return
    mark = PRIVSEP / _mark(directory)
    for _ in range(10):  # another lab may be removing it this moment
        try:
            PRIVSEP.mkdir(0o755)
        except FileExistsError:
            if not any(PRIVSEP.glob(".xenoshell-*")):
                return  # the system's own
        try:
            mark.touch()
        except FileNotFoundError:
            continue
        return


def release_privsep(directory: Path) -> None:
    """Undo `hold_privsep`: the last lab that uses /run/sshd removes it, if a lab made it."""
    if os.getuid():
        return
    mark = PRIVSEP / _mark(directory)
    if not mark.exists():
        return
    mark.unlink(missing_ok=True)
    try:
        PRIVSEP.rmdir()
    except OSError:
        return  # still in use by another lab, or gone


def _mark(directory: Path) -> str:
    status = directory.stat()
    return f".xenoshell-{status.st_dev:x}-{status.st_ino:x}"
