"""What a run needs before QEMU can start: its blobs, an accelerator that works, a disk. Done in a forked child."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import Any, Dict

from xenoshell.host import accel, qemu, ready
from xenoshell.host.statedir import disk_full, is_full
from xenoshell.host.vmdir import VmDir
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import VmSpec

IMG_DEADLINE_S = 60.0


def prepare(spec: VmSpec, vmdir: VmDir) -> Dict[str, Any]:
    """Make ready for a run: {"accel": kvm | tcg}, or the failure as {"cause", "message", "remedy"}."""
    try:
        wrong = ready.wrong(spec)
        if wrong or spec.arch not in qemu.MACHINES:
            raise Failure("bad-request", wrong or "architecture %r is not known here" % spec.arch)
        if shutil.which(qemu.binary(spec.arch)) is None:
            raise Failure("no-hypervisor", "there is no %s on this host" % qemu.binary(spec.arch))
        for digest in (spec.disk, spec.kernel, spec.initrd):
            if digest and not os.path.exists(os.path.join(vmdir.blobs, digest)):
                raise Failure("not-found", "blob %s is not on this host" % digest)
        chosen = accel.choose(spec, vmdir.proofs, vmdir.blobs)
        if spec.disk_bytes:
            make_disk(spec, vmdir)
        return {"accel": chosen}
    except Failure as failure:
        return {"cause": failure.cause, "message": failure.message, "remedy": failure.remedy}
    except OSError as error:
        if is_full(error):
            return {"cause": "disk-full", "message": disk_full(vmdir.path, 0).message}
        return {"cause": "internal", "message": "cannot prepare the run: %s" % error}


def make_disk(spec: VmSpec, vmdir: VmDir) -> None:
    """Make the VM's disk, unless it has one: qcow2 upon the template's blob, or empty. Raises `Failure`."""
    path = vmdir.file("disk.qcow2")
    if os.path.exists(path):
        return
    if shutil.which("qemu-img") is None:
        raise Failure("no-hypervisor", "there is no qemu-img on this host")
    beside = "%s.%d" % (path, os.getpid())
    command = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if spec.disk:
        command += ["-b", os.path.join(vmdir.blobs, spec.disk), "-F", "raw"]
    try:
        done = subprocess.run(
            [*command, beside, str(spec.disk_bytes)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=IMG_DEADLINE_S,
            check=False,
        )
        if done.returncode:
            text = done.stderr.decode("utf-8", "replace").strip() or "qemu-img failed"
            raise Failure("disk-full" if "No space left" in text else "qemu-failed", text)
        os.rename(beside, path)
    except subprocess.TimeoutExpired:
        raise Failure("timeout", "qemu-img took over %d s" % IMG_DEADLINE_S) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
