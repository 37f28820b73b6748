"""The engine against hosts that misbehave in every way that matters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.deploy.fakes import DISK, KERNEL, QUICK, FakeHost, World, facts, known, session, status_of, world
from tests.support import eventually_async
from xenoshell.deploy.engine import deploy
from xenoshell.deploy.events import Event
from xenoshell.deploy.outcome import exit_code
from xenoshell.errors import BadInput
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Usage

THREE = {"hosts": ["a", "b", "c"], "network": {"forward": [{"guest": 80}]}}


async def test_every_host_gets_its_image_once_and_its_vm_and_all_become_ready() -> None:
    w = world("a", "b", "c")
    outcome = await w.deploy(session(THREE))
    assert (outcome.ready, outcome.failed, outcome.exit_code) == (3, 0, 0)
    assert {name: sorted(sent) for name, sent in w.connector.sent.items()} == {n: [KERNEL, DISK] for n in "abc"}
    assert [v.address for v in outcome.vms] == ["a.example:20080", "b.example:20080", "c.example:20080"]
    assert w.names("vm-1") == ["vm.created", "vm.booting", "vm.running", "vm.ready"]
    assert w.names()[0] == "session.started" and w.names()[-1] == "session.done"
    assert w.events[-1].fields["ready"] == 3
    assert [e.t for e in w.events] == sorted(e.t for e in w.events)


async def test_two_groups_with_one_image_on_one_host_share_its_transfer() -> None:
    w = world("a")
    outcome = await w.deploy(session({"name": "x", "hosts": ["a", "a"]}, {"name": "y", "hosts": ["a"]}))
    assert outcome.ready == 3
    assert sorted(w.connector.sent["a"]) == [KERNEL, DISK]


async def test_a_host_that_holds_the_image_is_asked_nothing_before_the_vm_is_made() -> None:
    w = world(a=FakeHost(blobs={KERNEL, DISK}))
    await w.deploy(session({"hosts": ["a"]}), known={"a": known(blobs=(KERNEL, DISK))})
    assert w.fakes["a"].calls == ["create vm"]
    assert w.connector.sent == {} and w.connector.prepared == []


async def test_the_record_is_written_before_any_host_is_told_anything() -> None:
    w = world("a")
    seen: list[dict[str, str]] = []
    w.fakes["a"].on_create = lambda: seen.append(w.record.existing)
    await w.deploy(session({"hosts": ["a"]}))
    assert seen == [{"vm": "a"}]


async def test_one_host_that_is_down_touches_no_other() -> None:
    w = world("a", "c", b=FakeHost(always_fails=Failure("unreachable", "b: refused")))
    outcome = await w.deploy(session(THREE))
    assert {v.vm: v.state for v in outcome.vms} == {"vm-1": "ready", "vm-2": "failed", "vm-3": "ready"}
    assert outcome.exit_code == 1
    refused = w.event("host.refused")
    assert (refused.host, refused.fields["cause"]) == ("b", "unreachable") and refused.fields["remedy"]
    assert w.connector.attempts["b"] > 1, "an unreachable host is tried again"
    done = [e.event for e in w.events].index("host.refused")
    assert all([e.event for e in w.events].index("vm.ready") < done for _ in "ac")


async def test_a_host_that_hangs_while_connecting_ends_as_a_timeout_and_the_others_do_not_wait() -> None:
    w = world("a", b=FakeHost(hangs=True))
    policy = replace(QUICK, connect_s=-4.9)
    outcome = await w.deploy(session({"hosts": ["a", "b"]}), policy)
    assert [(v.state, v.cause) for v in outcome.vms] == [("ready", ""), ("failed", "timeout")]
    assert w.event("vm.ready").t < w.event("host.refused", "b").t


async def test_a_host_that_hangs_after_login_ends_as_lost_and_its_vm_as_unknown() -> None:
    w = world("a", b=FakeHost(hangs_after_login=True, blobs={KERNEL, DISK}))
    outcome = await w.deploy(session({"hosts": ["a", "b"]}), replace(QUICK, request_s=0.1, back_s=0.2))
    assert [v.state for v in outcome.vms] == ["ready", "unknown"]
    assert w.event("host.lost", "b").fields["cause"] == "timeout"
    assert "vm-2" in w.record.vms, "the VM may exist: the record keeps it"


async def test_a_changed_key_is_refused_at_once_and_never_tried_again() -> None:
    w = world(a=FakeHost(always_fails=Failure("host-key-changed", "a: the key changed")))
    outcome = await w.deploy(session({"hosts": ["a"]}))
    assert w.connector.attempts["a"] == 1
    assert outcome.vms[0].cause == "host-key-changed"
    assert outcome.exit_code == 4
    assert "vm" not in w.record.vms


async def test_lost_during_the_transfer_it_comes_back_and_completes() -> None:
    w = world(a=FakeHost(lose_in_send=1))
    outcome = await w.deploy(session({"hosts": ["a"]}))
    assert outcome.exit_code == 0
    names = w.names("a")
    assert names.index("host.lost") < names.index("host.back") < names.index("vm.ready")
    assert w.event("host.lost").fields["retry_s"] is not None
    assert w.fakes["a"].open_links == 0


async def test_lost_during_boot_the_vm_is_found_again_and_followed_to_the_end() -> None:
    fake = FakeHost(blobs={KERNEL, DISK}, never_ready=True)
    w = world(a=fake)
    fake.on_create = lambda: asyncio.get_running_loop().call_later(0.05, cut)

    def cut() -> None:
        fake.cut()
        vm = next(iter(fake.vms.values()))
        fake.vms[vm.id] = replace(vm, state="ready")

    outcome = await w.deploy(session({"hosts": ["a"]}))
    assert outcome.exit_code == 0
    assert w.fakes["a"].calls.count("create vm") == 1
    assert w.names("vm") == ["vm.created", "vm.booting", "vm.running", "vm.ready"], "each step is told once"


async def test_lost_for_good_its_vm_is_unknown_not_failed_and_nothing_is_deleted() -> None:
    fake = FakeHost(blobs={KERNEL, DISK}, never_ready=True)
    w = world(a=fake)

    def cut() -> None:
        fake.cut()
        fake.always_fails = Failure("unreachable", "gone")

    fake.on_create = lambda: asyncio.get_running_loop().call_later(0.05, cut)
    outcome = await w.deploy(session({"hosts": ["a"]}), replace(QUICK, back_s=0.2))
    assert (outcome.vms[0].state, outcome.vms[0].cause) == ("unknown", "unreachable")
    assert "vm.failed" not in w.names() and w.names("a")[-1] == "host.lost"
    assert "vm" in w.record.vms
    assert not any(c.startswith("destroy") for c in fake.calls)


@pytest.mark.parametrize("cause", ["disk-full", "corrupt-segment", "corrupt-image"])
async def test_a_transfer_that_fails_for_its_own_reasons_fails_the_vms_that_need_it(cause: str) -> None:
    w = world("b", a=FakeHost(send_failures=[Failure(cause, f"a: {cause}")]))
    outcome = await w.deploy(session({"hosts": ["a", "b"]}))
    assert [(v.state, v.cause) for v in outcome.vms] == [("failed", cause), ("ready", "")]
    assert w.event("vm.failed").fields["remedy"]
    assert "create vm-1" not in w.fakes["a"].calls


async def test_a_transfer_that_another_client_is_at_is_waited_for() -> None:
    w = world(a=FakeHost(send_failures=[Failure("busy", "another")]))
    assert (await w.deploy(session({"hosts": ["a"]}))).exit_code == 0


async def test_one_vm_that_cannot_be_made_does_not_stop_the_other_on_its_host() -> None:
    w = world(a=FakeHost(blobs={KERNEL, DISK}, create_failures=[Failure("no-memory", "a: no memory")]))
    outcome = await w.deploy(session({"hosts": ["a", "a"]}))
    assert sorted((v.state, v.cause) for v in outcome.vms) == [("failed", "no-memory"), ("ready", "")]


@pytest.mark.parametrize(
    ("becomes", "cause", "event"),
    [("exited", "guest-panic", "vm.exited"), ("failed", "qemu-failed", "vm.failed")],
)
async def test_a_vm_that_ends_during_boot_is_told_with_its_cause(becomes: str, cause: str, event: str) -> None:
    w = world(a=FakeHost(becomes=becomes, cause=cause))
    outcome = await w.deploy(session({"hosts": ["a"]}))
    assert (outcome.vms[0].state, outcome.vms[0].cause, outcome.exit_code) == (becomes, cause, 1)
    assert w.event(event).fields["cause"] == cause


async def test_a_vm_that_its_host_says_is_not_ready_in_time_is_reported_and_goes_on_running() -> None:
    w = world(a=FakeHost(becomes="running", cause="ready-timeout"))
    outcome = await w.deploy(session({"hosts": ["a"]}))
    assert (outcome.vms[0].state, outcome.vms[0].cause) == ("running", "ready-timeout")
    assert "destroy" not in str(w.fakes["a"].calls)


async def test_a_host_that_never_says_ready_does_not_hold_the_deployment_for_ever() -> None:
    w = world(a=FakeHost(never_ready=True))
    ready = {"when": "console", "timeout": "100ms"}
    outcome = await w.deploy(session({"hosts": ["a"], "ready": ready}))
    assert outcome.vms[0].cause == "ready-timeout"


async def test_a_host_without_qemu_is_refused() -> None:
    w = world(a=FakeHost(facts=facts(qemu="")))
    outcome = await w.deploy(session({"hosts": ["a"]}))
    assert (outcome.vms[0].cause, outcome.exit_code) == ("no-hypervisor", 3)


async def test_deploying_again_keeps_what_runs_and_sends_nothing() -> None:
    w = world("a", "b")
    wanted = session({"hosts": ["a", "b"]})
    await w.deploy(wanted)
    w.connector.sent.clear()
    outcome = await w.deploy(wanted)
    assert outcome.exit_code == 0 and w.connector.sent == {}
    assert w.fakes["a"].calls == ["list"]
    assert w.names("vm-1") == ["vm.ready"]


async def test_deploying_again_makes_what_is_missing_and_starts_what_has_exited() -> None:
    w = world("a", "b", "c")
    await w.deploy(session(THREE))
    a, b = w.fakes["a"], w.fakes["b"]
    a.vms.clear()
    stopped = next(iter(b.vms.values()))
    b.vms[stopped.id] = replace(stopped, state="exited", cause="stopped")
    outcome = await w.deploy(session(THREE))
    assert outcome.exit_code == 0
    assert a.calls == ["create vm-1"]
    assert b.calls == ["list", f"start {stopped.id}"]
    assert w.fakes["c"].calls == ["list"]
    assert w.names("vm-2") == ["vm.booting", "vm.running", "vm.ready"], "it was there: nothing was created"


async def test_a_changed_vm_is_kept_and_replaced_only_when_asked() -> None:
    w = world("a")
    await w.deploy(session({"hosts": ["a"]}))
    changed = session({"hosts": ["a"], "resources": {"vcpus": 2}})
    outcome = await w.deploy(changed)
    assert outcome.exit_code == 0 and outcome.hosts[0].plan
    assert [(v.action, v.differs) for v in outcome.hosts[0].plan.vms] == [("differs", ("vcpus",))]
    assert w.fakes["a"].calls == ["list"]
    outcome = await w.deploy(changed, replace=True)
    assert outcome.exit_code == 0
    assert [c.split()[0] for c in w.fakes["a"].calls] == ["list", "destroy", "create"]
    assert w.record.vms["vm"].spec.vcpus == 2 and w.record.vms["vm"].settled
    await w.deploy(changed, replace=True)
    assert w.fakes["a"].calls == ["list"], "once replaced it is as the file says"


async def test_a_vm_that_the_file_no_longer_has_is_destroyed_only_with_prune() -> None:
    w = world("a", "b")
    await w.deploy(session({"hosts": ["a", "b"]}))
    fewer = session({"hosts": ["a"], "name": "vm-1"})
    await w.deploy(fewer)
    assert len(w.fakes["b"].vms) == 1
    await w.deploy(fewer, prune=True)
    assert len(w.fakes["b"].vms) == 0 and set(w.record.vms) == {"vm-1"}


async def test_a_budget_is_refused_before_any_effect() -> None:
    w = world("a")
    with pytest.raises(Failure) as caught:
        await w.deploy(session({"hosts": ["a"]}, budget={"max_per_hour": 0.001, "currency": "EUR"}))
    assert caught.value.cause == "over-budget" and exit_code(caught.value) == 4
    done = w.event("session.done")
    assert done.fields["cause"] == "over-budget" and done.fields["remedy"]
    assert "max_per_hour" in str(done.fields["message"])
    assert w.fakes["a"].calls == [] and w.saved == 0


async def test_max_total_reaches_each_host_as_seconds() -> None:
    w = world("a", "b")
    await w.deploy(session({"hosts": ["a", "b"]}, budget={"max_total": 2, "currency": "EUR", "lease": "1h"}))
    assert [(e.spec.budget_s, e.spec.lease_s) for e in w.record.vms.values()] == [(360_000, 3600), (360_000, 3600)]


async def test_deploying_again_renews_the_lease_as_the_file_has_it_now() -> None:
    w = world("a")
    await w.deploy(session({"hosts": ["a"]}, budget={"lease": "1h"}))
    await w.deploy(session({"hosts": ["a"]}, budget={"lease": "2h"}))
    assert [(c.split()[0], c.split()[-1]) for c in w.fakes["a"].calls] == [("list", "list"), ("renew", "7200")]


async def test_a_raised_max_total_reaches_vms_that_are_kept_and_starts_those_that_it_stopped() -> None:
    w = world("a")
    budget = {"max_total": 2, "currency": "EUR"}
    await w.deploy(session({"hosts": ["a", "a"]}, budget=budget))
    first, second = (e.spec for e in w.record.vms.values())
    assert first.budget_s == second.budget_s == 360_000
    used = Usage(uptime_s=360_000.5)
    w.fakes["a"].put(status_of(second, "exited", cause="budget-spent", usage=used))
    outcome = await w.deploy(session({"hosts": ["a", "a"]}, budget=budget))
    assert outcome.vms[1].cause == "budget-spent" and w.fakes["a"].calls == ["list", f"renew {first.id} 0 360000"]
    outcome = await w.deploy(session({"hosts": ["a", "a"]}, budget={**budget, "max_total": 3}))
    assert outcome.exit_code == 0
    calls = w.fakes["a"].calls
    assert set(calls) == {"list", *(f"renew {s.id} 0 540000" for s in (first, second)), f"start {second.id}"}
    assert calls.index(f"renew {second.id} 0 540000") < calls.index(f"start {second.id}")
    assert [e.spec.budget_s for e in w.record.vms.values()] == [540_000, 540_000]
    await w.deploy(session({"hosts": ["a", "a"]}))
    assert set(w.fakes["a"].calls) == {"list", *(f"renew {s.id} 0 0" for s in (first, second))}


async def test_a_lease_that_cannot_be_renewed_is_told_though_the_vm_is_ready() -> None:
    w = world("a")
    wanted = session({"hosts": ["a"]}, budget={"lease": "1h"})
    await w.deploy(wanted)
    w.fakes["a"].renew_failure = Failure("busy", "not now")
    outcome = await w.deploy(wanted)
    assert outcome.vms[0].ready and outcome.vms[0].cause == "busy"
    assert w.event("vm.failed").fields["message"] == "vm: not now"


async def test_with_where_slow_and_unfit_hosts_are_refused_with_the_reason_and_not_waited_for() -> None:
    w = world("a", "b", far=FakeHost(rtt_ms=200.0), hung=FakeHost(hangs=True))
    outcome = await w.deploy(session({"count": 2, "where": "rtt<80ms", "spread": "host"}))
    assert [v.host for v in outcome.vms] == ["a", "b"] and outcome.exit_code == 0
    reasons = {e.host: e.text("message") for e in w.events if e.event == "host.refused"}
    assert reasons["far"] == "far: rtt<80ms: 200 ms"
    assert "hung" in reasons and w.event("host.refused", "hung").fields["cause"] == "timeout"
    assert all(f.open_links == 0 for f in w.fakes.values())


async def test_with_where_one_host_that_hangs_holds_nobody_up_once_most_have_answered() -> None:
    w = world("a", "b", hung=FakeHost(hangs=True))
    async with asyncio.timeout(10):
        outcome = await w.deploy(session({"where": "rtt<80ms"}), replace(QUICK, probe_s=60.0, connect_s=60.0))
    assert outcome.exit_code == 0


async def test_with_where_hosts_that_declarations_rule_out_are_not_even_connected() -> None:
    w = world("a", "b")
    await w.deploy(session({"where": "host:a"}))
    assert w.connector.attempts == {"a": 1}


async def test_no_host_that_will_do_is_a_failure_that_names_each_refusal() -> None:
    w = world("a", "b")
    with pytest.raises(Failure) as caught:
        await w.deploy(session({"where": "rtt<5ms"}))
    assert caught.value.cause == "no-placement" and exit_code(caught.value) == 3
    assert "a: rtt<5ms: 10 ms" in caught.value.message and "b: rtt<5ms: 10 ms" in caught.value.message
    assert all(f.open_links == 0 for f in w.fakes.values())
    assert w.names()[-1] == "session.done"


@pytest.mark.parametrize(("works", "accel"), [(True, "kvm"), (False, "tcg")])
async def test_unproven_kvm_is_proven_once_the_kernel_is_there_and_before_the_vm(works: bool, accel: str) -> None:
    w = world(a=FakeHost(facts=facts(kvm="unproven"), proof=works))
    await w.deploy(session({"hosts": ["a", "a"]}))
    calls = w.fakes["a"].calls
    assert calls.count("prove a") == 1 and calls.index("proven") < calls.index("create vm-1")
    assert [e.fields["accel"] for e in w.events if e.event == "host.facts"] == ["unproven", accel]


async def test_asked_for_tcg_nothing_is_proven() -> None:
    w = world(a=FakeHost(facts=facts(kvm="unproven")))
    await w.deploy(session({"hosts": ["a"]}), accel="tcg")
    assert not any(c.startswith(("prove", "check")) for c in w.fakes["a"].calls)
    assert w.record.vms["vm"].spec.accel == "tcg"


async def test_cancelled_nothing_more_is_made_all_connections_close_and_the_record_says_what_is_left() -> None:
    gate = asyncio.Event()
    w = world("a", b=FakeHost(gate=gate))
    w.fakes["a"].never_ready = True
    task = asyncio.create_task(w.deploy(session({"hosts": ["a", "b"]})))
    await eventually_async(lambda: "vm.running" in w.names() and len(w.connector.sent["b"]) == 2, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(w.record.vms) == {"vm-1"}, "vm-1 is on its host; vm-2 was never made"
    assert w.event("vm.failed", "vm-2").fields["cause"] == "cancelled"
    assert all(f.open_links == 0 for f in w.fakes.values())
    assert w.fakes["b"].vms == {} and len(w.fakes["a"].vms) == 1
    assert w.names()[-1] == "session.done"


async def test_a_file_that_the_customisation_names_and_that_is_not_there_stops_everything_before_any_effect() -> None:
    def seeds(*_: Any) -> bytes:
        raise BadInput("no such key")

    w = world("a")
    with pytest.raises(BadInput):
        await w.deploy(session({"hosts": ["a"]}), seeds=seeds)
    assert w.fakes["a"].calls == [] and w.saved == 0 and w.fakes["a"].open_links == 0


async def test_a_reader_that_breaks_is_dropped_and_told_at_the_end() -> None:
    w = world("a")

    def broken(event: Event) -> None:
        raise BrokenPipeError("gone")

    outcome = await deploy(w.job(session({"hosts": ["a"]})), w.connector, (broken, w.events.append), policy=QUICK)
    assert outcome.ready == 1 and [type(e) for e in outcome.reader_errors] == [BrokenPipeError]
    assert w.names()[-1] == "session.done"


async def test_a_defect_met_on_one_host_stays_there() -> None:
    w = world("b", a=FakeHost(send_failures=[ValueError("surprise")]))  # type: ignore[list-item]
    outcome = await w.deploy(session({"hosts": ["a", "b"]}))
    assert [(v.state, v.cause) for v in outcome.vms] == [("failed", "internal"), ("ready", "")]


async def test_a_vm_on_a_host_that_the_inventory_lost_is_reported_and_left_alone() -> None:
    w = world("a", "b")
    wanted = session({"count": 2, "spread": "host"})
    await w.deploy(wanted)
    fewer = World(w.hosts[:1], w.fakes, w.record)
    outcome = await fewer.deploy(wanted)
    assert [(v.host, v.state) for v in outcome.vms] == [("a", "ready"), ("b", "unknown")]
    assert fewer.event("vm.failed", "vm-2").fields["remedy"]
    assert fewer.record.vms["vm-2"].host == "b"


async def test_a_link_that_breaks_again_and_again_is_endured_while_more_arrives_each_time() -> None:
    w = world(a=FakeHost(lose_in_send=20))
    outcome = await w.deploy(session({"hosts": ["a"]}), replace(QUICK, back_s=0.3))
    assert outcome.exit_code == 0
    assert w.names("a").count("host.lost") >= 10


async def test_a_host_that_forgets_what_it_acknowledged_is_not_sent_to_without_end() -> None:
    w = world(a=FakeHost(lose_in_send=10_000))
    quick = replace(QUICK, back_s=0.3, first_pause_s=0.001, longest_pause_s=0.002)
    outcome = await asyncio.wait_for(w.deploy(session({"hosts": ["a"]}), quick), 30)
    assert [(v.state, v.cause) for v in outcome.vms] == [("failed", "connection-lost")]
    assert len(w.connector.sent["a"]) < 1000


async def test_a_link_that_breaks_again_and_again_with_nothing_to_show_is_given_up() -> None:
    w = world(a=FakeHost(send_failures=[Failure("connection-lost", "a: cut")] * 10_000, progresses=False))
    outcome = await w.deploy(session({"hosts": ["a"]}), replace(QUICK, back_s=0.3))
    assert outcome.vms[0].cause == "connection-lost" and w.names("a")[-2:] == ["host.lost", "vm.failed"]
