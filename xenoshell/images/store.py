"""The client's images: content-addressed, crash-safe, shared by any number of processes.

```
blobs/<digest>                 sparse raw files, read-only
hashes/<digest>                32 bytes for each 4 KiB block: its SHA-256, or zeros for a block of zeros (sparse)
packs/<digest>.<codec>/        recipe.json and data: the packed segments, one after the other
manifests/<id>.json            canonical manifests
names.json                     name -> id
tmp/<random>/                  work under way; each holds a lock on itself, so what dead processes left is found
locks/                         one for the names, one for tmp, one for each pack being made
```

Everything is written elsewhere, synced and renamed: a thing that has its real name is whole.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xenoshell.errors import BadInput
from xenoshell.images.manifest import NAME, BlobRef, Manifest, parse
from xenoshell.images.pack import pack, read_segment, segment_offsets
from xenoshell.images.sparse import digest as digest_of
from xenoshell.images.sparse import write_all, write_blocks
from xenoshell.wire.causes import Failure
from xenoshell.wire.codec import CodecError, decode, dumps, loads
from xenoshell.wire.tree import LEAF, NODE, ZERO_LEAF
from xenoshell.wire.values import BLOCK, BLOCKS_PER_NODE, DIGEST, Recipe

#: The fewest digits of an id that name an image.
ID_DIGITS = 8


@dataclass(frozen=True)
class Image:
    """An image of the store: its manifest, id (64 hexadecimal digits) and the names it goes by, sorted."""

    id: str
    names: tuple[str, ...]
    manifest: Manifest

    @property
    def title(self) -> str:
        """What a person calls it: its first name, else the beginning of its id."""
        return self.names[0] if self.names else self.id[:12]


class ImageStore:
    """The images under ``root``. Safe to use from several threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for part in ("blobs", "hashes", "packs", "manifests", "tmp", "locks"):
            (root / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._recipes: dict[tuple[str, str], tuple[Recipe, tuple[int, ...]]] = {}
        self._recipes_lock = threading.Lock()
        self._clean()

    # ------------------------------------------------------------ images

    def names(self) -> dict[str, str]:
        """Every name and the id of its image, sorted by name. Raises `Failure` (corrupt-image) for a damaged file."""
        path = self.root / "names.json"
        try:
            value = loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except CodecError as error:
            raise Failure("corrupt-image", f"{path}: {error}", f"move {path} away and name the images again") from None
        return {n: i for n, i in sorted(value.items()) if NAME.match(n) and isinstance(i, str) and DIGEST.match(i)}

    def images(self) -> tuple[Image, ...]:
        """All images of the store, sorted by name; those without a name last."""
        by_id: dict[str, list[str]] = {}
        for name, image_id in self.names().items():
            by_id.setdefault(image_id, []).append(name)
        found = [self._load(i, tuple(by_id.get(i, ()))) for i in self._ids()]
        return tuple(sorted(found, key=lambda image: (not image.names, image.names, image.id)))

    def get(self, name_or_id: str) -> Image:
        """The image of that name, or whose id begins with those digits (8 at least).

        Raises `BadInput` when the digits fit several images and `Failure` (image-missing, naming the nearest names)
        when there is no such image."""
        names = self.names()
        name_or_id = name_or_id.removeprefix("sha256:")
        if name_or_id in names:
            return self._named(names, names[name_or_id])
        if len(name_or_id) >= ID_DIGITS and set(name_or_id) <= set("0123456789abcdef"):
            fitting = [i for i in self._ids() if i.startswith(name_or_id)]
            if len(fitting) > 1:
                raise BadInput(f"image {name_or_id}: several ids begin so ({', '.join(fitting)}); give more digits")
            if fitting:
                return self._named(names, fitting[0])
        near = difflib.get_close_matches(name_or_id, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        have = f" (there are: {', '.join(names)})" if names and not near else "" if near else " (there are none yet)"
        # The names that the program's own templates get: somebody who names one wants it built.
        remedy = f"`xenoshell images build {name_or_id}` makes it" if name_or_id in ("tiny", "debian") else None
        raise Failure("image-missing", f"there is no image {name_or_id!r}{hint}{have}", remedy)

    def put(self, manifest: Manifest, name: str) -> Image:
        """Keep an image under ``name``, which an older image may have had until now. Its blobs must be in the store:
        `Failure` (image-missing) otherwise. Raises `BadInput` for a name that is none."""
        check_name(name)
        for blob in manifest.blobs:
            if not self.has_blob(blob.digest):
                raise Failure("image-missing", f"image {name!r}: its blob {blob.digest[:12]} is not in the store")
        self._write(self.root / "manifests" / f"{manifest.id}.json", manifest.canonical())
        with self._locked("names"):
            names = {**self.names(), name: manifest.id}
            self._write(self.root / "names.json", json.dumps(names, indent=1, sort_keys=True).encode() + b"\n")
        return self._named(names, manifest.id)

    # ------------------------------------------------------------ blobs

    def has_blob(self, digest: str) -> bool:
        """Whether the blob is in the store."""
        return self._blob_file(digest).exists()

    def blob_path(self, digest: str) -> Path:
        """The blob as a read-only file. Raises `Failure` (image-missing) if the store does not have it."""
        path = self._blob_file(digest)
        if not path.exists():
            raise Failure("image-missing", f"blob {digest[:12]} is not in the store {self.root}")
        return path

    def block_hashes(self, digest: str) -> Path:
        """The file of the blob's block hashes: SHA-256 of each 4 KiB block, zeros standing for a block of zeros."""
        self.blob_path(digest)
        return self.root / "hashes" / digest

    def add_blob(self, source: Path) -> BlobRef:
        """Copy a regular file into the store, holes kept and blocks of zeros made holes; what is there is kept.

        Raises `OSError` if reading or writing fails; the store is then as it was."""
        with self.workspace() as work, source.open("rb") as reader:
            size = os.fstat(reader.fileno()).st_size
            with (work / "blob").open("wb") as copy, (work / "hashes").open("wb") as hashes:

                def visit(number: int, data: bytes, leaves: bytes) -> None:
                    write_blocks(copy.fileno(), number * NODE, data)
                    sparse = leaves.replace(ZERO_LEAF, bytes(LEAF))
                    write_all(hashes.fileno(), memoryview(sparse), number * BLOCKS_PER_NODE * LEAF)

                ref = BlobRef(digest_of(reader.fileno(), size, visit), size)
                for file, length in ((copy, size), (hashes, -(-size // BLOCK) * LEAF)):
                    file.truncate(length)
                    os.fsync(file.fileno())
            if not self.has_blob(ref.digest):
                # the blob last: it vouches for its hashes
                for part, place in (("hashes", "hashes"), ("blob", "blobs")):
                    (work / part).chmod(0o444)
                    (work / part).rename(self.root / place / ref.digest)
                    _sync_directory(self.root / place)
            return ref

    # ------------------------------------------------------------ packs

    def recipe(self, digest: str, codec: str) -> Recipe:
        """How to send the blob to a host that has nothing of it. The pack is made by the first who asks and kept.

        Raises `Failure`: image-missing, or corrupt-image if the blob no longer is what its name says."""
        return self._pack(digest, codec)[0]

    def segment(self, digest: str, codec: str, index: int) -> bytes:
        """The packed bytes of segment ``index`` of `recipe`, verified. A damaged pack is made anew from its blob once.

        Raises `Failure` (corrupt-image) when that does not give the same segment, `IndexError` for a wrong index."""
        for attempt in range(2):
            recipe, offsets = self._pack(digest, codec)
            if not 0 <= index < len(recipe.segments):
                raise IndexError(f"segment {index} of {len(recipe.segments)}")
            packed = read_segment(self._pack_directory(digest, codec) / "data", recipe, offsets[index], index)
            if packed is not None:
                return packed
            if attempt == 0:
                self._drop_pack(digest, codec)
        raise Failure("corrupt-image", f"blob {digest[:12]}: segment {index} of its pack cannot be read back")

    def _pack(self, digest: str, codec: str) -> tuple[Recipe, tuple[int, ...]]:
        with self._recipes_lock:
            known = self._recipes.get((digest, codec))
        if known is not None:
            return known
        recipe = self._read_recipe(digest, codec) or self._make_pack(digest, codec)
        known = recipe, segment_offsets(recipe)
        with self._recipes_lock:
            self._recipes[digest, codec] = known
        return known

    def _read_recipe(self, digest: str, codec: str) -> Recipe | None:
        directory = self._pack_directory(digest, codec)
        try:
            recipe = decode(Recipe, loads((directory / "recipe.json").read_bytes()))
            whole = (directory / "data").stat().st_size == segment_offsets(recipe)[-1]
        except (FileNotFoundError, CodecError):
            return None
        return recipe if whole and (recipe.blob, recipe.codec) == (digest, codec) else None

    def _make_pack(self, digest: str, codec: str) -> Recipe:
        blob = self.blob_path(digest)
        directory = self._pack_directory(digest, codec)
        with self._locked(directory.name):
            recipe = self._read_recipe(digest, codec)
            if recipe is not None:  # somebody made it while we waited
                return recipe
            with self.workspace() as work, blob.open("rb") as reader:
                made = work / "pack"
                made.mkdir(mode=0o700)
                with (made / "data").open("wb") as sink:
                    recipe = pack(reader.fileno(), os.fstat(reader.fileno()).st_size, codec, sink)
                    sink.flush()
                    os.fsync(sink.fileno())
                if recipe.blob != digest:
                    message = f"{blob} is not what its name says: its digest is now {recipe.blob[:12]}"
                    raise Failure("corrupt-image", message, "remove that file, then build or import the image again")
                self._write(made / "recipe.json", dumps(recipe))
                self._discard(directory, work)  # a damaged one
                made.rename(directory)
                _sync_directory(directory.parent)
        return recipe

    def _drop_pack(self, digest: str, codec: str) -> None:
        with self._recipes_lock:
            self._recipes.pop((digest, codec), None)
        directory = self._pack_directory(digest, codec)
        with self._locked(directory.name), self.workspace() as work:
            self._discard(directory, work)

    def _discard(self, directory: Path, work: Path) -> None:
        """Take a directory out of its place in one step; it vanishes with the workspace."""
        with suppress(FileNotFoundError):
            directory.rename(work / "discarded")

    def _pack_directory(self, digest: str, codec: str) -> Path:
        _check_digest(digest)
        return self.root / "packs" / f"{digest}.{codec}"

    # ------------------------------------------------------------ places and locks

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A fresh directory on the store's file system, removed at the end, or later if this process dies."""
        with self._locked("tmp"):
            work = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
            fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield work
        finally:
            remove_tree(work)
            os.close(fd)

    def _clean(self) -> None:
        """Remove the workspaces that no living process holds."""
        with self._locked("tmp"):
            for left in (self.root / "tmp").iterdir():
                if left.is_symlink() or not left.is_dir():
                    left.unlink(missing_ok=True)
                    continue
                fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(left)
                except BlockingIOError:
                    continue  # its process lives
                finally:
                    os.close(fd)

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """Hold one of the store's locks, against other processes and threads. The system frees it if we die."""
        fd = os.open(self.root / "locks" / what, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, path: Path, data: bytes) -> None:
        """Give ``path`` new contents in one step."""
        with self.workspace() as work:
            with (work / "file").open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            (work / "file").rename(path)
        _sync_directory(path.parent)

    def _blob_file(self, digest: str) -> Path:
        _check_digest(digest)
        return self.root / "blobs" / digest

    def _ids(self) -> list[str]:
        return sorted(p.stem for p in (self.root / "manifests").glob("*.json") if DIGEST.match(p.stem))

    def _named(self, names: dict[str, str], image_id: str) -> Image:
        return self._load(image_id, tuple(sorted(n for n, i in names.items() if i == image_id)))

    def _load(self, image_id: str, names: tuple[str, ...]) -> Image:
        path = self.root / "manifests" / f"{image_id}.json"
        try:
            manifest = parse(path.read_bytes())
        except FileNotFoundError:
            raise Failure("image-missing", f"the manifest {image_id[:12]} ({', '.join(names)}) is gone") from None
        except CodecError as error:
            raise Failure("corrupt-image", f"{path}: {error}") from None
        if manifest.id != image_id:
            raise Failure("corrupt-image", f"{path}: its contents have the id {manifest.id[:12]}")
        return Image(image_id, names, manifest)


def check_name(name: str) -> None:
    """Raises `BadInput` unless ``name`` can name an image."""
    if not NAME.match(name):
        raise BadInput(
            f"image name {name!r}: allowed are up to 63 lower-case letters, digits, dots, dashes and underscores, "
            "the first a letter or digit"
        )


def remove_tree(path: Path) -> None:
    """Remove a directory with everything in it, directories without write permission included."""
    for directory, below, _ in os.walk(path):
        for name in below:
            inner = Path(directory, name)
            if not inner.is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(path)


def _check_digest(digest: str) -> None:
    if not DIGEST.match(digest):
        raise ValueError(f"digest: expected 64 hexadecimal digits, found {digest[:80]!r}")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
