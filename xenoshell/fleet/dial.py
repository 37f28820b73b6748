"""One authenticated SSH connection to one host, through its jump hosts, its key checked. Failures say what and why."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from xenoshell.fleet.inventory import SshTarget
from xenoshell.fleet.knownhosts import REVOKED, Entry, HostKey, KnownHosts, host_key, refusal
from xenoshell.fleet.sshconfig import Files, Route, resolve
from xenoshell.wire.causes import Failure

#: After 15 s without a byte from the host a probe is sent, three at most: a dead peer is noticed within a minute.
#: (asyncssh sends none by default. A slow upload does not look dead: sshd answers it with window adjustments.)
KEEPALIVE_S = 15
KEEPALIVE_COUNT = 3
#: By measurement (one channel, this library, a CPU with AES instructions), MiB sent in a second of CPU time here:
#: aes128-gcm 590, aes256-gcm 530, aes128-ctr 480, chacha20-poly1305 300.
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
#: Host key types that are accepted for a first look; what is trusted is decided by the key itself.
KEY_TYPES = "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256"
#: ProxyJump hosts may have a ProxyJump of their own; a configuration that goes in circles ends here.
MAX_JUMPS = 8


@dataclass
class Progress:
    """What is being done now, in words; the one who sets a deadline names it when the deadline passes."""

    step: str = "starting"
    connected: bool = False  # whether the host itself (not a jump host) has accepted a TCP connection


@dataclass
class Dialled:
    """An authenticated connection and what it took to get there."""

    conn: asyncssh.SSHClientConnection
    route: Route
    key: HostKey
    jumps: list[asyncssh.SSHClientConnection] = field(default_factory=list)

    async def close(self) -> None:
        """Close the connection and its jump hosts' in an orderly way, within two seconds each, else by force."""
        for conn in (self.conn, *reversed(self.jumps)):
            await close(conn)


class Watcher(asyncssh.SSHClient):
    """Follows one connection's handshake and keeps the key that was refused. Trusts nothing by itself."""

    def __init__(
        self, name: str, progress: Progress, final: bool, on_lost: Callable[[Exception | None], None] | None
    ) -> None:
        self._name = name
        self._progress = progress
        self._final = final
        self._on_lost = on_lost
        self.offered: asyncssh.SSHKey | None = None
        self.banner = ""

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """TCP (or the tunnel) is there; the key exchange follows."""
        self._progress.connected = self._final
        self._progress.step = f"exchanging keys with {self._name}"

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever uses the connection."""
        if self._on_lost is not None:
            self._on_lost(exc)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Asked only about a key that no known_hosts line has: remember it for the message, and refuse."""
        self.offered = key
        return False

    def begin_auth(self, username: str) -> None:
        """The host key was accepted."""
        self._progress.step = f"authenticating as {username} at {self._name}"

    def auth_banner_received(self, msg: str, lang: str) -> None:
        """Kept for the message when authentication fails."""
        self.banner = (self.banner + msg)[-2000:]

    def auth_completed(self) -> None:
        """Authenticated."""
        self._progress.step = f"opening a session at {self._name}"


@dataclass(frozen=True)
class _Hop:
    """One connection to be made: to the host itself (``final``) or to a jump host."""

    name: str
    route: Route
    tunnel: asyncssh.SSHClientConnection | None
    progress: Progress
    final: bool = True
    login: bool = True
    on_lost: Callable[[Exception | None], None] | None = None

    @property
    def where(self) -> str:
        return f"{self.name} ({self.route.where})"


async def dial(
    name: str,
    target: SshTarget,
    files: Files,
    progress: Progress,
    *,
    on_lost: Callable[[Exception | None], None] | None = None,
    login: bool = True,
) -> Dialled:
    """Connect and authenticate. The caller sets the deadline; ``progress`` says how far it came.

    With ``login`` false no credential is offered, so that it ends in auth-failed once the host key was accepted.
    Raises `Failure` (unreachable, auth-failed, host-key-unknown, host-key-changed, protocol).
    """
    jumps: list[asyncssh.SSHClientConnection] = []
    try:
        route, tunnel = await approach(name, target, files, progress, jumps=jumps)
        conn, key = await _connect(_Hop(name, route, tunnel, progress, login=login, on_lost=on_lost))
    except BaseException:
        for jump in reversed(jumps):
            jump.abort()
        raise
    return Dialled(conn, route, key, jumps)


async def approach(
    name: str,
    target: SshTarget,
    files: Files,
    progress: Progress,
    *,
    jumps: list[asyncssh.SSHClientConnection],
    depth: int = 0,
) -> tuple[Route, asyncssh.SSHClientConnection | None]:
    """Resolve ``target`` and connect to its jump hosts, adding them to ``jumps`` (the caller closes them)."""
    if depth > MAX_JUMPS:
        raise Failure(
            "unreachable",
            f"{name}: more than {MAX_JUMPS} jump hosts; ProxyJump goes in circles",
            "correct ProxyJump in the ssh configuration",
        )
    progress.step = f"reading the ssh configuration for {target}"
    route = await asyncio.to_thread(resolve, target, files)
    tunnel: asyncssh.SSHClientConnection | None = None
    for hop in route.jumps:
        hop_name = f"jump host {hop}"
        if tunnel is None:  # the first hop may have a ProxyJump of its own
            hop_route, before = await approach(hop_name, hop, files, progress, jumps=jumps, depth=depth + 1)
        else:
            hop_route, before = await asyncio.to_thread(resolve, hop, files), tunnel
        tunnel, _ = await _connect(_Hop(hop_name, hop_route, before, progress, final=False))
        jumps.append(tunnel)
    return route, tunnel


def client_options(route: Route, tunnel: asyncssh.SSHClientConnection | None) -> dict[str, Any]:
    """What asyncssh is told about the way to ``route``: where, and through which tunnel (never one it opens itself)."""
    options: dict[str, Any] = {
        "host": route.target.host,
        "config": [str(p) for p in route.files.config],
        "tunnel": tunnel,
    }
    if route.target.port is not None:
        options["port"] = route.target.port
    if route.target.user is not None:
        options["username"] = route.target.user
    return options


async def _connect(hop: _Hop) -> tuple[asyncssh.SSHClientConnection, HostKey]:
    route, progress = hop.route, hop.progress
    known = await asyncio.to_thread(KnownHosts, route.known_hosts)
    watcher = Watcher(hop.name, progress, hop.final, hop.on_lost)
    options = client_options(route, hop.tunnel)
    options |= {
        "client_factory": lambda: watcher,
        "known_hosts": known.match,
        "client_keys": [str(p) for p in route.identities] if hop.login else None,
        "ignore_encrypted": True,  # batch mode: nothing ever asks for a passphrase
        "public_key_auth": hop.login,
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "gss_kex": False,  # it would replace the host key check
        "agent_forwarding": False,
        "x11_forwarding": False,
        "request_pty": False,
        "compression_algs": ["none"],
        "encryption_algs": list(CIPHERS),
        "keepalive_interval": KEEPALIVE_S,
        "keepalive_count_max": KEEPALIVE_COUNT,
        "connect_timeout": None,  # one deadline for the whole, set by the caller
        "login_timeout": 0,
    }
    if not hop.login:
        options["gss_host"] = None
    if not hop.login or route.agent_identities == ():
        options["agent_path"] = None
    elif route.agent_identities is not None:
        options["agent_identities"] = [str(p) for p in route.agent_identities]
    if not route.fixed_key_types:
        # Known types first (asyncssh's own choice), the others after them: a host that has none of the known ones any
        # more is then seen with the key it has, instead of a handshake that fails for no visible reason.
        options["server_host_key_algs"] = f"+{KEY_TYPES}"
    progress.step = f"connecting to {route.where}"
    try:
        conn = await asyncssh.connect(**options)
    except (OSError, asyncssh.Error, asyncssh.KeyImportError, ValueError) as error:
        raise await _explain(error, hop, watcher, known) from error
    key = conn.get_server_host_key()
    if key is None:  # only a key exchange without host keys (GSS), which is switched off
        conn.abort()
        raise Failure("protocol", f"{hop.where} completed a key exchange without a host key")
    return conn, host_key(key)


async def close(conn: asyncssh.SSHClientConnection) -> None:
    """Close one connection in an orderly way, by force after two seconds."""
    conn.close()
    try:
        async with asyncio.timeout(2):
            await conn.wait_closed()
    except TimeoutError:
        conn.abort()


def words(error: OSError) -> str:
    """What the system says of an error; asyncio puts words of its own in their place."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error) or type(error).__name__
    return os.strerror(error.errno)


async def fetch_key(
    route: Route, tunnel: asyncssh.SSHClientConnection | None, algorithms: list[str] | None = None
) -> asyncssh.SSHKey | None:
    """The plain key that the host at ``route`` shows, unchecked; of the given types only, if any are given."""
    options = client_options(route, tunnel)
    options.pop("username", None)
    if algorithms:
        options["server_host_key_algs"] = algorithms
    return await asyncssh.get_server_host_key(**options)


async def _explain(error: Exception, hop: _Hop, watcher: Watcher, known: KnownHosts) -> Failure:
    """The failure that an exception of asyncssh or the system stands for."""
    route, progress, where = hop.route, hop.progress, hop.where
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        entries = known.entries(route.key_name, route.port)
        offered = None if watcher.offered is None else host_key(watcher.offered)
        if offered is None and ("Host key is revoked" in error.reason or not any(e.marker for e in entries)):
            offered = await _offered(hop)  # it showed a certificate; what can be pinned is the key inside
        return _refusal(hop, offered, entries, error.reason)
    if isinstance(error, asyncssh.PermissionDenied) or (
        isinstance(error, asyncssh.DisconnectError) and "authentication" in error.reason.lower()
    ):
        told = f"{where} refused the user {route.user}: {error.reason.rstrip('.')}"
        return Failure("auth-failed", f"{told}. {_credentials(route)}{_banner(watcher)}")
    if isinstance(error, asyncssh.ChannelOpenError):
        return Failure("unreachable", f"{where}: the jump host could not connect to it: {error.reason}")
    if isinstance(error, asyncssh.DisconnectError):
        cause = "unreachable" if isinstance(error, asyncssh.ConnectionLost) else "protocol"
        reason = (error.reason or "no reason given").rstrip(".")
        return Failure(cause, f"{where} ended the connection while {progress.step}: {reason}{_banner(watcher)}")
    if isinstance(error, socket.gaierror):
        return Failure(
            "unreachable",
            f"{hop.name}: the name {route.hostname} does not resolve: {error.strerror}",
            "check the address in hosts.toml or ~/.ssh/config, and your DNS",
        )
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError) or getattr(error, "filename", None):
        return Failure(
            "auth-failed",
            f"{where}: a key cannot be used: {error}",
            "correct IdentityFile or `identity`, or load the key into your agent",
        )
    if isinstance(error, OSError):
        return Failure("unreachable", f"{where}: {words(error)} while {progress.step}")
    return Failure("unreachable", f"{where}: {error}", "correct the ssh configuration of this host")


def _refusal(hop: _Hop, offered: HostKey | None, entries: tuple[Entry, ...], reason: str) -> Failure:
    failure = refusal(hop.name, hop.route.where, offered, entries, reason)
    if not hop.final and failure.remedy != REVOKED:  # `hosts trust` is for hosts of the inventory
        remedy = f"compare the fingerprint with the owner's, then settle it with `ssh {hop.route.target}`"
        return Failure(failure.cause, failure.message, remedy)
    return failure


async def _offered(hop: _Hop) -> HostKey | None:
    with contextlib.suppress(OSError, asyncssh.Error):
        key = await fetch_key(hop.route, hop.tunnel)
        return None if key is None else host_key(key)
    return None


def _credentials(route: Route) -> str:
    """Which keys there were to offer, so that the reader sees what is missing."""
    keys = ", ".join(str(p) for p in route.identities) or "the default keys of ~/.ssh"
    absent = "".join(f"; {p} does not exist" for p in route.absent_identities)
    agent = f"the agent at {route.agent}" if route.agent else "no agent"
    return f"Offered: {keys} (encrypted ones only if the agent has them), {agent}{absent}"


def _banner(watcher: Watcher) -> str:
    return f". It says: {' '.join(watcher.banner.split())[:300]}" if watcher.banner.strip() else ""
