"""A deployment under way, as a reader of its events: what each host and VM is at. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..console.clean import clean
from ..deploy.events import Event

#: Seconds over which the rate of a transfer is measured.
_RATE_OVER_S = 3.0


@dataclass
class HostState:
    """One host: its stage, its transfers (blob -> done and needed bytes) and what went wrong. ``away``: since contact
    was lost nobody has heard of it; ``retry_at`` is when it is tried again."""

    name: str
    stage: str = "connecting"
    role: str = "dim"
    note: str = ""
    away: bool = False
    retry_at: float | None = None
    blobs: dict[str, tuple[int, int]] = field(default_factory=dict)
    began: float | None = None
    seconds: float = 0.0
    _samples: list[tuple[float, int]] = field(default_factory=list)

    @property
    def done(self) -> int:
        return sum(done for done, _ in self.blobs.values())

    @property
    def needed(self) -> int:
        return sum(needed for _, needed in self.blobs.values())

    @property
    def rate(self) -> float:
        """Bytes a second, over the last seconds; 0 when nothing moves."""
        if len(self._samples) < 2:
            return 0.0
        (t0, b0), (t1, b1) = self._samples[0], self._samples[-1]
        return (b1 - b0) / (t1 - t0) if t1 > t0 else 0.0

    def sample(self, t: float) -> None:
        self._samples.append((t, self.done))
        while len(self._samples) > 2 and self._samples[0][0] < t - _RATE_OVER_S:
            del self._samples[0]


@dataclass
class VmState:
    """One VM: its stage, since when it boots, how long it took, where it answers and what went wrong."""

    name: str
    host: str
    stage: str = "created"
    role: str = "dim"
    note: str = ""
    accel: str = ""
    address: str = ""
    booting_at: float | None = None
    boot_s: float | None = None
    ready_at: float | None = None


class Progress:
    """Takes events (it is a `Reader`) and keeps the state they add up to."""

    def __init__(self) -> None:
        self.session = ""
        self.wanted = 0
        self.t = 0.0
        self.hosts: dict[str, HostState] = {}
        self.vms: dict[str, VmState] = {}
        self.ready = 0
        self.failed = 0
        self.done_s: float | None = None
        self.version = 0

    def __call__(self, event: Event) -> None:
        self.t = max(self.t, event.t)
        self.version += 1
        if event.event == "session.started":
            self.session, self.done_s, self.t = clean(event.text("session")), None, event.t
            self.wanted = int(event.number("vms"))
            self.hosts.clear()
            self.vms.clear()
        elif event.event == "session.done":
            self.ready, self.failed = int(event.number("ready")), int(event.number("failed"))
            self.done_s = event.number("seconds")
        elif event.event.startswith("vm."):
            self._vm(event)
        else:
            self._host(event)

    def _host(self, event: Event) -> None:
        host = self.hosts.setdefault(event.host, HostState(clean(event.host)))
        match event.event.split("."):
            case ["host", "connecting"]:
                host.stage, host.role, host.retry_at = "connecting", "dim", None
            case ["host", "connected"]:
                host.stage, host.role, host.note = "connected", "", f"{event.number('rtt_ms'):.0f} ms away"
                host.away = False
            case ["host", "back"]:
                host.stage, host.role, host.note, host.away = "back", "", "", False
            case ["host", "lost"]:
                host.stage, host.role, host.note, host.away = "lost", "warn", clean(event.text("message")), True
                host.retry_at = event.t + event.number("retry_s") if event.fields.get("retry_s") is not None else None
            case ["host", "refused"]:
                host.stage, host.role, host.note = "refused", "bad", clean(event.text("message"))
            case ["transfer", "planned"]:
                host.began = event.t if host.began is None else host.began
                host.blobs[event.text("blob")] = (0, int(event.number("bytes_needed")))
            case ["transfer", "progress"]:
                host.stage, host.role = "sending", ""
                host.blobs[event.text("blob")] = (int(event.number("bytes_done")), int(event.number("bytes_needed")))
                host.sample(event.t)
            case ["transfer", "done"]:
                blob = event.text("blob")
                needed = host.blobs.get(blob, (0, int(event.number("bytes_sent"))))[1]
                host.blobs[blob] = (needed, needed)
                host.seconds = event.t - (event.t if host.began is None else host.began)
                host.stage = "image there" if host.done >= host.needed else "sending"

    def _vm(self, event: Event) -> None:
        self.hosts.setdefault(event.host, HostState(clean(event.host), "connected", ""))
        vm = self.vms.setdefault(event.vm, VmState(clean(event.vm), clean(event.host)))
        vm.host = clean(event.host)
        vm.accel = clean(event.text("accel")) or vm.accel
        match event.event:
            case "vm.created":
                vm.stage, vm.role = "created", "dim"
            case "vm.booting":
                vm.stage, vm.role, vm.note, vm.booting_at = "booting", "", "", event.t
            case "vm.running":
                vm.stage, vm.role = "running", ""
            case "vm.ready":
                vm.stage, vm.role, vm.note = "ready", "good", ""
                vm.boot_s, vm.ready_at = event.number("seconds"), event.t
                vm.address = clean(event.text("address"))
            case "vm.exited":
                vm.stage, vm.role = f"exited ({clean(event.text('cause'))})", "bad"
                vm.note = clean(event.text("message"))
            case _:
                vm.stage, vm.role = f"failed ({clean(event.text('cause'))})", "bad"
                vm.note = clean(event.text("message"))
