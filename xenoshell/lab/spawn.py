"""Start daemons that are nobody's children. Standard library only; run as ``python -I -S spawn.py`` with a JSON list
``[[command, log], ...]`` as its input, it prints one pid a line.

A small process of its own because the caller may have threads (no fork there), must not get zombies, and may ignore
signals that the daemon should not. It costs 20 ms for any number of daemons.
"""

from __future__ import annotations

import json
import os
import signal
import sys


def spawn(command: list[str], log: str) -> int:
    """Start ``command`` in a session of its own with working directory /, no input, and output appended to ``log``.
    Returns its pid; what it does then is not waited for."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o077)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) in (signal.SIG_IGN, signal.default_int_handler):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    for words, file in json.load(sys.stdin):
        print(spawn(words, file))
