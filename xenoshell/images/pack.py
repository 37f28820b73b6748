"""Packing a blob for transfer: its blocks that are not zeros, in order, in segments of 1 MiB, each compressed alone.

Level 3 of zstd by measurement: on a Debian disk it sends 12 % more than level 9 and takes a third of the time, and the
pack is made once for all hosts.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from xenoshell.images.sparse import digest
from xenoshell.wire.tree import NODE, ZERO_BLOCK
from xenoshell.wire.values import BLOCK, BLOCKS_PER_NODE, Recipe, Segment

ZSTD_LEVEL = 3
ZLIB_LEVEL = 6
THREADS = 2
#: Segments under way at once: enough to keep the threads busy, 2 MiB of memory each.
AHEAD = 2 * THREADS


def compressor(codec: str) -> Callable[[bytes], bytes]:
    """A function that compresses one segment; it may be called from several threads. ``codec``: zstd or zlib."""
    if codec == "zlib":
        return lambda raw: zlib.compress(raw, ZLIB_LEVEL)
    if codec != "zstd":
        raise ValueError(f"codec: {codec!r} is not zstd or zlib")
    import zstandard

    local = threading.local()  # a ZstdCompressor serves one thread at a time

    def compress(raw: bytes) -> bytes:
        if not hasattr(local, "zstd"):
            local.zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        packed: bytes = local.zstd.compress(raw)
        return packed

    return compress


def pack(fd: int, size: int, codec: str, sink: BinaryIO) -> Recipe:
    """Pack the file ``fd`` of ``size`` bytes: the packed segments go to ``sink``, one after the other.

    The recipe's ``blob`` is the digest of what was read, so that the caller sees whether the file is what it should be.
    Needs about 20 MiB of memory whatever the size. Raises `OSError` from reading and writing.
    """
    runs: list[tuple[int, int, int, int]] = []
    segments: list[Segment] = []
    compress = compressor(codec)
    pending: deque[Future[tuple[Segment, bytes]]] = deque()
    raw = bytearray()
    literals = 0

    def work(data: bytes) -> tuple[Segment, bytes]:
        packed = compress(data)
        return Segment(_sha256(packed), len(packed), _sha256(data), len(data)), packed

    def collect() -> None:
        segment, packed = pending.popleft().result()
        segments.append(segment)
        sink.write(packed)

    with ThreadPoolExecutor(THREADS) as pool:

        def flush() -> None:
            pending.append(pool.submit(work, bytes(raw)))
            raw.clear()
            while len(pending) > AHEAD:
                collect()

        def visit(number: int, data: bytes, _hashes: bytes) -> None:
            nonlocal literals
            for index in range(len(data) // BLOCK):
                block = data[index * BLOCK : (index + 1) * BLOCK]  # a copy: bytes compare 20 times faster than views
                if block == ZERO_BLOCK:
                    continue
                destination = number * BLOCKS_PER_NODE + index
                if runs and sum(runs[-1][:2]) == destination:
                    first, count, _, source = runs[-1]
                    runs[-1] = (first, count + 1, 0, source)
                else:
                    runs.append((destination, 1, 0, literals))
                literals += 1
                raw.extend(block)
                if len(raw) == NODE:
                    flush()

        blob = digest(fd, size, visit)
        if raw:
            flush()
        while pending:
            collect()
    return Recipe(blob, size, codec, (), tuple(runs), tuple(segments))


def segment_offsets(recipe: Recipe) -> tuple[int, ...]:
    """Where each segment begins in the pack's data, and where the last one ends."""
    offsets = [0]
    for segment in recipe.segments:
        offsets.append(offsets[-1] + segment.packed)
    return tuple(offsets)


def read_segment(data: str | os.PathLike[str], recipe: Recipe, offset: int, index: int) -> bytes | None:
    """The packed bytes of one segment, or None if the file does not hold what the recipe says."""
    segment = recipe.segments[index]
    try:
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        packed = os.pread(fd, segment.packed, offset)
    finally:
        os.close(fd)
    return packed if _sha256(packed) == segment.sha256 else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
