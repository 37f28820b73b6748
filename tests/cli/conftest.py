"""The command line in this process (quick) and as a process of its own (true)."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
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


def on_terminal(
    *argv: str, keys: str = "", after: str = "", timeout_s: float = 30.0, environment: dict[str, str] | None = None
) -> Done:
    """Run ``argv`` on a real pseudo-terminal; type ``keys`` once ``after`` has appeared. ``out`` has both streams."""
    outer, inner = pty.openpty()
    shown = b""
    deadline = time.monotonic() + timeout_s
    with subprocess.Popen(
        argv,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
    ) as child:
        os.close(inner)
        try:
            while time.monotonic() < deadline:
                if select.select([outer], [], [], 0.1)[0]:
                    with contextlib.suppress(OSError):
                        if data := os.read(outer, 65536):
                            shown += data
                            if keys and after.encode() in shown:
                                os.write(outer, keys.encode())
                                keys = ""
                            continue
                    break
            code = child.wait(max(0.1, deadline - time.monotonic()))
        finally:
            child.kill()
            os.close(outer)
    return Done(code, shown.decode(errors="replace"), "")
