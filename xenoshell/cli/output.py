"""What the commands print: data on stdout, narration on stderr."""

from __future__ import annotations

import json as json_module
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TextIO

from ..console.clean import clean, clean_json
from .styles import OWN, sgr


@dataclass(frozen=True)
class Cell:
    """One value of a table: its text and the role that colours it (good, bad, warn, dim) on a terminal."""

    text: str
    role: str = ""
    right: bool = False


def colours(stream: TextIO) -> bool:
    """Whether ``stream`` takes colours: a terminal that is not dumb, and NO_COLOR is not set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb")


def columns(stream: TextIO) -> int | None:
    """How wide the terminal behind ``stream`` is (COLUMNS overrides it); None when there is none: nothing is fitted."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def wrapped(text: str, stream: TextIO, indent: int = 2) -> str:
    """``text`` broken between words where it meets a terminal; what goes on stands ``indent`` further in."""
    limit = columns(stream)
    if limit is None:
        return text
    out = []
    for line in text.split("\n"):
        lead = " " * (len(line) - len(line.lstrip(" ")) + indent)
        fill = textwrap.TextWrapper(
            max(limit, len(lead) + 20), subsequent_indent=lead, break_long_words=False, break_on_hyphens=False
        )
        out.append(fill.fill(line) if width(line) > limit else line)
    return "\n".join(out)


@dataclass(frozen=True)
class Output:
    """The two streams of a command, as its options want them."""

    json: bool
    plain: bool
    quiet: bool
    verbose: bool
    palette: Mapping[str, str] = field(default_factory=lambda: OWN)

    @property
    def coloured(self) -> bool:
        return not self.plain and not self.json and colours(sys.stdout)

    @property
    def live(self) -> bool:
        """Whether a moving display is wanted: a terminal, and neither --plain nor --json nor --quiet."""
        return not (self.plain or self.json or self.quiet) and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def data(self, text: str = "") -> None:
        """A line of data. What comes from a host in it must have passed `clean`."""
        sys.stdout.write(text + "\n")

    def prose(self, text: str) -> None:
        """A sentence of data, broken between words on a terminal."""
        self.data(text if self.plain else wrapped(text, sys.stdout))

    def document(self, value: Any) -> None:
        """The one JSON document of a command, safe to look at on a terminal."""
        text = json_module.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
        sys.stdout.write(clean_json(text) + "\n")

    def line(self, value: Any) -> None:
        """One JSON object on a line of its own, at once."""
        sys.stdout.write(json_line(value))
        sys.stdout.flush()

    def flush(self) -> None:
        """Let what was printed be seen now, also through a pipe."""
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Narration; --quiet silences it."""
        if not self.quiet:
            self.warn(text)

    def detail(self, text: str) -> None:
        """Narration that only --verbose wants."""
        if self.verbose:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Narration that nothing silences."""
        sys.stdout.flush()
        sys.stderr.write(wrapped(text, sys.stderr) + "\n")
        sys.stderr.flush()

    def paint(self, text: str, role: str) -> str:
        """``text`` in the colour of ``role`` where stdout takes colours."""
        code = sgr(self.palette[role]) if role and self.coloured else ""
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[Cell | str]],
        *,
        without_empty: bool = False,
        spare: Sequence[str] = (),
    ) -> None:
        """Aligned columns without lines, two blanks apart; over right-aligned cells the head is at the right.

        ``without_empty`` leaves out columns in which no row has anything. On a terminal that is too narrow, columns
        stand one blank apart; then those of ``spare`` go, the first of them first, which is told; then the widest
        cells are cut, each with an ellipsis. Pipes, files and --plain get everything.
        """
        cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
        cells = [[Cell(clean(c.text), c.role, c.right) for c in row] for row in cells]
        if without_empty:
            kept = [i for i in range(len(head)) if any(row[i].text for row in cells)]
            head, cells = [head[i] for i in kept], [[row[i] for i in kept] for row in cells]
        limit = None if self.plain else columns(sys.stdout)
        gone: list[str] = []
        gap = _GAP
        if limit is not None:
            for name in spare:
                gap = _GAP if _total(head, cells, _GAP) <= limit else _NARROW_GAP
                if _total(head, cells, gap) <= limit:
                    break
                if name in head:
                    gone.append(name)
                    at = list(head).index(name)
                    head = [*head[:at], *head[at + 1 :]]
                    cells = [[*row[:at], *row[at + 1 :]] for row in cells]
            gap = _GAP if _total(head, cells, _GAP) <= limit else _NARROW_GAP
        widths = _widths(head, cells)
        if limit is not None:
            widths = _squeezed(widths, limit, gap)
        rights = [any(row[i].right for row in cells) for i in range(len(head))]
        self.data(self._row([Cell(h, "head", r) for h, r in zip(head, rights, strict=True)], widths, gap))
        for row in cells:
            self.data(self._row(row, widths, gap))
        if gone:
            self.note(f"(no room here for {', '.join(gone)}; a wider window or --plain shows all)")

    def _row(self, row: Sequence[Cell], widths: Sequence[int], gap: int) -> str:
        parts = []
        for index, (whole, wide) in enumerate(zip(row, widths, strict=True)):
            cell = Cell(shortened(whole.text, wide), whole.role, whole.right)
            fill = " " * (wide - width(cell.text))
            text = self.paint(cell.text, cell.role) if cell.text else ""
            last = index == len(widths) - 1
            parts.append(fill + text if cell.right else text + ("" if last else fill))
        return (" " * gap).join(parts).rstrip()


def json_line(value: Any) -> str:
    """``value`` as a line of JSON, newline included, safe to look at on a terminal."""
    return clean_json(json_module.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)) + "\n"


def jsonable(value: Any) -> Any:
    """``value`` as JSON: dataclasses, pydantic models, mappings, sequences; exact decimals become text."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if hasattr(value, "to_json"):
        return jsonable(value.to_json())
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: jsonable(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


#: Blanks between columns: as a rule, and where the window is too narrow for that.
_GAP, _NARROW_GAP = 2, 1
#: No column is cut below so many characters.
_NARROWEST: Final = 6


def _widths(head: Sequence[str], cells: Sequence[Sequence[Cell]]) -> list[int]:
    return [max([width(h), *(width(row[i].text) for row in cells)]) for i, h in enumerate(head)]


def _total(head: Sequence[str], cells: Sequence[Sequence[Cell]], gap: int) -> int:
    return sum(_widths(head, cells)) + gap * (len(head) - 1)


def _squeezed(widths: list[int], limit: int, gap: int) -> list[int]:
    """``widths`` with the widest made narrower until a row fits into ``limit``, as far as that goes."""
    out = list(widths)
    while sum(out) + gap * (len(out) - 1) > limit and max(out) > _NARROWEST:
        out[out.index(max(out))] -= 1
    return out


def shortened(text: str, wide: int) -> str:
    """``text`` in at most ``wide`` columns, an ellipsis at its end where something is missing."""
    if width(text) <= wide:
        return text
    while text and width(text) > wide - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def width(text: str) -> int:
    """Terminal columns of ``text``: wide East Asian characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
