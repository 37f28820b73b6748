"""One host's part of a deployment: connect, send what it lacks, make the VMs, watch them; and again after a fault.

Nothing in here waits for another host, and no failure leaves it: what goes wrong becomes events and the fate of this
host's VMs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from ..fleet.inventory import Host
from ..wire.causes import Failure
from ..wire.values import HostFacts, VmStatus
from . import events
from .events import Event
from .need import Blob, Known
from .placement import IDLE
from .plan import FOLLOWED, HostPlan, VmPlan, plan_host
from .ports import TRANSPORT, Clock, Connector, L, Policy, T, first_failure, within
from .sending import Sending, Transferred
from .specs import Entry, Made
from .track import Track

#: Refusals of a host that come before anything of the VM is written there.
NOT_ADMITTED = frozenset({"no-memory", "disk-full", "no-hypervisor", "no-acceleration", "not-found"})


@dataclass(frozen=True)
class Orders:
    """What a host is to have, once the whole deployment has been allowed."""

    session_id: str
    made: Sequence[Made]
    blobs: Mapping[str, Blob]
    recorded: Mapping[str, Entry]
    replace: bool = False
    prune: bool = False


@dataclass
class HostTask(Generic[L]):
    """See the module. ``orders`` is awaited after connecting.

    ``settle``: called with (vm, entry or None) when the record has to follow what was done, before the next step.
    """

    host: Host
    connector: Connector[L]
    orders: asyncio.Future[Orders]
    emit: Callable[[Event], None]
    now: Callable[[], float]
    settle: Callable[[str, Entry | None], None]
    clock: Clock
    policy: Policy
    first: L | None = None  # a connection made already, while hosts were chosen
    tracks: dict[str, Track] = field(default_factory=dict)
    transferred: Transferred = field(default_factory=Transferred)
    plan: HostPlan | None = None
    facts: HostFacts | None = None
    rtt_ms: float | None = None
    failure: Failure | None = None
    _entries: dict[str, Entry] = field(default_factory=dict)
    _connected: bool = False
    _lost_at: float | None = None
    _progress_at: float = 0.0
    _attempt: int = 0

    async def run(self) -> None:
        """Do it all. Raises nothing but a cancellation."""
        self._progress_at = self.now()
        try:
            await self._persist()
        except Failure as failure:
            self._give_up(failure)
        except Exception as error:  # noqa: BLE001 - a defect met on one host must not stop the others
            self._give_up(Failure("internal", f"{self.host.name}: {type(error).__name__}: {error}"))

    async def _persist(self) -> None:
        while True:
            self._attempt += 1
            try:
                link = await self._connect()
            except Failure as failure:
                await self._again(failure)
                continue
            try:
                self._greet(link)
                orders = await asyncio.shield(self.orders)
                await self._converge(link, orders)
                return
            except Failure as failure:
                if failure.cause not in TRANSPORT:
                    raise
                lost = failure
            finally:
                await self._close(link)
            await self._again(lost)

    async def _connect(self) -> L:
        if self.first is not None:
            link, self.first = self.first, None
            return link
        self.emit(events.host_connecting(self.now(), self.host.name, self._attempt))
        seconds = self.policy.connect_s
        # The connector keeps the deadline itself and says at which step it was; ours is for one that does not.
        return await within(seconds + 5, f"connecting to {self.host.name}", self.connector.connect(self.host, seconds))

    def _greet(self, link: L) -> None:
        t, name = self.now(), self.host.name
        if self._lost_at is not None:
            self.emit(events.host_back(t, name, t - self._lost_at))
            self._lost_at = None
        if not self._connected:
            self._progress_at = t
        self._connected = True
        self.facts, self.rtt_ms = link.facts, link.rtt_ms
        self.emit(events.host_connected(t, name, link.rtt_ms, link.fingerprint))
        self._tell_facts(link.facts, {"usable": "kvm", "unproven": "unproven"}.get(link.facts.kvm, "tcg"))

    def _tell_facts(self, facts: HostFacts, accel: str) -> None:
        self.emit(
            events.host_facts(
                self.now(),
                self.host.name,
                cpus=facts.cpus,
                memory_mib=facts.memory_mib,
                disk_free_mib=facts.disk_free_mib,
                accel=accel,
                qemu=facts.qemu,
            )
        )

    async def _again(self, failure: Failure) -> None:
        """Pause before the next attempt. Raises ``failure`` if it cannot pass, or patience is at its end."""
        now = self.now()
        patience = self.policy.back_s if self._connected else self.policy.reach_s
        if failure.cause not in TRANSPORT:
            raise failure
        pause = self.policy.pause(self._attempt, self.clock.random())
        if now + pause - self._progress_at > patience:
            raise failure
        if self._lost_at is None:
            self._lost_at = now
        self.emit(events.host_lost(now, self.host.name, failure, round(pause, 2)))
        await self.clock.sleep(pause)

    def _give_up(self, failure: Failure) -> None:
        self.failure = failure
        lost = failure.cause in TRANSPORT and self._connected
        tell = events.host_lost(self.now(), self.host.name, failure, None) if lost else None
        self.emit(tell or events.host_refused(self.now(), self.host.name, failure))
        for track in self.tracks.values():
            if track.exists:
                track.lose(failure)
            else:
                track.fail(failure)

    async def _close(self, link: L) -> None:
        try:
            async with asyncio.timeout(self.policy.close_s):
                await link.close()
        except (TimeoutError, Failure, OSError):
            return  # it is gone either way; what mattered was answered before

    # ------------------------------------------------------------ with a connection

    async def _converge(self, link: L, orders: Orders) -> None:
        facts, name = link.facts, self.host.name
        if not self._entries:
            self._entries = dict(orders.recorded)
        if any(s.session_id == orders.session_id for s in facts.vms):
            # The facts say what was written down; the list asks the supervisors, and revives those that are gone.
            statuses = await self._ask("listing its VMs", link.vm_list())
            facts = self.facts = replace(facts, vms=tuple(statuses))
        plan = self.plan = plan_host(
            name,
            [m.spec for m in orders.made],
            orders.blobs,
            Known(facts, link.rtt_ms),
            session_id=orders.session_id,
            recorded=self._entries,
            replace=orders.replace,
            prune=orders.prune,
        )
        there = {s.name: s for s in facts.vms if s.session_id == orders.session_id}
        for vm in plan.vms:
            if (track := self.tracks.get(vm.vm)) and vm.action in ("create", "replace") and vm.vm not in there:
                track.absent()  # the host itself says so
            if track and vm.action in ("keep", "differs") and (status := there.get(vm.vm)) and status.state not in IDLE:
                track.keep(status, self._address(link))
        self._admit(facts, plan)
        seeds = {m.spec.name: m.seed for m in orders.made}
        try:
            async with asyncio.TaskGroup() as watching:
                watcher = watching.create_task(self._watch(link)) if self._to_follow(plan) else None
                try:
                    await self._act(link, plan, there, seeds)
                finally:
                    if watcher is not None:
                        watcher.cancel()
        except BaseExceptionGroup as group:
            raise first_failure(group) from None

    def _to_follow(self, plan: HostPlan) -> bool:
        return any(v.action in FOLLOWED and not self.tracks[v.vm].finished.is_set() for v in plan.vms)

    def _sending(self) -> Sending[L]:
        return Sending(
            self.host.name,
            self.connector,
            self.transferred,
            emit=self.emit,
            now=self.now,
            progressed=self._progressed,
            clock=self.clock,
            policy=self.policy,
        )

    def _progressed(self) -> None:
        """Something got done: patience begins anew."""
        self._progress_at = self.now()

    def _admit(self, facts: HostFacts, plan: HostPlan) -> None:
        """Raises `Failure` if the host cannot do what the plan asks of it."""
        name = self.host.name
        making = [v.spec for v in plan.vms if v.spec is not None and v.action in ("create", "replace", "start")]
        if making and not facts.qemu:
            raise Failure("no-hypervisor", f"{name} has no QEMU")
        if other := [s for s in making if s.arch != facts.arch]:
            raise Failure("no-placement", f"{name} is {facts.arch}, the image {other[0].image} is for {other[0].arch}")

    async def _act(self, link: L, plan: HostPlan, there: Mapping[str, VmStatus], seeds: Mapping[str, bytes]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                blobs = {b.digest: group.create_task(self._sending().send(link, b)) for b in plan.blobs}
                proofs = self._proofs(link, plan, blobs, group)
                for vm in plan.vms:
                    group.create_task(self._vm(link, vm, there.get(vm.vm), seeds.get(vm.vm, b""), blobs, proofs))
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None

    async def _watch(self, link: L) -> None:
        """Feed what the host says to the tracks, until cancelled. Raises `Failure` when it says nothing more."""
        name, by_id = self.host.name, {t.spec.id: t for t in self.tracks.values()}
        stream = link.watch()
        while True:
            try:
                status = await within(self.policy.silence_s, f"{name}: watching its VMs", anext(stream))
            except StopAsyncIteration:
                raise Failure("connection-lost", f"{name}: its helper ended") from None
            if track := by_id.get(status.id):
                before = track.state
                track.update(status, self._address(link))
                if track.state != before:
                    self._progress_at = self.now()

    def _proofs(
        self,
        link: L,
        plan: HostPlan,
        blobs: Mapping[str, asyncio.Task[Failure | None]],
        group: asyncio.TaskGroup,
    ) -> dict[str | None, asyncio.Task[None]]:
        """Proofs of KVM under way, by kernel; None: the host's own kernel, for guests that boot from their disk.

        Needed where KVM is unproven, and for a kernel that is new to the host.
        """
        kvm = link.facts.kvm
        if kvm not in ("unproven", "usable"):
            return {}
        wanted: dict[str | None, None] = {}
        for vm in plan.vms:
            spec = vm.spec
            if spec is None or spec.accel != "auto" or vm.action not in ("create", "replace"):
                continue
            if kvm == "unproven" or (spec.boot == "kernel" and spec.kernel in blobs):
                wanted[spec.kernel if spec.boot == "kernel" else None] = None
        return {
            kernel: group.create_task(self._prove(link, kernel, blobs.get(kernel) if kernel else None))
            for kernel in wanted
        }

    async def _prove(self, link: L, kernel: str | None, blob: asyncio.Task[Failure | None] | None) -> None:
        """Have the host prove KVM. That it does not work is an answer too: the host then uses TCG and says so."""
        name, seconds = self.host.name, self.policy.request_s
        if blob is not None:
            await asyncio.wait({blob})
            if blob.cancelled() or blob.exception() is not None or blob.result() is not None:
                return  # told there
        try:
            if kernel is not None:
                works = (await within(seconds, f"{name}: proving KVM", link.prove(kernel))).works
            else:
                lines = await within(seconds, f"{name}: proving KVM", link.check(None))
                works = any(line.name == "acceleration" and line.level == "fine" for line in lines)
        except Failure as failure:
            if failure.cause in TRANSPORT:
                raise
            works = False
        self._tell_facts(link.facts, "kvm" if works else "tcg")

    # ------------------------------------------------------------ one VM

    async def _vm(  # noqa: PLR0917 - one call, above
        self,
        link: L,
        vm: VmPlan,
        old: VmStatus | None,
        seed: bytes,
        blobs: Mapping[str, asyncio.Task[Failure | None]],
        proofs: Mapping[str | None, asyncio.Task[None]],
    ) -> None:
        track = self.tracks.get(vm.vm)
        try:
            if track is None:
                if vm.action == "destroy":
                    await self._ask(f"destroying {vm.vm}", link.vm_destroy(vm.vm_id))
                    self.settle(vm.vm, None)
                return
            if track.finished.is_set() and vm.action not in ("keep", "differs"):
                return  # it failed before the connection was lost; that stands
            await self._do(link, vm, track, old, seed, blobs, proofs)
        except Failure as failure:
            if failure.cause in TRANSPORT:
                raise
            if track is not None and not track.finished.is_set():
                track.fail(failure)
                return
            # It is no VM of the file, or it is ready and only its lease could not be renewed.
            failure = Failure(failure.cause, f"{vm.vm}: {failure.message}", failure.remedy)
            self.emit(events.vm_failed(self.now(), self.host.name, vm.vm, failure))
            if track is not None:
                track.failure = failure
            return
        await self._until_finished(track)

    async def _do(  # noqa: PLR0917 - one call, above
        self,
        link: L,
        vm: VmPlan,
        track: Track,
        old: VmStatus | None,
        seed: bytes,
        blobs: Mapping[str, asyncio.Task[Failure | None]],
        proofs: Mapping[str | None, asyncio.Task[None]],
    ) -> None:
        address, spec = self._address(link), vm.spec
        if spec is None:  # only VMs of the file have a track, and those have a spec
            raise Failure("internal", f"{vm.vm}: a plan without a spec")
        match vm.action:
            case "create" | "replace":
                await self._blobs_of(vm, blobs)
                if proof := proofs.get(spec.kernel if spec.boot == "kernel" else None):
                    await asyncio.wait({proof})
                if vm.action == "replace":
                    was = self._entries.get(vm.vm)
                    self._settle(vm.vm, Entry(self.host.name, was.spec if was else spec, settled=False))
                    await self._ask(f"destroying {vm.vm}", link.vm_destroy(spec.id))
                # Before the effect: if we die in between, the VM is not there, and is simply made.
                self._settle(vm.vm, Entry(self.host.name, spec))
                track.expect(old)
                try:
                    status = await self._ask(f"creating {vm.vm}", link.vm_create(spec, seed))
                except Failure as failure:
                    if failure.cause in NOT_ADMITTED:
                        track.absent()
                    raise
                track.created(address, status)
                self._progress_at = self.now()
            case "start":
                await self._renew(link, vm)  # before it runs: it may have stopped because its budget was spent
                track.expect(old, made=True)
                status = await self._ask(f"starting {vm.vm}", link.vm_start(spec.id))
                track.update(status, address)
                self._progress_at = self.now()
            case "spent":
                why = Failure("budget-spent", old.message or f"{vm.vm}: its budget is spent" if old else "")
                self.emit(events.vm_exited(self.now(), self.host.name, vm.vm, why))
                track.state, track.failure = "exited", why
                track.leave()
            case _:
                if old is None or old.state in IDLE:
                    track.state = old.state if old else "unknown"
                    track.leave()
        if vm.action != "start":
            await self._renew(link, vm)

    async def _renew(self, link: L, vm: VmPlan) -> None:
        """Tell the host of the lease and the budget that a VM it has is to go on with."""
        if vm.renew_s is None:
            return
        was = self._entries.get(vm.vm)
        if was is not None and vm.budget_s is not None and was.spec.budget_s != vm.budget_s:
            self._settle(vm.vm, replace(was, spec=replace(was.spec, budget_s=vm.budget_s)))
        await self._ask(f"renewing the lease of {vm.vm}", link.vm_renew(vm.vm_id, vm.renew_s, vm.budget_s))

    async def _blobs_of(self, vm: VmPlan, blobs: Mapping[str, asyncio.Task[Failure | None]]) -> None:
        spec = vm.spec
        digests = (spec.kernel, spec.initrd, spec.disk) if spec else ()
        tasks = {blobs[d] for d in digests if d is not None and d in blobs}
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if failure := task.result():
                raise failure

    async def _until_finished(self, track: Track) -> None:
        limit = track.spec.ready.timeout_s + self.policy.ready_slack_s
        try:
            async with asyncio.timeout(limit):
                await track.finished.wait()
        except TimeoutError:
            track.fail(Failure("ready-timeout", f"{track.vm}: its host reports no end of booting after {limit:g} s"))

    async def _ask(self, what: str, work: Awaitable[T]) -> T:
        return await within(self.policy.request_s, f"{self.host.name}: {what}", work)

    def _settle(self, vm: str, entry: Entry) -> None:
        self._entries[vm] = entry
        self.settle(vm, entry)

    def _address(self, link: L) -> str:
        return self.host.address or link.address
