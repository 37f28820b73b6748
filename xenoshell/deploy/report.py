"""`ps`: every VM of deployed sessions as its host sees it now, and what it has cost so far.

A host that does not answer leaves its VMs *unknown*: what was last heard of them, and when, comes from the record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any

from ..fleet.inventory import Host, Inventory
from ..units import MAX_DURATION_S
from ..wire.causes import Failure
from ..wire.codec import encode
from ..wire.values import VmStatus
from .money import ZERO, Amounts, plain
from .need import MIB
from .operate import named, on_hosts
from .ports import Connector, L, Policy
from .quote import vm_cost
from .record import Record, Seen, SessionStore
from .specs import Entry
from .summary import natural
from .track import address

_HOUR = 3600


@dataclass(frozen=True)
class Cost:
    """What a VM costs: price list times what it reserves, an hour and since it was created (transfer not counted)."""

    currency: str
    per_hour: Decimal
    so_far: Decimal


@dataclass(frozen=True)
class VmReport:
    """One VM as `ps` shows it. ``state``: a VM state; "unknown" if its host does not answer (``last_known`` is the
    state it had before, ``last_heard`` when that was, in Unix seconds, or 0); "gone" if its host answers and does not
    have it. ``cost``: None where it cannot be known."""

    session: str
    vm: str
    host: str
    state: str
    last_known: str = ""
    last_heard: float = 0.0
    cause: str = ""
    message: str = ""
    remedy: str = ""
    address: str = ""
    cost: Cost | None = None
    status: VmStatus | None = None

    def to_json(self) -> dict[str, Any]:
        out = {name: getattr(self, name) for name in VmReport.__dataclass_fields__}
        cost = self.cost
        return out | {
            "last_heard": round(self.last_heard, 3) or None,
            "cost": None
            if cost is None
            else {"currency": cost.currency, "per_hour": plain(cost.per_hour), "so_far": plain(cost.so_far)},
            "status": None if self.status is None else encode(self.status),
        }


@dataclass(frozen=True)
class _Answer:
    """What a host said: where it is reached, its clock (Unix seconds), and its VMs."""

    host: str
    address: str
    clock: float
    statuses: tuple[VmStatus, ...]


async def ps(
    sessions: SessionStore,
    names: Sequence[str],
    inventory: Inventory,
    connector: Connector[L],
    policy: Policy | None = None,
) -> tuple[VmReport, ...]:
    """Every VM of the named sessions, as their hosts see them now; each host is asked once.

    VMs that a host has of a session but the record lacks are shown too. Raises `BadInput` for a session that is none.
    """
    policy = policy or Policy()
    records = [sessions.load(name) for name in names]
    used = named(inventory, [e.host for r in records for e in r.vms.values()])

    async def ask(link: L, name: str) -> _Answer:
        host = used[name]
        at = (host.address if host else None) or link.address
        return _Answer(name, at, link.facts.clock or time.time(), await link.vm_list() if link.facts.vms else ())

    answers = await on_hosts(used, ask, connector, policy, limit_s=policy.request_s)
    now = time.time()
    reports: list[VmReport] = []
    for record in records:
        mine = _reports(record, answers, sessions.seen(record.session), used, now)
        # A host speaks for the VMs that the record has on it, and for no others.
        own = [r for r in mine if r.vm in record.vms and record.vms[r.vm].host == r.host]
        seen = {r.vm: Seen(r.state, now, r.status.created) for r in own if r.status is not None}
        sessions.note_seen(record.session, seen)
        reports += mine
    return tuple(reports)


def totals(reports: Sequence[VmReport]) -> tuple[Amounts, Amounts]:
    """What the VMs have cost so far, and what they cost an hour; each currency on its own."""
    costs = [r.cost for r in reports if r.cost is not None]
    return (
        Amounts.total(Amounts.of(c.currency, c.so_far) for c in costs),
        Amounts.total(Amounts.of(c.currency, c.per_hour) for c in costs),
    )


def cost_of(host: Host | None, vcpus: int, memory: int, disk: int, seconds: float) -> Cost | None:
    """What so much (bytes), reserved on ``host`` for ``seconds``, has cost: rounded up at the sixth decimal.

    None for a host whose prices are not known, and for what no VM can be, whoever says so."""
    most = zip((vcpus, memory, disk, seconds), (1024, 1 << 46, 1 << 50, MAX_DURATION_S), strict=True)
    if host is None or any(value > limit for value, limit in most):
        return None
    each = vm_cost(host, "", vcpus, memory, disk)
    spent = each.per_hour * Decimal(str(max(0.0, seconds))) / _HOUR
    return Cost(each.currency, each.per_hour, spent.quantize(Decimal("0.000001"), ROUND_CEILING) if spent else ZERO)


def _reports(
    record: Record,
    answers: Mapping[str, _Answer | Failure],
    seen: Mapping[str, Seen],
    hosts: Mapping[str, Host | None],
    now: float,
) -> list[VmReport]:
    out = []
    for vm, entry in sorted(record.vms.items(), key=lambda item: natural(item[0])):
        answer, before = answers[entry.host], seen.get(vm, Seen(""))
        if isinstance(answer, Failure):
            lost = _absent(record, vm, entry, before, answer)
            spec = entry.spec
            since = before.created or record.created
            cost = cost_of(hosts[entry.host], spec.vcpus, spec.memory_mib * MIB, spec.disk_bytes, now - since)
            out.append(replace(lost, cost=cost))
            continue
        status = next((s for s in answer.statuses if s.id == entry.spec.id), None)
        if status is None:
            gone = Failure("not-found", f"{entry.host} has no VM {vm}")
            out.append(_absent(record, vm, entry, before, gone))
        else:
            out.append(_present(record, hosts[entry.host], status, answer, entry))
    known = {e.spec.id for e in record.vms.values()}
    for host, answer in answers.items():
        if not isinstance(answer, Failure):
            extra = [s for s in answer.statuses if s.session_id == record.session_id and s.id not in known]
            out += [_present(record, hosts[host], s, answer, None) for s in extra]
    return out


def _absent(record: Record, vm: str, entry: Entry, before: Seen, why: Failure) -> VmReport:
    return VmReport(
        session=record.session,
        vm=vm,
        host=entry.host,
        state="gone" if why.cause == "not-found" else "unknown",
        last_known=before.state,
        last_heard=before.at,
        cause=why.cause,
        message=why.message,
        remedy=why.remedy,
    )


def _present(record: Record, host: Host | None, status: VmStatus, answer: _Answer, entry: Entry | None) -> VmReport:
    seconds = answer.clock - status.created if status.created else 0.0
    runs = status.state in ("running", "ready")
    return VmReport(
        session=record.session,
        vm=status.name,
        host=answer.host,
        state=status.state,
        last_known=status.state,
        last_heard=answer.clock,
        cause=status.cause,
        message=status.message,
        remedy=status.remedy,
        address=address(answer.address, status.forwards, entry.spec) if entry and runs else "",
        cost=cost_of(host, status.vcpus, status.memory_mib * MIB, status.disk_bytes, seconds),
        status=status,
    )
