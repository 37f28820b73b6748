"""The initramfs is one that cpio reads, with the modules in an order in which they load."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from xenoshell.errors import BadInput
from xenoshell.images.initramfs import Cpio, Module, Modules, build
from xenoshell.wire.causes import Failure


def module(directory: Path, name: str, *depends: str, suffix: str = "") -> None:
    data = b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".xz": lzma.compress,
        ".gz": gzip.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    path = directory / "kernel" / f"{name}.ko{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compressors[suffix](data))


def test_modules_come_after_what_they_need_however_they_are_compressed(tmp_path: Path) -> None:
    module(tmp_path, "virtio-ring", suffix=".xz")
    module(tmp_path, "virtio", "virtio_ring", suffix=".gz")
    module(tmp_path, "virtio_pci", "virtio", "virtio_ring", suffix=".zst")
    module(tmp_path, "isofs", "cdrom")
    module(tmp_path, "cdrom")
    module(tmp_path, "unwanted")
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    chosen = Modules(tmp_path).closure(["virtio_pci", "ext4"], ["isofs", "not-there"])
    assert [m.name for m in chosen] == ["virtio_ring", "virtio", "virtio_pci", "cdrom", "isofs"]
    assert all(m.data.startswith(b"\x7fELF") for m in chosen)


def test_a_module_that_is_missing_is_named_with_who_needs_it(tmp_path: Path) -> None:
    module(tmp_path, "virtio_blk", "virtio")
    with pytest.raises(Failure, match=r"no module virtio \(needed by virtio_blk\)"):
        Modules(tmp_path).closure(["virtio_blk"])


def test_the_archive_holds_what_was_put_in(tmp_path: Path) -> None:
    archive = build(
        b"\x7fELF busybox", [Module("virtio", b"first"), Module("virtio_blk", b"second!")], "#!/bin/busybox sh\n"
    )
    listed = subprocess.run(["cpio", "-itv"], input=archive, capture_output=True, check=True, timeout=30)
    names = [line.split()[-1] for line in listed.stdout.decode().splitlines()]
    assert {"init", "bin/busybox", "dev/console", "modules/virtio.ko", "modules/order"} <= set(names)
    assert b"bin/sh -> busybox" in listed.stdout
    subprocess.run(
        ["cpio", "-id", "--quiet", "--no-preserve-owner", "modules/*", "init"],
        input=archive,
        cwd=tmp_path,
        check=True,
        timeout=30,
    )
    assert (tmp_path / "modules/order").read_text() == "virtio.ko\nvirtio_blk.ko\n"
    assert (tmp_path / "modules/virtio_blk.ko").read_bytes() == b"second!"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755


def test_entries_are_aligned_as_the_format_wants() -> None:
    archive = Cpio()
    archive.file("a", b"12345")
    data = archive.finish()
    assert data.startswith(b"070701") and data.index(b"070701", 6) % 4 == 0 and len(data) % 4 == 0


def test_a_busybox_that_is_no_program_is_refused() -> None:
    with pytest.raises(BadInput, match="BusyBox"):
        build(b"<html>", [])
