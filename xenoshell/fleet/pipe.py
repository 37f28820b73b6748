"""SSH channels as carriers of frames: the helper's own session, and sockets that lead to it."""

from __future__ import annotations

import asyncio
import re
import time

import asyncssh

from xenoshell.fleet.channel import Channel
from xenoshell.fleet.dial import Progress
from xenoshell.wire.causes import Failure

#: How much of what the helper writes to stderr is kept: its end, where a traceback says what happened.
STDERR_KEPT = 16 << 10
#: After the end of a helper's output its exit status follows; this long is waited for it.
STATUS_WAIT_S = 2.0


class HelperPipe(asyncssh.SSHClientSession[bytes]):
    """The session that runs the helper: stdin and stdout carry the control channel, stderr is kept for messages."""

    def __init__(self, channel: Channel, progress: Progress) -> None:
        self.channel = channel
        self._progress = progress
        self._chan: asyncssh.SSHClientChannel[bytes] | None = None
        self._stderr = bytearray()
        self._status: int | None = None
        self._signal = ""
        self._ending: asyncio.TimerHandle | None = None
        self._times: list[float] = []
        self.rtt_ms = 0.0
        self.answer_s = 0.0
        self.answered_at = 0.0

    # ------------------------------------------------------------ measured on the way

    def begin(self) -> None:
        """The request for a session is about to be sent."""
        self._times = [time.perf_counter()]

    def opened(self) -> HelperPipe:
        """sshd granted the session (one round trip); the command is sent next."""
        self._times.append(time.perf_counter())
        self._progress.step = f"starting the helper at {self.channel.name}"
        return self

    def session_started(self) -> None:
        """sshd started the command (another round trip)."""
        self._times.append(time.perf_counter())
        self._progress.step = f"waiting for the first answer of the helper at {self.channel.name}"
        self.rtt_ms = min(b - a for a, b in zip(self._times, self._times[1:], strict=False)) * 1000

    def answered(self) -> None:
        """The first answer is there."""
        self.answer_s = time.perf_counter() - self._times[-1]
        self.answered_at = time.time()

    # ------------------------------------------------------------ asyncssh's callbacks

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open."""
        self._chan = chan
        self.channel.attach(chan)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Frames on stdout, words on stderr."""
        if datatype is None:
            self.channel.received(data)
        else:
            self._stderr += data
            del self._stderr[:-STDERR_KEPT]

    def eof_received(self) -> bool:
        """The helper's output ended. Its exit status is on the way."""
        if self._ending is None and self._chan is not None:
            self._ending = asyncio.get_running_loop().call_later(STATUS_WAIT_S, self._chan.close)
        return True

    def exit_status_received(self, status: int) -> None:
        """How it ended."""
        self._status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """It was killed."""
        self._signal = signal

    def connection_lost(self, exc: Exception | None) -> None:
        """The session is over, whoever ended it."""
        self.close()
        if exc is None:
            self.channel.fail(self._diagnosis())
        else:
            self.channel.fail(Failure("connection-lost", f"{self.channel.name}: the SSH connection ended: {exc}"))

    def pause_writing(self) -> None:
        """asyncssh's buffer is full."""
        self.channel.pause_writing()

    def resume_writing(self) -> None:
        """asyncssh's buffer has room."""
        self.channel.resume_writing()

    # ------------------------------------------------------------ for the link

    def write(self, data: bytes) -> None:
        """Send bytes that are no frame: the bundle."""
        if self._chan is not None:
            self._chan.write(data)

    def close(self) -> None:
        """Stop waiting for an exit status."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _diagnosis(self) -> Failure:
        reader = self.channel.reader
        noise = b"" if reader.synchronised else reader.noise
        return diagnose(
            self.channel.name,
            status=self._status,
            signal=self._signal,
            stderr=bytes(self._stderr),
            noise=noise,
            greeted=reader.synchronised,
        )


class SocketPipe(asyncssh.SSHUNIXSession[bytes]):
    """A connection to the helper's UNIX socket through sshd, carrying one more channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        """The channel is open."""
        self.channel.attach(chan)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Frames."""
        self.channel.received(data)

    def eof_received(self) -> bool:
        """The helper is done with this channel: close it."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is over."""
        self.channel.fail(
            Failure("connection-lost", f"{self.channel.name}: a channel ended" + (f": {exc}" if exc else ""))
        )

    def pause_writing(self) -> None:
        """asyncssh's buffer is full."""
        self.channel.pause_writing()

    def resume_writing(self) -> None:
        """asyncssh's buffer has room."""
        self.channel.resume_writing()


_NO_PYTHON = re.compile(
    r"python3?\b.*(not found|no such file|unknown command)|(not found|no such file).*python3?\b", re.IGNORECASE
)
_OLD_PYTHON = re.compile(r"python3 >= 3\.\d+ is needed|SyntaxError", re.IGNORECASE)


def diagnose(name: str, *, status: int | None, signal: str, stderr: bytes, noise: bytes, greeted: bool) -> Failure:
    """Why a helper ended. ``noise`` is what came on stdout before (or instead of) the helper's preamble; ``greeted``
    says whether the preamble was seen."""
    words = _text(stderr)
    how = (
        f"was killed by SIG{signal}"
        if signal
        else "ended without a status"
        if status is None
        else f"ended with status {status}"
    )
    if greeted:
        if "Traceback" in words:
            return Failure("internal", f"{name}: the helper {how}: {words}")
        return Failure("connection-lost", f"{name}: the helper {how}" + (f": {words}" if words else ""))
    both = f"{words} {_text(noise)}".strip()
    if status == 127 or (_NO_PYTHON.search(both) and status != 0):
        return Failure("no-python", f"{name}: python3 was not found: {both or 'the command was not found'}")
    if _OLD_PYTHON.search(words):
        return Failure("no-python", f"{name}: python3 there is too old: {words}")
    if "Traceback" in words:
        return Failure("internal", f"{name}: the helper {how} before its first answer: {words}")
    return Failure(
        "protocol",
        f"{name}: the helper did not start: the command {how}"
        + (f", and wrote: {both}" if both else " and wrote nothing"),
    )


def _text(data: bytes) -> str:
    """Printable text of at most 1500 characters, the end of what there is (control characters become spaces)."""
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in data.decode("utf-8", "replace")).strip()
    return text if len(text) <= 1500 else "... " + text[-1500:]
