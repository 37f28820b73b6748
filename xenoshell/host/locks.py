"""Locks that die with their holder, and JSON files that a power cut may have spoilt."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import Any, Dict, Iterator, Optional

from xenoshell.wire import codec


def read_json(path: str) -> Optional[Dict[str, Any]]:
    """The JSON object in ``path``; None when there is no such file or a power cut left it unreadable."""
    try:
        with open(path, "rb") as file:
            return codec.loads(file.read())
    except (OSError, codec.CodecError):
        return None


#: struct flock of fcntl(2) on 64-bit Linux: type, whence, start, length (0: all), pid.
_FLOCK = struct.Struct("hhqqi4x")


def try_lock(path: str) -> Optional[int]:
    """Take the exclusive lock on file ``path`` (made if missing): a descriptor that holds it, None if another does.

    The lock belongs to the open file ("OFD" lock): children that inherit the descriptor hold it too, and unlike with
    flock(2) others can ask for it without taking it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return fd


def locked(path: str) -> bool:
    """Whether a living process holds the lock on ``path``. Asking disturbs nobody who is about to take it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


@contextlib.contextmanager
def directory_lock(path: str) -> Iterator[None]:
    """Hold the lock on directory ``path`` itself: for short read-change-write steps. Raises `FileNotFoundError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
