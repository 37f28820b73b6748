"""Acceleration is proven, not assumed: /dev/kvm can open on a machine where a stock guest never runs an instruction.

A proof boots the kernel in question with a one-file initramfs under KVM, against a short deadline, once for each QEMU,
kernel and boot of the host.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import select
import signal
import subprocess
import threading
import time
from typing import Callable, List, Optional, Tuple

from xenoshell.host import probe_image, qemu
from xenoshell.host.proofs import DEVICE, device, held, prefix, read
from xenoshell.host.statedir import write_whole
from xenoshell.wire import codec
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import DIGEST, Proof, VmSpec

DEADLINE_S = 5.0


def prove(kernel: str, digest: str, proofs: str, arch: str = "x86_64", deadline_s: float = DEADLINE_S) -> Proof:
    """Whether KVM runs the kernel file ``kernel`` (SHA-256 or other name: ``digest``). Takes up to ``deadline_s``
    seconds the first time; afterwards, until QEMU or the boot changes, the proof in directory ``proofs`` answers.
    """
    path = os.path.join(proofs, prefix(arch) + hashlib.sha256(digest.encode()).hexdigest()[:16] + ".json")
    known = read(path)
    if known is not None:
        return known
    state = device()
    if state != "there":
        return Proof(False, 0.0, "%s is %s" % (DEVICE, state), digest)
    with _turn(path + ".lock"):
        known = read(path)
        if known is None:
            known = boots(kernel, digest, proofs, arch, deadline_s)
            write_whole(path, codec.dumps(known))
    return known


def choose(spec: VmSpec, proofs: str, blobs: str) -> str:
    """kvm or tcg for this VM. ``auto`` takes KVM where it is proven for the VM's kernel; a VM that boots no Linux
    kernel of ours to see (a disk, another system) takes it where it is proven for any. Raises `Failure`
    no-acceleration.
    """
    if spec.accel == "tcg":
        return "tcg"
    state = device()
    if state != "there":
        if spec.accel == "kvm":
            raise Failure("no-acceleration", "%s is %s on this host" % (DEVICE, state))
        return "tcg"
    proof = None
    for path, digest in _candidates(spec, proofs, blobs):
        proof = prove(path, digest, proofs, spec.arch)
        if proof.works:
            return "kvm"
    if spec.accel == "kvm" and proof is not None:
        raise Failure("no-acceleration", proof.message)
    # with no kernel to prove it by, one who asks for KVM gets it, and one who does not gets what surely works
    return "kvm" if spec.accel == "kvm" else "tcg"


def is_linux(path: str) -> bool:
    """Whether a file is a Linux kernel for x86 (Documentation/arch/x86/boot.rst): others use that format, with other
    version texts.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(0x8200)
    except OSError:
        return False
    if head[0x202:0x206] != b"HdrS":
        return False
    at = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    return re.match(rb"\d+\.\d+", head[at : at + 16]) is not None


def _candidates(spec: VmSpec, proofs: str, blobs: str) -> List[Tuple[str, str]]:
    """The kernels, as (path, digest), that may prove KVM for ``spec``: its own if it is Linux, else up to two known
    ones.
    """
    if spec.boot == "kernel" and spec.kernel and is_linux(os.path.join(blobs, spec.kernel)):
        return [(os.path.join(blobs, spec.kernel), spec.kernel)]
    known = [p for p in held(proofs, spec.arch) if p.works and DIGEST.match(p.kernel)]
    if known:
        return [(os.path.join(blobs, known[0].kernel), known[0].kernel)]
    own = own_kernel()
    found = [(own, "own " + os.uname().release)] if own else []
    try:
        names = sorted(name for name in os.listdir(blobs) if DIGEST.match(name))
    except OSError:
        names = []
    found += [(os.path.join(blobs, name), name) for name in names if is_linux(os.path.join(blobs, name))]
    return found[:2]


def own_kernel() -> Optional[str]:
    """The host's own kernel file, if it may be read."""
    path = "/boot/vmlinuz-" + os.uname().release
    return path if is_linux(path) else None


class _turn:
    """One proof of a kernel at a time; whoever waits finds it done."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        import fcntl

        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.unlink(self._path)
        os.close(self._fd)


def _ending_with(parent: int) -> Callable[[], None]:
    """What makes a child of ours end with us, killed or not: a kernel that never ends under KVM needs a whole CPU."""
    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG, linux/prctl.h
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def boots(kernel: str, digest: str, directory: str, arch: str, deadline_s: float, *, accel: str = "kvm") -> Proof:
    """Boot ``kernel`` with the one-file initramfs, in ``directory``, until its first process tells that it is there."""
    initramfs = os.path.join(directory, "probe.%d-%d.cpio" % (os.getpid(), threading.get_ident()))
    write_whole(initramfs, probe_image.initramfs())
    try:
        return _boots(kernel, digest, initramfs, arch, deadline_s, accel)
    finally:
        os.unlink(initramfs)


def _boots(kernel: str, digest: str, initramfs: str, arch: str, deadline_s: float, accel: str) -> Proof:  # noqa: PLR0917
    command = [
        qemu.binary(arch),
        "-M",
        "pc",
        "-accel",
        accel,
        "-cpu",
        "host" if accel == "kvm" else "max",
        "-m",
        "256M",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-serial",
        "stdio",
        "-kernel",
        kernel,
        "-initrd",
        initramfs,
        "-append",
        "console=ttyS0 quiet panic=-1 rdinit=/init",
    ]
    began = time.monotonic()
    heard = b""
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=os.path.dirname(initramfs),
            start_new_session=True,
            preexec_fn=_ending_with(os.getpid()),  # noqa: PLW1509 - it only makes two system calls
        )
    except OSError as error:
        return Proof(False, 0.0, "cannot start QEMU: %s" % error, digest)
    ended = False
    try:
        assert child.stdout is not None
        while probe_image.MARKER.strip() not in heard and not ended:
            left = began + deadline_s - time.monotonic()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                break
            data = os.read(child.stdout.fileno(), 65536)
            heard = (heard + data)[-65536:]
            ended = not data
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    seconds = round(time.monotonic() - began, 2)
    if probe_image.MARKER.strip() in heard:
        return Proof(True, seconds, "KVM ran this kernel to its first process in %.1f s" % seconds, digest)
    lines = heard.decode("utf-8", "replace").strip().splitlines()
    if ended:
        return Proof(False, seconds, "QEMU ended: %s" % (lines[-1] if lines else "without a word"), digest)
    said = "it got as far as: %s" % lines[-1] if lines else "it printed nothing"
    return Proof(
        False, seconds, "KVM did not run this kernel to its first process within %g s; %s" % (deadline_s, said), digest
    )
