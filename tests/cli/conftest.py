"""The command line in this process (quick) and as a process of its own (true)."""

from __future__ import annotations

import codecs
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from xenoshell.cli.root import build


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(own_world: None) -> Run:
    """``run("hosts", "list")``: in this process, without a terminal."""

    def invoke(*words: object, input: str = "") -> Done:
        result = CliRunner().invoke(build(), [str(word) for word in words], input=input, prog_name="xenoshell")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return invoke


def process(*words: object, **options: object) -> Done:
    """The same as a process of its own, nothing on its standard input."""
    done = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-m", "xenoshell", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **options,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def on_terminal(*argv: str, script: Sequence[tuple[str, str]] = (), timeout_s: float = 30.0) -> Done:
    """Run ``argv`` on a real pseudo-terminal. ``script``: what to wait for, and what to type then, in turn.

    ``out`` has both streams. Fails, with what was seen, when it does not end within ``timeout_s``."""
    outer, inner = pty.openpty()
    shown = ""
    at = 0
    steps = list(script)
    deadline = time.monotonic() + timeout_s
    with subprocess.Popen(
        argv,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
    ) as child:
        os.close(inner)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while time.monotonic() < deadline:
                if not select.select([outer], [], [], 0.1)[0]:
                    continue
                try:
                    data = os.read(outer, 65536)
                except OSError:  # how the end of a pseudo-terminal reads
                    break
                if not data:
                    break
                shown += decoder.decode(data)
                while steps and (found := shown.find(steps[0][0], at)) >= 0:
                    at = found + len(steps[0][0])
                    os.write(outer, steps.pop(0)[1].encode())
            else:
                raise AssertionError(f"still running after {timeout_s:g} s, {len(steps)} steps left: {shown[-2000:]!r}")
            code = child.wait(10)
        finally:
            child.kill()
            os.close(outer)
    return Done(code, shown, "")
