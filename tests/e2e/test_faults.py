"""Whatever is killed, broken or full: the right event with cause and remedy, nothing half made under a real name, and
`deploy` or `resume` completes the job, sending only what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Deploying, facts, run, session_file
from tests.support import Process, descendants, eventually, find_process, kill
from xenoshell.lab import Lab, LabHost, up
from xenoshell.paths import Paths

pytestmark = pytest.mark.e2e

MakeLab = Callable[..., Lab]
Start = Callable[..., Deploying]

#: Slow enough that a test can act in the middle of a transfer, fast enough not to wait long: about 10 s for `tiny`.
SLOW = "rtt=20ms,up=16mbit,down=100mbit"


def held(host: LabHost) -> set[str]:
    return set(os.listdir(host.state_dir / "blobs"))


def partial(host: LabHost) -> list[Path]:
    return list((host.state_dir / "partial").glob("*"))


def qemu(host: LabHost) -> list[Process]:
    """The QEMU processes of a lab host's VMs."""
    return [p for p in find_process("qemu-system") if _cwd(p).is_relative_to(host.state_dir)]


def supervisors(host: LabHost) -> list[Process]:
    """Guardians and supervisors of a lab host's VMs."""
    return find_process("supervise", str(host.state_dir))


def helpers(host: LabHost) -> list[Process]:
    where = os.fsencode(host.state_dir).hex()
    return [p for p in find_process("python3 -I -S -c", where) if not p.command.startswith(("sh ", "bash "))]


def _cwd(process: Process) -> Path:
    try:
        return Path(os.readlink(f"/proc/{process.pid}/cwd"))
    except OSError:
        return Path("/")


def complete(file: Path, host: LabHost) -> None:
    """The deployment can be finished, and it is sound."""
    done = run("deploy", file)
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in facts("ps", "web")] == ["ready"]
    assert len(qemu(host)) == 1
    assert not partial(host)


def in_transfer(start: Start, file: Path, share: float = 0.3) -> Deploying:
    """A deployment of which about ``share`` of the image has arrived."""
    deploying = start("deploy", file)

    def far_enough() -> bool:
        assert deploying.process.poll() is None, deploying.errors
        done: dict[str, int] = {}
        for e in deploying.named("transfer.progress"):
            done[e.get("blob", "")] = e["bytes_done"]
        needed = sum({e.get("blob", ""): e["bytes_needed"] for e in deploying.named("transfer.planned")}.values())
        return bool(needed) and sum(done.values()) >= share * needed

    eventually(far_enough, 60, "the transfer to be under way")
    return deploying


def test_a_client_killed_during_the_transfer(make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path) -> None:
    host = make_lab(1, SLOW).hosts[0]
    file = session_file(tmp_path, [host.name])
    deploying = in_transfer(start, file)
    needed = sum(e["bytes_needed"] for e in deploying.named("transfer.planned"))
    deploying.kill()
    eventually(lambda: not helpers(host), 15, "the helper to end with its connection")
    assert partial(host), "what arrived is kept"

    resumed = start("resume", "web")
    assert resumed.end() == 0, resumed.errors
    sent = sum(e["bytes_sent"] for e in resumed.named("transfer.done"))
    assert sent < 0.85 * needed, "only what was missing is sent"
    complete(file, host)


def test_a_client_killed_while_guests_boot(make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path) -> None:
    host = make_lab(1).hosts[0]
    file = session_file(tmp_path, [host.name])
    deploying = start("deploy", file)
    deploying.wait_for("vm.booting")
    deploying.kill()
    eventually(lambda: not helpers(host), 15, "the helper to end with its connection")
    before = qemu(host)
    assert len(before) == 1, "the VM goes on"
    complete(file, host)
    assert qemu(host) == before, "and is the same one"


def test_a_client_killed_while_it_watches_a_running_vm(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path
) -> None:
    host = make_lab(1).hosts[0]
    file = session_file(tmp_path, [host.name])
    assert run("deploy", file).returncode == 0
    following = start("logs", "web/vm", "-f")
    eventually(lambda: helpers(host), 15, "the helper")
    following.kill()
    eventually(lambda: not helpers(host), 15, "the helper to end")
    complete(file, host)


def test_sshd_killed_during_the_transfer(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path, paths: Paths
) -> None:
    host = make_lab(1, SLOW).hosts[0]
    file = session_file(tmp_path, [host.name])
    deploying = in_transfer(start, file)
    for process in find_process("sshd"):
        if str(host.directory) in process.command or process.parent in {
            p.pid for p in find_process("sshd", str(host.directory))
        }:
            kill(process)
    lost = deploying.wait_for("host.lost")
    assert lost["cause"] in ("connection-lost", "unreachable")
    assert lost["remedy"]
    up(paths, 1, SLOW)
    assert deploying.end() == 0, (deploying.errors, deploying.events[-5:])
    assert deploying.named("host.back")
    assert deploying.named("vm.ready")
    complete(file, host)


def test_a_helper_killed_during_the_transfer(make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path) -> None:
    host = make_lab(1, SLOW).hosts[0]
    file = session_file(tmp_path, [host.name])
    deploying = in_transfer(start, file)
    for process in helpers(host):
        kill(process)
    deploying.wait_for("host.lost")
    assert deploying.end() == 0, (deploying.errors, deploying.events[-5:])
    needed = deploying.named("transfer.planned")[0]["bytes_needed"]
    assert needed > 0
    complete(file, host)


def test_a_killed_supervisor_is_back_and_has_the_same_guest(make_lab: MakeLab, tiny: str, tmp_path: Path) -> None:
    host = make_lab(1).hosts[0]
    file = session_file(tmp_path, [host.name])
    assert run("deploy", file).returncode == 0
    before = qemu(host)
    old = supervisors(host)
    inner = max(old, key=lambda p: p.start)
    kill(inner)
    eventually(
        lambda: inner.pid not in {p.pid for p in supervisors(host)} and len(supervisors(host)) == len(old),
        10,
        "a new supervisor",
    )
    assert [row["state"] for row in facts("ps", "web")] == ["ready"]
    for process in supervisors(host):  # the guardian too
        kill(process)
    eventually(lambda: not supervisors(host), 10)
    assert [row["state"] for row in facts("ps", "web")] == ["ready"], "adopted again"
    assert qemu(host) == before
    complete(file, host)


def test_a_killed_qemu_is_told_and_started_again(make_lab: MakeLab, tiny: str, tmp_path: Path) -> None:
    host = make_lab(1).hosts[0]
    file = session_file(tmp_path, [host.name])
    assert run("deploy", file).returncode == 0
    kill(qemu(host)[0])
    row = eventually(lambda: [r for r in facts("ps", "web") if r["state"] == "exited"], 10)[0]
    assert row["cause"] == "killed"
    assert row["remedy"]
    complete(file, host)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """``small_disk(directory, size)`` puts a file system of that size there (again: changes its size)."""
    mounted: list[Path] = []

    def mount(directory: Path, size: str) -> None:
        option = f"remount,size={size}" if directory in mounted else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(directory)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
        mounted.append(directory)

    yield mount
    for directory in set(mounted):
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_host_with_a_full_disk(
    make_lab: MakeLab,
    tiny: str,
    start: Start,
    tmp_path: Path,
    small_disk: Callable[[Path, str], None],
    paths: Paths,
) -> None:
    lab = make_lab(2)
    full, fine = lab.hosts
    small_disk(full.state_dir, "6m")
    file = session_file(tmp_path, [full.name, fine.name])
    deploying = start("deploy", file)
    assert deploying.end() == 1
    refused = [e for e in deploying.events if e.get("cause") == "disk-full"]
    assert refused, deploying.events
    assert {e["host"] for e in refused} == {full.name}
    assert "free space" in refused[0]["remedy"]
    assert deploying.named("vm.ready", host=fine.name), "the other host is not concerned"
    small_disk(full.state_dir, "400m")
    resumed = start("resume", "web")
    assert resumed.end() == 0, (resumed.errors, resumed.events[-5:])
    assert {e["host"] for e in resumed.named("transfer.done")} == {full.name}
    assert run("destroy", "web", "--yes").returncode == 0


def test_a_damaged_pack_on_the_client_is_found_and_made_again(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path, paths: Paths
) -> None:
    host = make_lab(1).hosts[0]
    file = session_file(tmp_path, [host.name])
    assert run("plan", file).returncode == 0
    packs = sorted(paths.state.glob("images/packs/*/data"), key=lambda p: p.stat().st_size)
    if packs:
        damaged = packs[-1]
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 0xFF
        damaged.unlink()  # it is a hard link to the one that other tests use
        damaged.write_bytes(data)
    complete(file, host)


def test_a_host_whose_key_changed_is_refused_and_the_others_go_on(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path, paths: Paths
) -> None:
    lab = make_lab(2)
    changed, fine = lab.hosts
    known = next(paths.state.glob("lab/known_hosts*"))
    lines = known.read_text().splitlines()
    keys = [line.split()[-1] for line in lines if line.strip()]
    known.write_text(
        "\n".join(line.replace(keys[0], keys[1]) if f":{changed.port} " in line else line for line in lines)
    )
    file = session_file(tmp_path, [changed.name, fine.name])
    deploying = start("deploy", file)
    assert deploying.end() == 1
    refused = deploying.named("host.refused", host=changed.name)
    assert refused[0]["cause"] == "host-key-changed"
    assert "hosts trust" in refused[0]["remedy"]
    assert deploying.named("vm.ready", host=fine.name)
    known.write_text("\n".join(lines) + "\n")
    resumed = start("resume", "web")
    assert resumed.end() == 0, resumed.errors


def test_a_host_that_hangs_after_authentication_delays_nobody(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path
) -> None:
    lab = make_lab(2)
    hangs, fine = lab.hosts
    server = find_process("sshd", str(hangs.directory))[0]
    file = session_file(tmp_path, [hangs.name, fine.name])
    deploying = start("deploy", file)

    def freeze() -> bool:
        """Stop the session's process as soon as there is one."""
        below = [p for p in descendants(server.pid) if "notty" in p.command or "priv" in p.command]
        for process in below:
            kill(process, signal.SIGSTOP)
        return bool(deploying.named("host.connecting", host=hangs.name)) and bool(below)

    try:
        eventually(freeze, 20, "the session of the host that hangs")
        ready = deploying.wait_for("vm.ready", host=fine.name, timeout_s=60)
        assert ready["t"] < 45
        deploying.process.send_signal(signal.SIGINT)
        assert deploying.end(30) == 130
    finally:
        for process in descendants(server.pid):
            kill(process, signal.SIGCONT)
    resumed = start("resume", "web")
    assert resumed.end() == 0, (resumed.errors, resumed.events[-5:])


def test_an_interrupted_deployment_says_what_is_left(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path
) -> None:
    host = make_lab(1, SLOW).hosts[0]
    file = session_file(tmp_path, [host.name])
    deploying = in_transfer(start, file, 0.2)
    deploying.process.send_signal(signal.SIGINT)
    assert deploying.end(30) == 130
    assert "xenoshell resume web" in "".join(deploying.errors)
    eventually(lambda: not helpers(host), 15, "the helper to end")
    assert not qemu(host)
    assert not (held(host) and partial(host) == []), "it was interrupted"
    complete(file, host)
