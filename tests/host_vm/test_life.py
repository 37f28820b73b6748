"""What becomes of a VM, with real guests: nobody may be needed to see it, and nothing may be left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request

import pytest

from tests.host_vm.guests import UP, World, gone
from tests.support import eventually
from xenoshell.host import proc, sweep
from xenoshell.host.vmdir import list_vms
from xenoshell.images.packages import Packages, unpack
from xenoshell.wire import frames
from xenoshell.wire.values import Ready

pytestmark = pytest.mark.e2e


def test_a_guest_boots_answers_and_is_metered(world: World) -> None:
    guest = world.guest(
        ready=Ready("http", port=80, timeout_s=1.0), disk_bytes=64 << 20, cmdline="console=ttyS0 quiet nohttp"
    )
    late = guest.until(lambda s: s.cause == "ready-timeout")
    assert late.state == "running" and "port 80" in late.message
    guest.shell("httpd -p 80 -h /www; echo $((6*7))served", "42served")
    status = guest.until("ready", 20)  # what answers late is ready all the same
    assert (status.cause, status.message) == ("", "")
    assert status.accel == "tcg" and status.run == 1 and 0 < status.boot_s < 60
    assert proc.identify(status.pid).started
    (forward,) = status.forwards
    assert 20000 <= forward.host <= 29999 and forward.guest == 80
    page = urllib.request.urlopen(f"http://127.0.0.1:{forward.host}/", timeout=10).read()
    assert page == b"hello from the guest\n"
    before = guest.until(lambda s: s.usage.net_out > 0)
    guest.shell("dd if=/dev/zero of=/dev/vda bs=1M count=5; sync; echo $((6*7))done", "42done")
    after = guest.until(lambda s: s.usage.disk_written >= 5 << 20 and s.usage.cpu_s > before.usage.cpu_s)
    assert after.usage.net_in > 0 and after.usage.memory_mib > 30 and after.usage.uptime_s > 1
    log = guest.log()
    assert b"SeaBIOS" in log[:200] and UP.encode() in log  # from the first byte on
    assert after.console_bytes >= len(log) > 0

    guest.order("stopped")
    status = guest.until("exited", 15)
    assert (status.cause, status.pid) == ("stopped", 0)
    assert b"powering down" in guest.log()  # it was asked, not killed
    assert not proc.qemus_in(guest.dir.path)

    guest.order("running")
    guest.shell("echo c > /proc/sysrq-trigger", "echo c")
    began = time.monotonic()
    off = guest.until("exited", 10)
    assert time.monotonic() - began < 4 and (off.cause, off.run) == ("guest-panic", 2)
    assert b"end Kernel panic" not in guest.log()  # the device for it told before the kernel had finished
    assert off.forwards == status.forwards  # the port is kept
    assert off.usage.cpu_s > status.usage.cpu_s and off.usage.disk_written >= 5 << 20

    guest.order("destroyed")
    eventually(lambda: not os.path.exists(guest.dir.path))
    assert list_vms(str(world.host.vms)) == []
    eventually(lambda: os.listdir(world.host.vms) == [])
    eventually(lambda: not proc.qemus_in(guest.dir.path))


def test_killed_supervisors_and_guardians_come_back_to_the_same_qemu(world: World) -> None:
    guest = world.guest(ready=Ready("tcp", port=80), forwards=(), cmdline="console=ttyS0 quiet nopvpanic")
    status = guest.until("ready")
    assert status.forwards == ()  # the port that readiness needs is nobody else's business
    guardian, supervisor = guest.keepers()

    os.kill(supervisor.pid, signal.SIGKILL)
    gone(supervisor)
    eventually(guest.dir.supervisor_alive, 1.0)
    eventually(lambda: guest.status().state == "ready")
    assert guest.status().pid == status.pid and guest.keepers()[0] == guardian
    assert b"[xenoshell:" not in guest.log()  # nothing is missing

    supervisor = guest.keepers()[1]
    os.kill(guardian.pid, signal.SIGKILL)
    gone(guardian)
    assert eventually(guest.keepers)[0] == supervisor  # it has stayed behind as guardian of its copy
    os.kill(guest.keepers()[1].pid, signal.SIGKILL)
    eventually(lambda: guest.status().pid == status.pid, 10.0)

    guest.kill_keepers()
    assert not guest.dir.supervisor_alive() and proc.identify(status.pid).started
    guest.adopt()
    back = guest.status()
    assert back.pid == status.pid and back.state == "ready" and back.usage.net_in >= status.usage.net_in
    guest.shell("echo $((6*7))again", "42again")

    old = "Kernel panic - not syncing: old"
    guest.shell(f"printf '\\n{old}\\n---[ end {old} ]---\\n'; echo $((3*3))on", "9on")
    guest.shell(f"printf '\\n{old}\\n'; sleep 1.2; echo $((4*4))on", "16on")  # a log that is shown ends no guest
    assert guest.status().state == "ready"
    guest.shell("echo c > /proc/sysrq-trigger", "echo c")  # no device for it: the console tells
    began = time.monotonic()
    panic = guest.until("exited", 10)
    assert time.monotonic() - began < 4 and panic.cause == "guest-panic"
    assert panic.message.startswith("Kernel panic - not syncing: sysrq triggered crash")
    log = guest.log()
    assert b"end Kernel panic" in log and b"Call Trace" in log

    guest.order("running")
    running = guest.until(lambda s: s.state == "running" and s.run == 2)
    guest.kill_qemu()
    began = time.monotonic()
    dead = guest.until("exited", 10)
    assert time.monotonic() - began < 4 and dead.cause == "killed" and str(running.pid) in dead.message

    guest.order("running")
    guest.until(lambda s: s.state == "running" and s.run == 3)
    guest.kill_keepers()
    guest.kill_qemu()
    eventually(lambda: not proc.qemus_in(guest.dir.path))
    guest.adopt()
    assert guest.until("exited", 5).cause == "killed"  # nobody watched


def test_a_guest_that_reboots_goes_on(world: World) -> None:
    guest = world.guest(cmdline="console=ttyS0")
    first = guest.until("ready")
    with guest.talk() as talk:
        stream = talk.request("console", replay=0)
        talk.connection.sendall(frames.pack(frames.DATA, stream, b"reboot -f\n"))
        seen = talk.text(stream, b"Linux version")
    assert seen.index(b"reboot: Restarting system") < seen.index(b"SeaBIOS")
    again = guest.status()
    assert (again.state, again.pid, again.run) == ("ready", first.pid, 1)
    assert guest.log().count(b"Linux version") == 2


def test_a_guest_that_is_no_linux_runs(world: World, packages: Packages) -> None:
    unpack(packages.fetch(["ipxe"])["ipxe"], world.host.state / "packages")
    kernel = world.host.blob(world.host.state / "packages/boot/ipxe.lkrn")
    other = world.guest(kernel=kernel, initrd=None, cmdline="", ready=Ready("console", match="Features:"))
    other.until("ready")
    assert b"Open Source Network Boot Firmware" in other.log()


def test_a_full_disk_pauses_the_guest_and_room_lets_it_go_on(world: World) -> None:
    state = world.host.state
    size = 100
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}m", "xenoshell-test", str(world.host.vms)], check=False
    )
    if mounted.returncode:
        pytest.skip("this test mounts a small file system")
    try:
        guest = world.guest(disk_bytes=256 << 20)
        guest.until("ready")
        filler = world.host.vms / ".filler"
        filler.write_bytes(bytes((size - 8) << 20))
        guest.shell("dd if=/dev/zero of=/dev/vda bs=1M count=30 conv=fsync; echo $((6*7))done", "dd if")
        full = guest.until(lambda s: s.cause == "disk-full", 30)
        assert full.state == "ready" and "disk is full" in full.message
        with guest.talk() as talk:  # nothing can be written, and yet all goes on
            assert talk.ask("renew", lease_s=100.0)["lease_left_s"] > 99
        filler.unlink()
        guest.until(lambda s: s.cause == "", 10)
        guest.shell("", "42done")
        guest.shell("poweroff -f", "poweroff -f")
        began = time.monotonic()
        assert guest.until("exited", 10).cause == "guest-poweroff"
        assert time.monotonic() - began < 4
        guest.order("destroyed")
        eventually(lambda: not os.path.exists(guest.dir.path))
        assert state.exists()
    finally:
        sweep.sweep(str(state))
        subprocess.run(["umount", "-l", str(world.host.vms)], check=True)
