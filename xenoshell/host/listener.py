"""What a host listens for on a guest's console: a panic, SSH host keys, a line that means ready. The guest is hostile:
nothing is parsed that need not be, and every buffer is bounded.
"""

from __future__ import annotations

import re
from typing import Optional, Tuple

#: What Linux prints, at the start of a line and perhaps with its time stamp and task before it.
PANIC = re.compile(
    rb"(?:^|\n)(?:\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? )?(Kernel panic - not syncing[^\r\n]{0,300})(?=[\r\n])"
)
PANIC_END = b"end Kernel panic - not syncing"
#: A kernel prints its panic in less than this; who goes on longer was only quoting one.
PANIC_BYTES = 64 << 10
KEYS_BEGIN = b"-----BEGIN SSH HOST KEY KEYS-----"
KEYS_END = b"-----END SSH HOST KEY KEYS-----"
KEY = re.compile(r"(?:ssh-[a-z0-9-]+|ecdsa-sha2-[a-z0-9-]+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]{16,2048}(?= |$)")
MAX_KEYS = 16384
CARRY = 512


class Listener:
    """Fed every byte of the console. ``match``: the text that means ready, "" for none."""

    def __init__(self, match: str = "") -> None:
        self._match = match.encode()
        self._carry = b""
        self._keys: Optional[bytearray] = None
        self.matched = False
        self.panic = ""  # the line
        self.panic_ended = False
        self._panic_bytes = 0
        self.host_keys: Tuple[str, ...] = ()

    def feed(self, data: bytes) -> None:
        """Look at ``data``; the attributes say what was found."""
        seen = self._carry + data
        if self._match and not self.matched:
            self.matched = self._match in seen
        self._carry = seen[-max(CARRY, len(self._match)) :]
        self._look_for_panic(seen, data)
        if self._keys is not None:
            self._collect(data)
        elif KEYS_BEGIN in seen:
            self._keys = bytearray()
            self._collect(seen.rpartition(KEYS_BEGIN)[2])

    def _look_for_panic(self, seen: bytes, data: bytes) -> None:
        if not self.panic:
            found = PANIC.search(seen) if b"Kernel panic" in seen else None
            if not found:
                return
            self.panic, self._panic_bytes = found.group(1).decode("utf-8", "replace"), 0
            seen = seen[found.start() :]
        self._panic_bytes += len(data)
        at = seen.rfind(PANIC_END)
        self.panic_ended = self.panic_ended or at >= 0
        after = seen[at:].partition(b"\n")[2] if at >= 0 else data
        # a kernel that has panicked says nothing more, and no guest with a shell is silent after it showed an old log
        if (self.panic_ended and after.strip()) or self._panic_bytes > PANIC_BYTES:
            self.forget_panic()

    def forget_panic(self) -> None:
        """It was none: somebody showed the log of an old one."""
        self.panic, self.panic_ended = "", False
        self._carry = b""

    def _collect(self, data: bytes) -> None:
        assert self._keys is not None
        self._keys += data[: MAX_KEYS + len(KEYS_END)]
        block, end, _ = self._keys.partition(KEYS_END)
        if end:
            self.host_keys = host_keys(bytes(block)) or self.host_keys
        if end or len(self._keys) > MAX_KEYS:
            self._keys = None


def host_keys(block: bytes) -> Tuple[str, ...]:
    """The SSH public keys (type and base64) in what a guest printed between cloud-init's markers, comments left out."""
    found = []
    for line in block.decode("ascii", "replace").splitlines():
        key = KEY.match(line.strip())
        if key and key.group() not in found:
            found.append(key.group())
    return tuple(found[:16])
