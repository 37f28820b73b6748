"""The system's ssh, on its way into a guest: the arguments, as a pure function of what is known."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import BadInput
from ..wire.values import Forward

_KEY_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9@.-]{0,79}\Z")
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{16,4096}={0,2}\Z")


@dataclass(frozen=True)
class Way:
    """How the host itself is reached by OpenSSH, for a guest whose port only the host can reach."""

    destination: str  # user@host
    port: int
    config: Path | None
    known_hosts: tuple[Path, ...]
    identity: Path | None


def forward_of(forwards: Sequence[Forward], vm: str) -> Forward:
    """The forward of the guest's port 22. Raises `BadInput` that says what to write if there is none."""
    for forward in forwards:
        if forward.guest == 22 and forward.proto == "tcp" and forward.host:
            return forward
    raise BadInput(
        f"{vm}: its port 22 is not forwarded",
        "add { guest = 22 } to [vm.network] forward and deploy with --replace; `xenoshell console` works without",
    )


def known_hosts_lines(alias: str, host_keys: Sequence[str]) -> str:
    """known_hosts lines for the keys that a guest printed on its console; what is no key is left out."""
    lines = []
    for text in host_keys:
        parts = text.split()
        if len(parts) >= 2 and _KEY_TYPE.match(parts[0]) and _KEY.match(parts[1]):
            lines.append(f"{alias} {parts[0]} {parts[1]}\n")
    return "".join(lines)


def note_keys(file: Path, alias: str, lines: str) -> None:
    """Put the lines of one guest into a known_hosts file, in place of those it had; other guests' lines stay."""
    from ..toml_write import locked, write_atomically

    with locked(file):
        before = file.read_text("utf-8", "replace").splitlines() if file.exists() else []
        others = [f"{line}\n" for line in before if line.split(None, 1)[:1] != [alias]]
        write_atomically(file, "".join(others) + lines)


def arguments(
    *,
    alias: str,
    user: str,
    address: str,
    port: int,
    known_hosts: Path,
    strict: bool,
    way: Way | None,
    rest: Sequence[str],
) -> list[str]:
    """The argument list of ``ssh``. ``way``: go through the host (``address`` and ``port`` are then seen from there).

    ``strict``: the guest's keys are in ``known_hosts``, so nothing else is accepted; otherwise ssh asks. ``rest`` goes
    behind the destination, and options in it before it.
    """
    argv = ["ssh", "-o", f"HostKeyAlias={alias}", "-o", f"UserKnownHostsFile={quoted(known_hosts)}"]
    argv += ["-o", "GlobalKnownHostsFile=/dev/null", "-o", "CheckHostIP=no", "-o", "UpdateHostKeys=no"]
    argv += ["-o", f"StrictHostKeyChecking={'yes' if strict else 'ask'}"]
    if way is not None:
        argv += ["-o", f"ProxyCommand={_proxy(way, address, port)}"]
    options, command = split_rest(rest)
    return [*argv, "-p", str(port), "-l", user, *options, "--", address, *command]


#: Options of ssh that take a value (ssh(1)), so that what follows them is no command.
_WITH_VALUE: Final = frozenset("BbcDEeFIiJLlmOoPpQRSWw")


def split_rest(rest: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a person put after ``--``: options for ssh, then the command to run in the guest."""
    at = 0
    while at < len(rest) and rest[at].startswith("-") and len(rest[at]) > 1:
        if rest[at] == "--":
            return list(rest[:at]), list(rest[at + 1 :])
        takes = rest[at][-1] in _WITH_VALUE and not any(c in _WITH_VALUE for c in rest[at][1:-1])
        at += 2 if takes else 1
    return list(rest[:at]), list(rest[at:])


def _proxy(way: Way, address: str, port: int) -> str:
    argv = ["ssh", "-W", f"[{address}]:{port}" if ":" in address else f"{address}:{port}", "-p", str(way.port)]
    argv += ["-o", "StrictHostKeyChecking=yes"]
    if way.config is not None:
        argv += ["-F", str(way.config)]
    if way.known_hosts:
        argv += ["-o", f"UserKnownHostsFile={' '.join(map(quoted, way.known_hosts))}"]
    if way.identity is not None:
        argv += ["-i", str(way.identity), "-o", "IdentitiesOnly=yes"]
    # ssh replaces % sequences in a ProxyCommand before the shell sees it.
    return shlex.join([*argv, "--", way.destination]).replace("%", "%%")


def quoted(path: Path) -> str:
    """A path as a value of an ssh option that takes several."""
    text = str(path)
    return f'"{text}"' if any(c.isspace() for c in text) else text
