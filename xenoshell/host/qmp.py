"""A tiny QMP client in the loop: greeting, capabilities, replies matched by id, events.

https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import json
import socket
from typing import Any, Callable, Dict, Optional

from xenoshell.host.reactor import Reactor, Stream

#: Longest line taken; QEMU's own are far shorter.
MAX_LINE = 1 << 20
Reply = Callable[[Any, str], None]  # (what "return" holds, "") or (None, why it failed)


class Qmp:
    """One monitor connection. ``on_ready()`` after the handshake, ``on_event(name, data)``, ``on_close()`` when it is
    lost.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        on_ready: Callable[[], None],
        on_event: Callable[[str, Dict[str, Any]], None],
        on_close: Callable[[], None],
    ) -> None:
        self._on_ready = on_ready
        self._on_event = on_event
        self._on_close = on_close
        self._buffer = bytearray()
        self._waiting: Dict[int, Reply] = {}
        self._next = 0
        self._early = b""  # commands given before the handshake
        self.ready = False
        self._stream = Stream(reactor, sock, self._data, self._lost)

    @property
    def open(self) -> bool:
        """Whether QEMU still is at the other end."""
        return self._stream.open

    def execute(self, command: str, reply: Optional[Reply] = None, **arguments: Any) -> None:
        """Send ``command`` (underscores in argument names become dashes) and hand its answer to ``reply``."""
        if not self._stream.open:
            if reply is not None:
                reply(None, "QEMU is gone")
            return
        self._next += 1
        if reply is not None:
            self._waiting[self._next] = reply
        message: Dict[str, Any] = {"execute": command, "id": self._next}
        if arguments:
            message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        line = json.dumps(message).encode() + b"\n"
        if self.ready or command == "qmp_capabilities":
            self._stream.write(line)
        else:
            self._early += line

    def close(self) -> None:
        """Let go of the monitor; QEMU stays as it is."""
        self._stream.close()

    def _lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            reply(None, "QEMU is gone")
        self._on_close()

    def _data(self, data: bytes) -> None:
        self._buffer += data
        while self._stream.open:
            line, newline, rest = self._buffer.partition(b"\n")
            if not newline:
                if len(self._buffer) > MAX_LINE:
                    self._buffer.clear()
                return
            self._buffer = rest
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict):
                self._message(message)

    def _message(self, message: Dict[str, Any]) -> None:
        if "QMP" in message:
            self.execute("qmp_capabilities", self._capable)
        elif "event" in message:
            data = message.get("data")
            self._on_event(str(message["event"]), data if isinstance(data, dict) else {})
        elif "return" in message or "error" in message:
            number = message.get("id")
            reply = self._waiting.pop(number, None) if isinstance(number, int) else None
            if reply is None:
                return
            error = message.get("error")
            if isinstance(error, dict):
                reply(None, str(error.get("desc", "refused")))
            else:
                reply(message.get("return"), "")

    def _capable(self, _value: Any, error: str) -> None:
        if not error:
            self.ready = True
            self._stream.write(self._early)
            self._on_ready()
