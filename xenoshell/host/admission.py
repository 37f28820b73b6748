"""Whether a host takes a VM at all: the one place that can say no, and why. Policies to come belong here.

Memory is promised: a VM that runs may take all of its memory at any time, so what is free counts less what the VMs
here have not touched yet; else the kernel would kill one of them later. Disk is not: a VM's disk is sparse, upon a
template that all share, and most of it is never written. It is refused only where there is no room to make it at all;
a guest that meets a full disk later is paused until there is room.
"""

from __future__ import annotations

from typing import FrozenSet, Iterable, NamedTuple, Tuple

from xenoshell.host import qemu, ready
from xenoshell.host.vmdir import Wanted
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import VmSpec, VmStatus

#: What QEMU itself needs beside the guest's memory (MiB).
QEMU_MIB = 64
#: What the VM writes whatever its guest does, beside its seed: an empty qcow2, console and other logs (MiB).
DISK_MIB = 8


class Room(NamedTuple):
    """What a host has for one more VM; memory and disk in MiB."""

    memory_free: int
    memory_promised: int  # of that, to VMs that are here already
    disk_free: int
    qemu: bool
    qemu_img: bool
    kvm: str  # absent | denied | there
    blobs: FrozenSet[str]  # those of the spec that are held


def blobs_of(spec: VmSpec) -> Tuple[str, ...]:
    """The digests of the blobs that a VM is made from."""
    return tuple(digest for digest in (spec.disk, spec.kernel, spec.initrd) if digest is not None)


def runs(status: VmStatus, wanted: Wanted) -> bool:
    """Whether a VM runs or is about to: the journal says so, or what is written down about it."""
    if status.state in ("exited", "failed"):
        return wanted.state == "running" and wanted.run > status.run
    return wanted.state != "stopped" or status.state != "creating"


def promised(running: Iterable[VmStatus]) -> int:
    """How much memory (MiB) VMs that run may still take."""
    return sum(max(0, status.memory_mib + QEMU_MIB - status.usage.memory_mib) for status in running)


def admit(spec: VmSpec, room: Room, *, made: bool = False) -> None:
    """Return if this host can run ``spec`` now; ``made``: the VM is there and is to be started.

    Raises `Failure`: bad-request, no-hypervisor, no-acceleration, not-found, no-memory or disk-full.
    """
    wrong = ready.wrong(spec)
    if spec.network == "bridge" and spec.forwards:
        wrong = wrong or "network: a bridged guest is reached directly; leave forwards out"
    if spec.arch not in qemu.MACHINES:
        wrong = wrong or "arch: %r is not one of %s" % (spec.arch, ", ".join(sorted(qemu.MACHINES)))
    if spec.disk and not spec.disk_bytes:
        wrong = wrong or "disk_bytes: a disk needs a size"
    if wrong:
        raise Failure("bad-request", wrong)
    if not room.qemu:
        raise Failure("no-hypervisor", "there is no %s on this host" % qemu.binary(spec.arch))
    if spec.disk_bytes and not room.qemu_img and not made:
        raise Failure("no-hypervisor", "there is no qemu-img on this host")
    if spec.accel == "kvm" and room.kvm != "there":
        raise Failure("no-acceleration", "KVM is %s on this host" % room.kvm)
    for digest in blobs_of(spec):
        if digest not in room.blobs:
            raise Failure("not-found", "blob %s is not on this host" % digest, "transfer it first")
    needed = spec.memory_mib + QEMU_MIB
    if needed > room.memory_free - room.memory_promised:
        text = "%d MiB of memory are free" % room.memory_free
        if room.memory_promised:
            text += ", %d of them promised to VMs that run here" % room.memory_promised
        raise Failure("no-memory", "%s; the VM needs %d" % (text, needed))
    needed = DISK_MIB + (0 if made else -(-spec.seed_size >> 20))
    if needed > room.disk_free:
        text = "%d MiB of disk are free; the VM needs %d to begin with" % (room.disk_free, needed)
        raise Failure("disk-full", text)
