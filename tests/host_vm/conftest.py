"""The kernel and the small guest that tests of VMs boot."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host_vm.guests import INIT, MODULES, Host, World
from tests.support import PACKAGES
from xenoshell.images import initramfs
from xenoshell.images.packages import Packages, unpack


@pytest.fixture(scope="session")
def packages() -> Packages:
    """The package cache that lasts."""
    return Packages(PACKAGES, lambda text: None)


@pytest.fixture(scope="session")
def boot_files(packages: Packages) -> Iterator[tuple[Path, Path]]:
    """A distribution's kernel for virtual machines, and an initramfs with the test guest."""
    with tempfile.TemporaryDirectory(prefix="xt-boot-") as name:
        directory = Path(name)
        for deb in (*packages.fetch_kernel().values(), *packages.fetch(["busybox-static"]).values()):
            unpack(deb, directory)
        (kernel,) = directory.glob("boot/vmlinuz-*")
        (modules,) = directory.glob("**/lib/modules/*")
        (busybox,) = directory.glob("**/bin/busybox")
        initrd = directory / "initrd"
        initrd.write_bytes(initramfs.build(busybox.read_bytes(), initramfs.Modules(modules).closure((), MODULES), INIT))
        yield kernel, initrd


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host's state directory; whatever runs on it afterwards is ended."""
    made = Host(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def world(host: Host, boot_files: tuple[Path, Path]) -> World:
    """A host that holds the test guest."""
    return World(host, *boot_files)
