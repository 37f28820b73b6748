"""Sizes and durations, written with units: ``1.5GiB``, ``500MB``, ``90s``, ``1h30m``.

Sizes are whole bytes (`int`), durations seconds (`float`, never finer than a millisecond). Reading is exact and strict,
because ``1g`` can mean three things; the message of the `ValueError` names the spelling that was probably meant.
``format_*`` writes the exact canonical spelling that ``parse_*`` reads back; ``human_*`` is rounded, for people only.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

SIZE_UNITS: dict[str, int] = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
#: Milliseconds in each unit, longest first.
DURATION_UNITS: dict[str, int] = {
    "w": 7 * 86_400_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1000,
    "ms": 1,
}

SIZE_ALLOWED = (
    'a number with a unit: KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, TB (powers of 1000), such as "2GiB"'
)
DURATION_ALLOWED = 'numbers with units: ms, s, m, h, d, w, such as "90s", "1h30m" or "7d"'

#: The same, for editors (JSON Schema).
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)$"
DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d|w) ?)+$"

MAX_SIZE = 1 << 60
MAX_DURATION_S = 100 * 366 * 86400

_NUMBER = r"[0-9]{1,24}(?:\.[0-9]{1,24})?"
_SIZE = re.compile(rf"({_NUMBER}) ?([A-Za-z]*)", re.ASCII)
_DURATION_PART = re.compile(rf"({_NUMBER}) ?([A-Za-z]*) ?", re.ASCII)


def _size_hint(number: str, unit: str) -> str:
    """The spelling that was probably meant, as the end of a sentence."""
    letter = unit[:1].upper()
    if (
        letter in "KMGT"
        and letter
        and unit.lower() in {letter.lower(), f"{letter.lower()}b", f"{letter.lower()}ib", f"{letter.lower()}i"}
    ):
        return f'; did you mean "{number}{letter}iB"?'
    return ""


def parse_size(text: str) -> int:
    """Bytes of a size such as ``512MiB`` or ``1.5GB``. Raises `ValueError` with what is allowed."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"not a size; write {SIZE_ALLOWED}")
    number, unit = found.groups()
    if not unit:
        raise ValueError(f'a size needs a unit: "{number}MiB" or "{number}GiB"?')
    if unit not in SIZE_UNITS:
        raise ValueError(f"no such unit: {unit[:20]}{_size_hint(number, unit)}")
    size = Decimal(number) * SIZE_UNITS[unit]
    if size != int(size):
        raise ValueError("not a whole number of bytes")
    if size > MAX_SIZE:
        raise ValueError("larger than 1 EiB")
    return int(size)


def format_size(size: int) -> str:
    """The exact size in the largest unit that divides it: ``1GiB``, ``1536MiB``, ``8GB``, ``1001B``."""
    if size < 0:
        raise ValueError("a size is not negative")
    if size == 0:
        return "0B"
    # Powers of 1024 first; of 1000 only where they say the same in a larger unit.
    best = "B"
    for unit, factor in SIZE_UNITS.items():
        if size % factor == 0 and factor > SIZE_UNITS[best]:
            best = unit
    return f"{size // SIZE_UNITS[best]}{best}"


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``90s``, ``1h30m`` or ``500ms``. Raises `ValueError` with what is allowed."""
    rest = text.strip()
    if not rest:
        raise ValueError(f"not a duration; write {DURATION_ALLOWED}")
    total = Decimal(0)
    units = list(DURATION_UNITS)
    last = -1
    at = 0
    while at < len(rest):
        found = _DURATION_PART.match(rest, at)
        if found is None:
            raise ValueError(f"not a duration; write {DURATION_ALLOWED}")
        number, unit = found.groups()
        if not unit:
            raise ValueError(f'a duration needs a unit: "{number}s" or "{number}m"?')
        if unit not in DURATION_UNITS:
            meant = next((u for u in DURATION_UNITS if unit.lower() in _LONG_UNITS[u]), "")
            raise ValueError(
                f"no such unit: {unit[:20]}"
                + (f'; did you mean "{number}{meant}"?' if meant else f"; write {DURATION_ALLOWED}")
            )
        if units.index(unit) <= last:
            raise ValueError("each unit once, from the longest to the shortest, such as 1h30m")
        last = units.index(unit)
        try:
            total += Decimal(number) * DURATION_UNITS[unit]
        except InvalidOperation as error:  # pragma: no cover - the pattern bounds the digits
            raise ValueError("a number too long") from error
        at = found.end()
    if total != int(total):
        raise ValueError("finer than a millisecond")
    if total > MAX_DURATION_S * 1000:
        raise ValueError("longer than a century")
    return int(total) / 1000


_LONG_UNITS: dict[str, frozenset[str]] = {
    "ms": frozenset({"msec", "msecs", "millisecond", "milliseconds"}),
    "s": frozenset({"s", "sec", "secs", "second", "seconds"}),
    "m": frozenset({"min", "mins", "minute", "minutes"}),
    "h": frozenset({"h", "hr", "hrs", "hour", "hours"}),
    "d": frozenset({"d", "day", "days"}),
    "w": frozenset({"w", "week", "weeks"}),
}


def format_duration(seconds: float) -> str:
    """The exact duration, to the millisecond, from the largest unit down: ``1d``, ``1h30m``, ``250ms``."""
    left = round(seconds * 1000)
    if left < 0:
        raise ValueError("a duration is not negative")
    if left == 0:
        return "0s"
    parts = []
    for unit, factor in DURATION_UNITS.items():
        if unit == "w":  # "7d" reads better than "1w", and "1w1d" worse than "8d"
            continue
        count, left = divmod(left, factor)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def human_size(size: int) -> str:
    """A rounded size for people: ``12.3 MiB``."""
    import humanize

    return humanize.naturalsize(size, binary=True)


def human_duration(seconds: float) -> str:
    """A rounded duration for people, two units at most: ``0.4 s``, ``12 s``, ``3 m 5 s``, ``2 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    left = round(seconds)
    parts: list[str] = []
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, factor)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))
