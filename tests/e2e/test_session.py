"""A session's whole life on real hosts, by the commands that a user types."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Deploying, facts, run, session_file
from tests.support import eventually
from xenoshell.lab import Lab

pytestmark = pytest.mark.e2e

MakeLab = Callable[..., Lab]
Start = Callable[..., Deploying]


def fetch(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/", timeout=20) as answer:
        return str(answer.read().decode())


def test_a_service_on_three_hosts_from_quote_to_destroy(make_lab: MakeLab, tiny: str, tmp_path: Path) -> None:
    lab = make_lab(3)
    hosts = [host.name for host in lab.hosts]
    file = session_file(tmp_path, hosts)

    quote = facts("quote", file)
    assert json.dumps(quote).count("EUR") >= 1
    plan = facts("plan", file)
    assert {h["host"] for h in plan["hosts"]} == set(hosts)
    assert all(h["bytes_to_send"] > 1 << 20 for h in plan["hosts"])

    done = run("deploy", file, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    ready = {e["host"]: e["address"] for e in events if e["event"] == "vm.ready"}
    assert set(ready) == set(hosts)
    vms = dict(zip(hosts, ("vm-1", "vm-2", "vm-3"), strict=True))
    for host, address in ready.items():
        assert fetch(address) == f"{vms[host]} on {host}\n"
    assert events[0]["event"] == "session.started"
    assert events[-1]["event"] == "session.done"
    assert events[-1]["ready"] == 3

    again = run("deploy", file, "--json")
    assert again.returncode == 0, again.stderr
    names = [json.loads(line)["event"] for line in again.stdout.splitlines()]
    assert "vm.created" not in names, "what runs is left alone"
    assert "transfer.planned" not in names, "what is held is not sent"

    rows = facts("ps", "web")
    assert [row["state"] for row in rows] == ["ready"] * 3
    assert all(row["status"]["usage"]["cpu_s"] > 0.1 and row["status"]["usage"]["net_in"] > 100 for row in rows)

    assert run("stop", "web/vm-1", "--yes").returncode == 0
    stopped = next(r for r in facts("ps", "web") if r["vm"] == "vm-1")
    assert (stopped["state"], stopped["cause"]) == ("exited", "stopped")
    assert run("start", "web/vm-1").returncode == 0
    eventually(lambda: all(r["state"] == "ready" for r in facts("ps", "web")), 60, "vm-1 to be ready again")
    assert fetch(ready[hosts[0]]) == f"vm-1 on {hosts[0]}\n", "its page and its port survive"

    replayed = run("replay", "web", "--json", "--speed", "0")
    assert replayed.returncode == 0, replayed.stderr
    assert "vm.ready" in replayed.stdout

    refused = run("destroy", "web")
    assert refused.returncode == 4
    assert "3 VMs on 3 hosts" in refused.stderr
    gone = run("destroy", "web", "--yes")
    assert gone.returncode == 0, gone.stderr
    for host in lab.hosts:
        assert not list((host.state_dir / "vms").iterdir())


def test_a_guest_that_powers_off_or_panics_is_told_with_its_cause(make_lab: MakeLab, tiny: str, tmp_path: Path) -> None:
    host = make_lab(1).hosts[0].name
    extra = "".join(
        f"""[[vm]]
name = "{name}"
image = "tiny"
hosts = ["{host}"]
[vm.resources]
memory = "128MiB"
[vm.customise]
run = ["{command}"]
[vm.ready]
when = "console"
match = "never"
timeout = "60s"
"""
        for name, command in (("panics", "echo c > /proc/sysrq-trigger"), ("leaves", "poweroff -f"))
    )
    done = run("deploy", session_file(tmp_path, [host], extra=extra), "--accel", "tcg", "--json")
    assert done.returncode == 1, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    ended = {e["vm"]: e for e in events if e["event"] in ("vm.exited", "vm.failed")}
    assert ended["panics"]["cause"] == "guest-panic"
    assert ended["leaves"]["cause"] == "guest-poweroff"
    assert all(e["message"] and e["remedy"] for e in ended.values())
    assert [e["vm"] for e in events if e["event"] == "vm.ready"] == ["vm"]
