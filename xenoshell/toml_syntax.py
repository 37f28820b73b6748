"""Reading TOML text: what it holds, and all its syntax errors, not only the first."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from xenoshell import toml_positions
from xenoshell.toml_errors import InputError, shown_text

#: Larger files are refused unread, in bytes.
MAX_BYTES = 4 << 20
#: A file with syntax errors is read again without the line of each, to find further ones: so often at most, ...
_MAX_ROUNDS = 20
#: ... and only once if it is larger than this, in characters.
_MAX_RETRIED = 256 << 10
_MAX_KEY_PARTS = 64


@dataclass(frozen=True)
class Document:
    values: dict[str, Any]
    text: str  # as it could be read: lines with syntax errors are blank


def parse(text: str, file: str) -> tuple[Document | None, list[InputError]]:
    """What can be read of ``text``, and its syntax errors. No document: nothing sensible can be said about the rest."""
    errors: list[InputError] = []

    def bad(
        message: str,
        *,
        line: int = 0,
        column: int = 0,
        key: str = "",
        found: str = "",
        allowed: str = "",
        remedy: str = "",
    ) -> None:
        errors.append(InputError(file, line, key, found, allowed, "", message, column, remedy))

    if len(text) > MAX_BYTES:
        bad("it is too large", allowed=f"{MAX_BYTES >> 20} MiB at most")
        return None, errors
    # tomllib's time for a dotted key grows with the square of its parts.
    lines = text.split("\n")
    if any(line.count(".") >= _MAX_KEY_PARTS for line in lines):
        line, parts = toml_positions.longest_key(text)
        if parts > _MAX_KEY_PARTS:
            bad("a key with too many parts", line=line, found=f"{parts} parts", allowed=f"{_MAX_KEY_PARTS} at most")
            return None, errors
    header_lost = False
    for _ in range(_MAX_ROUNDS if len(text) <= _MAX_RETRIED else 1):
        current = "\n".join(lines)
        try:
            values = tomllib.loads(current, parse_float=_decimal)
            return (None if header_lost else Document(values, current)), errors
        except RecursionError:
            bad(
                "nested too deeply",
                line=toml_positions.deepest(current),
                remedy="a session file needs five levels at most",
            )
            return None, errors
        except tomllib.TOMLDecodeError as error:
            message, line, column = _reason(error)
            if header_lost and message.startswith("Cannot "):
                break  # keys of the lost table, seen as another's
            if not 1 <= line <= len(lines):
                line = _last_line(lines)
                if not errors:
                    bad(f"{message} at the end of the file", line=line, remedy=_remedy(message, ""))
                break
            written = lines[line - 1]
            bad(
                _plain(message), line=line, column=column, key=_key_of(written),
                found=shown_text(written.strip()), allowed=_allowed(message), remedy=_remedy(message, written),
            )  # fmt: skip
            if not written.strip() or written.lstrip().startswith("#"):
                break  # no progress
            header_lost = header_lost or written.lstrip().startswith("[")
            lines[line - 1] = ""
        except ValueError as error:
            line = toml_positions.long_integer(current, 4000)
            bad(
                f"a number that cannot be read: {error}"[:200] if not line else "a number with too many digits",
                line=line,
            )
            return None, errors
    return None, errors


def _decimal(text: str) -> Decimal:
    """A float as it is written, exactly; with so many digits that nobody means it, not a number."""
    return Decimal(text) if len(text) <= 100 else Decimal("NaN")


_AT = re.compile(r"(?P<message>.*?) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)\Z", re.DOTALL)


def _reason(error: tomllib.TOMLDecodeError) -> tuple[str, int, int]:
    """tomllib's message, and the line and column (from 1; 0 at the end of the document) in it."""
    found = _AT.match(str(error))
    if found is None:
        return str(error), 0, 0
    return found["message"], int(found["line"] or 0), int(found["column"] or 0)


def _plain(message: str) -> str:
    if message.startswith("Illegal character '\\n'"):
        return "the text is not closed on its line"
    if message.startswith("Illegal character '\\r'"):
        return "a carriage return in the middle of a line"
    if message.startswith("Cannot overwrite"):
        return "this key has a value already"
    if message.startswith("Cannot declare"):
        return "this section is there already"
    if message.startswith("Expected newline or end of document"):
        return "something follows the value"
    return message[:1].lower() + message[1:200]


def _allowed(message: str) -> str:
    if message.startswith(("Invalid value", "Expected newline or end of document")):
        return '"text" in quotes, a number, true or false, a [list], a { table }'
    if message.startswith(("Invalid statement", "Expected '='", "Invalid initial character for a key")):
        return "key = value, [section], [[vm]], # comment"
    return ""


def _remedy(message: str, written: str) -> str:
    if message.startswith(("Invalid value", "Expected newline or end of document")):
        found = re.fullmatch(r"\s*([A-Za-z0-9_.-]+)\s*=\s*([^\"'\[{#\s][^\"'#]*?)\s*(#.*)?", written)
        if found:
            value = found[2]
            if value.lower() in ("true", "false", "yes", "no", "on", "off"):
                return f"write {'true' if value.lower() in ('true', 'yes', 'on') else 'false'}"
            return f'write {found[1]} = "{value[:60]}"'
    if message.startswith(("Illegal character '\\n'", "Unterminated string", 'Expected "\'"')):
        return "close the quotes; text of several lines goes into three of them"
    if message.startswith(("Unclosed array", "Unclosed inline table")):
        return "close the bracket"
    if message.startswith("Cannot overwrite"):
        return "remove one of the two"
    if message.startswith("Cannot declare"):
        return "each [section] once; for one more VM group, begin with [[vm]]"
    return ""


def _key_of(line: str) -> str:
    found = re.match(r"\s*([A-Za-z0-9_.-]{1,80})\s*=", line)
    return found[1] if found else ""


def _last_line(lines: list[str]) -> int:
    return max((i for i, line in enumerate(lines, 1) if line.strip()), default=1)
