"""The streams of a channel: what is under way on it, by the id that the client chose."""

from __future__ import annotations

import threading
from typing import Dict, Optional

from xenoshell.host.channel import Channel
from xenoshell.wire.causes import Failure

_MAX_STREAMS = 256


class Stream:
    """What goes on under one stream id after its request: an upload, a watch, a console. Overridden by those."""

    def data(self, payload: bytes) -> None:
        """Bytes from the client. The default ignores them."""

    def eof(self) -> None:
        """The client says that it is done."""
        self.stop()

    def stop(self) -> None:
        """End soon; the channel may be gone. Called from any thread, perhaps more than once."""


class Session:
    """One channel and the streams open on it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._streams: Dict[int, Stream] = {}
        self._lock = threading.Lock()

    def open(self, number: int, stream: Stream) -> None:
        """Note a stream. Raises `Failure` (bad-request, busy)."""
        with self._lock:
            if number in self._streams:
                raise Failure("bad-request", "stream %d is in use" % number)
            if len(self._streams) >= _MAX_STREAMS:
                raise Failure("busy", "%d requests are under way on this channel" % len(self._streams))
            self._streams[number] = stream

    def get(self, number: int) -> Optional[Stream]:
        """The stream of that id, if it is open."""
        with self._lock:
            return self._streams.get(number)

    def end(self, number: int) -> None:
        """Forget a stream."""
        with self._lock:
            self._streams.pop(number, None)

    def end_all(self) -> None:
        """Stop every stream."""
        with self._lock:
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            stream.stop()
