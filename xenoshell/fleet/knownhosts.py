"""Which host keys are trusted, and where that is written: known_hosts files read, explained and added to.

Whether a key matches is decided by asyncssh's own parser (hashed names, patterns, ``@cert-authority``, ``@revoked``);
this module picks the lines to give it, remembers where they are, and says what is wrong in words.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from xenoshell.wire.causes import Failure

REVOKED = "do not connect: this key was withdrawn as no longer safe. Ask the owner for a new host key"


@dataclass(frozen=True)
class Entry:
    """One line of a known_hosts file that speaks of a host. ``marker`` is "", cert-authority or revoked."""

    file: Path
    line: int
    marker: str
    key_type: str
    fingerprint: str
    text: str

    @property
    def place(self) -> str:
        """``file:line`` for messages."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class HostKey:
    """A host's public key as shown to people and as known_hosts has it. ``line`` is ``type base64`` without a name."""

    key_type: str
    fingerprint: str
    line: str


def host_key(key: asyncssh.SSHKey) -> HostKey:
    """The values that describe ``key``."""
    exported = key.export_public_key("openssh").decode().split()
    return HostKey(exported[0], key.get_fingerprint(), " ".join(exported[:2]))


class KnownHosts:
    """The lines of several known_hosts files.

    Files that are absent or unreadable, and lines that are malformed, count as empty: less is trusted then, never more.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._lines: list[tuple[Path, int, str]] = []
        for file in dict.fromkeys(files):
            try:
                text = file.read_text("utf-8", "replace")
            except OSError:
                continue
            for number, line in enumerate(text.splitlines(), 1):
                line = line.strip()
                if line and not line.startswith("#"):
                    self._lines.append((file, number, line))

    def match(self, host: str, addr: str, port: int | None) -> Any:
        """What asyncssh's ``known_hosts`` callable returns: the trusted, CA and revoked keys of a host."""
        names = _names(host, addr, port) | _names(host, addr, None)
        text = "\n".join(line for _, _, line in self._lines if _may_match(line, names) and _parses(line))
        return asyncssh.import_known_hosts(text).match(host, addr, port)

    def entries(self, host: str, port: int, addr: str = "") -> tuple[Entry, ...]:
        """The lines that speak of exactly this host and port (22 is written without a port)."""
        names = _names(host, addr, None if port == asyncssh.DEFAULT_PORT else port)
        found: list[Entry] = []
        for file, number, line in self._lines:
            if not _may_match(line, names) or not _parses(line):
                continue
            parsed = asyncssh.import_known_hosts(line)
            for name in names:
                matched = parsed.match(name, "", None)
                for marker, keys in zip(("", "cert-authority", "revoked"), matched[:3], strict=True):
                    found += [
                        Entry(file, number, marker, key.get_algorithm(), key.get_fingerprint(), line) for key in keys
                    ]
                if any(matched[:3]):
                    break
        return tuple(found)


def known_as(key: HostKey, entries: Sequence[Entry]) -> str:
    """What a plain key is to the lines about its host: "same", "changed", "revoked" or "unknown"."""
    if any(e.marker == "revoked" and e.fingerprint == key.fingerprint for e in entries):
        return "revoked"
    plain = [e for e in entries if not e.marker]
    if any(e.fingerprint == key.fingerprint for e in plain):
        return "same"
    return "changed" if plain else "unknown"


def refusal(name: str, where: str, key: HostKey | None, entries: Sequence[Entry], reason: str) -> Failure:
    """The failure for a host key that was not accepted.

    ``name`` is the host's name in the inventory, ``where`` its ``host:port``, ``key`` what it showed (None: a
    certificate, or nothing that was decoded), ``reason`` asyncssh's words.
    """
    authorities = [e for e in entries if e.marker == "cert-authority"]
    if key is None:
        if "revoked" in reason:
            revoked = ", ".join(e.place for e in entries if e.marker == "revoked")
            return Failure("host-key-changed", f"{name} ({where}): {reason} ({revoked})", REVOKED)
        trusted = (
            f"; authorities trusted for it: {', '.join(f'{e.fingerprint} ({e.place})' for e in authorities)}"
            if authorities
            else ""
        )
        return Failure(
            "host-key-unknown", f"{name} ({where}) showed a host certificate that is not valid here: {reason}{trusted}"
        )
    state = known_as(key, entries)
    if state == "revoked":
        place = next(e.place for e in entries if e.marker == "revoked" and e.fingerprint == key.fingerprint)
        return Failure(
            "host-key-changed",
            f"{name} ({where}) shows the {key.key_type} key {key.fingerprint}, which {place} marks @revoked",
            REVOKED,
        )
    if state == "changed":
        old = "; ".join(f"{e.key_type} {e.fingerprint} ({e.place})" for e in entries if not e.marker)
        return Failure(
            "host-key-changed",
            f"{name} ({where}) now shows the {key.key_type} key {key.fingerprint}, but known is {old}",
            f"somebody may be in between: ask the owner; only then `xenoshell hosts trust {name} --replace`",
        )
    more = f" ({reason})" if authorities else ""
    return Failure(
        "host-key-unknown",
        f"{name} ({where}) shows the {key.key_type} key {key.fingerprint}, which no known_hosts file has{more}",
        f"compare the fingerprint with the owner's, then pin it with `xenoshell hosts trust {name}`",
    )


def pin(file: Path, host: str, port: int, key: HostKey, *, replace: bool = False) -> bool:
    """Write ``key`` of ``host``:``port`` into ``file`` (created mode 0600), atomically and never twice.

    With ``replace`` other plain keys of that host and port leave the file first. Returns whether the file changed.
    Pins made at the same time wait for each other, so that none is lost. Raises `Failure` (host-key-changed) when the
    file revokes the key, or has another and ``replace`` is not given; `BadInput` when another process keeps the file.
    """
    from xenoshell.toml_write import locked

    with locked(file):
        return _pin(file, host, port, key, replace=replace)


def _pin(file: Path, host: str, port: int, key: HostKey, *, replace: bool) -> bool:
    entries = KnownHosts([file]).entries(host, port)
    state = known_as(key, entries)
    if state == "same" and not replace:
        return False
    if state == "revoked" or (state == "changed" and not replace):
        raise refusal(host, f"{host}:{port}", key, entries, "")
    name = host if port == asyncssh.DEFAULT_PORT else f"[{host}]:{port}"
    old = {e.line for e in entries if not e.marker}
    before = file.read_text("utf-8").splitlines() if file.exists() else []
    lines = [line for number, line in enumerate(before, 1) if number not in old]
    lines.append(f"{name} {key.line}")
    _write(file, "\n".join(lines) + "\n")
    return True


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _names(host: str, addr: str, port: int | None) -> frozenset[str]:
    plain = [n for n in (host, addr) if n]
    return frozenset(plain if port is None else [f"[{n}]:{port}" for n in plain])


def _pattern(line: str) -> str:
    fields = line.split(None, 2)
    return fields[1] if line.startswith("@") and len(fields) > 1 else fields[0]


def _may_match(line: str, names: frozenset[str]) -> bool:
    """Cheaply, whether a line can speak of one of ``names``: most of a long file need not be parsed."""
    pattern = _pattern(line)
    if pattern.startswith("|1|"):
        try:
            salt, expected = (base64.b64decode(part) for part in pattern[3:].split("|"))
        except ValueError:
            return False
        return any(hmac.compare_digest(hmac.new(salt, n.encode(), hashlib.sha1).digest(), expected) for n in names)
    return any(c in pattern for c in "*?!/") or not names.isdisjoint(pattern.split(","))


def _parses(line: str) -> bool:
    try:
        asyncssh.import_known_hosts(line)
    except ValueError:
        return False
    return True
