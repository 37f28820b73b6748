"""Locks that die with their holder, and JSON files that a power cut may have spoilt."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Any, Dict, Iterator, Optional

from xenoshell.wire import codec


def read_json(path: str) -> Optional[Dict[str, Any]]:
    """The JSON object in ``path``; None when there is no such file or a power cut left it unreadable."""
    try:
        with open(path, "rb") as file:
            return codec.loads(file.read())
    except (OSError, codec.CodecError):
        return None


def try_lock(path: str) -> Optional[int]:
    """Take the exclusive lock on file ``path`` (made if missing): a descriptor that holds it, or None while another
    does.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


def locked(path: str) -> bool:
    """Whether a living process holds the lock on ``path``."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def directory_lock(path: str) -> Iterator[None]:
    """Hold the lock on directory ``path`` itself: for short read-change-write steps. Raises `FileNotFoundError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
