"""What the engine needs from the outside: hosts it can reach, time, and how patient to be. Tests put faults in here."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ..fleet.inventory import Host
from ..wire.causes import Failure
from ..wire.values import CheckLine, HostFacts, Proof, Recipe, VmSpec, VmStatus

#: Causes that may pass by themselves: the same is tried again after a pause.
TRANSPORT = frozenset({"unreachable", "connection-lost", "timeout"})


class Link(Protocol):
    """One host, connected, with the helper behind it; `fleet.link.HostLink` is the real one."""

    @property
    def facts(self) -> HostFacts: ...
    @property
    def rtt_ms(self) -> float: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def address(self) -> str: ...
    async def check(self, kernel: str | None = None) -> tuple[CheckLine, ...]: ...
    async def prove(self, digest: str) -> Proof: ...
    async def vm_create(self, spec: VmSpec, seed: bytes = b"") -> VmStatus: ...
    async def vm_list(self) -> tuple[VmStatus, ...]: ...
    async def vm_stop(self, id: str) -> VmStatus: ...
    async def vm_start(self, id: str) -> VmStatus: ...
    async def vm_restart(self, id: str) -> VmStatus: ...
    async def vm_destroy(self, id: str) -> None: ...
    async def vm_renew(self, id: str, lease_s: float, budget_s: float | None = None) -> VmStatus: ...
    def watch(self) -> AsyncIterator[VmStatus]: ...
    async def close(self) -> None: ...


L = TypeVar("L", bound=Link)


class Connector(Protocol[L]):
    """How hosts are reached and blobs sent."""

    async def connect(self, host: Host, deadline_s: float) -> L:
        """Raises `Failure`."""
        raise NotImplementedError

    def prepare(self, digests: Iterable[str]) -> None:
        """Begin to pack these blobs, since they will probably be sent. Returns at once."""
        raise NotImplementedError

    async def send(
        self,
        link: L,
        digest: str,
        on_recipe: Callable[[Recipe], None],
        on_progress: Callable[[int, int], None],
    ) -> int:
        """Bring a blob to the host; returns the bytes sent. ``on_progress``: (done, needed). Raises `Failure`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Clock:
    """Time and chance, replaceable in tests."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = field(default=random.random)


@dataclass(frozen=True)
class Policy:
    """How long to wait for what, in seconds. Every wait of the engine has one of these."""

    connect_s: float = 15.0  # one attempt to connect
    probe_s: float = 10.0  # all candidates together, when hosts have to be chosen
    probe_least_s: float = 2.0  # what even the slowest candidate is given, whatever the others take
    reach_s: float = 20.0  # attempts at a host that never answered
    back_s: float = 180.0  # attempts at a host that was lost, since it last got anything done
    request_s: float = 130.0  # one answer of a helper (it has shorter ones of its own for most)
    ready_slack_s: float = 30.0  # what the client allows beyond the guest's own time to be ready
    silence_s: float = 60.0  # without a word from a host whose VMs are watched
    close_s: float = 5.0  # an orderly end of a connection
    first_pause_s: float = 0.5  # after the first fault; doubled after each
    longest_pause_s: float = 15.0
    progress_every_s: float = 0.25  # at most one transfer.progress each, per host and blob

    def pause(self, attempt: int, chance: float) -> float:
        """Seconds before attempt ``attempt`` + 1: exponential and bounded, the upper half of it left to ``chance``
        (uniform in [0, 1)), so that many hosts lost together do not come back together."""
        longest = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(attempt - 1, 20))
        return longest * (0.5 + 0.5 * chance)


T = TypeVar("T")


async def within(seconds: float, what: str, work: Awaitable[T]) -> T:
    """``work``'s result. Raises `Failure` (timeout, naming ``what``) if it takes longer than ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise Failure("timeout", f"{what}: no answer within {seconds:g} s") from None


def first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception of a task group that tells most: a defect before a failure, a failure before a cancellation."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop(0)
        if isinstance(error, BaseExceptionGroup):
            todo.extend(error.exceptions)
        else:
            leaves.append(error)
    return min(leaves, key=lambda e: 1 if isinstance(e, Failure) else 0)
