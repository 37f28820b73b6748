"""Writes small ISO 9660 disks: files in one directory, with Joliet and Rock Ridge names, the same bytes each time.

Sources: ECMA-119 (ISO 9660), IEEE P1281 (SUSP), P1282 (Rock Ridge), the Joliet specification. A library would put the
time of the call into the disk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SECTOR = 2048
_SYSTEM_AREA = 16
_JOLIET_LEVEL_3 = b"%/E"
_DIRECTORY = 2

_ER = (
    b"RRIP_1991A",
    b"THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS",
    b"PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY VOLUME DESCRIPTOR "
    b"FOR CONTACT INFORMATION.",
)


@dataclass(frozen=True)
class _Entry:
    name: str
    data: bytes
    sector: int


def iso(volume: str, files: Mapping[str, bytes]) -> bytes:
    """A disk with the volume name ``volume`` and ``files`` in its root directory, readable by all.

    Names are up to 64 characters of ASCII without slashes. Raises `ValueError` for others, or for more files than the
    one sector of a directory holds (about 15).
    """
    for name in files:
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= 64 and "/" not in name and name.strip(".")):
            raise ValueError(f"file name on an ISO 9660 disk: {name!r}")
    # descriptors (3), path tables (4), two directories, the continuation area of Rock Ridge; then the files
    tables, directory, joliet, continuation = _SYSTEM_AREA + 3, _SYSTEM_AREA + 7, _SYSTEM_AREA + 8, _SYSTEM_AREA + 9
    sector = continuation + 1
    entries = []
    for name, data in sorted(files.items()):
        entries.append(_Entry(name, data, sector if data else 0))
        sector += -(-len(data) // SECTOR)

    short = {e.name: f"FILE{i:04d}.;1".encode() for i, e in enumerate(entries)}
    image = bytearray(sector * SECTOR)
    parts = {
        _SYSTEM_AREA: _volume(volume, False, sectors=sector, tables=tables, root=directory),
        _SYSTEM_AREA + 1: _volume(volume, True, sectors=sector, tables=tables + 2, root=joliet),
        _SYSTEM_AREA + 2: b"\xffCD001\x01",
        tables: struct.pack("<BBIHBx", 1, 0, directory, 1, 0),
        tables + 1: struct.pack(">BBIHBx", 1, 0, directory, 1, 0),
        tables + 2: struct.pack("<BBIHBx", 1, 0, joliet, 1, 0),
        tables + 3: struct.pack(">BBIHBx", 1, 0, joliet, 1, 0),
        directory: _records(directory, entries, lambda e: short[e.name], _rock_ridge, continuation),
        joliet: _records(joliet, entries, lambda e: e.name.encode("utf-16-be"), lambda _: b"", 0),
        continuation: _susp(b"ER", bytes(len(part) for part in _ER) + b"\x01" + b"".join(_ER)),
    }
    for at, part in [*parts.items(), *((e.sector, e.data) for e in entries if e.data)]:
        image[at * SECTOR : at * SECTOR + len(part)] = part
    return bytes(image)


def _both(value: int, size: int = 4) -> bytes:
    """A number in both byte orders, as ISO 9660 has it."""
    return value.to_bytes(size, "little") + value.to_bytes(size, "big")


def _volume(volume: str, joliet: bool, *, sectors: int, tables: int, root: int) -> bytes:
    """The primary volume descriptor, or the supplementary one for Joliet."""

    def text(length: int, value: str = "") -> bytes:
        if joliet:
            return value.ljust(length // 2).encode("utf-16-be").ljust(length, b"\0")[:length]
        return value.encode().ljust(length)[:length]

    no_date = b"0" * 16 + b"\0"
    return b"".join(
        (
            bytes([2 if joliet else 1]), b"CD001\x01\0", text(32), text(32, volume), bytes(8), _both(sectors),
            (_JOLIET_LEVEL_3 if joliet else b"").ljust(32, b"\0"),
            _both(1, 2), _both(1, 2), _both(SECTOR, 2), _both(10), struct.pack("<II", tables, 0),
            struct.pack(">II", tables + 1, 0), _record(root, SECTOR, _DIRECTORY, b"\0", b""), text(128), text(128),
            text(128), text(128), text(37), text(37), text(37), no_date * 4, b"\x01",
        )
    )  # fmt: skip


def _record(sector: int, length: int, flags: int, name: bytes, extra: bytes) -> bytes:
    """One directory record; ``extra`` is what Rock Ridge adds. The date is 2025-01-01, midnight, UTC."""
    padding = bytes(1 - len(name) % 2)
    size = 33 + len(name) + len(padding) + len(extra)
    fill = bytes(size % 2)
    date = bytes((125, 1, 1, 0, 0, 0, 0))
    head = bytes([size + len(fill), 0]) + _both(sector) + _both(length) + date + bytes([flags, 0, 0]) + _both(1, 2)
    return head + bytes([len(name)]) + name + padding + extra + fill


def _records(
    own: int,
    entries: list[_Entry],
    identifier: Callable[[_Entry], bytes],
    extra: Callable[[_Entry], bytes],
    continuation: int,
) -> bytes:
    """The root directory at sector ``own``: itself, its parent (itself again), and the files."""
    first = parent = b""
    if continuation:
        directory = _susp(b"PX", _both(0o40555) + _both(2) + _both(0) + _both(0))
        er_length = 8 + sum(map(len, _ER))
        first = (
            _susp(b"SP", b"\xbe\xef\0") + directory + _susp(b"CE", _both(continuation) + _both(0) + _both(er_length))
        )
        parent = directory
    records = _record(own, SECTOR, _DIRECTORY, b"\0", first) + _record(own, SECTOR, _DIRECTORY, b"\1", parent)
    for entry in sorted(entries, key=identifier):
        records += _record(entry.sector, len(entry.data), 0, identifier(entry), extra(entry))
    if len(records) > SECTOR:
        raise ValueError(f"too many files for one ISO 9660 directory sector: {len(entries)}")
    return records


def _rock_ridge(entry: _Entry) -> bytes:
    return _susp(b"PX", _both(0o100444) + _both(1) + _both(0) + _both(0)) + _susp(b"NM", b"\0" + entry.name.encode())


def _susp(signature: bytes, payload: bytes) -> bytes:
    return signature + bytes([4 + len(payload), 1]) + payload
