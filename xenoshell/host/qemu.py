"""QEMU's command line for a VM: a function of values. Nothing in it assumes what runs in the guest."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

from xenoshell.host import serial_line
from xenoshell.wire.values import Forward, VmSpec

#: The machine of each architecture that is known; `-M graphics=off` makes SeaBIOS speak on the serial line.
MACHINES = {"x86_64": "pc,graphics=off"}


class Files(NamedTuple):
    """Paths that QEMU opens, relative to the VM's directory or absolute; and the socket for its monitor."""

    kernel: Optional[str]
    initrd: Optional[str]
    disk: Optional[str]  # qcow2
    seed: Optional[str]
    qmp_fd: int


def binary(arch: str) -> str:
    """The name of the QEMU that runs ``arch``."""
    return "qemu-system-" + arch


def arguments(spec: VmSpec, forwards: Tuple[Forward, ...], accel: str, files: Files, bridge: str = "br0") -> List[str]:
    """The whole command line. ``forwards`` have their host ports; ``accel`` is kvm or tcg. The VM starts paused (-S)
    so that whoever owns it hears its first byte, and pauses when the guest goes down (-no-shutdown) so that nobody
    misses why.
    """
    out = [binary(spec.arch), "-name", spec.id, "-M", MACHINES[spec.arch]]
    out += ["-nodefaults", "-no-user-config", "-display", "none", "-S", "-no-shutdown"]
    # a bridge needs QEMU's setuid helper, which the stricter words would forbid
    helper = (
        "elevateprivileges=children,spawn=allow" if spec.network == "bridge" else "elevateprivileges=deny,spawn=deny"
    )
    out += ["-sandbox", "on,obsolete=deny,resourcecontrol=deny," + helper]
    out += ["-accel", "kvm" if accel == "kvm" else "tcg,thread=multi", "-cpu", "host" if accel == "kvm" else "max"]
    out += ["-smp", str(spec.vcpus), "-m", "%dM" % spec.memory_mib]
    out += ["-chardev", "socket,id=qmp,fd=%d,server=on,wait=off" % files.qmp_fd, "-mon", "chardev=qmp,mode=control"]
    out += ["-chardev", "pipe,id=con,path=" + serial_line.NAME, "-serial", "chardev:con"]
    out += [
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
        "-device",
        "pvpanic",
    ]
    if files.kernel:
        out += ["-kernel", files.kernel]
        if files.initrd:
            out += ["-initrd", files.initrd]
        if spec.cmdline:
            out += ["-append", spec.cmdline]
    if files.disk:
        node = "driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename=" + _escaped(files.disk)
        out += ["-blockdev", node, "-device", "virtio-blk-pci,drive=disk,bootindex=1,werror=enospc,rerror=report"]
    if files.seed:
        node = "driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename=" + _escaped(files.seed)
        out += ["-blockdev", node, "-device", "virtio-blk-pci,drive=seed"]
    if spec.network == "bridge":
        network = "bridge,id=net,br=" + bridge
    else:
        rules = ["hostfwd=%s:%s:%d-:%d" % (f.proto, f.bind, f.host, f.guest) for f in forwards]
        network = ",".join(["user,id=net", *rules])
    out += ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=,mac=" + spec.mac]
    return out


def _escaped(path: str) -> str:
    return path.replace(",", ",,")
