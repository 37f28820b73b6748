"""The deployment itself: quote and budget first, then every host at once, each on its own.

With hosts named in the session file nothing has to be asked before the decision, so each host starts as soon as it is
connected. Where hosts are chosen, all candidates are asked first, for a bounded time; the slower ones are refused, not
waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from ..errors import BadInput
from ..fleet.inventory import Host
from ..session.model import Session
from ..wire.causes import Failure
from . import events
from .events import Event, Reader
from .hosttask import HostTask, Orders
from .need import Blob, ImageFacts, Known, needs, price_per_hour
from .outcome import Outcome, VmOutcome, host_outcome, vm_outcome
from .ports import TRANSPORT, Clock, Connector, L, Policy, first_failure
from .quote import Quote, allowances, quote
from .record import Record
from .specs import Entry, Made, SeedMaker, given, make
from .track import Track

__all__ = ["Job", "Outcome", "deploy"]


@dataclass(frozen=True)
class Job:
    """What is to be deployed. ``images``: VM group -> image. ``known``: host -> what was last known of it.

    ``record``: the session as recorded so far; ``save`` makes a newer one durable before it returns.
    """

    session: Session
    hosts: Sequence[Host]
    images: Mapping[str, ImageFacts]
    seeds: SeedMaker
    record: Record
    save: Callable[[Record], None]
    known: Mapping[str, Known] = field(default_factory=dict)
    accel: str = "auto"
    replace: bool = False
    prune: bool = False


async def deploy(
    job: Job,
    connector: Connector[L],
    readers: Sequence[Reader] = (),
    *,
    policy: Policy | None = None,
    clock: Clock | None = None,
) -> Outcome:
    """Deploy ``job`` and follow it until every VM is ready or has failed. Run again, it converges.

    Emits events to ``readers`` in order. Raises `Failure` when nothing may or can be done at all (over-budget,
    no-placement), `BadInput` for a session that cannot be; what fails on one host is in the outcome instead. When
    cancelled, connections are closed, VMs that were not made yet are not made, and the record says what is left.
    """
    return await _Deployment(job, connector, readers, policy or Policy(), clock or Clock()).run()


class _Deployment(Generic[L]):
    def __init__(
        self, job: Job, connector: Connector[L], readers: Sequence[Reader], policy: Policy, clock: Clock
    ) -> None:
        self.job = job
        self.connector = connector
        self.readers = list(readers)
        self.reader_errors: list[Exception] = []
        self.policy = policy
        self.clock = clock
        self.record = job.record
        self.before = dict(job.record.vms)
        self.began = clock.monotonic()
        self.needs = needs(job.session, job.images)
        self.hosts = {h.name: h for h in job.hosts}
        self.tasks: dict[str, HostTask[L]] = {}
        self.lost: list[VmOutcome] = []
        self.links: dict[str, L] = {}

    def now(self) -> float:
        return self.clock.monotonic() - self.began

    def emit(self, event: Event) -> None:
        for reader in tuple(self.readers):
            try:
                reader(event)
            except Exception as error:  # noqa: BLE001 - whatever a reader does, the deployment goes on; told at the end
                self.readers.remove(reader)
                self.reader_errors.append(error)

    # ------------------------------------------------------------ the course of it

    async def run(self) -> Outcome:
        session, record = self.job.session, self.record
        candidates = self._candidates()
        names = session.vm_names()
        self.emit(events.session_started(0.0, session.name, record.session_id, len(names), len(candidates)))
        self._prepare(candidates)
        try:
            if self._must_ask():
                quoted = await self._choose(candidates)
            else:
                # Old facts would refuse for memory that may be free by now; the host itself says what it has left.
                known = {name: Known(rtt_ms=k.rtt_ms) for name, k in self.job.known.items()}
                quoted = self._quote(known, strict=False)
            await self._all_hosts(quoted)
            self._drop_unmade()
        except BaseException as error:
            await self._abandon(error)
            raise
        outcome = self._outcome(quoted)
        self.emit(events.session_done(self.now(), outcome.ready, outcome.failed, outcome.seconds))
        return replace(outcome, reader_errors=tuple(self.reader_errors))

    def _candidates(self) -> list[str]:
        """Every host that may get a VM, or has one."""
        names: dict[str, None] = {}
        for need in self.needs:
            for vm in need.names:
                if vm in self.before:
                    names[self.before[vm].host] = None
            if not all(vm in self.before for vm in need.names):
                names |= dict.fromkeys(need.group.hosts or self.hosts)
        return [name for name in names if name in self.hosts]

    def _must_ask(self) -> bool:
        """Whether a VM without a place needs facts of hosts to get one."""
        return any(
            (not need.group.hosts or need.group.where.terms) and any(vm not in self.before for vm in need.names)
            for need in self.needs
        )

    def _prepare(self, candidates: Sequence[str]) -> None:
        """Have the blobs packed that some host probably lacks, while hosts are being connected."""
        facts = [self.job.known.get(name, Known()).facts for name in candidates]
        held = [frozenset(f.blobs) if f else frozenset[str]() for f in facts]
        wanted = dict.fromkeys(b.digest for need in self.needs for b in need.image.blobs)
        self.connector.prepare([d for d in wanted if any(d not in h for h in held)])

    def _quote(self, known: Mapping[str, Known], *, strict: bool) -> Quote:
        """Quote and budget check: nothing is done on any host before this has passed."""
        quoted = quote(
            self.job.session,
            self.job.hosts,
            self.job.images,
            known,
            session_id=self.record.session_id,
            existing=self.record.existing,
            strict=strict,
        )
        quoted.check()
        return quoted

    async def _choose(self, candidates: Sequence[str]) -> Quote:
        """Ask all candidates that could do, for a bounded time, then place the VMs."""
        known: dict[str, Known] = {}
        ask = []
        for name in candidates:
            # What declarations rule out needs no connection.
            if self._ruled_out(name):
                known[name] = Known()
            else:
                ask.append(name)
        failures: dict[str, Failure] = {}

        async def probe(name: str) -> None:
            self.emit(events.host_connecting(self.now(), name))
            try:
                link = await self.connector.connect(self.hosts[name], self.policy.probe_s)
            except Failure as failure:
                failures[name] = failure
            except Exception as error:  # noqa: BLE001 - a defect met on one host must not stop the others
                failures[name] = Failure("internal", f"{name}: {type(error).__name__}: {error}")
            else:
                self.links[name] = link
                known[name] = Known(link.facts, link.rtt_ms)

        asked = self.now()
        probes = {name: asyncio.create_task(probe(name)) for name in ask}
        try:
            await self._wait_for_most(set(probes.values()))
        finally:
            for task in probes.values():
                task.cancel()
            await asyncio.gather(*probes.values(), return_exceptions=True)
        waited = self.now() - asked
        for name in ask:
            if name not in known:
                why = failures.get(name) or Failure("timeout", f"{name}: no answer within {waited:.1f} s")
                failures[name] = why
                known[name] = Known(refused=why.message)
        try:
            quoted = self._quote(known, strict=True)
        except Failure as failure:
            if failure.cause == "no-placement":
                for name, why in failures.items():
                    self.emit(events.host_refused(self.now(), name, why))
            raise
        used = {p.host for p in quoted.placement.placed}
        for refusal in quoted.refusals:
            if refusal.host not in used:
                why = failures.get(refusal.host) or Failure("no-placement", str(refusal))
                self.emit(events.host_refused(self.now(), refusal.host, why))
                used.add(refusal.host)  # once, even if several groups refuse it
        await self._close([name for name in self.links if name not in {p.host for p in quoted.placement.placed}])
        return quoted

    async def _wait_for_most(self, probes: set[asyncio.Task[None]]) -> None:
        """Wait for all probes, but once half of the hosts answered, for the rest only three times as long as that took:
        one host that hangs is not to hold up a whole fleet."""
        began, total = self.clock.monotonic(), len(probes)
        limit = self.policy.probe_s
        while probes and (left := began + limit - self.clock.monotonic()) > 0:
            done, probes = await asyncio.wait(probes, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if limit == self.policy.probe_s and 2 * len(self.links) >= total:
                took = self.clock.monotonic() - began
                limit = min(limit, max(self.policy.probe_least_s, 3 * took))
            if not done:
                return

    def _ruled_out(self, name: str) -> bool:
        host = self.hosts[name]
        if any(entry.host == name for entry in self.before.values()):
            return False
        groups = [n for n in self.needs if not n.group.hosts or name in n.group.hosts]
        return all(
            n.group.where.refusals(host.view(price_per_hour=price_per_hour(host, n)), strict=False) for n in groups
        )

    async def _all_hosts(self, quoted: Quote) -> None:
        orders: dict[str, asyncio.Future[Orders]] = {}
        loop = asyncio.get_running_loop()
        for name in dict.fromkeys([*(p.host for p in quoted.placement.placed), *self._pruned_hosts()]):
            orders[name] = loop.create_future()
            self.tasks[name] = HostTask(
                host=self.hosts[name],
                connector=self.connector,
                orders=orders[name],
                emit=self.emit,
                now=self.now,
                settle=self._settle,
                clock=self.clock,
                policy=self.policy,
                first=self.links.pop(name, None),
            )
        self._tell_lost(quoted)
        try:
            async with asyncio.TaskGroup() as group:
                for task in self.tasks.values():
                    group.create_task(task.run())
                await self._order(quoted, orders)
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None

    async def _order(self, quoted: Quote, orders: Mapping[str, asyncio.Future[Orders]]) -> None:
        """Make the specs and seeds while hosts are being connected, write the record, and let the hosts go on."""
        made = await asyncio.to_thread(self._make, quoted)
        vms = {**{vm: Entry(host, m.spec) for vm, (host, m) in made.items()}, **self.record.vms}
        self._save(replace(self.record, vms=vms))
        blobs: dict[str, Blob] = {b.digest: b for need in self.needs for b in need.image.blobs}
        for name, future in orders.items():
            here = [m for host, m in made.values() if host == name]
            task = self.tasks[name]
            for m in here:
                exists = m.spec.name in self.before
                task.tracks[m.spec.name] = Track(m.spec, name, self.emit, self.now, exists=exists)
            if task.failure is not None:  # it gave up before there were orders
                for track in task.tracks.values():
                    (track.lose if track.exists else track.fail)(task.failure)
            future.set_result(
                Orders(
                    session_id=self.record.session_id,
                    made=here,
                    blobs=blobs,
                    recorded={vm: e for vm, e in self.before.items() if e.host == name},
                    replace=self.job.replace,
                    prune=self.job.prune,
                )
            )

    def _make(self, quoted: Quote) -> dict[str, tuple[str, Made]]:
        job, by_group = self.job, {n.group.name: n for n in self.needs}
        out: dict[str, tuple[str, Made]] = {}
        for placed in quoted.placement.placed:
            made = make(
                by_group[placed.group],
                placed.vm,
                self.hosts[placed.host],
                session=job.session.name,
                session_id=self.record.session_id,
                seeds=job.seeds,
                accel=job.accel,
                lease_s=quoted.lease_s,
            )
            out[placed.vm] = placed.host, made
        allowed = allowances(quoted, given(self.before, (m.spec for _, m in out.values()), anew=job.replace))
        return {
            vm: (host, replace(made, spec=replace(made.spec, budget_s=allowed[vm]))) for vm, (host, made) in out.items()
        }

    def _pruned_hosts(self) -> list[str]:
        """Hosts of VMs that the file no longer has, to be asked so that these are destroyed or at least seen."""
        if not self.job.prune:
            return []
        wanted = set(self.job.session.vm_names())
        return [e.host for vm, e in self.before.items() if vm not in wanted and e.host in self.hosts]

    def _tell_lost(self, quoted: Quote) -> None:
        session = self.job.session.name
        for placed in quoted.placement.lost:
            why = Failure(
                "no-placement",
                f"{placed.vm} is on {placed.host}, which hosts.toml no longer has",
                f"put {placed.host} back, or give it up: `xenoshell destroy {session}/{placed.vm} --forget`",
            )
            self.emit(events.vm_failed(self.now(), placed.host, placed.vm, why))
            self.lost.append(VmOutcome(placed.vm, placed.host, "unknown", False, why.cause, why.message, why.remedy))

    # ------------------------------------------------------------ the record

    def _settle(self, vm: str, entry: Entry | None) -> None:
        if entry is None:
            self._save(self.record.without(vm))
        elif self.record.vms.get(vm) != entry:
            self._save(self.record.with_vm(vm, entry))

    def _save(self, record: Record) -> None:
        self.job.save(record)
        self.record = record

    def _drop_unmade(self) -> None:
        """VMs that a host refused to make have no place: the next deployment may find a better one. (Those whose host
        was only lost keep theirs, and with it what was transferred.)"""
        tracks = [t for task in self.tasks.values() for t in task.tracks.values()]
        never = [t.vm for t in tracks if not t.exists and t.failure and t.failure.cause not in TRANSPORT]
        if never:
            self._save(self.record.without(*never))

    # ------------------------------------------------------------ the end

    async def _abandon(self, error: BaseException) -> None:
        """Nothing, or no more, is done: say so, close what is open, and leave in the record only what may exist."""
        why = error if isinstance(error, Failure) else Failure("cancelled", "the deployment was cancelled")
        if not isinstance(error, Failure | BadInput | asyncio.CancelledError):
            why = Failure("internal", f"{type(error).__name__}: {error}")
        never = []
        for task in self.tasks.values():
            for track in task.tracks.values():
                if not track.exists:
                    never.append(track.vm)
                    track.fail(why)
        if never := [vm for vm in never if vm in self.record.vms]:
            self._save(self.record.without(*never))
        tracks = [t for task in self.tasks.values() for t in task.tracks.values()]
        ready = sum(t.state == "ready" for t in tracks)
        total = len(self.job.session.vm_names())
        told = None if isinstance(error, BadInput) else why  # what is wrong with a file is said where it is read
        self.emit(events.session_done(self.now(), ready, total - ready, self.now(), told))
        await self._close(list(self.links))

    async def _close(self, names: Sequence[str]) -> None:
        async def close(link: L) -> None:
            try:
                async with asyncio.timeout(self.policy.close_s):
                    await link.close()
            except (TimeoutError, Failure, OSError):
                return  # it is gone either way

        links = [self.links.pop(name) for name in names]
        await asyncio.gather(*(close(link) for link in links))

    def _outcome(self, quoted: Quote) -> Outcome:
        by_vm = {t.vm: t for task in self.tasks.values() for t in task.tracks.values()}
        lost = {vm.vm: vm for vm in self.lost}
        names = self.job.session.vm_names()
        return Outcome(
            session=self.job.session.name,
            session_id=self.record.session_id,
            vms=tuple(lost[n] if n in lost else vm_outcome(by_vm[n]) for n in names),
            hosts=tuple(host_outcome(task) for task in self.tasks.values()),
            quote=quoted,
            seconds=self.now(),
        )
