"""What became of a deployment: of each VM, of each host, and the exit code that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..wire.causes import Failure
from .hosttask import HostTask
from .need import Known
from .plan import HostPlan
from .ports import TRANSPORT
from .quote import Quote
from .track import Track

#: Exit codes of the command line, by what became of a deployment.
DONE, SOME_FAILED, NOTHING, REFUSED = 0, 1, 3, 4
_REFUSED = frozenset({"over-budget", "host-key-unknown", "host-key-changed", "lease-expired", "budget-spent"})
_NOTHING = TRANSPORT | {"auth-failed", "no-python", "no-hypervisor", "no-placement", "image-missing", "protocol"}


def exit_code(failure: Failure) -> int:
    """The exit code for a failure that kept a whole command from being done."""
    if failure.cause in _REFUSED:
        return REFUSED
    return NOTHING if failure.cause in _NOTHING else SOME_FAILED


@dataclass(frozen=True)
class VmOutcome:
    """What became of one VM. ``state``: a VM state, "planned", or "unknown" if its host does not answer.
    ``created``: Unix seconds, by its host's clock."""

    vm: str
    host: str
    state: str
    ready: bool
    cause: str = ""
    message: str = ""
    remedy: str = ""
    address: str = ""
    boot_s: float = 0.0
    accel: str = ""
    created: float = 0.0


@dataclass(frozen=True)
class HostOutcome:
    """What became of one host's part: bytes sent and seconds that took; the plan it followed, if it came to that."""

    host: str
    cause: str
    message: str
    bytes_sent: int
    transfer_s: float
    plan: HostPlan | None
    known: Known


@dataclass(frozen=True)
class Outcome:
    """The end of a deployment. ``reader_errors``: of readers that broke on the way; it went on without them."""

    session: str
    session_id: str
    vms: tuple[VmOutcome, ...]
    hosts: tuple[HostOutcome, ...]
    quote: Quote
    seconds: float
    reader_errors: tuple[Exception, ...] = ()

    @property
    def ready(self) -> int:
        return sum(vm.ready for vm in self.vms)

    @property
    def failed(self) -> int:
        return len(self.vms) - self.ready

    @property
    def exit_code(self) -> int:
        """0 all ready; 1 some not; 3 no host could be used at all; 4 refused on all (trust, budget)."""
        if not self.failed:
            return DONE
        if self.ready or not self.vms:
            return SOME_FAILED
        causes = {vm.cause for vm in self.vms}
        if causes <= _REFUSED:
            return REFUSED
        return NOTHING if self.hosts and all(h.cause in _NOTHING | _REFUSED for h in self.hosts) else SOME_FAILED

    def to_json(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "session_id": self.session_id,
            "ready": self.ready,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "vms": [{name: getattr(vm, name) for name in VmOutcome.__dataclass_fields__} for vm in self.vms],
        }


def vm_outcome(track: Track) -> VmOutcome:
    why, status = track.failure, track.status
    return VmOutcome(
        vm=track.vm,
        host=track.host,
        state=track.state,
        ready=track.state == "ready",
        cause=why.cause if why else "",
        message=why.message if why else "",
        remedy=why.remedy if why else "",
        address=track.address,
        boot_s=status.boot_s if status else 0.0,
        accel=status.accel if status else "",
        created=status.created if status else 0.0,
    )


def host_outcome(task: HostTask[Any]) -> HostOutcome:
    why = task.failure
    return HostOutcome(
        host=task.host.name,
        cause=why.cause if why else "",
        message=why.message if why else "",
        bytes_sent=task.transferred.bytes_sent,
        transfer_s=task.transferred.seconds,
        plan=task.plan,
        known=Known(task.facts, task.rtt_ms),
    )
