"""Facts in, exact placement, price and plan out. No network, no clock, no disk."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.fakes import DISK, GIB, IMAGE, KERNEL, MIB, _seed, facts, host, known, session, status_of
from xenoshell.deploy.money import Amounts, show
from xenoshell.deploy.need import Blob, ImageFacts, Known, needs
from xenoshell.deploy.placement import Placement, place
from xenoshell.deploy.plan import Plan, plan, plan_host
from xenoshell.deploy.quote import Quote, allowances, quote
from xenoshell.deploy.specs import Entry, differences, make
from xenoshell.errors import BadInput
from xenoshell.fleet.inventory import Host
from xenoshell.session.model import Session
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Usage, VmSpec

Hosts = list[Host]


def images(wanted: Session) -> dict[str, ImageFacts]:
    return {g.name: IMAGE for g in wanted.vm}


def placed(wanted: Session, hosts: Hosts, facts_of: dict[str, Known] | None = None, **more: Any) -> Placement:
    return place(needs(wanted, images(wanted)), hosts, facts_of or {h.name: known() for h in hosts}, **more)


def where(placement: Placement) -> list[str]:
    return [p.host for p in placement.placed]


def refused(placement: Placement) -> dict[str, tuple[str, ...]]:
    return {r.host: r.reasons for r in placement.refusals}


# ---------------------------------------------------------------- placement


def test_the_cheapest_host_goes_first_then_the_nearest_then_by_name() -> None:
    hosts = [host("d", price="0.02"), host("c"), host("b"), host("a")]
    near = {h.name: known(rtt_ms=5.0 if h.name == "c" else 20.0) for h in hosts}
    wanted = session({"count": 4, "spread": "host"})
    assert where(placed(wanted, hosts, near)) == ["c", "a", "b", "d"]


def test_prices_are_of_this_vm_not_of_a_vcpu() -> None:
    memory = Host.model_validate(
        {"name": "mem", "ssh": "mem", "price": {"currency": "EUR", "vcpu_hour": "0.001", "memory_gib_hour": "0.1"}}
    )
    assert where(placed(session({"resources": {"memory": "4GiB"}}), [memory, host("flat", price="0.05")])) == ["flat"]


def test_spread_puts_no_two_in_one_region_while_others_are_free() -> None:
    hosts = [host("eu1", price="0.001"), host("eu2", price="0.002"), host("us1", region="us"), host("ap1", region="ap")]
    assert where(placed(session({"count": 3, "spread": "region"}), hosts)) == ["eu1", "ap1", "us1"]
    assert where(placed(session({"count": 4, "spread": "region"}), hosts))[3] == "eu2"


def test_named_hosts_get_their_vms_in_the_order_written() -> None:
    hosts = [host("a"), host("b", price="9"), host("c")]
    assert where(placed(session({"hosts": ["b", "a", "b"]}), hosts)) == ["b", "a", "b"]


def test_a_named_host_that_is_down_or_full_is_still_the_one_that_was_named() -> None:
    down = {"a": Known(refused="a: down"), "b": known(memory_free_mib=1, arch="aarch64")}
    wanted = session({"hosts": ["a", "b"]})
    assert where(placed(wanted, [host("a"), host("b")], down)) == ["a", "b"]
    assert "a cannot be used now: a: down" in quoted(wanted, [host("a"), host("b")], down).notes
    with pytest.raises(Failure, match="memory: 100 MiB left"):
        placed(wanted, [host("a"), host("b", memory=100 * MIB)], down)


def test_what_has_a_place_keeps_it() -> None:
    hosts = [host("a"), host("b", price="9")]
    placement = placed(session({"count": 2, "spread": "host"}), hosts, existing={"vm-1": "b"})
    assert [(p.host, p.kept) for p in placement.placed] == [("b", True), ("a", False)]


@pytest.mark.parametrize(
    ("declared", "probed", "reason"),
    [
        ({"memory": 900 * MIB}, {}, "memory: 900 MiB left, 1024 MiB needed"),
        ({}, {"memory_free_mib": 500}, "memory free now: 500 MiB left, 1024 MiB needed"),
        ({"cpus": 1}, {}, "vcpus: 1 left, 2 needed"),
        ({}, {"cpus": 1}, "vcpus: 1 left, 2 needed"),
        ({"disk": GIB}, {}, "disk: 1024 MiB left, 4096 MiB needed"),
        ({}, {"disk_free_mib": 10}, "disk free now: 10 MiB left, 4096 MiB needed"),
        ({}, {"arch": "aarch64"}, "arch: it is aarch64, the image tiny is for x86_64"),
        ({}, {"qemu": ""}, "no QEMU on it"),
    ],
)
def test_a_host_without_room_says_what_is_missing(
    declared: dict[str, int], probed: dict[str, Any], reason: str
) -> None:
    wanted = session({"count": 1, "resources": {"vcpus": 2, "memory": "1GiB", "disk": "4GiB"}})
    with pytest.raises(Failure) as caught:
        placed(wanted, [host("a", **declared)], {"a": known(**probed)})  # type: ignore[arg-type]
    assert caught.value.cause == "no-placement"
    assert caught.value.message == f"no host for vm:\n  a: {reason}"


def test_vms_of_other_sessions_take_room_and_idle_ones_only_disk() -> None:
    other = make_spec(session({}, name="other"), "a")
    busy = status_of(other, "ready", memory_mib=900, vcpus=1, session_id="x", disk_bytes=0)
    idle = replace(busy, state="exited", id="other.z.1")
    wanted = session({"resources": {"memory": "512MiB"}})
    room = host("a", memory=GIB)
    assert where(placed(wanted, [room], {"a": known(vms=(idle,))})) == ["a"]
    with pytest.raises(Failure, match="124 MiB left"):
        placed(wanted, [room], {"a": known(vms=(busy, idle))})


def test_a_kept_vm_that_runs_is_not_counted_twice_against_what_is_free_now() -> None:
    wanted = session({"count": 2, "spread": "host", "resources": {"memory": "1GiB"}})
    spec = make_spec(wanted, "a", "vm-1")
    running = status_of(spec, "ready")
    tight = {"a": known(vms=(running,), memory_free_mib=1024)}
    assert where(placed(wanted, [host("a")], tight, session_id="f" * 32, existing={"vm-1": "a"})) == ["a", "a"]


def test_a_condition_on_what_is_not_known_refuses_a_deployment_and_passes_a_quote() -> None:
    wanted = session({"where": "rtt<80ms"})
    placement = placed(wanted, [host("a")], {"a": Known()}, strict=False)
    assert where(placement) == ["a"] and placement.unverified == (("a", "rtt<80ms"),)
    with pytest.raises(Failure, match="rtt is not known yet"):
        placed(wanted, [host("a")], {"a": Known()})


def test_the_group_with_fewer_choices_chooses_first() -> None:
    hosts = [host("a", cpus=1), host("b", cpus=1, price="9")]
    wanted = session({"name": "any"}, {"name": "only", "where": "host:a"})
    assert where(placed(wanted, hosts)) == ["b", "a"]


def test_hosts_of_the_budgets_currency_go_first_and_free_ones_before_all() -> None:
    hosts = [
        host("usd", price="0.001", currency="USD"),
        host("eur", price="5"),
        host("free", price="0", currency="XAU"),
    ]
    wanted = session({"count": 3, "spread": "host"})
    assert where(placed(wanted, hosts, currency="EUR")) == ["free", "eur", "usd"]


def test_a_vm_on_a_host_that_is_gone_is_not_placed_again() -> None:
    placement = placed(session({"count": 2}), [host("a")], existing={"vm-1": "gone"})
    assert [p.vm for p in placement.lost] == ["vm-1"] and where(placement) == ["a"]


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Hosts, Session]:
    regions = st.sampled_from(["eu", "us", "ap"])
    hosts = [
        host(
            f"h{i}", region=draw(regions), price=str(draw(st.integers(0, 3))), cpus=draw(st.none() | st.integers(1, 4)),
            memory=draw(st.none() | st.integers(1, 4).map(lambda n: n * GIB)),
        )
        for i in range(draw(st.integers(1, 6)))
    ]  # fmt: skip
    groups = [
        {
            "name": f"g{i}",
            "count": draw(st.integers(1, 4)),
            "where": draw(st.sampled_from(["", "region:eu", "-region:eu", "price<2/h"])),
            "spread": draw(st.none() | st.sampled_from(["region", "host"])),
            "resources": {"vcpus": draw(st.integers(1, 3)), "memory": f"{draw(st.integers(1, 2))}GiB"},
        }
        for i in range(draw(st.integers(1, 3)))
    ]
    return hosts, session(*groups)


@settings(max_examples=200)
@given(fleets())
def test_no_host_is_given_more_than_it_has_and_spread_holds(fleet: tuple[Hosts, Session]) -> None:
    hosts, wanted = fleet
    try:
        placement = placed(wanted, hosts)
    except Failure as failure:
        assert failure.cause == "no-placement"
        return
    assert [p.vm for p in placement.placed] == list(wanted.vm_names())
    by_group = {n.group.name: n for n in needs(wanted, images(wanted))}
    for h in hosts:
        here = [by_group[p.group] for p in placement.placed if p.host == h.name]
        assert sum(n.vcpus for n in here) <= (h.resources.cpus or 8)
        assert sum(n.memory for n in here) <= (h.resources.memory or 16000 * MIB)
        assert all(not n.group.where.refusals(h.view(price_per_hour=h.price.vcpu_hour * n.vcpus)) for n in here)
    for need in by_group.values():
        if need.group.spread != "region":
            continue
        region = {h.name: h.place.region for h in hosts}
        counts: dict[str | None, int] = dict.fromkeys({region[p.host] for p in placement.placed}, 0)
        for p in placement.placed:
            if p.group == need.group.name:
                counts[region[p.host]] += 1
        for h in hosts:
            used = [by_group[p.group] for p in placement.placed if p.host == h.name]
            free = (h.resources.cpus or 8) - sum(n.vcpus for n in used) >= need.vcpus and (
                h.resources.memory or 16000 * MIB
            ) - sum(n.memory for n in used) >= need.memory
            fits = not need.group.where.refusals(h.view(price_per_hour=h.price.vcpu_hour * need.vcpus))
            if free and fits and counts.get(region[h.name], 0) == 0:
                assert max(counts.values()) <= 1, f"two in one region while {h.name} was free"


# ---------------------------------------------------------------- quote


def quoted(wanted: Session, hosts: Hosts, known_of: dict[str, Known] | None = None, **more: Any) -> Quote:
    return quote(wanted, hosts, images(wanted), known_of, **more)


def test_a_quote_charges_what_is_reserved_by_resource_and_the_bytes_that_are_missing() -> None:
    priced = Host.model_validate(
        {
            "name": "a",
            "ssh": "a",
            "price": {
                "currency": "EUR", "vcpu_hour": "0.01", "memory_gib_hour": "0.004", "disk_gib_hour": "0.0001",
                "transfer_gib": "0.5",
            },
        }
    )  # fmt: skip
    wanted = session({"count": 2, "resources": {"vcpus": 2, "memory": "512MiB", "disk": "8GiB"}})
    result = quoted(wanted, [priced], {"a": known(blobs=(KERNEL,))})
    (line, _) = result.vms
    assert (line.vcpus_hour, line.memory_hour, line.disk_hour) == (Decimal("0.02"), Decimal("0.002"), Decimal("0.0008"))
    assert result.per_hour == Amounts.of("EUR", Decimal("0.0456"))
    assert (result.hosts[0].transfer_bytes, result.hosts[0].transfer_exact) == (20 * MIB, True), "once, not for each VM"
    assert result.transfer == Amounts.of("EUR", Decimal("0.009765625"))
    assert result.to_json()["per_hour"] == {"EUR": "0.0456"}


def test_what_is_not_known_of_a_host_is_quoted_as_at_most() -> None:
    result = quoted(session({}), [host("a")])
    assert (result.hosts[0].transfer_bytes, result.hosts[0].transfer_exact) == (26 * MIB, False)
    assert any("at most" in note for note in result.notes)


def test_currencies_are_never_added() -> None:
    hosts = [host("e", price="0.5"), host("u", price="0.25", currency="USD")]
    result = quoted(session({"hosts": ["e", "u"]}), hosts)
    assert str(result.per_hour) == "0.50 EUR + 0.25 USD" and result.objection is None
    limited = quoted(session({"hosts": ["e", "u"]}, budget={"max_per_hour": 100, "currency": "EUR"}), hosts)
    assert limited.objection and "EUR, USD" in limited.objection.message


@pytest.mark.parametrize(
    ("budget", "hours", "objects"),
    [
        ({"max_per_hour": 0.2}, None, False),
        ({"max_per_hour": 0.19}, None, True),
        ({"max_total": 2}, Decimal(10), False),
        ({"max_total": 2, "max_per_hour": 0.1}, None, True),
        ({"max_total": 0.00001}, None, True),
    ],
)
def test_the_budget_decides(budget: dict[str, float], hours: Decimal | None, objects: bool) -> None:
    result = quoted(session({"count": 2}, budget={**budget, "currency": "EUR"}), [host("a", price="0.1")])
    assert result.hours == hours and (result.objection is not None) == objects
    if objects:
        with pytest.raises(Failure) as caught:
            result.check()
        assert caught.value.cause == "over-budget"


def test_a_lease_has_a_cost() -> None:
    result = quoted(session({}, budget={"lease": "10h"}), [host("a", price="0.1")])
    assert result.lease_cost == Amounts.of("EUR", Decimal(1))


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({}, (36_000, 36_000)),
        ({"vm-1": 36_000.0}, (36_000, 36_000)),
        ({"vm-1": 54_000.0}, (54_000, 18_000)),  # what was given is not taken back
        ({"vm-1": 18_000.0, "vm-2": 18_000.0}, (36_000, 36_000)),  # max_total was raised
        ({"vm-1": 50_000.0, "vm-2": 10_000.0}, (50_000, 22_000)),  # all of it to the one that has least
        ({"vm-1": 30_000.0, "vm-2": 10_000.0}, (36_000, 36_000)),
        ({"vm-1": 90_000.0, "vm-2": 80_000.0}, (90_000, 80_000)),  # max_total was lowered
        ({"vm-1": 0.0, "vm-2": 54_000.0}, (18_000, 54_000)),  # a limit where there was none
    ],
)
def test_max_total_is_shared_out_and_raises_whoever_has_least(
    kept: dict[str, float], expected: tuple[int, int]
) -> None:
    result = quoted(session({"count": 2}, budget={"max_total": 2, "currency": "EUR"}), [host("a", price="0.1")])
    assert allowances(result, kept) == {"vm-1": expected[0], "vm-2": expected[1]}


def test_nothing_left_for_a_new_vm_is_refused_and_no_limit_is_none() -> None:
    result = quoted(session({"count": 2}, budget={"max_total": 2, "currency": "EUR"}), [host("a", price="0.1")])
    with pytest.raises(Failure, match="nothing is left"):
        allowances(result, {"vm-1": 72_000.0})
    free = quoted(session({"count": 2}, budget={"lease": "1h"}), [host("a", price="0.1")])
    assert allowances(free, {"vm-1": 72_000.0}) == {"vm-1": 0, "vm-2": 0}


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 200_000)), min_size=1, max_size=6), st.integers(1, 500))
def test_allowances_never_pass_max_total_unless_given_before(vms: list[tuple[int, int]], total: int) -> None:
    hosts = [host(f"h{n}", price=f"{rate / 100}") for n, (rate, _) in enumerate(vms)]
    result = quoted(
        session(*({"name": f"v{n}", "hosts": [f"h{n}"]} for n in range(len(vms))),
                budget={"max_total": total, "currency": "EUR"}), hosts,
    )  # fmt: skip
    kept = {f"v{n}": float(s) for n, (_, s) in enumerate(vms) if s}
    rates = {vm.vm: vm.per_hour for vm in result.vms}
    before = sum(rates[vm] * int(s) / 3600 for vm, s in kept.items())
    try:
        allowed = allowances(result, kept)
    except Failure:
        return
    assert all(allowed[vm] >= s for vm, s in kept.items())
    cost = sum(rates[vm] * int(s) / 3600 for vm, s in allowed.items()) + sum(a for _, a in result.transfer.each)
    if before <= total:
        assert cost <= total + Decimal("1e-9") or allowed == kept


def test_a_disk_smaller_than_the_image_is_bad_input() -> None:
    with pytest.raises(BadInput, match="needs"):
        quoted(session({"resources": {"disk": "32MiB"}}), [host("a")])


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00 EUR"),
        ("1.234", "1.24 EUR"),
        ("0.0123", "0.0123 EUR"),
        ("0.00012345", "0.000124 EUR"),
        ("12", "12.00 EUR"),
    ],
)
def test_amounts_are_shown_rounded_up(amount: str, text: str) -> None:
    assert show(Decimal(amount), "EUR") == text


# ---------------------------------------------------------------- plan


def make_spec(wanted: Session, host_name: str, vm: str | None = None) -> VmSpec:
    need = needs(wanted, images(wanted))[0]
    return make(
        need, vm or need.names[0], host(host_name), session=wanted.name, session_id="f" * 32, seeds=_seed,
        accel="auto", lease_s=None,
    ).spec  # fmt: skip


BLOBS = {b.digest: b for b in IMAGE.blobs}
SPEC = make_spec(session({}), "a")
OTHER = replace(SPEC, vcpus=4, seed_sha256="0" * 64)


@pytest.mark.parametrize(
    ("there", "recorded", "options", "expected"),
    [
        (None, None, {}, ("create", (), 2)),
        (None, SPEC, {}, ("create", (), 2)),
        ("ready", SPEC, {}, ("keep", (), 0)),
        ("booting", SPEC, {}, ("keep", (), 0)),
        ("exited", SPEC, {}, ("start", (), 0)),
        ("failed", SPEC, {}, ("create", (), 2)),
        ("exited", OTHER, {}, ("start", ("vcpus", "customise"), 0)),
        ("failed", OTHER, {}, ("create", (), 2)),
        ("ready", OTHER, {}, ("differs", ("vcpus", "customise"), 0)),
        ("ready", OTHER, {"replace": True}, ("replace", ("vcpus", "customise"), 2)),
        ("ready", SPEC, {"replace": True}, ("keep", (), 0)),
        ("ready", None, {}, ("keep", (), 0)),
    ],
)
def test_a_hosts_plan(
    there: str | None, recorded: VmSpec | None, options: dict[str, bool], expected: tuple[str, tuple[str, ...], int]
) -> None:
    vms = () if there is None else (status_of(SPEC, there),)
    result = plan_host(
        "a", [SPEC], BLOBS, known(vms=vms), session_id="f" * 32,
        recorded={} if recorded is None else {"vm": Entry("a", recorded)}, **options,
    )  # fmt: skip
    (vm,) = result.vms
    assert (vm.action, vm.differs, len(result.blobs)) == expected


@pytest.mark.parametrize(
    ("budget_s", "action", "told", "words"),
    [
        (100.0, "spent", None, "vm: kept stopped, its budget is spent; raise budget.max_total and deploy again"),
        (99.0, "spent", None, "raise budget.max_total"),
        (7200.0, "start", 7200.0, "vm: started (exited), its budget renewed (it may run 2 h in all)"),
        (0.0, "start", 0.0, "vm: started (exited), its budget renewed (it may run without limit)"),
    ],
)
def test_a_spent_budget_is_started_again_only_when_it_was_raised(
    budget_s: float, action: str, told: float | None, words: str
) -> None:
    old = replace(SPEC, budget_s=100.0)
    status = status_of(old, "exited", cause="budget-spent", usage=Usage(uptime_s=100.4))
    result = plan_host(
        "a", [replace(SPEC, budget_s=budget_s)], BLOBS, known(vms=(status,)), session_id="f" * 32,
        recorded={"vm": Entry("a", old)},
    )  # fmt: skip
    (vm,) = result.vms
    assert (vm.action, vm.budget_s, vm.renew_s) == (action, told, None if told is None else 0.0)
    assert words in str(vm)


def test_a_vm_that_runs_is_told_its_budget_again() -> None:
    status = status_of(SPEC, "ready")
    for old, words in ((60.0, "vm: kept as it is (ready), its budget renewed (it may run 1 h in all)"),
                       (3600.0, "vm: kept as it is (ready)")):  # fmt: skip
        result = plan_host(
            "a", [replace(SPEC, budget_s=3600.0)], BLOBS, known(vms=(status,)), session_id="f" * 32,
            recorded={"vm": Entry("a", replace(SPEC, budget_s=old))},
        )  # fmt: skip
        (vm,) = result.vms
        assert (vm.action, vm.budget_s, str(vm)) == ("keep", 3600.0, words)


def test_a_lease_or_a_name_is_no_difference_but_memory_is() -> None:
    assert differences(SPEC, replace(SPEC, lease_s=5.0, budget_s=7.0, image="renamed")) == ()
    assert differences(SPEC, replace(SPEC, memory_mib=7, forwards=(), disk=KERNEL)) == ("memory", "image")


@pytest.mark.parametrize(("prune", "action"), [(False, "surplus"), (True, "destroy")])
def test_a_vm_that_the_file_no_longer_has_is_surplus(prune: bool, action: str) -> None:
    old = status_of(replace(SPEC, id="web.old.ffffffff", name="old"), "ready")
    foreign = replace(old, session_id="another", name="foreign")
    result = plan_host("a", [], BLOBS, known(vms=(old, foreign)), session_id="f" * 32, prune=prune)
    assert [(v.vm, v.action, v.vm_id) for v in result.vms] == [("old", action, "web.old.ffffffff")]


def whole_plan(wanted: Session, hosts: Hosts, known_of: dict[str, Known], **more: Any) -> Plan:
    result = quoted(wanted, hosts, known_of)
    specs = {p.vm: make_spec(wanted, p.host, p.vm) for p in result.placement.placed}
    return plan(result, specs, BLOBS, known_of, session_id="f" * 32, **more)


def test_a_plan_says_bytes_vms_and_blast_radius() -> None:
    hosts = [host("a"), host("b")]
    result = whole_plan(session({"hosts": ["a", "b"]}), hosts, {"a": known(blobs=(DISK,)), "b": known()})
    assert [(h.host, h.bytes_to_send) for h in result.hosts] == [("a", 6 * MIB), ("b", 26 * MIB)]
    assert result.blast_radius == "creates 2 VMs on 2 hosts" and not result.destructive
    assert result.hosts[0].seconds < result.hosts[1].seconds == result.seconds
    assert result.to_json()["hosts"][1]["blobs"][0] == {
        "digest": KERNEL, "what": "kernel", "size": 8 * MIB, "packed": 6 * MIB, "bytes": 6 * MIB,
    }  # fmt: skip


def test_a_plan_over_budget_is_refused() -> None:
    wanted = session({}, budget={"max_per_hour": 0.001, "currency": "EUR"})
    with pytest.raises(Failure) as caught:
        whole_plan(wanted, [host("a")], {"a": known()})
    assert caught.value.cause == "over-budget"


def test_the_same_vm_gets_the_same_id_and_address_each_time() -> None:
    again = make_spec(session({}), "a")
    assert again == SPEC and SPEC.id == "web.vm.ffffffff"
    assert make_spec(session({"count": 2}), "a", "vm-2").mac != SPEC.mac


def test_a_kernel_alone_needs_no_disk() -> None:
    wanted = session({"image": None, "kernel": "memtest.bin"})
    alone = ImageFacts("memtest.bin", "x86_64", "kernel", kernel=Blob(KERNEL, 100, None, "kernel"))
    need = needs(wanted, {"vm": alone})[0]
    assert need.disk == 0 and facts().arch == "x86_64"
