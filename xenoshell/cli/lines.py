"""Sanity checks on the screen: one line for each thing looked at, with its remedy below."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from ..console.clean import clean
from ..wire.values import CheckLine
from .exits import NOTHING_DONE, Stop
from .output import Output, wrapped

#: Where what was found begins.
_INDENT: Final = 30
_ROLES: Final = {"fine": "good", "limited": "warn", "failed": "bad"}


def show_line(out: Output, line: CheckLine) -> None:
    """Print one line of a check as soon as it is there."""
    level = line.level if line.level in _ROLES else "limited"
    found = wrapped(f"{'':<{_INDENT}}{clean(line.found)}", sys.stdout, 0)[_INDENT:]
    out.data(f"{out.paint(f'{level:<7}', _ROLES[level])}  {clean(line.name):<20} {found}")
    if line.remedy and level != "fine":
        remedy = wrapped(f"{'':<{_INDENT}}to do: {clean(line.remedy)}", sys.stdout)
        for each in remedy.split("\n"):
            out.data(out.paint(each, "dim"))
    out.flush()


def finish_check(out: Output, what: str, lines: Sequence[CheckLine]) -> None:
    """The end of a check: the JSON document, a last word, and exit code 3 if a line failed."""
    failed = [line for line in lines if line.level == "failed"]
    limited = [line for line in lines if line.level == "limited"]
    if out.json:
        out.document({"name": what, "fit": not failed, "lines": list(lines)})
    if failed:
        out.note(f"{what}: not fit: {', '.join(clean(line.name) for line in failed)} failed")
        raise Stop(NOTHING_DONE)
    out.note(f"{what}: fit" + (f", with limits: {', '.join(clean(line.name) for line in limited)}" if limited else ""))
