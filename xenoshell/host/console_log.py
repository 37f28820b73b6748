"""A guest's console on disk: the first MiB, and the last one or two in two files that take turns."""

from __future__ import annotations

import contextlib
import os
from typing import Iterator, List, Optional, Tuple

MIB = 1 << 20
PIECE = 64 << 10
#: How much is kept in memory too, for replays when the disk is full.
RECENT = 64 << 10
TAILS = ("console.tail.0", "console.tail.1")


class ConsoleLog:
    """The log in ``directory``. A full disk never stops it: what cannot be written is left out, the count goes on.

    ``limit`` bounds each of the three files (bytes).
    """

    def __init__(self, directory: str, limit: int = MIB) -> None:
        self._directory = directory
        self._limit = limit
        self._fd: Optional[int] = None
        self._size = 0  # of the file being written
        self._tail: Optional[int] = None  # which tail is being written; None: the head
        self.total = 0  # bytes since the log began
        self.recent = bytearray()

    def begin(self) -> None:
        """Start an empty log: a new run."""
        self._shut()
        for name in ("console.head", *TAILS):
            with contextlib.suppress(OSError):
                os.unlink(self._path(name))
        self._tail, self._size, self.total = None, 0, 0
        self.recent.clear()

    def resume(self, total: int) -> None:
        """Go on with the log that is there. ``total`` is the count last known (bytes)."""
        self._shut()
        sizes = {name: _size(self._path(name)) for name in ("console.head", *TAILS)}
        tails = [n for n in TAILS if sizes[n] is not None]
        self._tail = None
        if tails:
            newest = max(tails, key=lambda name: os.stat(self._path(name)).st_mtime_ns)
            self._tail = TAILS.index(newest)
        self._size = sizes["console.head" if self._tail is None else TAILS[self._tail]] or 0
        self.total = max(total, sum(size or 0 for size in sizes.values()))
        self.recent.clear()
        self.recent[:] = b"".join(self.read(RECENT))[-RECENT:]

    def write(self, data: bytes) -> None:
        """Add what the guest wrote."""
        self.total += len(data)
        self.recent += data[-RECENT:]
        if len(self.recent) > 2 * RECENT:
            del self.recent[:-RECENT]
        view = memoryview(data)
        while view:
            if self._size >= self._limit:
                self._shut()
                self._tail = 0 if self._tail is None else 1 - self._tail
                self._size = 0
                with contextlib.suppress(OSError):
                    os.unlink(self._path(TAILS[self._tail]))
            part = view[: self._limit - self._size]
            try:
                if self._fd is None:
                    name = "console.head" if self._tail is None else TAILS[self._tail]
                    self._fd = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                os.write(self._fd, part)
            except OSError:
                pass  # disk full: the guest and its viewers go on without the file
            self._size += len(part)
            view = view[len(part) :]

    def files(self) -> List[Tuple[str, int]]:
        """The log's files with their sizes, oldest bytes first."""
        order = ["console.head"]
        if self._tail is not None:
            order += [TAILS[1 - self._tail], TAILS[self._tail]]
        found = [(self._path(name), _size(self._path(name)) or 0) for name in order]
        return [item for item in found if item[1]]

    def read(self, tail: int = 0) -> Iterator[bytes]:
        """The log as it is now, in pieces; with ``tail`` only that many last bytes. A note stands where bytes
        were dropped in between.
        """
        if 0 < tail <= len(self.recent):
            return iter([bytes(self.recent[-tail:])])
        files = self.files()
        if not files:
            return iter([bytes(self.recent)])
        kept = sum(size for _, size in files)
        skip = max(0, kept - tail) if tail else 0
        parts = []
        for path, size in files:
            parts.append((path, min(skip, size), size))
            skip -= min(skip, size)
        dropped = self.total - kept if not tail or tail > kept else 0
        return _pieces(parts, dropped)

    def close(self) -> None:
        """Let go of the files."""
        self._shut()

    def _shut(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def _pieces(parts: List[Tuple[str, int, int]], dropped: int) -> Iterator[bytes]:
    """Of files (path, from, to); a note before the second tells how many bytes were ``dropped`` there."""
    for index, (path, at, end) in enumerate(parts):
        if index == 1 and dropped > 0:
            yield note("%d bytes are not kept" % dropped)
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(at)
            while at < end:
                data = file.read(min(PIECE, end - at))
                if not data:
                    break
                at += len(data)
                yield data


def note(text: str) -> bytes:
    """A line of ours in the guest's console stream."""
    return ("\r\n[xenoshell: %s]\r\n" % text).encode()


def _size(path: str) -> Optional[int]:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
