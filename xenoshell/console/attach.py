"""A guest's serial console on the user's terminal (or on pipes): bytes both ways until the escape key.

A serial line knows nothing of window sizes. In the guest ``stty rows R cols C`` or, where it is installed, ``resize``
(which asks the terminal: that question passes the filter while attached) tells its programs.
"""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import Callable
from typing import Final, Protocol

from ..errors import BadInput
from ..wire.causes import Failure
from .filter import Filter, Mode
from .terminal import PIECE, RawTerminal, page, restored_screen

#: Ctrl-], as telnet and virsh have it.
ESCAPE: Final = b"\x1d"
#: How much of the recent log is asked for on attach.
REPLAY: Final = 64 << 10
#: Input that is not typed ends somewhere: the console is left when the guest has then been silent this long.
LINGER_S: Final = 2.0
#: A host that takes no input for so long counts as gone.
_WRITE_S: Final = 30.0


class Stream(Protocol):
    """A guest's console on its host. The first ``replay`` bytes are its recent log."""

    @property
    def replay(self) -> int:
        """Bytes of recent log that come first."""

    async def read(self) -> bytes:
        """The next bytes, b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Type ``data``."""


class Ending(enum.Enum):
    """Why an attached console was left."""

    ESCAPED = "left"  # the escape key
    CLOSED = "closed"  # the guest's console ended: it exited
    INPUT_ENDED = "input ended"  # input from a pipe or file is through, and the guest has nothing more to say
    OUTPUT_GONE = "output gone"  # whoever read our output has gone


def parse_escape(text: str) -> bytes:
    """The escape key as written by a person: ``^]``, ``^A``, one character, or ``none`` (b""). Raises `BadInput`."""
    if text == "none":
        return b""
    if len(text) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        return bytes([ord(text[1].upper()) ^ 0x40])
    if len(text) == 1 and text.isascii():
        return text.encode()
    raise BadInput(f"escape key {text!r}: allowed are ^ and a letter or one of @[\\]^_, a single character, or none")


def escape_name(escape: bytes) -> str:
    """How the escape key is called in a message."""
    if not escape:
        return ""
    return f"Ctrl-{chr(escape[0] ^ 0x40)}" if escape[0] < 0x20 else escape.decode()


async def attach(
    stream: Stream, *, escape: bytes = ESCAPE, stdin: int = 0, stdout: int = 1, linger_s: float = LINGER_S
) -> Ending:
    """Connect ``stream`` with the file descriptors ``stdin`` and ``stdout`` until one of `Ending` happens.

    A terminal is in raw mode meanwhile, and restored by every way out: return, exception, cancellation (which is how
    SIGTERM and SIGHUP arrive). On a terminal the guest's output passes the filter; on a pipe or file it is text only.
    Raises `Failure` when the connection is lost.
    """
    seen = Filter(Mode.REPLAY if os.isatty(stdout) else Mode.TEXT)
    with RawTerminal(stdin) as terminal, restored_screen(stdout, seen.reset):
        if stream.replay > 0:
            # Firmware clears the screen: what stands on it moves into the scrollback first.
            await _shown(stdout, page(stdout))
        heard = asyncio.Event()
        tasks = [
            asyncio.create_task(_outwards(stream, seen, stdout, heard)),
            asyncio.create_task(_inwards(stream, escape, stdin, heard, None if terminal.is_terminal else linger_s)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in tasks if task in done).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _outwards(stream: Stream, seen: Filter, stdout: int, heard: asyncio.Event) -> Ending:
    """Guest to user."""
    old = stream.replay
    while data := await stream.read():
        heard.set()
        safe = seen.feed(data[:old])
        data, old = data[old:], max(0, old - len(data))
        if not old and seen.mode is Mode.REPLAY:
            seen.mode = Mode.LIVE
        if not await _shown(stdout, safe + seen.feed(data)):
            return Ending.OUTPUT_GONE
    return Ending.CLOSED if await _shown(stdout, seen.finish()) else Ending.OUTPUT_GONE


async def _shown(stdout: int, data: bytes) -> bool:
    try:
        await write(stdout, data)
    except OSError:
        return False
    return True


async def _inwards(stream: Stream, escape: bytes, stdin: int, heard: asyncio.Event, linger_s: float | None) -> Ending:
    """User to guest. ``linger_s`` is None for a terminal, whose input ends only with itself."""
    while data := await read(stdin):
        typed, found, _ = data.partition(escape) if escape and linger_s is None else (data, b"", b"")
        if typed:
            await _typed(stream, typed)
        if found:
            return Ending.ESCAPED
    if linger_s is None:
        return Ending.OUTPUT_GONE
    while True:
        heard.clear()
        try:
            async with asyncio.timeout(linger_s):
                await heard.wait()
        except TimeoutError:
            return Ending.INPUT_ENDED


async def _typed(stream: Stream, data: bytes) -> None:
    try:
        async with asyncio.timeout(_WRITE_S):
            await stream.write(data)
    except TimeoutError:
        raise Failure("timeout", f"the host took no input for {_WRITE_S:.0f} s") from None


async def read(fd: int) -> bytes:
    """The next bytes of ``fd``, b"" at its end, without blocking the loop and without changing its flags (which it
    shares with the user's shell)."""
    try:
        await _possible(fd, asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader)
        return os.read(fd, PIECE)
    except OSError:  # a terminal that went away reads as an error
        return b""


async def write(fd: int, data: bytes) -> None:
    """Write all of ``data``, waiting for room without blocking the loop. Raises `OSError` when nobody reads it."""
    while data:
        await _possible(fd, asyncio.get_running_loop().add_writer, asyncio.get_running_loop().remove_writer)
        data = data[os.write(fd, data[:PIECE]) :]


async def _possible(fd: int, add: Callable[[int, Callable[[], None]], object], remove: Callable[[int], object]) -> None:
    """Wait until ``fd`` can be read or written. Regular files and /dev/null always can (and epoll refuses them)."""
    ready = asyncio.Event()
    try:
        add(fd, ready.set)
    except PermissionError:
        return
    try:
        await ready.wait()
    finally:
        remove(fd)
