"""Unpacks segments: zstd through libzstd (which every QEMU links) or the zstd program, and zlib, which Python has.

The standard library has no zstd before Python 3.14. Output is bounded: a segment that unpacks to another length than it
says is refused before it can fill the memory.
"""

from __future__ import annotations

import os
import subprocess
import threading
import zlib
from typing import Any, Optional, Tuple

from xenoshell.wire.causes import Failure

_LIBRARIES = (
    "libzstd.so.1",
    "/usr/lib/x86_64-linux-gnu/libzstd.so.1",
    "/usr/lib64/libzstd.so.1",
    "/usr/lib/libzstd.so.1",
    "/usr/local/lib/libzstd.so.1",
)
_PROGRAM_TIMEOUT_S = 30.0


def find_program(name: str) -> Optional[str]:
    """The path of an executable, from PATH and the usual places (a non-interactive shell often lacks the sbin ones)."""
    path = os.environ.get("PATH", "").split(":")
    for directory in [*path, "/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"]:
        full = os.path.join(directory, name)
        if directory.startswith("/") and os.path.isfile(full) and os.access(full, os.X_OK):
            return full
    return None


class Unpacker:
    """Knows which codecs this host can unpack, and unpacks. Usable from several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._library: Any = None
        self._looked = False
        self._program = find_program("zstd")

    def _zstd(self) -> Any:
        with self._lock:
            if not self._looked:
                self._library = _load_library()
                self._looked = True
        return self._library

    def codecs(self) -> Tuple[str, ...]:
        """The codecs that work here, best first."""
        if self._zstd() is not None or self._program is not None:
            return ("zstd", "zlib")
        return ("zlib",)

    def unpack(self, codec: str, packed: bytes, length: int) -> bytes:
        """Exactly ``length`` bytes out of ``packed``. Raises `Failure` (corrupt-segment) when it is anything else."""
        if codec == "zlib":
            data = _unzlib(packed, length)
        elif self._zstd() is not None:
            data = _unzstd(self._zstd(), packed, length)
        elif self._program is not None:
            data = _run_program(self._program, packed, length)
        else:
            raise Failure("bad-request", "this host can unpack zlib only, not %s" % codec)
        if len(data) != length:
            raise Failure("corrupt-segment", "it unpacks to %d bytes, not %d" % (len(data), length))
        return data


def _load_library() -> Any:
    try:
        import ctypes
    except ImportError:  # some small Pythons are built without
        return None
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.ZSTD_decompress.restype = ctypes.c_size_t
        library.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
        library.ZSTD_isError.restype = ctypes.c_uint
        library.ZSTD_isError.argtypes = [ctypes.c_size_t]
        return library
    return None


def _unzstd(library: Any, packed: bytes, length: int) -> bytes:
    import ctypes

    target = ctypes.create_string_buffer(length)
    count = library.ZSTD_decompress(target, length, packed, len(packed))
    if library.ZSTD_isError(count):
        raise Failure("corrupt-segment", "it is not zstd, or longer than %d bytes" % length)
    return target.raw[:count]


def _unzlib(packed: bytes, length: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, length + 1)
    except zlib.error as error:
        raise Failure("corrupt-segment", "it is not zlib: %s" % error) from None
    if not inflater.eof and len(data) <= length:
        raise Failure("corrupt-segment", "it is cut short")
    return data


def _run_program(program: str, packed: bytes, length: int) -> bytes:
    source = os.memfd_create("segment", os.MFD_CLOEXEC)
    try:
        os.write(source, packed)
        os.lseek(source, 0, os.SEEK_SET)
        with subprocess.Popen(
            [program, "-dcq"], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            timer = threading.Timer(_PROGRAM_TIMEOUT_S, process.kill)
            timer.start()
            try:
                assert process.stdout is not None
                data = process.stdout.read(length + 1)
            finally:
                timer.cancel()
                process.kill()
    finally:
        os.close(source)
    if len(data) > length:
        raise Failure("corrupt-segment", "it unpacks to more than %d bytes" % length)
    return data
