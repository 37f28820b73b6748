"""A host's sanity check from its own side: each line fine, limited or failed, with what to do about it."""

from __future__ import annotations

import os
import subprocess
from typing import List, Optional, Tuple

from xenoshell.host import accel, proofs, sshd
from xenoshell.host.unpack import find_program
from xenoshell.wire.remedies import REMEDIES
from xenoshell.wire.values import CheckLine, HostFacts

_ASK_S = 20.0
_LOW_MEMORY_MIB, _NO_MEMORY_MIB = 1024, 256
_LOW_DISK_MIB, _NO_DISK_MIB = 4096, 512
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


def check(facts: HostFacts, state_dir: str, kernel: Optional[Tuple[str, str]]) -> List[CheckLine]:
    """Every line, in the order in which a person wants to read them. Starts QEMU; may take some seconds.

    ``kernel``: path and digest of the kernel to prove KVM with; None: the host's own or one that it holds.
    """
    emulator = find_program("qemu-system-" + facts.arch)
    settings = sshd.settings(sshd.listener())
    return [
        CheckLine("python", "fine", "Python " + facts.python),
        hypervisor(facts),
        acceleration(facts, state_dir, kernel),
        cpu(facts),
        memory(facts),
        disk(facts, file_system(state_dir)),
        networking(emulator),
        unpacking(facts),
        logout(facts.user),
        max_sessions(settings),
        max_startups(settings),
        forwarding(settings, facts),
    ]


def hypervisor(facts: HostFacts) -> CheckLine:
    """QEMU and the program that makes disks for it."""
    if not facts.qemu:
        return CheckLine("hypervisor", "failed", "no qemu-system-%s" % facts.arch, REMEDIES["no-hypervisor"])
    if not facts.qemu_img:
        text = "QEMU %s, but no qemu-img: VMs without a disk only" % facts.qemu
        return CheckLine("hypervisor", "failed", text, REMEDIES["no-hypervisor"])
    return CheckLine("hypervisor", "fine", "QEMU " + facts.qemu)


def acceleration(facts: HostFacts, state_dir: str, kernel: Optional[Tuple[str, str]]) -> CheckLine:
    """Whether KVM runs a kernel here, tried and not assumed."""
    name = "acceleration"
    slow = "; guests run under emulation (TCG), 5 to 20 times slower"
    state = proofs.device()
    if state == "absent":
        return CheckLine(
            name, "limited", "no /dev/kvm" + slow, "enable virtualisation in the firmware or nested in the cloud"
        )
    if state == "denied":
        text = "/dev/kvm may not be opened by %s" % facts.user
        return CheckLine(name, "limited", text + slow, "add %s to the group of /dev/kvm (usually `kvm`)" % facts.user)
    if not facts.qemu:
        return CheckLine(name, "limited", "/dev/kvm is there, and no QEMU to prove it with")
    kernel = kernel or _some_kernel(state_dir)
    if kernel is None:
        return CheckLine(name, "limited", "/dev/kvm opens, but there is no kernel here to prove it with", "deploy once")
    proof = accel.prove(kernel[0], kernel[1], os.path.join(state_dir, "proofs"), facts.arch)
    if proof.works:
        return CheckLine(name, "fine", proof.message)
    return CheckLine(name, "limited", proof.message + slow, "--accel auto uses TCG here by itself")


def _some_kernel(state_dir: str) -> Optional[Tuple[str, str]]:
    own = accel.own_kernel()
    if own is not None:
        return own, "own " + os.uname().release
    blobs = os.path.join(state_dir, "blobs")
    for name in sorted(os.listdir(blobs)):
        if accel.is_linux(os.path.join(blobs, name)):
            return os.path.join(blobs, name), name
    return None


def cpu(facts: HostFacts) -> CheckLine:
    """Processors, and how busy they are."""
    text = "%d CPUs, load %.1f" % (facts.cpus, facts.load1)
    if facts.load1 > 2 * facts.cpus:
        return CheckLine("cpu", "limited", text, "the host is busy: guests will be slow")
    return CheckLine("cpu", "fine", text)


def memory(facts: HostFacts) -> CheckLine:
    """Memory that guests could have."""
    text = "%s of %s available" % (_size(facts.memory_free_mib), _size(facts.memory_mib))
    level = _level(facts.memory_free_mib, _NO_MEMORY_MIB, _LOW_MEMORY_MIB)
    return CheckLine(
        "memory", level, text, "" if level == "fine" else "free memory on the host, or place small VMs only"
    )


def disk(facts: HostFacts, kind: str) -> CheckLine:
    """Room for images and disks."""
    text = "%s free in %s" % (_size(facts.disk_free_mib), facts.state_dir)
    level = _level(facts.disk_free_mib, _NO_DISK_MIB, _LOW_DISK_MIB)
    if level != "fine":
        return CheckLine("disk", level, text, REMEDIES["disk-full"])
    if kind in _MEMORY_FILE_SYSTEMS:
        text += " (%s: it takes memory and is gone after a reboot)" % kind
        return CheckLine("disk", "limited", text, "set state_dir for this host to a directory on a disk")
    return CheckLine("disk", "fine", text)


def file_system(path: str) -> str:
    """The type of the file system that ``path`` is on, "" when that cannot be told."""
    best, kind = "", ""
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split()
            mount = fields[1].replace("\\040", " ")
            if len(mount) >= len(best) and (path + "/").startswith(mount.rstrip("/") + "/"):
                best, kind = mount, fields[2]
    return kind


def _size(mib: int) -> str:
    return "%d MiB" % mib if mib < 1024 else "%.1f GiB" % (mib / 1024)


def _level(free: int, none: int, low: int) -> str:
    return "failed" if free < none else "limited" if free < low else "fine"


def networking(emulator: Optional[str]) -> CheckLine:
    """QEMU's user networking, which needs no privileges; some builds are without."""
    name = "user networking"
    if emulator is None:
        return CheckLine(name, "failed", "no QEMU", REMEDIES["no-hypervisor"])
    try:
        done = subprocess.run(
            [emulator, "-machine", "none", "-netdev", "help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return CheckLine(name, "failed", "QEMU could not be asked: %s" % error, REMEDIES["qemu-failed"])
    if b"user" in done.stdout.split():
        return CheckLine(name, "fine", "built into QEMU")
    return CheckLine(
        name, "failed", "this QEMU is built without it", 'install a QEMU with slirp, or use mode = "bridge"'
    )


def unpacking(facts: HostFacts) -> CheckLine:
    """What transfers may be packed with."""
    if "zstd" in facts.codecs:
        return CheckLine("unpacking", "fine", ", ".join(facts.codecs))
    text = "no libzstd.so.1 and no zstd program: images travel as zlib, about a quarter larger"
    return CheckLine("unpacking", "limited", text, "install zstd on the host")


def logout(
    user: str, configuration: str = "/etc/systemd/logind.conf", linger: str = "/var/lib/systemd/linger"
) -> CheckLine:
    """Whether VMs outlive the SSH connection: systemd can be told to kill what a user leaves behind."""
    name = "after logout"
    kills = False
    for path in [configuration, *_drop_ins(configuration + ".d")]:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.strip().partition("=")
            if key.strip() == "KillUserProcesses":
                kills = value.strip().lower() in ("yes", "true", "1", "on")
    if kills and user != "root" and not os.path.exists(os.path.join(linger, user)):
        text = "systemd-logind kills what %s leaves running (KillUserProcesses=yes): VMs die with the connection" % user
        return CheckLine(name, "failed", text, "as root: loginctl enable-linger %s" % user)
    return CheckLine(name, "fine", "VMs go on")


def _drop_ins(directory: str) -> List[str]:
    try:
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(".conf")]
    except OSError:
        return []


def max_sessions(settings: sshd.Settings) -> CheckLine:
    """How many sessions sshd allows on a connection. We need one; channels over our socket do not count."""
    name = "sshd MaxSessions"
    value = settings.values.get("maxsessions")
    if value is None:
        return _unread(name)
    text = "%s (%s)" % (value, settings.source)
    if value == "0":
        return CheckLine(name, "failed", text, "set MaxSessions to 1 or more in sshd_config")
    return CheckLine(name, "fine", text)


def max_startups(settings: sshd.Settings) -> CheckLine:
    """How many connections may be logging in at a time, before sshd turns some away."""
    name = "sshd MaxStartups"
    value = settings.values.get("maxstartups")
    if value is None:
        return _unread(name)
    text = "%s (%s)" % (value, settings.source)
    start = value.partition(":")[0]
    if start.isdigit() and int(start) < 4:
        return CheckLine(name, "limited", text, "raise MaxStartups in sshd_config, or connections may be turned away")
    return CheckLine(name, "fine", text)


def forwarding(settings: sshd.Settings, facts: HostFacts) -> CheckLine:
    """Whether further channels can come in over the helper's socket: transfers need them on long links."""
    name = "further channels"
    if not settings.values:
        return _unread(name)
    if settings.values["disableforwarding"] == "yes" or settings.values["allowstreamlocalforwarding"] in (
        "no",
        "remote",
    ):
        text = "sshd forwards no UNIX sockets: one channel carries everything, slow on long links"
        return CheckLine(name, "limited", text, "AllowStreamLocalForwarding yes in sshd_config")
    if not facts.channel:
        return CheckLine(name, "limited", "no private directory for a socket", "make /tmp or $XDG_RUNTIME_DIR writable")
    return CheckLine(name, "fine", "over " + os.path.dirname(os.path.dirname(facts.channel)))


def _unread(name: str) -> CheckLine:
    return CheckLine(name, "limited", "sshd's configuration could not be read", "ask the host's owner for it")
