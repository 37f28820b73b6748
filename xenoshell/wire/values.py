"""The values that cross the wire: what a host is told and what it answers.

Sizes are bytes unless the name says otherwise (``_mib``), times are seconds (``_s``), wall clock is Unix time.
Python 3.9 reads this file, hence ``Optional`` and ``Tuple``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional, Tuple

#: 4 KiB blocks are the unit of sameness, 256 of them (1 MiB) a node of the digest tree and, packed, a segment.
BLOCK = 4096
BLOCKS_PER_NODE = 256
#: 16 TiB: what common file systems allow one file.
MAX_BLOB = 1 << 44

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
#: Ids become directory names on hosts: nothing else may pass.
VM_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}(\.[a-z0-9][a-z0-9-]{0,62}){0,2}\Z")

CODECS = ("zstd", "zlib")


def _digest(value: str, what: str) -> None:
    if not DIGEST.match(value):
        raise ValueError("%s: expected 64 hexadecimal digits, found %r" % (what, value[:80]))


# ---------------------------------------------------------------- images


@dataclass(frozen=True)
class Segment:
    """One packed unit of transfer: SHA-256 and length of the packed bytes, and of the bytes they unpack to."""

    sha256: str
    packed: int
    raw_sha256: str
    raw: int

    def __post_init__(self) -> None:
        _digest(self.sha256, "segment")
        _digest(self.raw_sha256, "segment (raw)")
        if not (0 < self.packed <= 2 << 20 and 0 < self.raw <= BLOCK * BLOCKS_PER_NODE and self.raw % BLOCK == 0):
            raise ValueError("segment: lengths out of range")


@dataclass(frozen=True)
class Recipe:
    """How to build one blob: runs of blocks, in order of their destination; what no run covers is zeros.

    ``runs`` holds (destination block, count, source, source block). Source 0 is the stream of literal blocks that the
    segments carry, one after the other; source n >= 1 is ``held[n - 1]``, a blob that the host has already.
    ``size`` is the blob's length in bytes; its last block is padded with zeros for hashing and packing.
    """

    blob: str
    size: int
    codec: str
    held: Tuple[str, ...]
    runs: Tuple[Tuple[int, int, int, int], ...]
    segments: Tuple[Segment, ...]

    def __post_init__(self) -> None:
        _digest(self.blob, "blob")
        for digest in self.held:
            _digest(digest, "held")
        if self.codec not in CODECS:
            raise ValueError("codec: %r is not one of %s" % (self.codec, ", ".join(CODECS)))
        if not 0 <= self.size <= MAX_BLOB:
            raise ValueError("size: %d is not from 0 to %d" % (self.size, MAX_BLOB))
        blocks = -(-self.size // BLOCK)
        literals = sum(s.raw for s in self.segments) // BLOCK
        end = 0
        for destination, count, source, first in self.runs:
            if count < 1 or destination < end or destination + count > blocks:
                raise ValueError("runs: blocks %d+%d are out of order or beyond the blob" % (destination, count))
            if not 0 <= source <= len(self.held) or first < 0 or (source == 0 and first + count > literals):
                raise ValueError("runs: no such source blocks: %d of source %d" % (first, source))
            end = destination + count


@dataclass(frozen=True)
class BlobState:
    """A host's answer to a recipe: held already, or the segments that are still missing."""

    held: bool
    transfer: int  # the stream id to put into SEGMENT frames; unique within this helper
    missing: Tuple[int, ...]


@dataclass(frozen=True)
class BlobInfo:
    """A blob that a host holds: its size and the bytes that it really occupies."""

    digest: str
    size: int
    used: int


# ---------------------------------------------------------------- VMs


@dataclass(frozen=True)
class Forward:
    """A port of the guest, reachable on the host. ``host`` 0 asks for a free port. ``bind`` is an IPv4 address."""

    guest: int
    host: int = 0
    proto: str = "tcp"
    bind: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if not (1 <= self.guest <= 65535 and 0 <= self.host <= 65535):
            raise ValueError("forward: ports are 1 to 65535")
        if self.proto not in ("tcp", "udp"):
            raise ValueError("forward: proto is tcp or udp")
        if not re.match(r"\d{1,3}(\.\d{1,3}){3}\Z", self.bind):
            raise ValueError("forward: bind is an IPv4 address")


@dataclass(frozen=True)
class Ready:
    """When a guest counts as ready: a console line, an accepted TCP connection, an HTTP answer below 400, at once."""

    when: str  # console | tcp | http | none
    port: int = 0
    path: str = "/"
    match: str = "login:"
    timeout_s: float = 120.0


@dataclass(frozen=True)
class VmSpec:
    """One VM as a host is asked to run it."""

    id: str  # session.vm.xxxxxxxx (8 digits of the session's id); the VM's directory name
    session: str  # the session's name
    session_id: str
    name: str  # the VM's name within the session, such as web-1
    arch: str  # x86_64
    vcpus: int
    memory_mib: int
    disk_bytes: int  # 0: no disk
    disk: Optional[str]  # digest of the backing blob; None with disk_bytes > 0: an empty disk
    boot: str  # kernel | disk
    kernel: Optional[str]  # blob digests
    initrd: Optional[str]
    cmdline: str
    accel: str  # auto | kvm | tcg
    network: str  # user | bridge
    mac: str
    forwards: Tuple[Forward, ...]
    ready: Ready
    lease_s: float  # 0: no lease
    budget_s: float  # seconds of running that the budget pays for; 0: no limit
    seed_size: int  # bytes of the NoCloud seed disk that follow as DATA; 0: none
    seed_sha256: str
    image: str = ""  # the image's name, for people
    stop_grace_s: float = 20.0

    def __post_init__(self) -> None:
        if not VM_ID.match(self.id):
            raise ValueError("id: %r is not a VM id" % self.id[:80])
        for blob in (self.disk, self.kernel, self.initrd):
            if blob is not None:
                _digest(blob, "blob")
        if self.boot not in ("kernel", "disk") or (self.boot == "kernel" and self.kernel is None):
            raise ValueError("boot: kernel (with a kernel) or disk")
        if self.accel not in ("auto", "kvm", "tcg") or self.network not in ("user", "bridge"):
            raise ValueError("accel or network: unknown word")
        if not (1 <= self.vcpus <= 1024 and 1 <= self.memory_mib <= 64 << 20 and 0 <= self.seed_size <= 64 << 20):
            raise ValueError("vcpus, memory_mib or seed_size out of range")
        if not re.match(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z", self.mac):
            raise ValueError("mac: %r" % self.mac[:40])
        if "\0" in self.cmdline or "\n" in self.cmdline:
            raise ValueError("cmdline: one line, please")


@dataclass(frozen=True)
class Usage:
    """What a VM has used since it was created (over all its runs), and its memory now."""

    uptime_s: float = 0.0
    cpu_s: float = 0.0
    memory_mib: int = 0
    disk_read: int = 0
    disk_written: int = 0
    net_in: int = 0  # bytes towards the guest
    net_out: int = 0


#: creating -> booting -> running -> ready -> stopping -> exited; failed: it never ran. "unknown" is the client's word.
VM_STATES = ("creating", "booting", "running", "ready", "stopping", "exited", "failed")


@dataclass(frozen=True)
class VmStatus:
    """One VM as its host sees it now."""

    id: str
    session: str
    session_id: str
    name: str
    state: str
    cause: str = ""  # of exited and failed, and ready-timeout while running
    message: str = ""
    remedy: str = ""
    accel: str = ""  # kvm | tcg, once it runs
    pid: int = 0
    created: float = 0.0
    started: float = 0.0  # of this run
    boot_s: float = 0.0  # from the start of this run to ready
    forwards: Tuple[Forward, ...] = ()  # with the host ports chosen
    silent_s: float = 0.0  # since the guest last wrote to its console
    lease_left_s: float = -1.0  # -1: no lease
    usage: Usage = Usage()
    host_keys: Tuple[str, ...] = ()  # the guest's SSH host keys, as it printed them on its console
    image: str = ""
    vcpus: int = 0
    memory_mib: int = 0
    disk_bytes: int = 0
    run: int = 0  # how often it was started
    console_bytes: int = 0  # written to the console in this run


# ---------------------------------------------------------------- the host itself


@dataclass(frozen=True)
class HostFacts:
    """What a helper found out about its host."""

    helper: str  # version
    python: str
    kernel: str
    arch: str
    hostname: str
    user: str
    boot_id: str
    clock: float  # wall clock when it answered
    cpus: int
    load1: float
    memory_mib: int
    memory_free_mib: int
    disk_free_mib: int
    state_dir: str
    qemu: str  # version of qemu-system-<arch>, "" if there is none
    qemu_img: bool
    kvm: str  # usable | unproven | broken | denied | absent
    codecs: Tuple[str, ...]
    channel: str  # path of a UNIX socket that takes more channels, "" if none
    blobs: Tuple[str, ...]  # digests held
    vms: Tuple[VmStatus, ...]
    notes: Tuple[str, ...] = ()
    library: bool = True  # whether it keeps the rest of the program; if not, the verb `library` is to bring it


@dataclass(frozen=True)
class CheckLine:
    """One line of a sanity check."""

    name: str
    level: str  # fine | limited | failed
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Proof:
    """Whether KVM runs a given kernel on this host."""

    works: bool
    seconds: float
    message: str
    kernel: str = ""


@dataclass(frozen=True)
class ErrorValue:
    """The payload of an ERROR frame."""

    cause: str
    message: str
    remedy: str = ""
