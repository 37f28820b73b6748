"""Frames: the one format that every channel between client, helper and supervisor carries.

A frame is a 12-byte header and a payload::

    magic "XS" | version u8 | type u8 | stream u32 | length u32      (big endian)

JSON (UTF-8) travels in REQUEST, RESPONSE, ERROR and EVENT; raw bytes in DATA and SEGMENT. ``stream`` is
the id that the requesting side chose for its request; everything that belongs to the request carries it.

A login shell may print before the helper does, so the reader of a fresh connection first looks for a
random per-connection preamble in the first 64 KiB (`PREAMBLE_WINDOW`), and is strict from there on: what breaks
the format raises `WireError` with the offending bytes.
"""

from __future__ import annotations

import struct
from typing import List, NamedTuple, Optional

MAGIC = b"XS"
VERSION = 1
HEADER = struct.Struct(">2sBBII")
#: Largest payload. A segment is about 1 MiB packed and never more than 2 MiB.
MAX_PAYLOAD = 4 << 20
#: How many bytes of login noise are tolerated before the preamble.
PREAMBLE_WINDOW = 64 << 10

REQUEST = 1
RESPONSE = 2
ERROR = 3
EVENT = 4
DATA = 5
EOF = 6
SEGMENT = 7
TYPES = frozenset((REQUEST, RESPONSE, ERROR, EVENT, DATA, EOF, SEGMENT))


class WireError(Exception):
    """The peer sent something that is not a frame. ``found`` holds up to 256 of the bytes that broke it."""

    def __init__(self, message: str, found: bytes = b"") -> None:
        super().__init__(message + (": found " + repr(found[:256]) if found else ""))
        self.found = found[:256]


class Frame(NamedTuple):
    """One decoded frame: its type (`REQUEST`, ...), its stream id and its payload."""

    type: int
    stream: int
    payload: bytes


def pack(type_: int, stream: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame. Raises `WireError` for a payload over `MAX_PAYLOAD`."""
    if len(payload) > MAX_PAYLOAD:
        raise WireError("payload of %d bytes is over the limit of %d" % (len(payload), MAX_PAYLOAD))
    return HEADER.pack(MAGIC, VERSION, type_, stream, len(payload)) + payload


class FrameReader:
    """Turns a byte stream, in pieces of any size, into frames.

    With ``preamble`` given, everything before its first occurrence is noise (kept in ``noise``) and more than
    `PREAMBLE_WINDOW` bytes of noise raise `WireError`.
    """

    def __init__(self, preamble: Optional[bytes] = None) -> None:
        self._buffer = bytearray()
        self._preamble = preamble
        self.noise = b""

    @property
    def synchronised(self) -> bool:
        """Whether the preamble (if one is expected) has been seen."""
        return self._preamble is None

    @property
    def pending(self) -> int:
        """Bytes received that are not yet a whole frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> List[Frame]:
        """Add ``data``; return the frames that it completes. Raises `WireError` on anything but frames."""
        buffer = self._buffer
        buffer += data
        if self._preamble is not None and not self._synchronise(self._preamble):
            return []
        frames: List[Frame] = []
        at = 0
        while len(buffer) - at >= HEADER.size:
            magic, version, type_, stream, length = HEADER.unpack_from(buffer, at)
            if magic != MAGIC:
                raise WireError("not a frame", bytes(buffer[at : at + 256]))
            if version != VERSION:
                text = "frame version %d, this side speaks %d" % (version, VERSION)
                raise WireError(text, bytes(buffer[at : at + 64]))
            if type_ not in TYPES:
                raise WireError("unknown frame type %d" % type_, bytes(buffer[at : at + 64]))
            if length > MAX_PAYLOAD:
                text = "frame of %d bytes is over the limit of %d" % (length, MAX_PAYLOAD)
                raise WireError(text, bytes(buffer[at : at + 64]))
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append(Frame(type_, stream, bytes(buffer[at + HEADER.size : end])))
            at = end
        if at:
            del buffer[:at]
        return frames

    def _synchronise(self, preamble: bytes) -> bool:
        found = self._buffer.find(preamble)
        if found < 0:
            if len(self._buffer) > PREAMBLE_WINDOW + len(preamble):
                raise WireError("no helper in the first %d bytes" % PREAMBLE_WINDOW, bytes(self._buffer))
            self.noise = bytes(self._buffer[-4096:])
            return False
        self.noise = bytes(self._buffer[:found][-4096:])
        del self._buffer[: found + len(preamble)]
        self._preamble = None
        return True
