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
        self.host_keys: Tuple[str, ...] = ()

    def feed(self, data: bytes) -> None:
        """Look at ``data``; the attributes say what was found."""
        seen = self._carry + data
        if self._match and not self.matched:
            self.matched = self._match in seen
        if b"Kernel panic" in seen:
            found = PANIC.search(seen)
            if found and not self.panic:
                self.panic = found.group(1).decode("utf-8", "replace")
            self.panic_ended = self.panic_ended or PANIC_END in seen
        if self._keys is not None:
            self._collect(data)
        elif KEYS_BEGIN in seen:
            self._keys = bytearray()
            self._collect(seen.rpartition(KEYS_BEGIN)[2])
        self._carry = seen[-max(CARRY, len(self._match)) :]

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
