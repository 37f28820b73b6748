"""What is known of KVM on this host: its device, and the proofs that `accel` made. Part of a helper's first answer."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from typing import List, Optional

from xenoshell.host import locks, proc
from xenoshell.wire import codec
from xenoshell.wire.values import Proof

DEVICE = "/dev/kvm"
#: A kernel that did not come up in time is tried again after this many seconds: its host may only have been busy.
RETRY_S = 86400.0


def device() -> str:
    """The state of /dev/kvm itself: absent, denied or there."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        return "absent" if error.errno in (6, 19) else "denied"  # ENXIO, ENODEV: a node without a driver
    return "there"


def kvm_state(proofs: str, arch: str = "x86_64") -> str:
    """What is known of KVM on this host: absent, denied, unproven, usable (for some kernel) or broken (for all that
    were tried).
    """
    state = device()
    if state != "there":
        return state
    known = held(proofs, arch)
    if not known:
        return "unproven"
    return "usable" if any(proof.works for proof in known) else "broken"


def prefix(arch: str) -> str:
    """Of proof names: what changes with the boot and with QEMU itself (its file, which is quicker to look at than its
    version).
    """
    path = os.path.realpath(shutil.which("qemu-system-" + arch) or "")
    try:
        info = os.stat(path)
        identity = "%s %d %d" % (path, info.st_size, info.st_mtime_ns)
    except OSError:
        identity = ""
    return hashlib.sha256(("%s %s" % (proc.boot_id(), identity)).encode()).hexdigest()[:16] + "-"


def read(path: str) -> Optional[Proof]:
    """The proof in a file; `None` without one that can be read, and for a negative one that is old."""
    try:
        proof = codec.decode(Proof, locks.read_json(path))
        old = not proof.works and time.time() - os.stat(path).st_mtime > RETRY_S
    except (codec.CodecError, FileNotFoundError):
        return None
    return None if old else proof


def held(proofs: str, arch: str) -> List[Proof]:
    """Every proof that holds for this boot and this QEMU."""
    start = prefix(arch)
    try:
        names = [n for n in os.listdir(proofs) if n.startswith(start) and n.endswith(".json")]
    except OSError:
        return []
    return [proof for proof in (read(os.path.join(proofs, name)) for name in sorted(names)) if proof is not None]
