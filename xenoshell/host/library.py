"""The whole program as a host keeps it: a helper comes with its core only, and supervisors run from the library."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

import xenoshell
from xenoshell.host import statedir
from xenoshell.wire.causes import Failure

_FORGOTTEN_S = 30 * 86400.0


def use(path: str) -> bool:
    """Let modules that the core lacks come from the library; False if this host does not keep it."""
    if not os.path.exists(path):
        return False
    loader: Any = getattr(xenoshell, "__loader__", None)
    if not loader.library:
        loader.library = path
    return True


def install(path: str, rest: str) -> None:
    """Make the library ``path`` of the core and ``rest`` (zlib, base64). Raises `Failure`: bad-request, disk-full."""
    import base64
    import hashlib
    import zlib

    core: str = getattr(xenoshell, "__loader__", None).text  # type: ignore[union-attr]
    try:
        unpacker = zlib.decompressobj()
        added = unpacker.decompress(base64.b64decode(rest, validate=True), 4 << 20).decode()
    except (ValueError, zlib.error) as error:
        raise Failure("bad-request", "rest: %s" % error) from None
    if hashlib.sha256((core + added).encode()).hexdigest()[:16] not in os.path.basename(path):
        raise Failure("bad-request", "this is not the rest of the program that runs here")
    statedir.write_whole(path, core.replace("#--\n", added + "#--\n", 1).encode())


def compile_all(path: str) -> None:
    """Keep compiled code beside the library, once for each version of Python: it halves a supervisor's start."""
    import marshal

    kept = "%s.%s" % (path, sys.implementation.cache_tag)
    if os.path.exists(kept):
        return
    loader: Any = getattr(xenoshell, "__loader__", None)
    loader.more("xenoshell.")
    codes = {name: loader.code(name) for name in loader.modules}
    with contextlib.suppress(OSError):  # a full disk: then it is compiled each time
        statedir.write_whole(kept, marshal.dumps(codes))


def tidy(used: str) -> None:
    """Remove the libraries of other versions, and leavings of writers, that nobody used for a month."""
    os.utime(used)
    directory, name = os.path.split(used)
    for other in os.listdir(directory):
        path = os.path.join(directory, other)
        with contextlib.suppress(FileNotFoundError):  # another helper was quicker
            if name not in other and time.time() - os.stat(path).st_mtime > _FORGOTTEN_S:
                os.unlink(path)
