"""A guest's serial line: two FIFOs in the VM's directory, which QEMU and the supervisor both hold open.

QEMU's serial port writes single bytes. A UNIX socket charges each of them a whole buffer and is full after some 280;
a pipe gathers them in pages and holds as many as it is large, so a supervisor that is slow, stopped or started again
misses nothing of what fits. Both sides open both FIFOs for reading and writing: no opening has to wait for the other,
and neither sees an end of file while the other is away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from typing import Callable

from xenoshell.host.reactor import CHUNK, READ, WRITE, Reactor

#: What QEMU is told (`-chardev pipe,path=NAME`): it adds the endings itself.
NAME = "con"
#: How much of the guest's output waits for a supervisor, in bytes; a host may grant less to a user with many pipes.
SIZE = 256 << 10
#: It says one byte at a time: they are collected for this long, in seconds.
REST_S = 0.01
_F_SETPIPE_SZ = 1031  # linux/fcntl.h; Python names it from 3.10 on


def make(directory: str) -> None:
    """New, empty FIFOs in place of those of an earlier run. Raises `OSError`."""
    for ending in (".in", ".out"):
        path = os.path.join(directory, NAME + ending)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.mkfifo(path, 0o600)


class SerialLine:
    """The supervisor's end of the line. ``on_data(bytes)`` is given what the guest writes.

    ``full``: whether the pipe had no room when it was opened, so that something may be missing behind what it holds.
    Raises `OSError` when there are no FIFOs.
    """

    def __init__(self, reactor: Reactor, directory: str, on_data: Callable[[bytes], None]) -> None:
        self._reactor = reactor
        self._on_data = on_data
        self._unsent = bytearray()
        self.open = True
        self._from = _open(directory, NAME + ".out")
        try:
            self._to = _open(directory, NAME + ".in")
        except OSError:
            os.close(self._from)
            raise
        poll = select.poll()
        poll.register(self._from, select.POLLOUT)
        self.full = not poll.poll(0)
        with contextlib.suppress(OSError):  # EPERM: this user has many pipes already, and it stays as large as it is
            fcntl.fcntl(self._from, _F_SETPIPE_SZ, SIZE)
        reactor.watch(self._from, READ, self._readable)

    @property
    def pending(self) -> int:
        """Bytes written that the guest has not taken yet, those in the pipe left out."""
        return len(self._unsent)

    def write(self, data: bytes) -> None:
        """Input for the guest, now or when there is room. Bounding `pending` is the caller's business."""
        if self.open:
            self._unsent += data
            self._writable(WRITE)

    def drain(self) -> None:
        """Hand on what is in the pipe now. A guest that never stops writing is not waited for."""
        left = SIZE
        while self.open and left > 0:
            count = self._read()
            left = left - count if count else 0

    def close(self) -> None:
        """Let go of it."""
        if self.open:
            self.open = False
            for fd in (self._from, self._to):
                self._reactor.forget(fd)
                os.close(fd)

    def _readable(self, _ready: int) -> None:
        if 0 < self._read() < CHUNK and self.open:
            self._reactor.forget(self._from)
            self._reactor.after(REST_S, self._rested)

    def _rested(self) -> None:
        if self.open:
            self._reactor.watch(self._from, READ, self._readable)

    def _read(self) -> int:
        try:
            data = os.read(self._from, CHUNK)
        except BlockingIOError:
            return 0
        self._on_data(data)
        return len(data)

    def _writable(self, _ready: int) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._to, memoryview(self._unsent)[:CHUNK].tobytes())]
        except BlockingIOError:
            self._reactor.watch(self._to, WRITE, self._writable)
            return
        self._reactor.forget(self._to)


def _open(directory: str, name: str) -> int:
    return os.open(os.path.join(directory, name), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
