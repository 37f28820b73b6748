"""Taking a lab down ends the VMs of its hosts too, whoever of their keepers is still alive."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.support import eventually_async, find_process, kill, processes_of
from xenoshell.fleet.inventory import load_inventory
from xenoshell.fleet.link import connect
from xenoshell.lab import Lab, down, status
from xenoshell.paths import Paths
from xenoshell.wire.values import Ready, VmSpec


def _empty_machine(name: str) -> VmSpec:
    """A VM with an empty disk: its BIOS finds nothing to boot, which takes no image and no time."""
    session = uuid.uuid4().hex
    return VmSpec(
        id=f"lab.{name}.{session[:8]}",
        session="lab",
        session_id=session,
        name=name,
        arch="x86_64",
        vcpus=1,
        memory_mib=32,
        disk_bytes=1 << 20,
        disk=None,
        boot="disk",
        kernel=None,
        initrd=None,
        cmdline="",
        accel="tcg",
        network="user",
        mac="52:54:00:00:00:01",
        forwards=(),
        ready=Ready("none"),
        lease_s=0,
        budget_s=0,
        seed_size=0,
        seed_sha256="",
    )


@pytest.mark.e2e
@pytest.mark.parametrize("kill_first", ["nobody", "sshd and relay", "keepers of the VM"])
async def test_down_ends_virtual_machines(kill_first: str, make_lab: Callable[..., Lab], paths: Paths) -> None:
    lab = make_lab(2, "lan")
    for host in load_inventory(lab.inventory).hosts:
        async with await connect(host, paths, deadline_s=30) as link:
            await link.vm_create(_empty_machine("vm"), b"")

    def vms() -> list[int]:
        return [row.vms for row in status(paths)]

    await eventually_async(lambda: vms() == [1, 1], 20, "both VMs to run")
    if kill_first == "sshd and relay":
        for process in find_process(str(lab.hosts[0].directory)):
            if "sshd_config" in process.command or "relay.py" in process.command:
                kill(process)
    elif kill_first == "keepers of the VM":
        for process in find_process("supervise", str(lab.hosts[0].directory)):
            kill(process)
    assert down(paths) == 2
    assert not processes_of(paths.lab) and not paths.lab.exists()
