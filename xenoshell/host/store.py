"""The blobs that a host holds: begun, committed, dropped. `transfer` brings new ones.

A blob is a read-only sparse file under ``blobs/``, named by its digest, and has that name only when its whole digest
tree was verified.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Callable, ContextManager, Dict, Set, Tuple

from xenoshell.host import locks
from xenoshell.host.transfer import INDEX, SegmentFailure, Transfer, checked, empty, lock_partial
from xenoshell.host.unpack import Unpacker
from xenoshell.wire import codec
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import DIGEST, BlobState, Recipe

#: Transfers are numbered from here, so that their stream ids never meet those of requests.
FIRST_TRANSFER = 0x80000000


class Store:
    """The blobs and transfers of one state directory, as one helper sees them. Safe to use from several threads."""

    def __init__(self, state_dir: str, unpacker: Unpacker) -> None:
        self._blobs = os.path.join(state_dir, "blobs")
        self._partials = os.path.join(state_dir, "partial")
        self._unpacker = unpacker
        self._lock = threading.Lock()
        self._transfers: Dict[int, Transfer] = {}
        self._next = FIRST_TRANSFER

    def path(self, digest: str) -> str:
        """Where the blob ``digest`` is or would be. Raises `Failure` (bad-request) for what is not a digest."""
        return os.path.join(self._blobs, checked(digest))

    def held(self) -> Tuple[str, ...]:
        """The digests of the blobs held, sorted."""
        return tuple(sorted(name for name in os.listdir(self._blobs) if DIGEST.match(name)))

    def holds(self, digest: str) -> bool:
        """Whether a blob is held."""
        return os.path.isfile(self.path(digest))

    def clean(self) -> None:
        """Remove what died between naming a blob and removing its transfer."""
        for name in os.listdir(self._partials):
            if DIGEST.match(name) and self.holds(name):
                self._remove_partial(name)

    def begin(self, recipe: Recipe) -> BlobState:
        """Start a transfer, or go on with it. Raises `Failure`: busy, disk-full, not-found, bad-request."""
        if recipe.codec not in self._unpacker.codecs():
            raise Failure("bad-request", "this host can unpack zlib only, not %s" % recipe.codec)
        if self.holds(recipe.blob):
            self._remove_partial(recipe.blob)
            return BlobState(True, 0, ())
        text = codec.dumps(recipe)
        with self._lock:
            for number, transfer in self._transfers.items():
                if transfer.recipe.blob == recipe.blob:
                    if transfer.recipe != recipe:
                        raise Failure("busy", "blob %s is being transferred by another recipe" % recipe.blob)
                    return BlobState(False, number, transfer.missing())
        sources = [self._open_blob(digest) for digest in recipe.held]
        try:
            transfer = Transfer(self._blobs, self._partials, recipe, self._unpacker)
            try:
                if self.holds(recipe.blob):  # another helper was faster
                    transfer.remove()
                    return BlobState(True, 0, ())
                transfer.prepare(text, sources)
            except BaseException:
                transfer.give_up()
                raise
        finally:
            for fd in sources:
                os.close(fd)
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._transfers[number] = transfer
        return BlobState(False, number, transfer.missing())

    def segment(self, number: int, payload: bytes) -> int:
        """Verify, unpack and write one SEGMENT payload (index and packed bytes); return the index.

        Raises `SegmentFailure` (corrupt-segment, disk-full, bad-request, busy), `Failure` (not-found: no transfer).
        """
        transfer = self._transfer(number)
        if len(payload) < INDEX.size:
            raise Failure("bad-request", "a SEGMENT frame starts with a 32-bit index")
        (index,) = INDEX.unpack_from(payload)
        try:
            transfer.write(index, payload[INDEX.size :])
        except Failure as failure:
            message = "segment %d: %s" % (index, failure.message)
            raise SegmentFailure(index, failure.cause, message, failure.remedy) from None
        return int(index)

    def commit(self, number: int) -> Dict[str, Any]:
        """Verify a transfer's file and give it its name: ``{"blob": digest}``, or ``{"missing": indices}`` to send.

        Raises `Failure` (corrupt-image) when the recipe cannot give that blob; the transfer is then gone.
        """
        transfer = self._transfer(number)
        missing = transfer.commit(lambda: [self._open_blob(digest) for digest in transfer.recipe.held])
        if missing:
            return {"missing": list(missing)}
        with self._lock:
            self._transfers.pop(number, None)
        return {"blob": transfer.recipe.blob}

    def drop(self, digest: str, used: Callable[[], Set[str]]) -> None:
        """Delete a blob, and what there is of its transfer. Nothing to delete is no error.

        Raises `Failure` (busy) when it is among the digests ``used`` by VMs or a transfer.
        """
        path = self.path(digest)
        with self._lock:
            for transfer in self._transfers.values():
                if digest == transfer.recipe.blob or digest in transfer.recipe.held:
                    raise Failure("busy", "blob %s is in use by a transfer" % digest)
        with self.exclusive():
            if digest in used():
                raise Failure("busy", "blob %s is in use by a VM" % digest)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if not self._remove_partial(digest):
            raise Failure("busy", "blob %s is being transferred by another xenoshell" % digest)

    def exclusive(self) -> ContextManager[None]:
        """A lock between dropping a blob and making a VM that wants it, for all helpers of this state directory."""
        return locks.directory_lock(self._blobs)

    def close(self) -> None:
        """Let go of all transfers; what was written of them stays for the next helper."""
        with self._lock:
            for transfer in self._transfers.values():
                transfer.close()
            self._transfers.clear()

    def _transfer(self, number: int) -> Transfer:
        with self._lock:
            transfer = self._transfers.get(number)
        if transfer is None:
            raise Failure("not-found", "there is no transfer %d" % number)
        return transfer

    def _open_blob(self, digest: str) -> int:
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            raise Failure("not-found", "blob %s is not on this host" % digest) from None

    def _remove_partial(self, digest: str) -> bool:
        if not os.path.lexists(os.path.join(self._partials, digest)):
            return True
        try:
            fd, lock = lock_partial(self._partials, digest)
        except Failure:
            return False
        empty(self._partials, digest, fd)
        os.close(lock)
        os.close(fd)
        return True
