"""The loop's forked children: their answers arrive, and nothing of them stays behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import eventually
from xenoshell.host.reactor import Reactor


def zombies() -> list[int]:
    """Dead children of this process that nobody collected."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if stat[0] == "Z" and int(stat[1]) == os.getpid():
                found.append(int(name))
    return found


def test_no_child_is_left_uncollected() -> None:
    reactor = Reactor()
    answers: list[Any] = []

    def done(answer: Any) -> None:
        answers.append(answer)
        if len(answers) < 40:
            reactor.fork(lambda: {"number": len(answers)}, done)
        else:
            reactor.after(0.2, reactor.stop)

    before = zombies()
    reactor.fork(lambda: {"number": 0}, done)
    reactor.run()
    assert answers == [{"number": n} for n in range(40)]
    assert [pid for pid in zombies() if pid not in before] == []


@pytest.mark.parametrize("said", [b"", b'{"accel": "t', b"[]"])
def test_a_child_that_dies_while_it_answers_has_not_answered(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    reactor = Reactor()
    answers: list[Any] = []

    def work() -> dict[str, Any]:
        for fd in range(3, 1024):  # whichever leads to the parent
            try:
                os.write(fd, said)
            except OSError:
                continue
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def done(answer: Any) -> None:
        answers.append(answer)
        reactor.stop()

    pid = reactor.fork(work, done)
    reactor.run()
    assert answers == [None]
    eventually(lambda: not Path(f"/proc/{pid}").exists() or os.waitpid(pid, os.WNOHANG)[0])
