"""Acceleration is proven: what a proof is, how long it holds, and what is chosen by it."""

from __future__ import annotations

import multiprocessing
import os
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.host_vm.guests import Host, spec
from tests.support import eventually
from xenoshell.host import accel, probe_image, proc, proofs
from xenoshell.host.accel import boots, choose, is_linux, prove
from xenoshell.host.proofs import kvm_state
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Proof

OURS = "a" * 64
OTHER = "b" * 64


def bzimage(path: Path, version: bytes) -> None:
    """A file that looks like an x86 kernel image with that version text."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = struct.pack("<H", 0x400)
    head[0x600 : 0x600 + len(version)] = version
    path.write_bytes(bytes(head))


class Kvm:
    """Stands for QEMU under KVM: which kernels it runs, and which were tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: str, runs: set[str]) -> None:
        self.tried: list[str] = []
        self.runs = runs
        monkeypatch.setattr(accel, "device", lambda: device)
        monkeypatch.setattr(proofs, "device", lambda: device)
        monkeypatch.setattr(accel, "own_kernel", lambda: None)
        monkeypatch.setattr(accel, "boots", self._boots)

    def _boots(self, kernel: str, digest: str, *_: object, **__: object) -> Proof:
        self.tried.append(digest)
        works = digest in self.runs
        return Proof(works, 0.1, "it runs" if works else "it printed nothing", digest)


def test_a_proof_is_made_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm = Kvm(monkeypatch, "there", {OURS})
    proofs = str(host.proofs)
    assert kvm_state(proofs) == "unproven"
    assert prove("/k", OURS, proofs).works and prove("/k", OURS, proofs).works
    assert not prove("/k2", OTHER, proofs).works
    assert kvm.tried == [OURS, OTHER]
    assert kvm_state(proofs) == "usable"
    monkeypatch.setattr(proc, "boot_id", lambda: "after a reboot")
    assert kvm_state(proofs) == "unproven"
    prove("/k", OURS, proofs)
    assert kvm.tried == [OURS, OTHER, OURS]
    assert not list(host.proofs.glob("*.lock"))


def test_a_negative_proof_holds_for_a_day(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm = Kvm(monkeypatch, "there", set())
    kept = str(host.proofs)
    assert not prove("kernel", OURS, kept).works and not prove("kernel", OURS, kept).works
    assert len(kvm.tried) == 1
    (file,) = host.proofs.glob("*.json")
    os.utime(file, (time.time() - 90_000,) * 2)
    assert kvm_state(kept) == "unproven" and not prove("kernel", OURS, kept).works
    assert len(kvm.tried) == 2


@pytest.mark.parametrize("device", ["absent", "denied"])
def test_without_a_device_nothing_is_tried(host: Host, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    kvm = Kvm(monkeypatch, device, {OURS})
    (host.blobs / OURS).touch()
    assert choose(spec(kernel=OURS, accel="auto"), str(host.proofs), str(host.blobs)) == "tcg"
    with pytest.raises(Failure) as caught:
        choose(spec(kernel=OURS, accel="kvm"), str(host.proofs), str(host.blobs))
    assert caught.value.cause == "no-acceleration" and device in caught.value.message
    assert kvm_state(str(host.proofs)) == device and kvm.tried == []


@pytest.mark.parametrize(("runs", "auto"), [({OURS}, "kvm"), ({OTHER}, "tcg")])
def test_auto_follows_the_proof_for_the_vms_own_kernel(
    host: Host, monkeypatch: pytest.MonkeyPatch, runs: set[str], auto: str
) -> None:
    kvm = Kvm(monkeypatch, "there", runs)
    bzimage(host.blobs / OURS, b"6.1.0-1-cloud-amd64")
    assert choose(spec(kernel=OURS, accel="auto"), str(host.proofs), str(host.blobs)) == auto
    assert choose(spec(kernel=OURS, accel="tcg"), str(host.proofs), str(host.blobs)) == "tcg"
    assert kvm.tried == [OURS]
    if auto == "tcg":
        with pytest.raises(Failure, match="printed nothing"):
            choose(spec(kernel=OURS, accel="kvm"), str(host.proofs), str(host.blobs))


def test_a_guest_without_a_linux_kernel_goes_by_any_that_is_held(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm = Kvm(monkeypatch, "there", {OTHER})
    bzimage(host.blobs / OURS, b"iPXE 1.21")
    disk = spec(boot="disk", kernel=None, disk_bytes=1, accel="auto")
    assert choose(disk, str(host.proofs), str(host.blobs)) == "tcg" and kvm.tried == []
    bzimage(host.blobs / OTHER, b"6.12.3-arch1")
    for wanted in (disk, spec(kernel=OURS, accel="auto")):
        assert choose(wanted, str(host.proofs), str(host.blobs)) == "kvm"
    assert kvm.tried == [OTHER]


@pytest.mark.e2e
def test_the_hand_made_program_runs_and_says_so(host: Host, boot_files: tuple[Path, Path]) -> None:
    kernel = str(boot_files[0])
    assert is_linux(kernel) and not is_linux(str(boot_files[1]))
    proof = boots(kernel, OURS, str(host.proofs), "x86_64", 60.0, accel="tcg")
    assert proof.works and "first process" in proof.message
    assert list(host.proofs.iterdir()) == []


@pytest.mark.e2e
def test_what_does_not_boot_is_given_up_in_time_with_the_reason(host: Host, boot_files: tuple[Path, Path]) -> None:
    began = time.monotonic()
    proof = boots(str(boot_files[0]), OURS, str(host.proofs), "x86_64", 0.3, accel="tcg")
    assert not proof.works and time.monotonic() - began < 15 and "within 0.3 s" in proof.message
    nonsense = boots(__file__, OURS, str(host.proofs), "x86_64", 5.0, accel="tcg")
    assert not nonsense.works and "QEMU ended" in nonsense.message


def test_the_archive_holds_one_program() -> None:
    image = probe_image.initramfs()
    assert image.count(b"070701") == 2 and image[110:115] == b"init\0"
    assert probe_image.elf().endswith(probe_image.MARKER) and len(image) < 1000


def endless(path: Path) -> None:
    """A kernel by the Multiboot specification that never ends: a header, and a jump to itself."""
    at = 0x100000
    header = struct.pack("<IIIIIIII", 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000) & 0xFFFFFFFF, at, at, 0, 0, at + 32)
    path.write_bytes(header + b"\xeb\xfe" + bytes(4096))


def probes(host: Host) -> list[int]:
    return [pid for pid in proc.pids() if proc.working_directory(pid) == str(host.proofs)]


@pytest.mark.e2e
def test_a_proof_ends_with_whoever_wanted_it(host: Host, tmp_path: Path) -> None:
    """A kernel that never ends would have a CPU for itself."""
    endless(tmp_path / "kernel")
    arguments = (str(tmp_path / "kernel"), OURS, str(host.proofs), "x86_64")
    prover = multiprocessing.get_context("fork").Process(target=boots, args=(*arguments, 60.0), kwargs={"accel": "tcg"})
    prover.start()
    try:
        (pid,) = eventually(lambda: probes(host))
        eventually(lambda: "qemu" in "".join(proc.command(pid)[:1]))  # nothing while it becomes QEMU
    finally:
        prover.kill()
        prover.join(10)
        prover.close()
    eventually(lambda: not proc.identify(pid).started)


@pytest.mark.e2e
def test_proofs_at_the_same_time_are_in_nobodys_way(host: Host, tmp_path: Path) -> None:
    endless(tmp_path / "kernel")
    arguments = (str(tmp_path / "kernel"), OURS, str(host.proofs), "x86_64")
    with ThreadPoolExecutor() as pool:
        short, long = (pool.submit(boots, *arguments, seconds, accel="tcg") for seconds in (0.5, 1.5))
        assert "it printed nothing" in short.result(30).message
        assert list(host.proofs.glob("probe.*")), "that of the other"
        assert "it printed nothing" in long.result(30).message
    assert not list(host.proofs.iterdir())


def test_a_proof_that_cannot_begin_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "cannot start QEMU" in boots("/k", OURS, str(host.proofs), "x86_64", 1.0).message
    assert not list(host.proofs.iterdir())
