"""Whether a guest answers, asked from the host's side."""

from __future__ import annotations

import re
import socket
from typing import Callable, Optional

from xenoshell.host.reactor import READ, WRITE, Reactor, Timer
from xenoshell.wire.values import Ready, VmSpec

#: Pause between questions, and how long one may take, in seconds.
PAUSE_S = 0.25
SLOW_PAUSE_S = 5.0
LONGEST_S = 10.0


def needs_port(ready: Ready) -> bool:
    """Whether readiness is asked for over a TCP port of the guest."""
    return ready.when in ("http", "tcp")


def wrong(spec: VmSpec) -> str:
    """Why this VM could never be found ready; "" if it can."""
    if spec.ready.when not in ("console", "tcp", "http", "none"):
        return "ready: when is console, tcp, http or none, not %r" % spec.ready.when
    if spec.ready.when == "console" and not 0 < len(spec.ready.match) <= 400:
        return "ready: match is 1 to 400 characters"
    if not needs_port(spec.ready):
        return ""
    if spec.network == "bridge":
        return "ready: a bridged guest has no port on this host; use when = console or none"
    if not 1 <= spec.ready.port <= 65535:
        return "ready: port is 1 to 65535"
    if not re.match(r"/[!-~]*\Z", spec.ready.path):
        return "ready: path starts with / and has no spaces"
    return ""


def established(usernet: str, port: int) -> bool:
    """Whether ``info usernet`` shows a connection to the host's ``port`` that the guest has accepted.

    QEMU's user network accepts before the guest does, so that our side alone tells nothing. Its lines read
    ``TCP[STATE] fd source-address source-port destination-address destination-port ...``, the source being the port
    on the host that was forwarded.
    """
    lines = (line.split() for line in usernet.splitlines())
    return any(len(w) >= 6 and w[0] == "TCP[ESTABLISHED]" and w[3] == str(port) for w in lines)


class Probe:
    """Asks again and again until the guest answers, then calls ``answered()`` once.

    ``usernet(reply)`` obtains the text of ``info usernet``.
    """

    def __init__(
        self,
        reactor: Reactor,
        ready: Ready,
        address: str,
        port: int,
        *,
        usernet: Callable[[Callable[[str], None]], None],
        answered: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._ready = ready
        self._address = address
        self._port = port
        self._usernet = usernet
        self._answered = answered
        self._sock: Optional[socket.socket] = None
        self._timer: Optional[Timer] = None
        self._got = b""
        self._tries = 0
        self.slow = False
        self._ask()

    def stop(self) -> None:
        """Ask no more."""
        self._drop()
        if self._timer is not None:
            self._timer.cancel()

    def _ask(self) -> None:
        self._tries += 1
        self._got = b""
        self._sock = sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        # a guest under emulation may take seconds to answer; one that is not up yet is better asked anew soon
        longest = min(LONGEST_S, 1.0 + self._tries * 0.1)
        self._timer = self._reactor.after(longest, self._again)
        sock.connect_ex((self._address, self._port))
        self._reactor.watch(sock.fileno(), WRITE, self._connected)

    def _connected(self, _ready: int) -> None:
        sock = self._sock
        assert sock is not None
        try:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError("refused")
            if self._ready.when == "http":
                sock.send(
                    b"GET %s HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n" % self._ready.path.encode()
                )
        except OSError:
            self._again()
            return
        self._reactor.watch(sock.fileno(), READ, self._readable)
        if self._ready.when == "tcp":
            self._usernet(lambda text: self._seen(sock, text))

    def _seen(self, sock: socket.socket, usernet: str) -> None:
        if sock is not self._sock:
            return
        if established(usernet, self._port):
            self._done()
        else:
            self._reactor.after(0.1, lambda: self._usernet(lambda text: self._seen(sock, text)))

    def _readable(self, _ready: int) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(4096)
        except OSError:
            data = b""
        if self._ready.when == "tcp":
            if data:  # only a guest that accepted can have said this
                self._done()
            else:
                self._again()
            return
        self._got += data
        answer = re.match(rb"HTTP/1\.\d (\d{3})", self._got)
        if answer and int(answer.group(1)) < 400:
            self._done()
        elif answer or not data or len(self._got) > 64:
            self._again()

    def _done(self) -> None:
        self.stop()
        self._answered()

    def _again(self) -> None:
        self.stop()
        self._timer = self._reactor.after(SLOW_PAUSE_S if self.slow else PAUSE_S, self._ask)

    def _drop(self) -> None:
        if self._sock is not None:
            self._reactor.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None
