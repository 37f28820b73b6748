"""What happens during a deployment, as immutable values. The engine emits them and knows no reader.

The names and the four common fields (``t``, ``event``, ``host``, ``vm``) are a contract: people script against them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

from ..console.clean import clean_json
from ..wire.causes import Failure
from ..wire.remedies import REMEDIES

Scalar: TypeAlias = "str | int | float | bool | None"
Value: TypeAlias = "Scalar | tuple[Scalar, ...]"

#: name -> the fields it always has besides t, event, host, vm. More may follow in later versions; none is taken away.
NAMES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "session.started": ("session", "session_id", "vms", "hosts"),
        "host.connecting": (),
        "host.connected": ("rtt_ms", "fingerprint"),
        "host.facts": ("cpus", "memory_mib", "disk_free_mib", "accel", "qemu"),
        "host.refused": ("cause", "message", "remedy"),
        "host.lost": ("cause", "message", "remedy"),
        "host.back": (),
        "transfer.planned": ("bytes_image", "bytes_needed", "base"),
        "transfer.progress": ("bytes_done", "bytes_needed", "from"),
        "transfer.done": ("bytes_sent", "seconds"),
        "vm.created": (),
        "vm.booting": (),
        "vm.running": (),
        "vm.ready": ("seconds", "address"),
        "vm.exited": ("cause", "message", "remedy"),
        "vm.failed": ("cause", "message", "remedy"),
        "session.done": ("ready", "failed", "seconds"),
    }
)
#: Events that tell of a failure; each carries cause, message and remedy.
FAILURES: Final = frozenset(name for name, fields in NAMES.items() if "cause" in fields)
_COMMON: Final = frozenset({"t", "event", "host", "vm"})
_EMPTY: Final[Mapping[str, Value]] = MappingProxyType({})


@dataclass(frozen=True)
class Event:
    """One event: ``t`` in seconds since the deployment started; ``host`` and ``vm`` are "" where they do not apply."""

    t: float
    event: str
    host: str = ""
    vm: str = ""
    fields: Mapping[str, Value] = field(default_factory=lambda: _EMPTY)

    def __post_init__(self) -> None:
        if self.event not in NAMES:
            raise ValueError(f"no such event: {self.event!r}")
        if missing := [name for name in NAMES[self.event] if name not in self.fields]:
            raise ValueError(f"{self.event} lacks {', '.join(missing)}")
        if clash := _COMMON & self.fields.keys():
            raise ValueError(f"{self.event}: {', '.join(sorted(clash))} may not be given as fields")
        if not math.isfinite(self.t):
            raise ValueError("t is a finite number of seconds")
        if self.event in FAILURES:
            cause = self.fields["cause"]
            if not isinstance(cause, str) or cause not in REMEDIES:
                raise ValueError(f"{self.event}: {cause!r} is not a cause")
        object.__setattr__(self, "t", round(self.t, 3))
        # A private copy behind a read-only view: an event never changes after it was emitted.
        object.__setattr__(self, "fields", MappingProxyType({k: _frozen(v) for k, v in self.fields.items()}))

    def __hash__(self) -> int:
        return hash((self.t, self.event, self.host, self.vm, tuple(sorted(self.fields))))

    def text(self, name: str, default: str = "") -> str:
        """The field as text; ``default`` where it is missing or nothing."""
        value = self.fields.get(name)
        return default if value is None else str(value)

    def number(self, name: str, default: float = 0.0) -> float:
        """The field as a number; ``default`` where it is missing or not a number."""
        value = self.fields.get(name)
        return float(value) if isinstance(value, (int, float)) else default

    def to_json(self) -> dict[str, object]:
        """The object of a JSON line: the common fields first; ``host`` and ``vm`` only where they apply."""
        head: dict[str, object] = {"t": self.t, "event": self.event}
        if self.host:
            head["host"] = self.host
        if self.vm:
            head["vm"] = self.vm
        return head | {k: list(v) if isinstance(v, tuple) else v for k, v in self.fields.items()}

    def line(self) -> str:
        """One line of JSON, without the newline, safe to look at on a terminal."""
        return clean_json(json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False))


#: Anything that takes events. It must not block; what it does with them is its own affair.
Reader: TypeAlias = Callable[[Event], None]


def _frozen(value: object) -> Value:
    if isinstance(value, (list, tuple)):
        return tuple(_scalar(v) for v in value)
    return _scalar(value)


def _scalar(value: object) -> Scalar:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"an event holds text, numbers and lists of them, not {type(value).__name__}")


def from_json(value: object) -> Event:
    """The event of a JSON object. Raises `ValueError` for anything that is not one."""
    if not isinstance(value, dict):
        raise ValueError(f"an event is an object, not {type(value).__name__}")
    t, name = value.get("t"), value.get("event")
    host, vm = value.get("host", ""), value.get("vm", "")
    if isinstance(t, bool) or not isinstance(t, (int, float)):
        raise ValueError("t is a number of seconds")
    if not isinstance(name, str) or not isinstance(host, str) or not isinstance(vm, str):
        raise ValueError("event, host and vm are text")
    return Event(float(t), name, host, vm, {k: v for k, v in value.items() if k not in _COMMON})


def from_line(line: str) -> Event:
    """The event of one line of events.jsonl. Raises `ValueError`, for a torn line too."""
    try:
        return from_json(json.loads(line))
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"not an event: {error}") from None


# ---------------------------------------------------------------- one constructor for each name


def session_started(t: float, session: str, session_id: str, vms: int, hosts: int) -> Event:
    return Event(
        t, "session.started", fields={"session": session, "session_id": session_id, "vms": vms, "hosts": hosts}
    )


def session_done(t: float, ready: int, failed: int, seconds: float, why: Failure | None = None) -> Event:
    """``why``: what ended it before it came to the hosts, if anything did."""
    told = _why(why) if why else {}
    return Event(t, "session.done", fields={"ready": ready, "failed": failed, "seconds": round(seconds, 3), **told})


def host_connecting(t: float, host: str, attempt: int = 1) -> Event:
    return Event(t, "host.connecting", host, fields={"attempt": attempt})


def host_connected(t: float, host: str, rtt_ms: float, fingerprint: str) -> Event:
    return Event(t, "host.connected", host, fields={"rtt_ms": round(rtt_ms, 1), "fingerprint": fingerprint})


def host_facts(t: float, host: str, *, cpus: int, memory_mib: int, disk_free_mib: int, accel: str, qemu: str) -> Event:
    """``accel``: what guests will run under as far as it is known: kvm, unproven, or tcg."""
    return Event(
        t,
        "host.facts",
        host,
        fields={"cpus": cpus, "memory_mib": memory_mib, "disk_free_mib": disk_free_mib, "accel": accel, "qemu": qemu},
    )


def host_refused(t: float, host: str, why: Failure) -> Event:
    return Event(t, "host.refused", host, fields=_why(why))


def host_lost(t: float, host: str, why: Failure, retry_s: float | None) -> Event:
    """``retry_s``: seconds until the next attempt, or None when none follows."""
    return Event(t, "host.lost", host, fields=_why(why) | {"retry_s": retry_s})


def host_back(t: float, host: str, after_s: float) -> Event:
    return Event(t, "host.back", host, fields={"after_s": round(after_s, 3)})


def transfer_planned(
    t: float, host: str, *, bytes_image: int, bytes_needed: int, base: str | None, blob: str, what: str
) -> Event:
    """``bytes_image``: the blob's own length; ``bytes_needed``: packed bytes to send; ``base``: a held blob."""
    fields: dict[str, Value] = {"bytes_image": bytes_image, "bytes_needed": bytes_needed, "base": base}
    return Event(t, "transfer.planned", host, fields=fields | {"blob": blob, "what": what})


def transfer_progress(t: float, host: str, *, bytes_done: int, bytes_needed: int, source: str, blob: str) -> Event:
    """``source`` (the field ``from``): who sends; "client", or a host once hosts relay."""
    fields: dict[str, Value] = {"bytes_done": bytes_done, "bytes_needed": bytes_needed, "from": source}
    return Event(t, "transfer.progress", host, fields=fields | {"blob": blob})


def transfer_done(t: float, host: str, *, bytes_sent: int, seconds: float, blob: str) -> Event:
    return Event(
        t, "transfer.done", host, fields={"bytes_sent": bytes_sent, "seconds": round(seconds, 3), "blob": blob}
    )


def vm_created(t: float, host: str, vm: str, vm_id: str) -> Event:
    return Event(t, "vm.created", host, vm, {"id": vm_id})


def vm_booting(t: float, host: str, vm: str, accel: str) -> Event:
    return Event(t, "vm.booting", host, vm, {"accel": accel})


def vm_running(t: float, host: str, vm: str, accel: str) -> Event:
    return Event(t, "vm.running", host, vm, {"accel": accel})


def vm_ready(t: float, host: str, vm: str, *, seconds: float, address: str, accel: str) -> Event:
    """``seconds``: from the start of the VM to ready; ``address``: where its first forwarded port answers, or ""."""
    return Event(t, "vm.ready", host, vm, {"seconds": round(seconds, 3), "address": address, "accel": accel})


def vm_exited(t: float, host: str, vm: str, why: Failure) -> Event:
    return Event(t, "vm.exited", host, vm, _why(why))


def vm_failed(t: float, host: str, vm: str, why: Failure) -> Event:
    return Event(t, "vm.failed", host, vm, _why(why))


def _why(why: Failure) -> dict[str, Value]:
    return {"cause": why.cause, "message": why.message, "remedy": why.remedy}
