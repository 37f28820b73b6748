"""The state directory of a host: whose it is, how much room there is, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import Optional

from xenoshell.wire.causes import Failure

#: The directories of a state directory, all mode 0700.
PARTS = ("lib", "blobs", "partial", "images", "proofs", "vms", "tmp")


def default_state_dir() -> str:
    """``${XDG_STATE_HOME:-~/.local/state}/xenoshell-host``."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):
        base = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "xenoshell-host")


def open_state_dir(path: Optional[str]) -> str:
    """Make the state directory (``path``, with ``~`` expanded, or the default) with its parts; return its real path.

    The directory itself may be a symbolic link of the host's owner (to a bigger disk); its parts may not.
    Raises `Failure` (bad-request) when it is not ours alone and cannot be made so.
    """
    path = os.path.expanduser(path) if path else default_state_dir()
    if not path.startswith("/"):
        path = os.path.join(os.path.expanduser("~"), path)
    path = os.path.realpath(path)
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        _own(path)
        for part in PARTS:
            full = os.path.join(path, part)
            try:
                os.mkdir(full, 0o700)
            except FileExistsError:
                _own(full)
    except OSError as error:
        if is_full(error):
            raise disk_full(path, 0) from None
        raise Failure(
            "bad-request",
            "the state directory %s cannot be used: %s" % (path, error.strerror),
            "set state_dir for this host",
        ) from None
    return path


def _own(path: str) -> None:
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise Failure(
            "bad-request",
            "%s is not a directory that belongs to user %d" % (path, os.geteuid()),
            "set state_dir for this host to a directory of the user that xenoshell logs in as",
        )
    if stat.S_IMODE(info.st_mode) & 0o077:
        os.chmod(path, 0o700)


def is_full(error: OSError) -> bool:
    """Whether an error means that a disk, a quota or a limit on file sizes is exhausted."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_bytes(path: str) -> int:
    """Bytes that this user may still write to the file system of ``path``."""
    info = os.statvfs(path)
    free = info.f_bavail if os.geteuid() else info.f_bfree
    return free * info.f_frsize


def disk_full(path: str, needed: int) -> Failure:
    """The failure for a full disk, with figures. ``needed`` is in bytes, 0 when it is not known."""
    free = free_bytes(path)
    text = "%s has %d MiB free (%d bytes)" % (path, free >> 20, free)
    if needed:
        text += " and %d MiB (%d bytes) are needed" % (-(-needed >> 20), needed)
    return Failure("disk-full", text)


def write_whole(path: str, data: bytes, sync: bool = True) -> None:
    """Replace ``path`` (then mode 0600) with ``data``: temporary file beside it, fsync, rename, fsync of the directory.

    ``sync`` False leaves out the fsyncs: for caches. Raises `OSError`; the old file is then as it was.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, ".%s.%d-%d" % (name, os.getpid(), threading.get_ident()))
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if sync:
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    if sync:
        sync_dir(directory)


def sync_dir(path: str) -> None:
    """Make renames in the directory ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
