"""One loop: sockets that are readable or writable, timers, and work in a forked child."""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import selectors
import socket
import time
import traceback
from typing import Any, Callable, Dict, List, Optional, Tuple

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
CHUNK = 65536


class Timer:
    """A call that is due; `cancel` forgets it."""

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Optional[Callable[[], None]] = call

    def cancel(self) -> None:
        """Never make the call."""
        self.call = None


class Reactor:
    """The loop. poll(2) and not epoll, so that nothing of it is shared with the other side of a fork."""

    def __init__(self) -> None:
        self._selector = selectors.PollSelector()
        self._timers: List[Tuple[float, int, Timer]] = []
        self._count = 0
        self._stopped = False

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call ``call(ready events)`` whenever ``fd`` is ready; a second watch of the same fd replaces the first."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, call)
        else:
            self._selector.register(fd, events, call)

    def forget(self, fd: int) -> None:
        """Watch ``fd`` no longer (before it is closed)."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` once, ``delay_s`` seconds from now."""
        timer = Timer(time.monotonic() + delay_s, call)
        self._count += 1
        heapq.heappush(self._timers, (timer.due, self._count, timer))
        return timer

    def run(self) -> None:
        """Run until `stop`."""
        while not self._stopped:
            while self._timers and self._timers[0][2].call is None:
                heapq.heappop(self._timers)
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, ready in self._selector.select(wait):
                if self._selector.get_map().get(key.fd) is key:  # an earlier call of this round may have forgotten it
                    key.data(ready)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                call = heapq.heappop(self._timers)[2].call
                if call is not None:
                    call()

    def stop(self) -> None:
        """Return from `run` after this round."""
        self._stopped = True

    def fork(self, work: Callable[[], Dict[str, Any]], done: Callable[[Optional[Dict[str, Any]]], None]) -> int:
        """Do ``work`` in a forked child and call ``done`` with the JSON object that it returned; None if it died.

        The child leads a process group of its own, is killed with its parent's end of things by `signal.SIGKILL` to
        the group, and holds none of the parent's descriptors. Returns its pid.
        """
        mine, its = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                keep = its.fileno()
                os.closerange(3, keep)
                os.closerange(keep + 1, 1024)
                its.sendall(json.dumps(work()).encode())
                code = 0
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(code)
        its.close()
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # both sides do it, so that it is done for both
        answer = bytearray()

        def arrived(_ready: int) -> None:
            data = mine.recv(CHUNK)
            answer.extend(data)
            if not data:
                self.forget(mine.fileno())
                mine.close()
                self._collect(pid)
                done(_object(bytes(answer)))

        self.watch(mine.fileno(), READ, arrived)
        return pid

    def _collect(self, pid: int) -> None:
        """Collect a child that has closed everything, and is about to end."""
        if not reap(pid):
            self.after(0.01, lambda: self._collect(pid))


class Timers:
    """Timers by name: setting one replaces the one of that name."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._set: Dict[str, Timer] = {}

    def set(self, name: str, delay_s: float, call: Callable[[], None]) -> None:
        """Call ``call`` once, ``delay_s`` seconds from now."""
        self.cancel(name)

        def due() -> None:
            del self._set[name]
            call()

        self._set[name] = self._reactor.after(delay_s, due)

    def cancel(self, name: str) -> None:
        """Forget the timer ``name``, if there is one."""
        timer = self._set.pop(name, None)
        if timer is not None:
            timer.cancel()

    def clear(self) -> None:
        """Forget them all."""
        for name in list(self._set):
            self.cancel(name)


def reap(pid: int) -> bool:
    """Collect a dead child without waiting. False while it is not dead yet."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def _object(answer: bytes) -> Optional[Dict[str, Any]]:
    """What a child has answered; None if it died before it had said all."""
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class Stream:
    """A connected socket in the loop: what arrives is handed on at once, what is written waits its turn.

    ``on_data(bytes)``; ``on_close()`` once, when the peer goes or breaks; ``on_drained()`` when the last byte that had
    to wait is written.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        on_data: Callable[[bytes], None],
        on_close: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._out = bytearray()
        self._closing = False
        self.on_data = on_data
        self.on_close = on_close
        self.on_drained: Optional[Callable[[], None]] = None
        self.open = True
        sock.setblocking(False)
        reactor.watch(sock.fileno(), READ, self._ready)

    @property
    def pending(self) -> int:
        """Bytes written that the peer has not taken yet."""
        return len(self._out)

    def write(self, data: bytes) -> None:
        """Send ``data``, now or when the peer takes it. Bounding `pending` is the caller's business."""
        if not self.open:
            return
        self._out += data
        if len(self._out) == len(data):
            self._flush()

    def finish(self) -> None:
        """Close once everything written is sent."""
        self._closing = True
        if not self._out:
            self.close()

    def close(self) -> None:
        """Close now; `on_close` is not called."""
        if self.open:
            self.open = False
            self._reactor.forget(self._sock.fileno())
            self._sock.close()
            self._out.clear()

    def hang_up(self) -> None:
        """Close now, having read what has arrived: else the peer would lose also what it was sent before."""
        try:
            while self.open and self._sock.recv(CHUNK):
                pass
        except OSError:
            pass  # there is no more
        self.close()

    def _lost(self) -> None:
        if self.open:
            self.close()
            self.on_close()

    def _ready(self, ready: int) -> None:
        if ready & WRITE:
            self._flush()
            if self.open and not self._out and self.on_drained is not None:
                self.on_drained()
        if ready & READ and self.open:
            try:
                data = self._sock.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self.on_data(data)

    def _watch(self) -> None:
        if self.open:
            self._reactor.watch(self._sock.fileno(), READ | (WRITE if self._out else 0), self._ready)

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(memoryview(self._out)[:CHUNK])
                del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._lost()
            return
        self._watch()
        if self._closing and not self._out:
            self.close()
