"""Looking at a host's key and pinning it: what `xenoshell hosts trust` does. Nothing is ever pinned silently."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncssh

from xenoshell.fleet import knownhosts
from xenoshell.fleet.dial import Progress, approach, close, dial, fetch_key, words
from xenoshell.fleet.knownhosts import Entry, HostKey, KnownHosts
from xenoshell.fleet.sshconfig import Files, Route, files_for, resolve
from xenoshell.wire.causes import Failure

if TYPE_CHECKING:
    from xenoshell.fleet.inventory import Host
    from xenoshell.paths import Paths


@dataclass(frozen=True)
class ScannedKey:
    """The key that a host shows now, and what it is to the known_hosts files in force.

    ``known`` is "unknown", "same", "changed", "revoked", or "certificate" (signed by an authority trusted for it:
    nothing needs to be pinned).
    """

    type: str
    fingerprint: str
    line: str  # type and base64, as in known_hosts
    known: str
    name: str  # the name that known_hosts has or would have it under
    port: int
    entries: tuple[Entry, ...]  # the known_hosts lines about this host


async def scan(host: Host, paths: Paths, *, deadline_s: float = 20.0) -> ScannedKey:
    """Fetch the host's key, through its jump hosts (whose keys are checked), without logging in to it.

    Raises `Failure` (unreachable, timeout, protocol; for a jump host also auth-failed and host-key-...).
    """
    progress = Progress()
    try:
        async with asyncio.timeout(deadline_s):
            return await _scan(host, files_for(host, paths.known_hosts), progress)
    except TimeoutError:
        cause = "timeout" if progress.connected else "unreachable"
        raise Failure(cause, f"{host.name}: no answer within {deadline_s:g} s while {progress.step}") from None


def pin(host: Host, key: ScannedKey, paths: Paths, *, replace: bool = False) -> bool:
    """Trust ``key`` for ``host`` from now on: written to xenoshell's own known_hosts, atomically and never twice.

    Returns whether anything was written (a key that some known_hosts file has is not written again). With ``replace``
    another key pinned there for this host is removed. Raises `Failure` (host-key-changed) for a changed key without
    ``replace``, for one that is marked @revoked, and when the other key stands in a file that is not xenoshell's: that
    line must be removed by whoever put it there.
    """
    route = resolve(host.target, files_for(host, paths.known_hosts))
    entries = KnownHosts(route.known_hosts).entries(key.name, key.port)
    plain = HostKey(key.type, key.fingerprint, key.line)
    state = knownhosts.known_as(plain, entries)
    foreign = [e for e in entries if not e.marker and e.file != paths.known_hosts and e.fingerprint != key.fingerprint]
    if state == "revoked" or (state == "changed" and not replace):
        raise knownhosts.refusal(host.name, route.where, plain, entries, "")
    if state == "changed" and foreign:
        places = ", ".join(e.place for e in foreign)
        raise Failure(
            "host-key-changed",
            f"{host.name} ({route.where}): another key stands in {places}, which xenoshell does not edit",
            f"once the owner has confirmed {key.fingerprint}, remove {places} (ssh-keygen -R), then trust again",
        )
    if state == "same" and not replace:
        return False
    return knownhosts.pin(paths.known_hosts, key.name, key.port, plain, replace=replace)


async def _scan(host: Host, files: Files, progress: Progress) -> ScannedKey:
    jumps: list[asyncssh.SSHClientConnection] = []
    try:
        route, tunnel = await approach(host.name, host.target, files, progress, jumps=jumps)
        entries = (await asyncio.to_thread(KnownHosts, route.known_hosts)).entries(route.key_name, route.port)
        progress.step = f"fetching the host key of {route.where}"
        key = await _fetch(host.name, route, tunnel, entries)
    finally:
        for jump in reversed(jumps):
            await close(jump)
    known = knownhosts.known_as(key, entries)
    if known in ("unknown", "changed") and any(e.marker == "cert-authority" for e in entries):
        known = await _with_certificate(host, files, known)
    return ScannedKey(key.key_type, key.fingerprint, key.line, known, route.key_name, route.port, entries)


async def _fetch(
    name: str, route: Route, tunnel: asyncssh.SSHClientConnection | None, entries: tuple[Entry, ...]
) -> HostKey:
    """The host's key; of a type that is known of it if it has one, so that like is compared with like."""
    types = [t for e in entries if not e.marker for t in _signatures(e.key_type)]
    try:
        if types:
            with contextlib.suppress(asyncssh.KeyExchangeFailed):
                found = await fetch_key(route, tunnel, types)
                if found is not None:
                    return knownhosts.host_key(found)
        found = await fetch_key(route, tunnel)
    except (OSError, asyncssh.Error) as error:
        reason = words(error) if isinstance(error, OSError) else str(error)
        raise Failure("unreachable", f"{name} ({route.where}) shows no host key: {reason}") from error
    if found is None:
        raise Failure("protocol", f"{name} ({route.where}) shows no host key")
    return knownhosts.host_key(found)


async def _with_certificate(host: Host, files: Files, otherwise: str) -> str:
    """ "certificate" if a handshake is accepted with the known_hosts as they are: then its certificate was good."""
    try:
        dialled = await dial(host.name, host.target, files, Progress(), login=False)
    except Failure as failure:
        return "certificate" if failure.cause == "auth-failed" else otherwise
    await dialled.close()
    return "certificate"


def _signatures(key_type: str) -> tuple[str, ...]:
    """The signature algorithms of a key type: RSA keys sign with SHA-2 now."""
    return ("rsa-sha2-512", "rsa-sha2-256") if key_type == "ssh-rsa" else (key_type,)
