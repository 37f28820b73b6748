"""Text of a host or guest, made safe to print in a line of ours."""

from __future__ import annotations

from typing import Final

#: C0, DEL and C1 controls; line and paragraph separators; marks that reorder what is around them; the tag characters.
_CODES: Final = (
    *(*range(32), *range(127, 160)),
    *(0x2028, 0x2029),
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
    *(0xFEFF, *range(0xD800, 0xE000), *range(0xE0000, 0xE0080)),
)
_UNSAFE: Final = dict.fromkeys(_CODES, " ")
#: JSON's own escapes for them. (JSON text has the first 32 outside of strings only, as white space.)
_ESCAPED: Final = {
    code: "".join(f"\\u{unit:04x}" for unit in memoryview(chr(code).encode("utf-16-le", "surrogatepass")).cast("H"))
    for code in _CODES
    if code >= 127
}


def clean(text: object, limit: int = 2000) -> str:
    """``text`` as one line without control, reordering or invisible characters, at most ``limit`` characters long.

    Every name, message or version that a host or guest supplies passes through here before it reaches a terminal.
    """
    line = clean_line(str(text)).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def clean_line(text: str) -> str:
    """``text`` as a line of the same length: each such character becomes a blank."""
    return text.translate(_UNSAFE)


def clean_json(text: str) -> str:
    """JSON text that means the same and has none of these characters: what a terminal shows of it draws nothing."""
    return text.translate(_ESCAPED)


def clean_lines(text: object) -> str:
    """The same for a text of several lines: they stay lines, with the blanks that indent them."""
    lines = str(text).splitlines()
    return "\n".join(" " * (len(line) - len(line.lstrip(" "))) + clean(line) for line in lines)
