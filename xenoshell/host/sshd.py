"""How the sshd that we came in through is configured: what it says itself, or what its file says."""

from __future__ import annotations

import glob
import os
import subprocess
from typing import Dict, NamedTuple, Optional

from xenoshell.host.unpack import find_program

_ASK_S = 10.0
_DEFAULT_FILE = "/etc/ssh/sshd_config"
#: sshd_config(5).
DEFAULTS = {
    "maxsessions": "10",
    "maxstartups": "10:30:100",
    "allowstreamlocalforwarding": "yes",
    "disableforwarding": "no",
}


class Listener(NamedTuple):
    """The listening sshd: its program and its configuration file."""

    program: Optional[str]
    file: str


class Settings(NamedTuple):
    """The `DEFAULTS` keys with their values, and where they are from ("" when they could not be read)."""

    values: Dict[str, str]
    source: str


def listener(pid: Optional[int] = None) -> Optional[Listener]:
    """The sshd above process ``pid`` (default: this one), found by its parents; None when there is none to see."""
    found = ""
    pid = os.getppid() if pid is None else pid
    try:
        while pid > 1:
            with open("/proc/%d/comm" % pid) as file:
                if file.read().startswith("sshd"):  # sshd, sshd-session
                    found = title(pid)
            pid = parent(pid)
    except OSError:
        pass  # hidden from us (hidepid): then what we saw up to there is what there is
    if not found:
        return None
    words = found.split()
    path = _DEFAULT_FILE
    for flag, value in zip(words, words[1:]):
        if flag == "-f":
            path = value
    program = words[0] if words[0].startswith("/") else find_program("sshd")
    return Listener(program, path)


def title(pid: int) -> str:
    """What a process shows as its arguments; sshd writes "sshd: /usr/sbin/sshd -D -f FILE [listener] ..." there."""
    with open("/proc/%d/cmdline" % pid, "rb") as file:
        text = os.fsdecode(file.read()).replace("\0", " ").strip()
    return text.replace("sshd: ", "", 1).partition(" [listener]")[0]


def parent(pid: int) -> int:
    """The parent of a process. Raises `OSError` when it is gone or hidden."""
    with open("/proc/%d/stat" % pid) as file:
        return int(file.read().rpartition(")")[2].split()[1])


def settings(server: Optional[Listener]) -> Settings:
    """The settings of that sshd (without one: of the usual file)."""
    program, path = server or Listener(find_program("sshd"), _DEFAULT_FILE)
    if program is not None and os.geteuid() == 0:
        said = _ask(program, path)
        if said:
            return Settings(dict(DEFAULTS, **said), "sshd -T -f " + path)
    read: Dict[str, str] = {}
    if parse(path, read):
        return Settings(dict(DEFAULTS, **read), path)
    return Settings({}, "")


def _ask(program: str, path: str) -> Dict[str, str]:
    try:
        done = subprocess.run(
            [program, "-T", "-f", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: Dict[str, str] = {}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(" ")
        if key in DEFAULTS:
            found[key] = value.strip()
    return found


def parse(path: str, found: Dict[str, str], depth: int = 0) -> bool:
    """Read the global part of an sshd_config into ``found``, `Include` followed; the first value of a key is the one.

    False when the file itself cannot be read. `Match` blocks are left out: they depend on who connects.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    for line in lines:
        words = line.split("#")[0].replace("=", " ", 1).split()
        if len(words) < 2:
            continue
        key, value = words[0].lower(), words[1].strip('"')
        if key == "match":
            break
        if key == "include" and depth < 8:
            for pattern in words[1:]:
                for name in sorted(glob.glob(os.path.join("/etc/ssh", pattern.strip('"')))):
                    parse(name, found, depth + 1)
        elif key in DEFAULTS:
            found.setdefault(key, value)
    return True
