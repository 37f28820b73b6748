"""A session with its image store, record and event log on disk; only the hosts are made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.deploy.fakes import QUICK, FakeConnector, FakeHost, host
from xenoshell.deploy.operate import operate, targets
from xenoshell.deploy.record import SessionStore
from xenoshell.deploy.replay import read_events
from xenoshell.deploy.service import (
    Options,
    Prepared,
    deploy_session,
    plan_session,
    prepare,
    quote_session,
    recorded_session,
    survey,
)
from xenoshell.errors import BadInput
from xenoshell.fleet.inventory import Inventory
from xenoshell.images.store import ImageStore
from xenoshell.paths import Paths
from xenoshell.session.load import load_session
from xenoshell.wire.causes import Failure

FILE = """\
schema = 1  # mine
name = "web"
[[vm]]
name = "vm"
kernel = "vmlinuz"
hosts = ["a", "b"]
[[vm.customise.file]]
path = "/etc/motd"
source = "motd"
"""
INVENTORY = Inventory((host("a"), host("b")))


def prepared(tmp_path: Path, paths: Paths, text: str = FILE) -> Prepared:
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)
    (project / "vmlinuz").write_bytes(b"MZ" + bytes(20_000) + b"end")
    (project / "motd").write_text("hello\n")
    (project / "web.toml").write_text(text)
    return prepare(load_session(project / "web.toml"), INVENTORY, ImageStore(paths.images), paths)


async def test_from_quote_to_resume_to_destroy(tmp_path: Path, paths: Paths) -> None:
    fakes = {"a": FakeHost(), "b": FakeHost(always_fails=Failure("unreachable", "b: down"))}
    connector, session = FakeConnector(fakes), prepared(tmp_path, paths)
    sent = quote_session(session).hosts[0].transfer_bytes
    assert 0 < sent <= 20_480, "holes of the kernel are not counted, and it was not packed yet"
    planned = plan_session(session, known=await survey(INVENTORY.hosts, connector, QUICK))
    assert planned.blast_radius == "creates 2 VMs on 2 hosts"

    outcome = await deploy_session(session, connector, paths, policy=QUICK)
    assert [v.state for v in outcome.vms] == ["ready", "failed"] and outcome.exit_code == 1
    store = SessionStore(paths.sessions)
    assert store.session_file("web").read_text() == FILE
    record = store.load("web")
    assert set(record.vms) == {"vm-1", "vm-2"}, "the place of a host that was only out of reach is kept"
    assert record.vms["vm-1"].spec.seed_size > 0 and record.base_dir == str(tmp_path / "project")
    assert [e.event for e in read_events(store.events_file("web"))][-1] == "session.done"

    fakes["b"].always_fails = None
    again = recorded_session("web", paths)
    assert again.base_dir == tmp_path / "project"
    resumed = prepare(again, INVENTORY, ImageStore(paths.images), paths)
    outcome = await deploy_session(resumed, connector, paths, policy=QUICK)
    assert outcome.exit_code == 0 and outcome.session_id == record.session_id
    assert fakes["a"].calls.count("create vm-1") == 1

    planned = plan_session(resumed, Options(), await survey(INVENTORY.hosts, connector, QUICK))
    assert planned.blast_radius == "changes nothing" and planned.bytes_to_send == 0
    (tmp_path / "project/motd").write_text("changed\n")
    planned = plan_session(resumed, Options(replace=True), await survey(INVENTORY.hosts, connector, QUICK))
    assert planned.destructive and planned.blast_radius == "replaces 2 VMs on 2 hosts"
    json.dumps(planned.to_json())
    json.dumps(outcome.to_json())

    chosen = targets(store, "web")
    results = await operate("destroy", chosen, INVENTORY, connector, store, policy=QUICK)
    assert all(r.done for r in results) and store.names() == ()
    assert all(not f.vms for f in fakes.values())


async def test_two_deployments_of_one_session_refuse_each_other(tmp_path: Path, paths: Paths) -> None:
    session = prepared(tmp_path, paths)
    with SessionStore(paths.sessions).locked("web"), pytest.raises(Failure) as caught:
        await deploy_session(session, FakeConnector({}), paths, policy=QUICK)
    assert caught.value.cause == "busy"


async def test_a_deployment_after_destroy_is_a_new_session(tmp_path: Path, paths: Paths) -> None:
    connector, store = FakeConnector({"a": FakeHost(), "b": FakeHost()}), SessionStore(paths.sessions)
    first = await deploy_session(prepared(tmp_path, paths), connector, paths, policy=QUICK)
    await operate("destroy", targets(store, "web"), INVENTORY, connector, store, policy=QUICK)
    second = await deploy_session(prepared(tmp_path, paths), connector, paths, policy=QUICK)
    assert second.exit_code == 0 and second.session_id != first.session_id


def test_a_host_that_does_not_exist_is_bad_input_with_the_nearest_name(tmp_path: Path, paths: Paths) -> None:
    with pytest.raises(BadInput, match="no host is called 'bb'"):
        prepared(tmp_path, paths, FILE.replace('"b"', '"bb"'))
