"""A guest that is a boot sector: at a key press it says "!", and half a second later it counts, as fast as it can.

Like a Linux kernel's console it waits only some milliseconds for the serial port to take a byte, then writes all the
same: what nobody takes in time is lost.
"""

from __future__ import annotations

LINES = 8000
COUNT = b"".join(b"%05d\r\n" % n for n in range(LINES))  # 56 kB

#: (label, bytes, jump or address to patch in: its width in bits, the label it points to)
_CODE: tuple[tuple[str, str, int, str], ...] = (
    ("", "31c0 8ed8 fa", 0, ""),  # xor ax,ax; mov ds,ax; cli
    ("key", "bafd03 ec a801 74", 8, "key"),  # mov dx,3fd (line status); in al,dx; test al,1; jz key
    ("", "b2f8 ec b021 e8", -16, "put"),  # mov dl,f8 (data); in al,dx; mov al,'!'; call put
    ("", "0f31 6689c3", 0, ""),  # rdtsc; mov ebx,eax
    ("rest", "0f31 6629d8 663d00000060 72", 8, "rest"),  # rdtsc; sub eax,ebx; cmp eax,60000000; jb rest
    ("", "bd" + LINES.to_bytes(2, "little").hex(), 0, ""),  # mov bp,LINES
    ("line", "be", 16, "digits"),  # mov si,digits
    ("char", "ac 84c0 74", 8, "more"),  # lodsb; test al,al; jz more
    ("", "e8", -16, "put"),  # call put
    ("", "eb", 8, "char"),  # jmp char
    ("more", "be", 16, "last"),  # mov si,last
    ("carry", "fe04 803c39 76", 8, "next"),  # inc byte [si]; cmp byte [si],'9'; jbe next
    ("", "c60430 4e eb", 8, "carry"),  # mov byte [si],'0'; dec si; jmp carry
    ("next", "4d 75", 8, "line"),  # dec bp; jnz line
    ("halt", "f4 eb", 8, "halt"),  # hlt; jmp halt
    ("put", "88c4 bafd03 b90020", 0, ""),  # mov ah,al; mov dx,3fd; mov cx,2000
    ("full", "ec a820 75", 8, "send"),  # in al,dx; test al,20 (has it room?); jnz send
    ("", "e2", 8, "full"),  # loop full
    ("send", "88e0 b2f8 ee c3", 0, ""),  # mov al,ah; mov dl,f8; out dx,al; ret
    ("digits", b"0000".hex(), 0, ""),
    ("last", b"0\r\n\0".hex(), 0, ""),
)


def disk() -> bytes:
    """A disk of 1 MiB with the guest on it."""
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
    return bytes(code).ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512)
