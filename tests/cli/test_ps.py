"""What VMs have cost, since when they are unknown, and sessions that have none."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from xenoshell.cli.common import Reason, filled
from xenoshell.cli.watch import _cost, _state
from xenoshell.deploy.record import Seen, SessionStore, new_record
from xenoshell.deploy.report import Cost, VmReport, cost_of, totals
from xenoshell.deploy.specs import Entry
from xenoshell.fleet.inventory import Host
from xenoshell.paths import Paths
from xenoshell.wire.values import Ready, VmSpec

GIB = 1 << 30
EUR = {"currency": "EUR", "vcpu_hour": "0.01", "memory_gib_hour": "0.004", "disk_gib_hour": "0.0001"}


def host(**price: object) -> Host:
    return Host.model_validate({"name": "ams", "ssh": "ams.example:1", **({"price": price} if price else {})})


def test_a_vm_costs_what_it_reserves_for_as_long_as_it_exists() -> None:
    cost = cost_of(host(**EUR), 2, GIB // 2, 10 * GIB, 1800)
    assert cost == Cost("EUR", Decimal("0.0230"), Decimal("0.0115"))
    assert cost_of(host(**EUR), 1, 0, 0, 1) == Cost("EUR", Decimal("0.01"), Decimal("0.000003"))  # rounded up
    assert cost_of(host(), 2, GIB, GIB, 1e9) == Cost("EUR", Decimal(0), Decimal(0))
    assert cost_of(host(**EUR), 1, GIB, GIB, -5).so_far == 0  # type: ignore[union-attr]  # a clock that is ahead
    assert cost_of(None, 1, GIB, GIB, 5) is None


def report(**values: object) -> VmReport:
    return VmReport(**{"session": "s", "vm": "web-1", "host": "ams", "state": "ready", **values})  # type: ignore[arg-type]


def test_currencies_are_never_added_up() -> None:
    reports = [report(cost=Cost(c, Decimal("0.02"), Decimal("1.5"))) for c in ("EUR", "USD", "EUR")] + [report()]
    spent, hourly = totals(reports)
    assert str(spent) == "3.00 EUR + 1.50 USD"
    assert str(hourly) == "0.04 EUR + 0.02 USD"


def test_an_estimate_is_marked() -> None:
    cost = Cost("EUR", Decimal("0.02"), Decimal("1.5"))
    assert _cost(report(cost=cost)) == "1.50 EUR"
    assert _cost(report(cost=cost, state="unknown")) == "~1.50 EUR"
    assert _cost(report(cost=Cost("EUR", Decimal(0), Decimal(0)))) == "free"
    assert _cost(report()) == ""


def test_unknown_says_for_how_long_and_what_was_before() -> None:
    heard = report(state="unknown", last_known="ready", last_heard=time.time() - 185)
    assert _state(heard).text == "unknown for 3 m 5 s (was ready)"
    assert _state(report(state="unknown")).text == "unknown"


@pytest.fixture
def deployed(paths: Paths) -> SessionStore:
    """A session with one VM on a host that nobody can reach, heard of two minutes ago."""
    paths.hosts_file.parent.mkdir(parents=True, exist_ok=True)
    price = "".join(f"{k} = {v!r}\n".replace("'", '"' if k == "currency" else "") for k, v in EUR.items())
    paths.hosts_file.write_text(f'[[host]]\nname = "ams"\nssh = "root@127.0.0.1:1"\n[host.price]\n{price}')
    store = SessionStore(paths.sessions)
    now = time.time()
    record = new_record("site", owner="me", created=now - 7200, base_dir=Path("/"))
    spec = VmSpec(
        id="site.web-1.00000000",
        session="site",
        session_id=record.session_id,
        name="web-1",
        arch="x86_64",
        vcpus=1,
        memory_mib=1024,
        disk_bytes=0,
        disk=None,
        boot="kernel",
        kernel="0" * 64,
        initrd=None,
        cmdline="",
        accel="auto",
        network="user",
        mac="52:54:00:00:00:01",
        forwards=(),
        ready=Ready("none"),
        lease_s=0.0,
        budget_s=0.0,
        seed_size=0,
        seed_sha256="",
    )
    store.save(record.with_vm("web-1", Entry("ams", spec)), b"")
    store.note_seen("site", {"web-1": Seen("ready", now - 120, now - 3600)})
    return store


def test_ps_of_a_host_that_is_away(run: Run, deployed: SessionStore) -> None:
    done = run("ps", "site")
    assert done.code == 3
    assert "site/web-1" in done.out and "unknown for 2 m" in done.out and "(was ready)" in done.out
    assert "~0.0141 EUR" in done.out  # an hour of a vCPU and a GiB, rounded up
    assert "to do: " in done.err
    (vm,) = json.loads(run("ps", "--json").out)
    assert vm["state"] == "unknown" and vm["last_known"] == "ready"
    assert vm["last_heard"] == pytest.approx(time.time() - 120, abs=30)
    assert vm["cost"]["per_hour"] == "0.014"


def test_orders_that_fail_say_why_below_the_table(run: Run, deployed: SessionStore) -> None:
    done = run("destroy", "site", "--yes")
    assert done.code == 3
    assert done.out.splitlines()[1].split() == ["site/web-1", "ams", "unknown"]
    assert "site/web-1: " in done.err and "[unreachable]" in done.err
    assert "xenoshell destroy site/web-1 --forget" in done.err
    assert "xenoshell hosts check ams`" in done.err
    assert run("destroy", "site", "--yes", "--forget").code == 0
    assert deployed.names() == ()


def test_a_session_without_vms_can_be_seen_and_forgotten(run: Run, paths: Paths) -> None:
    store = SessionStore(paths.sessions)
    store.save(new_record("site", owner="me", created=1.0, base_dir=Path("/")), b"")
    assert "xenoshell resume site" in run("ps").err
    assert run("stop", "site", "--yes").code == 2
    assert run("destroy", "site").code == 0
    assert store.names() == ()


def test_what_an_older_version_noted_is_passed_over(paths: Paths) -> None:
    store = SessionStore(paths.sessions)
    store.note_seen("site", {"a": Seen("ready", 1.0)})
    (paths.sessions / "site" / "seen.json").write_text('{"a": "ready", "b": {"state": "exited"}}')
    assert store.seen("site") == {"b": Seen("exited")}


def test_a_remedy_names_what_it_is_about_where_that_is_one_thing() -> None:
    one, other = (Reason("x", "site", f"web-{n}", "ams", "", "") for n in (1, 2))
    remedy = "try `xenoshell hosts check NAME`, then `xenoshell start SESSION/VM` or `xenoshell resume SESSION`"
    assert filled(remedy, [one]) == (
        "try `xenoshell hosts check ams`, then `xenoshell start site/web-1` or `xenoshell resume site`"
    )
    assert filled(remedy, [one, other]) == (
        "try `xenoshell hosts check ams`, then `xenoshell start SESSION/VM` or `xenoshell resume site`"
    )
    assert filled("put SESSION here", [one]) == "put SESSION here"
