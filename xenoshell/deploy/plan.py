"""What a deployment would do: which bytes go where, which VMs are made, started, kept. Pure: values in, a value out.

A VM whose spec no longer is what the session file says is *kept* and reported as differing; it is replaced, its disk
lost, only with ``replace``. A VM that the file no longer has is kept and reported as surplus; it is destroyed only with
``prune``. Nothing that runs is touched without being asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..units import human_duration
from ..wire.values import HostFacts, VmSpec, VmStatus
from .need import Blob, Known
from .placement import IDLE
from .quote import Quote
from .specs import Entry, differences

#: VM actions, in the order in which a host does them.
ACTIONS = ("destroy", "replace", "create", "start", "keep", "differs", "spent", "surplus")
#: Actions after which the VM is followed until it is ready.
FOLLOWED = frozenset({"create", "replace", "start", "keep", "differs"})

#: Bytes a second assumed until a host's own rate is known: one channel at 150 ms reaches this.
ASSUMED_RATE = 10 << 20
#: Round trips from nothing to a booting VM: SSH connection 7, helper 3, `vm.create` 1.
ROUND_TRIPS = 11
#: Seconds for what is not the network: the helper's start and making the disk.
OVERHEAD_S = 0.5


@dataclass(frozen=True)
class VmPlan:
    """What happens to one VM. ``differs``: what changed; ``state``: as the host last said, "" if it is not there."""

    vm: str
    host: str
    action: str
    state: str = ""
    differs: tuple[str, ...] = ()
    renew_s: float | None = None  # a lease to be set on a VM that is kept
    budget_s: float | None = None  # how long it may run in all, to be set likewise (0: no limit)
    renewed: bool = False  # whether that is not what it was given before
    spec: VmSpec | None = None  # what it becomes; None for what the file no longer has
    vm_id: str = ""

    def __str__(self) -> str:
        changed, budget = ", ".join(self.differs), ""
        if self.renewed and self.budget_s is not None:
            limit = f"{human_duration(self.budget_s)} in all" if self.budget_s else "without limit"
            budget = f", its budget renewed (it may run {limit})"
        match self.action:
            case "differs":
                return (
                    f"{self.vm}: kept{budget}, but not as the file says ({changed});"
                    " --replace makes it anew, its disk is lost"
                )
            case "replace":
                return f"{self.vm}: destroyed and made anew ({changed}), its disk is lost"
            case "surplus":
                return f"{self.vm}: kept, though the session file no longer has it; --prune destroys it"
            case "destroy":
                return f"{self.vm}: destroyed, the session file no longer has it"
            case "spent":
                return f"{self.vm}: kept stopped, its budget is spent; raise budget.max_total and deploy again"
            case "start":
                but = f", but not as the file says ({changed})" if changed else ""
                return f"{self.vm}: started ({self.state}){budget}{but}"
            case "keep":
                return f"{self.vm}: kept as it is" + (f" ({self.state})" if self.state else "") + budget
            case _:
                return f"{self.vm}: created"


@dataclass(frozen=True)
class HostPlan:
    """One host's part. ``asked``: whether the host's own facts went into it, or only what is known here."""

    host: str
    blobs: tuple[Blob, ...]
    vms: tuple[VmPlan, ...]
    asked: bool
    seconds: float

    @property
    def bytes_to_send(self) -> int:
        return sum(b.to_send for b in self.blobs)

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "asked": self.asked,
            "seconds": round(self.seconds, 1),
            "bytes_to_send": self.bytes_to_send,
            "blobs": [
                {"digest": b.digest, "what": b.what, "size": b.size, "packed": b.packed, "bytes": b.to_send}
                for b in self.blobs
            ],
            "vms": [
                {"vm": v.vm, "action": v.action, "state": v.state, "differs": list(v.differs), "text": str(v)}
                for v in self.vms
            ],
        }


@dataclass(frozen=True)
class Plan:
    """The whole deployment, before it is done. ``seconds``: to the last VM booting, hosts in parallel (an estimate;
    how long guests then take to be ready is theirs)."""

    session: str
    quote: Quote
    hosts: tuple[HostPlan, ...]

    @property
    def seconds(self) -> float:
        return max((h.seconds for h in self.hosts), default=0.0)

    @property
    def bytes_to_send(self) -> int:
        return sum(h.bytes_to_send for h in self.hosts)

    def count(self, *actions: str) -> int:
        """How many VMs have one of these actions."""
        return sum(v.action in actions for h in self.hosts for v in h.vms)

    @property
    def blast_radius(self) -> str:
        """What it does, in words: ``creates 3 VMs on 3 hosts, destroys 1 VM on 1 host``."""
        words = {"create": "creates", "start": "starts", "replace": "replaces", "destroy": "destroys"}
        parts = []
        for action, verb in words.items():
            if count := self.count(action):
                hosts = sum(any(v.action == action for v in h.vms) for h in self.hosts)
                parts.append(f"{verb} {_count(count, 'VM')} on {_count(hosts, 'host')}")
        return ", ".join(parts) or "changes nothing"

    @property
    def destructive(self) -> bool:
        """Whether a disk is lost by it, so that it has to be confirmed."""
        return self.count("replace", "destroy") > 0

    def to_json(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "hosts": [h.to_json() for h in self.hosts],
            "seconds": round(self.seconds, 1),
            "bytes_to_send": self.bytes_to_send,
            "blast_radius": self.blast_radius,
            "destructive": self.destructive,
            "quote": self.quote.to_json(),
        }


def plan_host(
    host: str,
    specs: Sequence[VmSpec],
    blobs: Mapping[str, Blob],
    known: Known,
    *,
    session_id: str,
    recorded: Mapping[str, Entry] | None = None,
    replace: bool = False,
    prune: bool = False,
) -> HostPlan:
    """The plan for one host. ``specs``: the VMs that the file wants there; ``blobs``: digest -> blob of their images;
    ``recorded``: VM name -> record, for all hosts."""
    recorded = recorded or {}
    facts = known.facts
    there = {s.name: s for s in facts.vms if s.session_id == session_id} if facts else {}
    vms = [_vm_plan(host, spec, there, facts, recorded.get(spec.name), replace) for spec in specs]
    wanted = {s.name for s in specs}
    left = {name: s.id for name, s in there.items() if name not in wanted}
    if facts is None:
        left = {vm: e.spec.id for vm, e in recorded.items() if e.host == host and vm not in wanted}
    for name, identity in left.items():
        state = there[name].state if name in there else ""
        vms.append(VmPlan(name, host, "destroy" if prune else "surplus", state, vm_id=identity))
    held = frozenset(facts.blobs) if facts else frozenset()
    needed = [
        digest
        for v in vms
        if v.spec is not None and v.action in ("create", "replace")
        for digest in (v.spec.kernel, v.spec.initrd, v.spec.disk)
        if digest is not None and digest not in held
    ]
    send = tuple(blobs[d] for d in dict.fromkeys(needed))
    vms.sort(key=lambda v: ACTIONS.index(v.action))
    return HostPlan(host, send, tuple(vms), facts is not None, _seconds(send, known.rtt_ms))


def _vm_plan(  # noqa: PLR0917 - one call, just above
    host: str,
    spec: VmSpec,
    there: Mapping[str, VmStatus],
    facts: HostFacts | None,
    record: Entry | None,
    replace: bool,
) -> VmPlan:
    status = there.get(spec.name)
    if status is None and (facts is not None or record is None):
        return VmPlan(spec.name, host, "create", spec=spec, vm_id=spec.id)
    state = status.state if status else ""
    old = record.spec if record else None
    changed = differences(old, spec) if old else _visible(status, spec)
    if record is not None and not record.settled:
        changed = changed or ("replacement",)  # begun before and not seen to its end
    # To deploy again is to be heard from: the lease begins anew.
    renew = spec.lease_s if spec.lease_s or (old is not None and old.lease_s) else None
    budget = spec.budget_s if spec.budget_s or (old is not None and old.budget_s) else None
    if budget is not None and renew is None:
        renew = 0.0  # they are told together
    if changed and replace:
        action, renew, budget = "replace", None, None
    elif status is not None and _spent(status, spec):
        action, changed, renew, budget = ("replace" if replace else "spent"), changed or ("budget",), None, None
    elif status is not None and status.state == "failed":
        action, changed, renew, budget = "create", (), None, None
    elif status is not None and (status.state in IDLE or status.state == "stopping"):
        action = "start"
    else:
        action = "differs" if changed else "keep"
    # A VM that differs keeps the spec it has: what a host cannot be told to change is not half changed.
    kept = old if old is not None and changed and action != "replace" else spec
    return VmPlan(
        spec.name,
        host,
        action,
        state,
        changed,
        renew_s=renew,
        budget_s=budget,
        renewed=old is not None and old.budget_s != spec.budget_s,
        spec=kept,
        vm_id=spec.id,
    )


def _spent(status: VmStatus, spec: VmSpec) -> bool:
    """Whether a VM was stopped by its budget, and the one it is to have now is used up too."""
    stopped = status.state == "exited" and status.cause == "budget-spent"
    return stopped and 0 < spec.budget_s <= status.usage.uptime_s


def _visible(status: VmStatus | None, spec: VmSpec) -> tuple[str, ...]:
    """What a host shows of a VM that this client has no record of, compared with what is wanted."""
    if status is None:
        return ()
    pairs = (
        ("vcpus", status.vcpus, spec.vcpus),
        ("memory", status.memory_mib, spec.memory_mib),
        ("disk", status.disk_bytes, spec.disk_bytes),
        ("image", status.image, spec.image),
    )
    return tuple(word for word, old, new in pairs if old and old != new)


def plan(
    quote: Quote,
    specs: Mapping[str, VmSpec],
    blobs: Mapping[str, Blob],
    known: Mapping[str, Known],
    *,
    session_id: str,
    recorded: Mapping[str, Entry] | None = None,
    replace: bool = False,
    prune: bool = False,
) -> Plan:
    """The plan of a quoted session. ``specs``: VM name -> what its host will be told.

    Raises `Failure` (over-budget) if the budget refuses the quote."""
    quote.check()
    recorded = recorded or {}
    by_host: dict[str, list[VmSpec]] = {}
    for placed in quote.placement.placed:
        by_host.setdefault(placed.host, []).append(specs[placed.vm])
    inventory = set(known) | set(by_host)
    for extra in recorded.values():  # hosts that the file no longer uses may still have VMs
        if extra.host in inventory:
            by_host.setdefault(extra.host, [])
    hosts = tuple(
        plan_host(
            host,
            wanted,
            blobs,
            known.get(host, Known()),
            session_id=session_id,
            recorded=recorded,
            replace=replace,
            prune=prune,
        )
        for host, wanted in by_host.items()
    )
    return Plan(quote.session, quote, hosts)


def _seconds(send: Sequence[Blob], rtt_ms: float | None) -> float:
    return OVERHEAD_S + ROUND_TRIPS * (rtt_ms or 0.0) / 1000 + sum(b.to_send for b in send) / ASSUMED_RATE


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
