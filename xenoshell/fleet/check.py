"""`hosts check`: each step of reaching a host, tried by itself, then what the host says of itself."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import asyncssh

from xenoshell.fleet import facts
from xenoshell.fleet.dial import words
from xenoshell.fleet.link import HostLink, connect
from xenoshell.fleet.sshconfig import Route, files_for, resolve
from xenoshell.fleet.trust import ScannedKey, scan
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import CheckLine

if TYPE_CHECKING:
    from xenoshell.fleet.inventory import Host
    from xenoshell.paths import Paths

#: Sessions that are tried at once; sshd's default MaxSessions is 10.
SESSIONS_TRIED = 10


async def check(
    host: Host,
    paths: Paths,
    *,
    kernel: str | None = None,
    deadline_s: float = 20.0,
    on_line: Callable[[CheckLine], None] | None = None,
) -> tuple[CheckLine, ...]:
    """Every line of the check, in order; what depends on a failed step is left out. Raises nothing for a bad host.

    ``kernel`` is the digest of a blob held by the host, to prove KVM with. ``deadline_s`` bounds each step by itself.
    ``on_line`` gets each line as soon as it is there.
    """
    lines: list[CheckLine] = []

    def add(line: CheckLine) -> bool:
        lines.append(line)
        if on_line is not None:
            on_line(line)
        return line.level != "failed"

    try:
        route = await asyncio.to_thread(resolve, host.target, files_for(host, paths.known_hosts))
    except Failure as failure:
        add(failed("ssh configuration", failure))
        return tuple(lines)
    add(CheckLine("ssh configuration", "fine", _way(route)))
    if not route.jumps and not route.proxy_command:
        for step in (name_line, tcp_line):
            if not add(await step(route, deadline_s)):
                return tuple(lines)
    try:
        if not add(key_line(host.name, await scan(host, paths, deadline_s=deadline_s))):
            return tuple(lines)
        link = await connect(host, paths, deadline_s=deadline_s)
    except Failure as failure:
        add(failed(_STEPS.get(failure.cause, "helper"), failure))
        return tuple(lines)
    async with link:
        facts.remember(link, paths)
        add(CheckLine("login", "fine", f"as {link.facts.user}, {link.key_type} {link.fingerprint}"))
        try:
            for _ in range(3):
                await link.ping(timeout_s=deadline_s)
            for line in (rtt_line(link.rtt_ms), clock_line(link.clock_skew_s), start_line(link.start_s, link.rtt_ms)):
                add(line)
            add(await _channels_line(link))
            add(await _sessions_line(link, deadline_s))
            for line in await link.check(kernel):
                add(line)
        except Failure as failure:
            add(failed("helper", failure))
    return tuple(lines)


_STEPS = {
    "unreachable": "connection",
    "auth-failed": "login",
    "host-key-unknown": "host key",
    "host-key-changed": "host key",
    "no-python": "python",
}


def failed(name: str, failure: Failure) -> CheckLine:
    """The line for a step that failed."""
    return CheckLine(name, "failed", failure.message, failure.remedy)


def _way(route: Route) -> str:
    through = f" through {', '.join(map(str, route.jumps))}" if route.jumps else ""
    return f"{route.user}@{route.where}{through}" + (" by ProxyCommand" if route.proxy_command else "")


async def name_line(route: Route, deadline_s: float) -> CheckLine:
    """Whether the host's name resolves, and to what."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(deadline_s):
            found = await loop.getaddrinfo(route.hostname, route.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        return CheckLine("name", "failed", f"{route.hostname}: no answer within {deadline_s:g} s", "check your DNS")
    except OSError as error:
        remedy = "check the address in hosts.toml or ~/.ssh/config, and your DNS"
        return CheckLine("name", "failed", f"{route.hostname} does not resolve: {words(error)}", remedy)
    addresses = ", ".join(dict.fromkeys(str(item[4][0]) for item in found))
    return CheckLine("name", "fine", addresses)


async def tcp_line(route: Route, deadline_s: float) -> CheckLine:
    """Whether something accepts connections there, and how soon."""
    began = time.perf_counter()
    remedy = "check that sshd runs there, its port, and the firewalls in between"
    try:
        async with asyncio.timeout(deadline_s):
            _, writer = await asyncio.open_connection(route.hostname, route.port)
    except TimeoutError:
        return CheckLine("connection", "failed", f"{route.where} does not answer within {deadline_s:g} s", remedy)
    except OSError as error:
        return CheckLine("connection", "failed", f"{route.where}: {words(error)}", remedy)
    taken = (time.perf_counter() - began) * 1000
    writer.close()
    return CheckLine("connection", "fine", f"{route.where} accepts in {taken:.1f} ms")


def key_line(name: str, key: ScannedKey) -> CheckLine:
    """What the host's key is to this user."""
    shown = f"{key.type} {key.fingerprint}"
    places = ", ".join(e.place for e in key.entries if not e.marker)
    if key.known == "same":
        places = ", ".join(e.place for e in key.entries if e.fingerprint == key.fingerprint and not e.marker)
        return CheckLine("host key", "fine", f"{shown}, known from {places}")
    if key.known == "certificate":
        return CheckLine("host key", "fine", f"{shown}, certified by an authority you trust")
    if key.known == "unknown":
        remedy = f"compare the fingerprint with the owner's, then pin it with `xenoshell hosts trust {name}`"
        return CheckLine("host key", "failed", f"{shown} is not known", remedy)
    if key.known == "revoked":
        return CheckLine(
            "host key", "failed", f"{shown} is marked @revoked", "do not connect: ask the owner for a new key"
        )
    remedy = f"somebody may be in between: ask the owner; only then `xenoshell hosts trust {name} --replace`"
    return CheckLine("host key", "failed", f"{shown} is not the one known from {places}", remedy)


def rtt_line(rtt_ms: float) -> CheckLine:
    """The round trip through the helper."""
    if rtt_ms > 400:
        remedy = "deployments take longer by some ten round trips; choose a nearer host for what is interactive"
        return CheckLine("round trip", "limited", f"{rtt_ms:.0f} ms", remedy)
    return CheckLine("round trip", "fine", f"{rtt_ms:.1f} ms" if rtt_ms < 10 else f"{rtt_ms:.0f} ms")


def clock_line(skew_s: float) -> CheckLine:
    """How far the host's clock is from this machine's, half a round trip allowed for."""
    found = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
    if abs(skew_s) > 2:
        remedy = "synchronise the clocks (NTP) there and here; certificates and log times are wrong otherwise"
        return CheckLine("clock", "limited", found, remedy)
    return CheckLine("clock", "fine", found if abs(skew_s) >= 0.1 else "the same as this machine's")


def start_line(start_s: float, rtt_ms: float) -> CheckLine:
    """How long the helper takes from its start to its first answer, the round trip taken off."""
    own = max(0.0, start_s - rtt_ms / 1000)
    if own > 3:
        return CheckLine("helper start", "limited", f"{own:.1f} s", "the host is very busy or its disk slow")
    return CheckLine("helper start", "fine", f"{own:.2f} s")


async def _channels_line(link: HostLink) -> CheckLine:
    channel = await link.extra_channel()
    if channel is not None:
        channel.close()
        return CheckLine("channels", "fine", "further channels to the helper are granted")
    remedy = "set `AllowStreamLocalForwarding yes` in the host's sshd_config for faster transfers at a distance"
    return CheckLine("channels", "limited", f"one only: {link.refused or 'the helper offers no socket'}", remedy)


async def _sessions_line(link: HostLink, deadline_s: float) -> CheckLine:
    """How many sessions a connection really gets (MaxSessions), the helper's own included."""
    try:
        async with asyncio.timeout(deadline_s):
            granted = 1 + await link.count_sessions(SESSIONS_TRIED - 1)
    except TimeoutError:
        return CheckLine("sessions", "limited", f"no answer within {deadline_s:g} s", "see the host's sshd log")
    except (asyncssh.Error, OSError) as error:
        return CheckLine("sessions", "limited", str(error), "see MaxSessions in the host's sshd_config")
    if granted >= SESSIONS_TRIED:
        return CheckLine("sessions", "fine", f"{granted} or more at once")
    return CheckLine("sessions", "fine", f"{granted} at once (MaxSessions); xenoshell needs one")
