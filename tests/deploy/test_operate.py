"""Orders to many hosts: each on its own, and what could not be reached stays on the record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.deploy.fakes import QUICK, FakeHost, World, session, world
from xenoshell.deploy.operate import VmResult, blast_radius, exit_code, operate, target, targets
from xenoshell.deploy.record import SessionStore
from xenoshell.deploy.report import ps, totals
from xenoshell.errors import BadInput
from xenoshell.fleet.inventory import Inventory
from xenoshell.wire.causes import Failure

DOWN = Failure("unreachable", "b: refused")


async def deployed(tmp_path: Path) -> tuple[World, SessionStore]:
    w = world("a", "b")
    await w.deploy(session({"hosts": ["a", "b"], "network": {"forward": [{"guest": 80}]}}))
    store = SessionStore(tmp_path / "s")
    store.save(w.record)
    return w, store


async def order(w: World, store: SessionStore, verb: str, text: str = "web", **more: object) -> tuple[VmResult, ...]:
    return await operate(
        verb, targets(store, text), Inventory(w.hosts), w.connector, store, policy=QUICK, wait_s=1.0, **more  # type: ignore[arg-type]
    )  # fmt: skip


async def test_ps_shows_what_hosts_say_and_unknown_with_the_last_known_state(tmp_path: Path) -> None:
    w, store = await deployed(tmp_path)
    first = await ps(store, ["web"], Inventory(w.hosts), w.connector, QUICK)
    assert [(r.vm, r.state, r.address) for r in first] == [
        ("vm-1", "ready", "a.example:20080"), ("vm-2", "ready", "b.example:20080"),
    ]  # fmt: skip
    w.fakes["b"].always_fails = DOWN
    a = w.fakes["a"]
    a.vms = {k: replace(v, state="exited", cause="guest-panic") for k, v in a.vms.items()}
    again = await ps(store, ["web"], Inventory(w.hosts), w.connector, QUICK)
    assert [(r.state, r.last_known, r.cause) for r in again] == [
        ("exited", "exited", "guest-panic"), ("unknown", "ready", "unreachable"),
    ]  # fmt: skip
    assert set(store.load("web").vms) == {"vm-1", "vm-2"}
    a.vms.clear()
    assert (await ps(store, ["web"], Inventory(w.hosts), w.connector, QUICK))[0].state == "gone"


@pytest.mark.parametrize(
    "lie", [{"created": -1e300}, {"vcpus": 1 << 62}, {"memory_mib": 1 << 62}, {"disk_bytes": 1 << 62}]
)
async def test_a_host_that_lies_about_a_vm_keeps_no_other_from_being_shown(
    tmp_path: Path, lie: dict[str, float]
) -> None:
    w, store = await deployed(tmp_path)
    b = w.fakes["b"]
    b.vms = {k: replace(v, **lie) for k, v in b.vms.items()}  # type: ignore[arg-type]
    for failure in (None, DOWN):  # and what it said is remembered
        b.always_fails = failure
        first, second = await ps(store, ["web"], Inventory(w.hosts), w.connector, QUICK)
        assert first.state == "ready" and first.cost is not None
        assert second.cost is None or second.cost.so_far < 10_000
        totals([first, second])


async def test_a_host_says_nothing_about_the_vms_of_another(tmp_path: Path) -> None:
    w, store = await deployed(tmp_path)
    await ps(store, ["web"], Inventory(w.hosts), w.connector, QUICK)
    b = w.fakes["b"]
    (own,) = b.vms.values()
    for n, name in enumerate(("vm-1", "vm-9")):
        b.vms[f"extra{n}"] = replace(own, id=f"web.extra{n}.00000000", name=name, state="exited")
    await ps(store, ["web"], Inventory(w.hosts), w.connector, QUICK)
    seen = store.seen("web")
    assert {vm: each.state for vm, each in seen.items()} == {"vm-1": "ready", "vm-2": "ready"}


async def test_stop_then_start_then_restart_reach_their_states(tmp_path: Path) -> None:
    w, store = await deployed(tmp_path)
    assert [(r.done, r.state) for r in await order(w, store, "stop")] == [(True, "exited")] * 2
    assert [(r.done, r.state) for r in await order(w, store, "start")] == [(True, "ready")] * 2
    (one,) = await order(w, store, "restart", "web/vm-1")
    assert (one.done, one.state) == (True, "ready")
    assert all(f.open_links == 0 for f in w.fakes.values())


async def test_destroy_takes_off_the_record_only_what_is_gone_and_can_be_run_again(tmp_path: Path) -> None:
    w, store = await deployed(tmp_path)
    w.fakes["b"].always_fails = DOWN
    results = await order(w, store, "destroy")
    assert [(r.done, r.cause) for r in results] == [(True, ""), (False, "unreachable")] and exit_code(results) == 1
    assert set(store.load("web").vms) == {"vm-2"} and w.fakes["a"].vms == {}
    w.fakes["b"].always_fails = None
    assert exit_code(await order(w, store, "destroy")) == 0
    assert w.fakes["b"].vms == {} and store.names() == ()
    assert store.events_file("web").parent.exists(), "its history stays"


async def test_forget_takes_a_vm_off_the_record_whose_host_will_not_come_back(tmp_path: Path) -> None:
    w, store = await deployed(tmp_path)
    w.fakes["b"].always_fails = DOWN
    results = await order(w, store, "destroy", "web/vm-2", forget=True)
    assert results[0].state == "forgotten" and set(store.load("web").vms) == {"vm-1"}


async def test_renew_sends_the_lease(tmp_path: Path) -> None:
    w, store = await deployed(tmp_path)
    w.fakes["a"].calls.clear()
    assert all(r.done for r in await order(w, store, "renew", lease_s=3600.0))
    assert w.fakes["a"].calls[0].endswith("3600")


async def test_no_order_is_given_while_the_session_is_being_deployed(tmp_path: Path) -> None:
    w, store = await deployed(tmp_path)
    with store.locked("web"), pytest.raises(Failure) as caught:
        await order(w, store, "stop")
    assert caught.value.cause == "busy"


async def test_a_hanging_host_delays_no_answer_of_another_beyond_its_deadline(tmp_path: Path) -> None:
    w, store = await deployed(tmp_path)
    w.fakes["b"] = FakeHost(hangs_after_login=True, facts=w.fakes["b"].facts, vms=w.fakes["b"].vms)
    w.connector.hosts["b"] = w.fakes["b"]
    reports = await ps(store, ["web"], Inventory(w.hosts), w.connector, replace(QUICK, request_s=0.1))
    assert [(r.state, r.cause) for r in reports] == [("ready", ""), ("unknown", "timeout")]


async def test_targets_name_the_nearest(tmp_path: Path) -> None:
    _, store = await deployed(tmp_path)
    assert blast_radius("destroy", targets(store, "web")) == "destroys 2 VMs on 2 hosts"
    assert target(store, "web/vm-2").host == "b"
    with pytest.raises(BadInput, match="did you mean vm-"):
        targets(store, "web/vm-3")
    with pytest.raises(BadInput, match="name one of them: web/vm-1, web/vm-2"):
        target(store, "web")
