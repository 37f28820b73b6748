"""The store keeps what it was given, finds what is damaged, and survives being killed anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xenoshell.errors import BadInput
from xenoshell.images.manifest import BlobRef, Manifest
from xenoshell.images.store import ImageStore
from xenoshell.wire import tree
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import BLOCK, CODECS, Recipe

MIB = 1 << 20


def write_disk(path: Path, size: int, blocks: dict[int, int]) -> None:
    """A sparse file with blocks filled from a seed each (seed 0: explicit zeros)."""
    with path.open("wb") as file:
        for block, seed in blocks.items():
            data = hashlib.shake_256(b"%d" % seed).digest(BLOCK) if seed else bytes(BLOCK)
            file.seek(block * BLOCK)
            file.write(data[: max(0, min(BLOCK, size - block * BLOCK))])
        file.truncate(size)


def rebuild(recipe: Recipe, segments: list[bytes]) -> bytes:
    """What a host does with a recipe and its segments, in the plainest way."""
    unpack = zlib.decompress if recipe.codec == "zlib" else zstandard.ZstdDecompressor().decompress
    literals = b"".join(unpack(packed) for packed in segments)
    blob = bytearray(-(-recipe.size // BLOCK) * BLOCK)
    for destination, count, source, first in recipe.runs:
        assert source == 0
        blob[destination * BLOCK : (destination + count) * BLOCK] = literals[first * BLOCK : (first + count) * BLOCK]
    return bytes(blob[: recipe.size])


disks = st.integers(0, 3 * MIB).flatmap(
    lambda size: st.tuples(st.just(size), st.dictionaries(st.integers(0, max(0, size - 1) // BLOCK), st.integers(0, 5)))
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(disks, st.sampled_from(CODECS))
def test_any_disk_comes_back_from_its_recipe_and_segments(
    tmp_path: Path, store: ImageStore, disk: tuple[int, dict[int, int]], codec: str
) -> None:
    size, blocks = disk
    source = tmp_path / "disk"
    write_disk(source, size, blocks)
    blob = store.add_blob(source)
    with source.open("rb") as file:
        assert blob == BlobRef(tree.root(file.fileno(), size), size)
    recipe = store.recipe(blob.digest, codec)
    segments = [store.segment(blob.digest, codec, i) for i in range(len(recipe.segments))]
    for segment, packed in zip(recipe.segments, segments, strict=True):
        assert hashlib.sha256(packed).hexdigest() == segment.sha256 and len(packed) == segment.packed
    assert rebuild(recipe, segments) == source.read_bytes() == store.blob_path(blob.digest).read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(disks)
def test_block_hashes_are_those_of_the_blocks(
    tmp_path: Path, store: ImageStore, disk: tuple[int, dict[int, int]]
) -> None:
    size, blocks = disk
    source = tmp_path / "disk"
    write_disk(source, size, blocks)
    hashes = store.block_hashes(store.add_blob(source).digest).read_bytes()
    data = source.read_bytes()
    for block in range(-(-size // BLOCK)):
        plain = data[block * BLOCK : (block + 1) * BLOCK].ljust(BLOCK, b"\0")
        expected = hashlib.sha256(plain).digest() if any(plain) else bytes(32)
        assert hashes[block * 32 : block * 32 + 32] == expected
    assert len(hashes) == -(-size // BLOCK) * 32


def test_a_huge_empty_disk_takes_no_room_and_no_segments(store: ImageStore, tmp_path: Path) -> None:
    source = tmp_path / "disk"
    write_disk(source, 64 << 30, {(64 << 30) // BLOCK - 1: 7})
    blob = store.add_blob(source)
    assert store.blob_path(blob.digest).stat().st_blocks * 512 <= 64 << 10
    assert store.block_hashes(blob.digest).stat().st_blocks * 512 <= 64 << 10
    assert [s.raw for s in store.recipe(blob.digest, "zstd").segments] == [BLOCK]


def test_packing_needs_little_memory(store: ImageStore, tmp_path: Path) -> None:
    source = tmp_path / "disk"
    with source.open("wb") as file:
        for _ in range(96):
            file.write(os.urandom(MIB))
    code = (
        "import sys; from pathlib import Path; from xenoshell.images.store import ImageStore\n"
        "store = ImageStore(Path(sys.argv[1])); blob = store.add_blob(Path(sys.argv[2]))\n"
        "store.recipe(blob.digest, 'zstd')\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, str(store.root), str(source)]
    assert int(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout) < 80_000  # KiB


def test_blobs_are_read_only_and_an_equal_one_is_stored_once(store: ImageStore, tmp_path: Path) -> None:
    write_disk(tmp_path / "a", 2 * MIB, {3: 1})
    write_disk(tmp_path / "b", 2 * MIB, {3: 1, 9: 0})
    first, second = store.add_blob(tmp_path / "a"), store.add_blob(tmp_path / "b")
    assert first == second
    assert store.blob_path(first.digest).stat().st_mode & 0o222 == 0
    assert len(list((store.root / "blobs").iterdir())) == 1


def kernel_image(store: ImageStore, tmp_path: Path, text: str = "kernel") -> Manifest:
    (tmp_path / "kernel").write_text(text)
    return Manifest(arch="x86_64", kernel=store.add_blob(tmp_path / "kernel"), cmdline="console=ttyS0")


def test_images_are_found_by_name_and_by_the_first_digits_of_their_id(store: ImageStore, tmp_path: Path) -> None:
    image = store.put(kernel_image(store, tmp_path), "edge-web")
    for spelling in ("edge-web", image.id, image.id[:8], "sha256:" + image.id):
        assert store.get(spelling) == image
    assert image.names == ("edge-web",) and store.images() == (image,)
    with pytest.raises(Failure) as failure:
        store.get(image.id[:7])
    assert failure.value.cause == "image-missing"


def test_an_unknown_image_names_the_nearest(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="there are none yet"):
        store.get("edge-web")
    store.put(kernel_image(store, tmp_path), "edge-web")
    with pytest.raises(Failure, match="did you mean edge-web"):
        store.get("edgeweb")


@pytest.mark.parametrize("name", ["", "Web", "-web", "../x", "a" * 64, "web\n", "wéb", "a/b"])
def test_what_cannot_name_an_image(store: ImageStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="image name"):
        store.put(kernel_image(store, tmp_path), name)


def test_an_image_whose_blobs_are_not_there_is_not_kept(store: ImageStore) -> None:
    with pytest.raises(Failure, match="not in the store"):
        store.put(Manifest(arch="x86_64", kernel=BlobRef("0" * 64, 1)), "x")
    assert store.names() == {}


def test_a_damaged_pack_is_made_again(store: ImageStore, tmp_path: Path) -> None:
    write_disk(tmp_path / "disk", 3 * MIB, {i: i for i in range(1, 700)})
    digest = store.add_blob(tmp_path / "disk").digest
    good = store.segment(digest, "zstd", 1)
    data = store.root / "packs" / f"{digest}.zstd" / "data"
    damaged = bytearray(data.read_bytes())
    damaged[-100] ^= 1
    data.write_bytes(damaged)
    last = len(store.recipe(digest, "zstd").segments) - 1
    assert (
        hashlib.sha256(store.segment(digest, "zstd", last)).hexdigest()
        == store.recipe(digest, "zstd").segments[last].sha256
    )
    assert store.segment(digest, "zstd", 1) == good
    assert data.read_bytes() != damaged


def test_a_damaged_blob_is_not_packed(store: ImageStore, tmp_path: Path) -> None:
    write_disk(tmp_path / "disk", MIB, {5: 5})
    digest = store.add_blob(tmp_path / "disk").digest
    path = store.blob_path(digest)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(Failure) as failure:
        store.recipe(digest, "zstd")
    assert failure.value.cause == "corrupt-image" and str(path) in failure.value.message
    assert list((store.root / "packs").iterdir()) == []


def test_a_manifest_that_was_changed_is_noticed(store: ImageStore, tmp_path: Path) -> None:
    image = store.put(kernel_image(store, tmp_path), "x")
    path = store.root / "manifests" / f"{image.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cmdline": "init=/bin/evil"}))
    with pytest.raises(Failure) as failure:
        store.get("x")
    assert failure.value.cause == "corrupt-image"


def test_several_threads_ask_for_one_pack_and_it_is_made_once(store: ImageStore, tmp_path: Path) -> None:
    write_disk(tmp_path / "disk", 8 * MIB, {i: i for i in range(1, 2000)})
    digest = store.add_blob(tmp_path / "disk").digest
    stores = [store, ImageStore(store.root)]
    with ThreadPoolExecutor(6) as pool:
        packed = list(pool.map(lambda i: stores[i % 2].segment(digest, "zstd", 0), range(6)))
    assert len(set(packed)) == 1
    assert len(list((store.root / "packs").iterdir())) == 1


CHILD = """
import os, signal, sys
from pathlib import Path
left = int(sys.argv[1])
def counted(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for name in ("fsync", "rename", "pwrite", "mkdir", "open"):
    setattr(os, name, counted(getattr(os, name)))
from xenoshell.images.manifest import Manifest
from xenoshell.images.store import ImageStore
store = ImageStore(Path(sys.argv[2]))
blob = store.add_blob(Path(sys.argv[3]))
store.put(Manifest(arch="x86_64", disk=blob, boot="disk"), "web")
store.recipe(blob.digest, "zlib")
"""


def test_a_process_killed_at_any_point_leaves_a_sound_store(tmp_path: Path) -> None:
    """Every call that changes the disk is a point; the next try finishes, and nothing half-made has a real name."""
    source = tmp_path / "disk"
    write_disk(source, 2 * MIB, {i: i for i in range(1, 300, 2)})
    root = tmp_path / "images"
    point, killed = 1, 0
    while True:
        command = [sys.executable, "-c", CHILD, str(point), str(root), str(source)]
        status = subprocess.run(command, timeout=60, check=False, capture_output=True).returncode
        store = ImageStore(root)
        assert list((root / "tmp").iterdir()) == []
        for blob in (root / "blobs").iterdir():
            with blob.open("rb") as file:
                assert tree.root(file.fileno(), blob.stat().st_size) == blob.name
            assert store.block_hashes(blob.name).stat().st_size == -(-blob.stat().st_size // BLOCK) * 32
        for pack in (root / "packs").iterdir():
            recipe = store.recipe(pack.name.split(".")[0], "zlib")
            assert rebuild(recipe, [store.segment(recipe.blob, "zlib", i) for i in range(len(recipe.segments))])
        for name in store.names():
            assert store.get(name).manifest.disk is not None
        if status == 0:
            break
        assert status == -signal.SIGKILL
        killed += 1
        point += 1 if point < 12 else 13  # the many writes are alike
    assert killed > 12 and store.names() == {"web": store.get("web").id}
    assert source.read_bytes() == store.blob_path(store.get("web").manifest.blobs[0].digest).read_bytes()


def test_the_workspace_of_a_living_process_is_left_alone(store: ImageStore) -> None:
    with store.workspace() as work:
        (work / "half").write_text("x")
        ImageStore(store.root)
        assert (work / "half").exists()
    assert not work.exists()
