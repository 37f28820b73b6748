"""What a VM uses: CPU and memory from /proc, disk from QEMU, the network from headers that QEMU dumps."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any, Tuple

#: A record of a pcap file: seconds, microseconds, bytes kept, bytes on the wire (little endian, as QEMU writes on x86).
RECORD = struct.Struct("<IIII")
HEADER_SIZE = 24
#: Bytes kept of each packet: a tap device may put a virtio header (12 bytes) before the addresses.
SNAP = 32
#: The dump gives its blocks back to the disk when this many bytes have been read.
PUNCH = 256 << 10
READ_SIZE = 1 << 20


def packets(data: bytes, mac: bytes) -> Tuple[int, int, int]:
    """Sum up pcap records: (bytes consumed, bytes towards the guest with address ``mac``, bytes from it).

    A record that is cut off at the end is left for the next time. Raises `ValueError` for what cannot be a record.
    """
    at = inward = outward = 0
    while at + RECORD.size <= len(data):
        _, _, kept, size = RECORD.unpack_from(data, at)
        if kept > 65536:
            raise ValueError("not a pcap record")
        if at + RECORD.size + kept > len(data):
            break
        packet = data[at + RECORD.size : at + RECORD.size + kept]
        if packet[6:12] == mac or packet[18:24] == mac:
            outward += size
        else:
            inward += size
        at += RECORD.size + kept
    return at, inward, outward


class Dump:
    """Reads what QEMU's filter-dump appends to ``path``, from ``offset`` on. Raises nothing: metering never stops a
    VM.
    """

    def __init__(self, path: str, mac: str, offset: int = 0) -> None:
        self._path = path
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._punched = offset
        self.offset = offset

    def read(self) -> Tuple[int, int]:
        """Bytes (towards the guest, from it) since the last call."""
        inward = outward = 0
        try:
            with open(self._path, "r+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                self.offset = max(self.offset, min(HEADER_SIZE, size))
                while self.offset < size:
                    file.seek(self.offset)
                    used, more_in, more_out = packets(file.read(READ_SIZE), self._mac)
                    if not used:
                        break
                    self.offset += used
                    inward += more_in
                    outward += more_out
                if self.offset - self._punched > PUNCH:
                    _punch(file.fileno(), self.offset)
                    self._punched = self.offset
        except ValueError:
            self.offset = size  # lost in the middle of something: go on with what comes
        except OSError:
            pass
        return inward, outward


def _punch(fd: int, end: int) -> None:
    """Free the blocks before ``end`` in place. QEMU goes on writing at its own position, so the file cannot be cut: a
    packet that it writes in that moment would be lost.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h
    if libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(end)) != 0:
        os.ftruncate(fd, 0)  # a file system without holes: QEMU's next write makes the file sparse again


def disk(blockstats: Any) -> Tuple[int, int]:
    """Bytes (read, written) of all disks in the answer of ``query-blockstats``."""
    read = written = 0
    for device in blockstats if isinstance(blockstats, list) else ():
        stats = device.get("stats") if isinstance(device, dict) and device.get("qdev") else None
        if isinstance(stats, dict):
            read += _count(stats.get("rd_bytes"))
            written += _count(stats.get("wr_bytes"))
    return read, written


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 62 else 0
