"""Where further channels of a connection come in: a UNIX socket in a private directory, gone when its helper is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from typing import Optional

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: SO_PEERCRED, see unix(7)
_LONGEST_PATH = 100  # sun_path has 108 bytes, and sshd needs some


class Rendezvous:
    """A listening socket under ``$XDG_RUNTIME_DIR`` or ``/tmp``. ``path`` is "" where none can be made."""

    def __init__(self) -> None:
        self.path = ""
        self._directory = ""
        self._lock: Optional[int] = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        for base in _bases():
            clean(base)
            if self._bind(base):
                break

    def _bind(self, base: str) -> bool:
        name = "%s%d-%s" % (_prefix(), os.getpid(), os.urandom(6).hex())
        directory = os.path.join(base, name)
        path = os.path.join(directory, "c")
        if len(path) > _LONGEST_PATH:
            return False
        try:
            os.mkdir(directory, 0o700)
            self._directory = directory
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._listener.bind(path)
            os.chmod(path, 0o600)
            self._listener.listen(16)
        except OSError:
            self._remove()
            return False
        self.path = path
        return True

    def accept(self) -> Optional[socket.socket]:
        """The next connection of our own user (others are turned away); None when the rendezvous is closed."""
        while self.path:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return None
            _, uid, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid in (os.geteuid(), 0):
                return connection
            connection.close()
        return None

    def close(self) -> None:
        """Stop accepting and remove socket and directory."""
        with contextlib.suppress(OSError):  # not listening: there never was a path
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._remove()

    def _remove(self) -> None:
        if self._directory:
            _delete(self._directory)
        if self._lock is not None:
            os.close(self._lock)
        self._directory, self._lock, self.path = "", None, ""


def clean(base: str) -> None:
    """Remove what helpers of this user that were killed left in ``base``. Living ones hold the lock on theirs."""
    try:
        names = os.listdir(base)
    except OSError:
        return
    for name in names:
        if not name.startswith(_prefix()):
            continue
        path = os.path.join(base, name)
        pid = name[len(_prefix()) :].partition("-")[0]
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # a helper that is just starting has its directory before the lock: its pid protects it meanwhile
            if os.fstat(fd).st_uid == os.geteuid() and not os.path.exists("/proc/" + pid):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(path)
        except OSError:
            pass  # another helper is alive there, or removes it as well
        finally:
            os.close(fd)


def _delete(directory: str) -> None:
    for name in ("c",):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def _prefix() -> str:
    return "xenoshell-%d-" % os.geteuid()


def _bases() -> list[str]:
    bases = []
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        with contextlib.suppress(OSError):
            info = os.stat(runtime)
            if info.st_uid == os.geteuid() and not stat.S_IMODE(info.st_mode) & 0o077:
                bases.append(runtime)
    return [*bases, "/tmp"]  # noqa: S108 - in a directory of its own, mode 0700
