"""What was last known of each host, on disk, so that a quote works without the network."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from xenoshell.wire.codec import CodecError, decode, dumps, loads
from xenoshell.wire.values import HostFacts

if TYPE_CHECKING:
    from xenoshell.fleet.inventory import Host
    from xenoshell.fleet.link import HostLink
    from xenoshell.fleet.where import HostView
    from xenoshell.paths import Paths


@dataclass(frozen=True)
class KnownFacts:
    """A host's facts, the round trip (milliseconds) and key fingerprint of the connection that gave them, and when
    (Unix seconds of this machine)."""

    facts: HostFacts
    rtt_ms: float
    fingerprint: str
    time: float


def remember(link: HostLink, paths: Paths) -> KnownFacts:
    """Save what ``link`` knows of its host, durably and atomically."""
    known = KnownFacts(link.facts, link.rtt_ms, link.fingerprint, time.time())
    _write(_path(paths, link.host.name), dumps(known))
    return known


def recall(name: str, paths: Paths) -> KnownFacts | None:
    """What was saved of the host called ``name``; None if nothing was, or nothing that can be used."""
    try:
        return decode(KnownFacts, loads(_path(paths, name).read_bytes()))
    except (OSError, CodecError):
        return None


def forget(name: str, paths: Paths) -> None:
    """Remove what was saved (the host left the inventory)."""
    _path(paths, name).unlink(missing_ok=True)


def view(host: Host, known: KnownFacts | None, price_per_hour: Decimal | None = None) -> HostView:
    """What `where` looks at: the declarations of ``host`` and what is known of it."""
    if known is None:
        return host.view(price_per_hour=price_per_hour)
    return host.view(facts=known.facts, rtt_ms=known.rtt_ms, price_per_hour=price_per_hour)


def _path(paths: Paths, name: str) -> Path:
    return paths.state / "facts" / f"{name}.json"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
