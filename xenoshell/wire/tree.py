"""The digest tree that names a blob, so that one can verify it in pieces and say which blocks two blobs share.

leaf = SHA-256 of each 4 KiB block (the last one padded with zeros), node = SHA-256 of the leaf hashes of 1 MiB
(up to 256 of them), root = SHA-256 of ``b"xenoshell blob 1\\n"``, the decimal size, ``b"\\n"`` and the node digests.
The root is the blob's digest. A node that is all zeros has a constant digest, and holes of a sparse file are not read.
"""

from __future__ import annotations

import errno
import os
from hashlib import sha256
from typing import Iterable, Iterator, Tuple

from xenoshell.wire.values import BLOCK, BLOCKS_PER_NODE

#: Bytes under one node of the tree.
NODE = BLOCK * BLOCKS_PER_NODE
#: Bytes of one leaf hash.
LEAF = 32

ZERO_BLOCK = bytes(BLOCK)
ZERO_LEAF = sha256(ZERO_BLOCK).digest()
_ZERO_LEAVES = ZERO_LEAF * BLOCKS_PER_NODE
_ZERO_NODE = sha256(_ZERO_LEAVES).digest()


class ShortFile(ValueError):
    """The file ends before the size that was said."""


def leaves_of(data: memoryview) -> bytes:
    """The concatenated leaf hashes of ``data`` (up to `NODE` bytes; a last partial block is padded with zeros)."""
    hashes = []
    whole = len(data) - len(data) % BLOCK
    for at in range(0, whole, BLOCK):
        block = data[at : at + BLOCK]
        # comparing costs 0.2 us where hashing costs 4, and images are full of zero blocks (memoryviews compare slowly)
        hashes.append(ZERO_LEAF if bytes(block) == ZERO_BLOCK else sha256(block).digest())
    if whole < len(data):
        hashes.append(sha256(bytes(data[whole:]).ljust(BLOCK, b"\0")).digest())
    return b"".join(hashes)


def data_runs(fd: int, start: int, end: int) -> Iterator[Tuple[int, int]]:
    """The (start, end) byte ranges between ``start`` and ``end`` that may hold data, in order; the rest are holes.

    Where the file system knows no holes, that is everything. Moves the file's offset.
    """
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here to the end
                return
            yield start, end
            return
        if first >= end:
            return
        last = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        if last <= first:  # the file shrinks under us
            return
        yield first, last
        start = last


def read_full(fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset``; return how many bytes there were before the end of the file."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def leaves(fd: int, size: int) -> Iterator[bytes]:
    """For each node of the open file ``fd`` of ``size`` bytes, in order, its leaf hashes (32 bytes a block).

    Raises `ShortFile` when the file ends early. Moves the file's offset.
    """
    if os.fstat(fd).st_size < size and os.lseek(fd, 0, os.SEEK_END) < size:  # the second look is for block devices
        raise ShortFile("the file has %d bytes, not %d" % (os.fstat(fd).st_size, size))
    buffer = memoryview(bytearray(NODE))
    runs = data_runs(fd, 0, size)
    run = next(runs, (size, size))
    for offset in range(0, size, NODE):
        length = min(NODE, size - offset)
        while run[1] <= offset < size and run[0] < size:
            run = next(runs, (size, size))
        if run[0] >= offset + length:
            yield _ZERO_LEAVES[: LEAF * -(-length // BLOCK)]
            continue
        view = buffer[:length]
        if read_full(fd, view, offset) < length:
            raise ShortFile("the file ends before byte %d" % (offset + length))
        yield leaves_of(view)


def root_of(size: int, nodes: Iterable[bytes]) -> str:
    """The digest (64 hexadecimal digits) of a blob of ``size`` bytes, of the leaf hashes of each of its nodes."""
    whole = sha256(b"xenoshell blob 1\n%d\n" % size)
    for hashes in nodes:
        whole.update(_ZERO_NODE if hashes == _ZERO_LEAVES else sha256(hashes).digest())
    return whole.hexdigest()


def root(fd: int, size: int) -> str:
    """The digest (64 hexadecimal digits) of the open file ``fd``, which is ``size`` bytes long. Raises `ShortFile`."""
    return root_of(size, leaves(fd, size))


def root_of_bytes(data: bytes) -> str:
    """The digest of a blob that is in memory."""
    view = memoryview(data)
    return root_of(len(data), (leaves_of(view[at : at + NODE]) for at in range(0, len(data), NODE)))
