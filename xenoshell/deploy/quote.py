"""What a session would cost, host by host, before anything is done: a pure function of session, price lists and facts.

What is charged is what is *reserved*: vcpus, memory and disk as asked for in the session file, from creation to
destruction, whether the guest uses them or not, and whether it runs or is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Decimal
from typing import Any

from ..fleet.inventory import Host
from ..session.model import Budget, Session
from ..wire.causes import Failure
from .money import ZERO, Amounts, gib, plain, show
from .need import ImageFacts, Known, Need, needs
from .placement import Placement, Refusal, place

CHARGED = "charged is what is reserved (vcpus, memory, disk), running or stopped, until the VM is destroyed"


@dataclass(frozen=True)
class VmCost:
    """One VM on its host: what it reserves (memory and disk in bytes) and what that costs an hour, by resource."""

    vm: str
    group: str
    host: str
    currency: str
    vcpus: int
    memory: int
    disk: int
    vcpus_hour: Decimal
    memory_hour: Decimal
    disk_hour: Decimal
    kept: bool = False

    @property
    def per_hour(self) -> Decimal:
        return self.vcpus_hour + self.memory_hour + self.disk_hour


@dataclass(frozen=True)
class HostQuote:
    """One host's share. ``transfer_bytes``: packed bytes that it lacks; at most, unless ``transfer_exact``."""

    host: str
    place: str
    currency: str
    vms: tuple[VmCost, ...]
    transfer_bytes: int
    transfer_exact: bool
    transfer_cost: Decimal

    @property
    def per_hour(self) -> Decimal:
        return sum((vm.per_hour for vm in self.vms), ZERO)


@dataclass(frozen=True)
class Quote:
    """The price of a session. Sums are kept apart by currency.

    ``hours``: how long ``max_total`` pays for all VMs, one-time transfer taken off; None without such a limit.
    ``lease_cost``: what the VMs cost until their lease runs out, if nobody renews it; None without a lease.
    ``objection``: why the budget refuses this, or None.
    """

    session: str
    hosts: tuple[HostQuote, ...]
    placement: Placement
    per_hour: Amounts
    transfer: Amounts
    budget: Budget | None
    hours: Decimal | None
    lease_s: float | None
    lease_cost: Amounts | None
    objection: Failure | None
    notes: tuple[str, ...]

    @property
    def vms(self) -> tuple[VmCost, ...]:
        return tuple(vm for host in self.hosts for vm in host.vms)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        return self.placement.refusals

    @property
    def budget_s(self) -> float:
        """Seconds that each VM may run for ``max_total``; 0 without a limit."""
        return 0.0 if self.hours is None else float((self.hours * 3600).to_integral_value(ROUND_DOWN))

    def check(self) -> None:
        """Raises `Failure` (over-budget) if the budget refuses the session."""
        if self.objection is not None:
            raise self.objection

    def to_json(self) -> dict[str, Any]:
        """The quote as a JSON document; amounts are exact decimal strings, sizes bytes."""
        budget = self.budget
        return {
            "session": self.session,
            "hosts": [_host_json(host) for host in self.hosts],
            "per_hour": self.per_hour.to_json(),
            "transfer": self.transfer.to_json(),
            "budget": None
            if budget is None
            else {
                "max_per_hour": None if budget.max_per_hour is None else plain(budget.max_per_hour),
                "max_total": None if budget.max_total is None else plain(budget.max_total),
                "currency": budget.currency,
            },
            "within_budget": self.objection is None,
            "objection": None if self.objection is None else self.objection.message,
            "hours": None if self.hours is None else plain(self.hours.quantize(Decimal("0.01"), ROUND_DOWN)),
            "lease_s": self.lease_s,
            "lease_cost": None if self.lease_cost is None else self.lease_cost.to_json(),
            "refused": [{"host": r.host, "group": r.group, "reasons": list(r.reasons)} for r in self.refusals],
            "lost": [{"vm": p.vm, "host": p.host} for p in self.placement.lost],
            "notes": list(self.notes),
        }


def quote(
    session: Session,
    hosts: Sequence[Host],
    images: Mapping[str, ImageFacts],
    known: Mapping[str, Known] | None = None,
    *,
    session_id: str = "",
    existing: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Quote:
    """Place the session and price it. No network, no clock.

    ``images``: VM group name -> image; ``known``: host name -> facts, which may be old; ``existing``: VM -> host of
    what is deployed already. With ``strict``, conditions on what is not known refuse a host (a deployment); without,
    they pass and are listed in ``notes`` (a quote).
    Raises `Failure` (no-placement) and `BadInput`; a budget that refuses is ``objection``, not an exception.
    """
    known = known or {}
    budget = session.budget
    wanted = needs(session, images)
    placement = place(
        wanted,
        hosts,
        known,
        session_id=session_id,
        existing=existing,
        currency=budget.currency if budget else None,
        strict=strict,
    )
    by_name = {h.name: h for h in hosts}
    by_group = {n.group.name: n for n in wanted}
    quoted = tuple(
        _host_quote(
            by_name[name],
            known.get(name, Known()),
            [(p.vm, by_group[p.group], p.kept) for p in placement.placed if p.host == name],
        )
        for name in dict.fromkeys(p.host for p in placement.placed)
    )
    per_hour = Amounts.total(Amounts.of(h.currency, h.per_hour) for h in quoted)
    transfer = Amounts.total(Amounts.of(h.currency, h.transfer_cost) for h in quoted)
    objection, hours = _judge(budget, per_hour, transfer)
    lease_s = budget.lease if budget else None
    return Quote(
        session=session.name,
        hosts=quoted,
        placement=placement,
        per_hour=per_hour,
        transfer=transfer,
        budget=budget,
        hours=hours,
        lease_s=lease_s,
        lease_cost=None if lease_s is None else per_hour.times(Decimal(str(lease_s)) / 3600) + transfer,
        objection=objection,
        notes=_notes(quoted, placement, known),
    )


def allowances(quote: Quote, kept: Mapping[str, float]) -> dict[str, float]:
    """VM -> seconds that it may run in all, so that the session never costs more than max_total; 0: no such limit.

    ``kept``: VM -> the seconds that it was given before (0: no limit), for VMs that stay. What was given is not taken
    back: what max_total pays for beyond that goes to those with the least, new ones first, until all have the same.
    (Time is rounded down, so the total is never passed.) Raises `Failure` (over-budget) if a VM gets nothing.
    """
    rates = {vm.vm: vm.per_hour for vm in quote.vms}
    if quote.hours is None or quote.budget is None or quote.budget.max_total is None:
        return dict.fromkeys(rates, 0.0)
    given = {vm: Decimal(str(kept.get(vm, 0.0))) for vm in rates}
    left = quote.budget.max_total - sum((a for _, a in quote.transfer.each), ZERO)
    left = left * 3600 - sum((rates[vm] * s for vm, s in given.items()), ZERO)  # money times 3600, as all below
    level, rate = ZERO, ZERO
    steps = sorted(given.items(), key=lambda item: item[1])
    for at, (vm, s) in enumerate(steps):
        level, rate = s, rate + rates[vm]
        above = steps[at + 1][1] if at + 1 < len(steps) else None
        if above is None or (above - level) * rate > left:
            break
        left -= (above - level) * rate
    if left > 0 and rate:
        level += left / rate
    level = level.to_integral_value(ROUND_DOWN)
    if any(max(s, level) < 1 for vm, s in given.items() if rates[vm]):
        raise Failure(
            "over-budget",
            "the VMs that are there already may spend all of budget.max_total: nothing is left for new ones",
            "raise budget.max_total, or destroy VMs that are not needed",
        )
    return {vm: float(max(s, level)) for vm, s in given.items()}


def vm_cost(host: Host, vm: str, vcpus: int, memory: int, disk: int) -> VmCost:
    """What a VM that reserves so much (bytes) costs on ``host``."""
    price = host.price
    return VmCost(
        vm=vm,
        group="",
        host=host.name,
        currency=price.currency,
        vcpus=vcpus,
        memory=memory,
        disk=disk,
        vcpus_hour=price.vcpu_hour * vcpus,
        memory_hour=price.memory_gib_hour * gib(memory),
        disk_hour=price.disk_gib_hour * gib(disk),
    )


def _host_quote(host: Host, known: Known, vms: Sequence[tuple[str, Need, bool]]) -> HostQuote:
    price = host.price
    held = frozenset(known.facts.blobs) if known.facts else frozenset()
    # A kept VM's image is there, even where the host was not asked.
    held |= {b.digest for _, need, kept in vms if kept and known.facts is None for b in need.image.blobs}
    lacking = {b.digest: b for _, need, _ in vms for b in need.image.blobs if b.digest not in held}
    size = sum(b.to_send for b in lacking.values())
    return HostQuote(
        host=host.name,
        place=place_name(host),
        currency=price.currency,
        vms=tuple(
            replace(vm_cost(host, vm, need.vcpus, need.memory, need.disk), group=need.group.name, kept=kept)
            for vm, need, kept in vms
        ),
        transfer_bytes=size,
        transfer_exact=known.facts is not None and all(b.packed is not None for b in lacking.values()),
        transfer_cost=price.transfer_gib * gib(size),
    )


def place_name(host: Host) -> str:
    """The host's place for people: city and region, whichever are written."""
    return ", ".join(x for x in (host.place.city, host.place.region) if x)


def _judge(budget: Budget | None, per_hour: Amounts, transfer: Amounts) -> tuple[Failure | None, Decimal | None]:
    """The budget's objection, and the hours that max_total pays for."""
    if budget is None or (budget.max_per_hour is None and budget.max_total is None):
        return None, None
    currencies = (per_hour + transfer).currencies
    if not currencies:
        return None, None  # all free
    currency = budget.currency or (currencies[0] if len(currencies) == 1 else None)
    if currency is None or any(c != currency for c in currencies):
        limit = f"the budget is in {budget.currency}" if budget.currency else "the budget names no currency"
        message = (
            f"{limit}, but the hosts charge in {', '.join(currencies)}: {per_hour} an hour; these are never added up"
        )
        return Failure("over-budget", message, "set budget.currency and choose hosts that charge in it"), None
    rate = per_hour.get(currency)
    if budget.max_per_hour is not None and rate > budget.max_per_hour:
        limit = show(budget.max_per_hour, currency)
        return Failure("over-budget", f"it costs {show(rate, currency)} an hour; budget.max_per_hour is {limit}"), None
    if budget.max_total is None:
        return None, None
    left = budget.max_total - transfer.get(currency)
    if left <= 0:
        cost, limit = show(transfer.get(currency), currency), show(budget.max_total, currency)
        return Failure("over-budget", f"sending the images alone may cost {cost}; budget.max_total is {limit}"), None
    if not rate:
        return None, None
    hours = left / rate
    if hours * 3600 < 1:
        return Failure("over-budget", f"budget.max_total, {show(budget.max_total, currency)}, pays for no second"), None
    return None, hours


def _notes(hosts: Sequence[HostQuote], placement: Placement, known: Mapping[str, Known]) -> tuple[str, ...]:
    notes = [CHARGED]
    notes += [f"{h.host} cannot be used now: {why}" for h in hosts if (why := known.get(h.host, Known()).refused)]
    if loose := [h.host for h in hosts if not h.transfer_exact and h.transfer_bytes]:
        notes.append(
            f"transfer is at most this for {', '.join(loose)}: what they hold, or the packed size, is not known"
        )
    notes += [f"{host}: {text} is not verified: the host was not asked yet" for host, text in placement.unverified]
    notes += [f"{p.vm} is on {p.host}, which hosts.toml no longer has: it is not counted" for p in placement.lost]
    return tuple(notes)


def _host_json(host: HostQuote) -> dict[str, Any]:
    return {
        "host": host.host,
        "place": host.place,
        "currency": host.currency,
        "per_hour": plain(host.per_hour),
        "transfer_bytes": host.transfer_bytes,
        "transfer_exact": host.transfer_exact,
        "transfer_cost": plain(host.transfer_cost),
        "vms": [
            {
                "vm": vm.vm,
                "group": vm.group,
                "vcpus": vm.vcpus,
                "memory": vm.memory,
                "disk": vm.disk,
                "per_hour": plain(vm.per_hour),
                "kept": vm.kept,
            }
            for vm in host.vms
        ],
    }
