"""What a VM group really boots: its image with what the session file overrides, or a kernel alone."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from xenoshell.errors import BadInput
from xenoshell.images.effective import effective
from xenoshell.images.kernels import kind
from xenoshell.images.manifest import BlobRef, Manifest
from xenoshell.images.store import ImageStore
from xenoshell.session.model import VmGroup
from xenoshell.wire.causes import Failure


def bzimage(version: bytes = b"6.1.0-9-cloud (builder) #1\0") -> bytes:
    head = bytearray(2048)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x400 if version else 0)
    head[0x600 : 0x600 + len(version)] = version
    return bytes(head)


MULTIBOOT = b"\0" * 64 + struct.pack("<III", 0x1BADB002, 3, (-0x1BADB002 - 3) & 0xFFFFFFFF)


@pytest.fixture
def image(store: ImageStore, tmp_path: Path) -> Manifest:
    """An image with everything, named ``web``."""
    blobs: dict[str, BlobRef] = {}
    for part in ("disk", "kernel", "initrd"):
        (tmp_path / part).write_bytes(part.encode() * 1000)
        blobs[part] = store.add_blob(tmp_path / part)
    manifest = Manifest(
        arch="x86_64", disk=blobs["disk"], kernel=blobs["kernel"], initrd=blobs["initrd"], cmdline="console=ttyS0",
        customise="agent",
    )  # fmt: skip
    store.put(manifest, "web")
    store.put(Manifest(arch="x86_64", disk=manifest.disk, boot="disk"), "appliance")
    return manifest


def test_without_overrides_it_is_the_image(store: ImageStore, image: Manifest, tmp_path: Path) -> None:
    assert effective(VmGroup(name="a", image="web"), store, tmp_path) == image


def test_each_key_overrides_its_own(store: ImageStore, image: Manifest, tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage())
    (tmp_path / "my-initrd").write_bytes(b"070701")
    made = effective(VmGroup(name="a", image="web", kernel="bzImage"), store, tmp_path)
    assert (made.initrd, made.cmdline, made.disk) == (image.initrd, image.cmdline, image.disk)
    assert made.kernel is not None and store.blob_path(made.kernel.digest).read_bytes() == bzimage()
    assert dict(made.labels)["kernel"] == "Linux 6.1.0-9-cloud"
    made = effective(VmGroup(name="a", image="web", initrd="my-initrd", cmdline="quiet"), store, tmp_path)
    assert made.kernel == image.kernel and made.cmdline == "quiet"
    assert made.initrd is not None and store.blob_path(made.initrd.digest).read_bytes() == b"070701"


def test_a_kernel_that_is_not_linux_does_not_get_the_image_s_initrd(
    store: ImageStore, image: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "xen").write_bytes(MULTIBOOT)
    made = effective(VmGroup(name="a", image="web", kernel="xen"), store, tmp_path)
    assert (made.initrd, made.cmdline, made.disk, made.boot) == (None, "", image.disk, "kernel")


def test_a_kernel_alone_needs_no_image(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "unikernel").write_bytes(b"\x7fELF\x01" + bytes(100))
    made = effective(VmGroup(name="a", kernel=str(tmp_path / "unikernel"), cmdline="x=1"), store, Path("/elsewhere"))
    assert (made.disk, made.boot, made.cmdline, made.customise) == (None, "kernel", "x=1", "none")
    assert dict(made.labels) == {"kernel": "ELF32"}


def test_a_kernel_s_command_line_is_no_use_to_a_disk(store: ImageStore, image: Manifest, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cmdline need a kernel, and image 'appliance' boots from its disk"):
        effective(VmGroup(name="a", image="appliance", cmdline="quiet"), store, tmp_path)


@pytest.mark.parametrize(("name", "said"), [("gone", "No such file"), ("dir", "is not a file"), ("empty", "is empty")])
def test_a_kernel_that_cannot_be_used_is_named(store: ImageStore, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "empty").touch()
    with pytest.raises(BadInput) as error:
        effective(VmGroup(name="edge", kernel=name), store, tmp_path)
    assert all(part in error.value.message for part in ("'edge'", f"kernel {name}", str(tmp_path / name), said))


def test_an_unknown_image_is_said(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(Failure) as failure:
        effective(VmGroup(name="a", image="tinny"), store, tmp_path)
    assert failure.value.cause == "image-missing"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (bzimage(), "Linux 6.1.0-9-cloud"),
        (bzimage(b""), "bzImage"),
        (MULTIBOOT, "multiboot"),
        (bzimage(b"1.0.0+git-20190125\0"), "bzImage"),
        (b"\x7fELF\x02" + bytes(60), "ELF64"),
        (b"\x1f\x8b\x08", "gzip data"),
        (b"QFI\xfb", "a qcow2 disk"),
        (b"", "unknown"),
        (b"\x7fELF", "ELF"),
    ],
)
def test_kernels_are_told_apart_by_their_first_bytes(head: bytes, name: str) -> None:
    assert kind(head) == name
