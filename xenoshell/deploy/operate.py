"""What is done with deployed sessions: stop, start, restart, destroy, renew, over many hosts at once.

Each host is asked on its own, in parallel, within a deadline. A host that does not answer leaves its VMs *unknown*:
nothing is deleted, and nothing is started elsewhere, because of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import BadInput
from ..fleet.inventory import Host, Inventory
from ..wire.causes import Failure
from ..wire.values import VmStatus
from .outcome import DONE, NOTHING, SOME_FAILED
from .ports import TRANSPORT, Connector, L, Policy, within
from .record import SessionStore, nearest
from .specs import Entry
from .summary import natural

T = TypeVar("T")

#: States in which an order is fulfilled.
_REACHED = {
    "stop": frozenset({"exited", "failed"}),
    "start": frozenset({"running", "ready", "exited", "failed"}),
    "restart": frozenset({"running", "ready", "exited", "failed"}),
}
VERBS = ("stop", "start", "restart", "destroy", "renew")


@dataclass(frozen=True)
class Target:
    """One VM that a command is about."""

    session: str
    vm: str
    entry: Entry

    @property
    def host(self) -> str:
        return self.entry.host

    def __str__(self) -> str:
        return f"{self.session}/{self.vm}"


@dataclass(frozen=True)
class VmResult:
    """What became of an order to one VM."""

    session: str
    vm: str
    host: str
    done: bool
    state: str = ""
    cause: str = ""
    message: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in VmResult.__dataclass_fields__}


def exit_code(results: Sequence[VmResult]) -> int:
    """0 all done, 1 some not, 3 no host could be reached."""
    if all(r.done for r in results):
        return DONE
    return NOTHING if all(r.cause in TRANSPORT for r in results) else SOME_FAILED


# ---------------------------------------------------------------- which VMs


def targets(sessions: SessionStore, text: str) -> tuple[Target, ...]:
    """The VMs of ``SESSION`` or ``SESSION/VM``. Raises `BadInput`, with the nearest names, if there are none."""
    name, slash, vm = text.partition("/")
    record = sessions.load(name)
    if not slash:
        return tuple(Target(name, v, e) for v, e in sorted(record.vms.items(), key=lambda item: natural(item[0])))
    if vm not in record.vms:
        known = tuple(sorted(record.vms))
        raise BadInput(f"the session {name!r} has no VM {vm!r}{nearest(vm, known)}")
    return (Target(name, vm, record.vms[vm]),)


def target(sessions: SessionStore, text: str) -> Target:
    """The one VM of ``SESSION/VM``, or of ``SESSION`` if it has just one. Raises `BadInput`."""
    found = targets(sessions, text)
    if len(found) != 1:
        names = ", ".join(str(t) for t in found[:20]) or "none"
        raise BadInput(f"{text!r} has {len(found)} VMs; name one of them: {names}")
    return found[0]


def blast_radius(verb: str, chosen: Sequence[Target]) -> str:
    """What a command does, in words: ``destroys 12 VMs on 9 hosts``."""
    vms, hosts = len(chosen), len({t.host for t in chosen})
    words = {"stop": "stops", "destroy": "destroys"}.get(verb, f"{verb}s")
    return f"{words} {vms} VM{'s' if vms != 1 else ''} on {hosts} host{'s' if hosts != 1 else ''}"


# ---------------------------------------------------------------- many hosts at once


async def on_hosts(
    hosts: Mapping[str, Host | None],
    work: Callable[[L, str], Awaitable[T]],
    connector: Connector[L],
    policy: Policy,
    *,
    limit_s: float,
) -> dict[str, T | Failure]:
    """Run ``work(link, host name)`` on every host in parallel, each within ``limit_s`` after it is connected.

    The result or the failure of each; None as a host means that the inventory does not have it.
    """
    out: dict[str, T | Failure] = {}

    async def one(name: str, host: Host | None) -> None:
        if host is None:
            out[name] = Failure("unreachable", f"{name} is not in hosts.toml", f"put {name} back into hosts.toml")
            return
        try:
            async with connected(connector, host, policy) as link:
                out[name] = await within(limit_s, name, work(link, name))
        except Failure as failure:
            out[name] = failure
        except Exception as error:  # noqa: BLE001 - a defect met on one host must not stop the others
            out[name] = Failure("internal", f"{name}: {type(error).__name__}: {error}")

    async with asyncio.TaskGroup() as group:
        for name, host in hosts.items():
            group.create_task(one(name, host))
    return out


@asynccontextmanager
async def connected(connector: Connector[L], host: Host, policy: Policy) -> AsyncIterator[L]:
    """A link to ``host``, closed at the end. Raises `Failure`."""
    link = await within(policy.connect_s + 5, f"connecting to {host.name}", connector.connect(host, policy.connect_s))
    try:
        yield link
    finally:
        try:
            async with asyncio.timeout(policy.close_s):
                await link.close()
        except (TimeoutError, Failure, OSError):
            pass  # it is gone either way; what mattered was answered before


def named(inventory: Inventory, names: Sequence[str]) -> dict[str, Host | None]:
    by_name = {h.name: h for h in inventory.hosts}
    return {name: by_name.get(name) for name in dict.fromkeys(names)}


# ---------------------------------------------------------------- orders


async def operate(
    verb: str,
    chosen: Sequence[Target],
    inventory: Inventory,
    connector: Connector[L],
    sessions: SessionStore,
    *,
    lease_s: float = 0.0,
    forget: bool = False,
    wait_s: float = 60.0,
    policy: Policy | None = None,
) -> tuple[VmResult, ...]:
    """Give one order (see `VERBS`) to every VM of ``chosen``; hosts in parallel. Returns a result for each, in order.

    ``wait_s``: how long to wait until guests have stopped or run (0: only until the host has the order).
    ``lease_s``: for renew. ``forget``: destroy also takes VMs off the record whose host does not answer.
    Raises `Failure` (busy) while something else is done with one of the sessions.
    """
    if verb not in VERBS:
        raise ValueError(f"{verb!r} is not one of {', '.join(VERBS)}")
    policy = policy or Policy()
    by_host: dict[str, list[Target]] = {}
    for t in chosen:
        by_host.setdefault(t.host, []).append(t)

    async def work(link: L, name: str) -> list[VmResult]:
        return list(await asyncio.gather(*(_order_one(verb, link, t, lease_s, wait_s) for t in by_host[name])))

    with _locked(sessions, {t.session for t in chosen}):
        hosts = named(inventory, list(by_host))
        answers = await on_hosts(hosts, work, connector, policy, limit_s=policy.request_s + wait_s)
        results: dict[tuple[str, str], VmResult] = {}
        for name, mine in by_host.items():
            answer = answers[name]
            if isinstance(answer, Failure):
                results |= {(t.session, t.vm): _failed(t, answer) for t in mine}
            else:
                results |= {(r.session, r.vm): r for r in answer}
        if verb == "destroy":
            _take_off(sessions, chosen, results, forget)
        return tuple(results[t.session, t.vm] for t in chosen)


async def _order_one(verb: str, link: L, t: Target, lease_s: float, wait_s: float) -> VmResult:
    vm_id = t.entry.spec.id
    try:
        match verb:
            case "destroy":
                await link.vm_destroy(vm_id)
                return VmResult(t.session, t.vm, t.host, True, "destroyed")
            case "renew":
                status = await link.vm_renew(vm_id, lease_s)
                return VmResult(t.session, t.vm, t.host, True, status.state)
            case "stop":
                status = await link.vm_stop(vm_id)
                before = -1
            case "start":
                before = -1
                status = await link.vm_start(vm_id)
            case _:
                before = next((s.run for s in link.facts.vms if s.id == vm_id), -1)
                status = await link.vm_restart(vm_id)
        if wait_s and not _fulfilled(verb, status, before):
            status = await within(wait_s, f"{t.host}: waiting for {t.vm} to {verb}", _until(verb, link, vm_id, before))
    except Failure as failure:
        return _failed(t, failure)
    done = verb == "stop" or status.state in ("booting", "running", "ready", "creating")
    return VmResult(t.session, t.vm, t.host, done, status.state, status.cause, status.message, status.remedy)


async def _until(verb: str, link: L, vm_id: str, before: int) -> VmStatus:
    async for status in link.watch():
        if status.id == vm_id and _fulfilled(verb, status, before):
            return status
    raise Failure("connection-lost", f"the helper ended before {vm_id} had done it")


def _fulfilled(verb: str, status: VmStatus, before: int) -> bool:
    """Whether the order is carried out. A VM that is to run and still is as it was before the order is not: ``stopped``
    is what it was told earlier, and a restart counts from the next run on."""
    if verb in ("start", "restart") and status.state in ("exited", "failed") and status.cause in ("stopped", ""):
        return False
    return status.state in _REACHED[verb] and (verb != "restart" or status.run > before)


def _failed(t: Target, failure: Failure) -> VmResult:
    return VmResult(
        t.session, t.vm, t.host, False, "unknown" if failure.cause in TRANSPORT else "", failure.cause,
        failure.message, failure.remedy,
    )  # fmt: skip


def _take_off(
    sessions: SessionStore,
    chosen: Sequence[Target],
    results: dict[tuple[str, str], VmResult],
    forget: bool,
) -> None:
    """Take destroyed VMs off their records; a session without VMs off the list. What could not be reached stays."""
    for name in {t.session for t in chosen}:
        record = sessions.load(name)
        gone = []
        for t in chosen:
            result = results[t.session, t.vm]
            if t.session != name:
                continue
            if not result.done and forget:
                note = f"taken off the record; it may still be on {t.host} ({result.message})"
                result = VmResult(t.session, t.vm, t.host, True, "forgotten", result.cause, note, result.remedy)
                results[t.session, t.vm] = result
            if result.done:
                gone.append(t.vm)
        left = record.without(*gone)
        sessions.save(left)
        if not left.vms:
            sessions.forget(name)


@contextmanager
def _locked(sessions: SessionStore, names: set[str]) -> Iterator[None]:
    """The locks of several sessions, taken in the order of their names."""
    with ExitStack() as stack:
        for name in sorted(names):
            stack.enter_context(sessions.locked(name))
        yield
