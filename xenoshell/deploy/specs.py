"""From a session file's VM group to the `VmSpec` that a host is given, and how two specs differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ..fleet.inventory import Host
from ..wire.codec import dumps
from ..wire.values import Forward, Ready, VmSpec
from .need import MIB, Need

#: (need, vm name, host name, vm id) -> the bytes of the NoCloud seed disk, b"" for none.
SeedMaker = Callable[[Need, str, str, str], bytes]

#: What a spec's fields are called in the session file, for the message that says what differs.
_WORDS = {
    "memory_mib": "memory",
    "disk_bytes": "disk",
    "disk": "image",
    "kernel": "kernel",
    "initrd": "initrd",
    "seed_sha256": "customise",
    "seed_size": "customise",
    "forwards": "forward",
    "boot": "image",
    "arch": "image",
}
#: A different value of these needs no new VM: names for people, a lease and a budget that are renewed in place.
_SOFT = {"lease_s": 0.0, "budget_s": 0.0, "image": ""}


@dataclass(frozen=True)
class Made:
    """A VM ready to be created: what the host is told, and the seed that goes with it."""

    spec: VmSpec
    seed: bytes


@dataclass(frozen=True)
class Entry:
    """A VM of a session's record: the host it is on (or about to be), and the spec it was made with.

    ``settled`` is False while a replacement is under way: the host may have the old VM or the new one."""

    host: str
    spec: VmSpec
    settled: bool = True


def vm_id(session: str, vm: str, session_id: str) -> str:
    """The VM's directory name on its host: unique among sessions, readable in `ls`."""
    return f"{session}.{vm}.{session_id[:8]}"


def mac(identity: str) -> str:
    """A locally administered unicast address that is the same each time for the same VM."""
    digits = hashlib.sha256(identity.encode()).hexdigest()
    return ":".join(["52", "54", "00", *(digits[i : i + 2] for i in (0, 2, 4))])


def make(
    need: Need,
    vm: str,
    host: Host,
    *,
    session: str,
    session_id: str,
    seeds: SeedMaker,
    accel: str,
    lease_s: float | None,
) -> Made:
    """The spec and seed of one VM on one host; ``budget_s`` is set later, when the price of all is known.

    Reads the files that the customisation names (through ``seeds``)."""
    group, image = need.group, need.image
    identity = vm_id(session, vm, session_id)
    seed = seeds(need, vm, host.name, identity)
    ready = group.ready
    spec = VmSpec(
        id=identity,
        session=session,
        session_id=session_id,
        name=vm,
        arch=image.arch,
        vcpus=need.vcpus,
        memory_mib=need.memory // MIB,
        disk_bytes=need.disk,
        disk=image.disk.digest if image.disk else None,
        boot=image.boot,
        kernel=image.kernel.digest if image.kernel else None,
        initrd=image.initrd.digest if image.initrd else None,
        cmdline=image.cmdline,
        accel=accel,
        network=group.network.mode,
        mac=mac(identity),
        forwards=tuple(
            Forward(guest=f.guest, host=f.host or 0, proto=f.proto, bind=f.bind or host.bind)
            for f in group.network.forward
        ),
        ready=Ready(
            when=ready.when, port=ready.port or 0, path=ready.path, match=ready.match, timeout_s=float(ready.timeout)
        ),
        lease_s=float(lease_s or 0.0),
        budget_s=0.0,
        seed_size=len(seed),
        seed_sha256=hashlib.sha256(seed).hexdigest() if seed else "",
        image=image.name,
    )
    return Made(spec, seed)


def given(recorded: Mapping[str, Entry], specs: Iterable[VmSpec], *, anew: bool) -> dict[str, float]:
    """VM -> seconds of running that it was given, of those VMs that stay as they are, for `quote.allowances`.

    With ``anew`` a VM that differs is made anew: what the old one has spent until then is not counted."""
    out = {}
    for spec in specs:
        old = recorded.get(spec.name)
        if old is not None and not (anew and (differences(old.spec, spec) or not old.settled)):
            out[spec.name] = old.spec.budget_s
    return out


def digest(spec: VmSpec) -> str:
    """SHA-256 of what makes the VM what it is; equal for specs between which nothing needs to be made anew."""
    return hashlib.sha256(dumps(replace(spec, **_SOFT))).hexdigest()  # type: ignore[arg-type]


def differences(old: VmSpec, new: VmSpec) -> tuple[str, ...]:
    """What of the VM changed, in the words of the session file. Empty: it can stay as it is."""
    out: dict[str, None] = {}
    for name in VmSpec.__dataclass_fields__:
        if name not in _SOFT and getattr(old, name) != getattr(new, name):
            out[_WORDS.get(name, name)] = None
    return tuple(out)
