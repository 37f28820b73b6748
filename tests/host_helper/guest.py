"""The smallest guest: a boot sector that greets on the serial port and echoes what it is sent. Up in a second."""

from __future__ import annotations

from dataclasses import replace

from xenoshell.wire.values import Ready, VmSpec

GREETING = b"hello from a boot sector\r\n"


#: (label, bytes, jump or address to patch in: its width in bits, the label it points to)
_CODE: tuple[tuple[str, str, int, str], ...] = (
    # the BIOS reads the serial port at every timer interrupt, and we want what comes: take that interrupt from it
    ("", "31c0 8ed8 fa c7062200 0000 c7062000", 16, "tick"),  # xor ax,ax; mov ds,ax; cli; mov [22],0; mov [20],tick
    ("", "fb be", 16, "text"),  # sti; mov si,text
    ("next", "ac 84c0 74", 8, "echo"),  # lodsb; test al,al; jz echo
    ("", "e8", -16, "put"),  # call put
    ("", "eb", 8, "next"),
    ("echo", "bafd03 ec a801 75", 8, "take"),  # mov dx,3fd (line status); in al,dx; test al,1; jnz take
    ("", "f4 eb", 8, "echo"),  # hlt until the timer ticks; jmp echo
    ("take", "b2f8 ec e8", -16, "put"),  # mov dl,f8 (data); in al,dx; call put
    ("", "eb", 8, "echo"),
    ("put", "88c4 bafd03", 0, ""),  # mov ah,al; mov dx,3fd
    ("full", "ec a820 74", 8, "full"),  # in al,dx; test al,20; jz full
    ("", "88e0 b2f8 ee c3", 0, ""),  # mov al,ah; mov dl,f8; out dx,al; ret
    ("tick", "50 b020 e620 58 cf", 0, ""),  # push ax; mov al,20; out 20,al; pop ax; iret
    ("text", (GREETING + b"\0").hex(), 0, ""),
)


def boot_sector() -> bytes:
    """16-bit x86 code that a BIOS loads to 0x7c00: greet on COM1, then send back whatever comes."""
    at = 0
    labels: dict[str, int] = {}
    for label, text, width, _ in _CODE:
        labels[label] = at
        at += len(bytes.fromhex(text)) + abs(width) // 8
    code = bytearray()
    for _, text, width, target in _CODE:
        code += bytes.fromhex(text)
        end = len(code) + abs(width) // 8
        if width == 16:
            code += (0x7C00 + labels[target]).to_bytes(2, "little")
        elif width:
            code += (labels[target] - end).to_bytes(abs(width) // 8, "little", signed=True)
    return bytes(code)


def disk() -> bytes:
    """A disk of 1 MiB with the guest on it."""
    return boot_sector().ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512)


def spec(vm_id: str, image: str, **changes: object) -> VmSpec:
    """A VM of this guest."""
    plain = VmSpec(
        id=vm_id, session="test", session_id="s1", name="web-1", arch="x86_64", vcpus=1, memory_mib=32,
        disk_bytes=1 << 20, disk=image, boot="disk", kernel=None, initrd=None, cmdline="", accel="tcg", network="user",
        mac="52:54:00:12:34:56", forwards=(), ready=Ready("console", match=GREETING.decode().strip()), lease_s=0.0,
        budget_s=0.0, seed_size=0, seed_sha256="", stop_grace_s=1.0,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]
