"""The VMs of a host as a helper sees them: their directories, and the supervisors that own them."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from xenoshell.host import vmdir
from xenoshell.host.statedir import free_bytes
from xenoshell.host.store import Store
from xenoshell.host.vmdir import VmDir
from xenoshell.wire import codec, frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import ErrorValue, VmSpec, VmStatus

_ANSWER_S = 10.0
_DESTROY_S = 60.0


class Vms:
    """Orders to VMs and questions about them. Safe to use from several threads."""

    def __init__(self, state_dir: str, library: str, store: Store) -> None:
        self.directory = os.path.join(state_dir, "vms")
        self._library = library
        self._store = store
        self._lock = threading.Lock()
        self._adopting: Dict[str, threading.Lock] = {}
        self._admitting = threading.Lock()
        self._followers: List[Callable[[], None]] = []

    def vm(self, vm_id: str) -> VmDir:
        """The directory of a VM that this host has. Raises `Failure`: bad-request, not-found."""
        vm = VmDir(self.directory, vm_id)
        if not vm.exists():
            raise Failure("not-found", "no VM %s on this host" % vm_id)
        return vm

    def ids(self) -> List[str]:
        """The ids of all VMs, sorted."""
        return vmdir.list_vms(self.directory)

    def statuses(self) -> Tuple[VmStatus, ...]:
        """What is written down about every VM. Fast; asks no supervisor."""
        found = []
        for vm_id in self.ids():
            try:
                found.append(VmDir(self.directory, vm_id).read_status())
            except Failure as failure:
                if failure.cause != "not-found":  # it was destroyed since we listed it
                    raise
        return tuple(found)

    def list(self) -> List[VmStatus]:
        """Every VM's status, from its supervisor; those that lost theirs are adopted first."""
        self.adopt_all()
        found = []
        for vm_id in self.ids():
            try:
                found.append(self._ask(VmDir(self.directory, vm_id), {"verb": "status"}))
            except Failure as failure:
                if failure.cause != "not-found":
                    raise
        return found

    def create(self, spec: VmSpec, seed: bytes) -> VmStatus:
        """Make a VM, or find it made. Raises `Failure`: what `admission.admit` raises, busy, timeout, ..."""
        vm = VmDir(self.directory, spec.id)
        # from here to the written spec, nobody drops its blobs and nobody is promised its memory
        with self._store.exclusive(), self._admitting:
            if not vm.made():
                self._admit(spec, made=False)
            vm.create(spec, seed)
        self.adopt(vm)
        return self._ask(vm, {"verb": "poke"})

    def order(self, vm_id: str, state: str, op: str) -> VmStatus:
        """Journal an order and tell the supervisor. Raises `Failure`: not-found, bad-request, and for a VM that is to
        run again what `admission.admit` raises.
        """
        vm = self.vm(vm_id)
        with self._store.exclusive(), self._admitting:  # neither another helper nor another thread promises the same
            again = state in ("running", "restart") and vm.read_wanted().op != op
            if again and vm.read_status().state in ("exited", "failed"):
                self._admit(vm.read_spec(), made=True)
            vm.want(state, op)
        self.adopt(vm)
        return self._ask(vm, {"verb": "poke"})

    def _admit(self, spec: VmSpec, *, made: bool) -> None:
        from xenoshell.host import admission, facts, qemu

        running = []
        for vm_id in self.ids():
            vm = VmDir(self.directory, vm_id)
            try:
                status = vm.read_status()
            except Failure as failure:
                if failure.cause != "not-found":
                    raise
                continue
            if vm_id != spec.id and admission.runs(status, vm.read_wanted()):
                running.append(status)
        room = admission.Room(
            memory_free=facts.memory_mib()[1],
            memory_promised=admission.promised(running),
            disk_free=free_bytes(self.directory) >> 20,
            qemu=shutil.which(qemu.binary(spec.arch)) is not None,
            qemu_img=shutil.which("qemu-img") is not None,
            kvm=_kvm() if spec.accel == "kvm" else "",
            blobs=frozenset(digest for digest in admission.blobs_of(spec) if self._store.holds(digest)),
        )
        admission.admit(spec, room, made=made)

    def renew(self, vm_id: str, op: str, lease_s: float, budget_s: Optional[float] = None) -> VmStatus:
        """Renew a lease; with ``budget_s``, set how long the VM may run in all. Raises `Failure`: not-found,
        bad-request.
        """
        vm = self.vm(vm_id)
        self.adopt(vm)
        return self._ask(vm, {"verb": "renew", "op": op, "lease_s": lease_s, "budget_s": budget_s})

    def destroy(self, vm_id: str, op: str) -> Dict[str, Any]:
        """Destroy a VM and wait until nothing of it is left; one that is not there is destroyed already."""
        vm = VmDir(self.directory, vm_id)
        if not vm.exists():
            vm.remove()
            return {}
        try:
            vm.want("destroyed", op)
            self.adopt(vm)
            self._ask(vm, {"verb": "poke"})
            self._await_end(vm)
        except Failure as failure:
            if failure.cause != "not-found" or os.path.exists(vm.path):
                raise
        return {}

    def _await_end(self, vm: VmDir) -> None:
        deadline = time.monotonic() + _DESTROY_S
        pause = threading.Event()
        delay = 0.01
        while os.path.exists(vm.path):
            if time.monotonic() > deadline:
                raise Failure("timeout", "%s is not gone after %d s" % (vm.id, _DESTROY_S))
            pause.wait(delay)  # a directory's end can only be looked for
            delay = min(0.1, delay * 1.5)

    def adopt(self, vm: VmDir) -> None:
        """See to it that a supervisor holds the VM. Raises `Failure`: not-found, internal, qemu-failed."""
        with self._lock:
            lock = self._adopting.setdefault(vm.id, threading.Lock())
        with lock:
            vmdir.adopt(vm, self._library)
        with self._lock:
            for told in self._followers:
                told()

    def follow(self, told: Callable[[], None]) -> None:
        """Call ``told()``, which must be quick, whenever a VM has got a supervisor, so that nobody has to look."""
        with self._lock:
            self._followers.append(told)

    def unfollow(self, told: Callable[[], None]) -> None:
        """Undo `follow`."""
        with self._lock:
            self._followers.remove(told)

    def adopt_all(self) -> None:
        """Adopt every VM that lost its supervisor, a few at a time. Which cannot be, says so when it is asked for."""
        orphans = [vm for vm in (VmDir(self.directory, vm_id) for vm_id in self.ids()) if not vm.supervisor_alive()]
        gate = threading.Semaphore(4)
        threads = [threading.Thread(target=self._adopt_quietly, args=(vm, gate), daemon=True) for vm in orphans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * vmdir.ADOPT_DEADLINE_S)

    def _adopt_quietly(self, vm: VmDir, gate: threading.Semaphore) -> None:
        with gate:
            try:
                self.adopt(vm)
            except Failure:
                return  # whoever asks for this VM tries again and is told

    def blobs_used(self) -> Set[str]:
        """The digests of all blobs that some VM here was made from."""
        used: Set[str] = set()
        for vm_id in self.ids():
            try:
                spec = VmDir(self.directory, vm_id).read_spec()
            except Failure as failure:
                if failure.cause == "not-found":
                    continue
                raise
            used.update(digest for digest in (spec.disk, spec.kernel, spec.initrd) if digest is not None)
        return used

    def _ask(self, vm: VmDir, request: Dict[str, Any]) -> VmStatus:
        """One question to a supervisor. When there is none to answer, what is written down."""
        try:
            connection = vm.connect(_ANSWER_S)
        except OSError:
            return vm.read_status()
        reader = frames.FrameReader()
        with connection:
            try:
                with contextlib.suppress(BrokenPipeError):  # the end is read below
                    connection.sendall(frames.pack(frames.REQUEST, 1, codec.dumps(request)))
                while True:
                    try:
                        data = connection.recv(65536)
                    except ConnectionResetError:  # it ended before it had read the question
                        data = b""
                    if not data:
                        return vm.read_status()  # it ended meanwhile: its last word is in the file
                    for frame in reader.feed(data):
                        if frame.type == frames.RESPONSE:
                            return codec.decode(VmStatus, codec.loads(frame.payload))
                        if frame.type == frames.ERROR:
                            raise failure_in(frame.payload)
            except OSError as error:
                raise Failure("timeout", "the supervisor of %s does not answer: %s" % (vm.id, error)) from error


def _kvm() -> str:
    from xenoshell.host import proofs

    return proofs.device()


def failure_in(payload: bytes) -> Failure:
    """The failure that an ERROR frame of a supervisor carries."""
    error = codec.decode(ErrorValue, codec.loads(payload))
    return Failure(error.cause, error.message, error.remedy or None)
