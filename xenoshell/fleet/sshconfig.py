"""How to reach a host: its ssh target resolved against OpenSSH's client configuration.

OpenSSH's own files are the authority (``~/.ssh/config``, ``/etc/ssh/ssh_config``), read by asyncssh; a host of the
inventory may name other files instead. Nothing here touches the network.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xenoshell.wire.causes import Failure

if TYPE_CHECKING:
    from xenoshell.fleet.inventory import Host, SshTarget

#: What OpenSSH reads when no configuration says otherwise (ssh_config(5)).
USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


@dataclass(frozen=True)
class Files:
    """The files that say how one host is reached and whose key it has; ``identity`` replaces the configured keys."""

    config: tuple[Path, ...]
    known_hosts: tuple[Path, ...] | None  # None: what the configuration says
    pinned: Path  # xenoshell's own known_hosts
    identity: Path | None


@dataclass(frozen=True)
class Route:
    """A target with the configuration applied: where to connect, as whom, through what, and which keys to trust."""

    target: SshTarget
    hostname: str
    port: int
    user: str
    key_name: str  # the name under which known_hosts has the key: HostKeyAlias or the host name
    known_hosts: tuple[Path, ...]  # every file to read, xenoshell's own last
    fixed_key_types: bool  # HostKeyAlgorithms is configured
    jumps: tuple[SshTarget, ...]  # ProxyJump, nearest first
    proxy_command: bool
    identities: tuple[Path, ...]  # configured and present keys; empty: OpenSSH's defaults
    absent_identities: tuple[Path, ...]
    agent_identities: tuple[Path, ...] | None  # public keys that the agent may be asked for; None: all it has
    agent: str  # the agent's socket, "" if there is none
    files: Files

    @property
    def where(self) -> str:
        """``host:port`` for messages."""
        return f"[{self.hostname}]:{self.port}" if ":" in self.hostname else f"{self.hostname}:{self.port}"


def files_for(host: Host, pinned: Path) -> Files:
    """The files that apply to ``host``: its own ``ssh_options`` first. ``pinned`` is xenoshell's known_hosts."""
    options = host.ssh_options
    if options.config is not None:
        config: tuple[Path, ...] = (Path(options.config).expanduser(),)
    else:
        config = tuple(
            p for p in (Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")) if os.access(p, os.R_OK)
        )
    known_hosts = None if options.known_hosts is None else (Path(options.known_hosts).expanduser(),)
    identity = None if options.identity is None else Path(options.identity).expanduser()
    return Files(config, known_hosts, pinned, identity)


def resolve(target: SshTarget, files: Files) -> Route:
    """Apply the configuration ``files`` to ``target``. Reads files (call it in a thread).

    Raises `Failure` (unreachable) when a configuration file cannot be read or parsed, naming file and line.
    """
    import asyncssh

    try:
        options: Any = asyncssh.SSHClientConnectionOptions(
            config=[str(p) for p in files.config],
            host=target.host,
            port=target.port if target.port is not None else (),
            username=target.user if target.user is not None else (),
            client_keys=None,
            known_hosts=None,
        )
    except (OSError, ValueError) as error:
        raise Failure(
            "unreachable", f"the ssh configuration for {target} cannot be used: {error}", "correct that file"
        ) from error
    config = options.config
    identities = [files.identity] if files.identity else [Path(p).expanduser() for p in config.get("IdentityFile", ())]
    only_these = files.identity is not None or config.get("IdentitiesOnly") is True
    agent = config.get("IdentityAgent", os.environ.get("SSH_AUTH_SOCK", "")) or ""
    if agent == "SSH_AUTH_SOCK":
        agent = os.environ.get("SSH_AUTH_SOCK", "")
    return Route(
        target=target,
        hostname=options.host,
        port=options.port,
        user=options.username,
        key_name=options.host_key_alias or options.host,
        known_hosts=_known_hosts(config, files),
        fixed_key_types=config.get("HostKeyAlgorithms") is not None,
        jumps=_jumps(options.tunnel),
        proxy_command=options.proxy_command is not None,
        identities=tuple(p for p in identities if p.is_file()),
        absent_identities=tuple(p for p in identities if not p.is_file()),
        agent_identities=_public_halves(identities) if only_these else None,
        agent=str(Path(agent).expanduser()) if agent else "",
        files=files,
    )


def hostname(host: Host, pinned: Path) -> str:
    """The address that a host's forwarded ports are reached at when its inventory entry names none: its HostName."""
    return resolve(host.target, files_for(host, pinned)).hostname


def _public_halves(identities: list[Path]) -> tuple[Path, ...]:
    """The ``.pub`` files beside private keys, by which an agent is asked for a key (ssh_config(5), IdentitiesOnly)."""
    halves = (p if p.suffix == ".pub" else p.with_name(p.name + ".pub") for p in identities)
    return tuple(p for p in halves if p.is_file())


def _known_hosts(config: Any, files: Files) -> tuple[Path, ...]:
    if files.known_hosts is not None:
        return (*files.known_hosts, files.pinned)
    # "none" gives an empty list: no file of the user's, which must never come to mean "no checking".
    names = [
        *config.get("UserKnownHostsFile", USER_KNOWN_HOSTS),
        *config.get("GlobalKnownHostsFile", GLOBAL_KNOWN_HOSTS),
    ]
    return (*(_expand(n) for n in names), files.pinned)


def _expand(name: str) -> Path:
    """Tilde and the tokens of ssh_config(5) that make sense in a file name of known hosts, which asyncssh ignores."""
    home = str(Path("~").expanduser())
    tokens = {"%%": "%", "%d": home, "%u": os.environ.get("USER", "")}
    return Path(re.sub(r"%[%du]", lambda m: tokens[m.group()], name)).expanduser()


def _jumps(tunnel: object) -> tuple[SshTarget, ...]:
    if not isinstance(tunnel, str):
        return ()
    from xenoshell.fleet.inventory import parse_target

    hops = [hop.strip().removeprefix("ssh://") for hop in tunnel.split(",")]
    try:
        return tuple(parse_target(hop) for hop in hops if hop)
    except ValueError as error:
        raise Failure(
            "unreachable", f"ProxyJump {tunnel}: {error}", "correct ProxyJump in the ssh configuration"
        ) from error
