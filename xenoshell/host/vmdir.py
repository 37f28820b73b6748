"""One VM's directory on a host: its files, its journal of orders, and the way to its supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional

from xenoshell.host import locks, proc
from xenoshell.host.statedir import is_full, sync_dir, write_whole
from xenoshell.wire import codec, frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import VM_ID, VmSpec, VmStatus

#: Orders that `VmDir.want` takes; "restart" is "running", one run further.
ORDERS = ("running", "stopped", "destroyed", "restart")
ADOPT_DEADLINE_S = 10.0


class Wanted(NamedTuple):
    """The order in force: who gave it (an operation's id), the state wanted, and the how-manieth run that is."""

    op: str
    state: str
    run: int


def first_status(spec: VmSpec, created: float) -> VmStatus:
    """The status of a VM that nothing was done about yet."""
    return VmStatus(
        id=spec.id,
        session=spec.session,
        session_id=spec.session_id,
        name=spec.name,
        state="creating",
        created=created,
        forwards=spec.forwards,
        image=spec.image,
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        disk_bytes=spec.disk_bytes,
        lease_left_s=spec.lease_s if spec.lease_s > 0 else -1.0,
    )


class VmDir:
    """The directory ``vms/vm_id``. Every path of it is ``vmdir.file(NAME)``."""

    def __init__(self, vms: str, vm_id: str) -> None:
        if not isinstance(vm_id, str) or not VM_ID.match(vm_id):
            raise Failure("bad-request", "%r is not a VM id" % (str(vm_id)[:80],))
        self.id = vm_id
        self.vms = os.path.abspath(vms)
        self.path = os.path.join(self.vms, vm_id)
        state_dir = os.path.dirname(self.vms)
        self.blobs = os.path.join(state_dir, "blobs")
        self.proofs = os.path.join(state_dir, "proofs")

    def file(self, name: str) -> str:
        """The path of one of the directory's files."""
        return os.path.join(self.path, name)

    def exists(self) -> bool:
        """Whether this host has the VM, in any state."""
        return os.path.exists(self.file("spec.json"))

    def made(self) -> bool:
        """Whether it is there to stay: neither failed, which `create` makes anew, nor to be destroyed."""
        return self.exists() and self.read_wanted().state != "destroyed" and self.read_status().state != "failed"

    # ------------------------------------------------------------ orders

    def create(self, spec: VmSpec, seed: bytes) -> None:
        """Write down spec, seed and the order to run, as one step: a VM is there entirely or not at all.

        The same spec again changes nothing. One that failed is made anew. Raises `Failure`: bad-request for another
        spec under the same id or a seed that is not the one announced, disk-full.
        """
        if spec.id != self.id or len(seed) != spec.seed_size:
            raise Failure(
                "bad-request", "%s: seed of %d bytes, announced were %d" % (spec.id, len(seed), spec.seed_size)
            )
        if seed and hashlib.sha256(seed).hexdigest() != spec.seed_sha256:
            raise Failure("bad-request", "%s: the seed's SHA-256 is not the one announced" % spec.id)
        if self.made():
            if self.read_spec() == spec:
                return
            raise Failure("bad-request", "%s is here already and was made from another specification" % self.id)
        if self.exists():
            self._discard()
        beside = os.path.join(self.vms, ".new-%s-%d" % (self.id, os.getpid()))
        try:
            os.makedirs(beside, 0o700)
            with locks.directory_lock(beside):  # as long as it is held, `tidy` of another helper leaves it alone
                if seed:
                    write_whole(os.path.join(beside, "seed.iso"), seed)
                write_whole(os.path.join(beside, "spec.json"), codec.dumps(spec))
                wanted = {"op": "create", "state": "running", "run": 1}
                write_whole(os.path.join(beside, "wanted.json"), codec.dumps(wanted))
                write_whole(
                    os.path.join(beside, "state.json"), codec.dumps({"status": first_status(spec, time.time())})
                )
                os.rename(beside, self.path)
            sync_dir(self.vms)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise Failure("disk-full", "cannot write the VM %s: %s" % (self.id, error)) from error

    def _discard(self) -> None:
        """Destroy a VM that failed or was to be destroyed, here and now, with whatever is left of it."""
        self.want("destroyed", "remade")
        deadline = time.monotonic() + ADOPT_DEADLINE_S
        if self.supervisor_alive():
            with contextlib.suppress(OSError), self.connect() as connection:
                connection.sendall(frames.pack(frames.REQUEST, 1, b'{"verb":"poke"}'))
                while connection.recv(65536) and time.monotonic() < deadline:
                    pass  # the supervisor closes when it is done
        if self.supervisor_alive():
            raise Failure("busy", "%s: the supervisor of its predecessor does not go" % self.id)
        self.end()

    def end(self) -> None:
        """Kill what is left of a VM without a supervisor, and delete it."""
        for process in proc.qemus_in(self.path):
            proc.kill(process)
        self.remove()

    def want(self, state: str, op: str) -> Wanted:
        """Journal an order (one of `ORDERS`) and return the one now in force; the same ``op`` again is no new order.

        "running" is a further run only when the present one is over or was ordered to stop.
        Raises `Failure`: not-found, bad-request, disk-full.
        """
        if state not in ORDERS:
            raise Failure("bad-request", "%r is not one of %s" % (state, ", ".join(ORDERS)))
        try:
            with locks.directory_lock(self.path):
                wanted = self.read_wanted()
                if op and wanted.op == op:
                    return wanted
                if wanted.state == "destroyed":
                    if state == "destroyed":
                        return wanted
                    raise Failure("not-found", "%s is being destroyed" % self.id)
                run = wanted.run
                if state in ("running", "restart"):
                    status = self.read_status()
                    over = wanted.state == "stopped" or (status.run >= run and status.state in ("exited", "failed"))
                    run += 1 if over or state == "restart" else 0
                    state = "running"
                wanted = Wanted(op, state, run)
                self._journal(codec.dumps(wanted._asdict()))
                return wanted
        except FileNotFoundError:
            raise self._missing() from None
        except OSError as error:
            raise Failure("disk-full", "cannot write the order for %s: %s" % (self.id, error)) from error

    def _journal(self, order: bytes) -> None:
        """Write down an order. On a full disk in the place of the last one: else nothing could be destroyed there."""
        path = self.file("wanted.json")
        try:
            write_whole(path, order)
        except OSError as error:
            if not is_full(error):
                raise
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # its block is there already; blanks take the place of what was longer (a torn one counts as none)
                os.pwrite(fd, order.ljust(os.fstat(fd).st_size), 0)
                os.fsync(fd)
            finally:
                os.close(fd)

    def read_wanted(self) -> Wanted:
        """The order in force."""
        value = locks.read_json(self.file("wanted.json")) or {}
        op, state, run = value.get("op"), value.get("state"), value.get("run")
        if isinstance(op, str) and state in ORDERS and isinstance(run, int):
            return Wanted(op, state, run)
        return Wanted("", "running", 1)

    # ------------------------------------------------------------ reading

    def read_spec(self) -> VmSpec:
        """What the VM was made from. Raises `Failure` not-found, or internal when the file is damaged."""
        value = locks.read_json(self.file("spec.json"))
        if value is None and not self.exists():
            raise self._missing()
        try:
            return codec.decode(VmSpec, value)
        except codec.CodecError as error:
            raise Failure("internal", "%s: %s" % (self.file("spec.json"), error)) from error

    def read_state(self) -> Dict[str, Any]:
        """state.json: {"status": VmStatus, "book": the supervisor's book-keeping}; empty when there is none."""
        return locks.read_json(self.file("state.json")) or {}

    def read_status(self) -> VmStatus:
        """The status last written down. A dead supervisor's last word may be old: `adopt` first. A VM whose files
        cannot be read (a bad disk, another version) has failed: it must not keep others from being seen. Raises
        `Failure` not-found.
        """
        try:
            return codec.decode(VmStatus, self.read_state().get("status"))
        except codec.CodecError:
            pass
        try:
            return first_status(self.read_spec(), 0.0)
        except Failure as failure:
            if failure.cause == "not-found":
                raise
            session, name = self.id.split(".")[:2] if "." in self.id else ("", self.id)
            remedy = "destroy the VM, or use the xenoshell that made it"
            return VmStatus(self.id, session, "", name, "failed", failure.cause, failure.message, remedy)

    def _missing(self) -> Failure:
        return Failure("not-found", "no VM %s on this host" % self.id)

    # ------------------------------------------------------------ the supervisor

    def supervisor_alive(self) -> bool:
        """Whether a supervisor holds this VM."""
        return locks.locked(self.file("lock"))

    def connect(self, timeout_s: float = 10.0) -> socket.socket:
        """A connection to the supervisor (frames). Raises `OSError` when none answers."""
        return connect_unix(self.path, "sup.sock", timeout_s)

    def remove(self) -> None:
        """Delete the directory; it loses its name first, so that a half-removed VM never looks alive."""
        gone = os.path.join(self.vms, ".gone-%s-%d-%d" % (self.id, os.getpid(), time.monotonic_ns()))
        try:
            os.rename(self.path, gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)


def connect_unix(directory: str, name: str, timeout_s: float) -> socket.socket:
    """Connect to the UNIX socket ``name`` in ``directory``, however long its path (sun_path is 108 bytes). Raises
    `OSError`.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # a blocking connect waits its turn when many connect at once; with Python's own timeout it would be refused
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout_s), 100000))
        connection.connect("/proc/self/fd/%d/%s" % (fd, name))
        connection.settimeout(timeout_s)
    except OSError:
        connection.close()
        raise
    finally:
        os.close(fd)
    return connection


def list_vms(vms: str) -> List[str]:
    """The ids of all VMs under ``vms``, sorted."""
    try:
        names = os.listdir(vms)
    except FileNotFoundError:
        return []
    return sorted(n for n in names if VM_ID.match(n) and os.path.exists(os.path.join(vms, n, "spec.json")))


def tidy(vms: str) -> None:
    """Remove what a crash left half made or half removed under ``vms``."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(vms):
            if not name.startswith((".new-", ".gone-")):
                continue
            path = os.path.join(vms, name)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except BlockingIOError:
                pass  # another helper is making it right now
            finally:
                os.close(fd)


def adopt(vmdir: VmDir, library: str, blobs: Optional[str] = None) -> None:
    """See to it that a supervisor holds this VM: start guardian and supervisor from ``library`` unless one lives.

    Returns when the supervisor answers, or when the VM is gone because it was to be destroyed. ``blobs`` must be the
    directory beside ``vms`` (the supervisor finds it from the VM's path). Raises `Failure` not-found, internal.
    """
    if blobs is not None and os.path.abspath(blobs) != vmdir.blobs:
        raise Failure("internal", "blobs are in %s, the supervisor looks in %s" % (blobs, vmdir.blobs))
    if not vmdir.exists():
        raise vmdir._missing()
    tidy(vmdir.vms)
    deadline = time.monotonic() + ADOPT_DEADLINE_S
    if not vmdir.supervisor_alive():
        try:
            vmdir.read_spec()
            _start(vmdir, library)
        except Failure as failure:
            # nobody can supervise it (a damaged file, a full disk): what is to be destroyed needs no supervisor
            if failure.cause != "internal" or vmdir.read_wanted().state != "destroyed" or vmdir.supervisor_alive():
                raise
            vmdir.end()
            return
    pause = 0.005
    while True:
        try:
            vmdir.connect(max(0.1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if not os.path.exists(vmdir.path):
                return
            if time.monotonic() > deadline:
                text = "the supervisor of %s does not answer (%s): %s" % (vmdir.id, error, _last_line(vmdir))
                raise Failure("internal", text) from error
        time.sleep(pause)  # a new process binds its socket; nothing announces that
        pause = min(0.1, pause * 2)


def _start(vmdir: VmDir, library: str) -> None:
    try:
        log = os.open(vmdir.file("supervisor.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        starter = subprocess.Popen(
            [sys.executable or "python3", "-I", "-S", library, "supervise", vmdir.path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
        if starter.wait(ADOPT_DEADLINE_S):  # it forks at once: the guardian is nobody's child
            raise Failure("internal", "the supervisor of %s did not start: %s" % (vmdir.id, _last_line(vmdir)))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure("internal", "the supervisor of %s did not start: %s" % (vmdir.id, error)) from error
    finally:
        os.close(log)


def _last_line(vmdir: VmDir) -> str:
    try:
        with open(vmdir.file("supervisor.log"), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "its log is empty"
