"""Exit codes, and the one place that turns an exception into a message and a code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..console.clean import clean, clean_lines
from ..wire.causes import Failure

DONE: Final = 0
SOME_FAILED: Final = 1
BAD_INPUT: Final = 2
NOTHING_DONE: Final = 3
REFUSED: Final = 4
INTERRUPTED: Final = 130

#: What budget, lease and trust say no to.
_REFUSALS: Final = frozenset({"host-key-unknown", "host-key-changed", "over-budget", "budget-spent", "lease-expired"})


class Refused(Exception):
    """Not done because a person (or a missing ``--yes``) said no. The message is for a person."""


class Stop(Exception):
    """End the command with ``code``; everything there was to say has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def code_of(cause: str) -> int:
    """The exit code of a command that could not be done because of ``cause``."""
    if cause in _REFUSALS:
        return REFUSED
    return INTERRUPTED if cause == "cancelled" else NOTHING_DONE


@contextlib.contextmanager
def mapped(logs: Path, verbose: bool) -> Iterator[None]:
    """Run a command; whatever it raises becomes a message on stderr and a `Stop` with the exit code."""
    try:
        yield
    except Stop:
        raise
    except KeyboardInterrupt:
        _say("interrupted")
        raise Stop(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001  the last resort: a defect is logged, never shown raw
        raise Stop(explain(error, logs, verbose)) from None


def explain(error: Exception, logs: Path, verbose: bool) -> int:
    """Tell a person on stderr why a command ended with ``error``; returns its exit code."""
    # Imported here: an error of theirs means that they are loaded already, and without one nobody pays for them.
    from ..errors import BadInput
    from ..tomlfile import InputErrors

    match error:
        case ExceptionGroup():
            return explain(_speaker(error), logs, verbose)
        case Stop(code=code):
            return code
        case BrokenPipeError():
            silence()
            return DONE
        case InputErrors():
            for each in error.errors:
                _say(clean_lines(each))
            code = BAD_INPUT
        case BadInput():
            _say(clean_lines(error.message), clean(error.remedy))
            code = BAD_INPUT
        case Refused():
            _say(clean(error))
            code = REFUSED
        case Failure():
            _say(f"{clean_lines(error.message)} [{error.cause}]", clean(error.remedy))
            code = code_of(error.cause)
        case _:
            return _defect(error, logs, verbose)
    if verbose:
        _print_trace(error)
    return code


def silence() -> None:
    """Whoever read our output has gone: let the interpreter's last flush go nowhere instead of complaining."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speaker(group: ExceptionGroup[Exception]) -> Exception:
    """Of tasks that failed together, the one whose reason is told: a defect before a failure with a known cause."""
    known, rest = group.split((Failure, Refused, BrokenPipeError))
    found: Exception | None = rest if rest is not None else known
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    return found if found is not None else group


def _defect(error: Exception, logs: Path, verbose: bool) -> int:
    import time
    import traceback

    path = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), errors="backslashreplace")
        remedy = f"please report it with {path}"
    except OSError as problem:
        remedy = f"run again with --verbose to see the details ({path} cannot be written: {problem.strerror})"
    _say(f"something went wrong inside xenoshell: {type(error).__name__}: {clean(error, 300)}", remedy)
    if verbose:
        _print_trace(error)
    return NOTHING_DONE


def _print_trace(error: Exception) -> None:
    import traceback

    # What a host said is in the messages of exceptions as it came.
    print(clean_lines("".join(traceback.format_exception(error))), file=sys.stderr)


def _say(message: str, remedy: str = "") -> None:
    with contextlib.suppress(OSError):
        from .output import wrapped

        text = f"xenoshell: {message}" + (f"\n  to do: {remedy}" if remedy else "")
        print(wrapped(text, sys.stderr), file=sys.stderr)
