"""Hosts made by hand, for faults that real ones do not have on demand. Nothing here waits on real time without need."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from xenoshell.deploy.engine import Job, deploy
from xenoshell.deploy.events import Event
from xenoshell.deploy.need import Blob, ImageFacts, Known, Need
from xenoshell.deploy.outcome import Outcome
from xenoshell.deploy.ports import Clock, Policy
from xenoshell.deploy.record import Record, new_record
from xenoshell.fleet.inventory import Declared, Host, Place, PriceList
from xenoshell.session.model import Session
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import CheckLine, Forward, HostFacts, Proof, Recipe, Segment, VmSpec, VmStatus

MIB, GIB = 1 << 20, 1 << 30
KERNEL, DISK, INITRD = "a" * 64, "b" * 64, "c" * 64

IMAGE = ImageFacts(
    name="tiny",
    arch="x86_64",
    boot="kernel",
    kernel=Blob(KERNEL, 8 * MIB, 6 * MIB, "kernel"),
    disk=Blob(DISK, 64 * MIB, 20 * MIB, "disk"),
    cmdline="console=ttyS0",
)


def host(
    name: str,
    *,
    region: str = "eu",
    city: str | None = None,
    price: str = "0.01",
    currency: str = "EUR",
    cpus: int | None = None,
    memory: int | None = None,
    disk: int | None = None,
    transfer: str = "0",
    labels: dict[str, str] | None = None,
) -> Host:
    return Host(
        name=name,
        ssh=f"user@{name}.example",
        place=Place(region=region, city=city),
        resources=Declared(cpus=cpus, memory=memory, disk=disk),
        price=PriceList(currency=currency, vcpu_hour=Decimal(price), transfer_gib=Decimal(transfer)),
        labels=labels or {},
    )


def facts(**changes: Any) -> HostFacts:
    base = HostFacts(
        helper="1", python="3.11", kernel="6.1", arch="x86_64", hostname="h", user="u", boot_id="b", clock=0.0, cpus=8,
        load1=0.0, memory_mib=16384, memory_free_mib=16000, disk_free_mib=100_000, state_dir="/s", qemu="7.2",
        qemu_img=True, kvm="absent", codecs=("zstd", "zlib"), channel="", blobs=(), vms=(),
    )  # fmt: skip
    return replace(base, **changes)


def session(*groups: dict[str, Any], name: str = "web", **more: Any) -> Session:
    filled = [{"name": "vm", "image": "tiny", **g} for g in groups]
    return Session.model_validate({"schema": 1, "name": name, "vm": filled, **more})


@dataclass
class FakeHost:
    """A host's lasting state, whatever becomes of connections to it, and what is wrong with it."""

    facts: HostFacts = field(default_factory=facts)
    rtt_ms: float = 10.0
    blobs: set[str] = field(default_factory=set)
    vms: dict[str, VmStatus] = field(default_factory=dict)
    connect_failures: list[Failure] = field(default_factory=list)  # one for each attempt, then it works
    always_fails: Failure | None = None
    hangs: bool = False
    hangs_after_login: bool = False
    lose_in_send: int = 0  # so many transfers break half way
    send_failures: list[Failure] = field(default_factory=list)
    create_failures: list[Failure] = field(default_factory=list)
    progresses: bool = True
    renew_failure: Failure | None = None
    becomes: str = "ready"  # what a VM becomes: a state
    cause: str = ""
    never_ready: bool = False
    proof: bool = True
    calls: list[str] = field(default_factory=list)
    links: list[FakeLink] = field(default_factory=list)
    gate: asyncio.Event | None = None  # transfers wait for it
    on_create: Callable[[], object] | None = None

    def put(self, status: VmStatus) -> None:
        self.vms[status.id] = status
        for link in self.links:
            link.queue.put_nowait(status)

    def cut(self) -> None:
        for link in self.links:
            link.queue.put_nowait(Failure("connection-lost", "cut"))
            link.dead = True

    @property
    def open_links(self) -> int:
        return sum(not link.closed for link in self.links)


def status_of(spec: VmSpec, state: str, **changes: Any) -> VmStatus:
    ports = tuple(replace(f, host=f.host or 20000 + f.guest % 1000) for f in spec.forwards)
    base = VmStatus(
        id=spec.id, session=spec.session, session_id=spec.session_id, name=spec.name, state=state, accel="tcg",
        created=1.0, run=1, boot_s=2.5, forwards=ports, vcpus=spec.vcpus, memory_mib=spec.memory_mib,
        disk_bytes=spec.disk_bytes, image=spec.image,
    )  # fmt: skip
    return replace(base, **changes)


class FakeLink:
    def __init__(self, name: str, host: FakeHost) -> None:
        self.name, self.host = name, host
        self.facts = replace(
            host.facts, blobs=tuple(sorted({*host.facts.blobs, *host.blobs})), vms=tuple(host.vms.values())
        )
        self.rtt_ms, self.fingerprint, self.address = host.rtt_ms, f"SHA256:{name}", f"{name}.example"
        self.queue: asyncio.Queue[VmStatus | Failure] = asyncio.Queue()
        self.dead = self.closed = False
        host.links.append(self)

    async def _call(self, what: str) -> None:
        self.host.calls.append(what)
        await asyncio.sleep(0)
        if self.host.hangs_after_login:
            await asyncio.Event().wait()
        if self.dead:
            raise Failure("connection-lost", "dead")

    async def check(self, kernel: str | None = None) -> tuple[CheckLine, ...]:
        await self._call("check")
        return (CheckLine("acceleration", "fine" if self.host.proof else "limited", ""),)

    async def prove(self, digest: str) -> Proof:
        await self._call(f"prove {digest[:1]}")
        assert digest in self.host.blobs, "proved before the kernel was there"
        for _ in range(20):  # longer than any other order takes
            await asyncio.sleep(0)
        self.host.calls.append("proven")
        return Proof(self.host.proof, 0.1, "")

    async def vm_create(self, spec: VmSpec, seed: bytes = b"") -> VmStatus:
        await self._call(f"create {spec.name}")
        assert {d for d in (spec.disk, spec.kernel, spec.initrd) if d} <= self.host.blobs
        if self.host.create_failures:
            raise self.host.create_failures.pop(0)
        if self.host.on_create:
            self.host.on_create()
        old = self.host.vms.get(spec.id)
        first = status_of(spec, "creating", created=old.created + 1 if old else 1.0)
        self.host.vms[spec.id] = first
        self._run(first)
        return first

    def _run(self, first: VmStatus) -> None:
        for state in ("booting", "running"):
            self.host.put(replace(first, state=state))
        if not self.host.never_ready:
            self.host.put(replace(first, state=self.host.becomes, cause=self.host.cause))

    async def vm_list(self) -> tuple[VmStatus, ...]:
        await self._call("list")
        return tuple(self.host.vms.values())

    async def vm_stop(self, id: str) -> VmStatus:
        await self._call(f"stop {id}")
        found = self._find(id)
        self.host.put(replace(found, state="exited", cause="stopped"))
        return replace(found, state="stopping")

    async def vm_start(self, id: str) -> VmStatus:
        await self._call(f"start {id}")
        old = self._find(id)
        self._run(replace(old, run=old.run + 1, cause="", state="booting"))
        return old  # as it was when the order was written down

    async def vm_restart(self, id: str) -> VmStatus:
        return await self.vm_start(id)

    async def vm_destroy(self, id: str) -> None:
        await self._call(f"destroy {id}")
        self.host.vms.pop(id, None)

    async def vm_renew(self, id: str, lease_s: float, budget_s: float | None = None) -> VmStatus:
        await self._call(f"renew {id} {lease_s:g}" + ("" if budget_s is None else f" {budget_s:g}"))
        if self.host.renew_failure:
            raise self.host.renew_failure
        return self._find(id)

    def _find(self, id: str) -> VmStatus:
        if id not in self.host.vms:
            raise Failure("not-found", f"no VM {id}")
        return self.host.vms[id]

    async def watch(self) -> AsyncIterator[VmStatus]:
        for status in tuple(self.host.vms.values()):
            yield status
        while True:
            item = await self.queue.get()
            if isinstance(item, Failure):
                raise item
            yield item

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True


class FakeConnector:
    def __init__(self, hosts: dict[str, FakeHost]) -> None:
        self.hosts = hosts
        self.sent: dict[str, list[str]] = defaultdict(list)
        self.prepared: list[str] = []
        self.attempts: dict[str, int] = defaultdict(int)

    async def connect(self, host: Host, deadline_s: float) -> FakeLink:
        fake = self.hosts[host.name]
        self.attempts[host.name] += 1
        await asyncio.sleep(0)
        if fake.hangs:
            await asyncio.Event().wait()
        if fake.always_fails:
            raise fake.always_fails
        if fake.connect_failures:
            raise fake.connect_failures.pop(0)
        return FakeLink(host.name, fake)

    def prepare(self, digests: Iterable[str]) -> None:
        self.prepared += digests

    async def send(
        self,
        link: FakeLink,
        digest: str,
        on_recipe: Callable[[Recipe], None],
        on_progress: Callable[[int, int], None],
    ) -> int:
        fake = link.host
        self.sent[link.name].append(digest)
        segment = Segment("1" * 64, 1000, "2" * 64, 4096)
        on_recipe(Recipe(digest, 8192, "zstd", (), ((0, 2, 0, 0),), (segment, replace(segment, sha256="3" * 64))))
        on_progress(0, 2000)
        await asyncio.sleep(0)
        if fake.gate is not None:
            await fake.gate.wait()
        if fake.progresses:
            on_progress(1000, 2000)
        if fake.lose_in_send:
            fake.lose_in_send -= 1
            fake.cut()
            raise Failure("connection-lost", f"{link.name}: cut in the middle")
        if fake.send_failures:
            raise fake.send_failures.pop(0)
        on_progress(2000, 2000)
        fake.blobs.add(digest)
        return 2000


#: Patience short enough for tests, long enough for a loaded machine.
QUICK = Policy(
    connect_s=0.3, probe_s=0.3, probe_least_s=0.1, reach_s=0.2, back_s=0.6, request_s=0.5, ready_slack_s=0.1,
    silence_s=5.0, close_s=0.2, first_pause_s=0.01, longest_pause_s=0.05, progress_every_s=0.0,
)  # fmt: skip


@dataclass
class World:
    """Fake hosts, the record as last saved, and the events of the last deployment."""

    hosts: tuple[Host, ...]
    fakes: dict[str, FakeHost]
    record: Record = field(default_factory=lambda: new_record("web", owner="me", created=0.0, base_dir=Path("/")))
    events: list[Event] = field(default_factory=list)
    saved: int = 0
    connector: FakeConnector = field(init=False)

    def __post_init__(self) -> None:
        self.connector = FakeConnector(self.fakes)

    def save(self, record: Record) -> None:
        self.record = record
        self.saved += 1

    def job(self, wanted: Session, **changes: Any) -> Job:
        seeds = changes.pop("seeds", _seed)
        return Job(
            session=wanted,
            hosts=self.hosts,
            images=changes.pop("images", {g.name: IMAGE for g in wanted.vm}),
            seeds=seeds,
            record=self.record,
            save=self.save,
            **changes,
        )

    async def deploy(self, wanted: Session, policy: Policy = QUICK, **changes: Any) -> Outcome:
        self.events.clear()
        for fake in self.fakes.values():
            fake.calls.clear()
        return await deploy(
            self.job(wanted, **changes), self.connector, (self.events.append,), policy=policy, clock=Clock()
        )

    def names(self, name: str = "") -> list[str]:
        """The events of a host, VM or all, by name and in order, without progress."""
        chosen = [e for e in self.events if not name or name in (e.host, e.vm)]
        return [e.event for e in chosen if e.event != "transfer.progress"]

    def event(self, event: str, name: str = "") -> Event:
        return next(e for e in self.events if e.event == event and (not name or name in (e.host, e.vm)))


def _seed(need: Need, vm: str, host: str, vm_id: str) -> bytes:
    return f"{need.group.customise!r} {vm} {host} {vm_id}".encode()


def world(*names: str, **fakes: FakeHost) -> World:
    all_names = [*names, *(n.replace("_", "-") for n in fakes)]
    given = {n.replace("_", "-"): f for n, f in fakes.items()}
    return World(tuple(host(n) for n in all_names), {n: given.get(n) or FakeHost() for n in all_names})


def known(rtt_ms: float | None = 10.0, **changes: Any) -> Known:
    return Known(facts(**changes), rtt_ms)


def forward(guest: int, host: int = 0) -> Forward:
    return Forward(guest, host)
