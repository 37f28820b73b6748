"""Whether a host takes a VM at all: the one place that can say no, and why. Policies to come belong here."""

from __future__ import annotations

from xenoshell.host import qemu, ready
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import HostFacts, VmSpec

#: What QEMU itself needs beside the guest's memory, and what a VM's disk and logs need to begin with (MiB).
QEMU_MIB = 64
DISK_MIB = 64


def admit(spec: VmSpec, facts: HostFacts) -> None:
    """Return if this host can run ``spec`` now. Raises `Failure`: bad-request, no-hypervisor, no-acceleration,
    not-found, no-memory or disk-full.
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
    if not facts.qemu:
        raise Failure("no-hypervisor", "there is no %s on this host" % qemu.binary(spec.arch))
    if spec.disk_bytes and not facts.qemu_img:
        raise Failure("no-hypervisor", "there is no qemu-img on this host")
    if spec.accel == "kvm" and facts.kvm in ("absent", "denied", "broken"):
        raise Failure("no-acceleration", "KVM is %s on this host" % facts.kvm)
    for digest in (spec.disk, spec.kernel, spec.initrd):
        if digest and digest not in facts.blobs:
            raise Failure("not-found", "blob %s is not on this host" % digest)
    if spec.memory_mib + QEMU_MIB > facts.memory_free_mib:
        text = "%d MiB of memory are free, the VM needs %d" % (facts.memory_free_mib, spec.memory_mib + QEMU_MIB)
        raise Failure("no-memory", text)
    needed = DISK_MIB + (spec.seed_size >> 20)
    if needed > facts.disk_free_mib:
        raise Failure(
            "disk-full", "%d MiB of disk are free, the VM needs %d to begin with" % (facts.disk_free_mib, needed)
        )
