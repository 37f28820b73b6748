"""What is wrong with a file: located errors, and how values and places are shown in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from xenoshell.errors import BadInput
from xenoshell.problems import Loc


@dataclass(frozen=True)
class InputError:
    """One error of a file. ``line`` and ``column`` count from 1; 0: unknown. ``key`` is a path: ``vm[0].count``."""

    file: str
    line: int
    key: str
    found: str
    allowed: str
    nearest: str
    message: str
    column: int = 0
    remedy: str = ""

    def __str__(self) -> str:
        place = (
            self.file
            + (f":{self.line}" if self.line else "")
            + (f":{self.column}" if self.line and self.column else "")
        )
        head = f"{place}: {self.key + ': ' if self.key else ''}{self.message}" + (
            f" (found {self.found})" if self.found else ""
        )
        lines = [head]
        if self.nearest:
            lines.append(f"  did you mean {self.nearest}?")
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.remedy:
            lines.append(f"  {self.remedy}")
        return "\n".join(lines)


class InputErrors(BadInput):
    """Everything that is wrong with one file, in the order of its lines."""

    def __init__(self, errors: tuple[InputError, ...]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors


def key_path(loc: Loc) -> str:
    """A place as people write it: ``vm[0].resources.memory``."""
    out = ""
    for part in loc:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", part) else shown_text(part, 60)
            out += f".{name}" if out else name
    return out


def shown(value: object) -> str:
    """A value for a message: short, whatever it is."""
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() < 200 else "a very large number"
    if isinstance(value, float | Decimal):
        return str(value)[:60]
    if isinstance(value, dict):
        return "a table" + (f" with {', '.join(key_path((str(k),)) for k in list(value)[:4])}" if value else "")
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "nothing" if value is None else str(value)[:60]


def shown_text(text: str, limit: int = 80) -> str:
    quoted = repr(text[:limit])
    quoted = '"' + quoted[1:-1].replace('"', '\\"') + '"' if quoted[0] == "'" else quoted
    return quoted if len(text) <= limit else quoted[:-1] + '..."'
