"""A channel: one two-way stream of frames, over a pipe pair or a socket, with blocking I/O and a locked writer."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any, Iterator

from xenoshell.wire import codec, frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.frames import Frame
from xenoshell.wire.values import ErrorValue

_READ = 256 << 10


class ChannelClosed(Exception):
    """The peer is gone: nothing can be sent any more."""


class Channel:
    """Reads frames in one thread, sends them from any. A peer that does not read makes senders wait: backpressure."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._lock = threading.Lock()
        self._closed = False
        self.heard = time.monotonic()  # when bytes last came

    def frames(self) -> Iterator[Frame]:
        """Every frame until the peer's end of stream. Raises `frames.WireError` for what is none, or half of one."""
        reader = frames.FrameReader()
        while True:
            try:
                data = os.read(self._read_fd, _READ)
            except OSError:  # a reset connection ends like any other
                return
            self.heard = time.monotonic()
            if not data:
                if reader.pending:
                    raise frames.WireError("the stream ended inside a frame")
                return
            yield from reader.feed(data)

    def send(self, type_: int, stream: int, payload: bytes = b"") -> None:
        """Send one frame. Raises `ChannelClosed` when the peer is gone."""
        data = memoryview(frames.pack(type_, stream, payload))
        with self._lock:
            while data:
                if self._closed:
                    raise ChannelClosed
                try:
                    data = data[os.write(self._write_fd, data) :]
                except OSError as error:
                    self._closed = True
                    raise ChannelClosed from error

    def respond(self, stream: int, value: Any) -> None:
        """Answer a request with a value (a dataclass or plain JSON)."""
        self.send(frames.RESPONSE, stream, codec.dumps(value))

    def fail(self, stream: int, failure: Failure, **more: Any) -> None:
        """Answer a request with a failure."""
        error = codec.encode(ErrorValue(failure.cause, failure.message[:4000], failure.own_remedy or ""))
        self.send(frames.ERROR, stream, codec.dumps(dict(error, **more)))

    def close(self) -> None:
        """Make readers and senders of this channel end soon. Safe from any thread, more than once."""
        self._closed = True


class SocketChannel(Channel):
    """A channel over a connected stream socket, which it owns."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection.fileno(), connection.fileno())
        self._connection = connection

    def close(self) -> None:
        super().close()
        try:
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that is blocked in read or write
        except OSError:
            return  # it was not connected any more

    def release(self) -> None:
        """Give the descriptor back. Only the thread that reads the channel may do this."""
        with self._lock:
            self._closed = True
            self._connection.close()
