"""A supervisor survives whatever comes from the monitor: who breaks out of a guest into QEMU is not to end its lease's
keeper with a line of JSON."""

from __future__ import annotations

import json
import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from xenoshell.host import meter
from xenoshell.host.qmp import Qmp
from xenoshell.host.reactor import Reactor

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["QMP", "event", "data", "return", "error", "id", "desc", "timestamp"])


class Monitor:
    """Both ends of a monitor connection."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        ours, self.qemu = socket.socketpair()
        self.events: list[Any] = []
        self.qmp = Qmp(self.reactor, ours, lambda: None, lambda name, data: self.events.append((name, data)), self.lost)

    def lost(self) -> None:
        self.reactor.stop()

    def hear(self, *lines: bytes) -> None:
        """Let QEMU say these lines and go."""
        with self.qemu:
            self.qemu.sendall(b"".join(line + b"\n" for line in lines))
        self.reactor.run()


@given(st.lists(st.dictionaries(KEYS, ANY, max_size=4).map(json.dumps) | st.text(max_size=20), max_size=5))
def test_no_line_of_the_monitor_is_too_odd(lines: list[str]) -> None:
    monitor = Monitor()
    replies: list[Any] = []
    monitor.qmp.execute("query-status", lambda value, error: replies.append(value))
    monitor.hear(*(line.encode("utf-8", "surrogatepass").replace(b"\n", b" ") for line in lines))
    assert len(replies) == 1 and not monitor.qmp.open


def test_an_answer_finds_its_question_among_others() -> None:
    monitor = Monitor()
    replies: list[Any] = []
    monitor.qmp.execute("query-status", lambda value, error: replies.append((value, error)))
    monitor.hear(b'{"return": 0, "id": []}', b'{"return": 0, "id": {}}', b'{"return": 0}', b'{"return": 7, "id": 1}')
    assert replies == [(7, "")]


@given(ANY | st.lists(st.fixed_dictionaries({"qdev": ANY, "stats": ANY | st.fixed_dictionaries({"rd_bytes": ANY})})))
def test_no_block_statistics_are_too_odd(value: Any) -> None:
    read, written = meter.disk(value)
    assert read >= 0 and written >= 0
