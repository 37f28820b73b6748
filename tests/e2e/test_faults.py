"""Whatever is killed, broken or full: the right event with cause and remedy, nothing half made under a real name, and
`deploy` or `resume` completes the job, sending only what is missing. And at the end, no process without an owner."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Deploying, facts, run, session_file
from tests.support import Process, descendants, eventually, find_process, kill, processes_of
from xenoshell.images.sparse import digest
from xenoshell.images.store import ImageStore
from xenoshell.lab import Lab, LabHost, up
from xenoshell.paths import Paths

pytestmark = pytest.mark.e2e

MakeLab = Callable[..., Lab]
Start = Callable[..., Deploying]

#: Slow enough that a test can act in the middle of a transfer, fast enough not to wait long: about 4 s for `tiny`.
SLOW = "rtt=20ms,up=40mbit,down=100mbit"
#: For tests that are not about booting: done as soon as QEMU runs the guest.
AT_ONCE = 'when = "none"'


# ---------------------------------------------------------------- what there is on a host


def blobs(host: LabHost) -> set[str]:
    """The blobs under their real names, each one really what its name says."""
    held = set(os.listdir(host.state_dir / "blobs"))
    for name in held:
        path = host.state_dir / "blobs" / name
        with path.open("rb") as file:
            assert digest(file.fileno(), path.stat().st_size, lambda *_: None) == name, "half made under a real name"
    return held


def partial(host: LabHost) -> list[Path]:
    """The directories of transfers under way."""
    return list((host.state_dir / "partial").glob("*"))


def qemu(host: LabHost) -> list[tuple[int, int]]:
    """The QEMU processes of a lab host's VMs: pid and start time."""
    return [(p.pid, p.start) for p in processes_of(host.state_dir) if p.command.startswith("qemu-system")]


def supervisors(host: LabHost) -> list[Process]:
    """Guardians and supervisors of a lab host's VMs."""
    return find_process("supervise", str(host.state_dir))


def helpers(host: LabHost) -> list[Process]:
    """What runs on a lab host over SSH."""
    where = os.fsencode(host.state_dir).hex()
    return [p for p in find_process("python3 -I -S -c", where) if not p.command.startswith(("sh ", "bash "))]


def server(host: LabHost) -> Process:
    """The sshd that listens for a lab host."""
    (found,) = find_process("sshd", f"{host.directory}/sshd_config")
    return found


def guests_work(host: LabHost) -> list[Process]:
    """Whatever runs on a lab host beside its SSH server and its relay."""
    return [p for p in processes_of(host.directory) if "sshd_config" not in p.command and "relay.py" not in p.command]


def configure(host: LabHost, text: str) -> None:
    """Have a lab host's sshd read a new configuration."""
    log = host.directory / "sshd.log"
    before = log.read_text().count("Server listening")
    (host.directory / "sshd_config").write_text(text)
    kill(server(host), signal.SIGHUP)
    eventually(lambda: log.read_text().count("Server listening") > before, 10, "sshd with its new configuration")


# ---------------------------------------------------------------- steps


def deploy(file: Path) -> None:
    done = run("deploy", file, "--accel", "tcg")
    assert done.returncode == 0, done.stdout + done.stderr


def completed(*hosts: LabHost) -> None:
    """The session is whole and each host has exactly its part; destroyed, it leaves nothing behind."""
    assert [row["state"] for row in facts("ps", "web")] == ["ready"] * len(hosts)
    for host in hosts:
        assert len(qemu(host)) == 1
        assert not partial(host)
        assert len(blobs(host)) == 3
    assert run("destroy", "web", "--yes").returncode == 0
    for host in hosts:
        eventually(lambda host=host: not guests_work(host), 15, "nothing to run on the host")  # type: ignore[misc]
        assert os.listdir(host.state_dir / "vms") == []


def planned(deploying: Deploying) -> int:
    """Packed bytes of all blobs that are to be sent."""
    return sum({e["blob"]: e["bytes_needed"] for e in deploying.named("transfer.planned")}.values())


def arrived(deploying: Deploying) -> int:
    """Packed bytes that the host has confirmed."""
    return sum({e["blob"]: e["bytes_done"] for e in deploying.named("transfer.progress")}.values())


def in_transfer(start: Start, file: Path) -> Deploying:
    """A deployment of whose image a part has arrived, and not all."""
    deploying = start("deploy", file, "--accel", "tcg")

    def far_enough() -> bool:
        assert deploying.process.poll() is None, deploying.errors
        return 0 < planned(deploying) <= 8 * arrived(deploying)

    eventually(far_enough, 90, "the transfer to be under way")
    return deploying


def missing(deploying: Deploying) -> int:
    """Packed bytes that the host has not confirmed."""
    return planned(deploying) - arrived(deploying)


def sent_after(events: list[dict[str, Any]], name: str) -> int:
    """Packed bytes sent after the first event of that name."""
    first = next(number for number, e in enumerate(events) if e["event"] == name)
    return sum(e["bytes_sent"] for e in events[first:] if e["event"] == "transfer.done")


def explained(event: dict[str, Any], *causes: str) -> None:
    """It says why, and what to do about it."""
    assert event["cause"] in causes, event
    assert event["message"] and event["remedy"], event


# ---------------------------------------------------------------- the client


def test_a_client_killed_during_the_transfer(make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path) -> None:
    (host,) = make_lab(1, SLOW).hosts
    deploying = in_transfer(start, session_file(tmp_path, [host.name]))
    deploying.kill()
    eventually(lambda: not guests_work(host), 15, "the helper to end with its connection")
    assert partial(host), "what arrived is kept"
    assert len(blobs(host)) < 3

    resumed = start("resume", "web", "--accel", "tcg")
    assert resumed.end() == 0, resumed.errors
    assert 0 < sent_after(resumed.events, "session.started") <= missing(deploying), "nothing is sent twice"
    completed(host)


def test_a_client_killed_while_its_guest_boots_and_while_it_runs(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path
) -> None:
    (host,) = make_lab(1).hosts
    file = session_file(tmp_path, [host.name])
    deploying = start("deploy", file, "--accel", "tcg")
    deploying.wait_for("vm.booting")
    deploying.kill()
    eventually(lambda: not helpers(host), 15, "the helper to end with its connection")
    before = qemu(host)
    assert len(before) == 1, "the VM goes on"
    deploy(file)

    following = start("logs", "web/vm", "-f")
    eventually(lambda: any("Linux version" in e["line"] for e in list(following.events)), 30, "the log")
    following.kill()
    eventually(lambda: not helpers(host), 15, "the helper to end with its connection")
    again = start("deploy", file, "--accel", "tcg")
    assert again.end() == 0, again.errors
    assert not again.named("vm.created") and not again.named("transfer.planned"), "there was nothing to do"
    assert qemu(host) == before, "and it is the same one"
    completed(host)


def test_an_interrupted_deployment_says_what_is_left_and_what_rotted_meanwhile_is_sent_again(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path
) -> None:
    (host,) = make_lab(1, SLOW).hosts
    deploying = in_transfer(start, session_file(tmp_path, [host.name]))
    deploying.process.send_signal(signal.SIGINT)
    assert deploying.end(30) == 130
    assert "xenoshell resume web" in "".join(deploying.errors)
    eventually(lambda: not guests_work(host), 15, "the helper to end")

    rotten = max(partial(host), key=lambda p: (p / "data").stat().st_blocks) / "data"
    with rotten.open("r+b") as file:
        at = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 0xFF]), at)
    resumed = start("resume", "web", "--accel", "tcg")
    assert resumed.end() == 0, resumed.errors
    completed(host)


# ---------------------------------------------------------------- the connection


def test_sshd_killed_during_the_transfer(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path, paths: Paths
) -> None:
    (host,) = make_lab(1, SLOW).hosts
    deploying = in_transfer(start, session_file(tmp_path, [host.name]))
    left = missing(deploying)
    listener = server(host)
    for process in (listener, *descendants(listener.pid)):  # all of them were found before the first one dies
        if "sshd" in process.command:
            kill(process)
    explained(deploying.wait_for("host.lost", host=host.name), "connection-lost", "unreachable")
    eventually(lambda: not helpers(host), 15, "the helper to end with its connection")
    blobs(host)
    up(paths, 1)
    assert deploying.end() == 0, (deploying.errors, deploying.events[-5:])
    assert deploying.named("vm.ready", host=host.name)
    assert 0 < sent_after(deploying.events, "host.back") <= left, "nothing is sent twice"
    completed(host)


def test_a_helper_killed_during_the_transfer(make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path) -> None:
    (host,) = make_lab(1, SLOW).hosts
    deploying = in_transfer(start, session_file(tmp_path, [host.name]))
    left = missing(deploying)
    for process in helpers(host):
        kill(process)
    explained(deploying.wait_for("host.lost", host=host.name), "connection-lost")
    assert deploying.end() == 0, (deploying.errors, deploying.events[-5:])
    assert deploying.named("vm.ready", host=host.name)
    assert 0 < sent_after(deploying.events, "host.back") <= left, "nothing is sent twice"
    completed(host)


def test_a_host_that_hangs_after_authentication_delays_nobody_and_is_waited_for(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path
) -> None:
    hangs, fine = make_lab(2).hosts
    config = hangs.directory / "sshd_config"
    text = config.read_text()
    configure(hangs, text + "ForceCommand exec cat >/dev/null\n")  # lets the user in, and then says nothing
    deploying = start("deploy", session_file(tmp_path, [hangs.name, fine.name], ready=AT_ONCE), "--accel", "tcg")
    lost = deploying.wait_for("host.lost", host=hangs.name)
    explained(lost, "timeout")
    assert deploying.named("vm.ready", host=fine.name), "the other one did not wait for it"

    configure(hangs, text)
    assert deploying.end() == 0, (deploying.errors, deploying.events[-5:])
    assert deploying.named("vm.ready", host=hangs.name)
    completed(hangs, fine)


def test_a_host_whose_key_changed_is_refused_and_the_others_go_on(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path, paths: Paths
) -> None:
    lab = make_lab(2)
    changed, fine = lab.hosts
    known = lab.directory / "known_hosts"
    true = known.read_text()
    keys = {line.split()[0]: line.split()[-1] for line in true.splitlines()}
    ours, other = (next(key for name, key in keys.items() if str(host.port) in name) for host in (changed, fine))
    known.write_text(true.replace(ours, other))
    deploying = start("deploy", session_file(tmp_path, [changed.name, fine.name], ready=AT_ONCE), "--accel", "tcg")
    assert deploying.end() == 1
    (refused,) = deploying.named("host.refused", host=changed.name)
    explained(refused, "host-key-changed")
    assert "hosts trust" in refused["remedy"]
    assert deploying.named("vm.ready", host=fine.name)
    assert os.listdir(changed.state_dir) == [], "it got nothing"
    known.write_text(true)
    resumed = start("resume", "web", "--accel", "tcg")
    assert resumed.end() == 0, resumed.errors
    completed(changed, fine)


# ---------------------------------------------------------------- on the host


def test_a_killed_supervisor_is_back_and_has_the_same_guest(make_lab: MakeLab, tiny: str, tmp_path: Path) -> None:
    (host,) = make_lab(1).hosts
    deploy(session_file(tmp_path, [host.name], ready=AT_ONCE))
    before = qemu(host)
    guardian, supervisor = sorted(supervisors(host), key=lambda p: (p.start, p.pid))
    assert supervisor.parent == guardian.pid

    kill(supervisor)
    eventually(lambda: replaced(host, {supervisor.pid}), 10, "a new supervisor")
    assert [row["state"] for row in facts("ps", "web")] == ["ready"]

    kill(guardian)
    eventually(lambda: replaced(host, {guardian.pid}), 10, "a new guardian")
    assert [row["state"] for row in facts("ps", "web")] == ["ready"]

    both = supervisors(host)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # as if at once: neither sees the other die
        for process in both:
            kill(process, number)
    eventually(lambda: not supervisors(host), 10, "the end of both")
    assert [row["state"] for row in facts("ps", "web")] == ["ready"], "the next helper adopts it"
    assert len(supervisors(host)) == 2
    assert qemu(host) == before, "whatever died, the guest went on"
    completed(host)


def replaced(host: LabHost, gone: set[int]) -> bool:
    """Whether there are a guardian and a supervisor again, without those that died."""
    now = {p.pid for p in supervisors(host)}
    return len(now) == 2 and not now & gone


def test_a_qemu_killed_while_its_guest_boots_is_told_and_started_again(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path
) -> None:
    (host,) = make_lab(1).hosts
    file = session_file(tmp_path, [host.name])
    deploying = start("deploy", file, "--accel", "tcg")
    deploying.wait_for("vm.running")
    kill(qemu(host)[0][0])
    assert deploying.end() == 1
    explained(deploying.named("vm.exited")[0], "killed")
    (row,) = facts("ps", "web")
    assert (row["state"], row["cause"]) == ("exited", "killed")
    assert row["remedy"]
    assert not qemu(host)
    deploy(file)
    completed(host)


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
        if directory not in mounted:
            mounted.append(directory)

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_host_with_a_full_disk(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path, small_disk: Callable[[Path, str], None]
) -> None:
    full, fine = make_lab(2).hosts
    small_disk(full.state_dir, "6m")
    deploying = start("deploy", session_file(tmp_path, [full.name, fine.name], ready=AT_ONCE), "--accel", "tcg")
    assert deploying.end() == 1
    refused = [e for e in deploying.events if e.get("cause") == "disk-full"]
    assert {e["host"] for e in refused} == {full.name}
    assert "free space" in refused[0]["remedy"]
    assert deploying.named("vm.ready", host=fine.name), "the other host is not concerned"
    assert not qemu(full)
    whole = blobs(full)
    small_disk(full.state_dir, "400m")
    resumed = start("resume", "web", "--accel", "tcg")
    assert resumed.end() == 0, (resumed.errors, resumed.events[-5:])
    done = resumed.named("transfer.done")
    assert done and {e["host"] for e in done} == {full.name}
    assert not whole & {e["blob"] for e in done}, "what was whole is not sent again"
    completed(full, fine)


# ---------------------------------------------------------------- the image


def test_a_damaged_pack_on_the_client_is_found_and_made_again(
    make_lab: MakeLab, tiny: str, start: Start, tmp_path: Path, paths: Paths
) -> None:
    (host,) = make_lab(1).hosts
    store = ImageStore(paths.images)
    disk = store.get(tiny).manifest.disk
    assert disk is not None
    store.recipe(disk.digest, "zstd")
    pack = paths.images / "packs" / f"{disk.digest}.zstd" / "data"
    good = pack.read_bytes()
    half = len(good) // 2
    pack.unlink()  # it may be a hard link to the one that other tests use
    pack.write_bytes(good[:half] + bytes([good[half] ^ 0xFF]) + good[half + 1 :])
    deploy(session_file(tmp_path, [host.name]))
    assert pack.read_bytes() == good, "made again from the image, by the same recipe"
    completed(host)
