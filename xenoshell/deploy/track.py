"""One VM during a deployment: what its host says of it becomes events, each step once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..wire.causes import Failure
from ..wire.remedies import REMEDIES
from ..wire.values import Forward, VmSpec, VmStatus
from . import events
from .events import Event

_STEPS = {"creating": 1, "booting": 2, "running": 3, "ready": 4}


class Track:
    """Follows one VM until it is ready, has exited or failed, or nothing more can be learned.

    ``state``: planned, or a VM state, or unknown. ``failure``: why it is not ready. ``finished`` is set at the end.
    """

    def __init__(
        self, spec: VmSpec, host: str, emit: Callable[[Event], None], now: Callable[[], float], *, exists: bool
    ) -> None:
        self.spec = spec
        self.host = host
        self.state = "unknown" if exists else "planned"
        self.failure: Failure | None = None
        self.status: VmStatus | None = None
        self.address = ""
        self.finished = asyncio.Event()
        self.exists = exists  # whether the host may have it
        self._emit = emit
        self._now = now
        self._step = 0
        self._following = False
        self._stale: tuple[float, int] | None = None

    @property
    def vm(self) -> str:
        return self.spec.name

    def keep(self, status: VmStatus, address: str) -> None:
        """Follow a VM that is there and stays. Its earlier steps were told by the deployment that took them."""
        if not self._following:
            self._following = True
            self._step = max(0, _STEPS.get(status.state, 1) - 1)
        self.update(status, address)

    def expect(self, old: VmStatus | None, *, made: bool = False) -> None:
        """An order is about to be given: from now on follow the VM, but not what ``old`` says, which came before it.

        ``made``: it exists already and is only started."""
        self._following = True
        if made:
            self._step = max(self._step, 1)
        self.exists = True
        self._stale = (old.created, old.run) if old else None

    def absent(self) -> None:
        """Its host says that it does not have it."""
        self.exists, self.state = False, "planned"

    def created(self, address: str, status: VmStatus) -> None:
        """The host has it."""
        if self._step < 1:
            self._step = 1
            self._emit(events.vm_created(self._now(), self.host, self.vm, self.spec.id))
        self.update(status, address)

    def update(self, status: VmStatus, host_address: str) -> None:
        """Take what the host says; emits the steps not told yet."""
        if not self._following or self.finished.is_set() or status.id != self.spec.id:
            return
        if self._stale == (status.created, status.run) and status.state in ("exited", "failed", "stopping"):
            return  # how it was before the order
        self.exists = True
        self.status, self.state = status, status.state
        if status.state in ("exited", "failed"):
            self._end(status)
            return
        for step in range(self._step + 1, _STEPS.get(status.state, 0) + 1):
            self._tell(step, status, host_address)
        self._step = max(self._step, _STEPS.get(status.state, 0))
        if status.state == "ready":
            self.finished.set()
        elif status.state == "running" and status.cause:
            self.fail(_why(status))

    def fail(self, why: Failure) -> None:
        """It will not be ready in this deployment; what the host has of it stays there."""
        if self.finished.is_set():
            return
        self.failure = why
        if self.state == "planned":
            self.state = "failed"
        self._emit(events.vm_failed(self._now(), self.host, self.vm, why))
        self.finished.set()

    def lose(self, why: Failure) -> None:
        """Its host does not answer any more: what became of it is unknown, which is no failure of the VM."""
        if not self.finished.is_set():
            self.failure, self.state = why, "unknown"
            self.finished.set()

    def leave(self) -> None:
        """It is kept, and not expected to run."""
        self.finished.set()

    def _end(self, status: VmStatus) -> None:
        self.failure = _why(status)
        make = events.vm_exited if status.state == "exited" else events.vm_failed
        self._emit(make(self._now(), self.host, self.vm, self.failure))
        self.finished.set()

    def _tell(self, step: int, status: VmStatus, host_address: str) -> None:
        t = self._now()
        if step == 1:
            self._emit(events.vm_created(t, self.host, self.vm, self.spec.id))
        elif step == 2:
            self._emit(events.vm_booting(t, self.host, self.vm, status.accel))
        elif step == 3:
            self._emit(events.vm_running(t, self.host, self.vm, status.accel))
        else:
            self.address = address(host_address, status.forwards, self.spec)
            self._emit(
                events.vm_ready(t, self.host, self.vm, seconds=status.boot_s, address=self.address, accel=status.accel)
            )


def address(host: str, forwards: tuple[Forward, ...], spec: VmSpec) -> str:
    """Where the VM answers: the forward of its readiness port, else its first, as ``address:port``; "" if it has none.

    ``host``: the address at which the host itself is reached. A forward that listens on one address keeps that one.
    """
    asked = {(f.guest, f.proto) for f in spec.forwards}
    fitting = [f for f in forwards if f.host and (f.guest, f.proto) in asked]
    fitting.sort(key=lambda f: f.guest != spec.ready.port)
    if not fitting:
        return ""
    first = fitting[0]
    at = host if first.bind == "0.0.0.0" else first.bind  # noqa: S104 - compared, not bound
    return f"[{at}]:{first.host}" if ":" in at else f"{at}:{first.host}"


def _why(status: VmStatus) -> Failure:
    """The host's reason, in words of the closed list; a newer host may use others."""
    cause = status.cause if status.cause in REMEDIES else "internal"
    message = status.message or (status.cause or "it ended without giving a reason")
    return Failure(cause, message, status.remedy or None)
