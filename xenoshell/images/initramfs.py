"""An initramfs of our own: BusyBox, the modules that a virtual machine needs, and an /init that mounts the root.

The archive is not compressed: under emulation unpacking costs more than it saves, and transfers compress it anyway.
"""

from __future__ import annotations

import gzip
import lzma
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xenoshell.errors import BadInput
from xenoshell.wire.causes import Failure

#: What the root disk needs. The kernel may have any of these built in.
ROOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
#: What else a guest of ours uses: seed disk, network, entropy, power button (evdev hands it to acpid), panic notice
#: (pvpanic-mmio also drives QEMU's ISA device, which ACPI announces).
GUEST_MODULES = (
    "isofs",
    "virtio_net",
    "virtio_rng",
    "button",
    "evdev",
    "pvpanic-mmio",
    "pvpanic-pci",
    "virtio_console",
)

INIT = r"""#!/bin/busybox sh
# Loads the modules, finds the root file system, hands over to its init.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /newroot
/bin/busybox mount -t devtmpfs -o mode=0755 dev /dev
/bin/busybox mount -t proc -o nosuid,nodev,noexec proc /proc
/bin/busybox mount -t sysfs -o nosuid,nodev,noexec sys /sys
while read -r module; do
    /bin/busybox insmod "/modules/$module" || echo "initramfs: module $module did not load"
done < /modules/order

root=LABEL=root
init=/sbin/init
flags=rw
for word in $(/bin/busybox cat /proc/cmdline); do
    case "$word" in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
        ro | rw) flags=$word ;;
    esac
done

left=200
while :; do
    case "$root" in
        LABEL=* | UUID=*) device=$(/bin/busybox findfs "$root" 2>/dev/null) ;;
        *) device=$root ;;
    esac
    [ -b "$device" ] && /bin/busybox mount -t ext4 -o "$flags" "$device" /newroot && break
    left=$((left - 1))
    if [ "$left" = 0 ]; then
        echo "initramfs: no root file system $root; disks: $(/bin/busybox ls /sys/class/block)"
        exec /bin/busybox sh < /dev/console > /dev/console 2>&1
    fi
    /bin/busybox usleep 50000
done
for mounted in proc sys dev; do /bin/busybox mount -o move "/$mounted" "/newroot/$mounted"; done
exec /bin/busybox switch_root /newroot "$init"
echo "initramfs: $init of $root cannot be run"
exec /bin/busybox sh < /dev/console > /dev/console 2>&1
"""


class Cpio:
    """Writes a cpio archive in the "newc" format, which Linux unpacks (Documentation/driver-api/early-userspace)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, owned by root."""
        self._entry(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file, owned by root."""
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._entry(path, stat.S_IFCHR | mode, b"", (major, minor))

    def finish(self) -> bytes:
        """The archive, with its trailer."""
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)

    def _entry(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.encode() + b"\0"
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._pad()
        self._data += data
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)


@dataclass(frozen=True)
class Module:
    """A kernel module: its file name without suffixes, and the uncompressed object."""

    name: str
    data: bytes

    @property
    def depends(self) -> tuple[str, ...]:
        """The modules it needs, from its own .modinfo section: packages come without modules.dep."""
        found = re.search(rb"\0depends=([^\0]*)\0", self.data)
        return tuple(found[1].decode("ascii", "replace").split(",")) if found and found[1] else ()


class Modules:
    """The modules of one kernel version: ``directory`` is its lib/modules/VERSION."""

    def __init__(self, directory: Path) -> None:
        self._files = {_key(p.name): p for p in sorted(directory.rglob("*.ko*"))}
        try:
            lines = (directory / "modules.builtin").read_text().split()
        except FileNotFoundError:
            lines = []
        self._builtin = {_key(Path(line).name) for line in lines}

    def closure(self, wanted: Iterable[str], optional: Iterable[str] = ()) -> tuple[Module, ...]:
        """The modules named and what they depend on, in an order in which they can be loaded; without what is built
        in, and without the optional ones that do not exist. Raises `Failure` (not-found) for a missing one."""
        order: dict[str, Module] = {}

        def need(name: str, chain: tuple[str, ...]) -> None:
            key = _key(name)
            if key in order or key in self._builtin or key in chain:
                return
            if key not in self._files:
                by = f" (needed by {chain[-1]})" if chain else ""
                raise Failure("not-found", f"this kernel has no module {name}{by}", "choose another kernel")
            module = Module(key, decompress(self._files[key]))
            for below in module.depends:
                need(below, (*chain, key))
            order[key] = module

        for name in wanted:
            need(name, ())
        for name in optional:
            if _key(name) in self._files:
                need(name, ())
        return tuple(order.values())


def decompress(path: Path) -> bytes:
    """The contents of a module file, whichever way it is compressed."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        import zstandard

        plain: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        return plain
    return data


def build(busybox: bytes, modules: Sequence[Module], init: str = INIT) -> bytes:
    """An initramfs: BusyBox (static), the modules in the order given, and ``init``."""
    if not busybox.startswith(b"\x7fELF"):
        raise BadInput("the BusyBox for the initramfs is not a program")
    archive = Cpio()
    for directory in ("bin", "dev", "modules"):
        archive.directory(directory)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox, 0o755)
    archive.symlink("bin/sh", "busybox")
    for module in modules:
        archive.file(f"modules/{module.name}.ko", module.data)
    archive.file("modules/order", "".join(f"{m.name}.ko\n" for m in modules).encode())
    archive.file("init", init.encode(), 0o755)
    return archive.finish()


def _key(name: str) -> str:
    """Module names are written with - or _; the kernel takes them as the same."""
    return name.split(".ko", 1)[0].replace("-", "_")
