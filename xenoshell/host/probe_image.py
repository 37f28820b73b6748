"""The smallest initramfs that tells that its kernel reached user space: one file, `/init`, assembled by hand."""

from __future__ import annotations

import struct

MARKER = b"xenoshell: this kernel runs\n"
_BASE = 0x400000
_HEADERS = 64 + 56


def elf() -> bytes:
    """A static x86-64 ELF that writes `MARKER` to its standard output (init's is /dev/console) and switches the
    machine off.

    System call numbers: arch/x86/entry/syscalls/syscall_64.tbl; reboot's magic: include/uapi/linux/reboot.h.
    """
    code = b"".join(
        (
            b"\xb8\x01\x00\x00\x00",  # mov  eax, 1 (write)
            b"\xbf\x01\x00\x00\x00",  # mov  edi, 1
            b"\x48\x8d\x35" + struct.pack("<i", 41),  # lea  rsi, [rip+41]: the marker, behind the code
            b"\xba" + struct.pack("<I", len(MARKER)),  # mov  edx, length
            b"\x0f\x05",  # syscall
            b"\xb8\xa9\x00\x00\x00",  # mov  eax, 169 (reboot)
            b"\xbf\xad\xde\xe1\xfe",  # mov  edi, 0xfee1dead
            b"\xbe\x69\x19\x12\x28",  # mov  esi, 0x28121969
            b"\xba\xdc\xfe\x21\x43",  # mov  edx, 0x4321fedc (power off)
            b"\x0f\x05",  # syscall
            b"\xb8\x22\x00\x00\x00",  # mov  eax, 34 (pause), if it came back
            b"\x0f\x05",  # syscall
            b"\xeb\xf7",  # jmp  back to it
        )
    )
    # the displacement of lea counts from the instruction that follows it
    code = code[:13] + struct.pack("<i", len(code) - 17) + code[17:]
    size = _HEADERS + len(code) + len(MARKER)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",  # 64 bit, little endian, version 1
        2,
        62,
        1,
        _BASE + _HEADERS,
        64,
        0,
        0,
        64,
        56,
        1,
        0,
        0,
        0,  # EXEC, x86-64; entry point; one program header
    )
    load = struct.pack(
        "<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000
    )  # PT_LOAD, read and execute: the whole file
    return header + load + code + MARKER


def initramfs() -> bytes:
    """A newc cpio archive with that file as ``/init`` (Documentation/driver-api/early-userspace/buffer-format.rst).

    /dev/console comes from the archive that every kernel has built in.
    """
    return _member("init", 0o100755, elf()) + _member("TRAILER!!!", 0, b"")


def _member(name: str, mode: int, data: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    member = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    member += b"\0" * (-len(member) % 4) + data
    return member + b"\0" * (-len(member) % 4)
