"""One blob on its way to a host: segments written as they come, remembered, verified as a whole.

A transfer is a directory ``partial/<digest>`` whose ``lock`` is held (flock) by the helper that writes it: the recipe,
the data so far, and a journal ``done`` of 32-bit segment indices, each appended after its data.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
from bisect import bisect_right
from hashlib import sha256
from typing import Callable, FrozenSet, List, Optional, Set, Tuple

from xenoshell.host.statedir import disk_full, free_bytes, is_full, sync_dir, write_whole
from xenoshell.host.unpack import Unpacker
from xenoshell.wire import tree
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import BLOCK, DIGEST, Recipe

INDEX = struct.Struct(">I")
_COPIED = 0xFFFFFFFF  # in the journal: the runs from held blobs are copied
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

#: (offset in the segment in blocks, destination block, count)
_Pieces = Tuple[Tuple[int, int, int], ...]


def literal_pieces(recipe: Recipe) -> List[_Pieces]:
    """For each segment of a recipe, where its blocks go: (block within the segment, destination block, count)."""
    starts = [0]
    for segment in recipe.segments:
        starts.append(starts[-1] + segment.raw // BLOCK)
    pieces: List[List[Tuple[int, int, int]]] = [[] for _ in recipe.segments]
    for destination, count, source, first in recipe.runs:
        if source != 0:
            continue
        index = bisect_right(starts, first) - 1
        while count:
            part = min(count, starts[index + 1] - first)
            pieces[index].append((first - starts[index], destination, part))
            destination, first, count, index = destination + part, first + part, count - part, index + 1
    return [tuple(p) for p in pieces]


def needed_bytes(recipe: Recipe, done: FrozenSet[int], copied: bool) -> int:
    """Bytes of disk that a recipe still takes, once the segments ``done`` are written and held blocks ``copied``."""
    literals = sum(count for i, pieces in enumerate(literal_pieces(recipe)) if i not in done for _, _, count in pieces)
    copies = 0 if copied else sum(count for _, count, source, _ in recipe.runs if source)
    return (literals + copies) * BLOCK


class SegmentFailure(Failure):
    """What is wrong with one segment of a transfer."""

    def __init__(self, index: int, cause: str, message: str, remedy: Optional[str]) -> None:
        super().__init__(cause, message, remedy)
        self.index = index


class Transfer:
    """One blob on its way. Holds the partial's lock from construction to `close` or `remove`."""

    def __init__(self, blobs: str, partials: str, recipe: Recipe, unpacker: Unpacker) -> None:
        self.recipe = recipe
        self._blobs = blobs
        self._partials = partials
        self._unpacker = unpacker
        self._pieces = literal_pieces(recipe)
        self._mutex = threading.Lock()
        self._done: Set[int] = set()
        self._copied = False
        self._data = self._journal = -1
        self._writers = 0
        self._finishing = False
        self._idle = threading.Condition(self._mutex)
        self._fd, self._flock = lock_partial(partials, recipe.blob)

    def missing(self) -> Tuple[int, ...]:
        """The indices of the segments that are not written yet."""
        with self._mutex:
            return tuple(i for i in range(len(self.recipe.segments)) if i not in self._done)

    def prepare(self, text: bytes, sources: List[int]) -> None:
        """Take up what an earlier helper left of this very recipe, or start afresh; copy what comes from held blobs."""
        directory = os.path.join(self._partials, self.recipe.blob)
        if _read(self._fd, "recipe.json") != text:
            for name in ("recipe.json", "done", "data"):
                _unlink(self._fd, name)
            write_whole(os.path.join(directory, "recipe.json"), text)
        self._data = os.open("data", _NEW_FILE, 0o600, dir_fd=self._fd)
        self._journal = os.open("done", _NEW_FILE | os.O_APPEND, 0o600, dir_fd=self._fd)
        if os.fstat(self._data).st_size != self.recipe.size:
            os.ftruncate(self._journal, 0)
            os.ftruncate(self._data, 0)
            os.ftruncate(self._data, self.recipe.size)
        self._read_journal()
        self._check_space()
        if not self._copied:
            self._copy(sources)

    def _check_space(self) -> None:
        needed = self._needed()
        if needed > free_bytes(self._partials):
            raise disk_full(self._partials, needed)

    def _needed(self) -> int:
        return needed_bytes(self.recipe, frozenset(self._done), self._copied)

    def _read_journal(self) -> None:
        entries = b""
        while True:
            part = os.pread(self._journal, 1 << 20, len(entries))
            if not part:
                break
            entries += part
        whole = len(entries) - len(entries) % INDEX.size
        if whole != len(entries):  # the machine died in the middle of an entry
            os.ftruncate(self._journal, whole)
        for (index,) in INDEX.iter_unpack(entries[:whole]):
            if index == _COPIED:
                self._copied = True
            elif index < len(self.recipe.segments):
                self._done.add(index)

    def _copy(self, sources: List[int]) -> None:
        try:
            for destination, count, source, first in self.recipe.runs:
                if source:
                    start = destination * BLOCK
                    length = min(count * BLOCK, self.recipe.size - start)
                    _copy_range(sources[source - 1], first * BLOCK, self._data, start, length)
            os.write(self._journal, INDEX.pack(_COPIED))
        except OSError as error:
            if is_full(error):
                raise disk_full(self._partials, self._needed()) from None
            raise
        self._copied = True

    def write(self, index: int, packed: bytes) -> None:
        """Verify and unpack one segment, write it where it belongs, then journal it. Again is a no-op."""
        if index >= len(self.recipe.segments):
            raise Failure("bad-request", "the recipe has %d segments" % len(self.recipe.segments))
        with self._mutex:
            if self._finishing:
                raise Failure("busy", "the transfer is being committed")
            if index in self._done:
                return
            self._writers += 1
        try:
            self._write(index, packed)
        except OSError as error:
            if is_full(error):
                raise disk_full(self._partials, self._needed()) from None
            raise
        finally:
            with self._mutex:
                self._writers -= 1
                self._idle.notify_all()

    def _write(self, index: int, packed: bytes) -> None:
        segment = self.recipe.segments[index]
        if len(packed) != segment.packed or sha256(packed).hexdigest() != segment.sha256:
            raise Failure(
                "corrupt-segment", "%d bytes arrived that are not the %d expected" % (len(packed), segment.packed)
            )
        raw = self._unpacker.unpack(self.recipe.codec, packed, segment.raw)
        if sha256(raw).hexdigest() != segment.raw_sha256:
            raise Failure("corrupt-segment", "it unpacks to other bytes than the recipe says")
        view = memoryview(raw)
        for first, destination, count in self._pieces[index]:
            start = destination * BLOCK
            length = min(count * BLOCK, self.recipe.size - start)
            write_sparse(self._data, view[first * BLOCK : first * BLOCK + length], start)
        with self._mutex:
            if index not in self._done:
                os.write(self._journal, INDEX.pack(index))
                self._done.add(index)

    def commit(self, open_sources: Callable[[], List[int]]) -> Tuple[int, ...]:
        """Verify, name and end the transfer (then: nothing), or return the segments to send first."""
        with self._mutex:
            if self._finishing:
                raise Failure("busy", "the transfer is being committed")
            while self._writers:
                if not self._idle.wait(60):
                    raise Failure("timeout", "a segment of blob %s is still being written" % self.recipe.blob)
            self._finishing = True
        try:
            missing = self.missing()
            if missing or not self._verified():
                return missing or self._repair(open_sources)
            os.fsync(self._data)
            os.fchmod(self._data, 0o444)
            os.rename("data", os.path.join(self._blobs, self.recipe.blob), src_dir_fd=self._fd)
            sync_dir(self._blobs)
            self.remove()
            return ()
        finally:
            with self._mutex:
                self._finishing = False

    def _verified(self) -> bool:
        return tree.root(self._data, self.recipe.size) == self.recipe.blob

    def _repair(self, open_sources: Callable[[], List[int]]) -> Tuple[int, ...]:
        """The file is not the blob: find the segments to blame, forget them, and copy again what was copied."""
        blocks = memoryview(bytearray(BLOCK * 256))
        bad = set()
        for index, segment in enumerate(self.recipe.segments):
            whole, mapped = bytearray(segment.raw), 0
            for first, destination, count in self._pieces[index]:
                view = blocks[: count * BLOCK]
                got = tree.read_full(self._data, view, destination * BLOCK)
                whole[first * BLOCK : (first + count) * BLOCK] = bytes(view[:got]).ljust(count * BLOCK, b"\0")
                mapped += count
            if mapped * BLOCK >= segment.raw and sha256(whole).hexdigest() != segment.raw_sha256:
                bad.add(index)
        if not bad:
            self.remove()
            raise Failure("corrupt-image", "the recipe of blob %s gives other bytes than it says" % self.recipe.blob)
        self._wipe()
        sources = open_sources()
        try:
            with self._mutex:
                self._done -= bad
                os.ftruncate(self._journal, 0)
                os.write(self._journal, b"".join(INDEX.pack(i) for i in sorted(self._done)))
            self._copy(sources)
        finally:
            for fd in sources:
                os.close(fd)
        return self.missing()

    def _wipe(self) -> None:
        """Zero what no run covers, where something was written by mistake (a bad disk, another program)."""
        end = 0
        ends = [(d * BLOCK, (d + n) * BLOCK) for d, n, _, _ in self.recipe.runs]
        for start, stop in [*ends, (self.recipe.size, self.recipe.size)]:
            for first, last in list(tree.data_runs(self._data, end, start)):
                for at in range(first, last, 1 << 20):
                    os.pwrite(self._data, bytes(min(1 << 20, last - at)), at)
            end = stop

    def remove(self) -> None:
        """End the transfer and delete what there is of it."""
        empty(self._partials, self.recipe.blob, self._fd)
        self.close()

    def give_up(self) -> None:
        """After a beginning that failed: keep what an earlier helper brought, and leave nothing when there is none."""
        if self._done:
            self.close()
        else:
            self.remove()

    def close(self) -> None:
        """Let go of the lock and the files; again is a no-op."""
        with self._mutex:
            for fd in (self._data, self._journal, self._flock, self._fd):
                if fd >= 0:
                    os.close(fd)
            self._data = self._journal = self._flock = self._fd = -1


def write_sparse(fd: int, view: memoryview, offset: int) -> None:
    """Write ``view`` at ``offset``; blocks of zeros only where the file has data already (an earlier mistake)."""
    start: Optional[int] = None
    for at in range(0, len(view), BLOCK):
        block = bytes(view[at : at + BLOCK])
        zero = block == tree.ZERO_BLOCK[: len(block)]
        if zero and next(tree.data_runs(fd, offset + at, offset + at + len(block)), None) is not None:
            zero = os.pread(fd, len(block), offset + at) == block
        if zero and start is not None:
            _write_all(fd, view[start:at], offset + start)
            start = None
        elif not zero and start is None:
            start = at
    if start is not None:
        _write_all(fd, view[start:], offset + start)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _copy_range(source: int, at: int, target: int, offset: int, length: int) -> None:
    """Copy the data (not the holes) of a range between files; beyond the source's end there are zeros already."""
    for first, last in list(tree.data_runs(source, at, min(at + length, os.fstat(source).st_size))):
        done = first
        while done < last:
            count = _copy_some(source, done, target, offset + done - at, last - done)
            if count == 0:
                raise Failure("corrupt-image", "a held blob is shorter than the recipe says")
            done += count


def _copy_some(source: int, at: int, target: int, offset: int, length: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, length, at, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
    data = os.pread(source, min(length, 1 << 20), at)
    _write_all(target, memoryview(data), offset)
    return len(data)


def checked(digest: str) -> str:
    if not DIGEST.match(digest):
        raise Failure("bad-request", "expected a digest of 64 hexadecimal digits, found %r" % digest[:80])
    return digest


def lock_partial(partials: str, digest: str) -> Tuple[int, int]:
    """Make and lock ``partial/<digest>``: descriptors of the directory and of the lock. Raises `Failure` (busy)."""
    path = os.path.join(partials, checked(digest))
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # its last holder removed it just now
            continue
        lock = -1
        try:
            lock = os.open("lock", _NEW_FILE, 0o600, dir_fd=fd)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (
                os.fstat(lock).st_ino == os.stat("lock", dir_fd=fd).st_ino
                and os.fstat(fd).st_ino == os.stat(path).st_ino
            ):
                return fd, lock
        except BlockingIOError:
            _close(lock, fd)
            raise Failure("busy", "blob %s is being transferred by another xenoshell" % digest) from None
        except FileNotFoundError:
            pass  # removed between our opening and locking it: try again
        except OSError:
            _close(lock, fd)
            raise
        _close(lock, fd)


def _close(*descriptors: int) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)


def empty(partials: str, digest: str, fd: int) -> None:
    """Delete a partial whose lock is held; the lock last, since it keeps others out."""
    for name in sorted(os.listdir(fd), key=lambda name: name == "lock"):
        _unlink(fd, name)
    try:
        os.rmdir(os.path.join(partials, digest))
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):  # another helper took it over at once
            raise


def _unlink(fd: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)


def _read(fd: int, name: str) -> bytes:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return b""
    with open(file, "rb") as stream:
        return stream.read()
