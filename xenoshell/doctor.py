"""`xenoshell doctor`: whether the user's own machine has what xenoshell needs, line by line, with remedies.

Probes look (`look`), lines judge (pure functions of what was seen), `examine` puts them together.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xenoshell.paths import Paths
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import CheckLine

GIB = 1 << 30
#: A template, its packs and a build's scratch space.
DISK_WANTED = 5 * GIB
#: Each host takes a handful of descriptors; a few hundred hosts need this many.
FILES_WANTED = 1024

#: What building and booting images here takes: program, what for, the package that has it on Debian and Ubuntu.
PROGRAMS: tuple[tuple[str, str, str], ...] = (
    ("qemu-img", "converting disk images", "qemu-utils"),
    ("mke2fs", "making file systems", "e2fsprogs"),
    ("mmdebstrap", "building Debian templates", "mmdebstrap"),
    ("apt-get", "fetching packages for templates", "apt"),
)


@dataclass(frozen=True)
class Seen:
    """What the probes found out about this machine."""

    python: tuple[int, int, int]
    system: str
    config: str  # "" or what is wrong with the ssh configuration
    config_files: tuple[str, ...]
    agent_keys: int | None  # None: no agent
    agent_error: str
    keys: tuple[str, ...]  # private keys under ~/.ssh
    known_hosts: tuple[str, ...]  # files that exist
    sshd: str
    emulator: str
    emulator_version: str
    kvm: str  # absent | denied | opens
    programs: Mapping[str, str]  # program -> path, "" if absent
    zstd: bool
    state_dir: str
    state_free: int | None  # bytes; None: cannot be written
    files_limit: int  # -1: none
    terminal: Terminal


@dataclass(frozen=True)
class Terminal:
    """What is known of the terminal without asking it."""

    present: bool
    columns: int
    rows: int
    term: str
    truecolor: bool
    no_color: bool
    utf8: bool
    multiplexer: str  # tmux | screen | ""


def examine(paths: Paths) -> tuple[CheckLine, ...]:
    """Look at this machine and judge it. Takes a second at most; touches no network."""
    return judge(look(paths))


def judge(seen: Seen) -> tuple[CheckLine, ...]:
    """The lines for what was seen."""
    return (
        python_line(seen.python),
        *ssh_lines(seen),
        *build_lines(seen),
        disk_line(seen.state_dir, seen.state_free),
        files_line(seen.files_limit),
        *terminal_lines(seen.terminal),
    )


# ---------------------------------------------------------------- lines


def python_line(version: Sequence[int]) -> CheckLine:
    """xenoshell needs 3.11."""
    found = ".".join(map(str, version))
    if tuple(version) < (3, 11):
        return CheckLine("python", "failed", found, "install Python 3.11 or newer")
    return CheckLine("python", "fine", found)


def ssh_lines(seen: Seen) -> tuple[CheckLine, ...]:
    """Configuration, keys, agent, known_hosts, and sshd for the lab."""
    if seen.config:
        config = CheckLine("ssh configuration", "failed", seen.config, "correct that file")
    else:
        config = CheckLine("ssh configuration", "fine", ", ".join(seen.config_files) or "none; not needed")
    if seen.agent_keys:
        agent = CheckLine("ssh agent", "fine", f"{seen.agent_keys} key{'s' if seen.agent_keys != 1 else ''}")
    elif seen.agent_keys == 0:
        agent = CheckLine("ssh agent", "limited", "running, without keys", "load your key with ssh-add")
    else:
        level = "fine" if seen.keys else "limited"
        remedy = (
            ""
            if seen.keys
            else "start one (eval $(ssh-agent)) if your key has a passphrase: xenoshell never asks for it"
        )
        agent = CheckLine(
            "ssh agent", level, seen.agent_error or "none; keys without a passphrase are used directly", remedy
        )
    if seen.keys or seen.agent_keys:
        keys = CheckLine("ssh keys", "fine", ", ".join(seen.keys) or "in the agent")
    else:
        keys = CheckLine(
            "ssh keys",
            "limited",
            "none in ~/.ssh and no agent",
            "make one with ssh-keygen -t ed25519 (the lab needs none)",
        )
    known = CheckLine(
        "known hosts", "fine", ", ".join(seen.known_hosts) or "none yet; `xenoshell hosts trust NAME` pins a key"
    )
    if seen.sshd:
        lab = CheckLine("sshd for the lab", "fine", seen.sshd)
    else:
        lab = CheckLine(
            "sshd for the lab", "limited", "not installed; the lab uses a server of its own", "install openssh-server"
        )
    return config, agent, keys, known, lab


def build_lines(seen: Seen) -> tuple[CheckLine, ...]:
    """What building and trying images here takes."""
    lines = [emulator_line(seen.emulator, seen.emulator_version), kvm_line(seen.kvm)]
    for program, purpose, package in PROGRAMS:
        path = seen.programs.get(program, "")
        if path:
            lines.append(CheckLine(program, "fine", path))
        else:
            lines.append(CheckLine(program, "limited", f"not installed: no {purpose} here", f"install {package}"))
    if seen.zstd:
        lines.append(CheckLine("zstd", "fine", "in this Python"))
    else:
        lines.append(
            CheckLine(
                "zstd", "failed", "the zstandard module is missing", "install xenoshell again with its dependencies"
            )
        )
    return tuple(lines)


def emulator_line(path: str, version: str) -> CheckLine:
    """QEMU, for the lab and for editing images."""
    if not path:
        return CheckLine(
            "qemu",
            "limited",
            "not installed: no lab and no image editing here",
            "install qemu-system-x86 and qemu-utils",
        )
    if not version:
        return CheckLine("qemu", "limited", f"{path} does not tell its version", "install QEMU again")
    return CheckLine("qemu", "fine", version)


def kvm_line(kvm: str) -> CheckLine:
    """Whether guests on this machine may be fast. That /dev/kvm opens proves nothing: the lab proves it by a boot."""
    if kvm == "opens":
        return CheckLine("kvm", "fine", "/dev/kvm opens; a lab proves it with a boot before it is used")
    if kvm == "denied":
        return CheckLine(
            "kvm", "limited", "/dev/kvm is not yours to open: guests here are emulated", "add yourself to the group kvm"
        )
    return CheckLine("kvm", "limited", "no /dev/kvm: guests here are emulated, some ten times slower", "")


def disk_line(state_dir: str, free: int | None) -> CheckLine:
    """Room for images."""
    if free is None:
        return CheckLine("disk", "failed", f"{state_dir} cannot be written", "choose another with XENOSHELL_STATE_DIR")
    found = f"{free / GIB:.1f} GiB free in {state_dir}"
    if free < DISK_WANTED:
        level = "failed" if free < DISK_WANTED // 10 else "limited"
        return CheckLine("disk", level, found, "free some space, or choose another place with XENOSHELL_STATE_DIR")
    return CheckLine("disk", "fine", found)


def files_line(limit: int) -> CheckLine:
    """Open files, for many hosts at once."""
    if limit != -1 and limit < FILES_WANTED:
        return CheckLine(
            "open files", "limited", f"{limit} at most", f"raise it for many hosts: ulimit -n {FILES_WANTED * 4}"
        )
    return CheckLine("open files", "fine", "no limit" if limit == -1 else f"{limit} at most")


def terminal_lines(terminal: Terminal) -> tuple[CheckLine, ...]:
    """Size, colour, characters, clipboard."""
    if not terminal.present:
        return (CheckLine("terminal", "fine", "none: output is plain"),)
    size = f"{terminal.columns}x{terminal.rows}"
    if terminal.columns < 80 or terminal.rows < 24:
        lines = [CheckLine("terminal", "limited", size, "the app needs 80x24; enlarge the window")]
    else:
        lines = [CheckLine("terminal", "fine", f"{size}, {terminal.term or 'TERM not set'}")]
    if terminal.no_color:
        lines.append(CheckLine("colour", "fine", "off (NO_COLOR)"))
    elif terminal.truecolor:
        lines.append(CheckLine("colour", "fine", "24 bit"))
    elif "256" in terminal.term:
        lines.append(CheckLine("colour", "fine", "256 colours"))
    elif terminal.term in ("", "dumb"):
        lines.append(CheckLine("colour", "limited", f"TERM={terminal.term or ''}", "set TERM, such as xterm-256color"))
    else:
        lines.append(CheckLine("colour", "fine", f"16 colours, as far as TERM={terminal.term} tells"))
    if terminal.utf8:
        lines.append(CheckLine("characters", "fine", "UTF-8"))
    else:
        lines.append(CheckLine("characters", "limited", "the locale is not UTF-8", "set LANG=C.UTF-8"))
    inside = f" inside {terminal.multiplexer}" if terminal.multiplexer else ""
    lines.append(
        CheckLine("clipboard", "fine", f"OSC 52{inside}: not known before it is tried; a file is the last resort")
    )
    return tuple(lines)


# ---------------------------------------------------------------- probes


def look(paths: Paths, which: Callable[[str], str | None] | None = None) -> Seen:
    """Look at this machine. ``which`` finds programs (default: in PATH and the system's sbin directories)."""
    which = which or _which
    config, files = _ssh_config(paths)
    agent_keys, agent_error = _agent(which)
    emulator = which(f"qemu-system-{platform.machine() or 'x86_64'}") or which("qemu-system-x86_64") or ""
    home = Path("~/.ssh").expanduser()
    known = (home / "known_hosts", paths.known_hosts, Path("/etc/ssh/ssh_known_hosts"))
    return Seen(
        python=sys.version_info[:3],
        system=platform.system(),
        config=config,
        config_files=files,
        agent_keys=agent_keys,
        agent_error=agent_error,
        keys=_private_keys(home),
        known_hosts=tuple(str(p) for p in known if p.is_file()),
        sshd=which("sshd") or "",
        emulator=emulator,
        emulator_version=_version(emulator),
        kvm=_kvm(Path("/dev/kvm")),
        programs={program: which(program) or "" for program, _, _ in PROGRAMS},
        zstd=_has_zstd(),
        state_dir=str(paths.state),
        state_free=_free(paths.state),
        files_limit=_files_limit(),
        terminal=look_at_terminal(os.environ),
    )


def look_at_terminal(environment: Mapping[str, str]) -> Terminal:
    """The terminal of stdout, and what the environment says of it."""
    present = sys.stdout.isatty()
    size = shutil.get_terminal_size()
    locale = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG") or ""
    multiplexer = "tmux" if "TMUX" in environment else "screen" if "STY" in environment else ""
    return Terminal(
        present=present,
        columns=size.columns,
        rows=size.lines,
        term=environment.get("TERM", ""),
        truecolor=environment.get("COLORTERM", "") in ("truecolor", "24bit"),
        no_color=bool(environment.get("NO_COLOR")),
        utf8="utf-8" in locale.lower() or "utf8" in locale.lower(),
        multiplexer=multiplexer,
    )


def _which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def _ssh_config(paths: Paths) -> tuple[str, tuple[str, ...]]:
    """What is wrong with the ssh configuration ("" if nothing), and the files it is read from."""
    from xenoshell.fleet.inventory import Host
    from xenoshell.fleet.sshconfig import files_for, resolve

    host = Host(name="localhost", ssh="localhost")
    files = files_for(host, paths.known_hosts)
    try:
        resolve(host.target, files)
    except Failure as failure:
        return failure.message, tuple(str(p) for p in files.config)
    return "", tuple(str(p) for p in files.config)


def _agent(which: Callable[[str], str | None]) -> tuple[int | None, str]:
    if not os.environ.get("SSH_AUTH_SOCK"):
        return None, ""
    program = which("ssh-add")
    if not program:
        return None, "ssh-add is not installed, so the agent cannot be asked"
    try:
        done = subprocess.run(
            [program, "-l"], capture_output=True, text=True, timeout=3, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, "the agent at SSH_AUTH_SOCK does not answer"
    if done.returncode == 0:
        return len(done.stdout.splitlines()), ""
    return (0, "") if done.returncode == 1 else (None, "the agent at SSH_AUTH_SOCK cannot be reached")


def _private_keys(directory: Path) -> tuple[str, ...]:
    """Private keys there, told by their public halves."""
    try:
        return tuple(sorted(str(p.with_suffix("")) for p in directory.glob("*.pub") if p.with_suffix("").is_file()))
    except OSError:
        return ()


def _version(emulator: str) -> str:
    if not emulator:
        return ""
    try:
        done = subprocess.run([emulator, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else ""


def _kvm(device: Path) -> str:
    if not device.exists():
        return "absent"
    return "opens" if os.access(device, os.R_OK | os.W_OK) else "denied"


def _has_zstd() -> bool:
    from importlib.util import find_spec

    return find_spec("zstandard") is not None


def _free(directory: Path) -> int | None:
    """Bytes free where ``directory`` is or will be."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return None
    return shutil.disk_usage(existing).free


def _files_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return -1 if soft == resource.RLIM_INFINITY else soft
