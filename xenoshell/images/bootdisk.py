"""A disk that a PC's BIOS boots: a partition table with one partition, and GRUB written by hand. No mount, no root.

The layout is GRUB's own (its manual, "BIOS installation"): boot.img in the first sector, core.img in the gap behind it.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

from xenoshell.images.packages import Packages, last_lines, unpack
from xenoshell.wire.causes import Failure

SECTOR = 512
#: Where the partition begins, in bytes: what every partitioning tool uses.
OFFSET = 1 << 20
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "serial", "terminal", "minicmd", "reboot")
GRUB_PACKAGES = ("grub-pc-bin", "grub-common", "libdevmapper1.02.1")
MAKE_S = 60.0


class Grub:
    """GRUB for the BIOS, out of packages: nothing of it need be installed on this machine."""

    def __init__(self, packages: Packages) -> None:
        self._debs = packages.fetch(GRUB_PACKAGES)

    def install(self, disk: Path, size: int, linux: str, initrd: str, work: Path) -> None:
        """Make ``disk`` boot: its file system of ``size`` bytes at `OFFSET` gets a partition entry, GRUB goes before.

        ``linux`` is the kernel's path in the file system with its command line, ``initrd`` the initrd's.
        """
        unpacked = work / "grub"
        for deb in self._debs.values():
            unpack(deb, unpacked, _wanted)
        modules = unpacked / "usr/lib/grub/i386-pc"
        script = work / "grub.cfg"
        script.write_text(boot_script(linux, initrd))
        core = work / "core.img"
        mkimage = shutil.which("grub-mkimage") or str(unpacked / "usr/bin/grub-mkimage")
        libraries = sorted({str(p.parent) for p in unpacked.rglob("*.so.*")})
        command = [
            mkimage, "-O", "i386-pc", "-d", str(modules), "-p", "(hd0,msdos1)/boot/grub", "-c", str(script),
            "-o", str(core), *GRUB_MODULES,
        ]  # fmt: skip
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries), "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=MAKE_S, check=False)
        if done.returncode != 0:
            raise Failure("internal", f"grub-mkimage failed: {last_lines(done.stderr)}")
        write_boot(disk, (modules / "boot.img").read_bytes(), core.read_bytes(), size)


def boot_script(linux: str, initrd: str) -> str:
    """What GRUB does: speak on the serial line too, start the kernel at once."""
    return (
        "serial --unit=0 --speed=115200\nterminal_output serial console\nset root=(hd0,msdos1)\n"
        f"linux {linux}\ninitrd {initrd}\nboot\n"
    )


def write_boot(disk: Path, boot: bytes, core: bytes, size: int) -> None:
    """Write the boot sector with its partition table, and GRUB's core, into a disk image whose one partition of
    ``size`` bytes begins at `OFFSET`. Raises `Failure` (internal) when the core does not fit before it."""
    if len(boot) != SECTOR or SECTOR + len(core) > OFFSET:
        raise Failure("internal", f"GRUB does not fit: boot sector {len(boot)} bytes, core {len(core)} bytes")
    sector = bytearray(boot)
    # boot.img loads core.img from sector 1, and that the rest of itself from sector 2 on: both are the defaults, and
    # the drive is the one the BIOS booted (0xff), unless the package was changed.
    struct.pack_into("<Q", sector, 0x5C, 1)
    sector[0x64] = 0xFF
    sector[0x1B8:0x1BE] = b"xeno\0\0"
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", OFFSET // SECTOR, size // SECTOR)
    sector[0x1BE:0x1FE] = entry.ljust(64, b"\0")
    sector[0x1FE:] = b"\x55\xaa"
    with disk.open("r+b") as file:
        file.write(sector + core)


def _wanted(path: str) -> bool:
    return path.startswith("usr/lib/grub/i386-pc/") or path == "usr/bin/grub-mkimage" or ".so." in path
