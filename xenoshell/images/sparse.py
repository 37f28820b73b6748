"""Reading, hashing and writing sparse files by 1 MiB pieces, without touching their holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from xenoshell.wire.tree import NODE, ZERO_BLOCK, ZERO_LEAF, data_runs, leaves_of, read_full, root_of
from xenoshell.wire.values import BLOCK, BLOCKS_PER_NODE

_ZERO_PIECE = bytes(NODE)


def pieces(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(number of the piece, its bytes): each 1 MiB piece of the file that is not all zeros, in order. The last piece
    is padded with zeros to a whole number of 4 KiB blocks. Raises `OSError` if the file ends before ``size``."""
    last = -1
    for start, end in data_runs(fd, 0, size):
        for number in range(max(last + 1, start // NODE), -(-end // NODE)):
            last = number
            length = min(NODE, size - number * NODE)
            buffer = bytearray(-(-length // BLOCK) * BLOCK)
            if read_full(fd, memoryview(buffer)[:length], number * NODE) < length:
                raise OSError(errno.EIO, f"the file became shorter than {size} bytes while it was read")
            data = bytes(buffer)
            if data != (_ZERO_PIECE if len(data) == NODE else bytes(len(data))):
                yield number, data


def digest(fd: int, size: int, visit: Callable[[int, bytes, bytes], None]) -> str:
    """The root of the file's digest tree. On the way, ``visit(number, data, leaf hashes)`` is called for each piece
    that is not all zeros, in order, as `pieces` yields it: one reading does for hashing and copying or packing."""
    blocks = -(-size // BLOCK)
    zeros = ZERO_LEAF * BLOCKS_PER_NODE

    def hole(first: int, last: int) -> Iterator[bytes]:
        for number in range(first, last):
            yield zeros[: 32 * min(BLOCKS_PER_NODE, blocks - number * BLOCKS_PER_NODE)]

    def nodes() -> Iterator[bytes]:
        done = 0
        for number, data in pieces(fd, size):
            yield from hole(done, number)
            hashes = leaves_of(memoryview(data))
            visit(number, data, hashes)
            yield hashes
            done = number + 1
        yield from hole(done, -(-size // NODE))

    return root_of(size, nodes())


def write_blocks(fd: int, offset: int, data: bytes) -> None:
    """Write ``data`` (whole blocks) at ``offset``, leaving out blocks of zeros, so that they stay holes."""
    view = memoryview(data)
    start: int | None = None
    for at in range(0, len(data) + BLOCK, BLOCK):
        solid = at < len(data) and data[at : at + BLOCK] != ZERO_BLOCK
        if solid and start is None:
            start = at
        elif not solid and start is not None:
            write_all(fd, view[start:at], offset + start)
            start = None


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at ``offset``."""
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
