"""Orders and accidents in every state of a VM.

The guest is a BIOS that finds nothing to boot: there in a moment, and deaf to ACPI.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.host_vm.guests import Guest, Host, gone, spec
from tests.support import eventually, free_port
from xenoshell.host import locks, proc, sweep
from xenoshell.host.vmdir import VmDir, adopt, list_vms, tidy
from xenoshell.wire import codec, frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Forward, Ready, VmSpec

pytestmark = pytest.mark.e2e


def idle(**fields: object) -> VmSpec:
    """A VM with an empty disk."""
    basic = {"boot": "disk", "kernel": None, "disk_bytes": 1 << 20, "ready": Ready("none"), "stop_grace_s": 0.3}
    return spec(**{"memory_mib": 32, **basic, **fields})


def test_orders_are_obeyed_once(host: Host) -> None:
    guest = Guest(host, idle())
    first = guest.until("ready")
    assert first.run == 1
    guest.order("running", "a")  # it runs: nothing to do
    assert guest.status().run == 1
    for _ in range(3):  # the same operation again is no new order
        guest.order("restart", "b")
        assert guest.dir.read_wanted().run == 2
    again = guest.until(lambda s: s.run == 2 and s.state == "ready")
    assert again.pid != first.pid and not proc.identify(first.pid).started
    guest.order("stopped")
    began = time.monotonic()
    assert guest.until("exited", 10).cause == "stopped"  # it does not listen, so it is made to
    assert time.monotonic() - began < 8  # the grace is 0.3 s
    guest.order("stopped")
    assert guest.status().state == "exited"
    guest.order("running", "c")
    guest.order("running", "c")
    assert guest.until("ready").run == 3
    guest.dir.want("destroyed", "d")
    with pytest.raises(Failure, match="being destroyed"):
        guest.dir.want("running", "e")
    with guest.talk() as talk:
        talk.ask("poke")
    eventually(lambda: os.listdir(host.vms) == [])
    with pytest.raises(Failure) as caught:
        guest.dir.want("running", "f")
    assert caught.value.cause == "not-found"


@pytest.mark.parametrize("state", ["creating", "ready", "stopping", "exited"])
def test_destroying_leaves_nothing_in_any_state(host: Host, state: str) -> None:
    guest = Guest(host, idle(stop_grace_s=30.0 if state == "stopping" else 0.1))
    if state != "creating":
        guest.until("ready")
    if state in ("stopping", "exited"):
        guest.order("stopped")
        guest.until(state)
    keepers = eventually(guest.keepers)
    guest.order("destroyed")
    eventually(lambda: os.listdir(host.vms) == [])
    for process in keepers:
        gone(process)
    assert sweep.processes(str(host.state)) == []


def test_a_vm_is_created_whole_once_and_only_from_one_specification(host: Host) -> None:
    guest = Guest(host, idle())
    guest.until("ready")
    guest.dir.create(guest.spec, b"")  # again: nothing
    assert guest.status().run == 1
    with pytest.raises(Failure, match="another specification"):
        guest.dir.create(idle(vcpus=2), b"")
    other = VmDir(str(host.vms), "edge.web-2.0123abcd")
    with pytest.raises(Failure, match="SHA-256"):
        other.create(idle(id=other.id, seed_size=4, seed_sha256="0" * 64), b"seed")
    assert list_vms(str(host.vms)) == [guest.spec.id]
    for name in ("../x", "a/b", "", ".", "A", "x" * 200, None):
        with pytest.raises(Failure) as caught:
            VmDir(str(host.vms), name)  # type: ignore[arg-type]
        assert caught.value.cause == "bad-request"


def test_what_failed_says_why_leaves_nothing_running_and_is_made_anew(host: Host) -> None:
    kernel = host.blob(Path(__file__))
    guest = Guest(host, idle(boot="kernel", kernel=kernel))
    failed = guest.until("failed")
    assert failed.cause == "qemu-failed" and "kernel" in failed.message and failed.pid == 0
    assert not proc.qemus_in(guest.dir.path)
    again = Guest(host, idle())
    assert again.until("ready").run == 1
    missing = Guest(host, idle(id="edge.web-2.0123abcd", disk="f" * 64))
    failed = missing.until("failed")
    assert (failed.cause, failed.message) == ("not-found", "blob %s is not on this host" % ("f" * 64))


def test_a_fixed_port_in_use_is_named_with_its_holder(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        guest = Guest(host, idle(forwards=(Forward(80, port),)))
        failed = guest.until("failed")
        assert failed.cause == "port-in-use"
        assert f"port {port} at 127.0.0.1 is in use by python" in failed.message and str(os.getpid()) in failed.message
    guest.order("running")
    assert guest.until("ready").forwards == (Forward(80, port),)


def test_two_vms_do_not_get_the_same_port(host: Host) -> None:
    forwards = (Forward(80), Forward(53, 0, "udp", "0.0.0.0"))
    guests = [Guest(host, idle(id=f"edge.web-{n}.0123abcd", forwards=forwards)) for n in (1, 2)]
    found = [guest.until("ready").forwards for guest in guests]
    assert len({(f.proto, f.host) for each in found for f in each}) == 4
    again = found[0]
    guests[0].order("restart")
    assert guests[0].until(lambda s: s.run == 2 and s.state == "ready").forwards == again


def test_a_reboot_of_the_host_is_told_from_a_kill(host: Host) -> None:
    guest = Guest(host, idle(lease_s=100.0))
    for boot_id, cause in (("another boot", "host-rebooted"), (proc.boot_id(), "killed")):
        guest.until("ready")
        guest.kill_keepers()
        guest.kill_qemu()
        eventually(lambda: not proc.qemus_in(guest.dir.path))
        path = Path(guest.dir.file("state.json"))
        state = json.loads(path.read_text())
        state["book"]["boot_id"] = boot_id
        path.write_text(json.dumps(state))
        guest.adopt()
        status = guest.until("exited")
        assert status.cause == cause and status.pid == 0
        guest.order("running")
    assert guest.until("ready").run == 3


def test_a_supervisor_that_died_before_qemu_ran_is_continued(host: Host) -> None:
    guest = Guest(host, idle())
    guest.until("ready")
    guest.kill_keepers()
    guest.kill_qemu()
    eventually(lambda: not proc.qemus_in(guest.dir.path))
    path = Path(guest.dir.file("state.json"))
    state = json.loads(path.read_text())
    for text in (codec.dumps({**state, "status": {**state["status"], "state": "booting"}}), b"", b'{"status": 7}'):
        path.write_bytes(text)  # the last two: what a power cut may leave
        guest.adopt()
        assert guest.until("ready").run == 1
        guest.kill_keepers()
        guest.kill_qemu()
        eventually(lambda: not proc.qemus_in(guest.dir.path))


def test_a_stop_under_way_is_continued_by_the_next_supervisor(host: Host) -> None:
    guest = Guest(host, idle(stop_grace_s=1.0))
    guest.until("ready")
    guest.order("stopped")
    guest.until("stopping")
    os.kill(guest.keepers()[1].pid, signal.SIGKILL)
    eventually(lambda: guest.status().state == "exited", 6.0)
    assert guest.status().cause == "stopped" and not proc.qemus_in(guest.dir.path)


def test_a_qemu_that_hangs_is_killed_when_it_has_to_go(host: Host) -> None:
    guest = Guest(host, idle())
    status = guest.until("ready")
    os.kill(status.pid, signal.SIGSTOP)
    guest.order("stopped")
    assert guest.until("exited", 10).cause == "stopped"
    assert not proc.identify(status.pid).started


def test_a_supervisor_that_keeps_dying_is_left_alone_for_a_while_and_the_next_helper_brings_it_back(
    host: Host,
) -> None:
    guest = Guest(host, idle())
    status = guest.until("ready")
    guardian = guest.keepers()[0]
    for _ in range(5):
        supervisor = eventually(guest.keepers)[1]
        eventually(guest.dir.supervisor_alive)
        os.kill(supervisor.pid, signal.SIGKILL)
        gone(supervisor)
    log = Path(guest.dir.file("supervisor.log"))
    eventually(lambda: "trying again" in log.read_text())
    assert proc.alive(guardian) and not guest.dir.supervisor_alive()
    guest.adopt()
    assert guest.until("ready").pid == status.pid
    os.kill(guardian.pid, signal.SIGKILL)  # in a minute it would find the new ones and go
    gone(guardian)


def test_a_guardian_tries_again_after_its_pause(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.touch()
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from xenoshell.host import guardian
guardian.WITHIN_S = 0.2
def supervise(guard, announce):
    with open({str(count)!r}, "a") as file:
        file.write("x")
    with open({str(count)!r}) as file:
        return int(len(file.read()) < 7)
guardian.start(supervise)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20, stderr=subprocess.DEVNULL)
    eventually(lambda: count.read_text() == "x" * 7)


def test_many_helpers_adopt_one_supervisor(host: Host) -> None:
    guest = Guest(host, idle())
    guest.until("ready")
    guest.kill_keepers()
    with ThreadPoolExecutor(5) as pool:
        for adoption in [pool.submit(guest.adopt) for _ in range(5)]:
            adoption.result(15)
    assert guest.until("ready").run == 1
    eventually(lambda: len(guest.keepers()) == 2)


def test_a_lease_ends_a_guest_that_does_not_listen_and_a_new_one_lets_it_start(host: Host) -> None:
    guest = Guest(host, idle(lease_s=2.0))
    status = guest.until("exited", 15)
    assert status.cause == "lease-expired" and status.lease_left_s == 0
    assert 2 <= status.usage.uptime_s < 15
    guest.order("running")
    again = guest.until("ready")
    assert again.run == 2 and again.lease_left_s > 1
    with guest.talk() as talk:
        assert talk.ask("renew", lease_s=1000.0)["lease_left_s"] == pytest.approx(1000, abs=1)
    guest.order("restart")
    later = guest.until(lambda s: s.run == 3 and s.state == "ready", 10)
    assert later.pid != again.pid and later.lease_left_s > 900


def test_a_budget_is_counted_over_all_runs(host: Host) -> None:
    guest = Guest(host, idle(budget_s=1.5))
    guest.until("ready")
    guest.order("restart")
    status = guest.until(lambda s: s.cause == "budget-spent", 8)
    assert status.state == "exited" and status.run == 2 and 1.5 <= status.usage.uptime_s < 15
    guest.order("running")
    assert guest.until(lambda s: s.run == 3).cause in ("", "budget-spent")
    assert guest.until("exited").cause == "budget-spent"
    assert not proc.qemus_in(guest.dir.path)

    with guest.talk() as talk:
        talk.ask("renew", lease_s=0, budget_s=1000)
    guest.kill_keepers()
    guest.adopt()  # it is written down
    guest.order("running")
    assert guest.until("ready").run == 4
    with guest.talk() as talk:
        assert talk.ask("renew", lease_s=0)["state"] == "ready"  # not named: as it was
        talk.ask("renew", lease_s=0, budget_s=0)  # no limit
        assert talk.ask("status")["state"] == "ready"
        talk.ask("renew", lease_s=0, budget_s=1)
    assert guest.until("exited").cause == "budget-spent"


#: What makes the wall clock of a supervisor jump, as when somebody sets the machine's. Nothing but it is touched.
WALL_CLOCK = """
import time

def jumped(read, second):
    return lambda *clock: read(*clock) + second * (clock in ((), (time.CLOCK_REALTIME,)) and int(open({file!r}).read()))

time.time, time.time_ns = jumped(time.time, 1), jumped(time.time_ns, 10**9)
time.clock_gettime = jumped(time.clock_gettime, 1)
time.clock_gettime_ns = jumped(time.clock_gettime_ns, 10**9)
"""
TEN_YEARS_S = 10 * 365 * 86400


def test_a_clock_jump_moves_no_lease(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "jump"

    def jump(seconds: int) -> None:
        (tmp_path / "new").write_text(str(seconds))
        (tmp_path / "new").rename(file)

    def wall_until() -> float:
        return float(json.loads(Path(guest.dir.file("state.json")).read_text())["book"]["lease"]["wall_until"])

    jump(0)
    host.library.write_text(WALL_CLOCK.format(file=str(file)) + host.library.read_text())
    guest = Guest(host, idle(lease_s=1000.0))
    first = guest.until("ready")
    for seconds in (TEN_YEARS_S, -TEN_YEARS_S):
        silent_s = guest.status().silent_s
        jump(seconds)
        guest.until(lambda s, before=silent_s: s.silent_s > before + 0.8)  # type: ignore[misc]  # it looked at its clocks
        guest.kill_keepers()
        guest.adopt()  # from what was written down, with another wall clock than then
        status = guest.until("ready")
        assert status.pid == first.pid
        assert 800 < status.lease_left_s < 1000
    with guest.talk() as talk:
        talk.ask("renew", lease_s=1.0)
    assert eventually(lambda: wall_until() < time.time() - TEN_YEARS_S / 2), "the jump was felt"
    ended = guest.until("exited", 20)
    assert ended.cause == "lease-expired"
    assert ended.usage.uptime_s < 200


def test_garbage_on_the_socket_harms_nobody_else(host: Host) -> None:
    guest = Guest(host, idle())
    guest.until("ready")
    with guest.talk() as talk:
        talk.connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        frame = talk.take(0)
        assert frame.type == frames.ERROR and codec.loads(frame.payload)["cause"] == "protocol"
        with pytest.raises(EOFError):
            talk.take(0)
    with guest.talk() as talk:
        wrong: tuple[tuple[str, object], ...] = (("explode", 1), ("renew", "x"), ("console", -1), ("", 0), ("logs", []))
        for verb, value in wrong:
            with pytest.raises(Failure) as caught:
                talk.ask(verb, lease_s=value, replay=value, tail=value)
            assert caught.value.cause == "bad-request"
        with pytest.raises(Failure, match="budget_s"):
            talk.ask("renew", lease_s=1, budget_s="much")
        talk.connection.sendall(frames.pack(frames.REQUEST, 9, b"[not json"))
        assert talk.take(9).type == frames.ERROR
        assert talk.ask("status")["state"] == "ready"


def test_a_second_supervisor_does_not_come_between(host: Host) -> None:
    guest = Guest(host, idle())
    guest.until("ready")
    command = ["python3", "-I", "-S", str(host.library), "supervise", guest.dir.path]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=10, check=False).returncode == 0
    eventually(lambda: len(guest.keepers()) == 2)
    assert guest.status().run == 1


def test_sweeping_ends_everything_whatever_state_it_is_in(host: Host) -> None:
    guests = [Guest(host, idle(id=f"edge.web-{n}.0123abcd")) for n in range(3)]
    pids = [guest.until("ready").pid for guest in guests]
    guests[0].kill_keepers()
    os.kill(guests[1].keepers()[0].pid, signal.SIGSTOP)
    Path(guests[2].dir.file("spec.json")).write_text("")
    bystander = subprocess.Popen(["sleep", "60"], cwd=guests[0].dir.path)
    try:
        assert sweep.main(str(host.state)) == 0
        assert bystander.poll() is None  # only what is ours for certain
    finally:
        bystander.kill()
        bystander.wait()
    assert not host.state.exists()
    assert not any(proc.identify(pid).started for pid in pids)


def test_leavings_of_a_crash_are_tidied_but_not_work_in_hand(host: Host) -> None:
    for name in (".new-edge.a-1", ".gone-edge.b-1"):
        (host.vms / name / "deep").mkdir(parents=True)
    (host.vms / ".new-edge.c-2").mkdir()
    with locks.directory_lock(str(host.vms / ".new-edge.c-2")):
        tidy(str(host.vms))
    assert os.listdir(host.vms) == [".new-edge.c-2"]
    assert list_vms(str(host.vms)) == []


def test_a_vm_that_is_not_there_is_not_adopted(host: Host) -> None:
    with pytest.raises(Failure) as caught:
        adopt(VmDir(str(host.vms), "no.such.vm"), str(host.library))
    assert caught.value.cause == "not-found"


def test_readiness_by_tcp_is_not_fooled_by_the_user_network(host: Host) -> None:
    ready = Ready("tcp", port=80, timeout_s=1.0)
    guest = Guest(host, idle(forwards=(Forward(80, free_port()),), ready=ready))
    status = guest.until(lambda s: s.cause == "ready-timeout")
    assert status.state == "running" and "port 80 takes no connection" in status.message
    with socket.create_connection(("127.0.0.1", status.forwards[0].host), 2):
        pass  # QEMU itself accepts, but there is nobody behind it
    assert guest.status().state == "running"
