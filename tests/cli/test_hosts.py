"""The inventory by commands, with a real sshd where keys are looked at."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import Run, on_terminal
from xenoshell.deploy.record import SessionStore, new_record
from xenoshell.deploy.specs import Entry
from xenoshell.fleet import facts
from xenoshell.lab import Lab
from xenoshell.paths import Paths
from xenoshell.wire.values import Ready, VmSpec

pytestmark = pytest.mark.integration

SPEC = VmSpec(
    id="web.vm.12345678", session="web", session_id="12345678", name="vm", arch="x86_64", vcpus=1, memory_mib=64,
    disk_bytes=0, disk=None, boot="kernel", kernel="0" * 64, initrd=None, cmdline="", accel="auto", network="user",
    mac="52:54:00:00:00:01", forwards=(), ready=Ready("none"), lease_s=0, budget_s=0, seed_size=0, seed_sha256="",
)  # fmt: skip


def test_add_list_remove(run: Run, paths: Paths) -> None:
    done = run("hosts", "add", "ams", "root@ams.example:2222", "--region", "eu", "--label", "tier=edge")
    assert (done.code, done.out) == (0, "")
    assert "hosts trust ams" in done.err
    table = run("hosts", "list")
    assert "ams" in table.out and "eu" in table.out and "tier=edge" in table.out
    (host,) = json.loads(run("hosts", "list", "--json").out)
    assert host["ssh"] == "root@ams.example:2222"
    assert host["lab"] is False
    assert run("hosts", "remove", "ams").code == 0  # it has no VMs: nothing to ask
    assert json.loads(run("hosts", "list", "--json").out) == []


def test_what_cannot_be_a_host_says_all_that_is_wrong(run: Run, paths: Paths) -> None:
    done = run("hosts", "add", "AMS", "-oProxyCommand=x@y", "--label", "tier")
    assert done.code == 2
    done = run("hosts", "add", "AMS", "a b c")
    assert done.code == 2
    assert "name" in done.err and "ssh" in done.err and "allowed" in done.err
    assert not paths.hosts_file.exists()


def test_a_name_is_taken_once(run: Run) -> None:
    run("hosts", "add", "ams", "root@ams.example")
    done = run("hosts", "add", "ams", "root@other.example")
    assert done.code == 2
    assert "ams" in done.err


def test_a_host_with_vms_is_not_removed_unasked(run: Run, paths: Paths) -> None:
    run("hosts", "add", "ams", "root@ams.example")
    record = new_record("web", owner="me", created=1.0, base_dir=Path("/"))
    SessionStore(paths.sessions).save(replace(record, vms={"vm": Entry("ams", SPEC)}))
    done = run("hosts", "remove", "ams")
    assert done.code == 4
    assert "1 VM on ams" in done.err and "web" in done.err
    assert "ams" in run("hosts", "list").out
    assert run("hosts", "remove", "ams", "--yes").code == 0


def test_an_unknown_name_gets_the_nearest(run: Run) -> None:
    run("hosts", "add", "ams-1", "root@ams.example")
    for command in ("check", "trust", "remove"):
        done = run("hosts", command, "ams-l")
        assert done.code == 2
        assert "ams-1" in done.err


@pytest.fixture
def stranger(make_lab: Callable[..., Lab], run: Run) -> tuple[Lab, str]:
    """A real sshd under a name of the user's own, whose key nobody knows yet."""
    lab = make_lab(1)
    (host,) = lab.hosts
    assert run("hosts", "add", "mine", f"root@127.0.0.1:{host.port}").code == 0
    listed = subprocess.run(
        ["ssh-keygen", "-lf", str(host.directory / "host_key.pub")], capture_output=True, text=True, check=True
    )
    return lab, listed.stdout.split()[1]


def test_a_key_is_shown_and_never_pinned_unasked(run: Run, stranger: tuple[Lab, str], paths: Paths) -> None:
    _, fingerprint = stranger
    done = run("hosts", "trust", "mine")
    assert done.code == 4
    assert fingerprint in done.err
    assert not paths.known_hosts.exists()
    wrong = run("hosts", "trust", "mine", "--fingerprint", "SHA256:" + "A" * 43)
    assert wrong.code == 4
    assert fingerprint in wrong.err
    assert not paths.known_hosts.exists()


def test_a_key_is_pinned_by_its_fingerprint_once(run: Run, stranger: tuple[Lab, str], paths: Paths) -> None:
    _, fingerprint = stranger
    done = run("hosts", "trust", "mine", "--fingerprint", fingerprint, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {
        "host": "mine", "type": "ssh-ed25519", "fingerprint": fingerprint, "known": "unknown", "pinned": True,
    }  # fmt: skip
    pinned = paths.known_hosts.read_text()
    again = run("hosts", "trust", "mine")
    assert again.code == 0
    assert "known already" in again.err
    assert paths.known_hosts.read_text() == pinned
    assert run("hosts", "trust", "mine", "--fingerprint", fingerprint).code == 0
    wrong = run("hosts", "trust", "mine", "--fingerprint", "SHA256:" + "A" * 43)
    assert wrong.code == 4, "a known key is no better than the fingerprint that was asked for"


def test_another_key_is_refused_until_it_is_replaced(run: Run, stranger: tuple[Lab, str], paths: Paths) -> None:
    lab, _ = stranger
    other = paths.config / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    key = " ".join(Path(f"{other}.pub").read_text().split()[:2])
    paths.known_hosts.write_text(f"[127.0.0.1]:{lab.hosts[0].port} {key}\n")
    refused = run("hosts", "trust", "mine", "--yes")
    assert refused.code == 4
    assert "host-key-changed" in refused.err
    assert key in paths.known_hosts.read_text()
    assert run("hosts", "trust", "mine", "--replace").code == 4  # asked, and nobody there
    assert run("hosts", "trust", "mine", "--replace", "--yes").code == 0
    assert key not in paths.known_hosts.read_text()


def test_on_a_terminal_the_question_decides(stranger: tuple[Lab, str], paths: Paths) -> None:
    import sys

    words = (sys.executable, "-m", "xenoshell", "hosts", "trust", "mine")
    assert on_terminal(*words, script=[("Go on?", "n\n")]).code == 4
    assert not paths.known_hosts.exists()
    assert on_terminal(*words, script=[("Go on?", "y\n")]).code == 0
    assert paths.known_hosts.exists()


def test_a_lab_host_passes_the_check_and_one_that_is_down_does_not(run: Run, lab: Lab) -> None:
    name = lab.hosts[0].name
    good = run("hosts", "check", name)
    assert good.code == 0, good.out + good.err
    assert "fine" in good.out and "host key" in good.out
    document = json.loads(run("hosts", "check", name, "--json").out)
    assert document["fit"] is True
    run("hosts", "add", "nobody", "root@127.0.0.1:1")
    bad = run("hosts", "check", "nobody")
    assert bad.code == 3
    assert "failed" in bad.out and "to do:" in bad.out


def test_lab_hosts_are_in_the_list_and_leave_with_the_lab(run: Run, lab: Lab, paths: Paths) -> None:
    name = lab.hosts[0].name
    known = facts._path(paths, name)
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text("{}")
    assert name in run("hosts", "list").out
    done = run("hosts", "remove", name)
    assert done.code == 2
    assert "lab down" in done.err
    (row,) = json.loads(run("lab", "status", "--json").out)
    assert (row["host"], row["up"]) == (name, True)
    assert run("lab", "down").code == 0
    assert json.loads(run("hosts", "list", "--json").out) == []
    assert not known.exists()  # the next lab's host of that name holds nothing of what this one held


def test_a_host_may_have_a_key_file_of_its_own(run: Run, paths: Paths, tmp_path: Path) -> None:
    assert run("hosts", "add", "mine", "me@mine.example", "--identity", tmp_path / "key").code == 0
    (host,) = json.loads(run("hosts", "list", "--json").out)
    assert host["ssh_options"]["identity"] == str(tmp_path / "key")
