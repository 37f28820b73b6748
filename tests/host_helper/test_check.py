"""The sanity check from the host's side: what it finds, and that every shortcoming comes with a remedy."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.host_helper.peer import running_helper, transfer
from tests.support import eventually, free_port, running
from xenoshell.host import check, facts, sshd
from xenoshell.host.unpack import find_program
from xenoshell.wire import codec
from xenoshell.wire.values import CheckLine, HostFacts

pytestmark = pytest.mark.integration

GOOD = HostFacts(
    helper="0", python="3.11.2", kernel="6.1", arch="x86_64", hostname="h", user="me", boot_id="", clock=0.0, cpus=2,
    load1=0.1, memory_mib=8192, memory_free_mib=4096, disk_free_mib=50_000, state_dir="/s", qemu="7.2.0", qemu_img=True,
    kvm="usable", codecs=("zstd", "zlib"), channel="/run/user/1/xenoshell-1-2/c", blobs=(), vms=(),
)  # fmt: skip


def test_a_helper_checks_its_host(tmp_path: Path) -> None:
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        lines = [codec.decode(CheckLine, line) for line in helper.request("check", kernel=None)["lines"]]
    assert [line.name for line in lines] == [
        "python", "hypervisor", "acceleration", "cpu", "memory", "disk", "user networking", "unpacking", "after logout",
        "sshd MaxSessions", "sshd MaxStartups", "further channels",
    ]  # fmt: skip
    for line in lines:
        assert line.level in ("fine", "limited", "failed") and line.found
        assert line.level == "fine" or line.remedy
    by_name = {line.name: line for line in lines}
    assert by_name["hypervisor"].found.startswith("QEMU ")
    assert by_name["user networking"].level == "fine"


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (check.hypervisor(GOOD), "fine"),
        (check.hypervisor(replace(GOOD, qemu="")), "failed"),
        (check.hypervisor(replace(GOOD, qemu_img=False)), "failed"),
        (check.cpu(GOOD), "fine"),
        (check.cpu(replace(GOOD, load1=9.0)), "limited"),
        (check.memory(GOOD), "fine"),
        (check.memory(replace(GOOD, memory_free_mib=800)), "limited"),
        (check.memory(replace(GOOD, memory_free_mib=100)), "failed"),
        (check.disk(GOOD, "ext4"), "fine"),
        (check.disk(GOOD, "tmpfs"), "limited"),
        (check.disk(replace(GOOD, disk_free_mib=1000), "ext4"), "limited"),
        (check.disk(replace(GOOD, disk_free_mib=10), "ext4"), "failed"),
        (check.networking(None), "failed"),
        (check.networking("/bin/false"), "failed"),
        (check.unpacking(replace(GOOD, codecs=("zlib",))), "limited"),
        (check.max_sessions(sshd.Settings({}, "")), "limited"),
        (check.max_sessions(sshd.Settings({"maxsessions": "0"}, "f")), "failed"),
        (check.max_sessions(sshd.Settings({"maxsessions": "1"}, "f")), "fine"),
        (check.max_startups(sshd.Settings({"maxstartups": "2:50:10"}, "f")), "limited"),
        (check.max_startups(sshd.Settings(sshd.DEFAULTS, "f")), "fine"),
        (check.forwarding(sshd.Settings(sshd.DEFAULTS, "f"), GOOD), "fine"),
        (check.forwarding(sshd.Settings(sshd.DEFAULTS, "f"), replace(GOOD, channel="")), "limited"),
        (check.forwarding(sshd.Settings(dict(sshd.DEFAULTS, allowstreamlocalforwarding="no"), "f"), GOOD), "limited"),
        (check.forwarding(sshd.Settings(dict(sshd.DEFAULTS, disableforwarding="yes"), "f"), GOOD), "limited"),
    ],
)
def test_levels(line: CheckLine, level: str) -> None:
    assert line.level == level
    assert (line.level == "fine") == (line.remedy == "")


def test_a_login_manager_that_kills_what_is_left_behind_is_found(tmp_path: Path) -> None:
    configuration = tmp_path / "logind.conf"
    linger = tmp_path / "linger"
    linger.mkdir()
    assert check.logout("me", str(configuration), str(linger)).level == "fine"
    configuration.write_text("[Login]\n#KillUserProcesses=no\nKillUserProcesses = yes\n")
    line = check.logout("me", str(configuration), str(linger))
    assert line.level == "failed" and "enable-linger me" in line.remedy
    (linger / "me").touch()
    assert check.logout("me", str(configuration), str(linger)).level == "fine"


def test_sshd_configuration_files_are_read_as_sshd_reads_them(tmp_path: Path) -> None:
    """First value wins, keywords in any case, Include in its place, Match blocks left out: as sshd -T says."""
    included = tmp_path / "more.conf"
    included.write_text("MaxStartups 7:30:99\nMaxSessions 77\n")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"# comment\nHostKey {key}\nmaxsessions 5 # five\nInclude {included}\nMaxSessions=6\n"
        "AllowStreamLocalForwarding local\nMatch User x\n  MaxSessions 1\n  DisableForwarding yes\n"
    )
    found: dict[str, str] = {}
    assert sshd.parse(str(config), found)
    assert found == {"maxsessions": "5", "maxstartups": "7:30:99", "allowstreamlocalforwarding": "local"}
    program = find_program("sshd")
    if program and os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
        said = sshd.settings(sshd.Listener(program, str(config)))
        assert said.source.startswith("sshd -T")
        assert said.values == dict(sshd.DEFAULTS, **found)
    assert sshd.settings(sshd.Listener(None, str(tmp_path / "none"))) == sshd.Settings({}, "")


def test_the_sshd_above_is_found_with_its_file(tmp_path: Path) -> None:
    program = find_program("sshd")
    if program is None:
        pytest.skip("no sshd here")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = tmp_path / "sshd_config"
    config.write_text(f"ListenAddress 127.0.0.1:{free_port()}\nHostKey {key}\nPidFile none\nUsePAM no\n")
    os.makedirs("/run/sshd", exist_ok=True)
    with running(program, "-D", "-f", config, stderr=subprocess.DEVNULL) as server:
        expected = sshd.Listener(program, str(config))
        eventually(lambda: sshd.listener(server.pid) == expected, what="sshd to have its title")
    assert sshd.listener(1) is None


@pytest.mark.e2e
def test_acceleration_is_tried_with_the_kernel_that_is_asked_about(tmp_path: Path) -> None:
    """A blob that is no kernel proves nothing, and the line says what happened."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm here, or not for this user")
    with running_helper(tmp_path / "s") as helper:
        helper.hello()
        digest = transfer(helper, b"no kernel" * 1000)
        lines = {line["name"]: line for line in helper.request("check", kernel=digest)["lines"]}
        assert lines["acceleration"]["level"] == "limited" and lines["acceleration"]["remedy"]
        proof = helper.request("prove", kernel=digest)
        assert not proof["works"] and proof["kernel"] == digest
        assert helper.request("facts")["kvm"] == "broken"
        assert helper.refused("prove", kernel="0" * 64)["cause"] == "not-found"


def test_facts_are_told_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, data: bytes, sync: bool = True) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\necho 'QEMU emulator version 9.1.2 (Debian 1:9.1.2)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(facts, "write_whole", full)
    assert facts.qemu(str(tmp_path), "x86_64") == facts.Qemu(str(program), "9.1.2")


def test_the_version_of_qemu_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\necho ran >>\"$0.log\"\necho 'QEMU emulator version 9.1.2 (Debian 1:9.1.2)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for _ in range(3):
        assert facts.qemu(str(tmp_path), "x86_64") == facts.Qemu(str(program), "9.1.2")
    assert Path(f"{program}.log").read_text() == "ran\n"
    program.write_text(program.read_text().replace("9.1.2", "10.0"))
    assert facts.qemu(str(tmp_path), "x86_64").version == "10.0"
    assert facts.qemu(str(tmp_path), "m68k-none") == facts.Qemu("", "")
