"""What kind of kernel a file holds, by its first bytes: for labels and messages. QEMU has the last word."""

from __future__ import annotations

import re
import struct
from pathlib import Path

#: Enough for every header that is looked at: the multiboot one lies within the first 8 KiB, as its specification says.
HEAD = 1 << 16

_OTHERS = (
    (b"\x1f\x8b", "gzip data"),
    (b"\xfd7zXZ\0", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"BZh", "bzip2 data"),
    (b"QFI\xfb", "a qcow2 disk"),
    (b"070701", "a cpio archive"),
    (b"!<arch>\n", "a Debian package or archive"),
    (b"MZ", "an EFI program"),
    (b"#!", "a script"),
)


def kind(head: bytes) -> str:
    """What the first bytes of a file say it is: ``Linux 6.1.0-9``, ``multiboot``, ``ELF64``, ``xz data``, ..."""
    if head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS":
        return _linux(head)
    if _multiboot(head):
        return "multiboot"
    if head.startswith(b"\x7fELF"):
        return {1: "ELF32", 2: "ELF64"}.get(head[4] if len(head) > 4 else 0, "ELF")
    for magic, name in _OTHERS:
        if head.startswith(magic):
            return name
    return "unknown"


def is_linux(kind_of_it: str) -> bool:
    """Whether `kind` said Linux, which takes an initrd and a command line as an image's own kernel would."""
    return kind_of_it.startswith("Linux")


def kind_of(path: Path) -> str:
    """`kind` of a file. Raises `OSError`."""
    with path.open("rb") as file:
        return kind(file.read(HEAD))


def _linux(head: bytes) -> str:
    """Linux's boot protocol (Documentation/arch/x86/boot.rst). iPXE and memtest86+ speak it too; Linux's version is
    followed by its builder in parentheses."""
    (pointer,) = struct.unpack_from("<H", head, 0x20E)
    version = head[0x200 + pointer : 0x200 + pointer + 200].split(b"\0")[0] if pointer else b""
    found = re.match(rb"(\d+\.\d+[!-~]*) \(", version)
    return f"Linux {found[1].decode()}" if found else "bzImage"


def _multiboot(head: bytes) -> bool:
    for at in range(0, min(len(head), 8192) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", head, at)
        if magic == 0x1BADB002 and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return True
    return False
