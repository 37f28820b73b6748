"""The user's own terminal: raw while a console has it, and as it was afterwards, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

#: How much is read or written at once. A pipe that select() calls writable takes this much without blocking (PIPE_BUF).
PIECE = 4096


class RawTerminal:
    """``fd`` in raw mode between enter and exit; nothing at all if it is not a terminal.

    On exit the settings are restored and what was typed but not read is discarded: it was meant for the guest, and a
    shell must not run it. SIGCONT (after a stop) puts the terminal into raw mode again.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_terminal = os.isatty(fd)
        self._saved: list[Any] | None = None
        self._previous: Any = None

    def __enter__(self) -> Self:
        if self.is_terminal:
            self._saved = termios.tcgetattr(self.fd)
            self._previous = signal.signal(signal.SIGCONT, self._continued)
            tty.setraw(self.fd, termios.TCSANOW)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is None:
            return
        saved, self._saved = self._saved, None
        signal.signal(signal.SIGCONT, self._previous)
        # The terminal may be gone already (a closed window): then there is nothing to restore. Not TCSAFLUSH, which
        # would wait for a terminal that takes no output.
        with contextlib.suppress(termios.error):
            termios.tcflush(self.fd, termios.TCIFLUSH)
            termios.tcsetattr(self.fd, termios.TCSANOW, saved)

    def _continued(self, number: int, frame: FrameType | None) -> None:
        if self._saved is not None:
            with contextlib.suppress(termios.error):
                tty.setraw(self.fd, termios.TCSANOW)


@contextlib.contextmanager
def restored_screen(fd: int, reset: Any) -> Iterator[None]:
    """On exit write ``reset()`` (bytes that undo what a guest did to the terminal's modes), if ``fd`` is a terminal.

    A terminal that takes nothing (stopped by the user, or gone) is given up after a second.
    """
    try:
        yield
    finally:
        if os.isatty(fd):
            with contextlib.suppress(OSError):
                # A guest that draws may have left the cursor anywhere: what is below would stand among what follows.
                write_within(fd, reset() + b"\r\n\x1b[J", 1.0)


def page(fd: int) -> bytes:
    """What scrolls all that is on the screen into the scrollback; nothing if ``fd`` has no size."""
    try:
        rows = os.get_terminal_size(fd).lines
    except OSError:
        return b""
    return b"\r\n" * rows + b"\x1b[H" if rows > 0 else b""


def write_within(fd: int, data: bytes, timeout_s: float) -> bool:
    """Write ``data`` as far as ``fd`` takes it, waiting at most ``timeout_s`` for room. Whether all went out."""
    while data:
        if not select.select([], [fd], [], timeout_s)[1]:
            return False
        data = data[os.write(fd, data[:PIECE]) :]
    return True
