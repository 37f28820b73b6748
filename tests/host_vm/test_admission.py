"""What a host refuses, before anything is made of it, and with which figures."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from dataclasses import replace

import pytest

from tests.host_vm.guests import Guest, Host, spec
from xenoshell.host import facts, vms
from xenoshell.host.admission import QEMU_MIB, Room, admit, promised, runs
from xenoshell.host.store import Store
from xenoshell.host.unpack import Unpacker
from xenoshell.host.vmdir import VmDir, Wanted, first_status
from xenoshell.host.vms import Vms
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Forward, Ready, Usage, VmSpec, VmStatus

ROOM = Room(1024, 0, 10_000, qemu=True, qemu_img=True, kvm="", blobs=frozenset(["0" * 64]))


def test_a_host_that_can_run_it_admits_it() -> None:
    admit(spec(), ROOM)
    admit(spec(memory_mib=1024 - QEMU_MIB), ROOM)
    admit(spec(disk_bytes=1 << 44), ROOM)  # a disk is sparse: what it may hold one day is not asked for now
    admit(spec(disk_bytes=1 << 30, seed_size=64 << 20), ROOM._replace(qemu_img=False, disk_free=8), made=True)


@pytest.mark.parametrize(
    ("wanted", "room", "cause", "words"),
    [
        ({}, {"qemu": False}, "no-hypervisor", "qemu-system-x86_64"),
        ({"disk_bytes": 1 << 30}, {"qemu_img": False}, "no-hypervisor", "qemu-img"),
        ({"memory_mib": 1000}, {}, "no-memory", "1024 MiB of memory are free; the VM needs 1064"),
        (
            {"memory_mib": 500},
            {"memory_promised": 600},
            "no-memory",
            "1024 MiB of memory are free, 600 of them promised to VMs that run here; the VM needs 564",
        ),
        ({}, {"disk_free": 7}, "disk-full", "7 MiB of disk are free; the VM needs 8 to begin with"),
        ({"seed_size": (1 << 20) + 1}, {"disk_free": 9}, "disk-full", "the VM needs 10"),
        ({}, {"blobs": frozenset()}, "not-found", "0000"),
        ({"accel": "kvm"}, {"kvm": "denied"}, "no-acceleration", "denied"),
        ({"arch": "sparc64"}, {}, "bad-request", "sparc64"),
        ({"network": "bridge", "ready": Ready("http", port=80)}, {}, "bad-request", "bridged"),
        ({"network": "bridge", "ready": Ready("none"), "forwards": (Forward(80),)}, {}, "bad-request", "forwards"),
        ({"ready": Ready("http", port=0)}, {}, "bad-request", "port"),
        ({"ready": Ready("http", port=80, path="/a b\r\n")}, {}, "bad-request", "path"),
        ({"ready": Ready("sometimes")}, {}, "bad-request", "sometimes"),
        ({"ready": Ready("console", match="")}, {}, "bad-request", "match"),
    ],
)
def test_a_refusal_says_why(wanted: dict[str, object], room: dict[str, object], cause: str, words: str) -> None:
    with pytest.raises(Failure) as caught:
        admit(spec(**wanted), ROOM._replace(**room))  # type: ignore[arg-type]
    assert caught.value.cause == cause and words in caught.value.message


def status(state: str, run: int = 1, memory_mib: int = 128, used: int = 0) -> VmStatus:
    return replace(first_status(spec(memory_mib=memory_mib), 0.0), state=state, run=run, usage=Usage(memory_mib=used))


def test_memory_that_a_vm_has_not_touched_yet_is_promised_to_it() -> None:
    assert promised([]) == 0
    assert promised([status("ready", memory_mib=512, used=200), status("ready", memory_mib=100, used=300)]) == 376


@pytest.mark.parametrize(
    ("state", "wanted", "expected"),
    [
        ("creating", Wanted("", "running", 1), True),
        ("creating", Wanted("", "stopped", 1), False),
        ("ready", Wanted("", "running", 1), True),
        ("stopping", Wanted("", "stopped", 1), True),
        ("exited", Wanted("", "stopped", 1), False),
        ("exited", Wanted("", "running", 1), False),  # it ended by itself
        ("exited", Wanted("", "running", 2), True),  # just ordered to
        ("failed", Wanted("", "running", 1), False),
    ],
)
def test_who_runs_is_told_from_the_journal_too(state: str, wanted: Wanted, expected: bool) -> None:
    assert runs(status(state), wanted) is expected


@pytest.fixture
def world(host: Host) -> Vms:
    return Vms(str(host.state), str(host.library), Store(str(host.state), Unpacker()))


def small(number: int = 1, **fields: object) -> VmSpec:
    """A VM without anything to boot."""
    basic = {"boot": "disk", "kernel": None, "disk_bytes": 1 << 20, "ready": Ready("none"), "stop_grace_s": 0.1}
    return spec(**{"id": f"edge.web-{number}.0123abcd", "memory_mib": 32, **basic, **fields})


@pytest.mark.parametrize("cause", ["no-memory", "no-hypervisor", "disk-full"])
def test_what_is_refused_leaves_nothing(world: Vms, monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    if cause == "no-memory":
        monkeypatch.setattr(facts, "memory_mib", lambda: (2048, 95))
    elif cause == "disk-full":
        monkeypatch.setattr(vms, "free_bytes", lambda path: 7 << 20)
    else:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Failure) as caught:
        world.create(small(), b"")
    assert caught.value.cause == cause
    assert os.listdir(world.directory) == []


@pytest.mark.e2e
def test_memory_is_promised_once_and_asked_for_again_at_every_start(
    world: Vms, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 250
    monkeypatch.setattr(facts, "memory_mib", lambda: (2048, free))
    first = world.create(small(), b"")
    free = 150  # one VM needs 96
    assert world.create(small(), b"").created == first.created  # it is there: nothing to admit
    with pytest.raises(Failure, match=r"of them promised to VMs that run here; the VM needs 96"):
        world.create(small(2), b"")
    world.order(first.id, "stopped", "a")
    guest = Guest(host, small())
    guest.until("exited")
    world.create(small(2), b"")
    with pytest.raises(Failure) as caught:
        world.order(first.id, "running", "b")
    assert caught.value.cause == "no-memory" and guest.dir.read_wanted().state == "stopped"
    world.order(small(2).id, "stopped", "c")
    Guest(host, small(2)).until("exited")
    world.order(first.id, "running", "b")
    assert guest.until("ready").run == 2
    free = 0
    world.order(first.id, "running", "b")  # the same operation again, and one that runs already: nothing to admit
    world.order(first.id, "running", "d")
    world.order(first.id, "restart", "e")
    assert guest.until(lambda s: s.run == 3 and s.state == "ready")


def test_a_supervisor_that_goes_while_it_is_asked_leaves_its_last_word(world: Vms, host: Host) -> None:
    vm = VmDir(str(host.vms), small().id)
    vm.create(small(), b"")
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(vm.file("sup.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(1, socket.MSG_PEEK)
            connection.close()  # with the question unread: the asker is told of a reset

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert world._ask(vm, {"verb": "status"}).state == "creating"
        finally:
            thread.join()
