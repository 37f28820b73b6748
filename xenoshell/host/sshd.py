"""How the sshd that we came in through is configured: what it says itself where it may be asked, else what its file says."""

from __future__ import annotations

import glob
import os
import subprocess
from typing import Dict, List, NamedTuple, Optional

from xenoshell.host import proc
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
    found: Optional[List[str]] = None
    pid = os.getppid() if pid is None else pid
    while pid > 1:
        words = proc.command(pid)
        name = os.path.basename(words[0]) if words else ""
        if name.startswith("sshd"):
            found = words
        try:
            pid = parent(pid)
        except OSError:
            break
    if found is None:
        return None
    # sshd writes "sshd: /usr/sbin/sshd -D -f FILE [listener] 0 of 10-100 startups" over its arguments
    words = " ".join(found).replace("sshd: ", "", 1).partition(" [listener]")[0].split()
    file = _DEFAULT_FILE
    for flag, value in zip(words, words[1:]):
        if flag == "-f":
            file = value
    program = words[0] if words[0].startswith("/") else find_program("sshd")
    return Listener(program, file)


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
