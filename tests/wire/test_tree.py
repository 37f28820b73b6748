"""The digest tree: as its definition says, whatever the size, and without reading holes."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenoshell.wire import tree

MIB = 1 << 20


def by_definition(data: bytes) -> str:
    """The definition, word by word."""
    leaves = [hashlib.sha256(data[i : i + 4096].ljust(4096, b"\0")).digest() for i in range(0, len(data), 4096)]
    nodes = [hashlib.sha256(b"".join(leaves[i : i + 256])).digest() for i in range(0, len(leaves), 256)]
    return hashlib.sha256(b"xenoshell blob 1\n" + str(len(data)).encode() + b"\n" + b"".join(nodes)).hexdigest()


def stored(path: Path, data: bytes) -> int:
    """A descriptor of a sparse file with ``data``: its blocks of zeros are holes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(fd, len(data))
    for at in range(0, len(data), 4096):
        block = data[at : at + 4096]
        if block.strip(b"\0"):
            os.pwrite(fd, block, at)
    return fd


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("tree") / "blob"


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 3 * MIB + 5000),
    writes=st.lists(st.tuples(st.integers(0, 3 * MIB), st.binary(min_size=1, max_size=9000)), max_size=6),
)
def test_a_sparse_file_has_the_digest_of_its_bytes(size: int, writes: list[tuple[int, bytes]], file: Path) -> None:
    data = bytearray(size)
    for at, piece in writes:
        data[at : at + len(piece)] = piece[: max(0, size - at)]
    fd = stored(file, bytes(data))
    try:
        expected = by_definition(bytes(data))
        assert tree.root(fd, len(data)) == expected
        assert tree.root_of_bytes(bytes(data)) == expected
        leaves = b"".join(tree.leaves(fd, len(data)))
        assert len(leaves) == 32 * -(-len(data) // 4096)
        for block in range(len(leaves) // 32):
            content = bytes(data[block * 4096 : block * 4096 + 4096]).ljust(4096, b"\0")
            assert leaves[block * 32 : block * 32 + 32] == hashlib.sha256(content).digest()
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 2 * MIB])
def test_sizes_at_the_edges(size: int, tmp_path: Path) -> None:
    data = random.Random(size).randbytes(size)
    fd = stored(tmp_path / "f", data)
    assert tree.root(fd, size) == by_definition(data)
    os.close(fd)


def test_blobs_that_differ_only_in_trailing_zeros_have_different_digests() -> None:
    assert len({tree.root_of_bytes(b"x" + bytes(n)) for n in (0, 1, 4095, 4096)}) == 4


def test_a_file_shorter_than_said_is_an_error(tmp_path: Path) -> None:
    fd = stored(tmp_path / "f", b"x" * 5000)
    with pytest.raises(tree.ShortFile):
        tree.root(fd, 5001)
    os.close(fd)


def test_holes_cost_nearly_nothing(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8 << 30)
    os.pwrite(fd, b"x", 4 << 30)
    began = time.process_time()
    tree.root(fd, 8 << 30)
    assert time.process_time() - began < 2.0  # 0.02 s a GiB; reading them would take 8 s and more
    os.close(fd)
