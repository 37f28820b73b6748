"""Which VM goes to which host: a pure function of the session's needs and of what is known of the hosts.

A VM that has a place keeps it; one for which the file names a host goes there, as far as that host's declared
resources allow. The others go, group by group, the most constrained group first, to the host that keeps
the group spread, then costs least for this VM, then is nearest, then comes first by name. (Greedy: an exact assignment
is a packing problem; with the most constrained groups first, what greed misses needs contrived inputs.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import inf

from ..fleet.inventory import Declared, Host
from ..wire.causes import Failure
from .need import MIB, Known, Need, price_per_hour, view

#: VMs in these states hold no memory and no CPUs, only their disk.
IDLE = frozenset({"exited", "failed"})


@dataclass(frozen=True)
class Placed:
    """One VM on one host; ``kept`` if it was there before."""

    vm: str
    group: str
    host: str
    kept: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why one host does not take (more) VMs of one group."""

    host: str
    group: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.host}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Placement:
    """``placed`` in the order of the session file. ``lost``: VMs on hosts that the inventory no longer has.

    ``unverified``: (host, condition) that a lenient placement let pass because nothing is known yet.
    """

    placed: tuple[Placed, ...]
    refusals: tuple[Refusal, ...] = ()
    lost: tuple[Placed, ...] = ()
    unverified: tuple[tuple[str, str], ...] = ()


@dataclass
class _Room:
    """What is left on a host while VMs are given out; None: not known, so not a limit."""

    vcpus: int | None
    memory: int | None
    disk: int | None
    free_memory: int | None
    free_disk: int | None

    def lacks(self, need: Need, declared: Declared | None = None) -> tuple[str, ...]:
        """What is missing for ``need``. With ``declared``, only what was declared counts, not what is free now."""
        short = []
        counted = declared is None or declared.cpus is not None
        if counted and self.vcpus is not None and need.vcpus > self.vcpus:
            short.append(f"vcpus: {self.vcpus} left, {need.vcpus} needed")
        for what, asked, left in (
            ("memory", need.memory, self.memory),
            ("memory free now", need.memory, None if declared else self.free_memory),
            ("disk", need.disk, self.disk),
            ("disk free now", need.disk, None if declared else self.free_disk),
        ):
            if left is not None and asked > left:
                short.append(f"{what}: {max(0, left) // MIB} MiB left, {-(-asked // MIB)} MiB needed")
        return tuple(short)

    def take(self, need: Need, *, running: bool = False, made: bool = False) -> None:
        """``running`` and ``made``: its memory and its disk are already missing from what the host has free now."""
        self.vcpus = None if self.vcpus is None else self.vcpus - need.vcpus
        self.memory = None if self.memory is None else self.memory - need.memory
        self.disk = None if self.disk is None else self.disk - need.disk
        if not running:
            self.free_memory = None if self.free_memory is None else self.free_memory - need.memory
        if not made:
            self.free_disk = None if self.free_disk is None else self.free_disk - need.disk


def place(
    needs: Sequence[Need],
    hosts: Sequence[Host],
    known: Mapping[str, Known],
    *,
    session_id: str = "",
    existing: Mapping[str, str] | None = None,
    currency: str | None = None,
    strict: bool = True,
) -> Placement:
    """Place every VM of ``needs``.

    ``known``: host name -> what is known. ``existing``: VM name -> host, kept as it is. ``currency``: the budget's; its
    hosts go first, since prices of different currencies cannot be compared (a free host goes before all).
    ``strict``: conditions on what is not known yet refuse the host; a quote is lenient and lists them.
    Raises `Failure` (no-placement) that names, for each host, what refused it.
    """
    return _Placer(needs, hosts, known, session_id, existing or {}, currency, strict).place()


class _Placer:
    def __init__(  # noqa: PLR0917 - only `place` calls it
        self,
        needs: Sequence[Need],
        hosts: Sequence[Host],
        known: Mapping[str, Known],
        session_id: str,
        existing: Mapping[str, str],
        currency: str | None,
        strict: bool,
    ) -> None:
        self.needs = needs
        self.hosts = {h.name: h for h in hosts}
        self.known = {name: known.get(name, Known()) for name in self.hosts}
        self.session_id = session_id
        self.existing = existing
        self.currency = currency
        self.strict = strict
        self.rooms = {name: self._room(host) for name, host in self.hosts.items()}
        self.refusals: dict[tuple[str, str], tuple[str, ...]] = {}
        self.unverified: dict[tuple[str, str], None] = {}

    def place(self) -> Placement:
        kept, lost = self._keep()
        placed = {p.vm: p for p in kept}
        gone = {p.vm for p in lost}
        allowed = {need.group.name: self._allowed(need) for need in self.needs}
        short: list[str] = []
        for need in sorted(self.needs, key=lambda n: (not n.group.hosts, len(allowed[n.group.name]))):
            names = [n for n in need.names if n not in placed and n not in gone]
            missing = self._group(need, names, allowed[need.group.name], placed)
            if missing:
                short.append(self._complaint(need, missing))
        if short:
            away = bool(self.known) and all(known.refused for known in self.known.values())
            remedy = "no host can be used now: `xenoshell hosts check NAME` says why" if away else None
            raise Failure("no-placement", "\n".join(short), remedy)
        order = [name for need in self.needs for name in need.names]
        return Placement(
            placed=tuple(placed[name] for name in order if name in placed),
            refusals=tuple(Refusal(host, group, why) for (host, group), why in self.refusals.items()),
            lost=tuple(lost),
            unverified=tuple(self.unverified),
        )

    def _keep(self) -> tuple[list[Placed], list[Placed]]:
        kept, lost = [], []
        for need in self.needs:
            for name in need.names:
                host = self.existing.get(name)
                if host is None:
                    continue
                at = Placed(name, need.group.name, host, kept=True)
                if host not in self.hosts:
                    lost.append(at)
                    continue
                kept.append(at)
                facts = self.known[host].facts
                found = [s for s in facts.vms if s.session_id == self.session_id and s.name == name] if facts else []
                self.rooms[host].take(need, running=any(s.state not in IDLE for s in found), made=bool(found))
        return kept, lost

    def _room(self, host: Host) -> _Room:
        """Declared resources less what other VMs have taken; what is free now, as probed."""
        declared, facts = host.resources, self.known[host.name].facts
        names = {n for need in self.needs for n in need.names}
        others = [
            s
            for s in (facts.vms if facts else ())
            # Those of this session that the file still has are counted by what the file asks for.
            if not (s.session_id == self.session_id and s.name in names)
        ]
        cpus = min((n for n in (declared.cpus, facts.cpus if facts else None) if n is not None), default=None)
        running = [s for s in others if s.state not in IDLE]
        return _Room(
            vcpus=None if cpus is None else cpus - sum(s.vcpus for s in running),
            memory=None if declared.memory is None else declared.memory - sum(s.memory_mib for s in running) * MIB,
            disk=None if declared.disk is None else declared.disk - sum(s.disk_bytes for s in others),
            free_memory=facts.memory_free_mib * MIB if facts else None,
            free_disk=facts.disk_free_mib * MIB if facts else None,
        )

    def _allowed(self, need: Need) -> list[str]:
        """Hosts that the group may use at all, those that refuse noted with their reasons."""
        names: Iterable[str] = need.group.hosts or self.hosts
        out = []
        for name in dict.fromkeys(names):
            reasons = self._reasons(name, need)
            if reasons:
                self.refusals[name, need.group.name] = reasons
            else:
                out.append(name)
        return out

    def _reasons(self, name: str, need: Need) -> tuple[str, ...]:
        host = self.hosts.get(name)
        if host is None:
            return ("it is not in hosts.toml",)
        known = self.known[name]
        # A host that the file names is the user's own choice: what is wrong with it now is its own failure in the
        # deployment, and keeps no other host from its part.
        if known.refused and not need.group.hosts:
            return (known.refused.removeprefix(f"{name}: "),)
        if known.facts is not None and not need.group.hosts:
            if known.facts.arch != need.image.arch:
                return (f"arch: it is {known.facts.arch}, the image {need.image.name} is for {need.image.arch}",)
            if not known.facts.qemu:
                return ("no QEMU on it",)
        seen = view(host, known, need)
        reasons = need.group.where.refusals(seen, strict=self.strict)
        if not reasons and not self.strict:
            self.unverified |= {(name, text): None for text in need.group.where.unverified(seen)}
        return reasons

    def _group(self, need: Need, names: list[str], allowed: list[str], placed: dict[str, Placed]) -> list[str]:
        """Give ``names`` their hosts. Returns those for which there is none."""
        group = need.group
        # One VM for each named host, in the order written: what the file says to anybody who reads it.
        turns = {vm: [h] for vm, h in zip(need.names, group.hosts, strict=True)} if group.hosts else {}
        here = [p.host for p in placed.values() if p.group == group.name]
        domains = Counter(self._domain(h, group.spread) for h in here)
        counts = Counter(here)
        missing = []
        for vm in names:
            fitting = []
            for host in [h for h in turns.get(vm, allowed) if h in allowed]:
                declared = self.hosts[host].resources if group.hosts else None
                lacks = self.rooms[host].lacks(need, declared)
                if lacks:
                    self.refusals[host, group.name] = lacks
                else:
                    fitting.append(host)
            if not fitting:
                missing.append(vm)
                continue
            best = min(fitting, key=lambda h: self._order(h, need, domains, counts))
            domains[self._domain(best, group.spread)] += 1
            counts[best] += 1
            self.rooms[best].take(need)
            placed[vm] = Placed(vm, group.name, best)
        return missing

    def _order(
        self, name: str, need: Need, domains: Counter[str], counts: Counter[str]
    ) -> tuple[int, int, int, int, str, Decimal, float, str]:
        host, rtt = self.hosts[name], self.known[name].rtt_ms
        amount = price_per_hour(host, need)
        group = need.group
        return (
            domains[self._domain(name, group.spread)] if group.spread else 0,
            counts[name] if group.spread else 0,  # within one domain, spread over its hosts
            int(amount != 0),
            int(bool(self.currency) and host.price.currency != self.currency),
            host.price.currency,
            amount,
            inf if rtt is None else rtt,
            name,
        )

    def _domain(self, name: str, spread: str | None) -> str:
        """The part of the fleet that ``spread`` keeps apart; hosts without such a place are one part together."""
        host = self.hosts.get(name)
        if host is None or spread is None:
            return ""
        if spread == "host":
            return name
        value: str | None = getattr(host.place, spread)  # region | country | city
        return value or ""

    def _complaint(self, need: Need, missing: list[str]) -> str:
        group = need.group.name
        why = [f"  {Refusal(h, g, reasons)}" for (h, g), reasons in self.refusals.items() if g == group]
        none = [] if why else ["  there are no hosts: add one with `xenoshell hosts add NAME SSH-TARGET`"]
        return "\n".join([f"no host for {', '.join(missing)}:", *why, *none])
